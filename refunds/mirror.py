"""Order, Payment, SmartpayRefund as Smartpay has them, with names from its checkout sessions. Nothing else writes them.

What was read is recorded with the moment when its read began: an older read never replaces a newer one. The ledger
is not touched here; services.observe_refund() records a refund through this module and then settles the ledger.
"""

import hashlib
import uuid
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import lru_cache
from typing import Any

import structlog
from django.conf import settings
from django.db import connection, transaction
from django.db.models import Exists, Model, OuterRef, Q, QuerySet

from refunds import clock, fragments, smartpay
from refunds.database_values import storable
from refunds.folding import fold, fold_reference
from refunds.models import KEY_BITS, Evidence, Order, Payment, Refund, SmartpayRefund, SyncCursor
from refunds.rows import Row, Table, in_list_sql, list_param

log = structlog.get_logger(__name__)

ORDERS_TABLE, PAYMENTS_TABLE, REFUNDS_TABLE = Table(Order), Table(Payment), Table(SmartpayRefund)
SESSION = Order.CustomerSource.SESSION.value

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

# Note [Arrivals one at a time]
# Orders and payments that are new, and refunds whose payment is not here yet, are added by one process at a time:
# it holds the cursor row of the orders. Otherwise a payment could be added while its refund is, neither seeing the
# other, and the refund would be missing from `external`. Locks are taken in this order: cursors, payments, refunds,
# orders (see Note [Lock order] in models.py).


# --- Orders and payments ------------------------------------------------------------------------------------


def record_order(
    order: smartpay.Order, *, read_at: datetime, session: smartpay.CheckoutSession | None = None
) -> Order:
    """Record an order with its payments, and its customer where the session (or the order itself) names one.

    Args:
        read_at: when the read began that the order comes from.
        session: the checkout session of the order, where that is what was read.

    Returns the row as it now is. See record_orders() for what replaces what.
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

    Facts of an older read than the recorded one are dropped. The customer comes first from the session (`sessions`
    is by order id), then from an import; an order read without its session leaves the customer as it is. A session
    without a name, and one with the name that is known, take no kana and no mail away that they do not have; a session
    without a name replaces none. A reference is never replaced by none.
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
        keys = _mint_keys([order for order in by_id.values() if order.id not in rows])
        kept_since = customers_kept_since(read_at)
        batch = _Batch(ORDERS_TABLE, read_at)
        for order in by_id.values():
            row = rows.get(order.id) or ORDERS_TABLE.blank | {
                "key": keys[order.id],
                "order_id": order.id,
                "order_id_reversed": fold(order.id)[::-1],
            }
            session = sessions.get(order.id)
            facts = _order_facts(row, order, session, read_at)
            if kept_since is None or order.created_at >= kept_since:  # else removed, or never to be kept
                facts |= _customer_facts(row, order, session, read_at)
            batch.add(row, facts)
            batch.add(row, folded(row))
        changed = batch.write()
        fragments.write((batch.rows[key] for key in changed), before)
        keys |= {order_id: row["key"] for order_id, row in rows.items()}
        changed |= _write_payments(payments, locked, keys=keys, read_at=read_at)
    return len(changed)


def refresh_order(order_id: str, client: smartpay.Client) -> tuple[smartpay.Refund, ...]:
    """Read an order at Smartpay and record it; return the refunds of its payments that are news here, unrecorded.

    Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    order = client.get_order(order_id)
    record_order(order, read_at=read_at)
    return _read_news(
        [refund_id for payment in order.payments for refund_id in payment.refund_ids or ()], client
    )


def refresh_payment(payment_id: str, client: smartpay.Client) -> tuple[bool, tuple[smartpay.Refund, ...]]:
    """Read a payment at Smartpay and record its facts; read the refunds that it lists and that are news here.

    Returns (complete, refunds): whether the payment lists its refunds, all that we know among them; and those listed
    that the mirror does not have or the ledger has not booked. They are not recorded: services.observe_refund() does
    that.
    Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    payment = client.get_payment(payment_id)
    if not Order.objects.filter(order_id=payment.order).exists():
        record_order(client.get_order(payment.order), read_at=read_at)
    payments = {payment.id: (payment, payment.order)}
    with transaction.atomic():
        locked = _lock_payments(payments)
        keys = dict(Order.objects.filter(order_id=payment.order).values_list("order_id", "key"))
        _write_payments(payments, locked, keys=keys, read_at=read_at)
    if payment.refund_ids is None:
        return False, ()
    known = set(SmartpayRefund.objects.filter(payment=payment.id).values_list("pk", flat=True))
    return known <= set(payment.refund_ids), _read_news(payment.refund_ids, client)


def _read_news(refund_ids: Collection[str], client: smartpay.Client) -> tuple[smartpay.Refund, ...]:
    """Read those of the refunds that the mirror does not have or the ledger has not booked."""
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
    """The customer's columns where this read has something better to say, else nothing."""
    customer = session.customer if session and session.customer else order.customer
    if not customer or (row["customer_source"] == SESSION and _is_older(row, read_at)):
        return {}
    known = _known(row)
    if known.is_named and not customer.is_named:
        return asdict(_completed(known, customer))
    if _same_name(known, customer):
        customer = _completed(customer, known)
    return {"customer_source": SESSION} | asdict(customer)


CUSTOMER = ("family_name", "given_name", "family_kana", "given_kana", "email")


def _known(row: Mapping[str, Any]) -> smartpay.Customer:
    return smartpay.Customer(**{column: row[column] for column in CUSTOMER})


def _same_name(one: smartpay.Customer, other: smartpay.Customer) -> bool:
    """Whether they are called alike, however that is written, or neither has a name."""
    names = (_fold_name(each.family_name, each.given_name)[2] for each in (one, other))
    return next(names) == next(names)


def _completed(customer: smartpay.Customer, other: smartpay.Customer) -> smartpay.Customer:
    """The customer, with the kana and the mail of the other where it has none."""
    kana = customer if customer.family_kana or customer.given_kana else other
    return replace(
        customer,
        family_kana=kana.family_kana,
        given_kana=kana.given_kana,
        email=customer.email or other.email,
    )


FOLDED = (  # what is searched
    "family_folded",
    "given_folded",
    "name_folded",
    "name_turned_folded",
    "family_kana_folded",
    "given_kana_folded",
    "kana_folded",
    "kana_turned_folded",
    "email_folded",
    "reference_folded",
)


def folded(row: Mapping[str, Any]) -> dict[str, str]:
    """What is searched of the row, made anew even where nothing differs: the rules of folding may have changed."""
    texts = (
        *_fold_name(row["family_name"], row["given_name"]),
        *_fold_name(row["family_kana"], row["given_kana"]),
        fold(row["email"]),
        fold_reference(row["reference"]),
    )
    return dict(zip(FOLDED, texts, strict=True))


@lru_cache(2**13)  # many people share a name
def _fold_name(family: str, given: str) -> tuple[str, str, str, str]:
    return fold(family), fold(given), fold(f"{family} {given}"), fold(f"{given} {family}")


@dataclass(frozen=True, slots=True)
class Named:
    """A customer of the merchant's own records, by the order's id or, without one, by the merchant's reference."""

    order_id: str
    reference: str
    customer: smartpay.Customer
    line: int = 0  # of the file


class Import(StrEnum):
    """What became of a customer that was handed in."""

    WRITTEN = "written"
    SAME = "same"  # known already
    KEPT = "kept"  # the checkout session knows better, or as well
    UNKNOWN = "unknown"  # no such order here
    AMBIGUOUS = "ambiguous"  # several paid orders carry the reference
    TOO_OLD = "too_old"  # its customer was removed, or would be at once: see retention.py
    DIFFERS = "differs"  # an earlier line names another customer for the order


@dataclass(frozen=True, slots=True)
class Said:
    """What a file said of an order: in which line, whom (as a hash), and what becomes of who says the same again."""

    line: int
    customer: int
    again: Import


def record_customers(
    named: Sequence[Named], *, said: dict[int, Said], dry_run: bool = False
) -> list[tuple[Import, int]]:
    """Record customers of an import in one transaction of few statements.

    Returns what became of each, and where it DIFFERS from which line; else 0. Of two customers for one order the first
    stays: which of them is wrong, nobody here can tell.

    Args:
        said: what the file said before, by the key of the order, an empty one at its start. What it says is added.

    A name from a checkout session is never replaced; an import of the same name adds the kana and the mail that the
    session did not give. A session that gave only a mail is replaced, by a name, and its mail is kept where the import
    has none. A reference is looked for as it is, then folded; the attempts that a shopper left unpaid carry it too and
    are named alike.
    """
    since = customers_kept_since(clock.now())
    with transaction.atomic():
        ids = {one.order_id for one in named if one.order_id}
        references = {fold_reference(one.reference) for one in named if one.reference and not one.order_id}
        rows = Order.objects.select_for_update().filter(
            Q(order_id__in=ids) | Q(reference_folded__in=references - {""})
        )
        by_id: dict[str, Order] = {}
        by_reference: dict[str, list[Order]] = {}
        for row in rows.order_by("key"):
            by_id[row.order_id] = row
            # A search does without the signs of 1-11; a name is not given to 11-1.
            by_reference.setdefault(fold(row.reference), []).append(row)
        before = {row.key: fragments.sources(vars(row)) for row in by_id.values()}
        differing: dict[int, set[str]] = {}
        fates: list[tuple[Import, int]] = []
        for one in named:
            if one.order_id:
                found = [by_id[one.order_id]] if one.order_id in by_id else []
            else:
                alike = by_reference.get(fold(one.reference), [])
                found = [row for row in alike if row.reference == one.reference] or alike
            if not found:
                fates.append((Import.UNKNOWN, 0))
            elif sum(row.status not in Order.UNPAID for row in found) > 1:
                fates.append((Import.AMBIGUOUS, 0))
            elif not (young := [row for row in found if since is None or row.created_at >= since]):
                fates.append((Import.TOO_OLD, 0))
            else:
                fates.append(_record_customer(young, one, said, differing))
        if not dry_run:
            changed = [row for row in by_id.values() if row.key in differing]
            columns = set().union(*differing.values())
            if changed:
                Order.objects.bulk_update(changed, sorted(columns), batch_size=500)  # two parameters a column
                fragments.write(map(vars, changed), before)
    return fates


def _record_customer(
    rows: Sequence[Order], one: Named, said: dict[int, Said], differing: dict[int, set[str]]
) -> tuple[Import, int]:
    """Put an import's customer on an order, and on the attempts under its reference, unless the file said another."""
    who = one.customer
    customer = hash(
        (
            _fold_name(who.family_name, who.given_name)[2],
            _fold_name(who.family_kana, who.given_kana)[2],
            fold(who.email),
        )
    )
    fates = set()
    for before in (said[row.key] for row in rows if row.key in said):
        if before.customer != customer:
            return Import.DIFFERS, before.line
        fates.add(before.again)  # not asked of the row: in a dry run it is as it was
    for row in rows:
        if row.key not in said:
            fates.add(_name(row, who, differing))
            said[row.key] = Said(one.line, customer, again=_unchanged(row))
    # Of the attempts under one reference: what says most of what was done.
    return next(fate for fate in (Import.WRITTEN, Import.SAME, Import.KEPT) if fate in fates), 0


def _unchanged(row: Order) -> Import:
    """What becomes of who says of the order what is known of it."""
    return Import.KEPT if row.customer_source == SESSION else Import.SAME


def _name(row: Order, customer: smartpay.Customer, differing: dict[int, set[str]]) -> Import:
    """Put an import's customer on a row, where it may; note the columns that differ."""
    known = _known(vars(row))
    if row.customer_source == SESSION and (known.is_named or not customer.is_named):
        if not _same_name(known, customer):
            return Import.KEPT
        facts = asdict(_completed(known, customer))
    else:
        if not customer.is_named:
            named = replace(known, email=customer.email or known.email)
        elif not known.is_named or _same_name(known, customer):
            named = _completed(customer, known)
        else:
            named = customer
        facts = {"customer_source": Order.CustomerSource.IMPORT} | asdict(named)
    changed = _put(ORDERS_TABLE, vars(row), facts)
    if not changed:
        return _unchanged(row)
    changed |= _put(ORDERS_TABLE, vars(row), folded(vars(row)))
    differing[row.key] = differing.get(row.key, set()) | changed
    return Import.WRITTEN


FORGOTTEN_AT_ONCE = 500  # orders, in one transaction


def customers_kept_since(now: datetime) -> datetime | None:
    """Orders before this moment have no customer here; None where all are kept."""
    return None if settings.RETENTION_DAYS is None else now - timedelta(days=settings.RETENTION_DAYS)


def outdated_customers() -> QuerySet[Order]:
    """The orders of before that still have one."""
    since = customers_kept_since(clock.now())
    if since is None:
        return Order.objects.none()
    return Order.objects.filter(key__lt=first_key(since), customer_source__gt="")


def forget_customers() -> int:
    """Remove the customers of some of these orders, oldest first; return of how many."""
    emptied = {
        column: "" for column in ("customer_source", *CUSTOMER, *FOLDED) if column != "reference_folded"
    }
    with transaction.atomic():
        rows = list(outdated_customers().select_for_update().order_by("key")[:FORGOTTEN_AT_ONCE])
        before = {row.key: fragments.sources(vars(row)) for row in rows}
        Order.objects.filter(key__in=before).update(**emptied)
        fragments.write((vars(row) | emptied for row in rows), before)
    return len(rows)


def first_key(moment: datetime) -> int:
    """The lowest key that an order created at this moment can have. See Note [Keys in time order]."""
    return (moment - EPOCH) // timedelta(milliseconds=1) << KEY_BITS


def moment_of(key: int) -> datetime:
    """When the order of this key was created."""
    return EPOCH + timedelta(milliseconds=key >> KEY_BITS)


def _key(order: smartpay.Order, attempt: int) -> int:
    digest = hashlib.sha256(f"{order.id}#{attempt}".encode()).digest()
    return first_key(order.created_at) | (int.from_bytes(digest[:8]) & ((1 << KEY_BITS) - 1))


def _mint_keys(orders: Collection[smartpay.Order]) -> dict[str, int]:
    """Return a free key for each order, by its id. Two orders of one millisecond may ask for the same one."""
    keys: dict[str, int] = {}
    attempt = 0
    while len(keys) < len(orders):
        wanted = {order.id: _key(order, attempt) for order in orders if order.id not in keys}
        used = ORDERS_TABLE.held("key", wanted.values()) | set(keys.values())
        for order_id, key in wanted.items():
            if key not in used:
                keys[order_id] = key
                used.add(key)
        attempt += 1
    return keys


def _lock_payments(ids: Collection[str]) -> dict[str, Row]:
    """Lock the payments that are here and return them by id, no other arriving meanwhile where one is not."""
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
    """Write payments, given with their order's id; return the keys of the orders that this changed.

    `locked` are the rows that exist already. A payment's order and currency never change.
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
    new = payments.keys() - locked.keys()
    if new and REFUNDS_TABLE.held("payment_id", new):  # they came first
        count_external(new)
    return {batch.rows[pk]["order_id"] for pk in changed}


def _lock_arrivals() -> None:
    """Let one process at a time add what is new. See Note [Arrivals one at a time]."""
    while not SyncCursor.objects.select_for_update().filter(pk=SyncCursor.ORDERS).first():
        SyncCursor.objects.bulk_create([SyncCursor(pk=SyncCursor.ORDERS)], ignore_conflicts=True)


# --- Refunds ------------------------------------------------------------------------------------------------


def record_refund(refund: smartpay.Refund, *, read_at: datetime) -> SmartpayRefund:
    """Record a refund that Smartpay showed, tell whether it is ours, and count it where it is not.

    Returns its row; `ours_id` is the ledger row that it is, None where it was made outside this tool. The payment's
    `external` is then right again. See record_refunds().
    """
    row = record_refunds([refund], read_at=read_at)[refund.id]
    return SmartpayRefund.from_db(connection.alias, list(row), list(row.values()))


def record_refunds(refunds: Iterable[smartpay.Refund], *, read_at: datetime) -> dict[str, Row]:
    """Record refunds in one transaction of few statements; return their rows by id.

    One is ours if its id is a ledger row's smartpay_id, or if its metadata or its reference name a ledger row of the
    same payment. A refund of a payment that is not known yet is kept, and counted when the payment arrives.
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
            # The triggers lock the orders as the payments come; an import, and retention, lock them by key.
            keys = Payment.objects.filter(pk__in=payments).values("order")
            list(Order.objects.select_for_update().filter(key__in=keys).order_by("key").values_list("key"))
        count_external(payments)
    return batch.rows


def record_answer(refund: smartpay.Refund, *, ours_id: uuid.UUID | None, read_at: datetime) -> None:
    """record_refund() for the answer to a sending, in the transaction that holds the payment and has booked it.

    `ours_id`: the ledger row whose smartpay_id it has, None where it has none. Where this fails, nothing of it is left,
    and the transaction goes on.
    """
    with transaction.atomic():
        row = REFUNDS_TABLE.blank | {
            "id": refund.id,
            "payment_id": refund.payment,
            "read_at": read_at,
            "ours_id": ours_id,
        }
        _put(REFUNDS_TABLE, row, _refund_facts(refund))
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


def claimed_by(refund: smartpay.Refund) -> uuid.UUID | None:
    """The ledger row that the refund is or, where it is none, names; None for none.

    One that names a row but belongs to another payment is not ours, and yet no stranger's.
    """
    named = Refund.objects.filter(pk__in=_claims(refund)).values_list("pk", flat=True)
    return _ours([refund]).get(refund.id) or named.first()


def lost_refund(refund: smartpay.Refund) -> uuid.UUID | None:
    """The id of a ledger row that the refund's metadata names and that is not there; None for none.

    Judged by the metadata, which only this tool writes, never by the shape of a reference; and only for a refund that
    a row could stand for: of a known payment and its currency, not failed.
    """
    claim = _uuid(refund.metadata.get("refund_dashboard_id"))
    if claim is None or refund.status == SmartpayRefund.Status.FAILED or refund.amount < 1:
        return None
    if Refund.objects.filter(pk=claim).exists():
        return None
    known = Payment.objects.filter(pk=refund.payment, currency=refund.currency).exists()
    return claim if known else None


def _claims(refund: smartpay.Refund) -> list[uuid.UUID]:
    texts = (refund.metadata.get("refund_dashboard_id"), refund.reference)
    return [claim for text in texts if (claim := _uuid(text)) is not None]


def _ours(refunds: Collection[smartpay.Refund]) -> dict[str, uuid.UUID]:
    """Which of the refunds are which rows of the ledger, by Smartpay's id."""
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
    """Make `external` of the payments, which are locked or new, what Smartpay's refunds say.

    A refund under our reference that is not the one the ledger row was settled with is a second one, and one of a
    row that ended without a refund was made all the same: the ledger does not count them, so they are counted here. So
    is what one is larger than its row says, as only Smartpay's own mistake can make it. The row's state is a part of
    it: whoever books evidence on a row counts again.
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
            """,  # noqa: S608  (names of ours)
            [list_param(ids)],
        )


def _booked(ids: Iterable[str]) -> set[str]:
    """Which of Smartpay's refunds are here already, and booked in the ledger where they are, or were, ours."""
    booking = Evidence.objects.filter(smartpay_id=OuterRef("pk"))
    others = Q(ours=None) & (~Q(metadata__has_key="refund_dashboard_id") | Exists(booking))
    ours = Exists(booking.filter(refund=OuterRef("ours"))) | Q(ours__recovered=True)
    rows = SmartpayRefund.objects.filter(others | ours, pk__in=list(ids))
    return set(rows.values_list("pk", flat=True))


def news(refunds: Iterable[smartpay.Refund]) -> list[smartpay.Refund]:
    """Those that the mirror does not have as they are, or the ledger has not booked."""
    by_id = {refund.id: refund for refund in refunds}
    booked = SmartpayRefund.objects.in_bulk(list(_booked(by_id)))
    return [
        refund
        for refund in by_id.values()
        if refund.id not in booked or _put(REFUNDS_TABLE, vars(booked[refund.id]), _refund_facts(refund))
    ]


def record_strangers(refunds: Sequence[smartpay.Refund], *, read_at: datetime) -> list[smartpay.Refund]:
    """Record those of the refunds that the ledger has nothing to do with, and return the others.

    Theirs are neither a claim on a row of the ledger nor a payment with a refund of ours that could no longer fit: what
    is left for services.observe_refund() to do is to record them, and a page of them is recorded at once. Payments
    are locked meanwhile, as they are by whoever asks for a refund.
    """
    with transaction.atomic():
        payments = {refund.payment for refund in refunds}
        _lock_payments(payments)
        busy = set(
            Refund.objects.filter(payment__in=payments, state__in=Refund.RESERVING).values_list(
                "payment_id", flat=True
            )
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
    """Whether the mirror does not have the refund as it is, or the ledger has not booked it."""
    return bool(news([refund]))


# --- What Smartpay shows no longer --------------------------------------------------------------------------

SMARTPAY_ID: dict[type[Model], str] = {Order: "order_id", SmartpayRefund: "id"}  # the column with its own id


def unread_since(
    moment: datetime, kind: type[Order | SmartpayRefund], *, beside: Collection[str], most: int
) -> list[str]:
    """Return Smartpay's ids of orders or refunds that were last read before, without those that are named here."""
    column = SMARTPAY_ID[kind]
    unread = _unread(moment, kind).exclude(**{f"{column}__in": beside})
    return list(unread.order_by().values_list(column, flat=True)[:most])


def record_vanished(smartpay_id: str, kind: type[Order | SmartpayRefund], *, unread_since: datetime) -> None:
    """Smartpay says that there is none of this id. One that was read meanwhile, by somebody else, stays as it is."""
    unread = _unread(unread_since, kind).filter(**{SMARTPAY_ID[kind]: smartpay_id})
    unread.update(vanished_at=clock.now())


def _unread(since: datetime, kind: type[Order | SmartpayRefund]) -> QuerySet[Any]:
    return kind._default_manager.filter(read_at__lt=since, vanished_at=None)


# --- Writing rows -------------------------------------------------------------------------------------------


def _is_older(row: Row, read_at: datetime) -> bool:
    """Whether the row holds the facts of a later read than this one; a new one holds none."""
    known: datetime | None = row["read_at"]
    return known is not None and known > read_at


def _put(table: Table, row: Row, facts: Mapping[str, Any]) -> set[str]:
    """Set the facts on the row, cut to the columns' lengths; return the names of those that differed."""
    differing = set()
    for name, fact in facts.items():
        if row[name] == fact:
            continue
        value = storable(fact)
        if name in table.lengths:
            value = value[: table.lengths[name]]
        if row[name] != value:
            row[name] = value
            differing.add(name)
    return differing


class _Batch:
    """Rows of one page: what is new is inserted, what differs updated, of the rest only `read_at` moves on."""

    def __init__(self, table: Table, read_at: datetime) -> None:
        self.table = table
        self.read_at = read_at
        self.rows: dict[Any, Row] = {}
        self._differing: dict[Any, set[str]] = {}

    def add(self, row: Row, facts: Mapping[str, Any]) -> None:
        key = row[self.table.key]
        self.rows[key] = row
        self._differing.setdefault(key, set()).update(_put(self.table, row, facts))

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
