"""Remove personal data after its time: the customers of old orders, and what people typed into searches.

Orders, payments, refunds and the audit trail stay. mirror.py and customer_import.py write no customer to an order that
is old enough for this.
"""

from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import Q, QuerySet

from refunds import audit, clock, fragments, search
from refunds.customer_fields import CUSTOMER, FOLDED, kept_since
from refunds.models import Order, SavedSearch, Search
from refunds.order_keys import first_key

ORDERS_AT_ONCE = 500  # in one transaction


@dataclass(frozen=True, slots=True)
class Removed:
    """How many orders lost their customer and how many searches were deleted; in a dry run, how many would."""

    orders: int
    searches: int


def prune(*, dry_run: bool = False) -> Removed:
    """Remove customers of orders and saved searches after RETENTION_DAYS, and other searches after 30 days.

    It works in batches, each with its audit entry. If it is killed, the next call goes on.
    """
    now = clock.now()
    before = kept_since(now)
    old = Q(created_at__lt=now - search.KEPT, saved=None)
    searches = Search.objects.filter(old | Q(created_at__lt=before) if before else old)
    if dry_run:
        return Removed(outdated_customers(before).count(), searches.count())
    orders = 0
    while forgotten := _forget_some(before):
        orders += forgotten
    with transaction.atomic():
        if before:
            SavedSearch.objects.filter(search__created_at__lt=before).delete()
        deleted = searches.delete()[1].get(Search._meta.label, 0)
        if deleted:
            audit.record(None, "personal_data.removed", None, searches=deleted)
    return Removed(orders, deleted)


def _forget_some(before: datetime | None) -> int:
    """Remove the customers of at most ORDERS_AT_ONCE old orders, oldest first, and record it; return of how many."""
    emptied = {
        column: "" for column in ("customer_source", *CUSTOMER, *FOLDED) if column != "reference_folded"
    }
    with transaction.atomic():
        rows = list(outdated_customers(before).select_for_update().order_by("key")[:ORDERS_AT_ONCE])
        sources = {row.key: fragments.sources(vars(row)) for row in rows}
        Order.objects.filter(key__in=sources).update(**emptied)
        fragments.write((vars(row) | emptied for row in rows), sources)
        if rows:
            audit.record(None, "personal_data.removed", None, orders=len(rows), before=str(before))
    return len(rows)


def outdated_customers(before: datetime | None) -> QuerySet[Order]:
    """Return the orders from before this moment, which is kept_since(), that still have a customer."""
    if before is None:
        return Order.objects.none()
    return Order.objects.filter(key__lt=first_key(before), customer_source__gt="")
