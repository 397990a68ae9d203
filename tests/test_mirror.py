"""The mirror holds what Smartpay said last, keeps names, knows which refunds are ours, and never writes the ledger."""

import dataclasses
import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext

from dashboard.models import User
from refunds import clock, customer_fields, customer_import, mirror, order_keys, services, smartpay
from refunds.models import Evidence, Order, Payment, Refund, SmartpayRefund
from refunds.order_keys import KEY_BITS
from tests.sandbox import Sandbox
from tests.test_services import mirrored, refund, shown

pytestmark = pytest.mark.django_db

AT = datetime(2026, 11, 1, 12, tzinfo=UTC)  # when reads begin here
LATER, EARLIER = AT + timedelta(minutes=1), AT - timedelta(minutes=1)
CREATED = datetime(2026, 10, 1, 0, 0, 0, 123000, tzinfo=UTC)
TANAKA = smartpay.Customer("田中", "太郎", "たなか", "タロウ", "Tanaka@Example.jp")


def payment_of(
    order_id: str = "order_test_1", payment_id: str = "payment_test_1", **values: Any
) -> smartpay.Payment:
    payment = smartpay.Payment(
        id=payment_id,
        order=order_id,
        amount=1000,
        currency="JPY",
        status="processed",
        description="",
        reference="",
        refund_ids=None,
        test=True,
        created_at=CREATED,
    )
    return dataclasses.replace(payment, **values)


def order_of(order_id: str = "order_test_1", *payments: smartpay.Payment, **values: Any) -> smartpay.Order:
    order = smartpay.Order(
        id=order_id,
        amount=1000,
        currency="JPY",
        status="succeeded",
        reference="EC-1",
        description="靴",
        token_id="",
        test=True,
        created_at=CREATED,
        expires_at=None,
        payments=payments,
        line_items=(smartpay.LineItem(name="靴", quantity=2, amount=500, currency="JPY", kind="product"),),
    )
    return dataclasses.replace(order, **values)


def session_of(
    order: smartpay.Order, customer: smartpay.Customer = TANAKA, reference: str = ""
) -> smartpay.CheckoutSession:
    return smartpay.CheckoutSession(id="checkout_test_1", order=order, customer=customer, reference=reference)


def refund_of(refund_id: str = "refund_test_1", **values: Any) -> smartpay.Refund:
    refund = smartpay.Refund(
        id=refund_id,
        payment="payment_test_1",
        amount=300,
        currency="JPY",
        status="succeeded",
        reason="fraudulent",
        description="",
        reference="",
        metadata={},
        test=True,
        created_at=CREATED,
    )
    return dataclasses.replace(refund, **values)


def ledger_row(
    payment: Payment, state: str = "queued", *, amount: int = 300, smartpay_id: str | None = None
) -> Refund:
    person, _created = User.objects.get_or_create(username="operator")
    refund = Refund.objects.create(
        payment=payment,
        amount=amount,
        currency="JPY",
        reason="fraudulent",
        refundable_before=1000,
        external_before=0,
        body="{}",
        state="queued",
        requested_by=person,
        requested_at=AT,
    )
    if state != "queued":
        refund.state, refund.first_sent_at, refund.last_sent_at, refund.attempt_no = "sending", AT, AT, 1
        refund.save()
        refund.state, refund.smartpay_id = state, smartpay_id
        refund.save()
    return refund


@pytest.fixture
def paid() -> Payment:
    """¥1,000, captured and mirrored."""
    mirror.record_order(order_of("order_test_1", payment_of()), read_at=AT)
    return Payment.objects.get()


def external() -> int:
    return Payment.objects.get(pk="payment_test_1").external


# --- Orders and payments ------------------------------------------------------------------------------------


def test_record_order_keeps_what_smartpay_said() -> None:
    order = order_of("order_test_1", payment_of(), payment_of(payment_id="payment_test_2", amount=500))
    row = mirror.record_order(order, read_at=AT, session=session_of(order))

    assert row.key >> KEY_BITS == int(CREATED.timestamp() * 1000)
    assert (row.order_id, row.reference, row.amount, row.status) == (
        "order_test_1",
        "EC-1",
        1000,
        "succeeded",
    )
    assert row.line_items == [
        {"name": "靴", "quantity": 2, "amount": 500, "currency": "JPY", "kind": "product"}
    ]
    assert (row.created_at, row.expires_at, row.read_at) == (CREATED, None, AT)
    assert (row.customer_name, row.customer_kana, row.customer_source) == (
        "田中 太郎",
        "たなか タロウ",
        "session",
    )
    assert (row.captured, row.refunded, row.refund_status) == (1500, 0, "none")
    assert list(row.payments.values_list("id", "captured", "status", "read_at")) == [
        ("payment_test_1", 1000, "processed", AT),
        ("payment_test_2", 500, "processed", AT),
    ]
    assert {column: getattr(row, column) for column in (*customer_fields.FOLDED, "order_id_reversed")} == {
        "family_folded": "田中",
        "given_folded": "太郎",
        "name_folded": "田中太郎",
        "name_turned_folded": "太郎田中",
        "family_kana_folded": "タナカ",
        "given_kana_folded": "タロオ",
        "kana_folded": "タナカタロオ",
        "kana_turned_folded": "タロオタナカ",
        "email_folded": "tanaka@example.jp",
        "reference_folded": "ec1",
        "order_id_reversed": "1_tset_redro",
    }


def test_a_later_read_replaces_an_earlier_one_and_never_the_other_way() -> None:
    first = order_of("order_test_1", payment_of(), status="requires_capture")
    mirror.record_order(first, read_at=AT)
    second = order_of(
        "order_test_1", payment_of(amount=900), status="succeeded", reference="EC-2", expires_at=AT
    )
    row = mirror.record_order(second, read_at=LATER)
    assert (row.status, row.reference, row.reference_folded, row.captured) == (
        "succeeded",
        "EC-2",
        "ec2",
        900,
    )

    row = mirror.record_order(first, read_at=EARLIER)

    assert (row.status, row.reference, row.captured, row.read_at) == ("succeeded", "EC-2", 900, LATER)
    assert Payment.objects.get().read_at == LATER


def test_a_read_that_brings_nothing_new_only_moves_the_time_on() -> None:
    order = order_of("order_test_1", payment_of())
    assert mirror.record_orders([order], read_at=AT) == 1
    assert mirror.record_orders([order, order], read_at=LATER) == 0
    assert (Order.objects.get().read_at, Payment.objects.get().read_at) == (LATER, LATER)
    assert mirror.record_orders([order], read_at=EARLIER) == 0
    assert (Order.objects.get().read_at, Payment.objects.get().read_at) == (LATER, LATER)
    changed_payment = order_of("order_test_1", payment_of(amount=1))
    assert mirror.record_orders([changed_payment], read_at=LATER) == 1


def test_a_page_holds_the_same_order_once() -> None:
    assert mirror.record_orders([order_of(amount=1), order_of(amount=2)], read_at=AT) == 1
    assert Order.objects.get().amount == 2
    assert mirror.record_orders([], read_at=AT) == 0


NAMELESS = smartpay.Customer(email="other@example.jp")


@pytest.mark.parametrize(
    ("source", "name", "customer", "expected"),
    [
        ("", "", TANAKA, ("session", "田中", "Tanaka@Example.jp")),
        ("", "", NAMELESS, ("session", "", "other@example.jp")),
        ("import", "佐藤", TANAKA, ("session", "田中", "Tanaka@Example.jp")),
        ("import", "佐藤", NAMELESS, ("import", "佐藤", "sato@example.jp")),
        ("import", "佐藤", smartpay.Customer(), ("import", "佐藤", "sato@example.jp")),
        ("import", "", NAMELESS, ("session", "", "other@example.jp")),
        ("session", "佐藤", smartpay.Customer(given_name="花"), ("session", "", "")),
    ],
)
def test_a_session_with_a_name_wins_over_an_import_and_one_without_over_none(
    source: str, name: str, customer: smartpay.Customer, expected: tuple[str, str, str]
) -> None:
    mirror.record_order(order_of(), read_at=AT)
    Order.objects.update(customer_source=source, family_name=name, email="sato@example.jp" if source else "")
    row = mirror.record_order(order_of(), read_at=LATER, session=session_of(order_of(), customer))
    assert (row.customer_source, row.family_name, row.email) == expected


def test_an_order_read_without_its_session_leaves_the_customer() -> None:
    mirror.record_order(order_of(), read_at=AT, session=session_of(order_of()))
    row = mirror.record_order(order_of(status="canceled"), read_at=LATER)
    assert (row.status, row.customer_name, row.name_folded) == ("canceled", "田中 太郎", "田中太郎")


def test_a_customer_on_the_order_itself_is_taken() -> None:
    row = mirror.record_order(order_of(customer=TANAKA), read_at=AT)
    assert row.customer_name == "田中 太郎"


def test_an_older_session_names_a_nameless_order_and_replaces_no_later_name() -> None:
    mirror.record_order(order_of(), read_at=AT)
    row = mirror.record_order(order_of(status="failed"), read_at=EARLIER, session=session_of(order_of()))
    assert (row.customer_name, row.status, row.read_at) == ("田中 太郎", "succeeded", AT)
    other = session_of(order_of(), smartpay.Customer(family_name="佐藤"))
    assert mirror.record_order(order_of(), read_at=EARLIER, session=other).customer_name == "田中 太郎"


def test_a_reference_comes_from_the_session_too_and_is_never_replaced_by_none() -> None:
    bare = order_of(reference="")
    assert mirror.record_order(bare, read_at=AT).reference == ""
    assert (
        mirror.record_order(bare, read_at=AT, session=session_of(bare, reference="EC-9")).reference == "EC-9"
    )
    assert mirror.record_order(bare, read_at=LATER).reference == "EC-9"


def test_text_that_a_database_cannot_hold_is_recorded_without_it() -> None:
    odd = order_of(
        reference="x" * 300,
        description="a\x00b\ud800c",
        line_items=(smartpay.LineItem(name="靴\x00", quantity=1, amount=1, currency="JPY", kind="product"),),
    )
    customer = smartpay.Customer(family_name="㌖" * 120, email="\x00e")
    row = mirror.record_order(odd, read_at=AT, session=session_of(odd, customer))
    row.refresh_from_db()
    assert (len(row.reference), row.description, row.line_items[0]["name"]) == (255, "ab?c", "靴")
    assert (len(row.family_name), len(row.family_folded), row.email) == (120, 120, "e")
    assert mirror.record_orders([odd], read_at=LATER) == 0


def test_two_orders_that_ask_for_one_key_get_two() -> None:
    mine, other = order_of("order_test_mine"), order_of("order_test_other")
    Order.objects.create(
        key=order_keys.key_of(mine, 0),
        order_id="order_test_before",
        amount=1,
        currency="JPY",
        status="failed",
        test=True,
        created_at=CREATED,
        read_at=AT,
    )
    mirror.record_orders([mine, other], read_at=AT)
    keys = dict(Order.objects.values_list("order_id", "key"))
    assert keys["order_test_mine"] == order_keys.key_of(mine, 1)
    assert keys["order_test_other"] == order_keys.key_of(other, 0)


def test_two_orders_of_one_page_that_ask_for_one_key_get_two(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_keys, "KEY_BITS", 1)  # two keys a millisecond
    mirror.record_orders([order_of(f"order_test_{n}") for n in range(2)], read_at=AT)
    assert sorted(key & 1 for key in Order.objects.values_list("key", flat=True)) == [0, 1]


def test_a_page_takes_as_many_statements_for_one_order_as_for_many() -> None:
    def statements(numbers: range, **values: Any) -> int:
        orders = [
            order_of(f"order_test_{n}", payment_of(f"order_test_{n}", f"payment_test_{n}"), **values)
            for n in numbers
        ]
        with CaptureQueriesContext(connection) as queries:
            mirror.record_orders(orders, read_at=AT)
        return len(queries)

    mirror.record_order(
        order_of("order_test_first"), read_at=AT
    )  # what is locked is there from the first one on
    assert statements(range(1)) == statements(range(1, 90))
    assert statements(range(1), amount=2) == statements(range(1, 90), amount=2)


def test_counters_of_the_ledger_survive_a_read(paid: Payment) -> None:
    ledger_row(paid, "succeeded", smartpay_id="refund_test_9")
    ledger_row(paid, amount=100)
    mirror.record_order(order_of("order_test_1", payment_of(amount=900)), read_at=LATER)
    paid.refresh_from_db()
    assert (paid.captured, paid.refunded, paid.reserved, paid.refundable()) == (900, 300, 100, 500)


# --- Refunds ------------------------------------------------------------------------------------------------


def test_a_refund_made_elsewhere_is_counted_and_a_failed_one_is_not(paid: Payment) -> None:
    row = mirror.record_refund(refund_of(metadata={"a": 1}), read_at=AT)
    assert (row.ours_id, row.payment_id, row.amount, row.metadata, row.read_at) == (
        None,
        paid.pk,
        300,
        {"a": 1},
        AT,
    )
    mirror.record_refund(refund_of("refund_test_2", status="failed", amount=5), read_at=AT)
    mirror.record_refund(refund_of("refund_test_3", status="", amount=7), read_at=AT)
    assert external() == 307
    assert Order.objects.get().refunded == 307

    mirror.record_refund(refund_of(status="failed"), read_at=EARLIER)
    assert external() == 307
    mirror.record_refund(refund_of(status="failed"), read_at=LATER)
    assert external() == 7
    assert SmartpayRefund.objects.get(pk="refund_test_1").read_at == LATER


def test_facts_that_break_the_sum_are_recorded(paid: Payment) -> None:
    mirror.record_refund(refund_of(amount=4000), read_at=AT)
    paid.refresh_from_db()
    assert (paid.external, paid.refundable()) == (4000, 0)


@pytest.mark.parametrize(
    "values",
    [
        lambda key: {"reference": key},
        lambda key: {"metadata": {"refund_dashboard_id": key}},
        lambda key: {"metadata": {"refund_dashboard_id": 7}, "reference": key},
        lambda key: {"metadata": {"refund_dashboard_id": str(uuid.uuid4())}, "reference": key},
    ],
)
def test_a_refund_that_names_a_ledger_row_of_its_payment_is_ours(paid: Payment, values: Any) -> None:
    ours = ledger_row(paid)
    row = mirror.record_refund(refund_of(**values(str(ours.pk))), read_at=AT)
    assert (row.ours_id, external()) == (ours.pk, 0)
    ours.refresh_from_db()
    assert ours.state == "queued"  # the ledger is for services to settle


def test_a_reference_that_is_a_ledger_row_of_another_payment_or_of_nobody_is_not_ours(paid: Payment) -> None:
    mirror.record_order(order_of("order_test_2", payment_of("order_test_2", "payment_test_2")), read_at=AT)
    other = ledger_row(Payment.objects.get(pk="payment_test_2"))
    for reference in (str(other.pk), str(uuid.uuid4()), "EC-1"):
        assert mirror.record_refund(refund_of(reference=reference), read_at=AT).ours_id is None
    assert external() == 300


def test_a_refund_is_ours_by_its_id_where_smartpay_repeats_no_reference(paid: Payment) -> None:
    assert mirror.record_refund(refund_of(), read_at=AT).ours_id is None
    assert external() == 300
    ours = ledger_row(paid, "succeeded", smartpay_id="refund_test_1")
    assert mirror.record_refund(refund_of(), read_at=EARLIER).ours_id == ours.pk
    paid.refresh_from_db()
    assert (paid.external, paid.refunded) == (0, 300)


def test_a_second_execution_of_our_refund_is_ours_and_counted(paid: Payment) -> None:
    ours = ledger_row(paid, "succeeded", smartpay_id="refund_test_1")
    for refund_id in ("refund_test_1", "refund_test_2"):
        row = mirror.record_refund(refund_of(refund_id, reference=str(ours.pk)), read_at=AT)
        assert row.ours_id == ours.pk
    paid.refresh_from_db()
    assert (paid.refunded, paid.external) == (300, 300)


def test_a_refund_read_before_its_payment_is_counted_when_that_arrives() -> None:
    assert mirror.record_refund(refund_of(), read_at=AT).payment_id == "payment_test_1"
    row = mirror.record_order(order_of("order_test_1", payment_of()), read_at=AT)
    assert (external(), row.refunded, row.refund_status) == (300, 300, "partial")


def test_refunds_are_recorded_by_the_page() -> None:
    def statements(numbers: range) -> int:
        with CaptureQueriesContext(connection) as queries:
            rows = mirror.record_refunds(
                [refund_of(f"refund_test_{n}", payment=f"payment_test_{n}") for n in numbers], read_at=AT
            )
        assert list(rows) == [f"refund_test_{n}" for n in numbers]
        return len(queries)

    orders = [
        order_of(f"order_test_{n}", payment_of(f"order_test_{n}", f"payment_test_{n}")) for n in range(90)
    ]
    mirror.record_orders(orders, read_at=AT)
    assert statements(range(1)) == statements(range(1, 90))
    assert set(Payment.objects.values_list("external", flat=True)) == {300}
    assert mirror.record_refunds([], read_at=AT) == {}


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgresql  # SQLite has one writer at a time
def test_a_payment_and_its_refund_that_arrive_at_once_see_each_other() -> None:
    def arrive() -> None:
        mirror.record_order(order_of("order_test_1", payment_of()), read_at=AT)
        connection.close()

    with transaction.atomic():
        mirror.record_refund(refund_of(), read_at=AT)
        other = threading.Thread(target=arrive)
        other.start()
        other.join(0.5)
        assert other.is_alive()  # it waits for this transaction
    other.join(10)
    assert external() == 300


# --- Reading single objects ---------------------------------------------------------------------------------


class Smartpay:
    """The client's single reads, from a table; what was asked for is noted."""

    def __init__(self, *objects: Any) -> None:
        self.objects = {item.id: item for item in objects}
        self.asked: list[str] = []

    def _get(self, object_id: str) -> Any:
        assert (
            not connection.in_atomic_block or len(connection.savepoint_ids) == 0
        )  # never inside our transaction
        self.asked.append(object_id)
        if object_id not in self.objects:
            raise smartpay.NotFound("unknown", http_status=404)
        return self.objects[object_id]

    get_order = get_payment = get_refund = _get


def test_refresh_order_records_it_and_reads_refunds_that_are_news(paid: Payment) -> None:
    mirror.record_refund(refund_of("refund_test_known"), read_at=AT)
    payments = (
        payment_of(refund_ids=("refund_test_known", "refund_test_new"), amount=800),
        payment_of(payment_id="payment_test_2"),
    )
    client: Any = Smartpay(order_of("order_test_1", *payments), refund_of("refund_test_new"))

    assert mirror.refresh_order("order_test_1", client) == (refund_of("refund_test_new"),)
    assert dict(Payment.objects.values_list("id", "lists_refunds")) == {
        paid.pk: True,
        "payment_test_2": False,
    }
    assert client.asked == ["order_test_1", "refund_test_new"]
    assert Order.objects.get().captured == 1800
    with pytest.raises(smartpay.NotFound):
        mirror.refresh_order("order_test_2", client)


def test_order_counts_as_read_only_with_all_the_refunds_that_it_lists(paid: Payment) -> None:
    before = Payment.objects.get()
    listing = order_of(paid.order.order_id, payment_of(refund_ids=("refund_test_new",), amount=800))
    client: Any = Smartpay(listing, listing.payments[0])

    for refresh, asked in ((mirror.refresh_order, paid.order.order_id), (mirror.refresh_payment, paid.pk)):
        with pytest.raises(smartpay.NotFound):  # of the refund
            refresh(asked, client)

    assert Payment.objects.values().get() == {
        name: value for name, value in vars(before).items() if name != "_state"
    }


def test_pages_of_lists_do_not_tell_whether_a_payment_lists_its_refunds(paid: Payment) -> None:
    client: Any = Smartpay(payment_of(refund_ids=()))
    mirror.refresh_payment(paid.pk, client)

    mirror.record_orders([order_of(paid.order.order_id, payment_of())], read_at=clock.now())

    assert Payment.objects.get().lists_refunds is True


def test_refresh_payment_tells_whether_the_read_was_complete(paid: Payment) -> None:
    client: Any = Smartpay(payment_of(amount=800))
    assert mirror.refresh_payment(paid.pk, client) == (False, ())
    paid.refresh_from_db()
    assert paid.captured == 800
    assert mirror.refresh_payment(paid.pk, Smartpay(payment_of(refund_ids=()))) == (True, ())  # type: ignore[arg-type]


def test_refresh_payment_reads_refunds_that_are_not_known_or_not_booked(paid: Payment) -> None:
    booked, unbooked = ledger_row(paid), ledger_row(paid)
    mirror.record_refund(refund_of("refund_test_elsewhere"), read_at=AT)
    mirror.record_refund(refund_of("refund_test_booked", reference=str(booked.pk)), read_at=AT)
    mirror.record_refund(refund_of("refund_test_unbooked", reference=str(unbooked.pk)), read_at=AT)
    Evidence.objects.create(refund=booked, kind="read", at=AT, found=True, smartpay_id="refund_test_booked")
    Evidence.objects.create(
        refund=unbooked, kind="read", at=AT, found=True, smartpay_id="refund_test_another"
    )
    ids = ("refund_test_elsewhere", "refund_test_booked", "refund_test_unbooked", "refund_test_new")
    seen = [refund_of(refund_id) for refund_id in ids]
    client: Any = Smartpay(payment_of(refund_ids=ids), *seen)

    assert mirror.refresh_payment(paid.pk, client) == (True, (seen[2], seen[3]))
    assert client.asked == [paid.pk, "refund_test_unbooked", "refund_test_new"]
    assert not SmartpayRefund.objects.filter(pk="refund_test_new").exists()


def test_refresh_payment_of_an_order_that_is_not_known_reads_that_first() -> None:
    client: Any = Smartpay(order_of("order_test_1"), payment_of(refund_ids=(refund_of().id,)))
    mirror.record_refund(refund_of(), read_at=AT)
    assert mirror.refresh_payment("payment_test_1", client) == (True, ())
    assert client.asked == ["payment_test_1", "order_test_1"]
    assert (Payment.objects.get().order.order_id, external()) == ("order_test_1", 300)


@pytest.mark.django_db(transaction=True)
@pytest.mark.postgresql  # SQLite has one writer at a time
def test_refunds_and_an_import_of_the_same_orders_do_not_meet_in_a_deadlock() -> None:
    for n in reversed(range(20)):  # as a list that comes newest first brings them
        mirror.record_order(
            order_of(f"order_test_{n:02d}", payment_of(f"order_test_{n:02d}", f"payment_test_{n:02d}")),
            read_at=AT,
        )
    ids = [f"{n:02d}" for n in range(20)]
    errors: list[Exception] = []

    def run(what: Any) -> None:
        try:
            what()
        except Exception as error:
            errors.append(error)
        finally:
            connection.close()

    def refunds() -> None:
        mirror.record_refunds(
            [
                smartpay.Refund(
                    id=f"refund_test_{name}", payment=f"payment_test_{name}", amount=300, currency="JPY",
                    status="succeeded", reason="", description="", reference="", metadata={}, test=True,
                    created_at=CREATED,
                )
                for name in ids
            ],
            read_at=LATER,
        )  # fmt: skip

    def names() -> None:
        customer = smartpay.Customer("田中", "太郎")
        customer_import.record_customers(
            [customer_import.ImportedCustomer(f"order_test_{name}", "", customer) for name in ids], seen={}
        )

    threads = [threading.Thread(target=run, args=(what,)) for what in (names, refunds)]
    with transaction.atomic():
        Order.objects.select_for_update().get(order_id="order_test_00")
        for thread in threads:
            thread.start()
            thread.join(1)
    for thread in threads:
        thread.join(10)
    assert errors == []
    assert set(Order.objects.values_list("family_name", "refunded")) == {("田中", 300)}


# --- Facts that break a sum ---------------------------------------------------------------------------------


def alarms(caplog: pytest.LogCaptureFixture) -> int:
    return caplog.text.count("payment.overdrawn")


def test_people_are_told_once_when_more_is_refunded_than_was_captured(
    operator: User, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    payment = mirrored(sandbox, "refundable", min_amount=2000)
    made = refund(payment, operator, payment.refundable())
    before = SmartpayRefund.objects.filter(ours=None).count()
    elsewhere = dataclasses.replace(
        shown(made), id="refund_test_elsewhere000000000000", amount=500, reference="", metadata={}
    )

    for _time in range(2):
        services.observe_refund(elsewhere, read_at=clock.now())

    assert SmartpayRefund.objects.filter(ours=None).count() == before + 1
    assert alarms(caplog) == 1


def test_people_are_told_when_a_payment_shrinks_below_what_was_refunded(
    operator: User, sandbox: Sandbox, caplog: pytest.LogCaptureFixture
) -> None:
    payment = mirrored(sandbox, "refundable", min_amount=2000)
    refund(payment, operator, 1500)
    order = smartpay.client().get_order(payment.order.order_id)
    smaller = [
        dataclasses.replace(each, amount=1000) if each.id == payment.pk else each for each in order.payments
    ]

    mirror.record_order(dataclasses.replace(order, payments=tuple(smaller)), read_at=clock.now())

    payment.refresh_from_db()
    assert (payment.captured, payment.refundable(), alarms(caplog)) == (1000, 0, 1)
