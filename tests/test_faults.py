"""The faults of docs/security.md that no other file meets: crowds, clocks, networks, databases, and every answer."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import OperationalError, connection, connections, transaction
from django.urls import reverse
from hypothesis import HealthCheck, given, settings, strategies

from dashboard.models import User
from refunds import audit, clock, services, smartpay
from refunds.forms import YenField
from refunds.models import Attempt, AuditEntry, Control, Order, Payment, Refund
from refunds.services import observing, sending
from refunds.services.states import LONGEST_PAUSE, NO_LEASE, SEND_WINDOW
from tests.conftest import Asking, Clock, make_user, sign_in
from tests.sandbox import Sandbox
from tests.test_services import ask, at_smartpay, mirrored, pass_time, refund, scan, work
from tests.test_smartpay import KEY, PAYMENT, Wire, client_of, http, made, refusal
from tests.test_views import form_url, hidden, typed

State = Refund.State


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    return mirrored(sandbox, "refundable", min_amount=2000)


def posts(sandbox: Sandbox) -> list[dict[str, Any]]:
    return sandbox.requests("POST", "/v1/refunds")


def at_once(number: int, act: Callable[[int], None]) -> None:
    """Run it in so many threads at the same moment, each with a connection of its own."""
    start, failed = threading.Barrier(number), []

    def run(nth: int) -> None:
        try:
            start.wait(10)
            act(nth)
        except Exception as error:  # shown by the assertion
            failed.append(error)
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=[nth]) for nth in range(number)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []


# --- F1-F4: people ------------------------------------------------------------------------------------------


@pytest.mark.postgresql  # SQLite in memory has one connection, and no race to lose
@pytest.mark.django_db(transaction=True)
def test_twenty_clicks_at_once_are_one_refund(sandbox: Sandbox) -> None:
    order = mirrored(sandbox, "refundable", min_amount=2000).order
    browser = sign_in(make_user("operator"))
    last = hidden(browser.post(form_url(order), typed(order))) | {"confirm": "1"}
    answers = []

    at_once(20, lambda _nth: answers.append(browser.post(form_url(order), last)))

    page = reverse("refunds:refund", args=[last["request_id"]])
    assert [(answer.status_code, answer["Location"]) for answer in answers] == [(303, page)] * 20
    assert Refund.objects.count() == len(posts(sandbox)) == 1


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_nobody_is_told_that_nothing_was_recorded_while_it_is_being_recorded(
    sandbox: Sandbox, asking: Asking
) -> None:
    order = mirrored(sandbox, "refundable", min_amount=2000).order
    browser = sign_in(make_user("operator"))
    last = hidden(browser.post(form_url(order), typed(order))) | {"confirm": "1"}
    answers = []

    def press(nth: int) -> None:
        if nth:  # Smartpay is away when the button is pressed again, before the first press has committed
            assert asking.inserted.wait(20)
            sandbox.fault("html", method="GET", path="", times=None)
            threading.Timer(3, asking.go_on.set).start()
        answers.append(browser.post(form_url(order), last))

    at_once(2, press)

    page = reverse("refunds:refund", args=[last["request_id"]])
    assert [(answer.status_code, answer.headers.get("Location")) for answer in answers] == [(303, page)] * 2


def test_form_that_was_used_for_something_else_is_on_the_trail(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    done = refund(payment, operator, description="サイズ交換のため", memo="電話で確認")
    order = Order.objects.get(payments=payment)

    answer = sign_in(operator).post(form_url(order), typed(order, request_id=str(done.pk), amount="999"))

    entry = AuditEntry.objects.get(action="refund.requested", outcome="refused")
    assert (answer.status_code, entry.object_id, entry.actor) == (409, str(done.pk), operator)
    assert len(posts(sandbox)) == 1


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_twelve_people_at_once_ask_for_all_there_is_and_not_a_yen_more(sandbox: Sandbox) -> None:
    people = [make_user("operator") for _person in range(12)]
    payments = [mirrored(sandbox, "refundable", min_amount=2000, skip=skip) for skip in (0, 1)]
    share = {payment.pk: payment.refundable() // 5 for payment in payments}
    refused = []

    def insist(nth: int) -> None:
        """Ask until it is taken or too much, as somebody does who is shown the new figure each time."""
        chosen = Payment.objects.get(pk=payments[nth % 2].pk)
        while True:
            chosen.refresh_from_db()
            try:
                services.request_refund(
                    ask(chosen, share[chosen.pk]),
                    refundable=chosen.refundable(),
                    by=people[nth],
                    similar_reason="別件",
                )
            except services.BalanceMoved:
                continue
            except services.AmountTooHigh:
                refused.append(nth)
            return

    at_once(12, insist)

    for each in payments:
        each.refresh_from_db()
        assert each.reserved == 5 * share[each.pk] <= each.captured
    assert (Refund.objects.count(), len(refused)) == (10, 2)


def test_second_person_is_shown_who_was_first_and_insists_on_the_record(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock
) -> None:
    first = refund(payment, operator)
    second = make_user("operator", "返金 次郎")
    at.advance(hours=23)
    payment.refresh_from_db()
    again = ask(payment)

    [similar] = services.preview_refund(again, by=second).similar
    assert (similar.person, similar.at, similar.amount) == (operator, first.requested_at, 1000)
    with pytest.raises(services.SimilarRefund):
        services.request_refund(again, refundable=payment.refundable(), by=second)
    services.request_refund(again, refundable=payment.refundable(), by=second, similar_reason="二点目")

    assert AuditEntry.objects.get(object_id=again.request_id, action="refund.requested").data["similar"]
    assert len(posts(sandbox)) == 1


# --- F7-F10, F13, F14: Smartpay and the network --------------------------------------------------------------


@pytest.mark.parametrize("executed", [True, False])
def test_error_that_smartpay_repeats_for_six_hours_is_settled_by_reading(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, executed: bool
) -> None:
    sandbox.fault("error", stored=True, executed=executed)
    sandbox.switch(read_lag_seconds=600)  # so that even the executed one is asked for again
    done = refund(payment, operator)
    assert done.state == State.UNKNOWN

    for _turn in range(50):
        pass_time(at, sandbox, minutes=9)
        work()

    done.refresh_from_db()
    assert done.state == (State.SUCCEEDED if executed else State.NOT_EXECUTED)
    assert len(at_smartpay(sandbox, payment)) == executed
    assert {attempt.outcome for attempt in done.attempts.all()} == {"AMBIGUOUS"}
    assert len(posts(sandbox)) > 1


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize("hours", [7, 12])
def test_outage_across_the_window_ends_in_a_reading_and_in_no_late_request(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, hours: int, executed: bool
) -> None:
    sandbox.fault("reset", executed=executed)
    done = refund(payment, operator)
    sandbox.fault("html", method=None, path="", status=500, times=None)
    for _turn in range(hours):
        pass_time(at, sandbox, minutes=59)
        work()
    sandbox.clear_faults()

    for _turn in range(4):
        pass_time(at, sandbox, minutes=20)
        work()

    done.refresh_from_db()
    payment.refresh_from_db()
    assert (done.state, done.attempt_no) == (State.SUCCEEDED if executed else State.NOT_EXECUTED, 1)
    assert len(at_smartpay(sandbox, payment)) == executed
    assert (payment.reserved, payment.refunded) == (0, 1000 * executed)
    assert len(posts(sandbox)) == 1


@pytest.mark.parametrize("lists", [True, False])
def test_request_that_arrives_twenty_minutes_later_changes_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, lists: bool
) -> None:
    sandbox.switch(payments_list_refunds=lists)
    sandbox.fault("held")
    done = refund(payment, operator)
    for _turn in range(2):
        pass_time(at, sandbox, minutes=9)
        work()
    done.refresh_from_db()
    assert (done.state, done.attempt_no) == (State.SUCCEEDED, 2)

    pass_time(at, sandbox, minutes=2)
    assert sandbox.release() == [200]

    work()
    assert [each["id"] for each in at_smartpay(sandbox, payment)] == [done.smartpay_id]


def test_request_under_way_is_not_absent(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock
) -> None:
    sandbox.fault("held")
    done = refund(payment, operator)
    services.set_sends(enabled=False, reason="点検", by=approver)
    pass_time(at, sandbox, minutes=19)
    work()
    done.refresh_from_db()
    assert (done.state, done.absent_since) == (State.UNKNOWN, None)

    sandbox.release()
    pass_time(at, sandbox, minutes=45)
    work()

    done.refresh_from_db()
    assert (done.state, done.attempt_no) == (State.SUCCEEDED, 1)


def test_request_that_a_proxy_delivers_twice_is_one_refund(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    sandbox.fault("doubled")

    done = refund(payment, operator)

    assert [each["id"] for each in at_smartpay(sandbox, payment)] == [done.smartpay_id]


@pytest.mark.parametrize("sends", [True, False])
def test_reads_that_lag_behind_by_ten_minutes_refund_nothing_twice(
    payment: Payment, operator: User, approver: User, sandbox: Sandbox, at: Clock, sends: bool
) -> None:
    sandbox.switch(read_lag_seconds=600)
    sandbox.fault("reset")
    done = refund(payment, operator)
    services.set_sends(enabled=sends, reason="点検", by=approver)

    for minutes in (1, 4, 12, 25):
        pass_time(at, sandbox, minutes=minutes)
        work()

    done.refresh_from_db()
    assert (done.state, done.attempt_no) == (State.SUCCEEDED, 2 if sends else 1)
    assert len(at_smartpay(sandbox, payment)) == 1


def test_connection_that_smartpay_is_closing_costs_none_of_500_refunds_its_answer() -> None:
    """It answers, keeps the connection, and closes it at the very moment when something else comes along it."""

    def answer_once(connection: socket.socket) -> None:
        connection.sendall(http(made()))
        connection.recv(1)

    server = Wire(answer_once)
    client = client_of(server.url)
    request = {"payment_id": PAYMENT, "amount": 1000, "currency": "JPY"}
    body = smartpay.refund_body(**request, reason="fraudulent", description="", key=KEY)  # type: ignore[arg-type]

    for _time in range(500):
        client.get_refund(
            made()["id"]
        )  # leaves a connection behind; the next reading may try in vain, and again
        assert client.create_refund(body=body, key=KEY, **request).outcome == "EXECUTED"  # type: ignore[arg-type]

    server.close()
    assert sum(request.startswith(b"POST ") for request in server.heard) == 500


# --- F16: the clock of the database --------------------------------------------------------------------------


@pytest.mark.parametrize(("first", "later"), [(10, -10), (-10, 10), (10, 10), (-10, -10)])
def test_clock_that_is_ten_minutes_wrong_sends_nothing_too_late_and_proves_nothing_too_early(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, first: int, later: int
) -> None:
    """At the first sending it is wrong by one error; from two hours later on, by the other."""
    true = at.now

    def tell(minutes: int) -> None:
        at.now = true + timedelta(minutes=minutes + (first if minutes < 120 else later))

    tell(0)
    sandbox.fault("reset", executed=False, times=None)
    done = refund(payment, operator)
    settled_after = 0
    for minutes in range(10, 9 * 60, 10):
        sandbox.advance(600)
        tell(minutes)
        work()
        done.refresh_from_db()
        if done.is_settled:
            settled_after = minutes
            break

    sent = [each["at"] for each in posts(sandbox)]
    tried_for = timedelta(milliseconds=max(sent) - min(sent))
    jump, step, longest_pause = timedelta(minutes=20), timedelta(minutes=10), 1.5 * LONGEST_PAUSE
    assert tried_for < timedelta(hours=6) - jump  # the key is known, twenty minutes on the way included
    assert tried_for > SEND_WINDOW - jump - longest_pause - step  # and it did try as long as it may
    assert done.state == State.NOT_EXECUTED
    # What was under way has arrived, and no reader misses it any more.
    assert timedelta(minutes=settled_after) > tried_for + timedelta(minutes=30)


# --- F21-F23: the database -----------------------------------------------------------------------------------


class GivenUp(Exception):
    """As either database says that it rolled back because of others."""

    sqlstate, sqlite_errorname = "40P01", "SQLITE_BUSY"


class Full(Exception):
    sqlstate, sqlite_errorname = "53100", "SQLITE_FULL"


class Gone(Exception):
    sqlstate, sqlite_errorname = "57P01", "SQLITE_IOERR"


def fail_at(action: str, cause: type[Exception], times: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Have the database fail as late as it can in the transactions that tell of this; what it failed at."""
    record = audit.record
    failed: list[str] = []

    def fails(by: Any, told: str, *about: Any, **more: Any) -> Any:
        entry = record(by, told, *about, **more)
        if told == action and len(failed) < times:
            failed.append(told)
            raise OperationalError from cause()
        return entry

    monkeypatch.setattr(audit, "record", fails)
    return failed


@pytest.mark.parametrize("action", ["refund.requested", "refund.sending", "refund.succeeded"])
def test_step_that_the_database_gave_up_is_done_again_and_sends_once(
    payment: Payment, operator: User, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, action: str
) -> None:
    failed = fail_at(action, GivenUp, 2, monkeypatch)

    done = refund(payment, operator)

    assert (done.state, done.attempt_no, failed) == (State.SUCCEEDED, 1, [action] * 2)
    assert list(AuditEntry.objects.order_by("id").values_list("action", flat=True)) == [
        "refund.requested",
        "refund.sending",
        "refund.succeeded",
    ]
    assert len(posts(sandbox)) == 1


@pytest.mark.parametrize(("cause", "times"), [(GivenUp, 3), (Full, 1), (Gone, 1)])
@pytest.mark.parametrize("action", ["refund.requested", "refund.sending", "refund.succeeded"])
def test_step_that_fails_for_good_is_taken_up_by_a_worker(
    payment: Payment,
    operator: User,
    sandbox: Sandbox,
    at: Clock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: Any,
    action: str,
    cause: type[Exception],
    times: int,
) -> None:
    failed = fail_at(action, cause, times, monkeypatch)
    asked, left = ask(payment), payment.refundable()

    with pytest.raises(OperationalError):
        services.refund_payment(asked, refundable=left, by=operator)

    assert len(failed) == times
    assert len(posts(sandbox)) == (action == "refund.succeeded")
    if action != "refund.succeeded":
        assert not Refund.objects.exists()  # the person is told, and sends the same form again
        services.refund_payment(asked, refundable=left, by=operator)
    if action == "refund.succeeded":
        [there] = at_smartpay(sandbox, payment)
        assert there["id"] in caplog.text  # the log knows what the ledger does not
    at.advance(seconds=121)
    work()
    done = Refund.objects.get()
    assert (done.state, done.attempt_no, len(posts(sandbox))) == (State.SUCCEEDED, 1, 1)


@pytest.mark.postgresql
@pytest.mark.django_db(transaction=True)
def test_deadlock_with_somebody_who_locks_the_other_way_round_is_survived(
    sandbox: Sandbox, caplog: Any
) -> None:
    person = make_user("operator")
    payment = mirrored(sandbox, "refundable", min_amount=2000)
    waiting = services.request_refund(ask(payment), refundable=payment.refundable(), by=person)
    has_refund, has_payment = threading.Event(), threading.Event()

    def wrong_way_round(_nth: int) -> None:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SET LOCAL deadlock_timeout = '60s'")  # the other one is to notice it
            Refund.objects.select_for_update().get(pk=waiting.pk)
            has_refund.set()
            assert has_payment.wait(10)
            Payment.objects.select_for_update().get(pk=payment.pk)

    def right_way_round(_nth: int) -> None:
        def slowly(execute: Any, sql: str, *rest: Any) -> Any:
            if 'FROM "refunds_refund"' in sql and "FOR UPDATE" in sql and not has_payment.is_set():
                has_payment.set()
                time.sleep(0.3)  # the other one is waiting for the payment by now
            return execute(sql, *rest)

        assert has_refund.wait(10)
        with connection.execute_wrapper(slowly):
            services.withdraw(waiting.pk, by=person)

    at_once(2, lambda nth: (wrong_way_round, right_way_round)[nth](nth))

    waiting.refresh_from_db()
    assert waiting.state == State.CANCELLED
    assert caplog.text.count("ledger.tried_again") == 1


@pytest.mark.parametrize("state", ["queued", "sending", "unknown"])
def test_worker_that_knows_nothing_but_the_rows_finds_each(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, state: str
) -> None:
    """There is no queue to lose: what waits, what somebody died over, and what is unknown are rows."""
    waiting = services.request_refund(ask(payment), refundable=payment.refundable(), by=operator)
    if state != "queued":
        assert sending.begin_attempt(waiting.pk, owner=NO_LEASE)
    if state == "unknown":
        at.advance(seconds=121)
        assert sending.take_lease(waiting.pk, owner="who dies at once")
    waiting.refresh_from_db()
    assert waiting.state == state

    at.advance(seconds={"queued": 6}.get(state, 121))
    assert list(services.due()) == [waiting]
    work()

    waiting.refresh_from_db()
    assert (waiting.state, len(at_smartpay(sandbox, payment))) == (State.SUCCEEDED, 1)


# --- F24: amounts --------------------------------------------------------------------------------------------

WRITTEN = (
    strategies.text(alphabet="0123456789０１２９,，.．-−+eE¥円 \u3000千²٣xX_", max_size=20)
    | strategies.integers().map(str)
    | strategies.floats().map(str)
    | strategies.sampled_from(
        ["1e3", "１００", "-1", "0", "true", "NaN", str(2**63), "9223372036854775807", "1000.0"]
    )
    | strategies.text(max_size=20)
)


@pytest.mark.sqlite  # no database takes part
@given(WRITTEN)
@settings(max_examples=10_000, deadline=None)
def test_of_ten_thousand_amounts_typed_each_is_refused_or_sent_as_that_number_of_yen(text: str) -> None:
    try:
        yen = YenField().clean(text)
    except ValidationError:
        return

    assert type(yen) is int
    body = smartpay.refund_body(
        payment_id="payment_test_1", amount=yen, currency="JPY", reason="fraudulent", description="", key="k"
    )
    assert f'"amount":{yen},' in body
    assert json.loads(body)["amount"] == yen >= 1


@given(
    amount=strategies.floats()
    | strategies.booleans()
    | strategies.text(max_size=5)
    | strategies.decimals()
    | strategies.integers(max_value=0)
    | strategies.integers(min_value=10**7)
    | strategies.sampled_from([2**63, 2**63 - 1, -(2**63), "１００", "1e3", 1e3, True, None, b"100"])
)
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_amount_that_is_no_whole_yen_within_the_payment_never_becomes_a_row(
    payment: Payment, operator: User, sandbox: Sandbox, amount: Any
) -> None:
    with pytest.raises((services.AmountTooHigh, TypeError, ValueError, ArithmeticError)):
        services.refund_payment(ask(payment, amount), refundable=payment.refundable(), by=operator)

    assert not Refund.objects.exists()
    assert payment.refundable() == Payment.objects.get(pk=payment.pk).refundable()


# --- F25: test and live --------------------------------------------------------------------------------------


@pytest.mark.parametrize("lists", [True, False])
def test_key_of_the_other_mode_moves_nothing_and_proves_nothing(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, lists: bool
) -> None:
    """A refund is unknown when somebody puts the other mode's key in: its account has neither payment nor refund."""
    sandbox.switch(payments_list_refunds=lists)
    sandbox.fault("reset")
    done = refund(payment, operator)
    other = client_of(sandbox.url, key="sk_live_Other")
    sandbox.forget_requests()

    for _turn in range(9):
        pass_time(at, sandbox, hours=1)
        work(other)

    done.refresh_from_db()
    assert (done.state, done.absent_since, posts(sandbox)) == (State.UNKNOWN, None, [])
    pass_time(at, sandbox, hours=1)
    for _turn in range(2):
        work()
        pass_time(at, sandbox, minutes=40)
    done.refresh_from_db()
    assert done.state == State.SUCCEEDED


# --- What an answer means ------------------------------------------------------------------------------------


class Elsewhere(smartpay.Client):
    """Reads at the sandbox, and posts refunds where the answer is made up."""

    def __init__(self, sandbox: Sandbox, url: str) -> None:
        super().__init__(base_url=sandbox.url, secret_key=sandbox.secret_key)
        self._posts = client_of(url, deadline=0.5)

    def create_refund(self, **request: Any) -> smartpay.Answer:
        return self._posts.create_refund(**request)


NOBODY = "http://127.0.0.1:9/v1"


@pytest.fixture
def posted_to(sandbox: Sandbox) -> Iterator[Callable[[Any], Elsewhere]]:
    wires: list[Wire] = []

    def answering(answer: Any) -> Elsewhere:
        if answer is None:
            return Elsewhere(sandbox, NOBODY)
        wires.append(Wire(answer))
        return Elsewhere(sandbox, wires[-1].url)

    yield answering
    for wire in wires:
        wire.close()


def silence(connection: socket.socket) -> None:
    connection.recv(1)  # until the other side has had enough


def smartpays(status: int, code: str) -> Callable[[dict[str, Any]], bytes]:
    return lambda _refund: http(refusal(status, code), status)


def page(status: int, retry_after: str = "") -> Callable[[dict[str, Any]], bytes]:
    return lambda _refund: http(b"<html>", status, Content_Type="text/html", Retry_After=retry_after)


def shown(**other: Any) -> Callable[[dict[str, Any]], bytes]:
    return lambda refund: http(refund | other)


FAILED, UNKNOWN, REVIEW = State.REJECTED, State.UNKNOWN, State.REVIEW
# The rows of the table in docs/security.md: what comes, its class, the state after a first and after a later attempt.
MEANINGS: list[tuple[str, Any, str, State, State]] = [
    ("executed", shown(), "EXECUTED", State.SUCCEEDED, State.SUCCEEDED),
    ("executed, sparse", shown(status=None, reference=None, metadata=None), "EXECUTED", State.SUCCEEDED, State.SUCCEEDED),
    ("failed", shown(status="failed"), "FAILED", FAILED, FAILED),
    ("odd status", shown(status="processing"), "AMBIGUOUS", UNKNOWN, UNKNOWN),
    ("field missing", shown(amount=None), "AMBIGUOUS", UNKNOWN, UNKNOWN),
    ("no JSON", lambda _refund: http(b"OK"), "AMBIGUOUS", UNKNOWN, UNKNOWN),
    *[(f"other {name}", shown(**{name: value}), "CONTRADICTION", REVIEW, REVIEW) for name, value in
      {"amount": 999, "currency": "USD", "payment": "payment_test_1", "test": False, "reference": "x",
       "metadata": {"refund_dashboard_id": "x"}, "object": "payment", "id": "refund_live_1"}.items()],
    ("400 of Smartpay", smartpays(400, "request.invalid"), "REFUSED", FAILED, UNKNOWN),
    ("403 of Smartpay", smartpays(403, "amount.insufficient"), "REFUSED", FAILED, UNKNOWN),
    ("404 of Smartpay", smartpays(404, "payment.not-found"), "REFUSED", FAILED, UNKNOWN),
    ("401", page(401), "NOT_ACCEPTED", UNKNOWN, UNKNOWN),
    *[(f"other {status}", page(status), "NOT_ACCEPTED", UNKNOWN, UNKNOWN) for status in (403, 404, 405, 415)],
    ("other code", smartpays(403, "account.blocked"), "NOT_ACCEPTED", UNKNOWN, UNKNOWN),
    *[(str(status), page(status), "IN_PROGRESS", UNKNOWN, UNKNOWN) for status in (409, 425)],
    ("429", page(429, "600"), "LIMITED", UNKNOWN, UNKNOWN),
    *[(str(status), page(status), "AMBIGUOUS", UNKNOWN, UNKNOWN) for status in (400, 408, 500, 502, 503, 504, 302, 307)],
    ("5xx of Smartpay", smartpays(500, "request.invalid"), "AMBIGUOUS", UNKNOWN, UNKNOWN),
    ("too large", lambda refund: http(json.dumps(refund).encode().ljust(2 << 20)), "AMBIGUOUS", UNKNOWN, UNKNOWN),
    ("cut off", lambda refund: http(refund, length=5000), "AMBIGUOUS", UNKNOWN, UNKNOWN),
    ("silence", silence, "AMBIGUOUS", UNKNOWN, UNKNOWN),
    ("reset", lambda _refund: b"", "AMBIGUOUS", UNKNOWN, UNKNOWN),
    ("nobody there", None, "NOT_SENT", UNKNOWN, UNKNOWN),
]  # fmt: skip


@pytest.mark.parametrize("later", [False, True], ids=["first", "later"])
@pytest.mark.parametrize(
    ("what", "answer", "outcome", "first_state", "later_state"),
    MEANINGS,
    ids=[meaning[0] for meaning in MEANINGS],
)
def test_every_answer_has_its_meaning_for_a_first_attempt_and_for_a_later_one(
    payment: Payment,
    operator: User,
    sandbox: Sandbox,
    at: Clock,
    caplog: Any,
    posted_to: Callable[[Any], Elsewhere],
    what: str,
    answer: Any,
    outcome: str,
    first_state: State,
    later_state: State,
    later: bool,
) -> None:
    asked = ask(payment)
    left = payment.refundable()
    if later:
        services.refund_payment(asked, refundable=left, by=operator, client=posted_to(None))
        at.advance(hours=1)
        caplog.clear()
    if answer is not None and answer is not silence:
        key = str(asked.request_id)
        its_refund = made(payment=payment.pk, reference=key, metadata={"refund_dashboard_id": key})
        answer = answer(its_refund)
    client = posted_to(answer)

    if later:
        services.take_turn(asked.request_id, client=client)
    else:
        services.refund_payment(asked, refundable=left, by=operator, client=client)

    done, expected = Refund.objects.get(), later_state if later else first_state
    payment.refresh_from_db()
    assert (done.state, done.attempt_no, done.attempts.get(number=1 + later).outcome) == (
        expected,
        1 + later,
        outcome,
    )
    assert (done.smartpay_id is not None) == (outcome in ("EXECUTED", "FAILED"))
    gone = {State.SUCCEEDED: 1000, State.REJECTED: 0}.get(expected, 1000)
    assert (payment.refundable(), payment.reserved) == (
        left - gone,
        1000 if expected in (UNKNOWN, REVIEW) else 0,
    )
    assert Control.sends_are_on() == (what != "401")
    assert ("smartpay.not_accepted" in caplog.text) == (outcome == "NOT_ACCEPTED")
    if outcome == "LIMITED":
        assert done.next_check_at == clock.now() + timedelta(seconds=600)


def test_every_class_of_answers_has_its_meaning() -> None:
    assert {outcome for _what, _answer, outcome, *_states in MEANINGS} == set(Attempt.Outcome.values) - {""}


@pytest.mark.parametrize("fault", ["deadlock", "death"])
def test_change_that_was_recorded_and_not_booked_is_booked_all_the_same(
    payment: Payment, operator: User, sandbox: Sandbox, at: Clock, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    sandbox.fault("altered", values={"status": "failed"})
    made = refund(payment, operator)
    assert made.state == State.REJECTED
    at.advance(minutes=5)
    if fault == "deadlock":
        fail_at("refund.review", GivenUp, 1, monkeypatch)  # and @retried does it again
        scan(at)
    else:
        with monkeypatch.context() as dying:
            dying.setattr(observing, "book_evidence", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                scan(at)
    for _ in range(3):
        at.advance(minutes=20)
        scan(at)
        services.read_order(payment.order.order_id, client=smartpay.client())

    made.refresh_from_db()
    assert made.state == State.REVIEW
