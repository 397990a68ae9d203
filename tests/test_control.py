"""Whether anything may be sent at all: the breaker, the restore fence, the switch."""

import itertools
import uuid
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import requests
from django.core.management import CommandError, call_command
from django.db import OperationalError

from dashboard.models import User
from refunds import clock, mirror, services, smartpay
from refunds.models import Attempt, AuditEntry, Control, Payment, Refund, SmartpayRefund
from refunds.services import control, states
from tests.conftest import Clock
from tests.sandbox import Sandbox
from tests.test_services import at_smartpay, mirrored, observe, pass_time, refund, shown, unknown, work

State = Refund.State


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    return mirrored(sandbox, "refundable", min_amount=2000)


# --- The circuit breaker ------------------------------------------------------------------------------------


def silence(payments: list[Payment], by: User, sandbox: Sandbox) -> list[Refund]:
    """A refund of each, and none of them answered."""
    sandbox.fault("reset", method="POST", times=len(payments), executed=False)
    return [refund(payment, by) for payment in payments]


@pytest.fixture
def payments(db: None, sandbox: Sandbox) -> list[Payment]:
    return [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in range(7)]


def test_five_silences_let_one_probe_a_minute_leave(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock, caplog: Any
) -> None:
    *five, sixth, seventh = payments
    silence(five, operator, sandbox)
    assert "smartpay.silent" in caplog.text

    waiting = refund(sixth, operator)
    assert (waiting.state, len(sandbox.requests("POST", "/v1/refunds"))) == (State.QUEUED, 5)

    at.advance(seconds=61)
    probe = refund(seventh, operator)
    assert (probe.state, len(sandbox.requests("POST", "/v1/refunds"))) == (State.SUCCEEDED, 6)
    at.advance(hours=1)
    work()
    waiting.refresh_from_db()
    assert waiting.state == State.SUCCEEDED  # the probe was answered


def test_four_silences_are_no_outage(payments: list[Payment], operator: User, sandbox: Sandbox) -> None:
    silence(payments[:4], operator, sandbox)

    assert refund(payments[4], operator).state == State.SUCCEEDED


def test_what_a_person_types_is_never_taken_for_the_machines_own_word(approver: User) -> None:
    services.set_sends(enabled=False, reason="restored", by=approver)

    assert Control.objects.get().why == "restored"


def test_reading_goes_on_while_the_breaker_is_open(
    payments: list[Payment], operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("reset", method="POST", times=5)  # done, and the answer lost
    made = [refund(payment, operator) for payment in payments[:5]]
    at.advance(seconds=50)

    work()

    assert {Refund.objects.get(pk=each.pk).state for each in made} == {State.SUCCEEDED}


# --- The restore fence --------------------------------------------------------------------------------------


def forget_the_last_attempt() -> None:
    """What a restored database shows: fewer attempts than were seen."""
    control.remember((Attempt.objects.order_by("-pk").values_list("pk", flat=True).first() or 0) + 1)


def test_nothing_is_sent_from_a_database_that_was_restored(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any
) -> None:
    forget_the_last_attempt()

    made = refund(payment, operator)

    assert (made.state, sandbox.requests("POST", "/v1/refunds")) == (State.QUEUED, [])
    assert not Control.sends_are_on()
    assert AuditEntry.objects.get(action="sends.stopped").data["cause"] == "restored"
    assert "ledger.restored" in caplog.text


def test_fence_is_lifted_by_a_person_after_everything_was_read(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    forget_the_last_attempt()
    services.watch()
    made = refund(payment, operator)
    with pytest.raises(CommandError):
        call_command("sends", "on", "--reason", "確認済み")

    at.advance(minutes=46)
    work()
    services.set_sends(enabled=True, reason="確認済み", by=approver)
    work()

    made.refresh_from_db()
    assert (made.state, len(at_smartpay(sandbox, payment))) == (State.SUCCEEDED, 1)
    services.watch()
    assert Control.sends_are_on()  # what was accepted is not noticed again


def test_sending_is_not_resumed_before_anybody_noticed_the_restore(db: None) -> None:
    forget_the_last_attempt()

    with pytest.raises(services.NotReconciled):
        services.set_sends(enabled=True, reason="確認済み")


def test_restore_to_before_an_accepted_one_is_noticed_as_well(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    forget_the_last_attempt()
    services.watch()
    at.advance(minutes=46)
    work()
    services.set_sends(enabled=True, reason="確認済み", by=approver)
    services.watch()

    Control.objects.update(restore_accepted_at=None)  # as the older database has it
    services.watch()

    assert not Control.sends_are_on()


def test_attempt_is_remembered_before_its_request_leaves(
    payment: Payment, operator: User, sandbox: Sandbox, settings: Any
) -> None:
    sandbox.fault("reset")
    made = refund(payment, operator)

    assert control._mark().attempt == made.attempts.get().pk


def test_mark_that_cannot_be_written_stops_the_sending(
    payment: Payment, operator: User, sandbox: Sandbox, settings: Any, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    settings.STATE_DIR = tmp_path / "file" / "directory"

    with pytest.raises(NotADirectoryError):
        refund(payment, operator)

    assert not sandbox.requests("POST", "/v1/refunds")


@pytest.mark.postgresql
def test_another_cluster_or_timeline_is_a_restore(payment: Payment) -> None:
    services.watch()
    assert Control.sends_are_on()
    assert Control.objects.get().cluster == control._ledger()[0]

    Control.objects.update(cluster="7000000000000000000/00000001")
    services.watch()

    assert not Control.sends_are_on()


def test_fence_stays_up_until_it_is_lifted(payment: Payment, operator: User, sandbox: Sandbox) -> None:
    forget_the_last_attempt()
    services.watch()
    raised = Control.objects.get().restored_at

    services.watch()
    Control.objects.update(sends_enabled=True)  # by hand, past the service
    made = refund(payment, operator)

    assert (made.state, Control.objects.get().restored_at) == (State.QUEUED, raised)


# --- What the ledger lost -----------------------------------------------------------------------------------


def lost(payment: Payment, **other: Any) -> smartpay.Refund:
    """A refund of ours that Smartpay shows and the ledger does not have."""
    ghost = Refund(payment=payment, amount=700)
    return shown(ghost, metadata={"refund_dashboard_id": str(ghost.pk)}, **other)


def test_refund_that_the_ledger_lost_is_written_anew(payment: Payment, sandbox: Sandbox, caplog: Any) -> None:
    left = payment.refundable()
    seen = lost(payment)

    observe(seen)
    observe(seen)

    made = Refund.objects.get()
    payment.refresh_from_db()
    assert (made.state, made.recovered, made.smartpay_id) == (State.SUCCEEDED, True, seen.id)
    assert (payment.refunded, payment.external, payment.refundable()) == (700, 0, left - 700)
    assert SmartpayRefund.objects.get().ours == made
    assert AuditEntry.objects.filter(action="refund.recovered").count() == 1
    assert "refund.recovered" in caplog.text
    assert not made.requested_by.is_active


def test_lost_refund_of_an_order_that_was_lost_too_is_found_later(db: None, sandbox: Sandbox) -> None:
    order = sandbox.find("refundable", min_amount=2000)
    ghost = Refund(payment_id=order["payments"][0]["id"], amount=700)
    seen = shown(ghost, metadata={"refund_dashboard_id": str(ghost.pk)})
    observe(seen)
    assert not Refund.objects.exists()

    services.read_order(order["order"], client=smartpay.client())
    assert mirror._booked([seen.id]) == set()  # so it is read again
    observe(seen)

    assert Refund.objects.get().recovered
    assert mirror._booked([seen.id]) == {seen.id}


@pytest.mark.parametrize("other", [{"status": "failed"}, {"currency": "USD"}, {"metadata": {}}])
def test_what_no_row_could_stand_for_is_no_lost_refund(payment: Payment, other: dict[str, Any]) -> None:
    observe(lost(payment) if not other else shown(Refund(payment=payment, amount=700), **other))

    assert not Refund.objects.exists()


# --- The switch ---------------------------------------------------------------------------------------------


def test_who_waited_for_the_switch_waits_no_longer(
    payment: Payment, operator: User, approver: User, at: Clock
) -> None:
    services.set_sends(enabled=False, reason="点検", by=approver)
    made = refund(payment, operator)
    for _turn in range(8):  # its pauses grow
        at.advance(hours=1)
        work()

    services.set_sends(enabled=True, reason="点検終わり", by=approver)
    work()

    made.refresh_from_db()
    assert made.state == State.SUCCEEDED


# --- Transactions that the database gives up ----------------------------------------------------------------


class Deadlock(Exception):
    sqlstate = "40P01"


class Busy(Exception):
    sqlite_errorname = "SQLITE_BUSY"


class Gone(Exception):
    sqlstate = "57P01"


@pytest.mark.parametrize(
    ("cause", "failures", "tries"), [(Deadlock, 2, 3), (Busy, 1, 2), (Deadlock, 3, 3), (Gone, 1, 1)]
)
def test_step_is_tried_three_times_where_it_was_rolled_back(
    cause: type[Exception], failures: int, tries: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    calls = itertools.count(1)

    def step() -> str:
        if (call := next(calls)) <= failures:
            raise OperationalError from cause()
        return f"done at {call}"

    if tries > failures:
        assert states.retried(step)() == f"done at {tries}"
    else:
        with pytest.raises(OperationalError):
            states.retried(step)()
        assert next(calls) == tries + 1


# --- When it is looked for ----------------------------------------------------------------------------------


@pytest.mark.parametrize("listed", [True, False])
def test_absence_is_proved_within_seven_hours(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, listed: bool
) -> None:
    sandbox.switch(payments_list_refunds=listed)
    sandbox.fault("html", method="POST", times=None, executed=False)
    made = unknown(payment, operator, sandbox)
    started = clock.now()

    while made.state == State.UNKNOWN and clock.now() < started + timedelta(hours=8):
        at.advance(seconds=20)
        work()
        made.refresh_from_db()

    assert made.state == State.NOT_EXECUTED
    assert clock.now() - started < timedelta(hours=7)


def test_refund_that_names_a_row_of_another_payment_is_not_lost(
    payments: list[Payment], operator: User, sandbox: Sandbox
) -> None:
    made = refund(payments[0], operator)
    names = {"refund_dashboard_id": str(made.pk)}

    observe(shown(made, payment=payments[1].pk, reference="", metadata=names))

    assert Refund.objects.get() == made


def test_fence_that_two_notice_at_once_is_raised_once(db: None) -> None:
    forget_the_last_attempt()
    services.watch()

    control._raise_fence(0, control.Mark())

    assert AuditEntry.objects.filter(action="sends.stopped").count() == 1


def lose_a_refund(payment: Payment, sandbox: Sandbox) -> str:
    """A failover forgot it: Smartpay was asked a moment ago, and the ledger has neither row nor attempt."""
    lost = str(uuid.uuid4())
    with suppress(requests.RequestException):
        sandbox.refund(
            payment.pk,
            1000,
            idempotency_key=lost,
            reference=lost,
            metadata={"refund_dashboard_id": lost},
            timeout=1,
        )
    forget_the_last_attempt()
    services.watch()
    return lost


def test_what_was_asked_for_again_before_the_lost_refund_was_found_is_not_sent(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    lost = lose_a_refund(payment, sandbox)
    again = refund(payment, operator)
    assert again.state == State.QUEUED
    for _ in range(2):
        at.advance(minutes=46)
        services.scan_if_needed(client=smartpay.client())
    assert Refund.objects.get(pk=lost).recovered
    services.set_sends(enabled=True, reason="すべて読み取った", by=approver)
    at.advance(minutes=1)
    work()

    again.refresh_from_db()
    assert len(at_smartpay(sandbox, payment)) == 1
    assert (again.state, again.cancelled_because) == (State.CANCELLED, Refund.Cancelled.BALANCE)


@pytest.mark.parametrize("hidden", ["lag", "held"])
def test_fence_is_not_lifted_before_what_was_sent_last_can_be_seen(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock, hidden: str
) -> None:
    if hidden == "lag":
        sandbox.switch(read_lag_seconds=600)
    else:
        sandbox.fault("held")
    lose_a_refund(payment, sandbox)
    pass_time(at, sandbox, minutes=1)
    work()  # reads all that Smartpay shows
    with suppress(services.NotReconciled):
        services.set_sends(enabled=True, reason="確認済み", by=approver)
    services.read_order(payment.order.order_id, client=smartpay.client())
    refund(payment, operator)  # whose refund is gone from every page; none is called similar
    sandbox.release()
    pass_time(at, sandbox, minutes=12)

    assert len(at_smartpay(sandbox, payment)) == 1
