"""What is removed when its time is over: names and mails of old orders, and what people typed into searches.

Orders, payments, refunds and the trail stay. mirror.py keeps a later reading from bringing the names back.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta

from refunds import audit, clock, mirror
from refunds.models import Search

SEARCHES_KEPT = timedelta(days=30)


@dataclass(frozen=True, slots=True)
class Removed:
    """So many orders lost their customer, and so many searches are gone; or would, in a dry run."""

    orders: int
    searches: int


def prune(*, dry_run: bool = False) -> Removed:
    """Remove what is older than RETENTION_DAYS (orders) and than 30 days (searches), some rows at a time.

    Killed, the next call goes on; what was removed is on the trail, batch by batch.
    """
    before = mirror.customers_kept_since(clock.now())
    searches = Search.objects.filter(created_at__lt=_searches_kept_since(before))
    if dry_run:
        return Removed(mirror.outdated_customers().count(), searches.count())
    orders = 0
    while forgotten := mirror.forget_customers():
        orders += forgotten
        audit.record(None, "personal_data.removed", None, orders=forgotten, before=str(before))
    if deleted := searches.delete()[0]:
        audit.record(None, "personal_data.removed", None, searches=deleted)
    return Removed(orders, deleted)


def _searches_kept_since(customers_since: datetime | None) -> datetime:
    since = clock.now() - SEARCHES_KEPT
    return max(since, customers_since) if customers_since else since
