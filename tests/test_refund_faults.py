"""Faults between the lines: sleepers, liars, forgotten rows, leases lost, lists that fail."""

import contextlib
import dataclasses
import json
import socket
import threading
import time
import uuid
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import pytest
from django.db import DatabaseError, IntegrityError, connection, connections, transaction
from django.test.utils import CaptureQueriesContext

from dashboard.models import User
from refunds import clock, mirror, scanning, services, smartpay
from refunds.models import Attempt, AuditEntry, Control, Order, Payment, Refund
from refunds.services import approving, control, observing, sending
from tests.conftest import Clock, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_approvals import fresh
from tests.test_services import ask, at_smartpay, mirrored, observe, refund, scan, shown, unknown, work
from tests.test_views import form_url, hidden, typed

State = Refund.State


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    return mirrored(sandbox, "refundable", min_amount=2000)


# --- A sender that sleeps between its commit and its first byte


def test_sender_that_slept_past_its_key_refunds_nothing_again(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = sending.send
    asleep: list[Attempt] = []

    def slept(attempt: Attempt, *, client: smartpay.Client) -> Any:
        if not asleep:
            asleep.append(attempt)
            for hours in (1, 7):
                at.advance(hours=hours)
                sandbox.advance(hours * 3600)
                services.settle_due(client=client)  # a worker takes over at once, and refunds
        return send(attempt, client=client)

    monkeypatch.setattr(sending, "send", slept)

    refund(payment, operator)

    assert len(at_smartpay(sandbox, payment)) == 1


def test_sender_that_slept_while_it_wrote_down_its_attempt_sends_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    remember = control.remember

    def slowly(attempt: int) -> None:
        remember(attempt)
        at.advance(minutes=15)

    monkeypatch.setattr(control, "remember", slowly)

    made = refund(payment, operator)

    assert (made.state, sandbox.requests("POST", "/v1/refunds")) == (State.UNKNOWN, [])


def test_sender_that_slept_until_absence_was_proved_sends_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    send = sending.send
    asleep: list[Attempt] = []

    def slept(attempt: Attempt, *, client: smartpay.Client) -> Any:
        if not asleep:
            asleep.append(attempt)
            for _turn in range(4):
                at.advance(hours=7)
                sandbox.advance(7 * 3600)
                services.settle_due(client=client)
            assert Refund.objects.get().state == State.NOT_EXECUTED  # and a person may refund anew
        return send(attempt, client=client)

    monkeypatch.setattr(sending, "send", slept)

    refund(payment, operator)

    assert not at_smartpay(sandbox, payment)


def test_nothing_leaves_after_the_deadline(
    payment: Payment, operator: User, sandbox: Sandbox, quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_up = socket.getaddrinfo

    def hangs(*args: Any, **kwargs: Any) -> Any:
        time.sleep(2)
        return look_up(*args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", hangs)
    made = refund(payment, operator)
    assert made.state == State.UNKNOWN

    time.sleep(2)
    monkeypatch.undo()
    assert not at_smartpay(sandbox, payment)


# --- A status that nobody knows


def test_status_that_we_do_not_know_is_not_success_when_read(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("odd_status")
    made = refund(payment, operator)
    [there] = at_smartpay(sandbox, payment)
    sandbox.set(there["id"], status="processing")

    at.advance(hours=1)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    assert made.state == State.UNKNOWN

    sandbox.set(there["id"], status="failed")
    at.advance(hours=1)
    services.settle_due(client=smartpay.client())
    made.refresh_from_db()
    assert made.state == State.REJECTED


def test_success_that_smartpay_takes_back_is_an_alarm(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any
) -> None:
    made = refund(payment, operator)
    caplog.clear()

    observe(shown(made, made.smartpay_id or "", status="failed"))

    assert "'alarm': True" in caplog.text


# --- Workers that die


@pytest.mark.parametrize("mode", ["unauthorized", "html"])
def test_scan_that_fails_does_not_end_the_worker(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "PAUSES", ())
    sandbox.switch(payments_list_refunds=False)
    sandbox.fault("reset", executed=False)
    refund(payment, operator)
    sandbox.fault(mode, method="GET", path="/v1/refunds", times=None)
    at.advance(hours=1)

    assert services.settle_due(client=smartpay.client()) == 1


def test_row_that_can_not_be_read_keeps_no_other_waiting(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = mirrored(sandbox, "refundable", min_amount=2000, skip=3)
    services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    good = services.request_refund(ask(other), refundable=other.refundable(), by=operator)
    refresh = mirror.refresh_payment

    def poisoned(payment_id: str, client: smartpay.Client) -> Any:
        if payment_id == payment.pk:
            raise ValueError("what no database can keep")
        return refresh(payment_id, client)

    monkeypatch.setattr(mirror, "refresh_payment", poisoned)
    at.advance(seconds=6)

    services.settle_due(client=smartpay.client())

    good.refresh_from_db()
    assert good.state == State.SUCCEEDED


# --- IntegrityErrors where the table says review


def test_answer_with_the_id_of_another_refund_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    first = refund(payment, operator, 500)
    sandbox.fault("altered", values={"id": first.smartpay_id, "reference": None, "metadata": None})

    second = refund(payment, operator, 500, similar_reason="別件")

    assert second.state == State.REVIEW


def test_forgotten_refund_beside_one_in_flight_is_booked(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    forgotten = services.request_refund(ask(payment, 100), refundable=payment.refundable(), by=operator)
    payment.refresh_from_db()
    assert unknown_beside(payment, operator, sandbox).state == State.UNKNOWN

    observe(shown(forgotten))

    forgotten.refresh_from_db()
    assert forgotten.state in (State.SUCCEEDED, State.REVIEW)


def unknown_beside(payment: Payment, by: User, sandbox: Sandbox) -> Refund:
    sandbox.fault("reset", executed=False)
    return refund(payment, by, 200, similar_reason="別件")


def test_waiting_refund_that_smartpay_has_is_never_sent(
    payment: Payment, operator: User, sandbox: Sandbox, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 0
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)

    observe(shown(made))

    made.refresh_from_db()
    assert made.state != State.AWAITING_APPROVAL  # approved now, it would be sent


# --- Told "not executed" though it may have been


def test_absence_is_not_proved_beside_a_refund_that_could_be_it(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("reset")
    made = refund(payment, operator)
    [there] = at_smartpay(sandbox, payment)
    sandbox.api("PATCH", f"/refunds/{there['id']}", json={"reference": "shop-17", "metadata": {}})

    at.advance(hours=7)
    for _turn in range(6):
        services.settle_due(client=smartpay.client())
        at.advance(hours=1)

    made.refresh_from_db()
    assert made.state == State.REVIEW


def test_list_without_what_we_know_is_not_complete(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.refund_elsewhere(payment.pk, 1)
    services.read_payment(payment.pk, client=smartpay.client())
    sandbox.fault("reset")
    made = refund(payment, operator, similar_reason="別件")
    sandbox.fault(
        "altered", method="GET", path=f"/v1/payments/{payment.pk}", values={"refunds": []}, times=None
    )

    at.advance(hours=7)
    for _turn in range(6):
        services.settle_due(client=smartpay.client())
        at.advance(hours=1)

    made.refresh_from_db()
    assert made.state != State.NOT_EXECUTED


def test_our_reference_on_another_payment_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    other = mirrored(sandbox, "refundable", min_amount=2000, skip=3)
    made = unknown(payment, operator, sandbox)

    observe(shown(made, payment=other.pk))

    made.refresh_from_db()
    assert made.state == State.REVIEW


# --- First turns, leases, pauses


def test_first_turn_that_comes_late_sends_nothing_unread(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    at.advance(seconds=6)
    sandbox.fault("rate_limited", seconds=600)
    services.settle_due(client=smartpay.client())

    services.take_turn(made.pk, client=smartpay.client(), first=True)

    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_turn_that_was_just_taken_is_not_taken_again(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    at.advance(seconds=6)
    [listed_by_two] = services.due().values_list("pk", flat=True)
    sandbox.fault("rate_limited", seconds=600)
    services.take_turn(listed_by_two, client=smartpay.client())

    at.advance(seconds=1)
    services.take_turn(listed_by_two, client=smartpay.client())

    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_reader_that_lost_its_lease_leaves_the_senders_alone(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    at.advance(hours=1)

    def slow(payment_id: str, *, client: smartpay.Client) -> bool:
        at.advance(seconds=121)
        assert sending.take_lease(made.pk, owner="another")
        assert sending.begin_attempt(made.pk, owner="another")
        raise smartpay.Unclear("No answer within the deadline.")

    monkeypatch.setattr(observing, "read_payment", slow)
    services.take_turn(made.pk, client=smartpay.client())

    made.refresh_from_db()
    assert (made.state, made.lease_owner) == (State.SENDING, "another")


# --- Silence


def test_unknown_whose_scans_fail_for_twelve_hours_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scanning, "PAUSES", ())
    sandbox.switch(payments_list_refunds=False)
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator)
    sandbox.fault("html", method="GET", path="/v1/refunds", times=None)

    for _turn in range(20):
        at.advance(hours=1)
        with contextlib.suppress(smartpay.SmartpayError):
            work()

    made.refresh_from_db()
    assert made.state == State.REVIEW


def test_rotated_key_is_an_alarm_when_a_read_hears_it_first(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, caplog: Any
) -> None:
    sandbox.fault("reset", executed=False)
    refund(payment, operator)
    sandbox.fault("unauthorized", method=None, path="", times=None)
    caplog.clear()

    at.advance(hours=1)
    services.settle_due(client=smartpay.client())

    assert "'alarm': True" in caplog.text
    assert not Control.sends_are_on()


# --- Sums


def test_executed_refund_that_was_cancelled_here_is_not_left_to_refund(
    payment: Payment, operator: User
) -> None:
    left = payment.refundable()
    made = services.request_refund(ask(payment), refundable=left, by=operator)
    services.withdraw(made.pk, by=operator)

    observe(shown(made))

    payment.refresh_from_db()
    assert payment.refundable() == left - 1000
    page = sign_in(operator).get(f"/refunds/{made.pk}/").content.decode()
    assert "お金は動いていません" not in page


# --- 500s that leave nothing behind


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_one_id_for_two_payments_at_once_is_a_conflict(sandbox: Sandbox) -> None:
    person = make_user("operator")
    pair = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in (0, 3)]

    def click(
        chosen: Payment, same: uuid.UUID, start: threading.Barrier, told: list[services.RefundError]
    ) -> None:
        try:
            start.wait(5)
            chosen.refresh_from_db()
            services.request_refund(
                ask(chosen, 1, request_id=same),
                refundable=chosen.refundable(),
                by=User.objects.get(pk=person.pk),
                similar_reason="別件",
            )
        except services.RefundError as error:
            told.append(error)
        finally:
            connections.close_all()

    for _round in range(20):
        told: list[services.RefundError] = []
        same, start = uuid.uuid4(), threading.Barrier(2)
        threads = [threading.Thread(target=click, args=(each, same, start, told)) for each in pair]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [type(error) for error in told] == [services.RequestReused]


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_of_two_who_ask_at_once_for_two_payments_of_an_order_one_is_told_of_the_other(
    sandbox: Sandbox,
) -> None:
    people = [make_user("operator"), make_user("operator")]
    order = mirrored(sandbox, "several_payments").order
    pair = order.payments.all()[:2]

    def press(payment: Payment, by: User, start: threading.Barrier, told: list[services.RefundError]) -> None:
        try:
            start.wait(5)
            services.request_refund(ask(payment, 1), refundable=payment.refundable(), by=by)
        except services.RefundError as error:
            told.append(error)
        finally:
            connections.close_all()

    for _round in range(20):
        told: list[services.RefundError] = []
        start = threading.Barrier(2)
        threads = [
            threading.Thread(target=press, args=(payment, by, start, told))
            for payment, by in zip(pair, people, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        [made] = Refund.objects.filter(state__in=Refund.NEVER_SENT)
        assert [type(error) for error in told] == [services.SimilarUnexplained]
        services.withdraw(made.pk, by=made.requested_by)


def test_stop_with_a_long_reason_stops(db: None) -> None:
    services.set_sends(enabled=False, reason="点検" * 150)

    assert not Control.sends_are_on()


def test_row_that_the_database_refuses_is_no_refund_and_no_conflict(payment: Payment, operator: User) -> None:
    nothing: Any = None
    asked = ask(payment, description=nothing)

    with pytest.raises(IntegrityError):
        services.request_refund(asked, refundable=payment.refundable(), by=operator)

    assert not Refund.objects.exists()


def test_refund_that_found_a_scan_done_by_others_asks_for_the_next_one(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.switch(payments_list_refunds=False)
    made = unknown(payment, operator, sandbox)
    at.advance(hours=7)
    scan(at)  # for another refund, or the daily one

    services.take_turn(made.pk, client=smartpay.client())
    at.advance(minutes=16)

    assert services.needs_full_scan()


# --- What was refunded elsewhere while a refund waited to be sent


def forgotten(made: Refund, sandbox: Sandbox, **other: Any) -> dict[str, Any]:
    """What Smartpay keeps of a refund whose sending a restored database has forgotten."""
    body = json.loads(made.body) | other
    told = {name: value for name, value in body.items() if value is not None}
    answer: dict[str, Any] = sandbox.api("POST", "/refunds", json=told, idempotency_key=str(made.pk)).json()
    return answer


def test_refund_that_waited_is_not_sent_after_one_made_elsewhere(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, caplog: Any
) -> None:
    services.set_sends(enabled=False, reason="点検")
    made = refund(payment, operator)
    sandbox.refund_elsewhere(payment.pk, 1000)
    services.set_sends(enabled=True, reason="終わり")
    at.advance(minutes=1)

    work()

    made.refresh_from_db()
    assert (made.state, made.cancelled_because) == (State.CANCELLED, Refund.Cancelled.BALANCE)
    assert len(at_smartpay(sandbox, payment)) == 1
    assert "refund.no_longer_fits" in caplog.text


def test_refund_made_elsewhere_that_the_person_saw_stops_nothing(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    sandbox.refund_elsewhere(payment.pk, 500)
    services.read_payment(payment.pk, client=smartpay.client())
    payment.refresh_from_db()

    assert refund(payment, operator, similar_reason="別の商品").state == State.SUCCEEDED


def test_refund_that_may_be_its_own_forgotten_sending_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    forgotten(made, sandbox, reference=None, metadata=None)
    control.remember(5)  # what the file tells
    services.watch()
    sandbox.advance(7 * 3600)
    at.advance(hours=7)
    services.scan_if_needed(client=smartpay.client())
    services.set_sends(enabled=True, reason="読み取り済み")
    at.advance(minutes=1)

    work()

    made.refresh_from_db()
    assert (made.state, len(at_smartpay(sandbox, payment))) == (State.REVIEW, 1)
    for wait in ({"hours": 6, "minutes": 31}, {"minutes": 16}):
        at.advance(**wait)
        services.look_again(made.pk, client=smartpay.client())
    for _person in range(2):
        made = services.decide_case(
            made.pk,
            verdict="not_executed",
            note="別の人の返金",
            by=make_user("approver"),
            client=smartpay.client(),
        )
    assert made.state == State.NOT_EXECUTED


def test_forgotten_refund_is_for_people_whatever_its_status(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    sandbox.set(forgotten(made, sandbox)["id"], status="processing")
    at.advance(hours=7)
    sandbox.advance(7 * 3600)

    work()

    made.refresh_from_db()
    assert (made.state, len(at_smartpay(sandbox, payment))) == (State.REVIEW, 1)


def test_approval_of_all_there_was_is_refused_after_a_refund_made_elsewhere(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    made = refund(payment, operator, payment.captured)
    mirror.record_refund(shown(made, reference="", amount=300), read_at=clock.now())

    assert not approving._approve(made.pk, by=approver, note="")
    assert not AuditEntry.objects.filter(action="refund.approved").exists()


# --- What Smartpay shows again and again


def misnamed(made: Refund, sandbox: Sandbox) -> Payment:
    """Another payment, with a refund that names this one."""
    other = mirrored(sandbox, "refundable", min_amount=2000, skip=1)
    sandbox.refund(
        other.pk,
        1000,
        idempotency_key="other",
        reference=str(made.pk),
        metadata={"refund_dashboard_id": str(made.pk)},
    )
    return other


def test_what_is_shown_again_is_no_further_round_of_a_case(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = unknown(payment, operator, sandbox)
    other = misnamed(made, sandbox)

    for _time in range(4):
        scan(at)
        services.read_payment(other.pk, client=smartpay.client())

    made.refresh_from_db()
    assert (made.state, made.reviews, made.evidence.filter(found=True).count()) == (State.REVIEW, 1, 1)


def test_what_is_shown_again_of_a_settled_refund_is_one_alarm(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, caplog: Any
) -> None:
    made = refund(payment, operator)
    misnamed(made, sandbox)

    for _time in range(4):
        scan(at)

    assert caplog.text.count("refund.two_executions") == 1


def test_refund_that_was_never_sent_is_not_stopped_by_one_of_another_payment(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, caplog: Any
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    misnamed(made, sandbox)
    scan(at)
    made.refresh_from_db()
    assert made.state == State.QUEUED
    assert caplog.text.count("refund.named_elsewhere") == 1

    at.advance(minutes=1)
    work()

    made.refresh_from_db()
    assert made.state == State.SUCCEEDED


def test_status_that_stays_unknown_is_for_people_after_twelve_hours(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("altered", values={"status": "processing"})
    made = refund(payment, operator)
    sandbox.set(at_smartpay(sandbox, payment)[0]["id"], status="processing")

    for _hour in range(13):
        at.advance(hours=1)
        work()

    made.refresh_from_db()
    assert made.state == State.REVIEW


def test_refund_that_was_recorded_and_not_booked_is_booked_at_the_next_turn(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.switch(payments_list_refunds=False)
    sandbox.fault("reset")
    made = refund(payment, operator)
    [there] = at_smartpay(sandbox, payment)
    mirror.record_refund(smartpay.client().get_refund(there["id"]), read_at=clock.now())  # and dies
    at.advance(minutes=2)

    work()

    made.refresh_from_db()
    assert made.state == State.SUCCEEDED


def test_outcome_is_kept_where_the_mirror_can_not_be_written(
    payment: Payment, operator: User, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def refuses(_payments: Any) -> None:
        raise DatabaseError("No such thing can be counted.")

    with monkeypatch.context() as failing:
        failing.setattr(mirror, "count_external", refuses)
        made = refund(payment, operator)

    made.refresh_from_db()
    [there] = at_smartpay(sandbox, payment)
    assert (made.state, made.smartpay_id) == (State.SUCCEEDED, there["id"])
    assert not made.seen.exists()
    assert caplog.text.count("refund.not_mirrored") == 1

    services.read_payment(payment.pk, client=smartpay.client())

    payment.refresh_from_db()
    assert [seen.pk for seen in made.seen.all()] == [there["id"]]
    assert (payment.refunded, payment.external) == (made.amount, 0)


def test_outcome_that_goes_down_with_the_mirror_is_booked_by_a_worker(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def takes_all_along(*_args: Any, **_options: Any) -> None:
        transaction.set_rollback(True)
        raise DatabaseError("The connection is lost.")

    with monkeypatch.context() as failing:
        failing.setattr(mirror, "record_answer", takes_all_along)
        with pytest.raises(DatabaseError):
            refund(payment, operator)
    assert Refund.objects.get().state == State.SENDING

    at.advance(seconds=121)
    work()

    assert Refund.objects.get().state == State.SUCCEEDED
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_answer_that_the_mirror_knows_from_elsewhere_becomes_ours(
    payment: Payment, operator: User, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = sending._finish

    def seen_meanwhile(attempt: Attempt, answer: smartpay.Answer) -> Any:
        nameless = dataclasses.replace(answer.refund, reference="", metadata={})
        mirror.record_refund(nameless, read_at=clock.now())
        payment.refresh_from_db()
        assert payment.external == attempt.refund.amount
        return finish(attempt, answer)

    monkeypatch.setattr(sending, "_finish", seen_meanwhile)

    made = refund(payment, operator)

    payment.refresh_from_db()
    assert [seen.pk for seen in made.seen.all()] == [made.smartpay_id]
    assert (payment.refunded, payment.external) == (made.amount, 0)


def test_lost_refund_with_text_that_no_database_takes_stops_no_scan(
    payment: Payment, sandbox: Sandbox, at: Clock
) -> None:
    lost = uuid.uuid4()
    sandbox.refund(
        payment.pk,
        1000,
        idempotency_key="lost",
        description="a\x00b",
        metadata={"refund_dashboard_id": str(lost)},
    )

    scan(at)

    assert Refund.objects.get(pk=lost).state == State.SUCCEEDED
    assert scanning.scanned_at()


# --- Two clicks, of which the slower one hears nothing


def test_slower_click_is_never_told_that_nothing_was_sent(
    payment: Payment, operator: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, page = sign_in(operator), form_url(payment.order)
    last = hidden(browser.post(page, typed(payment.order))) | {"confirm": "1"}
    read, clicks = services.read_payment, iter([True, False])

    def slowly(payment_id: str, *, client: smartpay.Client) -> bool:
        if next(clicks):
            assert browser.post(page, last).status_code == 303  # the quicker click
            raise smartpay.Unclear("No answer within the deadline.")
        return read(payment_id, client=client)

    monkeypatch.setattr(services, "read_payment", slowly)

    answer = browser.post(page, last)

    assert (answer.status_code, answer["Location"]) == (303, f"/refunds/{last['request_id']}/")


def test_slower_approval_is_told_what_the_quicker_one_did(
    payment: Payment, operator: User, approver: User, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    made = refund(payment, operator)
    approve = services.approve

    def slowly(refund_id: uuid.UUID, **about: Any) -> Refund:
        approve(refund_id, **about)  # the quicker click
        raise smartpay.Unclear("No answer within the deadline.")

    monkeypatch.setattr(services, "approve", slowly)

    answer = fresh(approver).post(f"/refunds/{made.pk}/decide/", {"approve": "1"})

    assert (answer.status_code, answer["Location"]) == (303, f"/refunds/{made.pk}/")


def test_who_waited_is_woken_behind_the_lock_of_its_payment(payment: Payment, operator: User) -> None:
    services.set_sends(enabled=False, reason="点検")
    made = refund(payment, operator)
    Refund.objects.filter(pk=made.pk).update(next_check_at=clock.now() + timedelta(hours=1))

    with CaptureQueriesContext(connection) as queries:
        services.set_sends(enabled=True, reason="終わり")

    statements = [each["sql"] for each in queries]
    woken = next(n for n, sql in enumerate(statements) if sql.startswith('UPDATE "refunds_refund"'))
    read = [sql.partition(" FROM ")[2].partition(" ")[0] for sql in statements[:woken] if " FROM " in sql]
    assert read[-3:] == [
        '"refunds_refund"',
        '"refunds_payment"',
        '"refunds_refund"',
    ]  # which one, then both locks


# --- What was refunded beside a refund of ours, while that is not settled


def test_reason_speaks_of_the_similar_refunds_that_were_shown(
    operator: User, sandbox: Sandbox, at: Clock
) -> None:
    one, other = (mirrored(sandbox, "refundable", min_amount=5000, skip=skip) for skip in (0, 1))
    Order.objects.filter(pk__in=[one.order_id, other.order_id]).update(
        email="same@example.jp", email_folded="same@example.jp"
    )
    refund(one, operator, 300)
    browser, url = sign_in(operator), form_url(one.order)
    last = hidden(browser.post(url, typed(one.order))) | {"confirm": "1", "similar_reason": "送料は別"}
    meanwhile = refund(other, make_user("operator"), 1000)  # by a colleague, to the same customer

    again = browser.post(url, last)
    shown_now = hidden(again) | {"confirm": "1", "similar_reason": "二件とも別の返品"}
    made = browser.post(url, shown_now)

    page = again.content.decode()
    assert (again.status_code, "似た返金が増えました" in page, "送料は別" in page) == (422, True, True)
    assert f"/refunds/{meanwhile.pk}/" in page
    assert (made.status_code, Refund.objects.filter(payment=one).count()) == (303, 2)


def test_lost_refund_is_not_sent_again_once_somebody_refunded_by_hand(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = unknown(payment, operator, sandbox)  # Smartpay never had it
    sandbox.refund_elsewhere(
        payment.pk, made.amount
    )  # and a colleague, in its dashboard, did what it should do
    services.read_payment(payment.pk, client=smartpay.client())
    assert "もう送信しません" in sign_in(operator).get(f"/refunds/{made.pk}/").content.decode()

    for hours in (0.1, 1, 6, 1):
        at.advance(hours=hours)
        sandbox.advance(hours * 3600)
        work()

    made.refresh_from_db()
    assert (made.state, made.attempt_no, len(at_smartpay(sandbox, payment))) == (State.REVIEW, 1, 1)


def test_refund_that_was_made_twice_counts_twice_in_whatever_order_it_is_seen(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    sandbox.fault("reset")
    made = refund(payment, operator)
    [there] = at_smartpay(sandbox, payment)
    other = sandbox.refund_elsewhere(payment.pk, 500, reference=str(made.pk))
    for seen in (other, there):
        observe(smartpay.client().get_refund(seen["id"]))

    made.refresh_from_db()
    payment.refresh_from_db()
    assert (made.state, made.smartpay_id) == (State.SUCCEEDED, there["id"])
    assert payment.refundable() == payment.captured - made.amount - 500
    assert "refund.two_executions" in caplog.text


@pytest.mark.parametrize("denied", ["not_executed", "rejected"])
def test_denied_refund_that_smartpay_shows_in_a_new_word_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, denied: str
) -> None:
    if denied == "rejected":
        sandbox.fault("altered", values={"status": "failed"})
        made = refund(payment, operator)
        [there] = at_smartpay(sandbox, payment)
    else:
        made = unknown(payment, operator, sandbox)
        for _hour in range(9):
            at.advance(hours=1)
            sandbox.advance(3600)
            with patch("refunds.services.sending.begin_attempt", return_value=None):
                work()
        there = sandbox.refund_elsewhere(payment.pk, made.amount, reference=str(made.pk))
    made.refresh_from_db()
    assert made.state == denied

    sandbox.set(there["id"], status="processing")
    observe(smartpay.client().get_refund(there["id"]))

    made.refresh_from_db()
    payment.refresh_from_db()
    assert (made.state, payment.refundable()) == (State.REVIEW, payment.captured - made.amount)
