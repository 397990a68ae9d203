"""What is removed when its time is over: names and mails of old orders, and what people typed into searches.

Orders, payments, refunds and the trail stay. mirror.py keeps a later reading from bringing the names back.
"""

from dataclasses import dataclass
from datetime import datetime

from django.db import transaction
from django.db.models import Q

from refunds import audit, clock, mirror, search
from refunds.models import SavedSearch, Search


@dataclass(frozen=True, slots=True)
class Removed:
    """So many orders lost their customer, and so many searches are gone; or would, in a dry run."""

    orders: int
    searches: int


def prune(*, dry_run: bool = False) -> Removed:
    """Remove what is older than RETENTION_DAYS (customers of orders, saved searches) and than 30 days (other searches).

    Some rows at a time: killed, the next call goes on; what was removed is on the trail, batch by batch.
    """
    now = clock.now()
    before = mirror.customers_kept_since(now)
    old = Q(created_at__lt=now - search.KEPT, saved=None)
    searches = Search.objects.filter(old | Q(created_at__lt=before) if before else old)
    if dry_run:
        return Removed(mirror.outdated_customers().count(), searches.count())
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
    """Remove the customers of some old orders, together with the entry that tells of it; return of how many."""
    with transaction.atomic():
        forgotten = mirror.forget_customers()
        if forgotten:
            audit.record(None, "personal_data.removed", None, orders=forgotten, before=str(before))
    return forgotten
