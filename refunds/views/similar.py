"""Refunds that the one asked for may repeat, as its confirmation and its page show them."""

from dataclasses import dataclass
from datetime import datetime

from django.urls import reverse

from dashboard.models import User
from refunds import services
from refunds.models import Order, Refund


@dataclass(frozen=True, slots=True)
class SimilarRow:
    """A similar refund as refunds/_similar_rows.html shows it beside a refund of an order."""

    at: datetime
    amount: int  # in the currency's minor unit
    currency: str
    person: User | None
    refund: Refund | None  # None if it was made outside this tool
    same_order: bool
    url: str  # of the refund; of its order if it was made outside this tool

    @property
    def elsewhere(self) -> bool:
        return self.refund is None


def similar_rows(similar: list[services.Similar], order: Order) -> list[SimilarRow]:
    """Return the rows beside a refund of this order."""
    return [
        SimilarRow(
            at=each.at,
            amount=each.amount,
            currency=each.currency,
            person=each.person,
            refund=each.refund,
            same_order=each.order_id == order.order_id,
            url=reverse("refunds:refund", args=[each.refund.pk])
            if each.refund
            else reverse("refunds:order", args=[each.order_id]),
        )
        for each in similar
    ]
