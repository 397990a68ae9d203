"""Four eyes: another person approves or turns down what waits, or nobody does and it expires."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.utils.translation import gettext as _

from dashboard.models import User
from refunds import audit, clock, roles, smartpay
from refunds.models import Refund
from refunds.services import observing, sending
from refunds.services.errors import NoReason, NotWaiting
from refunds.services.requesting import FIRST_TURN_HEAD_START
from refunds.services.states import State, cancel, locked, move, retried


def approve(
    refund_id: uuid.UUID, *, by: User, note: str = "", client: smartpay.Client | None = None
) -> Refund:
    """Approve another person's refund and take its first turn; return the row with its outcome so far.

    What was asked for is that amount of that remaining balance: if the balance moved since, the refund is cancelled
    instead, and has to be asked for again.

    Raises: PermissionDenied (one's own, too), NotWaiting, smartpay.SmartpayError (nothing was decided then).
    """
    client = client or smartpay.client()
    payment_id = Refund.objects.values_list("payment_id", flat=True).get(pk=refund_id)
    observing.read_payment(payment_id, client=client.within(settings.SMARTPAY_VIEW_DEADLINE))
    if _approve(refund_id, by=by, note=note):
        sending.take_turn(refund_id, client=client, first=True)
    return Refund.objects.get(pk=refund_id)


@retried
def _approve(refund_id: uuid.UUID, *, by: User, note: str) -> bool:
    """Write the decision down; return whether the refund may be sent, or was cancelled since the balance moved."""
    with _to_decide(refund_id, by=by, note=note) as refund:
        if refund.requested_at < expired_before():  # and no worker has cancelled it yet
            raise NotWaiting(_("この申請は期限が切れました。必要なら、あらためて申請してください。"))
        moved = refund.payment.refundable() + refund.amount != refund.refundable_before
        if moved or refund.payment.is_overdrawn():
            cancel(refund, Refund.Cancelled.BALANCE, by=by)
            return False
        move(refund, State.QUEUED)
        refund.next_check_at = clock.now() + FIRST_TURN_HEAD_START
        refund.save()
        audit.record(by, "refund.approved", refund, amount=refund.amount)
    return True


@retried
def reject(refund_id: uuid.UUID, *, by: User, note: str) -> Refund:
    """Turn down another person's refund, with a reason. Raises: PermissionDenied, NotWaiting, NoReason."""
    if not note:
        raise NoReason(_("却下する理由を入力してください。"))
    with _to_decide(refund_id, by=by, note=note) as refund:
        cancel(refund, Refund.Cancelled.REFUSED, by=by)
    return refund


def expired_before() -> datetime:
    """What was asked for before this moment is decided no more."""
    return clock.now() - timedelta(days=settings.REFUND_REQUEST_DAYS)


def expire_requests() -> int:
    """Cancel what has waited for a second person for REFUND_REQUEST_DAYS; return how many."""
    old = Refund.objects.filter(state=State.AWAITING_APPROVAL, requested_at__lt=expired_before())
    ids = list(old.values_list("pk", flat=True))
    for refund_id in ids:
        with locked(refund_id) as refund:
            if refund.state == State.AWAITING_APPROVAL:  # nobody decided meanwhile
                cancel(refund, Refund.Cancelled.EXPIRED, by=None)
    return len(ids)


@contextmanager
def _to_decide(refund_id: uuid.UUID, *, by: User, note: str) -> Iterator[Refund]:
    """A waiting refund, locked, with this person's decision written into it; the first of several is the one."""
    with locked(refund_id) as refund:
        roles.require(by, roles.APPROVE_REFUND)
        if refund.requested_by_id == by.pk:
            raise PermissionDenied
        if refund.state != State.AWAITING_APPROVAL:
            raise NotWaiting(_("この返金はすでに決定されたか、取り下げられています。"))
        refund.decided_by, refund.decided_at, refund.decision_note = by, clock.now(), note
        yield refund
