"""What the database refuses whoever asks, and what it lets pass: statements of its own, past every service.

Queryset updates and raw SQL are what a careless service, a shell or a script would send.
"""

import random
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, connection, transaction

from dashboard.models import User
from refunds.models import (
    Attempt,
    AuditEntry,
    Bulk,
    BulkLine,
    Evidence,
    Order,
    Payment,
    Refund,
    ReviewDecision,
    SmartpayRefund,
)
from tests.conftest import decisions, guards, make_order, make_user, name_guard

NOW = datetime(2026, 3, 9, 3, 0, 0, 250_000, tzinfo=UTC)
HELD = {"awaiting_approval", "queued", "sending", "unknown", "review"}
STATES = {*HELD, "succeeded", "rejected", "not_executed", "cancelled"}
ALLOWED = {
    "awaiting_approval": {"queued", "cancelled", "review"},
    "queued": {"sending", "cancelled", "review"},
    "sending": {"succeeded", "rejected", "unknown", "review"},
    "unknown": {"sending", "succeeded", "rejected", "not_executed", "review"},
    "review": {"succeeded", "not_executed"},
    "rejected": {"review"},
    "not_executed": {"review"},
    "succeeded": set(),
    "cancelled": set(),
}
WAY_TO = {  # from the state that a refund begins in
    "awaiting_approval": [],
    "queued": [],
    "sending": ["sending"],
    "unknown": ["sending", "unknown"],
    "review": ["sending", "review"],
    "succeeded": ["sending", "succeeded"],
    "rejected": ["sending", "rejected"],
    "not_executed": ["sending", "unknown", "not_executed"],
    "cancelled": ["cancelled"],
}


@contextmanager
def refused(words: str) -> Iterator[None]:
    """The statement fails with these words, and leaves nothing behind."""
    with pytest.raises(IntegrityError, match=words), transaction.atomic():
        yield


def new(payment: Payment, by: User, **other: Any) -> Refund:
    facts = {
        "id": uuid.uuid4(),
        "payment": payment,
        "amount": 1000,
        "currency": "JPY",
        "reason": "requested_by_customer",
        "refundable_before": 5000,
        "external_before": 0,
        "body": "{}",
        "state": "queued",
        "requested_by": by,
        "requested_at": NOW,
    }
    return Refund(**(facts | other))


def insert(payment: Payment, by: User, **other: Any) -> Refund:
    refund = new(payment, by, **other)
    Refund.objects.bulk_create([refund])
    return refund


def update(row: Any, **values: Any) -> None:
    """One UPDATE of one row, with nothing in between."""
    assert type(row)._base_manager.filter(pk=row.pk).update(**values) == 1


def move(refund: Refund, state: str, **other: Any) -> None:
    """Change the state, with what else belongs to it."""
    now = Refund.objects.get(pk=refund.pk)
    belongs: dict[str, dict[str, Any]] = {
        "sending": {
            "attempt_no": now.attempt_no + 1,
            "first_sent_at": now.first_sent_at or NOW,
            "last_sent_at": NOW,
        },
        "review": {"reviews": now.reviews + 1},
        "queued": {"decided_by": make_user("approver"), "decided_at": NOW},
        "succeeded": {"smartpay_id": now.smartpay_id or f"refund_test_{refund.pk.hex}"},
        "rejected": {"smartpay_id": now.smartpay_id or f"refund_test_{refund.pk.hex}"},
        "not_executed": {"absent_since": NOW},
        "cancelled": {"cancelled_because": "withdrawn"},
    }
    if (now.state, state) == ("review", "not_executed"):
        for _person in range(2):
            decide(now, make_user("approver"))
    update(refund, state=state, **(belongs.get(state, {}) | other))


def at(state: str, payment: Payment, by: User, **other: Any) -> Refund:
    begun = "awaiting_approval" if state == "awaiting_approval" else "queued"
    refund = insert(payment, by, **({"state": begun} | other))
    for step in WAY_TO[state]:
        move(refund, step)
    return refund


def sums(payment: Payment) -> tuple[int, int]:
    payment.refresh_from_db()
    payment.order.refresh_from_db()
    assert (payment.order.reserved, payment.order.refunded) == (payment.reserved, payment.refunded)
    return payment.reserved, payment.refunded


# --- That they are there ------------------------------------------------------------------------------------


def triggers() -> list[str]:
    """Of those of our tables that are awake, the names."""
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute(
                "SELECT tgname FROM pg_trigger WHERE NOT tgisinternal AND tgenabled = 'O' "
                "AND starts_with(tgrelid::regclass::text, 'refunds_')"
            )
        else:
            cursor.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        return sorted(name for (name,) in cursor.fetchall())


def test_every_guard_is_in_the_database_and_awake(db: None) -> None:
    expected = guards.names(guards.GUARDS, "guard") + guards.names(guards.FOLLOWERS, "follow")
    expected += decisions.GUARDS
    expected.append(name_guard.GUARD)
    if connection.vendor == "postgresql":
        expected += [f"{table}_never_emptied" for table in guards.KEPT]

    assert triggers() == sorted(set(expected))
    assert len(expected) == (65 if connection.vendor == "postgresql" else 58)


@pytest.mark.django_db(transaction=True)
def test_migration_can_be_undone_and_done_again() -> None:
    with connection.schema_editor() as editor:
        decisions.remove(None, editor)
        name_guard.remove(None, editor)
        guards.remove(None, editor)
    try:
        assert triggers() == []
    finally:
        with connection.schema_editor() as editor:
            guards.install(None, editor)
            decisions.install(None, editor)
            name_guard.install(None, editor)

    test_every_guard_is_in_the_database_and_awake(None)


# --- How a refund begins ------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["awaiting_approval", "queued"])
def test_refund_that_begins_unsent_is_taken_and_reserves(
    payment: Payment, operator: User, state: str
) -> None:
    insert(payment, operator, state=state)

    assert sums(payment) == (1000, 0)


@pytest.mark.parametrize(
    "already",
    [
        *[{"state": state} for state in sorted(STATES - {"awaiting_approval", "queued"})],
        {"state": "paid"},
        {"attempt_no": 1},
        {"first_sent_at": NOW},
        {"last_sent_at": NOW},
        {"smartpay_id": "refund_test_1"},
        {"settled_at": NOW},
        {"reviews": 1},
    ],
    ids=str,
)
def test_refund_that_would_begin_anywhere_else_is_refused(
    payment: Payment, operator: User, already: dict[str, Any]
) -> None:
    with refused("a refund begins unsent"):
        insert(payment, operator, **already)

    assert sums(payment) == (0, 0)


def test_refund_has_the_currency_of_its_payment(payment: Payment, operator: User) -> None:
    for currency in ("USD", "jpy", ""):
        with refused("a refund has the currency of its payment"):
            insert(payment, operator, currency=currency)


def test_refund_of_no_payment_is_refused(payment: Payment, operator: User) -> None:
    with refused("a refund has the currency of its payment"):
        insert(payment, operator, payment_id="payment_test_of_nobody")


@pytest.mark.parametrize("amount", [0, -1])
def test_refund_of_nothing_or_less_is_refused(payment: Payment, operator: User, amount: int) -> None:
    with refused("refund_amount_positive|amount_check|amount"):
        insert(payment, operator, amount=amount)


@pytest.mark.sqlite  # PostgreSQL's columns have types
@pytest.mark.parametrize("amount", ["0.5", "1.5", "'much'", "x'31'"])
def test_refund_of_half_a_yen_or_of_words_is_refused(payment: Payment, operator: User, amount: str) -> None:
    kept = insert(payment, operator, amount=1)

    with refused("an amount is a whole number|more than is left"):  # words are more than any number
        copy(kept, amount=amount)


def copy(refund: Refund, how: str = "INSERT", **columns: str) -> None:
    """Insert a row like this one by raw SQL, with other expressions in some columns."""
    names = [str(field.column) for field in Refund._meta.concrete_fields]
    columns = {"id": "%s"} | columns
    values = ", ".join(columns.get(name, name) for name in names)
    sql = f"{how} INTO refunds_refund ({', '.join(names)}) SELECT {values} FROM refunds_refund WHERE id = %s"  # noqa: S608
    ids = [uuid.uuid4(), refund.pk] if columns["id"] == "%s" else [refund.pk]
    with connection.cursor() as cursor:
        cursor.execute(sql, [Refund._meta.pk.get_db_prep_value(each, connection) for each in ids])


# --- How much -----------------------------------------------------------------------------------------------


def test_all_that_is_left_can_be_reserved_and_not_a_yen_more(payment: Payment, operator: User) -> None:
    with refused("more than is left of the payment"):
        insert(payment, operator, amount=5001)
    insert(payment, operator, amount=4000)
    with refused("more than is left of the payment"):
        insert(payment, operator, amount=1001)
    insert(payment, operator, amount=1000)
    with refused("more than is left of the payment"):
        insert(payment, operator, amount=1)

    assert sums(payment) == (5000, 0)


def test_raw_sql_reserves_no_more_either(payment: Payment, operator: User) -> None:
    first = insert(payment, operator, amount=2000)
    copy(first)

    with refused("more than is left of the payment"):
        copy(first)
    with refused("more than is left of the payment"):
        Refund.objects.bulk_create([new(payment, operator, amount=500) for _time in range(3)])

    assert sums(payment) == (4000, 0)


@pytest.mark.parametrize(("state", "left"), [("succeeded", 4000), ("rejected", 5000), ("not_executed", 5000),
                                             ("cancelled", 5000), ("review", 4000), ("unknown", 4000)])  # fmt: skip
def test_what_is_left_is_less_what_is_gone_or_may_be(
    payment: Payment, operator: User, state: str, left: int
) -> None:
    at(state, payment, operator)

    with refused("more than is left of the payment"):
        insert(payment, operator, amount=left + 1)
    insert(payment, operator, amount=left)


def test_what_was_refunded_elsewhere_is_not_left(payment: Payment, operator: User) -> None:
    update(payment, external=4500)

    with refused("more than is left of the payment"):
        insert(payment, operator, amount=501)
    insert(payment, operator, amount=500)


def test_facts_are_recorded_even_where_they_break_the_sum(payment: Payment, operator: User) -> None:
    insert(payment, operator, amount=5000)

    update(payment, external=3000)
    update(payment, captured=100)

    payment.refresh_from_db()
    assert (payment.captured, payment.external, payment.reserved, payment.refundable()) == (
        100,
        3000,
        5000,
        0,
    )
    with refused("more than is left of the payment"):
        insert(payment, operator, amount=1)


def test_other_payments_of_an_order_lend_nothing(operator: User) -> None:
    first, second = make_order(1000, 4000).payments.order_by("id")

    with refused("more than is left of the payment"):
        insert(first, operator, amount=1001)
    insert(second, operator, amount=4000)

    first.order.refresh_from_db()
    assert (first.order.captured, first.order.reserved, sums(make_order(1).payments.get())) == (
        5000,
        4000,
        (0, 0),
    )


@pytest.mark.postgresql  # SQLite has one writer at a time
@pytest.mark.django_db(transaction=True)
def test_ten_at_once_never_reserve_more_than_is_left() -> None:
    """No lock and no check of the application's: ten connections insert at the same moment."""
    payment, by = make_order(5500).payments.get(), make_user("operator")
    start = threading.Barrier(10)
    taken, turned_away = [], []

    def ask() -> None:
        try:
            start.wait(10)
            for _time in range(3):
                try:
                    taken.append(insert(payment, by).pk)
                except IntegrityError as error:
                    turned_away.append(str(error))
        finally:
            connection.close()

    threads = [threading.Thread(target=ask) for _number in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert (len(taken), len(turned_away)) == (5, 25)
    assert all("more than is left of the payment" in words for words in turned_away)
    assert sums(payment) == (5000, 0)


# --- Changes of state ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "after"),
    [(before, after) for before in sorted(STATES) for after in sorted(STATES - {before})],
)
def test_state_changes_only_along_the_table(
    payment: Payment, operator: User, before: str, after: str
) -> None:
    refund = at(before, payment, operator)

    if after in ALLOWED[before]:
        move(refund, after)
    else:
        with refused("no such change of state|a decision is written as it is made"):
            move(refund, after)

    refund.refresh_from_db()
    assert refund.state == (after if after in ALLOWED[before] else before)


def test_counters_follow_every_change(payment: Payment, operator: User) -> None:
    seen = []
    refund = insert(payment, operator, amount=1200, state="awaiting_approval")
    for state in ("queued", "sending", "unknown", "sending", "rejected", "review", "succeeded"):
        seen.append(sums(payment))
        move(refund, state)
    second = insert(payment, operator, amount=300)
    seen.append(sums(payment))
    move(second, "cancelled")
    seen.append(sums(payment))

    assert seen == [*[(1200, 0)] * 5, (0, 0), (1200, 0), (300, 1200), (0, 1200)]


@pytest.mark.parametrize(("column", "sum_of"), [("captured", "captured"), ("external", "refunded")])
def test_sums_of_an_order_follow_what_smartpay_says_of_a_payment(
    payment: Payment, column: str, sum_of: str
) -> None:
    before = getattr(payment, column)
    Payment.objects.filter(pk=payment.pk).update(**{column: before + 700})

    assert getattr(Order.objects.get(pk=payment.order_id), sum_of) == before + 700


@pytest.mark.parametrize(
    ("state", "amount", "status"),
    [
        ("queued", 5000, "processing"),
        ("review", 1000, "processing"),
        ("succeeded", 1000, "partial"),
        ("succeeded", 5000, "full"),
        ("rejected", 5000, "none"),
        ("cancelled", 5000, "none"),
    ],
)
def test_order_tells_how_far_it_is_refunded(
    payment: Payment, operator: User, state: str, amount: int, status: str
) -> None:
    at(state, payment, operator, amount=amount)

    assert Order.objects.get(pk=payment.order_id).refund_status == status


def test_refund_is_no_success_without_smartpays_id(payment: Payment, operator: User) -> None:
    refund = at("unknown", payment, operator)

    with refused("refund_succeeded_has_id"):
        update(refund, state="succeeded")


def test_one_refund_of_smartpays_is_one_of_ours(operator: User) -> None:
    first, second = (at("unknown", make_order(5000).payments.get(), operator) for _time in range(2))
    update(first, state="succeeded", smartpay_id="refund_test_1")

    with refused("refund_one_per_smartpay_id|smartpay_id"):
        update(second, state="succeeded", smartpay_id="refund_test_1")


def test_refund_is_cancelled_with_a_cause_and_only_if_never_sent(payment: Payment, operator: User) -> None:
    refund = insert(payment, operator)

    with refused("refund_cancelled_never_sent"):
        update(refund, state="cancelled")
    with refused("refund_cancelled_never_sent"):
        update(refund, state="cancelled", cancelled_because="withdrawn", first_sent_at=NOW)


def test_refund_in_flight_says_since_when(payment: Payment, operator: User) -> None:
    refund = insert(payment, operator)

    with refused("refund_in_flight_was_sent|every sending is a further attempt"):
        update(refund, state="sending")


@pytest.mark.parametrize("first", ["sending", "unknown"])
def test_one_refund_of_a_payment_is_in_flight(payment: Payment, operator: User, first: str) -> None:
    flying = at(first, payment, operator)
    waiting = insert(payment, operator)

    with refused("refund_one_in_flight|refunds_refund.payment_id"):
        move(waiting, "sending")
    move(flying, "succeeded")
    move(waiting, "sending")


def test_nobody_decides_on_their_own_refund(payment: Payment, operator: User, approver: User) -> None:
    refund = insert(payment, operator, state="awaiting_approval")

    with refused("refund_four_eyes"):
        update(refund, state="queued", decided_by=operator, decided_at=NOW)
    with refused("refund_four_eyes|only a line of an approved file begins decided"):
        insert(payment, operator, decided_by=operator)
    update(refund, state="queued", decided_by=approver, decided_at=NOW)


# --- Files of refunds -----------------------------------------------------------------------------------------


def file_of(payment: Payment, by: User, **other: Any) -> BulkLine:
    """The one line of a checked file."""
    bulk = Bulk.objects.create(
        file_name="x.csv", digest=uuid.uuid4().hex, lines_count=1, uploaded_by=by, uploaded_at=NOW
    )
    line = BulkLine.objects.create(bulk=bulk, number=2, request_id=uuid.uuid4())
    update(line, **({"payment": payment, "amount": 1000, "refundable": 5000, "state": "ready"} | other))
    update(bulk, state="checked")
    line.refresh_from_db()
    return line


def run(line: BulkLine, **other: Any) -> None:
    update(line.bulk, state="running", total=1000, started_at=NOW, **other)


def test_line_is_refunded_only_while_its_file_runs(payment: Payment, operator: User) -> None:
    line = file_of(payment, operator)

    with refused("while its file is running"):
        insert(payment, operator, id=line.request_id)
    run(line)
    update(line.bulk, state="paused")
    with refused("while its file is running"):
        insert(payment, operator, id=line.request_id)
    update(line.bulk, state="running")
    with refused("while its file is running"):
        insert(payment, make_user("operator"), id=line.request_id)
    insert(payment, operator, id=line.request_id)


def test_refund_begins_decided_only_as_a_line_of_an_approved_file(
    payment: Payment, operator: User, approver: User
) -> None:
    line = file_of(payment, operator)
    decided = {"decided_by": approver, "decided_at": NOW}
    run(line)

    with refused("only a line of an approved file"):
        insert(payment, operator, **decided)
    with refused("only a line of an approved file"):
        insert(payment, operator, id=line.request_id, **decided)
    update(line.bulk, **decided)
    with refused("only a line of an approved file"):
        insert(payment, operator, id=line.request_id, amount=999, **decided)
    with refused("only a line of an approved file"):
        insert(payment, operator, id=line.request_id, **(decided | {"decided_by": make_user("approver")}))
    insert(payment, operator, id=line.request_id, **decided)


@pytest.mark.parametrize(
    "values",
    [
        {"digest": "x"},
        {"lines_count": 2},
        {"uploaded_at": NOW + timedelta(seconds=1)},
        {"total": 999},
        {"similar_reason": "x"},
        {"started_at": NOW + timedelta(seconds=1)},
        {"decision_note": "x"},
        {"decided_at": NOW + timedelta(seconds=1)},
    ],
    ids=lambda values: next(iter(values)),
)
def test_file_that_was_started_never_changes(
    payment: Payment, operator: User, approver: User, values: dict[str, Any]
) -> None:
    line = file_of(payment, operator)
    run(line, decided_by=approver, decided_at=NOW)

    with refused("a file of refunds never changes"):
        update(line.bulk, **values)


def test_file_is_decided_by_another_person(payment: Payment, operator: User) -> None:
    with refused("bulk_four_eyes"):
        update(file_of(payment, operator).bulk, decided_by=operator)


def test_file_that_ended_never_runs_again(payment: Payment, operator: User) -> None:
    for ended in ("done", "cancelled"):  # a rejected one never ran
        line = file_of(payment, operator)
        run(line)
        update(line.bulk, state=ended)
        for state in ("checking", "checked", "awaiting_approval", "running", "paused"):
            with refused("no such change of a file"):
                update(line.bulk, state=state)


@pytest.mark.parametrize(
    "values",
    [
        {"amount": 999},
        {"refundable": 999},
        {"description": "x"},
        {"request_id": uuid.UUID(int=1)},
        {"number": 3},
    ],
    ids=lambda values: next(iter(values)),
)
def test_line_never_changes(payment: Payment, operator: User, values: dict[str, Any]) -> None:
    with refused("a line never changes"):
        update(file_of(payment, operator), **values)


def test_line_says_once_what_became_of_it(payment: Payment, operator: User) -> None:
    line = file_of(payment, operator)
    update(line, state="refused")

    with refused("a line never changes"):
        update(line, state="ready")
    with refused("bulkline_knows_its_refund"):
        file_of(payment, operator, amount=None)


def test_line_comes_with_its_file_and_is_judged_while_that_is_checked(
    payment: Payment, operator: User
) -> None:
    line = file_of(payment, operator)

    with refused("a line comes with its file"):
        BulkLine.objects.create(bulk=line.bulk, number=3, request_id=uuid.uuid4())
    with refused("a line is judged while its file is checked"):
        update(line, state="similar")
    with refused("a file begins unchecked"):
        Bulk.objects.create(
            file_name="x", digest="x", lines_count=1, uploaded_by=operator, uploaded_at=NOW, state="running"
        )


def test_file_that_waits_is_decided_by_somebody(payment: Payment, operator: User, approver: User) -> None:
    bulk = file_of(payment, operator).bulk
    update(bulk, state="awaiting_approval", total=1000, started_at=NOW)

    for state in ("running", "rejected"):
        with refused("somebody decides about a file"):
            update(bulk, state=state)
    update(bulk, state="running", decided_by=approver, decided_at=NOW)


def test_files_and_lines_are_never_deleted(payment: Payment, operator: User) -> None:
    line = file_of(payment, operator)

    with refused("lines are never deleted"):
        BulkLine.objects.filter(pk=line.pk)._raw_delete(using="default")
    with refused("files of refunds are never deleted"):
        Bulk.objects.filter(pk=line.bulk_id)._raw_delete(using="default")


# --- What never changes -------------------------------------------------------------------------------------

IMMUTABLE = {
    "id": uuid.UUID(int=1),
    "payment_id": "payment_test_of_another_order",
    "amount": 1,
    "currency": "USD",
    "reason": "fraudulent",
    "description": "x",
    "memo": "x",
    "similar_reason": "x",
    "refundable_before": 1,
    "external_before": 1,
    "body": '{"amount":1}',
    "requested_by_id": 0,
    "requested_at": NOW + timedelta(seconds=1),
    "recovered": True,
}
WRITTEN_ONCE = {
    "first_sent_at": "first_sent_at and the decision are written once",
    "smartpay_id": "smartpay_id is written once",
    "decided_by_id": "first_sent_at and the decision are written once",
    "decided_at": "first_sent_at and the decision are written once",
    "decision_note": "a decision is written as it is made",
}
GOES_UP = {"attempt_no", "last_sent_at", "reviews"}
FREE = {
    "state": "unknown",
    "cancelled_because": "",
    "lease_until": NOW,
    "lease_owner": "x",
    "turns": 3,
    "next_check_at": NOW,
    "absent_since": NOW,
    "error_code": "x",
    "error_message": "x",
    "settled_at": NOW,
}


def test_every_column_of_a_refund_has_its_rule() -> None:
    columns = {field.attname for field in Refund._meta.concrete_fields}

    assert columns == IMMUTABLE.keys() | WRITTEN_ONCE.keys() | GOES_UP | FREE.keys()


@pytest.mark.parametrize("state", ["queued", "unknown", "succeeded"])
@pytest.mark.parametrize("column", IMMUTABLE)
def test_request_of_a_refund_never_changes(payment: Payment, operator: User, state: str, column: str) -> None:
    refund = at(state, payment, operator)

    with refused("the request of a refund never changes"):
        update(refund, **{column: IMMUTABLE[column]})


@pytest.mark.parametrize("column", FREE)
def test_what_the_machine_notes_may_change(payment: Payment, operator: User, column: str) -> None:
    update(at("unknown", payment, operator), **{column: FREE[column]})


@pytest.mark.parametrize("column", sorted(WRITTEN_ONCE))
def test_first_sending_id_and_decision_are_written_once(
    payment: Payment, operator: User, approver: User, column: str
) -> None:
    refund = insert(payment, operator, state="awaiting_approval")
    move(refund, "queued", decided_by=approver, decision_note="確認済み")
    for state in WAY_TO["succeeded"]:
        move(refund, state)
    other = {
        "first_sent_at": NOW + timedelta(hours=1),
        "smartpay_id": "refund_test_other",
        "decided_by_id": make_user("approver").pk,
        "decided_at": NOW + timedelta(hours=1),
        "decision_note": "x",
    }

    for value in (other[column], "" if column == "decision_note" else None):
        # Of several that refuse, either database asks another one first.
        with refused(f"{WRITTEN_ONCE[column]}|as it is made|with its state alone"):
            update(refund, **{column: value})
    update(refund, **{column: Refund.objects.values_list(column, flat=True).get(pk=refund.pk)})


@pytest.mark.parametrize("state", sorted(STATES))
@pytest.mark.parametrize("column", ["decided_by_id", "decided_at", "decision_note"])
def test_no_decision_is_invented_for_what_nobody_decides(
    payment: Payment, operator: User, approver: User, state: str, column: str
) -> None:
    invented = {"decided_by_id": approver.pk, "decided_at": NOW, "decision_note": "x"}
    refund = at(state, payment, operator)

    with refused("a decision is written as it is made"):
        update(refund, **{column: invented[column]})


@pytest.mark.parametrize("to", ["queued", "cancelled"])
def test_decision_is_written_as_it_is_made(payment: Payment, operator: User, approver: User, to: str) -> None:
    refund = at("awaiting_approval", payment, operator)

    move(refund, to, decided_by=approver, decided_at=NOW, decision_note="確認済み")

    refund.refresh_from_db()
    assert (refund.decided_by, refund.decision_note) == (approver, "確認済み")


@pytest.mark.parametrize("state", sorted(STATES - HELD))
@pytest.mark.parametrize(
    "column",
    [
        "last_sent_at",
        "absent_since",
        "smartpay_id",
        "cancelled_because",
        "error_code",
        "error_message",
        "settled_at",
    ],
)
def test_how_a_refund_ended_changes_with_its_state_alone(
    payment: Payment, operator: User, state: str, column: str
) -> None:
    times = {"last_sent_at", "absent_since", "settled_at"}
    refund = at(state, payment, operator)

    with refused("with its state alone|smartpay_id is written once"):
        update(refund, **{column: NOW + timedelta(hours=1) if column in times else "refused"})


# --- What people decide about a case ------------------------------------------------------------------------


def decide(refund: Refund, by: User, verdict: str = "not_executed", **other: Any) -> ReviewDecision:
    facts = {"round": refund.reviews, "note": "確認済み", "at": NOW} | other
    if verdict == "succeeded":
        facts.setdefault("smartpay_id", "refund_test_1")
    return ReviewDecision.objects.create(refund=refund, person=by, verdict=verdict, **facts)


@pytest.fixture
def case(payment: Payment, operator: User) -> Refund:
    refund = at("review", payment, operator)
    refund.refresh_from_db()
    return refund


def test_two_people_decide_that_nothing_was_executed(case: Refund, approver: User) -> None:
    second = make_user("approver")
    for _again in range(2):
        decide(case, approver)
    decide(case, second, "succeeded")

    with refused("two people decide that nothing was executed"):
        update(case, state="not_executed")
    decide(case, second)
    update(case, state="not_executed")


def test_word_that_was_taken_back_does_not_count(case: Refund, approver: User) -> None:
    decide(case, approver)
    decide(case, approver, "succeeded")
    decide(case, make_user("approver"))

    with refused("two people decide that nothing was executed"):
        update(case, state="not_executed")
    decide(case, approver)
    update(case, state="not_executed")


def test_what_was_decided_in_an_earlier_round_settles_nothing(case: Refund, approver: User) -> None:
    for person in (approver, make_user("approver")):
        decide(case, person)
    update(case, state="not_executed")
    move(case, "review")

    with refused("two people decide that nothing was executed"):
        update(case, state="not_executed")


def test_requester_decides_no_case_and_nobody_decides_what_is_none(
    case: Refund, payment: Payment, operator: User, approver: User
) -> None:
    words = "a case is decided while it is one, and never by who asked for the refund"
    with refused(words):
        decide(case, operator)
    for round_no in (0, 2):
        with refused(words):
            decide(case, approver, round=round_no)
    with refused(words):
        decide(insert(payment, operator), approver)
    decide(case, approver)
    move(case, "succeeded")
    with refused(words):
        decide(case, make_user("approver"))


def test_decision_names_the_refund_that_it_is(case: Refund, approver: User) -> None:
    with refused("review_names_its_refund"):
        decide(case, approver, "succeeded", smartpay_id="")
    with refused("review_names_its_refund"):
        decide(case, approver, smartpay_id="refund_test_1")


def test_decision_is_kept_as_it_is(case: Refund, approver: User) -> None:
    decision = decide(case, approver)
    others: dict[str, Any] = {
        "id": 10**6,
        "refund_id": uuid.UUID(int=1),
        "round": 2,
        "person_id": make_user("approver").pk,
        "verdict": "succeeded",
        "smartpay_id": "x",
        "note": "x",
        "at": NOW,  # as it was: not even that
    }
    assert others.keys() == {field.attname for field in ReviewDecision._meta.concrete_fields}

    for column, value in others.items():
        with refused("a decision never changes"):
            update(decision, **{column: value})
    with refused("a decision is never deleted"):
        decision.delete()
    with refused("a decision is never deleted"), connection.cursor() as cursor:
        cursor.execute("DELETE FROM refunds_reviewdecision")


@pytest.fixture
def failed_case(payment: Payment, operator: User) -> Refund:
    """Smartpay showed a refund that had failed, and then another one."""
    refund = at("unknown", payment, operator)
    update(refund, state="rejected", smartpay_id="refund_test_failed")
    move(refund, "review")
    refund.refresh_from_db()
    return refund


def test_people_may_replace_the_id_that_turned_out_to_be_the_wrong_one(failed_case: Refund) -> None:
    for _person in range(2):
        decide(failed_case, make_user("approver"), "succeeded", smartpay_id="refund_test_second")

    with refused("smartpay_id is written once"):
        update(failed_case, smartpay_id="refund_test_second")
    with refused("smartpay_id is written once|refund_succeeded_has_id"):
        update(failed_case, state="succeeded", smartpay_id=None)
    with refused("smartpay_id is written once"):
        update(failed_case, state="succeeded", smartpay_id="refund_test_third")
    update(failed_case, state="succeeded", smartpay_id="refund_test_second")
    with refused("smartpay_id is written once|with its state alone"):
        update(failed_case, smartpay_id="refund_test_failed")


def test_nobody_else_replaces_the_id(failed_case: Refund, approver: User) -> None:
    """One person twice, two who name two refunds, two of whom one took it back, two of an earlier round."""

    def replace() -> None:
        with refused("smartpay_id is written once"):
            update(failed_case, state="succeeded", smartpay_id="refund_test_second")

    replace()
    for _again in range(2):
        decide(failed_case, approver, "succeeded", smartpay_id="refund_test_second")
    replace()
    second = make_user("approver")
    decide(failed_case, second, "succeeded", smartpay_id="refund_test_third")
    replace()
    decide(failed_case, second, "succeeded", smartpay_id="refund_test_second")
    decide(failed_case, approver)
    replace()
    decide(failed_case, approver, "succeeded", smartpay_id="refund_test_second")
    update(failed_case, reviews=2)
    replace()


def test_id_that_stays_needs_nobody(failed_case: Refund) -> None:
    update(failed_case, state="succeeded")


def test_id_is_replaced_in_no_other_change_of_state(payment: Payment, operator: User) -> None:
    refund = at("unknown", payment, operator)
    update(refund, smartpay_id="refund_test_first")

    for state in ("succeeded", "rejected"):
        with refused("smartpay_id is written once"):
            update(refund, state=state, smartpay_id="refund_test_second")


def test_refund_is_rejected_by_its_first_attempt_or_as_failed(payment: Payment, operator: User) -> None:
    words = "Smartpay refuses the first attempt, or shows the refund as failed"
    refund = at("unknown", payment, operator)
    with refused(words):
        update(refund, state="rejected")
    attempt = Attempt.objects.create(refund=refund, number=1, started_at=NOW)
    with refused(words):
        update(refund, state="rejected")
    update(attempt, outcome="REFUSED", finished_at=NOW)
    with refused(words):
        move(refund, "sending")
        update(refund, state="rejected")

    update(refund, state="rejected")


def test_refund_that_was_not_missed_is_not_called_absent(payment: Payment, operator: User) -> None:
    refund = at("unknown", payment, operator)
    with refused("absence is seen before it is proved"):
        update(refund, state="not_executed")

    update(refund, state="not_executed", absent_since=NOW)


def test_rounds_of_review_only_go_up_and_every_case_is_a_further_one(case: Refund) -> None:
    words = "rounds of review only go up, and every case is a further one"
    with refused(words):
        update(case, reviews=0)
    for _person in range(2):
        decide(case, make_user("approver"))
    update(case, state="not_executed")
    with refused(words):
        update(case, state="review")

    update(case, state="review", reviews=2)
    update(case, reviews=3)  # other evidence: what was said before is about something else


# --- What the ledger lost -----------------------------------------------------------------------------------


def recovered(payment: Payment, by: User, **other: Any) -> dict[str, Any]:
    return {
        "recovered": True,
        "state": "succeeded",
        "smartpay_id": "refund_test_lost",
        "settled_at": NOW,
    } | other


def seen(payment: Payment, **other: Any) -> None:
    facts = {"id": "refund_test_lost", "amount": 1000, "currency": "JPY", "status": "succeeded"} | other
    SmartpayRefund.objects.create(payment=payment, created_at=NOW, read_at=NOW, **facts)


def test_refund_is_recovered_as_smartpay_shows_it_whatever_is_left(payment: Payment, operator: User) -> None:
    insert(payment, operator, amount=4500)
    seen(payment)

    insert(payment, operator, **recovered(payment, operator))

    assert sums(payment) == (4500, 1000)


@pytest.mark.parametrize(
    "other",
    [
        {"state": "queued"},
        {"amount": 999},
        {"smartpay_id": "refund_test_of_nobody"},
        {"smartpay_id": None},
        {"attempt_no": 1},
        {"first_sent_at": NOW},
        {"last_sent_at": NOW},
        {"settled_at": None},
        {"reviews": 1},
    ],
    ids=str,
)
def test_refund_that_smartpay_does_not_show_so_is_not_recovered(
    payment: Payment, operator: User, other: dict[str, Any]
) -> None:
    seen(payment)

    with refused("a recovered refund is one that Smartpay shows|refund_succeeded_has_id"):
        insert(payment, operator, **recovered(payment, operator, **other))


@pytest.mark.parametrize("facts", [{"status": "failed"}, {"amount": 999}, {"currency": "USD"}], ids=str)
def test_refund_that_failed_or_differs_is_not_recovered(
    payment: Payment, operator: User, facts: dict[str, Any]
) -> None:
    seen(payment, **facts)

    with refused("a recovered refund is one that Smartpay shows"):
        insert(payment, operator, **recovered(payment, operator))


def test_line_of_a_file_is_recovered_whether_the_file_runs_or_not(payment: Payment, operator: User) -> None:
    line = file_of(payment, operator)
    seen(payment)

    insert(payment, make_user("operator"), id=line.request_id, **recovered(payment, operator))


def test_refund_of_another_payment_or_row_is_not_recovered(payment: Payment, operator: User) -> None:
    seen(make_order(5000).payments.get())
    seen(payment, id="refund_test_ours", ours=insert(payment, operator))

    for smartpay_id in ("refund_test_lost", "refund_test_ours"):
        with refused("a recovered refund is one that Smartpay shows"):
            insert(payment, operator, **recovered(payment, operator, smartpay_id=smartpay_id))


def test_refund_is_recovered_once_and_then_is_as_any_other(payment: Payment, operator: User) -> None:
    seen(payment)
    refund = insert(payment, operator, **recovered(payment, operator))

    with refused("refund_one_per_smartpay_id|smartpay_id"):
        insert(payment, operator, **recovered(payment, operator))
    with refused("the request of a refund never changes"):
        update(refund, recovered=False)
    with refused(f"{WINDOW_OVER}|with its state alone"):
        update(refund, attempt_no=1, first_sent_at=NOW, last_sent_at=NOW)
    for state in STATES - {"succeeded"}:
        with refused("no such change of state|every sending is a further attempt"):
            update(refund, state=state, reviews=1)


# --- Never deleted ------------------------------------------------------------------------------------------


def test_refund_is_never_deleted(payment: Payment, operator: User) -> None:
    for state in ("queued", "cancelled", "succeeded"):
        refund = at(state, payment, operator)
        with refused("refunds are never deleted"):
            Refund.objects.filter(pk=refund.pk).delete()
        with refused("refunds are never deleted"), connection.cursor() as cursor:
            cursor.execute("DELETE FROM refunds_refund")

    assert Refund.objects.count() == 3


@pytest.mark.sqlite  # PostgreSQL has no such statement
def test_refund_is_never_replaced_by_a_fresh_one(payment: Payment, operator: User) -> None:
    refund = at("unknown", payment, operator)

    with refused("what is kept is never replaced"):
        copy(refund, "INSERT OR REPLACE", id="id", state="'queued'", attempt_no="0", first_sent_at="NULL",
             last_sent_at="NULL")  # fmt: skip

    refund.refresh_from_db()
    assert (refund.state, refund.attempt_no) == ("unknown", 1)


# --- Sending ------------------------------------------------------------------------------------------------

WINDOW_OVER = "the send window is over"


def again(refund: Refund, after: timedelta) -> None:
    move(refund, "sending", last_sent_at=NOW + after)


@pytest.mark.parametrize(
    "after", [timedelta(), timedelta(hours=4, minutes=59), timedelta(hours=5, milliseconds=-1)]
)
def test_refund_is_sent_again_within_five_hours(payment: Payment, operator: User, after: timedelta) -> None:
    again(at("unknown", payment, operator), after)


@pytest.mark.parametrize("after", [timedelta(hours=5), timedelta(hours=5, minutes=1), timedelta(days=400)])
def test_refund_is_never_sent_after_five_hours(payment: Payment, operator: User, after: timedelta) -> None:
    refund = at("unknown", payment, operator)

    with refused(WINDOW_OVER):
        again(refund, after)


def test_five_hours_are_five_hours_at_every_moment(operator: User) -> None:
    """Also where a fraction of a day is no exact number: each of these moments has its own."""
    rng = random.Random(5)
    payments = make_order(*[100] * 60).payments.all()
    for payment in payments:
        first = NOW + timedelta(microseconds=rng.randrange(10**13))
        refund = insert(payment, operator, amount=100)
        move(refund, "sending", first_sent_at=first, last_sent_at=first)
        move(refund, "unknown")
        with refused(WINDOW_OVER):
            move(refund, "sending", last_sent_at=first + timedelta(hours=5))
        move(refund, "sending", last_sent_at=first + timedelta(hours=5, milliseconds=-2))


@pytest.mark.parametrize(
    "values",
    [
        {"attempt_no": 2},
        {"attempt_no": 2, "state": "succeeded", "smartpay_id": "refund_test_1"},
        {"attempt_no": 2, "last_sent_at": NOW + timedelta(hours=6)},
    ],
    ids=str,
)
def test_attempt_is_counted_only_as_it_is_sent(
    payment: Payment, operator: User, values: dict[str, Any]
) -> None:
    refund = at("unknown", payment, operator)

    with refused(WINDOW_OVER):
        update(refund, **values)


def test_first_attempt_says_when(payment: Payment, operator: User) -> None:
    refund = insert(payment, operator)

    with refused(WINDOW_OVER):
        update(refund, state="sending", attempt_no=1, first_sent_at=NOW)


@pytest.mark.parametrize("state", ["queued", "unknown"])
def test_every_sending_is_a_further_attempt(payment: Payment, operator: User, state: str) -> None:
    refund = at(state, payment, operator)

    with refused("every sending is a further attempt"):
        update(refund, state="sending", first_sent_at=NOW, last_sent_at=NOW)


@pytest.mark.parametrize(
    "values",
    [{"attempt_no": 0}, {"last_sent_at": NOW - timedelta(microseconds=1)}, {"last_sent_at": None}],
    ids=str,
)
def test_attempts_only_go_up(payment: Payment, operator: User, values: dict[str, Any]) -> None:
    with refused("attempts only go up"):
        update(at("unknown", payment, operator), **values)


# --- The account --------------------------------------------------------------------------------------------


def test_counters_of_a_payment_begin_at_nothing(order: Order) -> None:
    for begun in ({"reserved": 1}, {"refunded": 1}):
        with refused("counters begin at 0"):
            Payment.objects.create(
                id="payment_test_1",
                order=order,
                currency="JPY",
                captured=1,
                created_at=NOW,
                read_at=NOW,
                **begun,
            )


@pytest.mark.parametrize("values", [{"reserved": 0}, {"reserved": 2001}, {"refunded": 0}, {"refunded": 5000},
                                    {"reserved": 1000, "refunded": 2000}], ids=str)  # fmt: skip
def test_counters_of_a_payment_move_with_the_ledger_alone(
    payment: Payment, operator: User, values: dict[str, Any]
) -> None:
    at("succeeded", payment, operator)
    insert(payment, operator, amount=2000)

    with refused("counters are the sums of the ledger"):
        update(payment, **values)

    assert sums(payment) == (2000, 1000)


@pytest.mark.parametrize(
    "values", [{"id": "payment_test_other"}, {"currency": "USD"}, {"order_id": 0}], ids=str
)
def test_payment_stays_the_payment_of_its_order(payment: Payment, values: dict[str, Any]) -> None:
    with refused("a payment stays the payment of its order"):
        update(payment, **values)


@pytest.mark.parametrize("column", ["captured", "external"])
def test_facts_of_a_payment_are_never_negative(payment: Payment, column: str) -> None:
    with refused(column):
        update(payment, **{column: -1})


@pytest.mark.parametrize("values", [{"captured": 1}, {"refunded": 1}, {"reserved": 1}], ids=str)
def test_sums_of_an_order_are_those_of_its_payments(order: Order, values: dict[str, int]) -> None:
    with refused("the sums of an order are those of its payments"):
        update(order, **values)


@pytest.mark.parametrize("column", ["captured", "refunded", "reserved"])
def test_sums_of_an_order_begin_at_nothing(db: None, column: str) -> None:
    facts = {"order_id": "order_test_1", "amount": 1, "currency": "JPY", "status": "succeeded", "test": True}
    with refused("sums begin at 0"):
        Order.objects.create(key=1, created_at=NOW, read_at=NOW, **(facts | {column: 1}))


def test_order_sums_up_its_payments(operator: User) -> None:
    order = make_order(1000, 4000)
    first, second = order.payments.order_by("id")

    at("succeeded", first, operator, amount=300)
    insert(second, operator, amount=500)
    update(second, external=700, captured=5000)

    order.refresh_from_db()
    assert (order.captured, order.refunded, order.reserved) == (6000, 1000, 500)


# --- Attempts and evidence ----------------------------------------------------------------------------------


@pytest.fixture
def attempt(payment: Payment, operator: User) -> Attempt:
    return Attempt.objects.create(refund=at("sending", payment, operator), number=1, started_at=NOW)


def test_attempt_is_finished_once(attempt: Attempt) -> None:
    update(attempt, finished_at=NOW, outcome="EXECUTED", http_status=200)

    for values in (
        {"outcome": "REFUSED"},
        {"finished_at": None},
        {"http_status": 500},
        {"outcome": "EXECUTED"},
    ):
        with refused("an attempt is finished once"):
            update(attempt, **values)


@pytest.mark.parametrize(
    "values", [{"id": 10**6}, {"number": 2}, {"started_at": NOW + timedelta(hours=1)}], ids=str
)
def test_attempt_stays_what_it_was_begun_as(attempt: Attempt, values: dict[str, Any]) -> None:
    with refused("an attempt is finished once"):
        update(attempt, finished_at=NOW, **values)


def test_attempt_of_a_number_is_one(attempt: Attempt) -> None:
    with refused("attempt_one_per_number|refunds_attempt.refund_id"):
        Attempt.objects.create(refund=attempt.refund, number=1, started_at=NOW)


def test_attempt_stays_with_its_refund(attempt: Attempt, operator: User) -> None:
    other = insert(make_order(5000).payments.get(), operator)

    with refused("an attempt is finished once"):
        update(attempt, refund=other)


@pytest.fixture
def evidence(payment: Payment, operator: User) -> Evidence:
    refund = at("unknown", payment, operator)
    return Evidence.objects.create(refund=refund, kind="read", at=NOW, found=False)


@pytest.mark.parametrize(
    "values", [{"found": True}, {"smartpay_id": "x"}, {"at": NOW}, {"detail": "x"}, {"kind": "list"}], ids=str
)
def test_evidence_never_changes(evidence: Evidence, values: dict[str, Any]) -> None:
    with refused("evidence never changes"):
        update(evidence, **values)


def test_attempts_and_evidence_are_never_deleted(attempt: Attempt) -> None:
    Evidence.objects.create(refund=attempt.refund, kind="read", at=NOW, found=False)

    with refused("attempts are never deleted"):
        Attempt.objects.all().delete()
    with refused("evidence is never deleted"):
        Evidence.objects.all().delete()


# --- The trail ----------------------------------------------------------------------------------------------

ENTRY = {
    "at": NOW,
    "action": "refund.requested",
    "roles": "operator",
    "object_type": "refund",
    "object_id": "1",
    "order_id": "2",
    "data": {"amount": 1000},
    "ip": "192.0.2.1",
    "session": "abc",
    "request_id": "3",
    "text": "{}",
}


@pytest.fixture
def entry(operator: User) -> AuditEntry:
    return AuditEntry.objects.create(actor=operator, **ENTRY)


def seal(entry: AuditEntry, **other: Any) -> None:
    update(entry, previous_seal="0" * 64, **({"seal": "a" * 64} | other))


@pytest.mark.parametrize(
    "sealed", [{"seal": "a"}, {"previous_seal": "a"}, {"seal": "a", "previous_seal": "b"}], ids=str
)
def test_entry_begins_unsealed(db: None, sealed: dict[str, str]) -> None:
    with refused("entries begin unsealed"):
        AuditEntry.objects.create(**ENTRY, **sealed)


def test_entry_is_sealed_once(entry: AuditEntry) -> None:
    sealed_once = "an entry is sealed once and never changes"
    for half in ({"seal": "a"}, {"previous_seal": "a"}):
        with refused(sealed_once):
            update(entry, **half)

    seal(entry)

    with refused(sealed_once):
        seal(entry)
    with refused(sealed_once):
        seal(entry, seal="b" * 64)
    with refused(sealed_once):
        update(entry, seal=None, previous_seal=None)


CHANGED = {
    "id": 10**9,
    "at": NOW + timedelta(microseconds=1),
    "actor": None,
    "actor_name": "別人",
    "roles": "auditor",
    "action": "refund.viewed",
    "outcome": "refused",
    "object_type": "order",
    "object_id": "x",
    "order_id": "x",
    "data": {"amount": 1},
    "ip": None,
    "session": "x",
    "request_id": "x",
    "text": "{ }",
}


def test_every_column_of_an_entry_is_tried() -> None:
    assert CHANGED.keys() | {"seal", "previous_seal"} == {
        field.name for field in AuditEntry._meta.concrete_fields
    }


@pytest.mark.parametrize("column", CHANGED)
def test_entry_never_changes_sealed_or_not_nor_while_it_is_sealed(entry: AuditEntry, column: str) -> None:
    other = {column: CHANGED[column]}

    with refused("an entry is sealed once and never changes"):
        update(entry, **other)
    with refused("an entry is sealed once and never changes"):
        seal(entry, **other)
    seal(entry)
    with refused("an entry is sealed once and never changes"):
        update(entry, **other)


def test_trail_is_never_deleted(entry: AuditEntry) -> None:
    with refused("the trail is never deleted"):
        AuditEntry.objects.all().delete()
    seal(entry)
    with refused("the trail is never deleted"):
        entry.delete()


@pytest.mark.sqlite  # PostgreSQL has no such statement
@pytest.mark.parametrize("table", guards.KEPT)
def test_nothing_that_is_kept_is_ever_replaced(evidence: Evidence, entry: AuditEntry, table: str) -> None:
    Attempt.objects.create(refund=evidence.refund, number=1, started_at=NOW)
    update(evidence.refund, state="review", reviews=1)
    evidence.refund.refresh_from_db()
    decide(evidence.refund, make_user("approver"))
    file_of(evidence.refund.payment, evidence.refund.requested_by)

    words = "never replaced|begins unsent" if table == guards.REFUND else "never replaced"
    with refused(words), connection.cursor() as cursor:
        cursor.execute(f"INSERT OR REPLACE INTO {table} SELECT * FROM {table}")  # noqa: S608


@pytest.mark.sqlite  # PostgreSQL has no such statement
def test_refund_that_another_would_replace_is_not_deleted_silently(payment: Payment, operator: User) -> None:
    first = at("succeeded", payment, operator)
    first.refresh_from_db()
    second = at("unknown", payment, operator)

    with refused("never deleted"), connection.cursor() as cursor:
        cursor.execute(
            "UPDATE OR REPLACE refunds_refund SET state = 'succeeded', smartpay_id = %s WHERE id = %s",
            [first.smartpay_id, second.pk.hex],
        )


@pytest.mark.postgresql  # SQLite has no TRUNCATE
@pytest.mark.parametrize("table", [*guards.KEPT, guards.PAYMENT, guards.ORDER])
def test_nothing_that_is_kept_is_ever_emptied(db: None, table: str) -> None:
    with refused("never emptied"), connection.cursor() as cursor:
        cursor.execute(f"TRUNCATE {table} CASCADE")


# --- What a function of the database finds ------------------------------------------------------------------


@pytest.mark.postgresql  # SQLite's triggers look into their own file alone
@pytest.mark.parametrize("path", ["public", "pg_temp, public", "elsewhere, public"])
def test_guards_are_not_led_to_another_table(payment: Payment, operator: User, path: str) -> None:
    """One of the same name, found before ours, in which there is more to refund; nothing tells it from ours."""
    schema = path.split(",", maxsplit=1)[0].replace("public", "pg_temp")
    with connection.cursor() as cursor:
        cursor.execute("CREATE SCHEMA elsewhere")
        cursor.execute(f"CREATE TABLE {schema}.refunds_payment AS SELECT * FROM public.refunds_payment")  # noqa: S608
        cursor.execute(f"UPDATE {schema}.refunds_payment SET captured = 10 ^ 9")  # noqa: S608
        cursor.execute(f"SET LOCAL search_path = {path}")

    with refused("more than is left of the payment"):
        insert(payment, operator, amount=5001)
    insert(payment, operator, amount=5000)

    with connection.cursor() as cursor:
        cursor.execute("SELECT reserved FROM public.refunds_payment")
        assert cursor.fetchall() == [(5000,)]


@pytest.mark.postgresql
def test_functions_of_the_guards_know_where_to_look_and_nobody_may_call_them(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT proname, proconfig, prosecdef, proacl::text LIKE '%%{=X%%' OR proacl IS NULL FROM pg_proc "
            "WHERE pronamespace = current_schema()::regnamespace AND starts_with(proname, 'refunds_')"
        )
        found = {name: tuple(facts) for name, *facts in cursor.fetchall()}

    moving = guards.names(guards.FOLLOWERS, "follow")
    assert found == {
        name: (["search_path=public, pg_temp"], name in moving, False)
        for name in (*guards.FUNCTIONS, *decisions.GUARDS, name_guard.GUARD)
    }
