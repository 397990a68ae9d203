"""Puts customers of the merchant's own records on orders. customers.py reads them from a file.

Only this module, mirror.py and retention.py write an order's customer. A name from a checkout session stays, and an
order older than RETENTION_DAYS gets no customer.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import StrEnum

from django.db import transaction
from django.db.models import Q

from refunds import clock, fragments, smartpay
from refunds.customer_fields import completed, customer_of, fold_name, folded, kept_since, same_name
from refunds.folding import fold, fold_reference
from refunds.mirror import ORDERS_TABLE
from refunds.models import Order

SESSION = Order.CustomerSource.SESSION


@dataclass(frozen=True, slots=True)
class ImportedCustomer:
    """A customer of the merchant's own records and the order it belongs to.

    The order is named by Smartpay's id or, where `order_id` is empty, by the merchant's reference. `line` is the line
    of the file.
    """

    order_id: str
    reference: str
    customer: smartpay.Customer
    line: int = 0


class ImportOutcome(StrEnum):
    """What became of an imported customer."""

    WRITTEN = "written"
    SAME = "same"  # known already
    KEPT = "kept"  # the name from the checkout session stays, and the import adds nothing to it
    UNKNOWN = "unknown"  # there is no such order here
    AMBIGUOUS = "ambiguous"  # several paid orders carry the reference
    TOO_OLD = "too_old"  # the order is older than RETENTION_DAYS: retention.py removes its customer
    DIFFERS = "differs"  # an earlier line names another customer for the order


@dataclass(frozen=True, slots=True)
class LineResult:
    """The outcome of a line. `earlier_line`: for DIFFERS, the line that names another customer; else 0."""

    outcome: ImportOutcome
    earlier_line: int = 0


@dataclass(frozen=True, slots=True)
class SeenLine:
    """What an earlier line of the file said about an order.

    `customer_hash` is of the folded customer: a file of any length is held in memory only as such hashes.
    `outcome_if_repeated` is the outcome of a later line that says the same.
    """

    line: int
    customer_hash: int
    outcome_if_repeated: ImportOutcome


def record_customers(
    imported: Sequence[ImportedCustomer], *, seen: dict[int, SeenLine], dry_run: bool = False
) -> list[LineResult]:
    """Put customers on orders, in one transaction of few statements; return what became of each, in their order.

    Where two lines name different customers for one order, the first one stays: nothing here tells which is wrong.

    A name from a checkout session is never replaced. An import of the same name adds the kana and the mail that the
    session lacks. A session that gave only a mail is replaced by an import with a name; its mail stays where the
    import has none.

    A reference is looked for as it is written, then folded. The attempts that a shopper left unpaid carry the
    reference of the paid order, and get the same customer.

    Args:
        seen: what earlier lines of the file said, by the key of the order. Empty at the start of a file; added to.
        dry_run: return the outcomes without writing.
    """
    since = kept_since(clock.now())
    with transaction.atomic():
        orders = _Orders(imported)
        results = [_record_customer(one, orders, seen, since) for one in imported]
        if not dry_run:
            orders.write()
    return results


class _Orders:
    """The orders that some imported customers may belong to, locked, with the changes to be written to them."""

    def __init__(self, imported: Sequence[ImportedCustomer]) -> None:
        ids = {one.order_id for one in imported if one.order_id}
        references = {fold_reference(one.reference) for one in imported if one.reference and not one.order_id}
        rows = Order.objects.select_for_update().filter(
            Q(order_id__in=ids) | Q(reference_folded__in=references - {""})
        )
        self._by_id: dict[str, Order] = {}
        self._by_reference: dict[str, list[Order]] = {}
        for row in rows.order_by("key"):
            self._by_id[row.order_id] = row
            # fold_reference() drops the signs of 1-11, so that a search finds it. 1-11 and 11-1 are two orders here.
            self._by_reference.setdefault(fold(row.reference), []).append(row)
        self._sources = {row.key: fragments.sources(vars(row)) for row in self._by_id.values()}
        self._changed_columns: dict[int, set[str]] = {}

    def of(self, one: ImportedCustomer) -> list[Order]:
        """Return the order with the id, or the orders that carry the reference."""
        if one.order_id:
            return [self._by_id[one.order_id]] if one.order_id in self._by_id else []
        alike = self._by_reference.get(fold(one.reference), [])
        return [row for row in alike if row.reference == one.reference] or alike

    def put(self, row: Order, customer: smartpay.Customer) -> ImportOutcome:
        """Put an imported customer on an order, as far as a name from a checkout session allows it."""
        known = customer_of(vars(row))
        if row.customer_source == SESSION and (known.is_named or not customer.is_named):
            if not same_name(known, customer):
                return ImportOutcome.KEPT
            facts = asdict(completed(known, customer))
        else:
            if not customer.is_named:
                combined = replace(known, email=customer.email or known.email)
            elif not known.is_named or same_name(known, customer):
                combined = completed(customer, known)
            else:
                combined = customer
            facts = {"customer_source": Order.CustomerSource.IMPORT} | asdict(combined)
        changed = ORDERS_TABLE.assign_changed(vars(row), facts)
        if not changed:
            return _outcome_without_change(row)
        changed |= ORDERS_TABLE.assign_changed(vars(row), folded(vars(row)))
        self._changed_columns.setdefault(row.key, set()).update(changed)
        return ImportOutcome.WRITTEN

    def write(self) -> None:
        """Write what put() changed."""
        changed = [row for row in self._by_id.values() if row.key in self._changed_columns]
        columns = set().union(*self._changed_columns.values())
        if changed:
            Order.objects.bulk_update(changed, sorted(columns), batch_size=500)  # two parameters a column
            fragments.write(map(vars, changed), self._sources)


def _record_customer(
    one: ImportedCustomer, orders: _Orders, seen: dict[int, SeenLine], since: datetime | None
) -> LineResult:
    """Put an imported customer on its order, and on the unpaid attempts under its reference.

    Nothing is changed where an earlier line named another customer.
    """
    rows = orders.of(one)
    if not rows:
        return LineResult(ImportOutcome.UNKNOWN)
    if sum(row.status not in Order.UNPAID for row in rows) > 1:
        return LineResult(ImportOutcome.AMBIGUOUS)
    rows = [row for row in rows if since is None or row.created_at >= since]
    if not rows:
        return LineResult(ImportOutcome.TOO_OLD)
    customer_hash = _hash(one.customer)
    outcomes = set()
    for earlier in (seen[row.key] for row in rows if row.key in seen):
        if earlier.customer_hash != customer_hash:
            return LineResult(ImportOutcome.DIFFERS, earlier.line)
        # The order's row can't be asked: in a dry run the earlier line did not change it in the database.
        outcomes.add(earlier.outcome_if_repeated)
    for row in rows:
        if row.key not in seen:
            outcomes.add(orders.put(row, one.customer))
            seen[row.key] = SeenLine(one.line, customer_hash, _outcome_without_change(row))
    # Several attempts may have several outcomes. The one that says most is reported.
    by_weight = (ImportOutcome.WRITTEN, ImportOutcome.SAME, ImportOutcome.KEPT)
    return LineResult(next(outcome for outcome in by_weight if outcome in outcomes))


def _hash(customer: smartpay.Customer) -> int:
    return hash(
        (
            fold_name(customer.family_name, customer.given_name)[2],
            fold_name(customer.family_kana, customer.given_kana)[2],
            fold(customer.email),
        )
    )


def _outcome_without_change(row: Order) -> ImportOutcome:
    """Outcome of a line that adds nothing: KEPT if the name came from a checkout session, else SAME."""
    return ImportOutcome.KEPT if row.customer_source == SESSION else ImportOutcome.SAME
