"""Promises at their edges: to the second, to the yen, to the last field of what is kept."""

import itertools
import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core.exceptions import PermissionDenied
from django.db import OperationalError, transaction

from dashboard.models import User
from refunds import clock, scanning, services, smartpay
from refunds.models import Attempt, AuditEntry, Control, Evidence, Payment, Refund, SmartpayRefund, SyncCursor
from refunds.services import absence, control, observing, sending, states
from refunds.services.states import NO_LEASE
from tests.conftest import Clock, make_order, make_user
from tests.sandbox import Sandbox
from tests.test_control import forget_the_last_attempt, lost
from tests.test_services import ask, mirrored, observe, refund, shown, unknown, work

State = Refund.State


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    return mirrored(sandbox, "refundable", min_amount=2000)


def queued(payment: Payment, by: User, amount: int = 1000, **more: Any) -> Refund:
    payment.refresh_from_db()
    return services.request_refund(
        ask(payment, amount, **more), refundable=payment.refundable(), by=by, similar_reason="別件"
    )


def trail(made: Refund, action: str) -> tuple[Any, str, dict[str, Any]]:
    """Who, of which order, and with which data; there is one entry."""
    entry = AuditEntry.objects.get(object_id=made.pk, action=action)
    return entry.actor, entry.order_id, entry.data


def from_to(before: State, after: State) -> dict[str, str]:
    """What each entry of a change says of it."""
    return {"state_before": before, "state": after}


# --- What the trail keeps -----------------------------------------------------------------------------------


def test_trail_keeps_what_was_asked_for(payment: Payment, operator: User) -> None:
    left = payment.refundable()

    made = services.request_refund(ask(payment), refundable=left, by=operator)

    assert trail(made, "refund.requested") == (
        operator,
        payment.order.order_id,
        {
            "amount": 1000,
            "currency": "JPY",
            "reason": "requested_by_customer",
            "payment": payment.pk,
            "refundable": left,
            "state": "queued",
            "similar": False,
        },
    )
    assert trail(queued(payment, operator, 1), "refund.requested")[2]["similar"] is True


def withdrawn(made: Refund, operator: User, approver: User) -> User:
    services.withdraw(made.pk, by=operator)
    return operator


def refused(made: Refund, operator: User, approver: User) -> User:
    services.reject(made.pk, by=approver, note="金額が違います")
    return approver


def expired(made: Refund, operator: User, approver: User) -> None:
    Refund.objects.filter(pk=made.pk).update(next_check_at=clock.now())
    services.expire_requests()


@pytest.mark.parametrize("because", [withdrawn, refused, expired])
def test_trail_and_row_keep_who_cancelled_a_refund_when_and_why(
    payment: Payment,
    operator: User,
    approver: User,
    at: Clock,
    settings: Any,
    because: Callable[[Refund, User, User], User | None],
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 0
    made = queued(payment, operator)
    at.advance(days=8)

    person = because(made, operator, approver)

    made.refresh_from_db()
    assert trail(made, "refund.cancelled") == (
        person,
        payment.order.order_id,
        {"because": because.__name__, **from_to(State.AWAITING_APPROVAL, State.CANCELLED)},
    )
    assert (made.state, made.cancelled_because) == (State.CANCELLED, because.__name__)
    assert (made.settled_at, made.next_check_at) == (at.now, None)


def test_trail_keeps_whose_approval_found_the_balance_moved_and_nothing_is_sent(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 0
    made = queued(payment, operator)
    sandbox.refund_elsewhere(payment.pk, 1)

    services.approve(made.pk, by=approver)

    assert trail(made, "refund.cancelled")[::2] == (
        approver,
        {"because": "balance", **from_to(State.AWAITING_APPROVAL, State.CANCELLED)},
    )
    assert not Attempt.objects.exists()


def test_trail_and_row_keep_an_approval(
    payment: Payment, operator: User, approver: User, at: Clock, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 0
    made = queued(payment, operator)
    services.set_sends(enabled=False, reason="点検")

    approved = services.approve(made.pk, by=approver, note="確認済み")

    assert trail(made, "refund.approved") == (
        approver,
        payment.order.order_id,
        {"amount": 1000, **from_to(State.AWAITING_APPROVAL, State.QUEUED)},
    )
    assert (approved.decided_by, approved.decided_at, approved.decision_note) == (
        approver,
        at.now,
        "確認済み",
    )


def test_approved_refund_whose_sender_died_is_sent_by_a_worker_five_seconds_later(
    payment: Payment,
    operator: User,
    approver: User,
    at: Clock,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 0
    made = queued(payment, operator)
    at.advance(hours=1)
    with monkeypatch.context() as dying:
        dying.setattr(sending, "take_turn", lambda *_args, **_options: None)
        services.approve(made.pk, by=approver)

    at.advance(seconds=4)
    assert list(services.due()) == []
    at.advance(seconds=1)
    assert list(services.due()) == [made]


def test_trail_keeps_each_sending_and_its_answer(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("error", executed=False, status=503)
    made = refund(payment, operator)
    at.advance(hours=1)
    work()

    made.refresh_from_db()
    entries = AuditEntry.objects.filter(object_id=made.pk).order_by("id").values_list("action", "data")
    assert list(entries)[1:] == [
        ("refund.sending", {"attempt": 1, **from_to(State.QUEUED, State.SENDING)}),
        (
            "refund.unknown",
            {
                "attempt": 1,
                "answer": "AMBIGUOUS",
                "http_status": 503,
                "error_code": made.attempts.get(number=1).error_code,
                **from_to(State.SENDING, State.UNKNOWN),
            },
        ),
        ("refund.sending", {"attempt": 2, **from_to(State.UNKNOWN, State.SENDING)}),
        (
            "refund.succeeded",
            {
                "smartpay_id": made.smartpay_id,
                "evidence": "answer",
                **from_to(State.SENDING, State.SUCCEEDED),
            },
        ),
    ]


def test_trail_keeps_that_a_sender_died(payment: Payment, operator: User, at: Clock) -> None:
    made = queued(payment, operator)
    assert sending.begin_attempt(made.pk, owner=NO_LEASE)
    at.advance(seconds=120)

    assert sending.take_lease(made.pk, owner="worker")

    assert trail(made, "refund.unknown")[::2] == (
        None,
        {"why": "the sender died", "attempt": 1, **from_to(State.SENDING, State.UNKNOWN)},
    )


def test_trail_keeps_who_stopped_and_resumed_sending_and_why(approver: User, sandbox: Sandbox) -> None:
    services.set_sends(enabled=False, reason="点検", by=approver)
    services.set_sends(enabled=True, reason="終わり", by=approver)

    entries = AuditEntry.objects.filter(action__startswith="sends.").order_by("id")
    assert [(entry.action, entry.actor, entry.data) for entry in entries] == [
        ("sends.stopped", approver, {"reason": "点検", "sends_before": True}),
        ("sends.resumed", approver, {"reason": "終わり", "sends_before": False}),
    ]
    now = Control.objects.get()
    assert (now.sends_enabled, now.reason, now.changed_by) == (True, "終わり", approver)


# --- What the ledger keeps of an answer ---------------------------------------------------------------------


def test_attempt_keeps_the_whole_answer(payment: Payment, operator: User, at: Clock) -> None:
    made = refund(payment, operator)

    kept = made.attempts.get()
    assert (kept.number, kept.started_at, kept.finished_at) == (1, at.now, at.now)
    assert (kept.outcome, kept.http_status, kept.replayed) == ("EXECUTED", 200, False)
    assert (len(kept.response_sha256), kept.error_code, kept.error_message) == (64, "", "")


def test_attempt_keeps_that_smartpay_repeated_its_answer(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = queued(payment, operator)
    attempt = sending.begin_attempt(made.pk, owner=NO_LEASE)
    assert attempt
    answer = smartpay.Answer(
        shown(made, "refund_test_0000000000000000000009"),
        "EXECUTED",
        http_status=200,
        replayed=True,
        sha256="ab",
    )

    sending.book(attempt, answer)

    attempt.refresh_from_db()
    assert (attempt.replayed, attempt.response_sha256) == (True, "ab")


def test_refusal_is_kept_in_smartpays_own_words(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.refund_elsewhere(payment.pk, payment.captured)

    made = refund(payment, operator)

    kept = made.attempts.get()
    assert kept.error_code == made.error_code == "amount.insufficient"
    assert kept.error_message
    assert made.error_message == kept.error_message
    assert (kept.outcome, kept.finished_at, made.settled_at) == ("REFUSED", at.now, at.now)
    assert (made.next_check_at, made.lease_until, made.lease_owner) == (None, None, "")


def test_success_leaves_no_error_and_no_lease_behind(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("error", executed=False, status=503)
    made = refund(payment, operator)
    assert (made.lease_until, made.lease_owner) == (None, "")
    at.advance(hours=1)

    work()

    made.refresh_from_db()
    assert (made.state, made.error_code, made.error_message) == (State.SUCCEEDED, "", "")
    assert (made.settled_at, made.next_check_at, made.lease_until, made.lease_owner) == (
        at.now,
        None,
        None,
        "",
    )


def test_row_keeps_everything_that_was_asked(payment: Payment, operator: User, at: Clock) -> None:
    left = payment.refundable()
    asked = ask(payment, 700, reason="fraudulent", description="サイズ交換", memo="電話")

    made = services.request_refund(asked, refundable=left, by=operator, similar_reason="別件")

    made.refresh_from_db()
    assert (made.pk, made.payment_id, made.amount, made.currency) == (
        asked.request_id,
        payment.pk,
        700,
        "JPY",
    )
    assert (made.reason, made.description, made.memo) == ("fraudulent", "サイズ交換", "電話")
    assert (made.similar_reason, made.refundable_before) == ("別件", left)
    assert (made.requested_by, made.requested_at) == (operator, at.now)
    assert json.loads(made.body) == {
        "payment": payment.pk,
        "amount": 700,
        "currency": "JPY",
        "reason": "fraudulent",
        "reference": str(made.pk),
        "metadata": {"refund_dashboard_id": str(made.pk)},
        "description": "サイズ交換",
    }


# --- What the ledger lost -----------------------------------------------------------------------------------


def test_recovered_refund_is_whole(payment: Payment, sandbox: Sandbox, caplog: Any, at: Clock) -> None:
    seen = lost(payment, reason="fraudulent", description="あ" * 100, created_at=at.now - timedelta(days=1))

    observe(seen)

    made = Refund.objects.get()
    assert (str(made.pk), made.payment, made.amount) == (seen.metadata["refund_dashboard_id"], payment, 700)
    assert (made.reason, made.description) == ("fraudulent", "あ" * 80)
    assert (made.requested_at, made.settled_at) == (seen.created_at, seen.created_at)
    assert json.loads(made.body) == {
        "payment": payment.pk,
        "amount": 700,
        "currency": "JPY",
        "reason": "fraudulent",
        "reference": str(made.pk),
        "metadata": {"refund_dashboard_id": str(made.pk)},
        "description": "あ" * 100,
    }
    assert trail(made, "refund.recovered") == (
        None,
        payment.order.order_id,
        {"smartpay_id": seen.id, "amount": 700},
    )
    [alarm] = [record for record in caplog.records if "refund.recovered" in record.getMessage()]
    assert "'event': 'refund.recovered'" in alarm.getMessage()
    assert seen.id in alarm.getMessage()


def test_recovered_refunds_are_asked_for_by_one_person_who_is_nobody(
    payment: Payment, sandbox: Sandbox
) -> None:
    for number in (1, 2):
        observe(lost(payment, id=f"refund_test_000000000000000000000{number}"))

    [person] = {each.requested_by for each in Refund.objects.all()}
    assert (person.username, person.is_active, person.name) == ("recovered", False, "データベースの復元")


# --- A person's day -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked_at", "counts"),
    [
        (datetime(2026, 11, 22, 14, 59, 59, 999999, tzinfo=UTC), False),
        (datetime(2026, 11, 22, 15, 0, 0, 0, tzinfo=UTC), True),  # midnight in Tokyo, on the dot
        (datetime(2026, 11, 22, 15, 0, 0, 500000, tzinfo=UTC), True),
        (datetime(2026, 11, 22, 15, 0, 30, tzinfo=UTC), True),
        (datetime(2026, 11, 22, 15, 30, tzinfo=UTC), True),
        (datetime(2026, 11, 23, 1, 0, tzinfo=UTC), True),
    ],
)
def test_day_of_a_person_begins_at_midnight_in_japan(
    payment: Payment, operator: User, at: Clock, asked_at: datetime, counts: bool
) -> None:
    at.now = asked_at
    queued(payment, operator, 700)

    at.now = datetime(2026, 11, 23, 2, 20, 40, 123456, tzinfo=UTC)

    assert services.refunded_today(operator) == (700 if counts else 0)
    assert services.refunded_today(make_user("operator")) == 0


def test_last_yen_of_the_day_can_be_refunded_and_no_more(
    payment: Payment, operator: User, settings: Any
) -> None:
    settings.REFUND_DAILY_LIMIT = 1000
    queued(payment, operator, 600)

    with pytest.raises(services.AmountTooHigh, match="合計¥1,000までです。本日はあと¥400です。"):
        queued(payment, operator, 401)
    settings.REFUND_DAILY_LIMIT = 500  # lowered meanwhile
    with pytest.raises(services.AmountTooHigh, match="本日はあと¥0です。"):
        queued(payment, operator, 1)
    settings.REFUND_DAILY_LIMIT = 1000
    assert queued(payment, operator, 400).state == State.QUEUED


# --- Asking and withdrawing ---------------------------------------------------------------------------------


def test_what_was_withdrawn_can_not_be_withdrawn_again(payment: Payment, operator: User) -> None:
    made = queued(payment, operator)
    services.withdraw(made.pk, by=operator)

    with pytest.raises(services.NotWaiting):
        services.withdraw(made.pk, by=operator)


def test_preview_shows_payment_approval_and_the_similar_ones_but_itself(
    payment: Payment, operator: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 500
    first = queued(payment, operator, 400)

    shown_anew = services.preview_refund(ask(payment, 400, request_id=first.pk), by=operator)
    other = services.preview_refund(ask(payment, 501), by=operator)

    assert (shown_anew.payment, shown_anew.similar, shown_anew.needs_approval) == (payment, [], False)
    assert ([each.refund for each in other.similar], other.needs_approval) == ([first], True)


def test_preview_shows_a_customers_refund_of_the_same_amount(operator: User) -> None:
    earlier, now = make_order(5000), make_order(5000)
    first = queued(earlier.payments.get(), operator, 400)

    preview = services.preview_refund(ask(now.payments.get(), 400), by=operator)

    assert [each.refund for each in preview.similar] == [first]


def test_similar_refunds_come_newest_first_with_their_facts(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    first = queued(payment, operator, 100)
    at.advance(minutes=1)
    there = shown(Refund(payment=payment, amount=200), reference="", created_at=at.now)
    observe(there)
    at.advance(minutes=1)
    last = queued(payment, operator, 300)

    similar = services.similar_refunds(payment, 999, but=uuid.uuid4())

    order_id = payment.order.order_id
    assert similar == [
        services.Similar(str(last.pk), at.now, 300, "JPY", order_id, operator, last),
        services.Similar(there.id, at.now - timedelta(minutes=1), 200, "JPY", order_id, None, None),
        services.Similar(str(first.pk), at.now - timedelta(minutes=2), 100, "JPY", order_id, operator, first),
    ]


def test_similar_means_within_exactly_a_day_and_exactly_seven(operator: User, at: Clock, db: None) -> None:
    order, later = make_order(5000), make_order(5000)
    observe(shown(queued(order.payments.get(), operator, 100)))  # it is settled now

    def similar(where: Any, amount: int) -> int:
        return len(services.similar_refunds(where.payments.get(), amount, but=uuid.uuid4()))

    at.advance(days=1)
    assert (similar(order, 999), similar(later, 999)) == (1, 0)
    at.advance(seconds=1)
    assert (similar(order, 999), similar(order, 100), similar(later, 100)) == (0, 1, 1)
    at.advance(days=6, seconds=-1)
    assert (similar(order, 100), similar(later, 100)) == (1, 1)
    at.advance(seconds=1)
    assert (similar(order, 100), similar(later, 100)) == (0, 0)


def test_what_failed_or_was_cancelled_is_similar_to_nothing(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    services.withdraw(queued(payment, operator, 100).pk, by=operator)
    observe(shown(Refund(payment=payment, amount=200), reference="", status="failed"))

    assert services.similar_refunds(payment, 100, but=uuid.uuid4()) == []


def test_limits_may_be_reached_and_not_passed(payment: Payment, operator: User, settings: Any) -> None:
    settings.REFUND_MAX_AMOUNT = settings.REFUND_APPROVAL_ABOVE = 600

    assert queued(payment, operator, 600).state == State.QUEUED
    with pytest.raises(services.AmountTooHigh, match="一回の返金は¥600までです。"):
        queued(payment, operator, 601)
    settings.REFUND_MAX_AMOUNT = None
    assert queued(payment, operator, 601).state == State.AWAITING_APPROVAL
    payment.refresh_from_db()
    assert queued(payment, operator, payment.refundable()).state == State.AWAITING_APPROVAL


def test_id_of_another_refund_is_told_with_it(payment: Payment, operator: User) -> None:
    made = queued(payment, operator, 100)

    with pytest.raises(services.RequestReused, match="別の内容") as raised:
        queued(payment, operator, 200, request_id=made.pk)

    assert raised.value.refund == made


# --- Deciding -----------------------------------------------------------------------------------------------


def test_request_expires_after_exactly_seven_days(
    payment: Payment, operator: User, at: Clock, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 0
    settings.REFUND_REQUEST_DAYS = 7
    queued(payment, operator)

    at.advance(days=7)
    assert services.expire_requests() == 0
    at.advance(seconds=1)
    assert services.expire_requests() == 1


def test_approver_who_left_or_lost_the_role_decides_nothing(
    payment: Payment, operator: User, approver: User, settings: Any
) -> None:
    settings.REFUND_APPROVAL_ABOVE = 0
    made = queued(payment, operator)
    approver.is_active = False

    for act in (services.approve, services.reject):
        with pytest.raises(PermissionDenied):
            act(made.pk, by=approver, note="遅い")
    with pytest.raises(PermissionDenied):
        services.set_sends(enabled=False, reason="遅い", by=approver)
    with pytest.raises(PermissionDenied):
        services.set_sends(enabled=False, reason="権限なし", by=operator)
    assert Control.sends_are_on()


# --- Turns --------------------------------------------------------------------------------------------------


def test_nothing_is_sent_from_five_hours_after_the_first_sending(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = unknown(payment, operator, sandbox)
    assert sending._why_not_sent(made, at.now + timedelta(hours=5) - timedelta(microseconds=1)) == ""
    assert sending._why_not_sent(made, at.now + timedelta(hours=5))


def test_lease_lasts_two_minutes(payment: Payment, operator: User, at: Clock) -> None:
    made = queued(payment, operator)
    at.advance(seconds=5)
    assert list(services.due()) == [made]
    assert sending.take_lease(made.pk, owner="one")

    made.refresh_from_db()
    assert (made.lease_owner, made.lease_until, made.turns) == ("one", at.now + timedelta(seconds=120), 1)
    at.advance(seconds=119)
    assert list(services.due()) == []
    assert not sending.take_lease(made.pk, owner="two")
    at.advance(seconds=1)
    assert list(services.due()) == [made]
    assert sending.take_lease(made.pk, owner="two")


def test_sender_that_woke_within_half_its_lease_still_sends(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = queued(payment, operator)
    attempt = sending.begin_attempt(made.pk, owner=NO_LEASE)
    assert attempt

    at.advance(seconds=60)
    in_time = sending.send(attempt, client=smartpay.client())
    at.advance(seconds=1)
    too_late = sending.send(attempt, client=smartpay.client())

    assert isinstance(in_time, smartpay.Answer)
    assert isinstance(too_late, smartpay.NotSent)
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_those_who_wait_longest_come_first_and_of_those_the_oldest(
    operator: User, sandbox: Sandbox, at: Clock
) -> None:
    payments = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in range(3)]
    made = []
    for each, minutes in zip(payments, (3, 2, 3), strict=True):
        made.append(queued(each, operator))
        Refund.objects.filter(pk=made[-1].pk).update(next_check_at=at.now + timedelta(minutes=minutes))
        at.advance(minutes=-1)
    first, second, third = made

    at.advance(minutes=10)

    assert list(services.due()) == [third, second, first]


def test_round_takes_a_hundred_turns_and_tells_how_many(
    payment: Payment, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[int] = []
    many = SimpleNamespace(values_list=lambda *_args, **_options: list(range(150)))
    monkeypatch.setattr(sending, "due", lambda: many)

    def take(refund_id: int, *, client: smartpay.Client) -> None:
        taken.append(refund_id)

    monkeypatch.setattr(sending, "take_turn", take)

    assert services.settle_due(client=smartpay.client()) == 100
    assert taken == list(range(100))


def test_alarm_tells_whose_turn_broke(
    payment: Payment, operator: User, at: Clock, caplog: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = queued(payment, operator)
    at.advance(seconds=5)

    def breaks(*_args: Any, **_options: Any) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(sending, "send", breaks)
    services.settle_due(client=smartpay.client())

    [record] = [each.getMessage() for each in caplog.records if "'refund.turn_failed'" in each.getMessage()]
    assert str(made.pk) in record
    assert "'alarm': True" in record


# --- Pauses -------------------------------------------------------------------------------------------------


def pauses(made: Refund, now: datetime, **options: Any) -> list[float]:
    found = []
    for _time in range(300):
        states.back_off(made, now, **options)
        assert made.next_check_at is not None
        found.append((made.next_check_at - now).total_seconds())
    return found


@pytest.mark.parametrize(
    ("turns", "seconds"), [(1, 30), (2, 60), (3, 120), (6, 960), (7, 1800), (11, 1800), (99, 1800)]
)
def test_pause_doubles_up_to_half_an_hour_and_is_spread_by_half(turns: int, seconds: int) -> None:
    found = pauses(Refund(turns=turns), datetime.now(tz=UTC))

    assert seconds * 0.5 <= min(found) < seconds * 0.6
    assert seconds * 1.4 < max(found) <= seconds * 1.5


def test_pause_heeds_a_wish_up_to_half_an_hour() -> None:
    now = datetime.now(tz=UTC)

    assert set(pauses(Refund(turns=1), now, at_least=600)) == {600}
    assert set(pauses(Refund(turns=1), now, at_least=86400)) == {1800}
    assert max(pauses(Refund(turns=3), now, at_least=1)) > 100


def test_pause_ends_when_absence_can_be_proved() -> None:
    now = datetime.now(tz=UTC)
    sent = Refund(
        turns=9, first_sent_at=now - timedelta(hours=6, minutes=20), last_sent_at=now - timedelta(hours=2)
    )

    assert set(pauses(sent, now)) == {600}
    assert min(pauses(sent, now + timedelta(minutes=10))) >= 900


def test_pause_gives_the_turn_back() -> None:
    now = datetime.now(tz=UTC)
    made = Refund(turns=1, lease_until=now, lease_owner="one")

    states.back_off(made, now)

    assert (made.lease_until, made.lease_owner) == (None, "")


# --- When absence counts ------------------------------------------------------------------------------------


def test_absence_counts_from_when_nothing_can_be_on_its_way_any_more() -> None:
    first = datetime.now(tz=UTC)
    sent = Refund(first_sent_at=first, last_sent_at=first)
    assert states.absence_counts_from(sent) == first + timedelta(hours=6, minutes=30)

    sent.last_sent_at = first + timedelta(hours=5, minutes=46)
    assert states.absence_counts_from(sent) == first + timedelta(hours=6, minutes=31)

    sent.absent_since = first + timedelta(hours=7)
    assert states.absence_counts_from(sent) == first + timedelta(hours=7, minutes=15)


@pytest.mark.parametrize("restore", ["restored_at", "restore_accepted_at"])
def test_absence_of_what_was_never_sent_counts_from_the_last_life_that_may_have_sent_it(
    db: None, restore: str
) -> None:
    asked = datetime.now(tz=UTC)
    made = Refund(requested_at=asked)
    assert states.absence_counts_from(made) == asked + timedelta(hours=6, minutes=30)

    Control.objects.create(**{restore: asked - timedelta(hours=1)})
    assert states.absence_counts_from(made) == asked + timedelta(hours=6, minutes=30)
    Control.objects.update(**{restore: asked + timedelta(hours=1)})
    assert states.absence_counts_from(made) == asked + timedelta(hours=7, minutes=30)


def look(made: Refund, at: Clock) -> bool:
    """A worker takes the turn and looks."""
    Refund.objects.filter(pk=made.pk).update(next_check_at=at.now)
    assert sending.take_lease(made.pk, owner="worker")
    allowed = absence.reconcile_refund(made.pk, owner="worker", client=smartpay.client())
    made.refresh_from_db()
    return allowed


def test_two_reads_prove_absence_to_the_second_and_are_kept(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = unknown(payment, operator, sandbox)
    first = at.now

    at.now = first + timedelta(hours=6, minutes=30) - timedelta(seconds=1)
    assert look(made, at)
    assert made.absent_since is None
    sending.begin_attempt(made.pk, owner="worker")  # past the window: it pauses
    at.now = first + timedelta(hours=6, minutes=30)
    assert not look(made, at)
    assert Refund.objects.filter(pk=made.pk, absent_since=at.now, state=State.UNKNOWN).exists()
    assert made.next_check_at is not None
    assert made.next_check_at >= at.now + timedelta(minutes=15)
    at.now = first + timedelta(hours=6, minutes=45) - timedelta(seconds=1)
    assert not look(made, at)
    assert made.state == State.UNKNOWN
    at.now = first + timedelta(hours=6, minutes=45)
    assert not look(made, at)

    assert (made.state, made.settled_at) == (State.NOT_EXECUTED, at.now)
    since = first + timedelta(hours=6, minutes=30)
    assert trail(made, "refund.not_executed") == (
        None,
        payment.order.order_id,
        {"absent_since": str(since), **from_to(State.UNKNOWN, State.NOT_EXECUTED)},
    )
    kept = made.evidence.values_list("kind", "found", "detail", "smartpay_id")
    assert set(kept) == {("read", False, "", "")}
    assert made.evidence.count() == 4


@pytest.mark.parametrize(("before", "state"), [(600, State.REVIEW), (601, State.NOT_EXECUTED)])
@pytest.mark.parametrize(
    ("other", "could_be_it"),
    [({}, True), ({"amount": 999}, False), ({"status": "failed"}, False)],
)
def test_absence_is_for_people_only_beside_one_that_could_be_it(
    payment: Payment,
    operator: User,
    sandbox: Sandbox,
    at: Clock,
    before: int,
    state: State,
    other: dict[str, Any],
    could_be_it: bool,
) -> None:
    made = unknown(payment, operator, sandbox)
    created_at = made.first_sent_at - timedelta(seconds=before) if made.first_sent_at else None
    stranger = shown(made, reference="", created_at=created_at, **other)
    observe(stranger)
    sandbox.switch(payments_list_refunds=False)
    first = at.now

    for hours in (7, 8):
        at.now = first + timedelta(hours=hours)
        SyncCursor.objects.update_or_create(pk=SyncCursor.REFUNDS, defaults={"last_started_at": at.now})
        look(made, at)

    assert made.state == (state if could_be_it else State.NOT_EXECUTED)


# --- What Smartpay shows ------------------------------------------------------------------------------------


def test_evidence_keeps_what_was_shown_and_how_it_was_seen(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = unknown(payment, operator, sandbox)

    observe(shown(made, amount=999))
    observe(shown(made, status="failed"))
    services.observe_refund(shown(made), read_at=clock.now(), kind=Evidence.Kind.LIST)

    kept = made.evidence.order_by("id").values_list("kind", "at", "found", "smartpay_id", "detail")
    there = shown(made).id
    assert list(kept) == [
        ("read", at.now, True, there, "differs"),
        ("read", at.now, True, there, "failed"),
        ("list", at.now, True, there, ""),
    ]
    entries = AuditEntry.objects.filter(object_id=made.pk).order_by("id").values_list("action", "data")
    assert list(entries)[3:] == [
        ("refund.review", {"smartpay_id": there, "evidence": "read", **from_to(State.UNKNOWN, State.REVIEW)}),
        ("refund.observed", {"smartpay_id": there, "evidence": "read"}),
        (
            "refund.succeeded",
            {"smartpay_id": there, "evidence": "list", **from_to(State.REVIEW, State.SUCCEEDED)},
        ),
    ]


@pytest.mark.parametrize("other", [{"amount": 999}, {"currency": "USD"}])
def test_what_differs_in_any_fact_is_for_people(
    payment: Payment, operator: User, sandbox: Sandbox, other: dict[str, Any], caplog: Any
) -> None:
    made = unknown(payment, operator, sandbox)

    observe(shown(made, **other))

    made.refresh_from_db()
    assert (made.state, made.smartpay_id, made.reviews) == (State.REVIEW, None, 1)
    assert (made.next_check_at, made.lease_until) == (None, None)
    assert made.error_message
    assert "'event': 'refund.review'" in caplog.text


def test_status_that_nobody_knows_is_an_alarm_and_settles_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any
) -> None:
    made = unknown(payment, operator, sandbox)

    observe(shown(made, status="processing"))

    made.refresh_from_db()
    assert (made.state, made.evidence.count()) == (State.UNKNOWN, 0)
    assert "'event': 'refund.status_unknown'" in caplog.text


def test_failure_that_is_shown_is_kept_with_its_id_and_moment(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = unknown(payment, operator, sandbox)
    at.advance(minutes=1)

    observe(shown(made, status="failed"))

    made.refresh_from_db()
    assert (made.state, made.smartpay_id, made.error_code) == (
        State.REJECTED,
        shown(made).id,
        "status.failed",
    )
    assert (made.settled_at, made.next_check_at) == (at.now, None)


def test_only_the_newest_that_no_longer_fit_are_cancelled_with_an_alarm(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any, at: Clock
) -> None:
    made = []
    for amount in (100, 200, 300):
        made.append(queued(payment, operator, amount))
        at.advance(seconds=1)
    third = made[-1]

    observe(shown(Refund(payment=payment, amount=payment.captured - 300), reference=""))

    for each in made:
        each.refresh_from_db()
    assert [each.state for each in made] == [State.QUEUED, State.QUEUED, State.CANCELLED]
    assert trail(third, "refund.cancelled")[::2] == (
        None,
        {"because": "balance", **from_to(State.QUEUED, State.CANCELLED)},
    )
    assert caplog.text.count("'event': 'refund.no_longer_fits'") == 1
    assert str(third.pk) in caplog.text


def test_success_taken_back_names_the_refund_in_its_alarm(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any
) -> None:
    made = refund(payment, operator)

    observe(shown(made, made.smartpay_id or "", status="failed"))

    made.refresh_from_db()
    [record] = [each.getMessage() for each in caplog.records if "'refund.taken_back'" in each.getMessage()]
    assert f"'smartpay_id': '{made.smartpay_id}'" in record
    assert str(made.pk) in record
    assert made.state == State.SUCCEEDED


def test_refund_of_smartpays_mode_or_payment_read_is_not_observed_twice(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    made = refund(payment, operator)

    services.read_payment(payment.pk, client=smartpay.client())
    services.read_order(payment.order.order_id, client=smartpay.client())

    assert made.evidence.count() == 1


# --- Twelve hours -------------------------------------------------------------------------------------------


def test_only_after_twelve_hours_without_a_read_people_are_asked(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = unknown(payment, operator, sandbox)
    first = at.now

    def silent(payment_id: str, *, client: smartpay.Client) -> bool:
        raise smartpay.Limited("later", retry_after=1700)

    monkeypatch.setattr(observing, "read_payment", silent)

    at.now = first + timedelta(hours=12)
    assert not look(made, at)
    assert (made.state, made.lease_until) == (State.UNKNOWN, None)
    assert made.next_check_at is not None
    assert made.next_check_at >= at.now + timedelta(seconds=1700)
    at.now = first + timedelta(hours=12, seconds=1)
    assert not look(made, at)
    assert (made.state, made.reviews) == (State.REVIEW, 1)
    assert trail(made, "refund.review") == (
        None,
        payment.order.order_id,
        {"why": "unreadable", **from_to(State.UNKNOWN, State.REVIEW)},
    )


def test_read_within_twelve_hours_keeps_it_with_the_machine(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    made = unknown(payment, operator, sandbox)
    first = at.now
    at.now = first + timedelta(hours=2)
    look(made, at)
    Evidence.objects.create(refund=made, kind="read", at=at.now, found=False, detail="no_list")
    sandbox.fault("html", method="GET", path="", times=None)

    at.now = first + timedelta(hours=14) - timedelta(seconds=1)
    look(made, at)
    assert made.state == State.UNKNOWN
    at.now = first + timedelta(hours=14)
    look(made, at)
    assert made.state == State.REVIEW


# --- Scans --------------------------------------------------------------------------------------------------


def scanned(moment: datetime | None) -> None:
    SyncCursor.objects.update_or_create(pk=SyncCursor.REFUNDS, defaults={"last_started_at": moment})


def test_scan_is_wanted_again_where_it_could_prove_something(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.switch(payments_list_refunds=False)
    made = unknown(payment, operator, sandbox)
    sent = at.now
    scanned(sent + timedelta(hours=2))
    assert not services.needs_full_scan()  # nobody waits

    Evidence.objects.create(refund=made, kind="read", at=sent, found=False, detail="no_list")
    wanted = {}
    for scan, now in itertools.product((0, 1, 389, 390, 391), (389, 390, 391)):
        scanned(sent + timedelta(minutes=scan))
        at.now = sent + timedelta(minutes=now)
        if at.now < sent + timedelta(minutes=scan + 15):
            wanted[scan, now] = services.needs_full_scan()
    assert wanted == {
        (389, 389): False,
        (389, 390): True,
        (389, 391): True,
        (390, 389): False,
        (390, 390): False,
        (390, 391): False,
        (391, 389): False,
        (391, 390): False,
        (391, 391): False,
    }
    scanned(sent)
    at.now = sent + timedelta(minutes=1)
    assert services.needs_full_scan()
    scanned(sent + timedelta(seconds=1))
    assert not services.needs_full_scan()
    at.now = sent + timedelta(minutes=15, seconds=1)
    assert services.needs_full_scan()  # an older one may be repeated every quarter of an hour


def test_scan_wakes_only_those_whose_absence_it_proves(operator: User, sandbox: Sandbox, at: Clock) -> None:
    payments = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in range(4)]
    waits, leased, sleeps = (unknown(each, operator, sandbox) for each in payments[:3])
    at.advance(minutes=10)
    early = unknown(
        payments[3], operator, sandbox
    )  # may still be sent again: its pauses are for Smartpay's sake
    at.advance(hours=6, minutes=25)
    later = at.now + timedelta(hours=3)
    Refund.objects.update(next_check_at=later)
    for made in (waits, leased, early):
        Evidence.objects.create(refund=made, kind="read", at=at.now, found=False, detail="no_list")
    Refund.objects.filter(pk=leased.pk).update(lease_until=later, lease_owner="one")

    services.scan_if_needed(client=smartpay.client())

    woken = {each.pk: each.next_check_at for each in Refund.objects.all()}
    assert woken == {waits.pk: at.now, leased.pk: later, sleeps.pk: later, early.pk: later}
    assert scanning.scanned_at() == at.now


# --- Whether anything may be sent ---------------------------------------------------------------------------


def test_resuming_wakes_those_that_waited_and_nobody_else(
    operator: User, sandbox: Sandbox, at: Clock
) -> None:
    payments = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in range(4)]
    waits, is_unknown, leased = (
        queued(payments[0], operator),
        unknown(payments[1], operator, sandbox),
        queued(payments[2], operator),
    )
    overdue = queued(payments[3], operator)
    later, earlier = at.now + timedelta(hours=3), at.now - timedelta(hours=1)
    Refund.objects.update(next_check_at=later)
    Refund.objects.filter(pk=leased.pk).update(lease_until=later, lease_owner="one")
    Refund.objects.filter(pk=overdue.pk).update(next_check_at=earlier)

    services.set_sends(enabled=False, reason="点検")
    assert Refund.objects.get(pk=waits.pk).next_check_at == later
    services.set_sends(enabled=True, reason="終わり")

    woken = {each.pk: each.next_check_at for each in Refund.objects.all()}
    assert woken == {waits.pk: at.now, is_unknown.pk: at.now, leased.pk: later, overdue.pk: earlier}


def test_breaker_counts_only_the_last_five_answers_and_probes_after_a_minute(
    operator: User, sandbox: Sandbox, at: Clock
) -> None:
    payments = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in range(7)]
    refund(payments[0], operator)
    sandbox.fault("reset", method="POST", times=5, executed=False)
    for each in payments[1:5]:
        refund(each, operator)
    assert control.why_nothing_is_sent(at.now) == ""
    refund(payments[5], operator)

    assert control.why_nothing_is_sent(at.now + timedelta(seconds=59))
    assert control.why_nothing_is_sent(at.now + timedelta(seconds=60)) == ""


@pytest.mark.parametrize(
    ("answer", "alarmed"),
    [(smartpay.NotAccepted("405", http_status=405), True), (smartpay.Limited("429", http_status=429), False)],
)
def test_request_that_smartpay_does_not_take_is_an_alarm_with_its_status(
    payment: Payment, operator: User, caplog: Any, answer: smartpay.SmartpayError, alarmed: bool
) -> None:
    made = queued(payment, operator)

    control.react_to_error(answer, made)

    assert ("'event': 'smartpay.not_accepted'" in caplog.text) is alarmed
    assert ("'http_status': 405" in caplog.text) is alarmed
    assert "smartpay.silent" not in caplog.text
    assert Control.sends_are_on()


def test_refused_key_stops_sending_once_and_says_so(payment: Payment, operator: User) -> None:
    made = queued(payment, operator)

    for _time in range(2):
        control.react_to_error(smartpay.Unauthorized("401", http_status=401), made)

    assert (Control.objects.get().cause, Control.objects.get().changed_by) == ("key_refused", None)
    assert AuditEntry.objects.filter(action="sends.stopped").count() == 1


def test_restore_is_on_the_trail_with_what_was_seen(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any, at: Clock
) -> None:
    newest = refund(payment, operator).attempts.get().pk
    control.remember(newest + 5)

    services.watch()

    entry = AuditEntry.objects.get(action="sends.stopped")
    assert (entry.actor, entry.data) == (
        None,
        {"cause": "restored", "attempt": newest, "seen": newest + 5, "sends_before": True},
    )
    now = Control.objects.get()
    assert (now.sends_enabled, now.cause, now.restored_at, now.changed_at) == (
        False,
        "restored",
        at.now,
        at.now,
    )
    assert "'event': 'ledger.restored'" in caplog.text
    assert control._mark().attempt == newest + 5  # not lowered to what the older database has


def test_fence_is_lifted_only_by_a_scan_that_began_three_quarters_of_an_hour_after_it_rose(
    payment: Payment, approver: User, at: Clock
) -> None:
    forget_the_last_attempt()
    services.watch()
    raised = at.now
    assert services.needs_full_scan()
    scanned(raised)
    at.advance(minutes=44)
    assert not services.needs_full_scan()  # it would show no more
    at.advance(minutes=1)
    assert services.needs_full_scan()
    at.advance(minutes=15)

    scanned(raised + timedelta(minutes=44))
    assert services.needs_full_scan()
    with pytest.raises(services.NotReconciled):
        services.set_sends(enabled=True, reason="早い", by=approver)
    services.set_sends(enabled=False, reason="まだ", by=approver)
    assert Control.objects.get().restored_at == raised
    scanned(raised + timedelta(minutes=45))
    services.set_sends(enabled=True, reason="確認済み", by=approver)

    now = Control.objects.get()
    assert (now.restored_at, now.restore_accepted_at, now.sends_enabled) == (None, at.now, True)
    assert not services.needs_full_scan()
    assert control.why_nothing_is_sent(at.now) == ""


def test_mark_only_rises_and_is_private(payment: Payment, settings: Any, tmp_path: Path) -> None:
    settings.STATE_DIR = tmp_path / "some" / "where"
    assert control._mark() == control.Mark("", 0)

    for attempt in (7, 3, 7):
        control.remember(attempt)
        assert control._mark() == control.Mark("", 7)
    control.remember(8)

    assert control._mark() == control.Mark("", 8)
    assert settings.STATE_DIR.stat().st_mode & 0o777 == 0o700
    assert not (settings.STATE_DIR / "ledger-mark.new").exists()


def test_watch_remembers_how_far_the_ledger_is(payment: Payment, operator: User, tmp_path: Path) -> None:
    services.watch()
    assert control._mark().attempt == 0
    newest = refund(payment, operator).attempts.get().pk
    (tmp_path / "ledger-mark").unlink()

    services.watch()

    assert control._mark().attempt == newest
    assert Control.sends_are_on()


def test_mark_that_can_not_be_read_stops_the_sending(
    payment: Payment, operator: User, sandbox: Sandbox, tmp_path: Path
) -> None:
    (tmp_path / "ledger-mark").write_text("nonsense")

    with pytest.raises(json.JSONDecodeError):
        refund(payment, operator)

    assert not sandbox.requests("POST", "/v1/refunds")


# --- Transactions -------------------------------------------------------------------------------------------


def steps(made: Refund, operator: User, approver: User) -> list[Callable[[], Any]]:
    ghost = lost(made.payment)
    return [
        lambda: queued(made.payment, operator),
        lambda: services.withdraw(made.pk, by=operator),
        lambda: services.reject(made.pk, by=approver, note="遅い"),
        lambda: services.observe_refund(shown(made), read_at=clock.now()),
        lambda: observing._recover(uuid.UUID(ghost.metadata["refund_dashboard_id"]), ghost),
        lambda: sending.begin_attempt(made.pk, owner=NO_LEASE),
        lambda: sending.take_lease(made.pk, owner="one"),
        services.watch,
    ]


def test_no_step_of_the_ledger_hides_in_anothers_transaction(
    payment: Payment, operator: User, approver: User
) -> None:
    made = queued(payment, operator, 100)

    for step in steps(made, operator, approver):
        with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
            step()


class Busy(Exception):
    def __init__(self, name: str) -> None:
        self.sqlite_errorname = name


@pytest.mark.parametrize(
    ("cause", "again"),
    [
        (Busy("SQLITE_BUSY_SNAPSHOT"), True),
        (Busy("SQLITE_LOCKED"), True),
        (Busy("SQLITE_FULL"), False),
        (None, False),
    ],
)
def test_only_what_was_given_up_because_of_others_is_tried_again(
    cause: Exception | None, again: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("time.sleep", slept.append)

    def step() -> None:
        raise OperationalError from cause

    with pytest.raises(OperationalError):
        states.retried(step)()

    assert len(slept) == (2 if again else 0)
    assert all(0.01 <= pause <= 0.1 * attempt for attempt, pause in enumerate(slept, start=1))


# --- Cases for people ---------------------------------------------------------------------------------------


@pytest.fixture
def second(db: None) -> User:
    return make_user("approver", "承認 二郎")


@pytest.fixture
def case(payment: Payment, operator: User, sandbox: Sandbox, at: Clock) -> Refund:
    """Never carried out, and called a case; whatever the test shows as its refund is another's at Smartpay."""
    made = unknown(payment, operator, sandbox)
    Refund.objects.filter(pk=made.pk).update(
        state=State.REVIEW, reviews=1, lease_until=None, next_check_at=None, error_code="x", error_message="y"
    )
    made.refresh_from_db()
    return made


def decide(case: Refund, by: User, smartpay_id: str = "", **other: Any) -> Refund:
    facts = {"verdict": "succeeded" if smartpay_id else "not_executed", "note": "確認済み"} | other
    return services.decide_case(case.pk, smartpay_id=smartpay_id, by=by, client=smartpay.client(), **facts)


def test_decision_is_kept_whole_and_settles_with_the_second(
    case: Refund, payment: Payment, approver: User, second: User, sandbox: Sandbox, at: Clock
) -> None:
    there = sandbox.refund_elsewhere(payment.pk, 1300)["id"]

    decide(case, approver, there, note="店舗に確認")
    at.advance(minutes=1)
    settled = decide(case, second, there, note="同じ")

    kept = case.review_decisions.order_by("id").values_list(
        "round", "person", "verdict", "smartpay_id", "note", "at"
    )
    assert list(kept) == [
        (1, approver.pk, "succeeded", there, "店舗に確認", at.now - timedelta(minutes=1)),
        (1, second.pk, "succeeded", there, "同じ", at.now),
    ]
    entries = (
        AuditEntry.objects.filter(object_id=case.pk).order_by("-id").values_list("actor", "action", "data")
    )
    judged = {"verdict": "succeeded", "smartpay_id": there, "round": 1}
    assert list(entries)[:3] == [
        (
            second.pk,
            "refund.succeeded",
            {"smartpay_id": there, "by_review": True, **from_to(State.REVIEW, State.SUCCEEDED)},
        ),
        (second.pk, "refund.judged", judged),
        (approver.pk, "refund.judged", judged),
    ]
    settled.refresh_from_db()
    assert (settled.state, settled.smartpay_id, settled.settled_at) == (State.SUCCEEDED, there, at.now)
    assert (settled.error_code, settled.error_message) == ("", "")
    shown_by = settled.evidence.filter(found=True).values_list("kind", "at", "smartpay_id", "detail")
    assert list(shown_by) == [("read", at.now, there, "differs")]
    assert SmartpayRefund.objects.get(pk=there).ours == settled


def test_evidence_of_a_decision_on_the_same_amount_does_not_differ(
    case: Refund, payment: Payment, approver: User, second: User, sandbox: Sandbox
) -> None:
    there = sandbox.refund_elsewhere(payment.pk, 1000)["id"]

    for person in (approver, second):
        decide(case, person, there)

    assert case.evidence.get(found=True).detail == ""


def test_word_of_an_approver_who_left_does_not_count(
    case: Refund, payment: Payment, approver: User, second: User, sandbox: Sandbox
) -> None:
    there = sandbox.refund_elsewhere(payment.pk, 1000)["id"]
    decide(case, approver, there)
    User.objects.filter(pk=approver.pk).update(is_active=False)

    assert decide(case, second, there).state == State.REVIEW
    assert decide(case, make_user("approver"), there).state == State.SUCCEEDED


def test_words_about_two_different_refunds_do_not_agree(
    case: Refund, payment: Payment, approver: User, second: User, sandbox: Sandbox
) -> None:
    one, other = (sandbox.refund_elsewhere(payment.pk, amount)["id"] for amount in (1000, 900))

    decide(case, approver, one)

    assert decide(case, second, other).state == State.REVIEW
    assert decide(case, second, one).smartpay_id == one


def test_decision_about_an_earlier_round_is_not_taken(
    case: Refund, payment: Payment, approver: User, second: User, sandbox: Sandbox
) -> None:
    there = sandbox.refund_elsewhere(payment.pk, 1000)["id"]
    with pytest.raises(services.NotProved, match="変わりました"):
        decide(case, approver, there, at_round=0)
    decide(case, approver, there, at_round=1)
    Refund.objects.filter(pk=case.pk).update(reviews=2)

    assert decide(case, second, there, at_round=2).state == State.REVIEW  # the first word was about round 1


@pytest.mark.parametrize(
    "smartpay_id", ["", "refund_live_0000000000000000000000", "payment_test_0000000000000000000000"]
)
def test_what_is_no_refund_of_this_mode_is_not_chosen(case: Refund, approver: User, smartpay_id: str) -> None:
    with pytest.raises(services.NotProved, match="選んでください"):
        decide(case, approver, smartpay_id, verdict="succeeded")


def candidates(case: Refund) -> dict[str, tuple[bool, str]]:
    case.refresh_from_db()
    return {each.mirrored.pk: (each.is_named, each.why_not) for each in services.review_case(case).candidates}


def number(count: int) -> str:
    return f"refund_test_{count:022d}"


def test_candidates_are_shown_oldest_first_with_what_speaks_against_each(
    case: Refund, payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    other = mirrored(sandbox, "refundable", min_amount=2000, skip=1)
    sent = case.first_sent_at or at.now
    strangers = Refund(payment=payment, amount=10)
    for count, facts in enumerate(
        [
            {"reference": "", "created_at": sent - timedelta(minutes=10)},
            {"reference": "", "created_at": sent, "status": "failed"},
            {"reference": "", "created_at": sent, "status": "odd"},
            {"reference": "", "created_at": sent, "status": ""},
            {"reference": "", "created_at": sent, "currency": "USD"},
            {"reference": "", "created_at": sent - timedelta(minutes=10, seconds=1)},
        ],
        start=1,
    ):
        observe(shown(strangers, number(count), **facts))
    observe(shown(case, number(7), payment=other.pk, created_at=sent + timedelta(seconds=1)))

    assert list(candidates(case).items()) == [
        (number(1), (False, "")),
        (number(2), (False, "Smartpay は返金不可と示しています。")),
        (number(3), (False, "Smartpay は返金済みとも返金不可とも示していません。")),
        (number(4), (False, "")),
        (number(5), (False, "通貨が異なります。")),
        (number(7), (True, "別の支払いの返金です。")),
    ]


def test_refund_of_another_row_is_no_candidate(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    done = refund(payment, operator)
    sandbox.fault("reset", executed=False)
    made = refund(payment, operator, similar_reason="別件")
    Refund.objects.filter(pk=made.pk).update(state=State.REVIEW, reviews=1)

    assert candidates(made) == {}
    assert done.smartpay_id


def test_absence_can_be_said_from_the_minute_that_is_named(
    case: Refund, payment: Payment, approver: User, at: Clock
) -> None:
    sent = case.first_sent_at or at.now

    def why_not(complete_at: datetime | None = None) -> str:
        case.refresh_from_db()
        return services.review_case(case, complete_at=complete_at).why_not_absent

    def told(moment: datetime) -> str:
        return f"早くて {moment.astimezone(ZoneInfo('Asia/Tokyo')):%Y/%m/%d %H:%M} から"

    assert told(sent + timedelta(hours=6, minutes=45)) in why_not(at.now)
    at.now = sent + timedelta(hours=6, minutes=45)
    assert "待っています" in why_not(at.now)
    Refund.objects.filter(pk=case.pk).update(absent_since=at.now)
    assert told(at.now + timedelta(minutes=15)) in why_not(at.now)
    at.advance(minutes=15)
    assert "待っています" in why_not(at.now - timedelta(seconds=1))
    assert "待っています" in why_not(None)
    assert why_not(at.now) == ""


@pytest.mark.parametrize(
    ("status", "words"), [("succeeded", "示されているため"), ("odd", "示されているため"), ("failed", "")]
)
def test_absence_is_never_said_beside_one_that_carries_the_number(
    case: Refund, sandbox: Sandbox, status: str, words: str
) -> None:
    seen = (
        shown(case, amount=999, status="failed")
        if status == "failed"
        else shown(case, amount=999, status=status)
    )

    observe(seen)

    case.refresh_from_db()
    told = services.review_case(case).why_not_absent
    assert words in told
    assert bool(told) is bool(words)


def test_case_of_a_refund_that_was_never_sent_says_so(payment: Payment, operator: User) -> None:
    made = queued(payment, operator)
    observe(shown(made, amount=999))
    made.refresh_from_db()

    assert made.state == State.REVIEW
    assert "送信した記録がないのに、Smartpay が返金を示しました。" in services.review_case(made).why


def why(case: Refund) -> list[str]:
    case.refresh_from_db()
    return services.review_case(case).why


def test_case_tells_why_it_is_one(
    case: Refund, payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    silent = "送信したあと、Smartpay を長いあいだ読み取れませんでした。"
    assert why(case) == [silent]
    observe(shown(Refund(payment=payment, amount=1000), number(5), reference="", status="failed"))
    observe(shown(Refund(payment=payment, amount=999), number(6), reference=""))
    Refund.objects.filter(pk=case.pk).update(absent_since=at.now)
    assert why(case) == [silent]
    observe(shown(Refund(payment=payment, amount=1000), number(7), reference=""))
    without = "この返金の受付番号がある返金はありませんが、受付番号のない同じ金額の返金があります。"
    assert why(case) == [without]
    observe(shown(case, number(1), amount=999))
    assert why(case) == ["Smartpay が示す返金は、金額が申請と異なります(申請 ¥1,000、Smartpay ¥999)。"]
    observe(shown(case, number(2), amount=998))
    differs = "Smartpay が示す返金は、支払い・金額・通貨のいずれかが申請と異なります。"
    assert why(case) == [differs, "この返金の受付番号がある返金が、Smartpay に二つ以上あります。"]


def test_case_tells_that_an_answer_contradicted_or_that_it_was_settled_before(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    sandbox.fault("wrong_amount")
    contradicted = refund(payment, operator)
    other = mirrored(sandbox, "refundable", min_amount=2000, skip=1)
    sandbox.refund_elsewhere(other.pk, other.captured)
    rejected = refund(other, operator)
    observe(shown(rejected))

    assert why(contradicted) == ["送信への応答が、申請した内容と食い違っていました。"]
    assert why(rejected) == ["いったん確定したあとに、Smartpay が返金を示しました。"]


def test_look_tells_when_the_complete_read_began(
    case: Refund, payment: Payment, sandbox: Sandbox, at: Clock
) -> None:
    assert services.look_again(case.pk, client=smartpay.client()) == at.now
    assert not case.evidence.exists()  # it proves nothing yet

    sandbox.switch(payments_list_refunds=False)
    assert services.look_again(case.pk, client=smartpay.client()) is None
    scanned(at.now - timedelta(seconds=3))
    assert services.look_again(case.pk, client=smartpay.client()) == at.now - timedelta(seconds=3)
    assert list(case.evidence.values_list("kind", "at", "found", "detail")) == [
        ("read", at.now, False, "no_list")
    ]


def test_look_that_proves_absence_is_written_down_once_a_while(
    case: Refund, payment: Payment, sandbox: Sandbox, at: Clock
) -> None:
    sent = case.first_sent_at or at.now
    at.now = first = sent + timedelta(hours=6, minutes=30)

    services.look_again(case.pk, client=smartpay.client())
    case.refresh_from_db()
    assert (case.absent_since, case.state) == (first, State.REVIEW)
    at.now = first + timedelta(minutes=15)
    services.look_again(case.pk, client=smartpay.client())
    for _time in range(2):
        services.look_again(case.pk, client=smartpay.client())

    case.refresh_from_db()
    assert case.absent_since == first
    assert list(case.evidence.order_by("id").values_list("kind", "at", "found", "detail")) == [
        ("read", first, False, ""),
        ("read", at.now, False, ""),
    ]


def unanswered(payment: Payment, by: User, at: Clock) -> Refund:
    """Its sender died; a worker holds the turn, and no answer has left any words."""
    made = queued(payment, by)
    assert sending.begin_attempt(made.pk, owner=NO_LEASE)
    at.advance(seconds=120)
    assert sending.take_lease(made.pk, owner="worker")
    made.refresh_from_db()
    assert (made.state, made.error_message) == (State.UNKNOWN, "")
    return made


def second_one(made: Refund, at: Clock) -> None:
    observe(shown(made, status="failed"))
    observe(shown(made, number(2)))


def existing_after_all(made: Refund, at: Clock) -> None:
    observe(shown(made, status="failed"))
    observe(shown(made))


def differing(made: Refund, at: Clock) -> None:
    observe(shown(made, amount=999))


def could_be_it(made: Refund, at: Clock) -> None:
    observe(shown(made, reference=""))
    for _time in range(2):
        at.advance(hours=7)
        scanned(at.now)
        look(made, at)


def unreadable(made: Refund, at: Clock) -> None:
    at.advance(hours=13)
    absence._book_failed_read(made.pk, smartpay.Unclear("silence"), owner="worker")


@pytest.mark.parametrize("happens", [second_one, existing_after_all, differing, could_be_it, unreadable])
def test_case_that_no_answer_explains_keeps_why_it_is_one(
    payment: Payment,
    operator: User,
    sandbox: Sandbox,
    at: Clock,
    caplog: Any,
    happens: Callable[[Refund, Clock], None],
) -> None:
    sandbox.switch(payments_list_refunds=False)
    made = unanswered(payment, operator, at)

    happens(made, at)

    made.refresh_from_db()
    assert (made.state, made.reviews) == (State.REVIEW, 1)
    assert made.error_message
    assert f"'why': '{made.error_message}'" in caplog.text


def test_refund_that_was_forgotten_keeps_why_it_was_a_case(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any
) -> None:
    made = queued(payment, operator)

    observe(shown(made, amount=999))

    made.refresh_from_db()
    assert made.state == State.REVIEW
    assert made.error_message


def test_lease_that_was_lost_books_no_silence_and_no_absence(
    payment: Payment, operator: User, at: Clock
) -> None:
    made = unanswered(payment, operator, at)

    absence._book_failed_read(made.pk, smartpay.Unclear("silence"), owner="another")
    allowed = absence._book_absence(made.pk, kind="read", complete_at=at.now, owner="another")

    assert not allowed
    assert not made.evidence.exists()
    kept = Refund.objects.get(pk=made.pk)
    assert (kept.lease_owner, kept.lease_until, kept.next_check_at) == (
        "worker",
        made.lease_until,
        made.next_check_at,
    )


@pytest.mark.parametrize(
    ("after", "allowed", "detail"),
    [(1, True, ""), (0, False, "no_list"), (-1, False, "no_list"), (None, False, "no_list")],
)
def test_only_a_complete_read_that_began_after_the_sending_allows_another(
    payment: Payment, operator: User, at: Clock, after: int | None, allowed: bool, detail: str
) -> None:
    made = unanswered(payment, operator, at)
    sent = made.last_sent_at or at.now
    complete_at = None if after is None else sent + timedelta(seconds=after)

    answer = absence._book_absence(made.pk, kind="list", complete_at=complete_at, owner="worker")

    kept = Refund.objects.get(pk=made.pk)
    kind = "list" if allowed else "read"
    assert answer is allowed
    assert list(made.evidence.values_list("kind", "at", "found", "detail")) == [(kind, at.now, False, detail)]
    assert kept.lease_owner == ("worker" if allowed else "")
    assert kept.absent_since is None


def test_what_smartpay_shows_in_an_odd_status_is_looked_at_later_and_not_sent(
    payment: Payment, operator: User, at: Clock
) -> None:
    made = unanswered(payment, operator, at)
    observe(shown(made, status="processing"))

    assert not absence._book_absence(made.pk, kind="read", complete_at=at.now, owner="worker")

    kept = Refund.objects.get(pk=made.pk)
    assert (kept.state, kept.lease_owner, made.evidence.count()) == (State.UNKNOWN, "", 0)
    assert kept.next_check_at is not None
    assert kept.next_check_at > at.now


# --- What the alarms are called -----------------------------------------------------------------------------


def alarms(caplog: Any, made: Refund) -> list[str]:
    """The names of the alarms about a refund, by which whoever watches the logs tells them apart."""
    texts = [record.getMessage() for record in caplog.records]
    about = [text for text in texts if "'alarm': True" in text and f"'refund': '{made.pk}'" in text]
    return [text.split("'event': '")[1].split("'")[0] for text in about]


def test_contradicting_answer_has_its_alarm_after_the_lease_as_well(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, caplog: Any
) -> None:
    made = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    slow = sending.begin_attempt(made.pk, owner=NO_LEASE)
    assert slow is not None
    at.advance(seconds=121)
    services.settle_due(client=smartpay.client())

    sending.book(slow, smartpay.Contradiction("Another amount.", http_status=200))

    made.refresh_from_db()
    assert (made.state, alarms(caplog, made)) == (State.SUCCEEDED, ["refund.contradicted"])


def test_second_execution_has_its_alarm_whatever_became_of_the_first(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any
) -> None:
    made = refund(payment, operator)

    observe(shown(made, number(2)))

    made.refresh_from_db()
    assert (made.state, alarms(caplog, made)) == (State.SUCCEEDED, ["refund.two_executions"])
    assert f"'smartpay_id': '{number(2)}'" in caplog.text


def test_what_a_payment_counts_beside_the_ledger_is_the_sum_of_its_refunds(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    made = refund(payment, operator, 500)
    withdrawn = queued(payment, operator, 400)
    services.withdraw(withdrawn.pk, by=operator)
    elsewhere = {"reference": "", "metadata": {}}

    for seen in (
        shown(made, str(made.smartpay_id), amount=made.amount + 30),
        shown(made, number(2)),
        shown(made, number(3), status="failed"),
        shown(withdrawn, number(4)),
        shown(made, number(5), amount=20, **elsewhere),
    ):
        observe(seen)
        payment.refresh_from_db()
        assert payment.external == sum(each.uncovered() for each in payment.smartpay_refunds.all())

    assert payment.external == 30 + 500 + 400 + 20


def test_execution_of_what_was_cancelled_has_its_alarm(payment: Payment, operator: User, caplog: Any) -> None:
    made = queued(payment, operator)
    services.withdraw(made.pk, by=operator)

    observe(shown(made))

    assert alarms(caplog, made) == ["refund.executed_unasked"]
    assert f"'smartpay_id': '{shown(made).id}'" in caplog.text


def test_fifth_silence_has_its_alarm(operator: User, sandbox: Sandbox, caplog: Any) -> None:
    payments = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in range(5)]
    sandbox.fault("reset", method="POST", times=5, executed=False)

    told = [alarms(caplog, refund(each, operator)) for each in payments]

    assert told == [[], [], [], [], ["smartpay.silent"]]


def test_failure_that_is_read_has_no_alarm_where_nothing_had_succeeded(
    payment: Payment, operator: User, sandbox: Sandbox, caplog: Any
) -> None:
    made = unknown(payment, operator, sandbox)

    for _time in range(2):
        observe(shown(made, status="failed"))

    assert alarms(caplog, made) == []
