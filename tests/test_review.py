"""要調査: two people decide by what Smartpay shows, neither of them who asked; and the switch for sending."""

import time
import uuid
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.urls import reverse

from dashboard.models import User
from refunds import services, smartpay
from refunds.models import AuditEntry, Control, Payment, Refund, ReviewDecision
from refunds.services import control
from tests.conftest import Clock, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_services import at_smartpay, mirrored, refund, scan, work

State = Refund.State


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    return mirrored(sandbox, "refundable", min_amount=2000)


@pytest.fixture
def second(db: None) -> User:
    return make_user("approver", "承認 二郎")


@pytest.fixture
def contradicted(payment: Payment, operator: User, sandbox: Sandbox) -> Refund:
    """Done, as asked; but the answer named one yen more."""
    sandbox.fault("wrong_amount")
    return refund(payment, operator)


def decide(case: Refund, by: User, smartpay_id: str = "", **other: Any) -> Refund:
    facts = {"verdict": "succeeded" if smartpay_id else "not_executed", "note": "確認済み"} | other
    return services.decide_case(case.pk, smartpay_id=smartpay_id, by=by, client=smartpay.client(), **facts)


def case_without_reference(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> tuple[Refund, dict[str, Any]]:
    """Not executed, but somebody refunded as much in Smartpay's own dashboard meanwhile: it could be it."""
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    there = sandbox.refund_elsewhere(payment.pk, 1000)
    for _turn in range(4):
        at.advance(hours=7)
        sandbox.advance(7 * 3600)
        work()
    made.refresh_from_db()
    assert made.state == State.REVIEW
    return made, there


def test_evidence_settles_a_case_without_people(contradicted: Refund, sandbox: Sandbox) -> None:
    assert contradicted.state == State.REVIEW

    services.look_again(contradicted.pk, client=smartpay.client())

    contradicted.refresh_from_db()
    assert contradicted.state == State.SUCCEEDED


def test_two_who_agree_that_it_is_this_refund_settle_the_case(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    payment.refresh_from_db()
    left, [there] = payment.refundable(), at_smartpay(sandbox, payment)

    assert decide(case, approver, there["id"]).state == State.REVIEW
    settled = decide(case, second, there["id"])

    payment.refresh_from_db()
    assert (settled.state, settled.smartpay_id) == (State.SUCCEEDED, there["id"])
    # It was counted as made elsewhere, and reserved as well.
    assert (payment.refunded, payment.external, payment.reserved) == (1000, 0, 0)
    assert payment.refundable() == left + 1000
    assert AuditEntry.objects.filter(action="refund.judged").count() == 2


def test_two_who_agree_that_there_is_none_settle_the_case(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)

    decide(case, approver)
    settled = decide(case, second)

    payment.refresh_from_db()
    assert (settled.state, payment.external, payment.reserved) == (State.NOT_EXECUTED, 1000, 0)


def test_case_stays_open_while_two_differ_and_the_last_word_counts(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    [there] = at_smartpay(sandbox, payment)

    assert decide(case, approver).state == State.REVIEW
    assert decide(case, approver).state == State.REVIEW  # twice the same person
    assert decide(case, second, there["id"]).state == State.REVIEW
    assert decide(case, approver, there["id"]).state == State.SUCCEEDED


def test_requester_and_who_is_no_approver_decide_nothing(
    payment: Payment, approver: User, viewer: User, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, approver, sandbox, at)
    gone = make_user("approver")
    gone.is_active = False

    for person in (approver, viewer, operator, gone):
        with pytest.raises(PermissionDenied):
            decide(case, person)

    assert not ReviewDecision.objects.exists()


def test_nothing_is_decided_without_a_reason_or_twice(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    with pytest.raises(services.NoReason):
        decide(case, approver, note="")
    decide(case, approver)
    decide(case, second)

    with pytest.raises(services.NotWaiting):
        decide(case, approver)


def test_absence_is_not_decided_before_it_is_proved(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("altered", executed=True, values={"payment": "payment_test_00000000000000000000xx"})
    case = refund(payment, operator)
    Refund.objects.filter(pk=case.pk).update(smartpay_id=None)
    sandbox.switch(read_lag_seconds=10**6)  # as if it were nowhere
    assert case.state == State.REVIEW

    with pytest.raises(services.NotProved, match="まだ"):
        decide(case, approver)
    at.advance(hours=7)
    with pytest.raises(services.NotProved):
        decide(case, approver)  # the first complete read
    at.advance(minutes=16)
    assert decide(case, approver).state == State.REVIEW


def test_absence_of_a_payment_without_a_list_waits_for_a_scan(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("altered", values={"payment": "payment_test_00000000000000000000xx"})
    case = refund(payment, operator)
    sandbox.switch(read_lag_seconds=10**6, payments_list_refunds=False)

    for wait in ({"hours": 7}, {"minutes": 16}):
        at.advance(**wait)
        with pytest.raises(services.NotProved):
            decide(case, approver)
        assert services.needs_full_scan()
        scan(at)
        assert not services.needs_full_scan()  # once for each time that people look
    at.advance(minutes=16)
    scan(at)
    assert decide(case, approver).state == State.REVIEW


def test_refund_of_another_row_or_of_nobody_is_not_this_one(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    other = refund(mirrored(sandbox, "refundable", min_amount=2000, skip=1), operator)

    for smartpay_id in (other.smartpay_id, f"refund_test_{uuid.uuid4().hex[:22]}"):
        with pytest.raises(services.NotProved):
            decide(case, approver, smartpay_id or "")


def test_refund_larger_than_asked_leaves_less(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    whole = payment.captured
    sandbox.refund_elsewhere(payment.pk, 1300)
    Refund.objects.filter(pk=made.pk).update(state=State.REVIEW, reviews=1)
    services.read_payment(payment.pk, client=smartpay.client())
    [there] = at_smartpay(sandbox, payment)

    for person in (approver, second):
        decide(made, person, there["id"])

    payment.refresh_from_db()
    assert (payment.refunded, payment.external) == (1000, 300)
    assert payment.refundable() == whole - 1300


# --- The pages ----------------------------------------------------------------------------------------------


def page(case: Refund) -> str:
    return reverse("refunds:refund_review", args=[case.pk])


def fresh(person: User) -> Any:
    """Signed in at the provider a moment ago."""
    browser = sign_in(person)
    session = browser.session
    session["auth_time"] = time.time()
    session.save()
    return browser


def test_two_approvers_settle_a_case_on_its_page(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)

    for person in (approver, second):
        browser = fresh(person)
        shown = browser.get(page(case)).content.decode()
        assert "この返金の番号がありません" in shown
        assert browser.post(page(case), {"choice": "not_executed", "note": "店舗に確認"}).status_code == 302

    case.refresh_from_db()
    assert case.state == State.NOT_EXECUTED
    assert "この返金は確定しています" in fresh(approver).get(page(case)).content.decode()


def test_bad_decision_is_told_beside_the_field_and_loses_nothing(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    browser = fresh(approver)

    nothing = browser.post(page(case), {"note": "店舗に確認"})
    wrong = browser.post(page(case), {"choice": "refund_test_0000000000000000000000", "note": "店舗に確認"})

    assert nothing.status_code == wrong.status_code == 422
    assert "判定を選んでください" in nothing.content.decode()
    assert "この返金はありません" in wrong.content.decode()
    assert all("店舗に確認</textarea>" in answer.content.decode() for answer in (nothing, wrong))


def test_case_is_decided_by_a_fresh_sign_in_only(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)

    answer = sign_in(approver).post(page(case), {"choice": "not_executed", "note": "x"})

    assert answer.status_code == 302
    assert "step-up" in answer["Location"] or "step_up" in answer["Location"]
    assert not ReviewDecision.objects.exists()


@pytest.mark.parametrize("role", ["viewer", "operator"])
def test_others_see_the_evidence_and_decide_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, role: str
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    browser = fresh(make_user(role))

    assert "判定できるのは承認者だけです" in browser.get(page(case)).content.decode()
    assert browser.post(page(case), {"choice": "not_executed", "note": "x"}).status_code == 403


def test_page_of_a_case_shows_the_last_copy_while_smartpay_is_silent(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    sandbox.fault("html", method="GET", path="", times=None)
    browser = fresh(approver)

    shown = browser.get(page(case))
    posted = browser.post(page(case), {"choice": "not_executed", "note": "店舗に確認"})

    assert (shown.status_code, posted.status_code) == (200, 503), posted.headers
    assert "読み取れません" in shown.content.decode()
    assert "店舗に確認</textarea>" in posted.content.decode()


def test_cases_wait_on_the_start_page_and_among_the_approvals(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    browser = fresh(approver)

    assert "要調査)が 1 件" in browser.get(reverse("refunds:start")).content.decode()
    assert str(case.pk) in browser.get(reverse("refunds:approvals")).content.decode()


def test_case_that_was_settled_meanwhile_is_told(
    payment: Payment, operator: User, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    case, _there = case_without_reference(payment, operator, sandbox, at)
    browser = fresh(make_user("approver"))
    for person in (approver, second):
        decide(case, person)

    answer = browser.post(page(case), {"choice": "not_executed", "note": "x"}, follow=True)

    assert "すでに確定しています" in answer.content.decode()


# --- The switch ---------------------------------------------------------------------------------------------


def test_approver_stops_and_resumes_sending(approver: User, operator: User) -> None:
    browser = fresh(approver)
    sends = reverse("refunds:sends")

    assert browser.post(sends, {"stop": "1", "reason": ""}).status_code == 422
    assert browser.post(sends, {"stop": "1", "reason": "点検のため"}).status_code == 302
    assert not Control.sends_are_on()
    assert "点検のため" in sign_in(operator).get(reverse("refunds:start")).content.decode()
    assert browser.post(sends, {"resume": "1", "reason": "終わり"}).status_code == 302
    assert Control.sends_are_on()
    assert fresh(operator).post(sends, {"stop": "1", "reason": "x"}).status_code == 403


def test_sending_is_not_resumed_before_everything_was_read(approver: User) -> None:
    control.remember(1)
    services.watch()

    answer = fresh(approver).post(reverse("refunds:sends"), {"resume": "1", "reason": "確認済み"})

    assert answer.status_code == 422
    assert "読み取りが終わっていません" in answer.content.decode()
    assert "データベースが古い状態" in answer.content.decode()
    assert 'value="確認済み"' in answer.content.decode()
