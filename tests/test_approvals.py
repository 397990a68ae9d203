"""Four eyes and a day's limit: large refunds wait for a second person, who is never the one who asked."""

import re
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.test import Client
from django.utils import timezone

from dashboard.models import User
from refunds import services, smartpay
from refunds.models import AuditEntry, Control, Payment, Refund
from refunds.services import approving, states
from tests.conftest import Clock, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_services import ask, at_smartpay, mirrored

State = Refund.State


@pytest.fixture
def payment(db: None, sandbox: Sandbox, settings: Any) -> Payment:
    settings.REFUND_APPROVAL_ABOVE = 500
    return mirrored(sandbox, "refundable", min_amount=2000)


@pytest.fixture
def waiting(payment: Payment, operator: User) -> Refund:
    return services.refund_payment(ask(payment), refundable=payment.refundable(), by=operator)


def fresh(user: User) -> Client:
    """At a browser where the provider asked for this person a moment ago."""
    browser = sign_in(user)
    session = browser.session
    session["auth_time"] = time.time()
    session.save()
    return browser


def decide(browser: Client, refund: Refund, **fields: str) -> Any:
    return browser.post(f"/refunds/{refund.pk}/decide/", fields)


def test_approved_refund_is_sent_at_once(
    waiting: Refund, payment: Payment, approver: User, sandbox: Sandbox
) -> None:
    assert (waiting.state, sandbox.requests("POST", "/v1/refunds")) == (State.AWAITING_APPROVAL, [])

    made = services.approve(waiting.pk, by=approver, note="確認済み")

    [there] = at_smartpay(sandbox, payment)
    assert (made.state, made.decided_by, made.decision_note) == (State.SUCCEEDED, approver, "確認済み")
    assert there["reference"] == str(made.pk)
    trail = AuditEntry.objects.filter(object_id=made.pk).order_by("id").values_list("action", "actor")
    assert list(trail)[:2] == [
        ("refund.requested", waiting.requested_by_id),
        ("refund.approved", approver.pk),
    ]


def test_rejected_refund_frees_its_amount(
    waiting: Refund, payment: Payment, approver: User, sandbox: Sandbox
) -> None:
    with pytest.raises(services.NoReason):
        services.reject(waiting.pk, by=approver, note="")

    made = services.reject(waiting.pk, by=approver, note="金額が違います")

    payment.refresh_from_db()
    assert (made.state, made.label, made.decided_by) == (State.CANCELLED, "却下", approver)
    assert (payment.reserved, sandbox.requests("POST", "/v1/refunds")) == (0, [])


def test_nobody_decides_their_own(payment: Payment, approver: User, sandbox: Sandbox) -> None:
    own = services.refund_payment(ask(payment), refundable=payment.refundable(), by=approver)

    for act in (services.approve, services.reject):
        with pytest.raises(PermissionDenied):
            act(own.pk, by=approver, note="自分")

    own.refresh_from_db()
    assert (own.state, own.decided_by) == (State.AWAITING_APPROVAL, None)


@pytest.mark.parametrize("role", ["viewer", "operator", "auditor"])
def test_only_approvers_decide(waiting: Refund, role: str) -> None:
    person = make_user(role)

    with pytest.raises(PermissionDenied):
        services.approve(waiting.pk, by=person)
    assert decide(fresh(person), waiting, approve="1").status_code == 403
    assert sign_in(person).get("/approvals/").status_code == 403


def test_refund_whose_balance_moved_is_asked_for_again(
    waiting: Refund, payment: Payment, approver: User, sandbox: Sandbox
) -> None:
    sandbox.refund_elsewhere(payment.pk, 1)

    made = services.approve(waiting.pk, by=approver)

    assert (made.state, made.label) == (State.CANCELLED, "残額変更")
    assert not sandbox.requests("POST", "/v1/refunds")


def test_decision_is_made_once(waiting: Refund, approver: User, sandbox: Sandbox) -> None:
    services.approve(waiting.pk, by=approver)

    with pytest.raises(services.NotWaiting):
        services.reject(waiting.pk, by=make_user("approver"), note="遅い")
    with pytest.raises(services.NotWaiting):
        services.approve(waiting.pk, by=make_user("approver"))

    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


@pytest.mark.postgresql  # SQLite in memory has one connection, and no race to lose
@pytest.mark.django_db(transaction=True)
def test_of_several_approvers_at_once_one_decides(sandbox: Sandbox, settings: Any) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    payment = mirrored(sandbox, "refundable", min_amount=2000)
    waiting = services.refund_payment(ask(payment), refundable=payment.refundable(), by=make_user("operator"))
    people = [make_user("approver") for _person in range(5)]
    start, told = threading.Barrier(5), []

    def press(person: User) -> None:
        try:
            start.wait(5)
            services.approve(waiting.pk, by=person)
        except services.NotWaiting as error:
            told.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=press, args=[person]) for person in people]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    waiting.refresh_from_db()
    assert (len(told), waiting.state) == (4, State.SUCCEEDED)
    assert len(at_smartpay(sandbox, payment)) == 1


def test_request_that_nobody_decides_expires(
    waiting: Refund, payment: Payment, at: Clock, settings: Any
) -> None:
    settings.REFUND_REQUEST_DAYS = 7
    assert services.expire_requests() == 0

    at.advance(days=8)

    assert services.expire_requests() == 1
    waiting.refresh_from_db()
    payment.refresh_from_db()
    assert (waiting.state, waiting.label, payment.reserved) == (State.CANCELLED, "期限切れ", 0)
    assert services.expire_requests() == 0


def test_request_that_is_too_old_is_not_decided_even_where_no_worker_cancelled_it(
    waiting: Refund, approver: User, at: Clock, sandbox: Sandbox
) -> None:
    at.advance(days=8)

    with pytest.raises(services.NotWaiting, match="期限"):
        services.approve(waiting.pk, by=approver)

    waiting.refresh_from_db()
    assert (waiting.state, sandbox.requests("POST", "/v1/refunds")) == (State.AWAITING_APPROVAL, [])


def test_request_that_was_withdrawn_a_moment_ago_does_not_expire(
    waiting: Refund, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    locked = states.locked

    def late(refund_id: Any) -> Any:
        Refund.objects.filter(pk=refund_id).update(state=State.CANCELLED, cancelled_because="withdrawn")
        return locked(refund_id)

    monkeypatch.setattr(approving, "locked", late)
    at.advance(days=8)

    services.expire_requests()

    waiting.refresh_from_db()
    assert waiting.label == "取り下げ"


def test_nothing_is_decided_while_smartpay_can_not_be_read(
    waiting: Refund, approver: User, sandbox: Sandbox
) -> None:
    sandbox.fault("html", method="GET", path="", times=None)

    with pytest.raises(smartpay.SmartpayError):
        services.approve(waiting.pk, by=approver)
    page = decide(fresh(approver), waiting, approve="1", note="確認済み")

    waiting.refresh_from_db()
    assert (page.status_code, waiting.state) == (503, State.AWAITING_APPROVAL)
    assert "確認済み" in page.content.decode()


# --- The screens --------------------------------------------------------------------------------------------


def test_approver_finds_what_waits_and_approves_it(waiting: Refund, approver: User, sandbox: Sandbox) -> None:
    browser = fresh(approver)
    assert "承認を待っている返金が 1&nbsp;件" in browser.get("/").content.decode()
    assert f"/refunds/{waiting.pk}/" in browser.get("/approvals/").content.decode()
    assert "¥1,000 の返金を承認する" in browser.get(f"/refunds/{waiting.pk}/").content.decode()

    answer = decide(browser, waiting, approve="1")

    assert answer["Location"] == f"/refunds/{waiting.pk}/"
    waiting.refresh_from_db()
    assert waiting.state == State.SUCCEEDED
    assert "承認を待っている返金はありません" in browser.get("/approvals/").content.decode()
    late = browser.post(f"/refunds/{waiting.pk}/decide/", {"approve": "1"}, follow=True)
    assert "すでに決定されたか" in late.content.decode()


def test_every_page_tells_an_approver_how_much_waits_for_a_decision(
    waiting: Refund, operator: User, approver: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    def told(person: User) -> str:
        page = sign_in(person).get("/orders/").content.decode()
        count = re.search(r'<span class="nav-count">(\d+\+?)<', page)
        return count[1] if count else ""

    assert told(approver) == "1"
    assert told(operator) == ""
    monkeypatch.setattr("refunds.paging.PAGE", 0)
    assert told(approver) == "0+"
    monkeypatch.undo()
    services.reject(waiting.pk, by=approver, note="二重申請のため")
    assert told(approver) == ""


def test_approver_decides_beside_all_that_the_requester_confirmed(
    payment: Payment, operator: User, approver: User
) -> None:
    order = payment.order
    order.email = "tanaka@example.jp"
    order.save()
    earlier = request(payment, operator, 300)
    payment.refresh_from_db()
    asked = ask(payment, description="サイズ交換のため", memo="電話で確認")
    waiting = services.request_refund(
        asked, refundable=payment.refundable(), by=operator, similar_reason="二点目の返品"
    )

    page = fresh(approver).get(f"/refunds/{waiting.pk}/").content.decode()

    panel = page[page.index('class="decide"') : page.index('name="approve"')]
    told = ["tanaka@example.jp", "サイズ交換のため", "電話で確認", "二点目の返品", "テスト環境"]
    told += [operator.name, f"/refunds/{earlier.pk}/", "手数料は戻りません", "次回の精算額から"]
    assert [words for words in told if words not in panel] == []
    assert [page.count(words) for words in told[1:4]] == [1, 1, 1]


def test_after_a_decision_the_next_that_this_person_may_decide_is_offered(
    waiting: Refund, payment: Payment, operator: User, approver: User
) -> None:
    payment.refresh_from_db()
    request(payment, approver, 501)  # one's own
    browser, page = fresh(approver), f"/refunds/{waiting.pk}/"
    decide(browser, waiting, reject="1", note="金額が違います")
    assert "次の承認待ちへ" not in browser.get(page).content.decode()

    payment.refresh_from_db()
    following = request(payment, operator, 502)

    offered = f'href="/refunds/{following.pk}/">次の承認待ちへ</a>'
    assert offered in browser.get(page).content.decode()
    assert "次の承認待ちへ" not in sign_in(operator).get(page).content.decode()


def test_own_request_offers_no_decision(payment: Payment, approver: User) -> None:
    own = services.refund_payment(ask(payment), refundable=payment.refundable(), by=approver)
    browser = fresh(approver)

    assert "承認する" not in browser.get(f"/refunds/{own.pk}/").content.decode()
    assert "ほかの承認者が決定します" in browser.get("/approvals/").content.decode()
    assert decide(browser, own, approve="1").status_code == 403
    assert AuditEntry.objects.filter(action="page.refused", actor=approver).count() == 1


def test_turning_down_without_a_reason_is_told_beside_the_field(waiting: Refund, approver: User) -> None:
    page = decide(fresh(approver), waiting, reject="1", note=" ")
    odd = decide(fresh(approver), waiting, reject="1", note="\u202e")

    assert (page.status_code, odd.status_code) == (422, 422)
    assert 'id="id_note_error">却下する理由を入力してください。' in page.content.decode()
    waiting.refresh_from_db()
    assert waiting.state == State.AWAITING_APPROVAL


def test_decision_wants_a_fresh_sign_in_and_sends_nothing_before(
    waiting: Refund, approver: User, sandbox: Sandbox, settings: Any
) -> None:
    browser = sign_in(approver)
    session = browser.session
    session["auth_time"] = time.time() - timedelta(minutes=6).total_seconds()
    session.save()

    answer = decide(browser, waiting, approve="1", note="確認済み")

    assert answer["Location"].startswith("/oidc/step-up/?next=")
    waiting.refresh_from_db()
    assert (waiting.state, sandbox.requests("POST", "/v1/refunds")) == (State.AWAITING_APPROVAL, [])


# --- A person's day -----------------------------------------------------------------------------------------


def test_day_of_a_person_has_a_limit_that_waiting_refunds_count_against(
    waiting: Refund, payment: Payment, operator: User, settings: Any
) -> None:
    settings.REFUND_DAILY_LIMIT = 1400
    payment.refresh_from_db()

    with pytest.raises(services.AmountTooHigh, match="一日の返金は合計¥1,400までです。本日はあと¥400です。"):
        request(payment, operator, 401)

    assert request(payment, operator, 400).state == State.QUEUED
    payment.refresh_from_db()
    assert request(payment, make_user("operator"), 401).state == State.QUEUED  # somebody else's day


def test_what_was_not_refunded_does_not_count(
    waiting: Refund, payment: Payment, operator: User, settings: Any
) -> None:
    settings.REFUND_DAILY_LIMIT = 1000
    services.withdraw(waiting.pk, by=operator)
    payment.refresh_from_db()

    assert request(payment, operator, 500).state == State.QUEUED


def test_day_ends_at_midnight_in_japan(payment: Payment, operator: User, at: Clock, settings: Any) -> None:
    settings.REFUND_DAILY_LIMIT = 500
    at.now = datetime(2026, 11, 23, 14, 59, tzinfo=UTC)  # 23:59 in Tokyo
    request(payment, operator, 500)
    payment.refresh_from_db()

    at.advance(seconds=30)
    with pytest.raises(services.AmountTooHigh):
        request(payment, operator, 1)
    at.advance(minutes=1)
    assert request(payment, operator, 500).state == State.QUEUED


@pytest.mark.postgresql  # SQLite in memory has one connection, and no race to lose
@pytest.mark.django_db(transaction=True)
def test_requests_at_once_do_not_exceed_the_day_together(sandbox: Sandbox, settings: Any) -> None:
    settings.REFUND_DAILY_LIMIT = 1000
    person = make_user("operator")
    payments = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in range(4)]
    start, told = threading.Barrier(4), []

    def press(payment: Payment) -> None:
        try:
            start.wait(5)
            request(payment, User.objects.get(pk=person.pk), 400)
        except services.AmountTooHigh as error:
            told.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=press, args=[payment]) for payment in payments]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (len(told), services.refunded_today(person)) == (2, 800)


def request(payment: Payment, by: User, amount: int) -> Refund:
    return services.request_refund(
        ask(payment, amount), refundable=payment.refundable(), by=by, similar_reason="別件"
    )


def test_decision_that_was_refused_is_on_the_trail(
    payment: Payment, operator: User, approver: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    services.withdraw(made.pk, by=operator)

    answer = decide(fresh(approver), made, approve="1")

    assert answer["Location"] == f"/refunds/{made.pk}/"
    assert AuditEntry.objects.filter(actor=approver, object_id=str(made.pk), outcome="refused").exists()


def current(told: str) -> list[str]:
    """The entries of the navigation that are marked as where one is."""
    nav = told.partition('<nav class="site-nav"')[2].partition("</nav>")[0]
    return [words.strip() for words in re.findall(r'aria-current="page">([^<]*)', nav)]


def test_list_says_since_when_and_until_when_each_waits(
    payment: Payment, operator: User, approver: User, at: Clock, settings: Any
) -> None:
    settings.REFUND_REQUEST_DAYS = 3
    at.advance(minutes=-6, seconds=-30)
    waiting = services.refund_payment(ask(payment), refundable=payment.refundable(), by=operator)
    day = timezone.localtime(waiting.requested_at + timedelta(days=3)).strftime("%m/%d")

    told = sign_in(approver).get("/approvals/").content.decode()

    assert "6\N{NO-BREAK SPACE}分前" in told
    assert f"期限 {day}" in told
    assert "期限" not in sign_in(approver).get("/refunds/").content.decode()


@pytest.mark.parametrize(
    ("stopped", "act", "words"),
    [
        (False, "stop", "まだ止めていません。送信は続いています。"),
        (True, "resume", "まだ再開していません。送信は停止したままです。"),
    ],
)
def test_switch_that_was_not_set_says_what_holds(
    db: None, sandbox: Sandbox, approver: User, stopped: bool, act: str, words: str
) -> None:
    if stopped:
        services.set_sends(enabled=False, reason="障害", by=approver)
    browser = fresh(approver)

    answer = browser.post("/refunds/sends/", {act: "1", "reason": ""})

    told = answer.content.decode()
    assert answer.status_code == 422
    assert words in told
    assert Control.objects.filter(sends_enabled=False).exists() == stopped
    assert current(told) == current(browser.get("/approvals/").content.decode()) == ["承認"]


def test_switch_is_one_press_away_from_the_top(db: None, approver: User) -> None:
    browser = fresh(approver)
    assert re.search(
        r'<h1>承認</h1>\s*<a href="#sends">送信を止める</a>', browser.get("/approvals/").content.decode()
    )

    services.set_sends(enabled=False, reason="障害", by=approver)

    assert "送信を止める</a>" not in browser.get("/approvals/").content.decode()
