"""The auditor's admin: it tells who did what, shows everything, changes nothing, and is read on the record."""

import ast
import re
import uuid
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest
from django.contrib import admin
from django.contrib.admin.utils import quote as admin_quote
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from django.utils.html import escape, strip_tags

from dashboard.models import User
from refunds import audit, sealing, services
from refunds.audit_words import CODES, LABELS
from refunds.folding import fold_reference
from refunds.models import Attempt, AuditEntry, Difference, Order, Refund, Search
from refunds.services import sending
from refunds.services.states import NO_LEASE
from refunds.views import bulk
from refunds.wording import error_text
from tests.conftest import make_order, sign_in
from tests.site import ROOT


@pytest.fixture
def browser(auditor: User) -> Client:
    return sign_in(auditor)


@pytest.fixture
def refund(operator: User) -> Refund:
    payment = make_order(5000).payments.get()
    asked = services.RefundRequest(
        uuid.uuid4(), payment.pk, 1000, "requested_by_customer", "サイズ交換のため", "電話"
    )
    with override_settings(REFUND_APPROVAL_ABOVE=0):
        return services.request_refund(asked, refundable=5000, by=operator)


def text(page: Any) -> str:
    return page.content.decode()


def search(browser: Client, model: str, words: str, **filters: str) -> Any:
    """Type into the admin's box: the words leave the address at once."""
    answer = browser.get(url_of(model), {"q": words} | filters)
    assert answer.status_code == 302
    assert quote(words) not in answer["Location"]
    return browser.get(answer["Location"])


def url_of(model: str, *args: Any) -> str:
    return reverse(f"admin:refunds_{model}_{'change' if args else 'changelist'}", args=args)


def test_auditor_finds_who_looked_for_a_name(
    browser: Client, operator: User, viewer: User, settings: Any
) -> None:
    sign_in(operator).post("/orders/search/", {"q": "ﾀﾅｶ 太郎"}, follow=True)
    sign_in(viewer).post("/orders/search/", {"q": "鈴木"}, follow=True)
    settings.SECRET_KEY, settings.SECRET_KEY_FALLBACKS = "another-secret-" * 5, [settings.SECRET_KEY]
    browser = sign_in(User.objects.get(pk=browser.session["_auth_user_id"]))

    page = text(search(browser, "auditentry", "タナカ　太郎", action="orders.searched"))

    assert "返金 花子" in page
    assert "閲覧 太郎" not in page.partition("<tbody>")[2].partition("</tbody>")[0]


def test_auditor_finds_who_refunded_an_order(browser: Client, refund: Refund, operator: User) -> None:
    found = text(search(browser, "auditentry", refund.payment.order.order_id))
    assert "返金の申請" in found
    assert operator.name in found

    by_name = text(search(browser, "auditentry", operator.name))
    assert f'value="{operator.name}"' in by_name
    assert str(refund.pk) in by_name
    by_person = text(browser.get(url_of("auditentry"), {"actor__id__exact": operator.pk}))
    assert str(refund.pk) in by_person

    ledger = text(search(browser, "refund", str(refund.pk)))
    assert "¥1,000" in ledger
    assert "承認待ち" in ledger
    assert "電話" in text(browser.get(url_of("refund", refund.pk)))


def test_orders_are_found_as_in_the_list(browser: Client, refund: Refund) -> None:
    other = make_order(100, name="鈴木 一")

    found = text(search(browser, "order", "田中 太郎"))

    assert refund.payment.order.order_id in found
    assert other.order_id not in found


def test_orders_and_refunds_that_a_list_shows_are_on_the_trail(browser: Client, refund: Refund) -> None:
    other = make_order(100, name="鈴木 一", age=100)

    for page in (url_of("order"), url_of("refund"), url_of("payment"), url_of("order") + "?p=nonsense"):
        browser.get(page)
    search(browser, "order", "田中 太郎")

    listed = AuditEntry.objects.filter(action="admin.listed").order_by("id")
    assert [entry.data.get("shown") for entry in listed] == [
        [refund.payment.order.order_id, other.order_id],
        [str(refund.pk)],
        None,
        [refund.payment.order.order_id],
    ]


@pytest.mark.parametrize("typed", ["2001:DB8::0007", "2001:db8::7%eth0", " 2001:db8:0::7 ", "REQUEST-0001"])
def test_trail_is_searched_by_address_and_by_request(browser: Client, viewer: User, typed: str) -> None:
    for address, number in (("2001:db8::7", "request-0001"), ("2001:db8::70", "request-00010")):
        token = audit._origin.set(audit.Origin(request_id=number, ip=address))
        audit.record(viewer, "refunds.listed", None)
        audit._origin.reset(token)

    found = search(browser, "auditentry", typed).context["cl"].result_list

    assert [(entry.ip, entry.request_id) for entry in found] == [("2001:db8::7", "request-0001")]


def test_every_list_and_row_opens(browser: Client, refund: Refund) -> None:
    for model in admin.site._registry:
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        assert browser.get(reverse(f"admin:{name}_changelist")).status_code == 200
        for row in model._default_manager.all()[:1]:
            assert browser.get(reverse(f"admin:{name}_change", args=[row.pk])).status_code == 200


def test_nobody_changes_anything(browser: Client, refund: Refund) -> None:
    for model in admin.site._registry:
        name = f"{model._meta.app_label}_{model._meta.model_name}"
        assert browser.get(reverse(f"admin:{name}_add")).status_code == 403
        for row in model._default_manager.all()[:1]:
            for action in ("change", "delete"):
                answer = browser.post(reverse(f"admin:{name}_{action}", args=[row.pk]), {"post": "yes"})
                assert answer.status_code == 403
    refund.refresh_from_db()
    assert (refund.amount, refund.state) == (1000, Refund.State.AWAITING_APPROVAL)


def test_reading_the_admin_is_recorded(browser: Client, auditor: User, refund: Refund) -> None:
    search(browser, "refund", "返金 花子", state__exact="succeeded")
    browser.get(url_of("refund", refund.pk))

    listed, viewed = AuditEntry.objects.filter(actor=auditor, action__startswith="admin").order_by("id")
    kept = Search.objects.get()
    assert (listed.data["model"], listed.object_id) == ("refund", kept.pk)
    assert listed.data["filters"] == {"state__exact": "succeeded", "q": kept.pk}
    assert "花子" not in listed.text
    assert (viewed.object_id, viewed.order_id) == (str(refund.pk), refund.payment.order.order_id)


def test_row_opened_by_its_link_is_named_on_the_trail(
    browser: Client, auditor: User, operator: User, refund: Refund
) -> None:
    kept = Search.objects.create(
        pk="kept_-search_of_words_", person=operator, text="田中", created_at=timezone.now()
    )
    for row in (kept, refund.payment, refund.payment.order):
        model = str(row._meta.model_name)
        link = f"{url_of(model)}{admin_quote(row.pk)}/change/"
        assert f'href="{link}"' in text(browser.get(url_of(model)))

        assert browser.get(link).status_code == 200

        viewed = AuditEntry.objects.filter(actor=auditor, action="admin.viewed").latest("id")
        named = row.order_id if isinstance(row, Order) else row.pk
        assert (viewed.object_type, viewed.object_id) == (model, named)


@pytest.mark.parametrize(
    "path", ["/admin/", "/admin/refunds/auditentry/", "/admin/login/", "/admin/nonsense/"]
)
def test_admin_is_closed_to_everybody_else(operator: User, path: str) -> None:
    assert sign_in(operator).get(path, follow=True).status_code == 403
    assert "/sign-in/" in Client().get(path, follow=True).redirect_chain[-1][0]


# --- The trail, in words ------------------------------------------------------------------------------------


def told(browser: Client, entry: AuditEntry) -> tuple[str, list[list[str]]]:
    """What the list says of an entry, and the rows of the table on its own page."""
    listed = text(browser.get(url_of("auditentry")))
    [row] = [row for row in listed.split("<tr") if f"/{entry.pk}/change/" in row]
    summary = re.search(r'field-summary">(.*?)</td>', row, re.S)
    assert summary
    page = text(browser.get(url_of("auditentry", entry.pk)))
    assert f"<pre>{escape(entry.text)}</pre>" in page
    rows = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', page, re.S)
    return strip_tags(summary[1]), [list(each) for each in rows]


@pytest.mark.parametrize(
    ("action", "data", "words"),
    [
        (
            "orders.searched",
            {"why": "limit", "limit": "searches", "seconds": 60, "allowed": 60},
            ["上限(回): 60", "回数を制限した操作: 検索", "制限の期間(秒): 60", "理由: 回数の上限"],
        ),
        (
            "refund.requested",
            {"amount": 12345, "currency": "JPY", "reason": "fraudulent", "state": "rejected", "similar": False},
            ["金額: ¥12,345", "通貨: JPY", "理由: 不正利用", "似た返金: いいえ", "状態: 返金不可"],
        ),
        ("refund.requested", {"amount": 1250, "currency": "USD"}, ["金額: USD 12.50", "通貨: USD"]),
        (
            "refund.requested",
            {"errors": {"amount": ["positive"], "memo": ["long", "control"]}},
            ["入力の誤り: 金額: 1円未満、社内メモ: 長すぎる文、使えない文字"],
        ),
        (
            "refund.not_executed",
            {"absent_since": "2026-11-22 15:30:01.500000+00:00"},
            ["返金がないと確認した日時: 2026/11/23 00:30:01"],
        ),
        ("admin.viewed", {"model": "auditentry"}, ["対象の種類: 監査記録"]),
        (
            "admin.listed",
            {"model": "smartpayrefund", "filters": {"status": "succeeded", "created_at__year": "2026"}},
            ["条件: 年: 2026、状態: 返金済み", "対象の種類: Smartpay の返金"],
        ),
        ("refunds.exported", {"filters": {"min_amount": "1000"}}, ["条件: 金額(下限): ¥1,000"]),
        ("sends.stopped", {"reason": "障害 <調査中>"}, ["理由: 障害 &lt;調査中&gt;"]),
        ("person.signed_in", {"roles_before": ["viewer", "left"]}, ["前の役割: 閲覧者、left"]),
        ("order.viewed", {"of_tomorrow": "x", "state": "new", "before": "?"},
         ["これより前: ?", "of_tomorrow: x", "状態: new"]),
    ],
)  # fmt: skip
def test_what_an_entry_tells_is_told_in_words(
    browser: Client, action: str, data: dict[str, Any], words: list[str]
) -> None:
    entry = audit.record(None, action, **data)

    summary, rows = told(browser, entry)

    assert summary == " · ".join(words)
    assert rows == [each.split(": ", 1) for each in words]


def test_nothing_of_an_entry_is_left_out_on_its_page(browser: Client) -> None:
    shown = [f"order_test_{number}" for number in range(50)]
    entry = audit.record(None, "orders.searched", words="", shown=shown)

    _summary, rows = told(browser, entry)

    assert rows == [["表示した記録", "、".join(shown)], ["検索語のハッシュ", "–"]]


def test_trail_names_people_and_knows_currencies_by_as_many_queries_for_many_rows(
    browser: Client, operator: User, viewer: User, refund: Refund
) -> None:
    def listed() -> tuple[str, int]:
        with CaptureQueriesContext(connection) as asked:
            return text(browser.get(url_of("auditentry"))), len(asked)

    Order.objects.update(currency="USD")
    signed_in = audit.record(None, "person.signed_in", viewer)
    audit.record(None, "refund.approved", refund, amount=1250)
    browser.get(url_of("refund"), {"requested_by__id__exact": operator.pk})
    page, queries = listed()
    for person in (operator, viewer) * 5:
        audit.record(None, "person.signed_in", person)
        audit.record(None, "refund.approved", refund, amount=1250)

    assert f"{viewer.name} ({viewer.pk})" in page
    assert "金額: USD 12.50" in page
    assert f"条件: 申請者: {operator.name}" in page
    assert listed()[1] == queries
    assert f"{viewer.name} ({viewer.pk})" in text(browser.get(url_of("auditentry", signed_in.pk)))


def test_whatever_the_sources_record_has_a_word() -> None:
    keys = {*sealing.Report().facts(), *Difference.Kind.values, "account", "reason"}
    codes = set()
    for path in [*(ROOT / "refunds").rglob("*.py"), *(ROOT / "dashboard").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text())):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("audit.record", "record"):
                data = {each.arg: each.value for each in call.keywords if each.arg}
                keys |= data.keys() - {"refused", "order_id"}
                codes |= {
                    (key, value.value)
                    for key, value in data.items()
                    if isinstance(value, ast.Constant) and isinstance(value.value, str)
                }
    for call in ast.walk(ast.parse((ROOT / "refunds/forms.py").read_text())):
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("ValidationError"):
            codes |= {
                ("errors", str(each.value)) for each in call.args[1:2] if isinstance(each, ast.Constant)
            }

    assert {"shown", "why", "roles_before"} < keys
    assert {("why", "same contents"), ("errors", "repeated")} <= codes
    assert keys - LABELS.keys() == set()
    assert bulk.ACTS.keys() <= CODES["tried"].keys()
    assert {(key, code) for key, code in codes if code not in CODES[key]} == set()


def test_whatever_is_written_of_an_error_of_a_refund_has_words() -> None:
    """What smartpay.py raises while a refund is made, and what makes a case. In braces stand ids and names."""
    written = set()
    for path in (ROOT / "refunds/smartpay.py", *(ROOT / "refunds/services").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text())):
            name = ast.unparse(call.func) if isinstance(call, ast.Call) else ""
            if name in ("to_review", "Unclear", "Contradiction", "kind"):
                said = call.args[-1]  # type: ignore[attr-defined]
                parts = said.values if isinstance(said, ast.JoinedStr) else [said]
                if not isinstance(said, ast.Name | ast.Call):
                    written.add(
                        "".join(
                            getattr(part, "value", "") if isinstance(part, ast.Constant) else "refund_1"
                            for part in parts
                        )
                    )
    of_a_list = {
        "The answer is not a collection.",
        "The place of the next page can't be read.",
        "Not a refund_1 of refund_1 mode.",
        "Not the refund_1 that was asked for.",
        "The refund_1 lacks a field.",
    }

    assert {"second refund refund_1", "No answer: refund_1.", "The answer differs in: refund_1."} <= written
    assert {
        words for words in written if error_text(words.replace("in: refund_1", "in: id")) == words
    } == of_a_list
    assert (
        error_text("The answer differs in: amount, id.")
        == "応答が申請と異なっていました: 金額、Smartpay 返金ID"
    )
    assert error_text("Amount is 100% wrong.") == "Amount is 100% wrong."  # Smartpay's own


@pytest.mark.parametrize("page", ["refund", "attempt"])
def test_error_of_a_refund_is_told_in_words(browser: Client, operator: User, page: str) -> None:
    payment = make_order(9440).payments.get()
    asked = services.RefundRequest(uuid.uuid4(), payment.pk, 1070, "fraudulent", "", "")
    refund = services.request_refund(asked, refundable=9440, by=operator)
    sending.begin_attempt(refund.pk, owner=NO_LEASE)
    said = "The answer differs in: amount."
    Refund.objects.filter(pk=refund.pk).update(error_message=said)
    refund.attempts.update(error_message=said)

    shown = text(browser.get(url_of(page, refund.pk if page == "refund" else refund.attempts.get().pk)))

    assert "応答が申請と異なっていました: 金額" in shown
    assert said not in shown


def test_pages_are_called_by_what_they_show(browser: Client, refund: Refund) -> None:
    for page, title in (
        (browser.get(url_of("control")), "送信の停止と再開"),
        (browser.get(url_of("refund", refund.pk)), "返金"),
    ):
        assert f"<h1>{title}</h1>" in text(page)
        assert "サインアウト" in text(page)
        assert "ログアウト" not in text(page)


# --- Records, to be read ------------------------------------------------------------------------------------


def test_refund_is_read_with_its_order_in_yen_and_in_words(browser: Client, operator: User) -> None:
    payment = make_order(9440).payments.get()
    asked = services.RefundRequest(uuid.uuid4(), payment.pk, 1070, "fraudulent", "", "")
    refund = services.request_refund(asked, refundable=9440, by=operator)
    sending.begin_attempt(refund.pk, owner=NO_LEASE)

    page = text(browser.get(url_of("refund", refund.pk)))

    shown = {
        name: strip_tags(value)
        for name, value in re.findall(r'form-row field-(\w+)">.*?class="readonly">(.*?)</div>', page, re.S)
    }
    assert {name: shown[name] for name in ("order_id", "amount", "refundable_before", "recovered")} == {
        "order_id": payment.order.order_id,
        "amount": "¥1,070",
        "refundable_before": "¥9,440",
        "recovered": "いいえ",
    }
    assert f'href="{url_of("order", payment.order.pk)}"' in page
    assert re.findall(r'<td class="field-replayed">\s*<p>(.*?)</p>', page) == ["いいえ"]
    assert "icon-no" not in page


def test_two_statuses_of_one_name_are_one_filter(browser: Client) -> None:
    waiting = [make_order(100, status=status) for status in ("requires_authorization", "pending")]
    paid = make_order(100)

    page = text(browser.get(url_of("order")))
    found = text(browser.get(url_of("order"), {"status__exact": "requires_authorization"}))

    assert re.findall(r'href="\?status__exact=(\w+)"', page) == [
        "requires_authorization",
        "rejected",
        "requires_capture",
        "succeeded",
        "canceled",
        "failed",
    ]
    assert [order.order_id in found for order in (*waiting, paid)] == [True, True, False]


@pytest.mark.parametrize(("key", "tells"), [("sk_test_1", True), ("sk_live_1", False)])
def test_every_page_tells_that_the_key_is_a_test_key(
    browser: Client, refund: Refund, settings: Any, key: str, tells: bool
) -> None:
    settings.SMARTPAY_SECRET_KEY = key
    verified = browser.post(reverse("admin:refunds_auditentry_verify"))
    pages = [browser.get(each) for each in ("/admin/", url_of("order"), url_of("refund", refund.pk))]

    for page in (verified, *pages):
        assert ("テスト環境" in text(page), "is-test" in text(page)) == (tells, tells)


def test_large_lists_are_counted_to_a_limit(
    browser: Client, refund: Refund, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("refunds.admin.base.MOST_ROWS", 2)

    page = browser.get(url_of("auditentry"))

    assert AuditEntry.objects.count() > 2
    assert page.context["cl"].result_count == 2


def test_what_is_tried_without_the_right_to_it_is_recorded(operator: User, viewer: User) -> None:
    sign_in(operator).get("/admin/", follow=True)
    sign_in(viewer).post(f"/refunds/{uuid.uuid4()}/withdraw/")

    refused = AuditEntry.objects.filter(action="page.refused").order_by("id")
    assert [(entry.actor, entry.outcome) for entry in refused] == [(operator, "refused"), (viewer, "refused")]
    assert refused[0].data["path"].startswith("/admin/")


def kept_and_shown(browser: Client, path: str) -> tuple[str, str]:
    """Where a hand-typed address leads in the end, and all that the trail says of it."""
    answer = browser.get(path, follow=True)
    assert answer.status_code == 200, path
    address = f"{answer.wsgi_request.path}?{answer.wsgi_request.META['QUERY_STRING']}"
    return address, "".join(AuditEntry.objects.values_list("text", flat=True))


@pytest.mark.parametrize(
    "typed",
    [
        "order/?email={}",
        "order/?email__contains={}",
        "order/?status__exact={}",
        "order/?{}=1",
        "order/?p={}",
        "order/?o={}",
        "order/?status__exact=succeeded&nonsense={}",
        "search/?text={}",
        "auditentry/?at__year={}",
        "auditentry/?actor__name={}",
        "auditentry/?actor__id__exact={}",
        "auditentry/?e=1&_changelist_filters={}",
        "auditentry/export.csv?order_id={}",
        "auditentry/export.jsonl?q={}&order_id={}",
    ],
)
@pytest.mark.parametrize("words", ["tanaka@example.jp", "田中太郎"])
def test_what_is_typed_as_a_filter_stays_neither_in_the_address_nor_on_the_trail(
    browser: Client, refund: Refund, typed: str, words: str
) -> None:
    address, trail = kept_and_shown(browser, f"/admin/refunds/{typed.format(quote(words), quote(words))}")

    for text_of in (address, trail):
        assert words not in text_of
        assert quote(words) not in text_of
        assert words.encode("ascii", "backslashreplace").decode() not in text_of


def test_filters_that_the_list_offers_stay(browser: Client, refund: Refund, operator: User) -> None:
    order = refund.payment.order
    for path in (
        f"refund/?state__exact=awaiting_approval&requested_by__id__exact={operator.pk}&o=-1.2",
        f"refund/?requested_at__year={refund.requested_at.year}",
        "auditentry/?outcome__exact=done&action__exact=refund.requested",
        f"order/?status__exact={order.status}&refund_status=processing",
        "smartpayrefund/?ours__isempty=1",
        "attempt/?_facets=True",
        "order/?_facets=True",
    ):
        address, trail = kept_and_shown(browser, f"/admin/refunds/{path}")

        assert address == f"/admin/refunds/{path}"
        assert f'"{path.partition("?")[2].partition("=")[0]}"' in trail


def test_pages_that_would_tell_or_do_something_elsewhere_are_not_there(
    browser: Client, refund: Refund
) -> None:
    for path in ("/admin/password_change/", "/admin/password_change/done/"):
        assert browser.get(path).status_code == 404
        assert browser.post(path, {"new_password1": "x", "new_password2": "x"}).status_code == 404
    page = text(browser.get(url_of("refund", refund.pk)))
    assert browser.get(reverse("admin:refunds_refund_history", args=[refund.pk])).status_code == 404
    assert "/history/" not in page
    assert "password" not in page


# --- What auditors look for ---------------------------------------------------------------------------------


def listed(page: Any) -> list[Any]:
    return list(page.context["cl"].result_list)


def test_attempts_are_found_by_order_and_by_person(browser: Client, operator: User, approver: User) -> None:
    attempts = []
    for person, name in ((operator, "田中 太郎"), (approver, "鈴木 一")):
        payment = make_order(5000, name=name, email="").payments.get()
        asked = services.RefundRequest(uuid.uuid4(), payment.pk, 1000, "requested_by_customer", "", "")
        refund = services.request_refund(asked, refundable=5000, by=person)
        attempts.append(Attempt.objects.create(refund=refund, number=1, started_at=timezone.now()))
    first = attempts[0]

    for words in (first.refund.payment.order.order_id, operator.name, str(first.refund_id)):
        assert listed(search(browser, "attempt", words)) == [first]


@pytest.mark.parametrize("typed", ["2026/11/23", "2026-11-23", "2026年11月23日", "２０２６／１１／２３"])
def test_orders_of_a_day_in_japan_are_a_range_of_keys(browser: Client, typed: str) -> None:
    midnight = datetime(2026, 11, 22, 15, tzinfo=UTC)  # in Japan
    orders = [
        make_order(100, age=int((datetime.now(tz=UTC) - midnight).total_seconds()) - after)
        for after in (-5, 5, 86_395, 86_405)
    ]

    with CaptureQueriesContext(connection) as asked:
        found = listed(search(browser, "order", typed))

    assert [order.order_id for order in found] == [orders[2].order_id, orders[1].order_id]
    assert not any("DISTINCT" in each["sql"] or "COUNT(" in each["sql"] for each in asked)


@pytest.mark.parametrize("typed", ["2026/02/30", "2026/11", "20261123"])
def test_what_is_no_day_is_searched_as_it_stands(browser: Client, typed: str) -> None:
    make_order(100)

    assert listed(search(browser, "order", typed)) == []


def test_shops_number_that_looks_like_a_day_is_found_beside_the_orders_of_that_day(browser: Client) -> None:
    order = make_order(100)
    order.reference, order.reference_folded = "2026-02-01", fold_reference("2026-02-01")
    order.save(update_fields=["reference", "reference_folded"])

    assert listed(search(browser, "order", "2026-02-01")) == [order]


def test_refund_that_was_turned_down_is_not_called_withdrawn_on_its_page(
    browser: Client, refund: Refund, approver: User
) -> None:
    services.reject(refund.pk, by=approver, note="金額が違います")

    page = text(browser.get(url_of("refund", refund.pk)))

    assert "取り下げ" not in page.partition('class="form-row field-label"')[2].partition("form-row")[0]
    assert "却下" in page.partition('class="form-row field-label"')[2].partition("form-row")[0]


def test_lines_of_an_order_are_a_table_in_words(browser: Client) -> None:
    order = make_order(1000)
    order.line_items = [
        {"name": "靴 <黒>", "quantity": 2, "amount": 11000, "currency": "JPY", "kind": "product"},
        {"name": "クーポン", "quantity": 1, "amount": 500, "currency": "JPY", "kind": "discount"},
        {"name": "その他", "quantity": 1, "amount": 1250, "currency": "USD", "kind": "gift"},
    ]
    order.save(update_fields=["line_items"])

    page = text(browser.get(url_of("order", order.pk)))

    rows = re.findall(
        r'<tr><th scope="row">(.*?)</th><td>(.*?)</td><td class="num">(.*?)</td><td class="num">(.*?)<', page
    )
    assert rows == [
        ("靴 &lt;黒&gt;", "商品", "2", "¥11,000"),
        ("クーポン", "割引", "1", "¥500"),
        ("その他", "gift", "1", "USD 12.50"),
    ]
    assert "quantity" not in page


def test_index_begins_with_the_trail(browser: Client) -> None:
    index = text(browser.get("/admin/"))

    assert re.findall(r'<tr class="model-(\w+)', index)[0] == "auditentry"


def test_switch_is_read_as_a_sentence(browser: Client, approver: User) -> None:
    services.set_sends(enabled=False, reason="障害", by=approver)

    assert "停止しています" in text(browser.get(url_of("control")))
