"""Money moves once, or certainly not: requests, turns, answers and evidence, against the real sandbox."""

import io
import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import PermissionDenied
from django.core.management import call_command
from django.core.management.base import CommandError
from django.test import override_settings

from dashboard.models import User
from refunds import clock, scanning, services, smartpay
from refunds.models import AuditEntry, Control, Payment, Refund, SmartpayRefund
from refunds.services import RefundRequest, control, sending
from refunds.services.states import NO_LEASE
from tests.conftest import Clock, make_order, make_user
from tests.sandbox import Sandbox

State = Refund.State


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    """The one payment, of ¥2,000 or more and never refunded, of an order that the sandbox has."""
    return mirrored(sandbox, "refundable", min_amount=2000)


def mirrored(sandbox: Sandbox, kind: str, **wanted: Any) -> Payment:
    found = sandbox.find(kind, **wanted)
    services.read_order(found["order"], client=smartpay.client())
    sandbox.forget_requests()
    return Payment.objects.select_related("order").filter(order__order_id=found["order"])[0]


def pass_time(at: Clock, sandbox: Sandbox, **by: float) -> None:
    """Here and at Smartpay."""
    at.advance(**by)
    sandbox.advance(timedelta(**by).total_seconds())


def ask(payment: Payment, amount: int = 1000, **more: Any) -> RefundRequest:
    return RefundRequest(
        request_id=more.pop("request_id", uuid.uuid4()),
        payment_id=payment.pk,
        amount=amount,
        reason=more.pop("reason", "requested_by_customer"),
        **more,
    )


def refund(payment: Payment, by: User, amount: int = 1000, **more: Any) -> Refund:
    payment.refresh_from_db()
    similar = more.pop("similar_reason", "")
    return services.refund_payment(
        ask(payment, amount, **more), refundable=payment.refundable(), by=by, similar_reason=similar
    )


def work(client: smartpay.Client | None = None) -> int:
    """A round of a worker."""
    client = client or smartpay.client()
    turns = services.settle_due(client=client)
    services.scan_if_needed(client=client)
    return turns


def at_smartpay(sandbox: Sandbox, payment: Payment) -> list[dict[str, Any]]:
    refunds = sandbox.api("GET", "/refunds", params={"maxResults": 100}).json()["data"]
    return [each for each in refunds if each["payment"] == payment.pk]


def test_refund_is_made_once_and_told(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    left = payment.refundable()

    made = refund(payment, operator, description="サイズ交換のため", memo="電話")

    payment.refresh_from_db()
    [there] = at_smartpay(sandbox, payment)
    assert (made.state, made.smartpay_id) == (State.SUCCEEDED, there["id"])
    assert (there["amount"], there["reference"], there["description"]) == (
        1000,
        str(made.pk),
        "サイズ交換のため",
    )
    assert there["metadata"] == {"refund_dashboard_id": str(made.pk)}
    assert (payment.refunded, payment.reserved, payment.external) == (1000, 0, 0)
    assert payment.refundable() == left - 1000
    [sent] = sandbox.requests("POST", "/v1/refunds")
    assert sent["headers"]["idempotency-key"] == str(made.pk)
    assert "電話" not in str(sent)


# --- Asking -------------------------------------------------------------------------------------------------


def test_same_request_again_is_the_same_refund(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    asked, left = ask(payment), payment.refundable()
    first = services.refund_payment(asked, refundable=left, by=operator)

    second = services.refund_payment(asked, refundable=left, by=operator)

    assert second == first
    assert len(sandbox.requests("POST", "/v1/refunds")) == len(at_smartpay(sandbox, payment)) == 1


@pytest.mark.parametrize(
    "other", [{"amount": 999}, {"memo": "x"}, {"description": "x"}, {"reason": "fraudulent"}]
)
def test_same_id_with_other_contents_is_refused(
    payment: Payment, operator: User, sandbox: Sandbox, other: dict[str, Any]
) -> None:
    first = refund(payment, operator)
    fields: dict[str, Any] = {"amount": 1000, "request_id": first.pk} | other
    again = ask(payment, **fields)

    with pytest.raises(services.RequestReused) as refused:
        services.refund_payment(again, refundable=payment.refundable(), by=operator)

    assert refused.value.refund == first
    assert Refund.objects.count() == len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_another_persons_request_is_not_mine(payment: Payment, operator: User, approver: User) -> None:
    first = refund(payment, operator)

    with pytest.raises(services.RequestReused):
        services.find_request(ask(payment, request_id=first.pk), by=approver)


def test_two_forms_of_equal_amounts_are_two_refunds(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    refund(payment, operator)
    refund(payment, operator, similar_reason="二点目の返品")

    assert [each["amount"] for each in at_smartpay(sandbox, payment)] == [1000, 1000]


def test_more_than_is_left_is_refused_with_the_figure(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    left = payment.refundable()

    with pytest.raises(services.AmountTooHigh, match=f"¥{left:,}"):
        refund(payment, operator, left + 1)

    assert not Refund.objects.exists()
    assert not sandbox.requests("POST", "/v1/refunds")


def test_moved_balance_is_asked_for_anew(payment: Payment, operator: User) -> None:
    with pytest.raises(services.BalanceMoved, match=f"¥{payment.refundable():,}"):
        services.refund_payment(ask(payment), refundable=payment.refundable() + 1, by=operator)

    assert not Refund.objects.exists()


@override_settings(REFUND_MAX_AMOUNT=1000)
def test_amount_above_the_maximum_is_refused_for_all(payment: Payment, approver: User) -> None:
    with pytest.raises(services.AmountTooHigh, match="¥1,000"):
        refund(payment, approver, 1001)

    assert refund(payment, approver, 1000).state == State.SUCCEEDED


@override_settings(REFUND_APPROVAL_ABOVE=1000)
def test_amount_above_the_limit_waits_for_a_second_person(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    left = payment.refundable()

    waiting = refund(payment, operator, 1001)

    payment.refresh_from_db()
    assert (waiting.state, payment.reserved, payment.refundable()) == (
        State.AWAITING_APPROVAL,
        1001,
        left - 1001,
    )
    services.take_turn(waiting.pk, client=smartpay.client())
    assert not sandbox.requests("POST", "/v1/refunds")
    assert services.preview_refund(ask(payment, 999), by=operator).needs_approval is False


def test_viewer_and_the_deactivated_may_not_refund(payment: Payment, viewer: User, operator: User) -> None:
    with pytest.raises(PermissionDenied):
        refund(payment, viewer)
    operator.is_active = False
    with pytest.raises(PermissionDenied):
        refund(payment, operator)

    assert not Refund.objects.exists()


def test_preview_tells_what_would_be_left(payment: Payment, operator: User) -> None:
    preview = services.preview_refund(ask(payment, 300), by=operator)

    left = payment.refundable()
    assert (preview.refundable_before, preview.refundable_after, preview.similar) == (left, left - 300, [])


# --- Similar refunds ----------------------------------------------------------------------------------------


def test_refund_of_the_same_order_within_a_day_asks_for_a_reason(payment: Payment, operator: User) -> None:
    first = refund(payment, operator, 100)

    with pytest.raises(services.SimilarUnexplained):
        refund(payment, operator, 200)
    [similar] = services.similar_refunds(payment, 200, but=uuid.uuid4())
    assert (similar.refund, similar.person, similar.amount) == (first, operator, 100)


def test_refund_made_elsewhere_is_similar_too(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    sandbox.refund_elsewhere(payment.pk, 500)
    services.read_payment(payment.pk, client=smartpay.client())

    [similar] = services.similar_refunds(payment, 999, but=uuid.uuid4())

    assert (similar.refund, similar.person, similar.amount) == (None, None, 500)


@pytest.mark.parametrize(
    ("other", "amount", "found"),
    [
        ({"email": "tanaka@example.jp"}, 1000, True),
        ({"email": "tanaka@example.jp"}, 999, False),
        ({"email": "suzuki@example.jp"}, 1000, False),
    ],
)
def test_same_amount_to_the_same_customer_is_similar(
    operator: User, other: dict[str, Any], amount: int, found: bool
) -> None:
    earlier, now = make_order(5000), make_order(5000, **other)
    with override_settings(REFUND_APPROVAL_ABOVE=0):
        made = refund(earlier.payments.get(), operator, 1000)

    similar = services.similar_refunds(now.payments.get(), amount, but=uuid.uuid4())

    assert [each.refund for each in similar] == ([made] if found else [])


def test_customer_without_a_mail_is_told_by_name(operator: User) -> None:
    earlier, now = make_order(5000, email=""), make_order(5000, email="")
    stranger = make_order(5000, email="", name="")
    with override_settings(REFUND_APPROVAL_ABOVE=0):
        refund(earlier.payments.get(), operator, 1000)

    assert services.similar_refunds(now.payments.get(), 1000, but=uuid.uuid4())
    assert not services.similar_refunds(stranger.payments.get(), 1000, but=uuid.uuid4())


def test_refund_is_similar_from_when_the_money_left(
    payment: Payment, operator: User, approver: User, at: Clock
) -> None:
    with override_settings(REFUND_APPROVAL_ABOVE=0):
        waiting = refund(payment, operator, 1000)
        at.advance(days=6, hours=23)

        assert services.similar_refunds(payment, 999, but=uuid.uuid4())  # it may still leave
        services.approve(waiting.pk, by=approver)
    approved_at = at.now
    at.advance(days=2)

    [similar] = services.similar_refunds(payment, 1000, but=uuid.uuid4())
    assert (similar.refund, similar.at) == (waiting, approved_at)


def test_yesterdays_refund_of_another_amount_is_not_similar(
    payment: Payment, operator: User, at: Clock
) -> None:
    refund(payment, operator, 100)

    at.advance(hours=25)

    assert not services.similar_refunds(payment, 200, but=uuid.uuid4())
    assert services.similar_refunds(payment, 100, but=uuid.uuid4())
    at.advance(days=7)
    assert not services.similar_refunds(payment, 100, but=uuid.uuid4())


# --- What an answer means -----------------------------------------------------------------------------------

UNKNOWN_ANSWERS = [
    ("silent", {}, "AMBIGUOUS"),
    ("silent", {"executed": False}, "AMBIGUOUS"),
    ("reset", {}, "AMBIGUOUS"),
    ("reset", {"executed": False}, "AMBIGUOUS"),
    ("garbage", {}, "AMBIGUOUS"),
    ("html", {}, "AMBIGUOUS"),
    ("error", {}, "AMBIGUOUS"),
    ("error", {"executed": False, "status": 503}, "AMBIGUOUS"),
    ("truncated", {}, "AMBIGUOUS"),
    ("odd_status", {}, "AMBIGUOUS"),
    ("too_large", {}, "AMBIGUOUS"),
    ("rate_limited", {}, "LIMITED"),
    ("conflict", {}, "IN_PROGRESS"),
    ("forbidden", {}, "NOT_ACCEPTED"),
    ("redirect", {}, "AMBIGUOUS"),
]


@pytest.mark.parametrize(("mode", "options", "outcome"), UNKNOWN_ANSWERS)
def test_refund_is_unknown_whatever_the_answer_leaves_open(
    payment: Payment,
    operator: User,
    sandbox: Sandbox,
    quick: None,
    mode: str,
    options: dict[str, Any],
    outcome: str,
) -> None:
    left = payment.refundable()
    sandbox.fault(mode, **options)

    made = refund(payment, operator)

    payment.refresh_from_db()
    assert (made.state, made.attempts.get().outcome, made.smartpay_id) == (State.UNKNOWN, outcome, None)
    assert (payment.reserved, payment.refundable()) == (1000, left - 1000)
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1
    with pytest.raises(services.RefundUnsettled):
        refund(payment, operator, 100, similar_reason="別件")


@pytest.mark.parametrize(("mode", "options", "outcome"), UNKNOWN_ANSWERS)
def test_unknown_refund_is_settled_by_the_machine_and_made_once(
    payment: Payment,
    operator: User,
    sandbox: Sandbox,
    quick: None,
    at: Clock,
    mode: str,
    options: dict[str, Any],
    outcome: str,
) -> None:
    sandbox.fault(mode, **options)
    made = refund(payment, operator)
    sandbox.clear_faults()

    at.advance(hours=1)
    assert services.settle_due(client=smartpay.client()) == 1

    made.refresh_from_db()
    payment.refresh_from_db()
    [there] = at_smartpay(sandbox, payment)
    assert (made.state, made.smartpay_id) == (State.SUCCEEDED, there["id"])
    assert (payment.refunded, payment.reserved, payment.external) == (1000, 0, 0)
    keys = {sent["headers"]["idempotency-key"] for sent in sandbox.requests("POST", "/v1/refunds")}
    bodies = {str(sent["body"]) for sent in sandbox.requests("POST", "/v1/refunds")}
    assert (keys, len(bodies)) == ({str(made.pk)}, 1)


def test_refused_key_leaves_it_unknown_and_stops_all_sending(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("unauthorized")
    made = refund(payment, operator)
    assert (made.state, Control.sends_are_on()) == (State.UNKNOWN, False)

    at.advance(hours=1)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    assert (made.state, len(sandbox.requests("POST", "/v1/refunds"))) == (State.UNKNOWN, 1)

    call_command("sends", "on", reason="新しいキー", stdout=io.StringIO())
    at.advance(hours=1)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    assert made.state == State.SUCCEEDED


def test_smartpays_own_no_to_a_first_attempt_is_final(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    left = payment.refundable()
    sandbox.refund_elsewhere(payment.pk, left)  # nobody has told us yet

    made = refund(payment, operator)

    payment.refresh_from_db()
    assert (made.state, made.error_code) == (State.REJECTED, "amount.insufficient")
    assert (payment.reserved, payment.refunded) == (0, 0)


def test_no_to_a_later_attempt_settles_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    sandbox.switch(payments_list_refunds=False)
    scan(at)
    sandbox.refund_elsewhere(payment.pk, payment.captured)

    at.advance(minutes=10)
    services.take_turn(made.pk, client=smartpay.client())

    made.refresh_from_db()
    assert (made.state, made.attempt_no, made.error_code) == (State.UNKNOWN, 2, "amount.insufficient")


def test_refund_that_smartpay_calls_failed_is_rejected_with_its_id(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    left = payment.refundable()
    sandbox.fault("status_failed")

    made = refund(payment, operator)

    payment.refresh_from_db()
    [there] = at_smartpay(sandbox, payment)
    assert (there["status"], made.state, made.smartpay_id) == ("failed", State.REJECTED, there["id"])
    assert payment.refundable() == left


@pytest.mark.parametrize("mode", ["wrong_amount", "wrong_payment", "wrong_mode"])
def test_contradicting_answer_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, mode: str
) -> None:
    sandbox.fault(mode)

    made = refund(payment, operator)

    assert made.state == State.REVIEW
    with pytest.raises(services.RefundUnsettled):
        refund(payment, operator, 1, similar_reason="別件")
    at.advance(hours=1)
    assert services.settle_due(client=smartpay.client()) == 0


def test_answer_without_a_reference_is_ours_all_the_same(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    sandbox.fault("altered", values={"reference": None, "metadata": None, "status": None})

    made = refund(payment, operator)

    payment.refresh_from_db()
    assert (made.state, payment.refunded, payment.external) == (State.SUCCEEDED, 1000, 0)


# --- Turns --------------------------------------------------------------------------------------------------


def test_request_that_died_before_sending_is_sent_by_a_worker(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    assert services.settle_due(client=smartpay.client()) == 0  # the web request has a head start

    at.advance(seconds=6)
    assert services.settle_due(client=smartpay.client()) == 1

    made.refresh_from_db()
    assert (made.state, len(at_smartpay(sandbox, payment))) == (State.SUCCEEDED, 1)


@pytest.mark.parametrize("executed", [True, False])
def test_sender_that_died_leaves_unknown_and_a_worker_goes_on(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, executed: bool
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    attempt = sending.begin_attempt(made.pk, owner=NO_LEASE)
    assert attempt is not None
    if executed:
        sending.send(attempt, client=smartpay.client())  # and dies before it is booked

    assert services.settle_due(client=smartpay.client()) == 0  # its lease still holds
    at.advance(seconds=121)
    assert services.settle_due(client=smartpay.client()) == 1

    made.refresh_from_db()
    assert (made.state, len(at_smartpay(sandbox, payment))) == (State.SUCCEEDED, 1)
    assert made.attempt_no == (1 if executed else 2)
    assert AuditEntry.objects.filter(action="refund.unknown", object_id=made.pk).count() == 1


def test_same_form_again_sends_nothing_that_waits_for_a_worker(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    asked, left = ask(payment), payment.refundable()
    made = services.request_refund(asked, refundable=left, by=operator)

    again = services.refund_payment(asked, refundable=left, by=operator)

    assert (again, again.state) == (made, State.QUEUED)
    assert sandbox.requests("POST", "/v1/refunds") == []  # who sends it now reads before
    at.advance(seconds=5)
    work()
    assert Refund.objects.get().state == State.SUCCEEDED
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_intent_that_can_not_be_written_leaves_no_refund(
    payment: Payment, operator: User, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreadable() -> None:
        raise PermissionError

    asked, left = ask(payment), payment.refundable()
    with monkeypatch.context() as failing:
        failing.setattr(control, "_mark", unreadable)
        with pytest.raises(PermissionError):
            services.refund_payment(asked, refundable=left, by=operator)

    payment.refresh_from_db()
    assert (Refund.objects.exists(), payment.refundable()) == (False, left)
    assert AuditEntry.objects.filter(action__startswith="refund.").count() == 0
    made = services.refund_payment(asked, refundable=left, by=operator)  # the same form again
    assert (made.state, made.attempt_no) == (State.SUCCEEDED, 1)


def test_person_who_may_no_longer_refund_when_it_would_be_sent_sends_nothing(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    assert operator.has_perm("refunds.request_refund")  # looked up when the page was asked for
    User.objects.filter(pk=operator.pk).update(is_active=False)

    made = refund(payment, operator)

    assert (made.state, made.cancelled_because) == (State.CANCELLED, Refund.Cancelled.ENTITLEMENT)
    assert sandbox.requests("POST", "/v1/refunds") == []


def test_one_process_takes_the_turn(payment: Payment, operator: User, sandbox: Sandbox, at: Clock) -> None:
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    at.advance(hours=1)

    assert sending.take_lease(made.pk, owner="one")
    assert not sending.take_lease(made.pk, owner="two")
    assert sending.begin_attempt(made.pk, owner="two") is None
    services.take_turn(made.pk, client=smartpay.client())

    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_answer_that_comes_after_the_lease_is_only_recorded(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    slow = sending.begin_attempt(made.pk, owner=NO_LEASE)
    assert slow is not None
    at.advance(seconds=121)
    services.settle_due(client=smartpay.client())

    sending.book(slow, smartpay.Refused("no", http_status=403, error_code="amount.insufficient"))

    made.refresh_from_db()
    slow.refresh_from_db()
    assert (made.state, slow.outcome) == (State.SUCCEEDED, "REFUSED")


def test_refund_waits_for_the_one_before_it(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    second = services.request_refund(ask(payment, 100), refundable=payment.refundable(), by=operator)
    payment.refresh_from_db()
    sandbox.fault("reset", executed=False)
    first = refund(payment, operator, 200, similar_reason="別件")
    assert first.state == State.UNKNOWN

    at.advance(seconds=6)
    assert services.settle_due(client=smartpay.client()) == 0
    services.take_turn(second.pk, client=smartpay.client())
    second.refresh_from_db()
    assert second.state == State.QUEUED

    at.advance(hours=1)
    services.settle_due(client=smartpay.client())
    at.advance(hours=1)
    services.settle_due(client=smartpay.client())
    assert sorted(each["amount"] for each in at_smartpay(sandbox, payment)) == [100, 200]


def test_nothing_is_sent_while_sends_are_off(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox
) -> None:
    services.set_sends(enabled=False, reason="点検", by=approver)

    made = refund(payment, operator)

    assert (made.state, sandbox.requests("POST", "/v1/refunds")) == (State.QUEUED, [])


def test_refund_of_a_person_who_left_is_cancelled_before_it_is_sent(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    User.objects.filter(pk=operator.pk).update(is_active=False)

    at.advance(seconds=6)
    services.settle_due(client=smartpay.client())

    made.refresh_from_db()
    assert (made.state, made.cancelled_because) == (State.CANCELLED, Refund.Cancelled.ENTITLEMENT)
    assert not sandbox.requests("POST", "/v1/refunds")


def test_refund_of_a_person_who_left_is_not_sent_again_but_read(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    operator.groups.clear()

    at.advance(hours=1)
    services.settle_due(client=smartpay.client())

    made.refresh_from_db()
    assert (made.state, len(sandbox.requests("POST", "/v1/refunds"))) == (State.UNKNOWN, 1)


def test_clock_that_went_back_sends_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    Refund.objects.filter(pk=made.pk).update(next_check_at=at.now - timedelta(hours=2))

    at.advance(hours=-1)
    services.settle_due(client=smartpay.client())

    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_nothing_is_sent_after_five_hours_and_absence_is_proved_by_two_reads(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    left = payment.refundable()
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)

    at.advance(hours=5)
    services.settle_due(client=smartpay.client())
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1

    at.advance(hours=1, minutes=31)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    assert (made.state, made.absent_since) == (State.UNKNOWN, at.now)

    at.advance(minutes=14)
    Refund.objects.filter(pk=made.pk).update(next_check_at=at.now)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    assert made.state == State.UNKNOWN

    at.advance(minutes=20)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    payment.refresh_from_db()
    assert (made.state, payment.refundable()) == (State.NOT_EXECUTED, left)
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_silence_of_twelve_hours_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    sandbox.fault("html", method="GET", path="", times=None)

    at.advance(hours=11)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    assert made.state == State.UNKNOWN

    at.advance(hours=2)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    assert made.state == State.REVIEW


def test_pause_grows_and_heeds_smartpays_wish(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("rate_limited", seconds=600)

    made = refund(payment, operator)

    assert made.next_check_at == at.now + timedelta(seconds=600)
    for _turn in range(12):
        at.advance(hours=1)
        sandbox.fault("html", method="GET", path="", times=None)
        services.take_turn(made.pk, client=smartpay.client())
    made.refresh_from_db()
    assert made.next_check_at is not None
    assert timedelta(minutes=15) <= made.next_check_at - at.now <= timedelta(minutes=45)


# --- Payments that do not list their refunds ----------------------------------------------------------------


def scan(at: Clock) -> None:
    at.advance(seconds=1)
    scanning.scan_refunds(smartpay.client(), observe=services.observe_refund)


@pytest.mark.parametrize("executed", [True, False])
def test_without_a_list_a_scan_that_began_later_settles(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, executed: bool
) -> None:
    sandbox.switch(payments_list_refunds=False)
    sandbox.fault("reset", executed=executed)
    made = refund(payment, operator)
    assert not services.needs_full_scan()

    at.advance(hours=1)
    work()  # reads, finds no list, and scans
    at.advance(hours=1)
    work()

    made.refresh_from_db()
    assert (made.state, made.attempt_no) == (State.SUCCEEDED, 1 if executed else 2)
    assert len(at_smartpay(sandbox, payment)) == 1
    assert not services.needs_full_scan()


def test_absence_without_a_list_takes_two_scans_a_quarter_of_an_hour_apart(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.switch(payments_list_refunds=False)
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    at.advance(hours=6, minutes=31)
    seen = []

    for _turn in range(6):
        work()
        made.refresh_from_db()
        seen.append(made.state)
        at.advance(minutes=31)

    assert seen == [State.UNKNOWN, State.UNKNOWN, *[State.NOT_EXECUTED] * 4]
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


# --- Evidence -----------------------------------------------------------------------------------------------


def shown(
    refund: Refund, refund_id: str = "refund_test_0000000000000000000001", **other: Any
) -> smartpay.Refund:
    """Smartpay shows our refund."""
    facts: dict[str, Any] = {
        "id": refund_id,
        "payment": refund.payment_id,
        "amount": refund.amount,
        "currency": "JPY",
        "status": "succeeded",
        "reason": "requested_by_customer",
        "description": "",
        "reference": str(refund.pk),
        "metadata": {},
        "test": True,
        "created_at": clock.now(),
    }
    return smartpay.Refund(**(facts | other))


def observe(seen: smartpay.Refund) -> None:
    services.observe_refund(seen, read_at=clock.now())


def unknown(payment: Payment, by: User, sandbox: Sandbox) -> Refund:
    sandbox.fault("reset", executed=False)
    return refund(payment, by)


def test_evidence_settles_once(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    made = unknown(payment, operator, sandbox)

    for _time in range(3):
        observe(shown(made))

    made.refresh_from_db()
    assert (made.state, made.evidence.filter(found=True).count()) == (State.SUCCEEDED, 1)


def test_evidence_of_failure_frees_the_amount(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    made = unknown(payment, operator, sandbox)

    for _time in range(2):
        observe(shown(made, status="failed"))

    made.refresh_from_db()
    payment.refresh_from_db()
    assert (made.state, payment.reserved, made.evidence.count()) == (State.REJECTED, 0, 1)


def test_evidence_that_differs_is_for_people(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    made = unknown(payment, operator, sandbox)

    observe(shown(made, amount=999))
    made.refresh_from_db()
    assert made.state == State.REVIEW

    observe(shown(made, status="failed"))
    made.refresh_from_db()
    assert made.state == State.REVIEW

    observe(shown(made))
    made.refresh_from_db()
    assert made.state == State.SUCCEEDED


def test_refusal_that_was_none_after_all_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    sandbox.refund_elsewhere(payment.pk, payment.captured)
    made = refund(payment, operator)
    assert made.state == State.REJECTED

    observe(shown(made, status="failed"))
    made.refresh_from_db()
    assert made.state == State.REJECTED

    observe(shown(made))
    made.refresh_from_db()
    payment.refresh_from_db()
    assert (made.state, payment.reserved) == (State.REVIEW, 1000)


@pytest.mark.parametrize("failed_first", [True, False])
def test_second_execution_is_an_alarm(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any, failed_first: bool
) -> None:
    made = unknown(payment, operator, sandbox)
    observe(shown(made, status="failed" if failed_first else "succeeded"))

    observe(shown(made, "refund_test_0000000000000000000002"))

    made.refresh_from_db()
    assert "refund.two_executions" in caplog.text
    assert made.state == (State.REVIEW if failed_first else State.SUCCEEDED)


def test_refund_that_the_database_forgot_is_never_sent_again(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)

    observe(shown(made))
    at.advance(hours=1)
    services.settle_due(client=smartpay.client())

    made.refresh_from_db()
    assert (made.state, sandbox.requests("POST", "/v1/refunds")) == (State.SUCCEEDED, [])


def test_execution_of_a_withdrawn_refund_is_an_alarm(payment: Payment, operator: User, caplog: Any) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    services.withdraw(made.pk, by=operator)

    observe(shown(made, status="failed"))
    assert "executed_unasked" not in caplog.text
    observe(shown(made))

    made.refresh_from_db()
    assert "refund.executed_unasked" in caplog.text
    assert made.state == State.CANCELLED


def test_refund_made_elsewhere_takes_from_what_is_left(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    left = payment.refundable()
    made = sandbox.refund_elsewhere(payment.pk, 300)

    services.read_payment(payment.pk, client=smartpay.client())

    payment.refresh_from_db()
    assert (payment.external, payment.refundable()) == (300, left - 300)
    assert SmartpayRefund.objects.get(pk=made["id"]).ours is None


def test_waiting_refund_that_no_longer_fits_is_cancelled(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    older = services.request_refund(ask(payment, 100), refundable=payment.refundable(), by=operator)
    payment.refresh_from_db()
    newer = services.request_refund(
        ask(payment, 200), refundable=payment.refundable(), by=operator, similar_reason="別件"
    )
    sandbox.refund_elsewhere(payment.pk, payment.captured - 150)

    services.read_payment(payment.pk, client=smartpay.client())

    older.refresh_from_db()
    newer.refresh_from_db()
    payment.refresh_from_db()
    assert (older.state, newer.state) == (State.QUEUED, State.CANCELLED)
    assert (newer.cancelled_because, payment.refundable()) == (Refund.Cancelled.BALANCE, 50)


def test_refund_that_no_longer_fits_when_its_turn_comes_is_cancelled(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    Payment.objects.filter(pk=payment.pk).update(captured=999)

    services.take_turn(made.pk, client=smartpay.client(), first=True)

    made.refresh_from_db()
    assert (made.state, made.cancelled_because) == (State.CANCELLED, Refund.Cancelled.BALANCE)
    assert not sandbox.requests("POST", "/v1/refunds")


def test_refund_of_a_payment_not_mirrored_yet_is_kept(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)

    observe(shown(made, payment="payment_test_neverSeen0000000000", reference="", metadata={}))

    assert SmartpayRefund.objects.get().ours is None


# --- Withdrawing --------------------------------------------------------------------------------------------


def test_own_unsent_refund_can_be_withdrawn(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    left = payment.refundable()
    made = services.request_refund(ask(payment), refundable=left, by=operator)

    withdrawn = services.withdraw(made.pk, by=operator)

    payment.refresh_from_db()
    assert (withdrawn.state, withdrawn.label, payment.refundable()) == (State.CANCELLED, "取り下げ", left)


def test_what_was_sent_or_is_anothers_can_not_be_withdrawn(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox
) -> None:
    made = refund(payment, operator)

    with pytest.raises(services.NotWaiting):
        services.withdraw(made.pk, by=operator)
    with pytest.raises(PermissionDenied):
        services.withdraw(made.pk, by=approver)


# --- The trail ----------------------------------------------------------------------------------------------


def test_every_step_of_a_refund_is_on_the_trail(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    made = refund(payment, operator, description="サイズ交換のため")

    entries = list(AuditEntry.objects.filter(object_id=made.pk).order_by("id").values_list("action", "actor"))
    assert entries == [
        ("refund.requested", operator.pk),
        ("refund.sending", None),
        ("refund.succeeded", None),
    ]
    assert set(AuditEntry.objects.filter(object_id=made.pk).values_list("order_id", flat=True)) == {
        payment.order.order_id
    }
    assert "サイズ" not in "".join(AuditEntry.objects.values_list("text", flat=True))


# --- Workers ------------------------------------------------------------------------------------------------


def test_worker_that_is_told_to_stop_takes_no_further_turn(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    at.advance(seconds=6)

    services.settle_due(client=smartpay.client(), stop=lambda: True)

    made.refresh_from_db()
    assert (made.state, sandbox.requests("POST", "/v1/refunds")) == (State.QUEUED, [])


def test_settle_refunds_takes_every_turn_that_is_due(payment: Payment, operator: User, at: Clock) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    at.advance(seconds=6)
    told = io.StringIO()

    call_command("settle_refunds", stdout=told)

    made.refresh_from_db()
    assert (made.state, told.getvalue()) == (State.SUCCEEDED, "refunds due: 1\n")


def test_settle_refunds_says_that_smartpay_can_not_be_read(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PAUSES", ())
    Control.objects.create(restored_at=clock.now())  # the fence: all refunds are to be read

    with pytest.raises(CommandError, match=r"\(NOT_SENT HTTP -\)"):  # nothing listens there
        call_command("settle_refunds", stdout=io.StringIO())


def test_refund_whose_turn_breaks_keeps_no_other_waiting(
    operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    payments = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in (0, 1)]
    broken, sound = (
        services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
        for payment in payments
    )
    at.advance(seconds=6)
    real = sending.send

    def send(attempt: Any, **more: Any) -> Any:
        if attempt.refund_id == broken.pk:
            raise ZeroDivisionError(attempt.refund.memo)
        return real(attempt, **more)

    monkeypatch.setattr(sending, "send", send)
    services.settle_due(client=smartpay.client())

    for each in (broken, sound):
        each.refresh_from_db()
    assert (broken.state, sound.state) == (State.SENDING, State.SUCCEEDED)
    assert "refund.turn_failed" in caplog.text
    monkeypatch.setattr(sending, "send", real)
    at.advance(seconds=121)
    services.settle_due(client=smartpay.client())
    broken.refresh_from_db()
    assert broken.state == State.SUCCEEDED


def test_clock_that_goes_back_after_the_read_sends_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = unknown(payment, operator, sandbox)
    at.advance(hours=1)
    assert sending.take_lease(made.pk, owner="one")

    at.advance(hours=-2)

    assert sending.begin_attempt(made.pk, owner="one") is None


def test_scan_is_shared_and_repeated_only_for_what_was_sent_since(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.switch(payments_list_refunds=False)
    made = unknown(payment, operator, sandbox)
    at.advance(minutes=20)
    services.take_turn(made.pk, client=smartpay.client())
    assert services.needs_full_scan()

    scan(at)
    assert not services.needs_full_scan()
    at.advance(minutes=1)
    sandbox.fault("reset", executed=False)
    services.take_turn(made.pk, client=smartpay.client())
    assert services.needs_full_scan()


def test_mirror_is_old_a_day_after_its_last_whole_reading(sandbox: Sandbox, db: None, at: Clock) -> None:
    assert not scanning.is_older_than(timedelta(hours=24))
    scanning.sync(smartpay.client(), observe=services.observe_refund)

    assert not scanning.is_older_than(timedelta(hours=24))
    at.advance(hours=25)
    assert scanning.is_older_than(timedelta(hours=24))


def test_order_read_shows_its_refunds_made_elsewhere(payment: Payment, sandbox: Sandbox) -> None:
    sandbox.refund_elsewhere(payment.pk, 300)

    services.read_order(payment.order.order_id, client=smartpay.client())

    payment.refresh_from_db()
    assert payment.external == 300


def test_what_was_asked_for_again_is_not_sent_where_the_first_was_made_after_all(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("altered", values={"status": "failed"})  # so says the answer; it was made
    first = refund(payment, operator)
    assert first.state == State.REJECTED
    services.set_sends(enabled=False, reason="調査中", by=approver)
    again = refund(payment, operator)
    assert again.state == State.QUEUED
    scan(at)
    for person in (approver, make_user("approver")):
        services.decide_case(first.pk, verdict="succeeded", smartpay_id=first.smartpay_id or "", note="確認済み",
                             by=person, client=smartpay.client())  # fmt: skip
    services.set_sends(enabled=True, reason="再開", by=approver)
    at.advance(hours=1)
    work()

    again.refresh_from_db()
    assert len(at_smartpay(sandbox, payment)) == 1
    assert (again.state, again.cancelled_because) == (State.CANCELLED, Refund.Cancelled.BALANCE)


def test_similar_refund_is_told_where_a_withdrawn_one_was_made_all_the_same(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    services.withdraw(made.pk, by=operator)
    sandbox.refund(payment.pk, 1000, idempotency_key=str(made.pk), reference=str(made.pk))
    services.read_order(payment.order.order_id, client=smartpay.client())
    payment.refresh_from_db()
    assert payment.external == 1000  # the money is gone

    assert [each.amount for each in services.preview_refund(ask(payment), by=operator).similar] == [1000]


def test_refund_made_elsewhere_is_noticed_though_an_older_one_failed_meanwhile(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    older = sandbox.refund_elsewhere(payment.pk, 1000)
    services.read_order(payment.order.order_id, client=smartpay.client())
    Control.objects.create(sends_enabled=False)
    waiting = refund(payment, operator, 800, similar_reason="別の返品")
    sandbox.set(older["id"], status="failed")
    pass_time(at, sandbox, minutes=1)
    sandbox.refund_elsewhere(payment.pk, 800)  # by hand, since sending is stopped here
    scan(at)
    Control.objects.update(sends_enabled=True)
    at.advance(hours=1)
    work()

    waiting.refresh_from_db()
    assert (waiting.state, waiting.cancelled_because) == (State.CANCELLED, Refund.Cancelled.BALANCE)
