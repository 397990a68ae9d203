"""What the screens remember for a person, and tell of colleagues: recent and saved searches, who else is on an order."""

from datetime import UTC, datetime, timedelta

import pytest
from django.test import Client
from django.urls import reverse
from django.utils import timezone

from dashboard.models import User
from refunds import audit, search
from refunds.folding import fold_reference
from refunds.models import Order, SavedSearch, Search, SyncCursor
from tests.conftest import Clock, make_order, make_user, sign_in


@pytest.fixture
def browser(operator: User) -> Client:
    return sign_in(operator)


def keep(person: User, text: str, **ago: float) -> Search:
    at = timezone.now() - timedelta(**ago)
    return Search.objects.create(person=person, text=text, created_at=at)


def test_recent_searches_are_ones_own_each_once_without_what_was_typed_on_the_way(operator: User) -> None:
    keep(make_user("operator"), "colleague's")
    keep(operator, "long ago", days=31)
    for ago, text in enumerate(["tanaka", "tan", "佐藤", "佐藤", *"abcdef"]):
        keep(operator, text, minutes=ago)

    assert [text for _id, text in search.remembered(operator).recent] == ["tanaka", "佐藤", "a", "b", "c"]


@pytest.mark.parametrize("blank", ["\u3000", "\t", "\u00a0", "\r\n"])
def test_blank_of_any_kind_parts_words(blank: str) -> None:
    assert search.as_typed(f"{blank}田中{blank}EC-1 ") == "田中 EC-1"


def test_list_is_as_old_as_the_last_page_of_orders(operator: User) -> None:
    assert search.remembered(operator).read_at is None
    at = timezone.now() - timedelta(minutes=3)
    SyncCursor.objects.create(pk="refunds", last_read_at=timezone.now())
    SyncCursor.objects.create(pk="orders", last_read_at=at)
    assert search.remembered(operator).read_at == at


def test_search_is_saved_replaced_and_forgotten(browser: Client, operator: User) -> None:
    typed = keep(operator, "田中")
    fields = {"name": "田中さん", "search": typed.pk, "refund_status": "partial", "status": "", "period": ""}
    saved = browser.post("/orders/saved/", fields)
    assert saved["Location"] == f"/orders/?search={typed.pk}&refund_status=partial"
    browser.post("/orders/saved/", fields | {"refund_status": "full"})
    [kept] = SavedSearch.objects.all()
    assert (kept.search, kept.filters) == (typed, "refund_status=full")
    assert f"?search={typed.pk}&amp;refund_status=full" in browser.get("/orders/").content.decode()

    browser.post("/orders/saved/", {"forget": "田中さん"})
    assert not SavedSearch.objects.exists()


@pytest.mark.parametrize("wrong", [{"name": ""}, {"period": ""}, {"status": "nonsense"}, {"name": "長" * 41}])
def test_nothing_is_saved_of_what_is_no_search(browser: Client, wrong: dict[str, str]) -> None:
    page = browser.post("/orders/saved/", {"name": "今日", "period": "today"} | wrong, follow=True)

    assert "notice warning" in page.content.decode()
    assert not SavedSearch.objects.exists()


def test_search_of_a_colleague_can_not_be_saved_nor_theirs_forgotten(browser: Client) -> None:
    colleague = make_user("operator")
    theirs = SavedSearch.objects.create(person=colleague, name="今日", filters="period=today")
    typed = keep(colleague, "田中")

    assert browser.post("/orders/saved/", {"name": "x", "search": typed.pk}).status_code == 404
    browser.post("/orders/saved/", {"forget": theirs.name})
    assert SavedSearch.objects.get() == theirs


def test_colleague_on_the_same_order_is_told_of_for_five_minutes(
    order: Order, operator: User, at: Clock
) -> None:
    jiro = make_user("operator", "返金 次郎")
    audit.record(jiro, "order.viewed", order)
    audit.record(operator, "order.viewed", order)
    audit.record(jiro, "refund.requested", order, refused=True)
    url = reverse("refunds:order", args=[order.order_id])

    assert "返金 次郎&nbsp;さんが" in sign_in(operator).get(url).content.decode()
    assert [
        entry.actor for entry in audit.other_people_on_order(order, operator, since=timedelta(minutes=5))
    ] == [jiro]
    at.advance(minutes=6)
    assert audit.other_people_on_order(order, operator, since=timedelta(minutes=5)) == []
    at.now = datetime.now(tz=UTC)


def told_of(browser: Client, text: str) -> str:
    told: str = browser.post("/orders/search/", {"q": text}, follow=True).content.decode()
    return told


def test_search_without_a_hit_says_by_what_orders_are_found(browser: Client) -> None:
    order = make_order(500, email="tanaka@example.jp")
    order.reference, order.reference_folded = "EC-0000300", fold_reference("EC-0000300")
    order.save(update_fields=["reference", "reference_folded"])

    for missed in ("example", "0300", order.order_id[-3:], "中"):
        told = told_of(browser, missed)
        assert "一致する注文はありません" in told
        assert "この検索を保存" not in told
        assert ("2文字以上で検索してください。" in told) == (len(missed) == 1)
        for rule in (
            "先頭から、または「@」のあとのドメイン全体で",
            "ショップ注文番号は、先頭から検索できます。",
            "最後の4文字以上でも",
        ):
            assert rule in told
    for hit in ("tana", "@example.jp", "example.jp", "EC-00003", order.order_id[-4:], "中太", "田"):
        told = told_of(browser, hit)
        assert order.order_id in told
        assert "この検索を保存" in told


def test_filter_without_a_hit_can_be_kept_and_what_is_kept_can_be_dropped(
    browser: Client, operator: User
) -> None:
    assert "この検索を保存" in browser.get("/orders/?refund_status=partial").content.decode()
    SavedSearch.objects.create(person=operator, name="途中", filters="refund_status=partial")

    told = told_of(browser, "どこにもない")

    assert "「途中」を削除" in told
    assert 'name="name"' not in told


def test_phone_need_not_read_that_a_name_matched_which_heads_its_row(browser: Client) -> None:
    make_order(500, name="田中 太郎", email="tanaka@example.jp")

    assert 'class="c-match by-name"' in told_of(browser, "田中")
    assert 'class="c-match"' in told_of(browser, "tanaka@example.jp")
