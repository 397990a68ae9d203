"""What waits for a second person's decision: refunds, cases under review and bulk files, without one's own."""

from datetime import datetime, timedelta

from django.conf import settings
from django.db.models import Exists, OuterRef, QuerySet

from dashboard.models import User
from refunds import clock, paging
from refunds.models import Bulk, Refund, ReviewDecision


def refunds(approver: User, *states: Refund.State) -> QuerySet[Refund]:
    """Refunds in these states that this person did not ask for, the longest waiting first."""
    return (
        Refund.objects.filter(state__in=states)
        .exclude(requested_by=approver)
        .select_related("payment__order", "requested_by")
        .order_by("requested_at", "id")
    )


def cases(approver: User) -> QuerySet[Refund]:
    """Cases under review that this person did not ask for, each with `is_judged`: whether this person has decided."""
    own = ReviewDecision.objects.filter(refund=OuterRef("pk"), round=OuterRef("reviews"), person=approver)
    return refunds(approver, Refund.State.REVIEW).annotate(is_judged=Exists(own))


def expires_at(asked_at: datetime) -> datetime:
    """Return from when a request, or a bulk file, of this moment is decided no more."""
    return asked_at + _waits()


def expired_before() -> datetime:
    """Return the moment before which a request, or a bulk file, is too old to be decided."""
    return clock.now() - _waits()


def _waits() -> timedelta:
    return timedelta(days=settings.REFUND_REQUEST_DAYS)


def bulks(approver: User) -> QuerySet[Bulk]:
    """Bulk files awaiting approval that this person did not upload, the longest waiting first."""
    waiting = Bulk.objects.filter(state=Bulk.State.AWAITING_APPROVAL).exclude(uploaded_by=approver)
    return waiting.select_related("uploaded_by").order_by("uploaded_at", "id")


def count(approver: User) -> str:
    """Return how many refunds and bulk files this person could decide, for the navigation: "", "3" or "50+"."""
    waiting = sum(
        len(rows.order_by().values_list("pk")[: paging.PAGE + 1])
        for rows in (
            refunds(approver, Refund.State.AWAITING_APPROVAL, Refund.State.REVIEW),
            bulks(approver),
        )
    )
    return f"{paging.PAGE}+" if waiting > paging.PAGE else str(waiting or "")
