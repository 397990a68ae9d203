"""Writes what Smartpay says: orders with the customers of their checkout sessions, payments, refunds.

Only this module writes Order, Payment and SmartpayRefund, except for a customer that customer_import.py adds or
retention.py removes.

Each row is written with the moment when the read of it began (`read_at`), and an older read never replaces a newer
one. The ledger is not touched here: services.observe_refund() records a refund through this module, then settles the
ledger.
"""

import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from functools import partial
from typing import Any

import structlog
from django.db import connection, transaction
from django.db.models import Exists, Model, OuterRef, Q, QuerySet

from refunds import clock, fragments, smartpay
from refunds.customer_fields import completed, customer_of, folded, kept_since, same_name
from refunds.folding import fold
from refunds.models import Evidence, Order, Payment, Refund, SmartpayRefund, SyncCursor
from refunds.order_keys import mint_keys
from refunds.rows import Row, Table, in_list_sql, list_param

log = structlog.get_logger(__name__)

ORDERS_TABLE, PAYMENTS_TABLE, REFUNDS_TABLE = Table(Order), Table(Payment), Table(SmartpayRefund)
SESSION = Order.CustomerSource.SESSION.value

# Note [Arrivals one at a time]
# One process at a time adds new orders, new payments, and refunds whose payment is not in the mirror yet. It holds the
# lock of the cursor row of the orders. Otherwise one process could add a payment while another adds its refund. Neither
# would see the other's row, and the refund would be missing from the payment's `external`.
# Locks are taken in this order: cursors, payments, refunds, orders (see Note [Lock order] in models/ledger.py).


# --- Orders and payments ------------------------------------------------------------------------------------


def record_order(
    order: smartpay.Order, *, read_at: datetime, session: smartpay.CheckoutSession | None = None
) -> Order:
    """Record an order with its payments, and with the customer that the session or the order itself names.

    Args:
        read_at: when the read began that returned the order.
        session: the checkout session, if the order was read as a part of one.

    Returns the order as it now is in the database. See record_orders() for what replaces what.
    """
    record_orders([order], read_at=read_at, sessions={order.id: session} if session else {})
    return Order.objects.get(order_id=order.id)


def record_orders(
    orders: Iterable[smartpay.Order],
    *,
    read_at: datetime,
    sessions: Mapping[str, smartpay.CheckoutSession] | None = None,
) -> int:
    """Record orders with their payments in one transaction of few statements; return how many were new or changed.

    Facts of a read older than the recorded one are dropped. A recorded reference is never replaced by an empty one.

    The customer of a session replaces one of an import. An order that is read without its session keeps its customer.
    A session without a name does not replace a name. A session without a name, or with the name that is known, keeps
    the recorded kana and mail where it has none itself.

    Args:
        sessions: checkout sessions by the id of their order.
    """
    sessions = sessions or {}
    by_id = {order.id: order for order in orders}
    payments = {payment.id: (payment, order.id) for order in by_id.values() for payment in order.payments}
    with transaction.atomic():
        if ORDERS_TABLE.held("order_id", by_id) != by_id.keys():
            _lock_arrivals()
        locked = _lock_payments(payments)
        rows = ORDERS_TABLE.lock("order_id", by_id)
        before = {row["key"]: fragments.sources(row) for row in rows.values()}
        keys = mint_keys(
            [order for order in by_id.values() if order.id not in rows],
            used_among=partial(ORDERS_TABLE.held, "key"),
        )
        since = kept_since(read_at)
        batch = _Batch(ORDERS_TABLE, read_at)
        for order in by_id.values():
            row = rows.get(order.id) or ORDERS_TABLE.blank | {
                "key": keys[order.id],
                "order_id": order.id,
                "order_id_reversed": fold(order.id)[::-1],
            }
            session = sessions.get(order.id)
            facts = _order_facts(row, order, session, read_at)
            if since is None or order.created_at >= since:  # else retention.py removes the customer
                facts |= _customer_facts(row, order, session, read_at)
            batch.add(row, facts)
            batch.add(row, folded(row))
        changed = batch.write()
        fragments.write((batch.rows[key] for key in changed), before)
        keys |= {order_id: row["key"] for order_id, row in rows.items()}
        changed |= _write_payments(payments, locked, keys=keys, read_at=read_at)
    return len(changed)


def refresh_order(order_id: str, client: smartpay.Client) -> tuple[smartpay.Refund, ...]:
    """Read an order at Smartpay and record it with its payments; return those of its listed refunds that are news.

    They are news() as defined there, and not recorded: services.observe_refund() does that.

    Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    order = client.get_order(order_id)
    listed = [refund_id for payment in order.payments for refund_id in payment.refund_ids or ()]
    # First: an order that is recorded counts as read, with all that it lists.
    news = _read_news(listed, client)
    record_order(order, read_at=read_at)
    for payment in order.payments:
        _record_listing(payment)
    return news


def refresh_payment(payment_id: str, client: smartpay.Client) -> tuple[bool, tuple[smartpay.Refund, ...]]:
    """Read a payment at Smartpay and record it; read those of its listed refunds that are news.

    Returns (complete, refunds). `complete`: whether the payment lists its refunds, and the list has all those that the
    mirror knows. `refunds`: the listed ones that the mirror does not have or the ledger has not booked; they are not
    recorded, services.observe_refund() does that.

    Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    payment = client.get_payment(payment_id)
    news = _read_news(payment.refund_ids or (), client)  # first, as in refresh_order()
    if not Order.objects.filter(order_id=payment.order).exists():
        record_order(client.get_order(payment.order), read_at=read_at)
    payments = {payment.id: (payment, payment.order)}
    with transaction.atomic():
        locked = _lock_payments(payments)
        keys = dict(Order.objects.filter(order_id=payment.order).values_list("order_id", "key"))
        _write_payments(payments, locked, keys=keys, read_at=read_at)
    _record_listing(payment)
    if payment.refund_ids is None:
        return False, ()
    known = set(SmartpayRefund.objects.filter(payment=payment.id).values_list("pk", flat=True))
    return known <= set(payment.refund_ids), news


def _record_listing(payment: smartpay.Payment) -> None:
    """Record whether a payment that was read by itself, or with its order, lists its refunds.

    Pages of lists do not tell it: what they say of refunds is not acted on.
    """
    lists_refunds = payment.refund_ids is not None
    rows = Payment.objects.filter(pk=payment.id).exclude(lists_refunds=lists_refunds)
    rows.update(lists_refunds=lists_refunds)


def _read_news(refund_ids: Collection[str], client: smartpay.Client) -> tuple[smartpay.Refund, ...]:
    """Read those of the refunds at Smartpay that the mirror does not have or the ledger has not booked."""
    booked = _booked(refund_ids)
    return tuple(client.get_refund(refund_id) for refund_id in refund_ids if refund_id not in booked)


def _order_facts(
    row: Row, order: smartpay.Order, session: smartpay.CheckoutSession | None, read_at: datetime
) -> Row:
    reference = order.reference or (session.reference if session else "")
    if _is_older(row, read_at):
        return {"reference": reference} if reference and not row["reference"] else {}
    return {
        "reference": reference or row["reference"],
        "amount": order.amount,
        "currency": order.currency,
        "status": order.status,
        "description": order.description,
        "token_id": order.token_id,
        "test": order.test,
        "line_items": [
            {
                "name": item.name,
                "quantity": item.quantity,
                "amount": item.amount,
                "currency": item.currency,
                "kind": item.kind,
            }
            for item in order.line_items
        ],
        "created_at": order.created_at,
        "expires_at": order.expires_at,
        "vanished_at": None,
    }


def _customer_facts(
    row: Row, order: smartpay.Order, session: smartpay.CheckoutSession | None, read_at: datetime
) -> Row:
    """Return the customer's columns to be set, or {} where this read has no better customer than the row."""
    customer = session.customer if session and session.customer else order.customer
    if not customer or (row["customer_source"] == SESSION and _is_older(row, read_at)):
        return {}
    known = customer_of(row)
    if known.is_named and not customer.is_named:
        return asdict(completed(known, customer))
    if same_name(known, customer):
        customer = completed(customer, known)
    return {"customer_source": SESSION} | asdict(customer)


def _lock_payments(ids: Collection[str]) -> dict[str, Row]:
    """Lock and return the payments by id. If one is not here yet, no other process can add it meanwhile."""
    if PAYMENTS_TABLE.held("id", ids) != set(ids):
        _lock_arrivals()
    return PAYMENTS_TABLE.lock("id", ids)


def _write_payments(
    payments: Mapping[str, tuple[smartpay.Payment, str]],
    locked: Mapping[str, Row],
    *,
    keys: Mapping[str, int],
    read_at: datetime,
) -> set[int]:
    """Write payments; return the keys of the orders whose payments were new or changed.

    A payment's order and currency never change.

    Args:
        payments: payments with the ids of their orders, by the payment's id.
        locked: the rows that exist already.
        keys: the keys of the orders, by their ids.
    """
    batch = _Batch(PAYMENTS_TABLE, read_at)
    for payment, order_id in payments.values():
        row = locked.get(payment.id) or PAYMENTS_TABLE.blank | {
            "id": payment.id,
            "order_id": keys[order_id],
            "currency": payment.currency,
        }
        facts = {
            "captured": payment.amount,
            "status": payment.status,
            "description": payment.description,
            "reference": payment.reference,
            "created_at": payment.created_at,
        }
        batch.add(row, {} if _is_older(row, read_at) else facts)
    changed = batch.write()
    for row in map(batch.rows.__getitem__, changed):
        _alarm_if_overdrawn(row["id"], row["captured"], row["reserved"] + row["refunded"] + row["external"])
    new = payments.keys() - locked.keys()
    if new and REFUNDS_TABLE.held("payment_id", new):  # recorded before their payment
        count_external(new)
    return {batch.rows[pk]["order_id"] for pk in changed}


def _lock_arrivals() -> None:
    """Wait until no other process adds new rows. See Note [Arrivals one at a time]."""
    while not SyncCursor.objects.select_for_update().filter(pk=SyncCursor.ORDERS).first():
        SyncCursor.objects.bulk_create([SyncCursor(pk=SyncCursor.ORDERS)], ignore_conflicts=True)


# --- Refunds ------------------------------------------------------------------------------------------------


def record_refund(refund: smartpay.Refund, *, read_at: datetime) -> SmartpayRefund:
    """Record a refund that Smartpay showed, and bring the payment's `external` up to date. See record_refunds().

    Returns its row. `ours_id` is its row in the ledger, or None for a refund made outside this tool.
    """
    row = record_refunds([refund], read_at=read_at)[refund.id]
    return SmartpayRefund.from_db(connection.alias, list(row), list(row.values()))


def record_refunds(refunds: Iterable[smartpay.Refund], *, read_at: datetime) -> dict[str, Row]:
    """Record refunds in one transaction of few statements; return their rows by id.

    A refund is ours if its id is a ledger row's smartpay_id, or if its metadata or its reference name a ledger row of
    the same payment. A refund of a payment that is not known yet is kept, and counted when the payment is added.
    """
    by_id = {refund.id: refund for refund in refunds}
    payments = {refund.payment for refund in by_id.values()}
    with transaction.atomic():
        _lock_payments(payments)
        rows = REFUNDS_TABLE.lock("id", by_id)
        ours = _ours(by_id.values())
        batch = _Batch(REFUNDS_TABLE, read_at)
        for refund in by_id.values():
            row = rows.get(refund.id) or REFUNDS_TABLE.blank | {
                "id": refund.id,
                "payment_id": refund.payment,
            }
            facts = {} if _is_older(row, read_at) else _refund_facts(refund)
            batch.add(row, facts | {"ours_id": ours.get(refund.id)})
        batch.write()
        if connection.features.has_select_for_update:
            # The triggers would lock the orders in the order of the payments. An import of customers and retention
            # lock them by key, so that the two could meet in a deadlock.
            keys = Payment.objects.filter(pk__in=payments).values("order")
            list(Order.objects.select_for_update().filter(key__in=keys).order_by("key").values_list("key"))
        count_external(payments)
    return batch.rows


def record_answer(refund: smartpay.Refund, *, ours_id: uuid.UUID | None, read_at: datetime) -> None:
    """Record the refund that Smartpay answered to a POST.

    Called in the transaction that locked the payment and booked the answer. A failure leaves nothing behind, and that
    transaction can go on.

    Args:
        ours_id: the ledger row that was booked with this refund's id; None if none was.
    """
    with transaction.atomic():
        row = REFUNDS_TABLE.blank | {
            "id": refund.id,
            "payment_id": refund.payment,
            "read_at": read_at,
            "ours_id": ours_id,
        }
        REFUNDS_TABLE.assign_changed(row, _refund_facts(refund))
        if ours_id and REFUNDS_TABLE.insert_unless_there(row):
            count_external([refund.payment])
        else:
            record_refunds([refund], read_at=read_at)


def _refund_facts(refund: smartpay.Refund) -> dict[str, Any]:
    return {
        "amount": refund.amount,
        "currency": refund.currency,
        "status": refund.status,
        "reason": refund.reason,
        "description": refund.description,
        "reference": refund.reference,
        "metadata": refund.metadata,
        "created_at": refund.created_at,
        "vanished_at": None,
    }


def ledger_id_of(refund: smartpay.Refund) -> uuid.UUID | None:
    """Return the id of the ledger row that the refund is or, failing that, claims to be; None for neither.

    A refund that names a row of another payment is not ours, but the ledger has to judge it all the same.
    """
    named = Refund.objects.filter(pk__in=_claims(refund)).values_list("pk", flat=True)
    return _ours([refund]).get(refund.id) or named.first()


def lost_refund(refund: smartpay.Refund) -> uuid.UUID | None:
    """Return the id of a ledger row that the refund's metadata names and that does not exist; None for no such id.

    Only the metadata counts, because only this tool writes it; a reference of the same shape may be anybody's. Only a
    refund that could be a ledger row counts: made, of a known payment, in its currency.
    """
    claim = _uuid(refund.metadata.get("refund_dashboard_id"))
    if claim is None or refund.status not in ("", SmartpayRefund.Status.SUCCEEDED) or refund.amount < 1:
        return None
    if Refund.objects.filter(pk=claim).exists():
        return None
    known = Payment.objects.filter(pk=refund.payment, currency=refund.currency).exists()
    return claim if known else None


def _claims(refund: smartpay.Refund) -> list[uuid.UUID]:
    """Return the ids of ledger rows that the refund may name, in its metadata and in its reference."""
    texts = (refund.metadata.get("refund_dashboard_id"), refund.reference)
    return [claim for text in texts if (claim := _uuid(text)) is not None]


def _ours(refunds: Collection[smartpay.Refund]) -> dict[str, uuid.UUID]:
    """Return the ids of the ledger rows that the refunds are, by Smartpay's id, for those that are ours."""
    claims = {refund.id: _claims(refund) for refund in refunds}
    ledger = Refund.objects.filter(
        Q(smartpay_id__in=claims) | Q(pk__in={claim for named in claims.values() for claim in named})
    ).only("smartpay_id", "payment_id")
    by_smartpay_id = {row.smartpay_id: row.pk for row in ledger}
    payment_of = {row.pk: row.payment_id for row in ledger}
    ours = {}
    for refund in refunds:
        named = [claim for claim in claims[refund.id] if payment_of.get(claim) == refund.payment]
        if refund.id in by_smartpay_id:
            ours[refund.id] = by_smartpay_id[refund.id]
        elif named:
            ours[refund.id] = named[0]
    return ours


def _uuid(text: object) -> uuid.UUID | None:
    try:
        return uuid.UUID(text) if isinstance(text, str) else None
    except ValueError:
        return None


def count_external(payment_ids: Iterable[str]) -> None:
    """Recompute `external` of the payments: what Smartpay refunded and the ledger does not count.

    That is the sum of SmartpayRefund.uncovered(), for all payments in one statement:
    - refunds made outside this tool;
    - refunds under our reference other than the one that its ledger row was settled with;
    - refunds of a ledger row that ended without a refund;
    - the excess where a refund is larger than its ledger row, which takes a mistake of Smartpay's.

    The state of the ledger row matters, so whoever changes it by booking evidence has to call this again. The payments
    must be locked by the caller, or new.
    """
    ids = list(payment_ids)
    if not ids:
        return
    with connection.cursor() as cursor:
        cursor.execute(
            f"""
            UPDATE refunds_payment SET external = counted.total
            FROM (
                SELECT payment.id, COALESCE(SUM(CASE
                    WHEN seen.ours_id IS NULL THEN seen.amount
                    WHEN ours.smartpay_id <> seen.id THEN seen.amount
                    WHEN ours.state IN ('cancelled', 'rejected', 'not_executed') THEN seen.amount
                    WHEN seen.amount > ours.amount THEN seen.amount - ours.amount
                    ELSE 0
                END), 0) AS total
                FROM refunds_payment AS payment
                LEFT JOIN refunds_smartpayrefund AS seen ON seen.payment_id = payment.id AND seen.status <> 'failed'
                LEFT JOIN refunds_refund AS ours ON ours.id = seen.ours_id
                WHERE {in_list_sql("payment.id")}
                GROUP BY payment.id
            ) AS counted
            WHERE counted.id = refunds_payment.id AND refunds_payment.external <> counted.total
            RETURNING refunds_payment.id, captured, reserved + refunded + external
            """,  # noqa: S608  (names of ours)
            [list_param(ids)],
        )
        for payment_id, captured, taken in cursor.fetchall():
            _alarm_if_overdrawn(payment_id, captured, taken)


def _alarm_if_overdrawn(payment_id: str, captured: int, taken: int) -> None:
    """Smartpay's facts are recorded even where they break the sum of a payment; then people are told.

    taken: refunded, here or elsewhere, or reserved by refunds that are not settled.
    """
    if taken > captured:
        log.error("payment.overdrawn", alarm=True, payment=payment_id)


def _booked(ids: Iterable[str]) -> set[str]:
    """Return those of the refunds that are in the mirror and, if they are or were ours, booked in the ledger."""
    booking = Evidence.objects.filter(smartpay_id=OuterRef("pk"))
    others = Q(ours=None) & (~Q(metadata__has_key="refund_dashboard_id") | Exists(booking))
    ours = Exists(booking.filter(refund=OuterRef("ours"))) | Q(ours__recovered=True)
    rows = SmartpayRefund.objects.filter(others | ours, pk__in=list(ids))
    return set(rows.values_list("pk", flat=True))


def news(refunds: Iterable[smartpay.Refund]) -> list[smartpay.Refund]:
    """Return the refunds that the mirror does not have, has otherwise, or that the ledger has not booked."""
    by_id = {refund.id: refund for refund in refunds}
    booked = SmartpayRefund.objects.in_bulk(list(_booked(by_id)))
    return [
        refund
        for refund in by_id.values()
        if refund.id not in booked
        or REFUNDS_TABLE.assign_changed(vars(booked[refund.id]), _refund_facts(refund))
    ]


def record_external_refunds(
    refunds: Sequence[smartpay.Refund], *, read_at: datetime
) -> list[smartpay.Refund]:
    """Record those of the refunds that do not concern the ledger, all at once; return the others, unrecorded.

    A returned refund concerns the ledger: it claims one of our rows, or lowers a payment on which one of our waiting
    refunds may no longer fit. services.observe_refund() handles those. For the recorded ones, it would do no more than
    record them one by one. The payments are locked meanwhile, so that nobody can request a refund on them.
    """
    with transaction.atomic():
        payments = {refund.payment for refund in refunds}
        _lock_payments(payments)
        busy = set(
            Refund.objects.reserving().filter(payment__in=payments).values_list("payment_id", flat=True)
        )
        claimed = set(
            Refund.objects.filter(
                pk__in={claim for refund in refunds for claim in _claims(refund)}
            ).values_list("pk", flat=True)
        )
        ours = _ours(refunds)
        others = [
            refund
            for refund in refunds
            if refund.payment in busy
            or refund.id in ours
            or "refund_dashboard_id" in refund.metadata
            or not claimed.isdisjoint(_claims(refund))
        ]
        left = {refund.id for refund in others}
        record_refunds([refund for refund in refunds if refund.id not in left], read_at=read_at)
    return others


def is_news(refund: smartpay.Refund) -> bool:
    """Return whether the refund is news(): the mirror does not have it as it is, or the ledger has not booked it."""
    return bool(news([refund]))


# --- What Smartpay no longer shows --------------------------------------------------------------------------

SMARTPAY_ID: dict[type[Model], str] = {Order: "order_id", SmartpayRefund: "id"}  # the column of Smartpay's id


def unread_since(
    moment: datetime,
    kind: type[Order | SmartpayRefund],
    *,
    created_before: datetime | None,
    excluding: Collection[str],
    most: int,
) -> list[str]:
    """Return Smartpay's ids of at most `most` orders or refunds that were last read before the moment.

    created_before: leave out what was made from then on; None: nothing.
    """
    column = SMARTPAY_ID[kind]
    unread = _unread(moment, kind).exclude(**{f"{column}__in": excluding})
    if created_before:
        unread = unread.filter(created_at__lt=created_before)
    return list(unread.order_by().values_list(column, flat=True)[:most])


def record_vanished(smartpay_id: str, kind: type[Order | SmartpayRefund], *, unread_since: datetime) -> None:
    """Mark an order or refund that Smartpay says does not exist, unless another process has read it meanwhile."""
    unread = _unread(unread_since, kind).filter(**{SMARTPAY_ID[kind]: smartpay_id})
    unread.update(vanished_at=clock.now())


def _unread(since: datetime, kind: type[Order | SmartpayRefund]) -> QuerySet[Any]:
    return kind._default_manager.filter(read_at__lt=since, vanished_at=None)


# --- Writing rows -------------------------------------------------------------------------------------------


def _is_older(row: Row, read_at: datetime) -> bool:
    """Return whether this read is older than the one that the row was written from. A new row has none."""
    known: datetime | None = row["read_at"]
    return known is not None and known > read_at


class _Batch:
    """The rows of a page. New ones are inserted, changed ones updated, and of the others only `read_at`."""

    def __init__(self, table: Table, read_at: datetime) -> None:
        self.table = table
        self.read_at = read_at
        self.rows: dict[Any, Row] = {}
        self._differing: dict[Any, set[str]] = {}

    def add(self, row: Row, facts: Mapping[str, Any]) -> None:
        key = row[self.table.key]
        self.rows[key] = row
        self._differing.setdefault(key, set()).update(self.table.assign_changed(row, facts))

    def write(self) -> set[Any]:
        """Write the rows; return the primary keys of those that were new or changed."""
        new: list[Row] = []
        changed: list[Row] = []
        same: list[Any] = []
        columns = {"read_at"}
        for key, row in self.rows.items():
            if row["read_at"] is None:
                row["read_at"] = self.read_at
                new.append(row)
            elif differing := self._differing[key]:
                row["read_at"] = max(row["read_at"], self.read_at)
                changed.append(row)
                columns |= differing
            elif row["read_at"] < self.read_at:
                row["read_at"] = self.read_at
                same.append(key)
        if new:
            self.table.insert(new)
        if changed:
            self.table.update(changed, columns)
        if same:
            self.table.touch_read_at(same, self.read_at)
        return {row[self.table.key] for row in (*new, *changed)}
