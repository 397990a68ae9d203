"""What narrows a list or a search, and the conditions in SQL that say so."""

from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from refunds.models import Order
from refunds.order_keys import first_key
from refunds.search.sql import Parameters

ANY_STATUS = "any"
IN_PROGRESS = "in_progress"  # the two statuses that are both 手続き中
STATUSES = {IN_PROGRESS: (Order.Status.REQUIRES_AUTHORIZATION, Order.Status.PENDING)}


@dataclass(frozen=True, slots=True)
class Filters:
    """What narrows a list.

    status: one of Order.Status, IN_PROGRESS, ANY_STATUS, or "": all but those that were never paid.
    refund_status: one of Order.RefundStatus, or "": all.
    period_from, period_to: from this moment on; up to, not including, that one.
    """

    status: str = ""
    refund_status: str = ""
    period_from: datetime | None = None
    period_to: datetime | None = None


DEFAULT_FILTERS = Filters()


class Conditions(NamedTuple):
    """Filters in SQL.

    key: the condition on an order's key, which an index tells without the order's row.
    others: the condition on its other columns.
    narrow: whether the filters may leave few of many orders.
    parameters: the values that both conditions name.
    """

    key: str
    others: str
    narrow: bool
    parameters: Parameters

    @classmethod
    def of(cls, filters: Filters) -> "Conditions":
        key, parameters = _on_key(filters)
        others: list[str] = []
        if filters.status != ANY_STATUS:
            statuses = STATUSES.get(filters.status, (filters.status,)) if filters.status else Order.UNPAID
            names = [f"status{number}" for number in range(len(statuses))]
            parameters |= dict(zip(names, map(str, statuses), strict=True))
            operator = "IN" if filters.status else "NOT IN"
            others.append(f"status {operator} ({', '.join(f'%({name})s' for name in names)})")
        if filters.refund_status:
            others.append("refund_status = %(refund_status)s")
            parameters["refund_status"] = filters.refund_status
        narrow = bool(filters.refund_status) or filters.status not in ("", ANY_STATUS)
        return cls(" AND ".join(key) or "TRUE", " AND ".join(others) or "TRUE", narrow, parameters)

    def beside(self, key: int, *, newer: bool) -> "Conditions":
        """Return the same conditions for orders newer, or older, than the one of this key."""
        condition = f"{self.key} AND key {'>' if newer else '<'} %(place)s"
        return self._replace(key=condition, parameters=self.parameters | {"place": key})

    def __str__(self) -> str:
        return f"{self.key} AND {self.others}"


def _on_key(filters: Filters) -> tuple[list[str], Parameters]:
    conditions: list[str] = []
    parameters: Parameters = {}
    if filters.period_from:
        conditions.append("key >= %(period_from)s")
        parameters["period_from"] = first_key(filters.period_from)
    if filters.period_to:
        conditions.append("key < %(period_to)s")
        parameters["period_to"] = first_key(filters.period_to)
    return conditions, parameters
