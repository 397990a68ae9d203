"""Have a second person approve or reject a refund that waits for that; expire it if nobody does."""

import uuid
from collections.abc import Iterator
from contextlib import contextmanager

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.utils.translation import gettext as _

from dashboard.models import User
from refunds import audit, clock, roles, smartpay, waiting
from refunds.models import Refund
from refunds.services import observing, sending
from refunds.services.errors import NoReason, NotWaiting
from refunds.services.requesting import FIRST_TURN_HEAD_START
from refunds.services.states import State, cancel, locked, move, retried


def approve(
    refund_id: uuid.UUID, *, by: User, note: str = "", client: smartpay.Client | None = None
) -> Refund:
    """Approve another person's refund and take its first turn; return the row with its outcome so far.

    The request was for that amount of that remaining balance. If the balance changed since, the refund is cancelled
    instead, and has to be asked for again.

    Raises: PermissionDenied (also for the person's own refund), NotWaiting, smartpay.SmartpayError; then nothing was
    decided.
    """
    client = client or smartpay.client()
    payment_id = Refund.objects.values_list("payment_id", flat=True).get(pk=refund_id)
    observing.read_payment(payment_id, client=client.within(settings.SMARTPAY_VIEW_DEADLINE))
    if _approve(refund_id, by=by, note=note):
        sending.take_turn(refund_id, client=client, first=True)
    return Refund.objects.get(pk=refund_id)


@retried
def _approve(refund_id: uuid.UUID, *, by: User, note: str) -> bool:
    """Write the approval down; return False if the refund was cancelled instead, because the balance changed."""
    with _to_decide(refund_id, by=by, note=note) as refund:
        if refund.requested_at < waiting.expired_before():  # and no worker has cancelled it yet
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
    """Reject another person's refund, with a reason. Raises: PermissionDenied, NotWaiting, NoReason."""
    if not note:
        raise NoReason(_("却下する理由を入力してください。"))
    with _to_decide(refund_id, by=by, note=note) as refund:
        cancel(refund, Refund.Cancelled.REFUSED, by=by)
    return refund


def expire_requests() -> int:
    """Cancel the refunds that waited for longer than REFUND_REQUEST_DAYS for a second person; return how many."""
    old = Refund.objects.filter(state=State.AWAITING_APPROVAL, requested_at__lt=waiting.expired_before())
    ids = list(old.values_list("pk", flat=True))
    for refund_id in ids:
        with locked(refund_id) as refund:
            if refund.state == State.AWAITING_APPROVAL:  # nobody decided meanwhile
                cancel(refund, Refund.Cancelled.EXPIRED, by=None)
    return len(ids)


@contextmanager
def _to_decide(refund_id: uuid.UUID, *, by: User, note: str) -> Iterator[Refund]:
    """Lock a refund that waits for a decision, and write this person's decision into it. The first decision counts.

    Raises: PermissionDenied, NotWaiting.
    """
    with locked(refund_id) as refund:
        roles.require(by, roles.APPROVE_REFUND)
        if refund.requested_by_id == by.pk:
            raise PermissionDenied
        if refund.state != State.AWAITING_APPROVAL:
            raise NotWaiting(_("この返金はすでに決定されたか、取り下げられています。"))
        refund.decided_by, refund.decided_at, refund.decision_note = by, clock.now(), note
        yield refund
