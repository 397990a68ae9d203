"""The screens: who sees what, what each bad input gets, and that one form is one refund."""

import re
import uuid
from datetime import UTC, datetime, timedelta
from html import unescape
from typing import Any

import pytest
import time_machine
from django.contrib.sessions.models import Session
from django.db import OperationalError, connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone

from dashboard.models import User
from dashboard.parked_forms import PARKED_SECONDS
from refunds import audit, scanning, services, smartpay
from refunds.models import AuditEntry, Order, Payment, Refund, Search, SyncCursor
from refunds.views.refund_form import READ_SECONDS
from refunds.wording import money
from tests.conftest import Clock, make_order, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_approvals import fresh

State = Refund.State


@pytest.fixture
def paid(db: None, sandbox: Sandbox) -> Order:
    """An order of ¥2,000 or more that the sandbox has, mirrored and never refunded."""
    found = sandbox.find("refundable", min_amount=2000)
    services.read_order(found["order"], client=smartpay.client())
    sandbox.forget_requests()
    return Order.objects.get(order_id=found["order"])


@pytest.fixture
def browser(operator: User) -> Client:
    return sign_in(operator)


def form_url(order: Order) -> str:
    return reverse("refunds:refund_form", args=[order.order_id])


def typed(order: Order, **other: Any) -> dict[str, Any]:
    """The form as filled in."""
    fields = {
        "request_id": str(uuid.uuid4()),
        "payment": order.payments.all()[0].pk,
        "amount": "1000",
        "reason": "requested_by_customer",
        "description": "サイズ交換のため",
        "memo": "電話で確認",
    }
    return fields | other


def hidden(page: Any) -> dict[str, str]:
    """The hidden fields of a page's form."""
    inputs = re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page.content.decode())
    return {name: unescape(value) for name, value in inputs if name != "csrfmiddlewaretoken"}


def confirm(browser: Client, order: Order, **other: Any) -> Any:
    """Fill in the form, go on to the confirmation and press the last button."""
    page = browser.post(form_url(order), typed(order, **other))
    assert page.status_code == 200, page.content.decode()
    return browser.post(form_url(order), hidden(page) | {"confirm": "1"} | other)


def text(page: Any) -> str:
    return page.content.decode()


def test_order_is_found_opened_and_refunded(browser: Client, paid: Order, sandbox: Sandbox) -> None:
    detail = browser.get(reverse("refunds:order", args=[paid.order_id]))
    assert form_url(paid) in text(detail)
    form = browser.get(form_url(paid))
    fields = typed(paid, request_id=hidden(form)["request_id"])

    page = browser.post(form_url(paid), fields)
    assert "¥1,000 を返金する" in text(page)
    assert not Refund.objects.exists()
    done = browser.post(form_url(paid), hidden(page) | {"confirm": "1"})

    refund = Refund.objects.get()
    assert (done.status_code, done["Location"]) == (303, f"/refunds/{fields['request_id']}/")
    assert (refund.state, refund.description, refund.memo) == (
        State.SUCCEEDED,
        "サイズ交換のため",
        "電話で確認",
    )
    shown = text(browser.get(done["Location"]))
    assert "返金済み" in shown
    assert str(refund.smartpay_id) in shown
    left = money(refund.refundable_before - 1000, "JPY")
    assert f'<dt>返金後の残り</dt><dd><span class="num">{left}</span>' in shown


def test_confirmation_of_what_another_person_decides_says_that_it_is_a_request(
    browser: Client, paid: Order, settings: Any
) -> None:
    own = text(browser.post(form_url(paid), typed(paid)))
    settings.REFUND_APPROVAL_ABOVE = 999
    others = text(browser.post(form_url(paid), typed(paid)))

    assert '<strong class="num">¥1,000</strong> を返金します。' in own
    assert '<strong class="num">¥1,000</strong> の返金を申請します。' in others
    assert "を返金します。" not in others


# --- One form, one refund -----------------------------------------------------------------------------------


def test_double_click_reload_and_back_are_one_refund(browser: Client, paid: Order, sandbox: Sandbox) -> None:
    page = browser.post(form_url(paid), typed(paid))
    last = hidden(page) | {"confirm": "1"}

    answers = [browser.post(form_url(paid), last) for _click in range(3)]
    back = browser.post(form_url(paid), {name: last[name] for name in typed(paid)})

    assert {answer["Location"] for answer in [*answers, back]} == {f"/refunds/{last['request_id']}/"}
    assert Refund.objects.count() == len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_back_keeps_what_was_typed_under_the_same_id(browser: Client, paid: Order) -> None:
    page = browser.post(form_url(paid), typed(paid, memo="電話 '一回' & <確認>"))

    again, pressed = browser.get(form_url(paid)), browser.post(form_url(paid), hidden(page) | {"back": "1"})

    for form in (again, pressed):
        assert hidden(form)["request_id"] == hidden(page)["request_id"]
        assert "電話 '一回' & <確認>" in unescape(text(form))
        assert 'value="1000"' in text(form)


def test_what_was_typed_is_dropped_by_a_button(browser: Client, paid: Order) -> None:
    page = browser.post(form_url(paid), typed(paid))

    dropped = browser.post(form_url(paid), {"drop": "1"})
    again = browser.get(form_url(paid))

    assert (dropped.status_code, dropped["Location"]) == (303, reverse("refunds:order", args=[paid.order_id]))
    assert hidden(again)["request_id"] != hidden(page)["request_id"]
    assert "サイズ交換のため" not in text(again)


def test_dropping_a_form_leaves_what_was_typed_for_another_order(
    browser: Client, paid: Order, order: Order
) -> None:
    page = browser.post(form_url(paid), typed(paid))

    browser.post(form_url(order), {"drop": "1"})

    assert hidden(browser.get(form_url(paid)))["request_id"] == hidden(page)["request_id"]


@pytest.mark.parametrize(("seconds", "kept"), [(PARKED_SECONDS - 60, True), (PARKED_SECONDS, False)])
def test_next_call_does_not_begin_with_the_amount_of_the_one_before(
    browser: Client, paid: Order, seconds: int, kept: bool
) -> None:
    with time_machine.travel(timezone.now(), tick=False) as clock:
        page = browser.post(form_url(paid), typed(paid))
        clock.shift(seconds)
        again = browser.get(form_url(paid))

    assert (hidden(again)["request_id"] == hidden(page)["request_id"]) == kept
    assert ('name="amount" value="1000"' in text(again)) == kept


def test_after_a_refund_the_next_form_is_another_refund(
    browser: Client, paid: Order, sandbox: Sandbox
) -> None:
    confirm(browser, paid)
    fresh = browser.get(form_url(paid))
    assert not Refund.objects.filter(pk=hidden(fresh)["request_id"]).exists()
    assert "サイズ交換" not in text(fresh).split("<main")[1]

    confirm(browser, paid, similar_reason="二点目の返品")

    assert list(Refund.objects.values_list("amount", "state")) == [(1000, State.SUCCEEDED)] * 2
    assert len(sandbox.requests("POST", "/v1/refunds")) == 2


def test_second_tab_is_told_that_the_balance_moved(browser: Client, paid: Order, sandbox: Sandbox) -> None:
    first, second = (browser.post(form_url(paid), typed(paid)) for _tab in range(2))
    browser.post(form_url(paid), hidden(first) | {"confirm": "1"})

    late = browser.post(form_url(paid), hidden(second) | {"confirm": "1"})

    left = paid.payments.get().refundable()
    assert late.status_code == 422
    assert f"いまの返金可能額は¥{left:,}です" in text(late)
    assert 'value="1000"' in text(late)
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_balance_moved_elsewhere_is_shown_with_the_new_figure(
    browser: Client, paid: Order, sandbox: Sandbox, at: Clock
) -> None:
    page = browser.post(form_url(paid), typed(paid))
    sandbox.refund_elsewhere(paid.payments.get().pk, 300)  # nobody here has heard of it
    at.advance(seconds=READ_SECONDS + 1)

    late = browser.post(form_url(paid), hidden(page) | {"confirm": "1"})

    left = paid.payments.get().refundable()
    assert late.status_code == 422
    assert f"いまの返金可能額は¥{left:,}です" in text(late)
    assert f'data-refundable="{left}"' in text(late)
    assert not sandbox.requests("POST", "/v1/refunds")


def test_who_confirms_at_once_waits_for_one_answer_of_smartpay(
    browser: Client, paid: Order, sandbox: Sandbox
) -> None:
    page = browser.post(form_url(paid), typed(paid))
    sandbox.forget_requests()

    assert browser.post(form_url(paid), hidden(page) | {"confirm": "1"}).status_code == 303

    [sent] = sandbox.requests()
    assert (sent["method"], sent["path"]) == ("POST", "/v1/refunds")


def test_confirmation_drawn_again_is_no_younger_for_it(
    browser: Client, paid: Order, sandbox: Sandbox, at: Clock, settings: Any
) -> None:
    """Else each would lend its youth to the next, and a balance of any age be sent on."""
    confirm(browser, paid)
    page = browser.post(form_url(paid), typed(paid, amount="500"))
    sandbox.forget_requests()

    at.advance(seconds=READ_SECONDS)
    without_a_reason = browser.post(form_url(paid), hidden(page) | {"confirm": "1"})
    assert (without_a_reason.status_code, Refund.objects.count(), sandbox.requests()) == (422, 1, [])
    at.advance(seconds=1)
    settings.REFUND_FORMS_PER_HOUR = 0
    too_often = browser.post(form_url(paid), hidden(without_a_reason) | {"confirm": "1"})
    assert (too_often.status_code, sandbox.requests()) == (429, [])
    settings.REFUND_FORMS_PER_HOUR = 1000
    last = hidden(too_often) | {"confirm": "1", "similar_reason": "別の商品"}
    assert browser.post(form_url(paid), last).status_code == 303

    assert [asked["method"] for asked in sandbox.requests()] == ["GET", "POST"]


def test_clock_that_went_back_makes_no_confirmation_young(
    browser: Client, paid: Order, sandbox: Sandbox, at: Clock
) -> None:
    page = browser.post(form_url(paid), typed(paid))
    sandbox.forget_requests()
    at.advance(minutes=-9)

    browser.post(form_url(paid), hidden(page) | {"confirm": "1"})

    assert sandbox.requests()[0]["method"] == "GET"


def test_used_form_with_other_contents_is_a_conflict(browser: Client, paid: Order, sandbox: Sandbox) -> None:
    confirm(browser, paid)
    made = Refund.objects.get()

    for extra in ({}, {"confirm": "1", "signature": "x"}):
        answer = browser.post(form_url(paid), typed(paid, request_id=str(made.pk), amount="999") | extra)
        assert answer.status_code == 409
        assert f"/refunds/{made.pk}/" in text(answer)

    assert Refund.objects.count() == 1


# --- The confirmation is what was signed --------------------------------------------------------------------


@pytest.mark.parametrize(
    "changed",
    [
        {"amount": "1001"},
        {"description": "別の説明"},
        {"memo": "別のメモ"},
        {"reason": "fraudulent"},
        {"request_id": str(uuid.uuid4())},
        {"signature": "made-up"},
        {"signature": ""},
    ],
)
def test_tampered_confirmation_sends_nothing(
    browser: Client, paid: Order, sandbox: Sandbox, changed: dict[str, str]
) -> None:
    page = browser.post(form_url(paid), typed(paid))

    answer = browser.post(form_url(paid), hidden(page) | {"confirm": "1"} | changed)

    assert answer.status_code == 422
    assert "何も送られていません" in text(answer)
    assert not Refund.objects.exists()
    assert AuditEntry.objects.filter(action="refund.requested", outcome="refused").exists()


def test_anothers_confirmation_is_not_mine(browser: Client, paid: Order, approver: User) -> None:
    page = browser.post(form_url(paid), typed(paid))

    answer = sign_in(approver).post(form_url(paid), hidden(page) | {"confirm": "1"})

    assert answer.status_code == 422
    assert not Refund.objects.exists()


def test_stale_confirmation_is_asked_for_anew(
    browser: Client, paid: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = browser.post(form_url(paid), typed(paid))
    monkeypatch.setattr("refunds.views.refund_form.CONFIRMATION_SECONDS", -1)

    answer = browser.post(form_url(paid), hidden(page) | {"confirm": "1"})

    assert (answer.status_code, Refund.objects.count()) == (422, 0)


def test_similar_refund_is_shown_and_asks_for_a_reason(
    browser: Client, paid: Order, sandbox: Sandbox
) -> None:
    confirm(browser, paid)

    page = browser.post(form_url(paid), typed(paid, amount="500"))
    assert "返金 花子&nbsp;さんが申請した同じ注文の" in text(page)
    assert 'name="similar_reason"' in text(page)
    for empty in ("", "   "):
        refused = browser.post(form_url(paid), hidden(page) | {"confirm": "1", "similar_reason": empty})
        assert refused.status_code == 422
        assert "それでも返金する理由を入力してください" in text(refused)
        [entry] = AuditEntry.objects.filter(outcome="refused").order_by("-pk")[:1]
        assert entry.data["why"] == "SimilarUnexplained"
    assert Refund.objects.count() == 1

    browser.post(form_url(paid), hidden(refused) | {"confirm": "1", "similar_reason": "二点目の返品"})
    assert Refund.objects.get(amount=500).similar_reason == "二点目の返品"


def test_reason_survives_the_way_back_and_goes_with_its_refund(browser: Client, paid: Order) -> None:
    confirm(browser, paid)
    page = browser.post(form_url(paid), typed(paid, amount="500"))

    back = browser.post(form_url(paid), hidden(page) | {"back": "1", "similar_reason": "二点目の返品"})
    again = browser.post(form_url(paid), hidden(back) | {"amount": "400", "reason": "fraudulent"})

    assert ">二点目の返品</textarea>" in text(again)
    browser.post(form_url(paid), hidden(again) | {"confirm": "1", "similar_reason": "二点目の返品"})
    assert Refund.objects.get(amount=400).similar_reason == "二点目の返品"
    assert "二点目の返品" not in text(browser.post(form_url(paid), typed(paid, amount="300")))


def test_order_opens_beside_what_is_typed(browser: Client, paid: Order) -> None:
    link = f'<a href="/orders/{paid.order_id}/" target="_blank">'

    assert link in text(browser.get(form_url(paid)))
    assert link in text(browser.post(form_url(paid), typed(paid)))


# --- Bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("amount", "", "返金額を入力してください"),
        ("amount", "0", "1円以上"),
        ("amount", "-100", "1円以上"),
        ("amount", "10.5", "1円未満は返金できません"),
        ("amount", "千円", "数字で入力"),
        ("amount", "9" * 40, "大きすぎます"),
        ("amount", "999999999", "返金可能額は¥"),
        ("description", "あ" * 81, "80文字以内"),
        ("description", "悪い\u202e文字", "使えない文字"),
        ("description", "改\n行", "使えない文字"),
        ("memo", "\x00", "使えない文字"),
        ("reason", "because", "理由は"),
        ("payment", "payment_test_anotherOrders00000000", "この注文の支払い"),
    ],
)
def test_bad_input_is_told_beside_its_field_and_kept(
    browser: Client, paid: Order, sandbox: Sandbox, field: str, value: str, message: str
) -> None:
    page = browser.post(form_url(paid), typed(paid, **{field: value}))

    shown = unescape(text(page))
    assert page.status_code == 422
    beside = re.search(rf'<p class="error" id="id_{field}_error" ?>([^<]*)</p>', shown)
    if field != "payment":  # drawn only where an order has several
        assert beside
        assert message in beside[1]
    assert message in shown
    kept = {"amount": "1000", "description": "サイズ交換のため", "memo": "電話で確認"} | {field: value}
    for name in ("amount", "description", "memo"):
        assert kept[name].replace("\x00", "") in shown.replace("\x00", "")
    assert not Refund.objects.exists()
    assert not sandbox.requests("POST", "/v1/refunds")
    assert AuditEntry.objects.get(action="refund.requested").outcome == "refused"


def test_amount_that_is_too_high_is_told_with_the_other_errors(browser: Client, paid: Order) -> None:
    page = browser.post(form_url(paid), typed(paid, amount="999999", description="あ" * 81))

    shown = unescape(text(page))
    left = money(paid.payments.get().refundable(), "JPY")
    assert (
        f'<p class="error" id="id_amount_error" >返金可能額は{left}です。これを超える返金はできません。</p>'
        in shown
    )
    assert "80文字以内" in shown
    assert AuditEntry.objects.get(action="refund.requested").data["errors"] == {
        "amount": ["too_high"],
        "description": ["long"],
    }


@pytest.mark.parametrize(
    ("value", "meant"), [("１，０００", 1000), ("¥1,000", 1000), ("1000円", 1000), ("  1000 ", 1000)]
)
def test_amount_is_read_as_people_type_it(browser: Client, paid: Order, value: str, meant: int) -> None:
    page = browser.post(form_url(paid), typed(paid, amount=value))

    assert (page.status_code, hidden(page)["amount"]) == (200, str(meant))


def test_blank_description_counts_as_absent(browser: Client, paid: Order, sandbox: Sandbox) -> None:
    confirm(browser, paid, description=" 　 ")

    assert Refund.objects.get().description == ""
    assert "description" not in str(sandbox.requests("POST", "/v1/refunds")[0]["body"])


def test_whole_rest_is_filled_without_javascript(browser: Client, paid: Order) -> None:
    page = browser.post(form_url(paid), typed(paid, amount="", all="1"))

    assert (page.status_code, f'value="{paid.payments.get().refundable()}"' in text(page)) == (200, True)


@pytest.mark.parametrize(
    ("source", "told"), [("session", "決済時の入力"), ("import", "店舗データの取り込み"), ("", None)]
)
def test_order_says_where_its_name_comes_from(
    browser: Client, paid: Order, source: str, told: str | None
) -> None:
    Order.objects.filter(pk=paid.pk).update(customer_source=source)
    page = browser.get(f"/orders/{paid.order_id}/").content.decode()
    shown = re.search(r"お客様情報の出所</span> ([^<]+)</li>", page)
    assert (shown and shown[1]) == told


@pytest.mark.parametrize(
    ("order_id", "words"),
    [
        ("nonsense", "注文IDの形が正しくない"),
        ("order_live_0000000000000000000000", "別の環境"),
        ("order_test_0000000000000000000000", "Smartpay にこの注文は見つかりません"),
        ("payment_test_0000000000000000000000", "注文IDの形が正しくない"),
        ("order_test_%00", "注文IDの形が正しくない"),
    ],
)
def test_order_that_is_not_there_says_what_to_do(
    browser: Client, sandbox: Sandbox, order_id: str, words: str
) -> None:
    page = browser.get(f"/orders/{order_id}/")

    assert page.status_code == 404
    assert words in text(page)
    assert 'name="q"' in text(page)


def test_refund_form_of_an_unknown_order_is_404(browser: Client, sandbox: Sandbox) -> None:
    assert browser.get("/orders/order_test_0000000000000000000000/refund/").status_code == 404
    assert browser.get("/orders/order_test_%00/refund/").status_code == 404
    assert browser.get("/orders/?search=%00").status_code == 404


# --- Smartpay is down, slow, or refuses the key -------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("html", "応答がありません"),
        ("silent", "応答がありません"),
        ("unauthorized", "API キーを受け付けません"),
    ],
)
def test_pages_work_from_the_mirror_while_smartpay_does_not(
    browser: Client, paid: Order, sandbox: Sandbox, settings: Any, mode: str, words: str
) -> None:
    settings.SMARTPAY_VIEW_DEADLINE = 1
    sandbox.fault(mode, method="GET", path="", times=None)

    detail = browser.get(reverse("refunds:order", args=[paid.order_id]))
    unseen = browser.get("/orders/order_test_neverMirrored0000000000/")
    listed = browser.get("/orders/")
    answer = browser.post(form_url(paid), typed(paid))

    assert (detail.status_code, unseen.status_code, listed.status_code) == (200, 503, 200)
    assert words in text(detail)
    assert "に読み取った内容を表示しています" in text(detail)
    assert paid.order_id in text(listed)
    assert answer.status_code == 503
    assert "何も送られていません" in text(answer)
    assert "サイズ交換のため" in text(answer)
    assert not Refund.objects.exists()


def test_order_that_vanished_says_so_and_offers_no_refund_until_it_is_there_again(
    browser: Client, paid: Order, sandbox: Sandbox
) -> None:
    Order.objects.filter(pk=paid.pk).update(vanished_at=datetime(2026, 11, 20, 3, 10, tzinfo=UTC))
    sandbox.fault("error", method="GET", path=f"/v1/orders/{paid.order_id}", status=404, times=None)
    address = reverse("refunds:order", args=[paid.order_id])

    vanished = text(browser.get(address))
    assert "Smartpay にこの注文は見つかりません(2026/11/20 12:10 に確認)" in vanished
    assert "この注文が見つからないため返金できません" in vanished
    assert form_url(paid) not in vanished
    assert browser.get(form_url(paid))["Location"] == address

    sandbox.clear_faults()
    there = text(browser.get(address))
    assert form_url(paid) in there
    assert "見つかりません" not in there


def test_order_that_smartpay_denies_offers_no_refund_on_its_page_or_by_its_address(
    browser: Client, paid: Order, sandbox: Sandbox
) -> None:
    sandbox.fault("error", method="GET", path=f"/v1/orders/{paid.order_id}", status=404, times=None)
    Order.objects.filter(pk=paid.pk).update(read_at=timezone.now() - timedelta(minutes=2))
    address = reverse("refunds:order", args=[paid.order_id])

    denied = text(browser.get(address))
    opened = browser.get(form_url(paid))

    assert form_url(paid) not in denied
    assert "この注文が見つからないため返金できません" in denied
    assert (opened.status_code, opened["Location"]) == (302, address)


@pytest.mark.parametrize(
    ("fault", "minutes", "asked", "late"), [("", 0, 0, False), ("", 2, 1, False), ("html", 2, 1, True)]
)
def test_form_says_how_old_its_balance_is_and_reads_an_old_one_anew(
    browser: Client, paid: Order, sandbox: Sandbox, fault: str, minutes: int, asked: int, late: bool
) -> None:
    read_at = timezone.now() - timedelta(minutes=minutes)
    Order.objects.filter(pk=paid.pk).update(read_at=read_at)
    paid.payments.update(read_at=read_at)
    if fault:
        sandbox.fault(fault, method="GET", path="", times=None)

    page = text(browser.get(form_url(paid)))

    assert bool(sandbox.requests("GET", f"/v1/orders/{paid.order_id}")) == bool(asked)
    [(shown, when)] = re.findall(r'<span class="read-at( late)?">([^<]*)に Smartpay で確認しました', page)
    assert (bool(shown), "分前" in when) == (late, late)


def test_payment_that_smartpay_does_not_have_is_not_called_silence(
    browser: Client, paid: Order, sandbox: Sandbox
) -> None:
    payment = paid.payments.get().pk
    sandbox.fault("error", method="GET", path=f"/v1/payments/{payment}", status=404, times=None)

    answer = browser.post(form_url(paid), typed(paid))

    assert answer.status_code == 503
    assert "この支払いは見つからないため、返金できません。何も送られていません。" in text(answer)


def test_unknown_outcome_is_told_and_the_page_renews_itself(
    browser: Client, paid: Order, sandbox: Sandbox, quick: None
) -> None:
    sandbox.go_silent(executed=False)

    done = confirm(browser, paid)
    page = browser.get(done["Location"])

    assert "結果不明" in text(page)
    assert "もう一度返金しないでください" in text(page)
    assert "data-renew" in text(page)
    meaning = text(page).partition('class="meaning')[2].partition("</div>")[0]
    assert "確定するまで自動で新しくなります" in meaning
    assert "次の確認" in meaning
    assert "お客様には「ただいま Smartpay に確認しています。" in meaning
    assert "結果不明" in text(browser.get("/"))
    assert browser.get(form_url(paid))["Location"] == f"/orders/{paid.order_id}/"
    blocked = browser.post(form_url(paid), typed(paid, amount="1"))
    assert blocked.status_code == 422
    assert "結果が確定していない返金があります" in text(blocked)


# --- Looked at -----------------------------------------------------------------------------------------------


def looks(action: str = "refund.viewed") -> int:
    return AuditEntry.objects.filter(action=action, outcome="done").count()


def test_page_that_renews_itself_is_one_look_and_no_address_hides_another(
    browser: Client, paid: Order, viewer: User
) -> None:
    page = confirm(browser, paid)["Location"]
    told = []
    for someone, address in [
        (browser, page), (browser, f"{page}?renew=1"), (browser, f"{page}?renew=1"), (browser, page),
        (sign_in(viewer), f"{page}?renew=1"),
    ]:  # fmt: skip
        assert paid.order_id in text(someone.get(address))
        told.append(looks())

    assert told == [1, 1, 1, 2, 3]


def test_form_shows_a_name_on_the_record_however_it_is_reached(browser: Client, paid: Order) -> None:
    browser.post(form_url(paid), {"all": "1"})
    browser.post(form_url(paid), typed(paid))
    after_posts = looks("order.viewed")
    browser.get(form_url(paid))

    assert (after_posts, looks("order.viewed")) == (1, 2)  # what is drawn again was seen


def test_own_refunds_on_the_start_page_are_on_the_record(
    browser: Client, paid: Order, sandbox: Sandbox, quick: None
) -> None:
    browser.get("/")
    sandbox.go_silent(executed=False)
    made = confirm(browser, paid)["Location"].split("/")[-2]
    browser.get("/")

    assert AuditEntry.objects.get(action="refunds.listed").data == {"shown": [made]}


def test_page_of_a_refund_that_was_judged_wrongly_is_a_look_too(paid: Order, approver: User) -> None:
    """A decision that is refused draws the refund at an address of its own."""
    made = confirm(sign_in(make_user("operator")), paid)["Location"]

    page = fresh(approver).post(f"{made}decide/", {"reject": "1", "note": "\u202e"})

    assert (page.status_code, looks()) == (422, 1)


# --- A session that ends while its request is under way -----------------------------------------------------


@pytest.mark.parametrize("language", ["ja", "en"])
def test_who_was_signed_out_while_money_left_is_not_told_that_nothing_was_done(
    browser: Client, paid: Order, settings: Any, monkeypatch: pytest.MonkeyPatch, language: str
) -> None:
    settings.SESSION_SAVE_EVERY_REQUEST = True  # as every half a minute, for the sign of life

    def refund_payment(*args: Any, **kwargs: Any) -> Refund:
        made = services_refund_payment(*args, **kwargs)
        browser.session.delete()  # another tab, or the provider, meanwhile
        return made

    services_refund_payment = services.refund_payment
    monkeypatch.setattr(services, "refund_payment", refund_payment)
    browser.cookies["django_language"] = language

    told = confirm(browser, paid)

    assert Refund.objects.get().state == State.SUCCEEDED
    assert told.status_code == 409
    assert "行われていません" not in text(told)
    assert {"ja": "すでに処理されている場合があります", "en": "may have been carried out"}[language] in text(
        told
    )
    assert 'href="/refunds/"' in text(told)


def test_page_that_was_opened_meanwhile_only_asks_to_sign_in(
    browser: Client, paid: Order, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = confirm(browser, paid)["Location"]
    monkeypatch.setattr(audit, "record", lambda *args, **kwargs: browser.session.delete())

    told = browser.get(page)

    assert (told.status_code, "もう一度サインインして" in text(told)) == (409, True)
    assert "すでに処理されている" not in text(told)


@pytest.mark.parametrize(
    ("language", "advice"),
    [
        ("ja", "返金一覧か一括返金で結果を確かめてください"),
        ("en", "check its outcome in the list of refunds"),
    ],
)
def test_who_pressed_while_the_database_died_is_not_told_that_the_sign_in_ended(
    browser: Client, paid: Order, settings: Any, monkeypatch: pytest.MonkeyPatch, language: str, advice: str
) -> None:
    """It died after the refund's last commit and before that of the session: the press may be repeated."""
    settings.SESSION_SAVE_EVERY_REQUEST = True  # as every half a minute, for the sign of life
    save = Session.save

    def dead(session: Session, **kwargs: Any) -> None:
        if Refund.objects.exists():
            raise OperationalError("server closed the connection unexpectedly")
        save(session, **kwargs)

    monkeypatch.setattr(Session, "save", dead)
    browser.cookies["django_language"] = language

    told = confirm(browser, paid)

    assert (told.status_code, Refund.objects.get().state) == (500, State.SUCCEEDED)
    assert advice in text(told)


# --- Pages of lists -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "moment",
    ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "2026-01-01T00:00:00", "2026-01-01", "x"],
)
@pytest.mark.parametrize("way", ["older", "newer"])
def test_cursor_of_no_moment_is_the_first_page(browser: Client, paid: Order, moment: str, way: str) -> None:
    made = confirm(browser, paid)["Location"]

    page = browser.get("/refunds/", {"page": f"{way}~{moment}~{uuid.uuid4()}"})

    assert (page.status_code, made in text(page)) == (200, True)


# --- Searching ----------------------------------------------------------------------------------------------


def test_what_was_typed_never_stays_in_an_address(browser: Client, operator: User) -> None:
    order = make_order(5000)

    for way in ("post", "get"):
        answer = getattr(browser, way)("/orders/search/" if way == "post" else "/orders/", {"q": " 田中 "})
        kept = Search.objects.latest("created_at")
        assert (answer.status_code, answer["Location"]) == (302, f"/orders/?search={kept.pk}")
        assert (kept.text, kept.person) == ("田中", operator)
    page = browser.get(answer["Location"])
    assert order.order_id in text(page)
    assert "お客様名" in text(page)


def test_whole_order_id_opens_the_order_even_unseen(browser: Client, sandbox: Sandbox) -> None:
    found = sandbox.find("succeeded")

    answer = browser.post("/orders/search/", {"q": f" 「{found['order']}」 "})

    assert answer["Location"] == f"/orders/{found['order']}/"
    assert browser.get(answer["Location"]).status_code == 200


def test_a_refunds_own_number_opens_the_refund(browser: Client, paid: Order) -> None:
    made = confirm(browser, paid)["Location"]
    number = made.split("/")[-2]

    for typed in (f" {number}　", number.upper(), number.replace("-", "")):
        assert browser.post("/orders/search/", {"q": typed})["Location"] == made
    assert browser.post("/orders/search/", {"q": str(uuid.uuid4())})["Location"].startswith(
        "/orders/?search="
    )


def test_search_opens_only_for_its_person_and_auditors(
    browser: Client, operator: User, approver: User, auditor: User
) -> None:
    address = browser.post("/orders/search/", {"q": "田中"})["Location"]

    assert browser.get(address).status_code == 200
    assert sign_in(approver).get(address).status_code == 404
    assert sign_in(auditor).get(address).status_code == 200
    assert browser.get("/orders/?search=made-up").status_code == 404


def test_empty_search_is_the_list_and_long_ones_are_cut(browser: Client) -> None:
    assert browser.post("/orders/search/", {"q": " \x00 "})["Location"] == "/orders/"
    browser.post("/orders/search/", {"q": "あ" * 300})
    assert len(Search.objects.get().text) == 200


@pytest.mark.parametrize(("minutes", "late"), [(14, False), (16, True)])
def test_list_says_when_it_is_late(browser: Client, minutes: int, late: bool) -> None:
    make_order()
    read_at = timezone.now() - timedelta(minutes=minutes)
    SyncCursor.objects.update_or_create(pk=SyncCursor.ORDERS, defaults={"last_read_at": read_at})

    assert ("それ以降の注文は、まだ並んでいません" in text(browser.get("/orders/"))) is late


def test_search_says_how_many_it_found_as_far_as_its_page_knows(browser: Client) -> None:
    address = browser.post("/orders/search/", {"q": "田中"})["Location"]
    said = []
    for more in (1, 49, 1):
        for _ in range(more):
            make_order(name="田中 太郎")
        page = text(browser.get(address))
        said += re.findall(r'<span class="num">(.*?)</span>', page)
    older = re.search(r'href="(\?[^"]*)" rel="next"', page)
    assert older
    said += re.findall(r'<span class="num">(.*?)</span>', text(browser.get("/orders/" + unescape(older[1]))))

    assert said == ["1&nbsp;件", "50&nbsp;件", "50&nbsp;件以上", "50&nbsp;件以上"]


@pytest.mark.parametrize(
    ("address", "is_open", "number"),
    [
        ("/orders/", False, []),
        ("/orders/?status=any&period=week", True, ["2"]),
        ("/orders/?status=nonsense", True, []),
        ("/refunds/", False, []),
        ("/refunds/?state=unknown&min_amount=1000", True, ["2"]),
        ("/refunds/?min_amount=abc", True, []),
    ],
)
def test_filters_stand_open_where_some_are_set_or_wrong_and_say_how_many(
    browser: Client, address: str, is_open: bool, number: list[str]
) -> None:
    page = text(browser.get(address))

    assert ('<details class="filter-fold" open>' in page) is is_open
    assert re.findall(r'<span class="tag num">(\d+)</span>', page) == number


@pytest.mark.parametrize(
    ("typed", "filters", "said", "way_out"),
    [
        ("未払", "", "未払いの注文に、一致するものがあります", "条件を外して検索"),
        ("未払", "&status=succeeded", "この条件に合う注文はありません", "条件を外して検索"),
        ("未払", "&period=today", "この条件に合う注文はありません", "条件を外して検索"),
        ("", "", "未払いの注文だけがあります", "未払いの注文も表示する"),
    ],
)
def test_what_hides_hits_is_told_and_one_press_shows_them(
    browser: Client, typed: str, filters: str, said: str, way_out: str
) -> None:
    order = make_order(name="未払 太郎", status="requires_authorization")
    address = browser.post("/orders/search/", {"q": typed})["Location"]

    page = text(browser.get(address + filters))

    assert [words for words in (said, way_out) if words not in page] == []
    assert order.order_id not in page
    everything = re.search(rf'href="(\?[^"]*status=any[^"]*)">{way_out}', page)
    assert everything
    assert order.order_id in text(browser.get("/orders/" + unescape(everything[1])))


@pytest.mark.parametrize("last", [False, True])
def test_field_that_is_sent_twice_refunds_nothing(
    browser: Client, paid: Order, sandbox: Sandbox, last: bool
) -> None:
    fields = typed(paid, amount="10")
    if last:
        fields = hidden(browser.post(form_url(paid), fields)) | {"confirm": "1"}

    page = browser.post(form_url(paid), fields | {"amount": ["10", "20"]})

    assert (page.status_code, Refund.objects.count()) == (422, 0)
    assert "この項目が二度送信されました。" in text(page)


@pytest.mark.parametrize("listed", [True, False])
def test_figures_that_smartpay_does_not_list_are_told_as_estimates_with_their_age(
    browser: Client, paid: Order, sandbox: Sandbox, listed: bool
) -> None:
    scanning.sync(smartpay.client(), observe=services.observe_refund)
    SyncCursor.objects.update(last_read_at=timezone.now() - timedelta(minutes=12, seconds=1))
    sandbox.switch(payments_list_refunds=listed)
    sandbox.refund_elsewhere(paid.payments.get().pk, 900)

    page = text(browser.get(f"/orders/{paid.order_id}/"))

    told = re.search(r"12\s分前に読み取った返金の一覧から計算しています", page)
    assert bool(told) is not listed
    assert ("¥900" in page) is listed


def test_never_paid_orders_are_hidden_unless_asked_for(browser: Client) -> None:
    paid, unpaid = make_order(100), make_order(status="requires_authorization")
    pending = make_order(status="pending")

    assert unpaid.order_id not in text(browser.get("/orders/"))
    asked = text(browser.get("/orders/?status=requires_authorization"))
    assert unpaid.order_id in asked
    assert pending.order_id in asked
    assert paid.order_id not in asked


# --- The ledger ---------------------------------------------------------------------------------------------


@pytest.fixture
def ledger(operator: User, approver: User) -> list[Refund]:
    """120 refunds that wait for approval, oldest first."""
    order = make_order(1_000_000)
    made = []
    with override_settings(REFUND_APPROVAL_ABOVE=0):
        for number in range(1, 121):
            asked = services.RefundRequest(
                uuid.uuid4(), order.payments.get().pk, number, "requested_by_customer"
            )
            made.append(
                services.request_refund(
                    asked,
                    refundable=order.payments.get().refundable(),
                    by=approver if number % 2 else operator,
                    similar_reason="試験",
                )
            )
    return made


def test_ledger_pages_both_ways_without_counting(browser: Client, ledger: list[Refund]) -> None:
    def amounts(page: Any) -> list[int]:
        return [refund.amount for refund in page.context["refunds"]]

    first = browser.get("/refunds/")
    second = browser.get("/refunds/" + first.context["older_url"])
    third = browser.get("/refunds/" + second.context["older_url"])
    back = browser.get("/refunds/" + third.context["newer_url"])
    top = browser.get("/refunds/" + back.context["newer_url"])

    assert amounts(first) + amounts(second) + amounts(third) == list(range(120, 0, -1))
    assert (amounts(back), amounts(top)) == (amounts(second), amounts(first))
    assert (first.context["newer_url"], third.context["older_url"], top.context["newer_url"]) == ("", "", "")
    assert amounts(browser.get("/refunds/?page=nonsense")) == amounts(first)


@pytest.mark.parametrize(
    ("query", "count"),
    [
        ("state=awaiting_approval&min_amount=111", 10),
        ("state=succeeded", 0),
        ("max_amount=５", 5),
        ("min_amount=118&max_amount=119", 2),
        ("period=today&min_amount=120", 1),
        ("min_amount=abc&max_amount=3", 3),
        ("state=nonsense&max_amount=3", 3),
    ],
)
def test_ledger_is_filtered(browser: Client, ledger: list[Refund], query: str, count: int) -> None:
    assert len(browser.get(f"/refunds/?{query}").context["refunds"]) == count


def test_ledger_is_filtered_by_person(browser: Client, ledger: list[Refund], approver: User) -> None:
    shown = browser.get(f"/refunds/?person={approver.pk}&max_amount=10").context["refunds"]

    assert [refund.amount for refund in shown] == [9, 7, 5, 3, 1]


def test_refund_leads_back_to_where_it_was_opened_from(
    browser: Client, ledger: list[Refund], approver: User
) -> None:
    page = f"/refunds/{ledger[0].pk}/"
    order = ledger[0].payment.order.order_id

    def back(person: Client) -> list[str]:
        return re.findall(r'<a class="back link" href="([^"]*)"', text(person.get(page)))

    assert back(browser) == [f"/orders/{order}/"]
    browser.get("/refunds/?state=succeeded&period=week")
    browser.get(f"/orders/{order}/")  # a look at the order on the way is no other way
    assert back(browser) == ["/refunds/?state=succeeded&amp;period=week"]
    browser.get("/orders/")
    assert back(browser) == [f"/orders/{order}/"]
    deciding = sign_in(approver)
    deciding.get("/approvals/")
    assert back(deciding) == ["/approvals/"]


def test_own_waiting_refund_is_withdrawn_by_a_button(
    browser: Client, ledger: list[Refund], approver: User, viewer: User
) -> None:
    mine = ledger[1]
    url = reverse("refunds:refund_withdraw", args=[mine.pk])
    assert url in text(browser.get(f"/refunds/{mine.pk}/"))

    assert sign_in(viewer).post(url).status_code == 403
    assert sign_in(approver).post(url).status_code == 403
    assert browser.post(url)["Location"] == f"/refunds/{mine.pk}/"
    mine.refresh_from_db()
    assert mine.state == State.CANCELLED
    assert "すでに送信されたか" in text(browser.post(url, follow=True))


def test_every_state_of_a_refund_says_what_it_means_for_the_money(
    browser: Client, ledger: list[Refund]
) -> None:
    from refunds.views.refunds import _meaning

    for state in State:
        explanation, _what_now = _meaning(Refund(state=state))
        assert explanation
    causes = [
        _meaning(Refund(state=State.CANCELLED, cancelled_because=cause))[1] for cause in Refund.Cancelled
    ]
    assert all(causes)
    assert len(set(causes)) == len(Refund.Cancelled)


# --- Who sees what ------------------------------------------------------------------------------------------

PAGES = ["/", "/orders/", "/orders/{order}/", "/refunds/", "/refunds/{refund}/"]


@pytest.mark.parametrize("role", ["viewer", "operator", "approver", "auditor"])
def test_every_role_reads_and_only_two_refund(
    paid: Order, sandbox: Sandbox, operator: User, role: str
) -> None:
    confirm(sign_in(operator), paid)
    made = Refund.objects.get()
    browser = sign_in(make_user(role))
    may_refund = role in {"operator", "approver"}

    for page in PAGES:
        assert browser.get(page.format(order=paid.order_id, refund=made.pk)).status_code == 200
    detail = text(browser.get(f"/orders/{paid.order_id}/"))
    assert (form_url(paid) in detail) == may_refund
    assert ("返金の権限がありません" in detail) != may_refund
    assert browser.get(form_url(paid)).status_code == (200 if may_refund else 403)
    by_hand = browser.post(form_url(paid), typed(paid, amount="1") | {"confirm": "1", "signature": "x"})
    assert by_hand.status_code == (422 if may_refund else 403)
    assert browser.get("/admin/", follow=True).status_code == (200 if role == "auditor" else 403)
    assert Refund.objects.count() == 1


def test_nobody_without_a_role_or_a_sign_in_sees_anything(paid: Order) -> None:
    nobody = make_user("viewer")
    nobody.groups.clear()

    for page in PAGES:
        url = page.format(order=paid.order_id, refund=uuid.uuid4())
        assert sign_in(nobody).get(url).status_code == 403
        assert Client().get(url)["Location"].startswith("/sign-in/")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("never_paid", "支払いがないため"),
        ("uncaptured", "売上がまだ確定していないため"),
        ("wholly_refunded", "全額が返金済みです"),
    ],
)
def test_reason_is_told_where_nothing_can_be_refunded(
    browser: Client, sandbox: Sandbox, kind: str, words: str
) -> None:
    page = browser.get(f"/orders/{sandbox.find(kind)['order']}/")

    assert words in text(page)


def test_reserved_rest_and_refunds_made_elsewhere_are_told(
    browser: Client, paid: Order, operator: User, sandbox: Sandbox
) -> None:
    payment = paid.payments.get()
    sandbox.refund_elsewhere(payment.pk, 100, description="店頭で返品")
    browser.get(f"/orders/{paid.order_id}/")
    payment.refresh_from_db()
    with override_settings(REFUND_APPROVAL_ABOVE=0):
        confirm(fresh(operator), paid, amount=str(payment.refundable()), similar_reason="残り全部")

    page = text(browser.get(f"/orders/{paid.order_id}/"))

    assert "このツール以外での返金" in page
    assert "店頭で返品" in page
    assert "処理中の返金に充てられています" in page


def test_long_history_is_folded_and_loses_nothing(browser: Client, paid: Order, sandbox: Sandbox) -> None:
    for number in range(40):
        sandbox.refund_elsewhere(paid.payments.get().pk, 1, description=f"返品 {number:02}")

    page = browser.get(f"/orders/{paid.order_id}/").content.decode()

    open_ones, folded = page.split('<details class="older">')
    assert "これより前の 12&nbsp;件" in folded  # of the order, its payment and forty
    assert open_ones.count("<q>返品 ") == 30
    assert folded.count("<q>返品 ") == 10


# --- Reads are recorded, and cost the same for one row and for many -----------------------------------------


@pytest.mark.parametrize("typed", ["田中太郎", "tanaka@example.jp"])
def test_what_is_typed_for_an_order_id_is_not_on_the_trail(browser: Client, viewer: User, typed: str) -> None:
    browser.get(f"/orders/{typed}/")
    sign_in(viewer).get(f"/orders/{typed}/refund/")

    viewed, refused = AuditEntry.objects.filter(outcome="refused").order_by("id")
    assert (viewed.action, viewed.order_id) == ("order.viewed", "")
    assert (refused.action, refused.data["path"]) == ("page.refused", "/orders/<str:order_id>/refund/")
    assert typed not in viewed.text + refused.text


def test_reads_are_recorded_with_ids_and_never_with_names(
    browser: Client, operator: User, paid: Order
) -> None:
    make_order(5000)
    browser.get("/orders/")
    browser.get(browser.post("/orders/search/", {"q": "田中"})["Location"])
    browser.get(f"/orders/{paid.order_id}/")

    listed, searched, viewed = AuditEntry.objects.filter(actor=operator, action__startswith="order").order_by(
        "id"
    )
    assert paid.order_id in listed.data["shown"]
    assert searched.object_id == Search.objects.get().pk
    assert (viewed.action, viewed.order_id) == ("order.viewed", paid.order_id)
    trail = "".join(AuditEntry.objects.values_list("text", flat=True))
    assert "田中" not in trail
    assert "tanaka" not in trail


def queries(browser: Client, url: str) -> int:
    browser.get(url)
    with CaptureQueriesContext(
        connection,
    ) as captured:
        assert browser.get(url).status_code == 200
    return len(captured)


def test_list_asks_the_same_queries_for_one_row_and_for_fifty(browser: Client) -> None:
    make_order(100)
    one = queries(browser, "/orders/")
    address = browser.post("/orders/search/", {"q": "田中"})["Location"]
    one_found = queries(browser, address)

    for _number in range(60):
        make_order(100, 200)

    assert queries(browser, "/orders/") == one
    assert queries(browser, address) <= one_found  # a full page needs no further tier


def test_detail_asks_the_same_queries_for_one_refund_and_for_many(
    browser: Client, sandbox: Sandbox, operator: User
) -> None:
    found = sandbox.find("refundable", min_amount=5000)
    url = f"/orders/{found['order']}/"
    services.read_order(found["order"], client=smartpay.client())
    payment = Payment.objects.get(order__order_id=found["order"])
    sandbox.refund_elsewhere(payment.pk, 10)
    browser.get(url)
    few = queries(browser, url)

    for _number in range(15):
        sandbox.refund_elsewhere(payment.pk, 10)
    browser.get(url)

    assert queries(browser, url) == few


def test_ledger_asks_the_same_queries_for_any_number(browser: Client, operator: User) -> None:
    with override_settings(REFUND_APPROVAL_ABOVE=0):
        order = make_order(5000)
        few = None
        for number in range(1, 12):
            payment = order.payments.get()
            asked = services.RefundRequest(uuid.uuid4(), payment.pk, number, "requested_by_customer")
            services.request_refund(
                asked, refundable=payment.refundable(), by=operator, similar_reason="試験"
            )
            few = few or queries(browser, "/refunds/")

    assert queries(browser, "/refunds/") == few
