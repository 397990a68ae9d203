"""Look for a refund at Smartpay, and decide what it means that Smartpay does not show it."""

import uuid
from datetime import datetime, timedelta
from typing import cast

import structlog
from django.db.models import Exists, OuterRef, Q, QuerySet

from refunds import audit, clock, scanning, smartpay
from refunds.models import Control, Evidence, Refund, SmartpayRefund
from refunds.order_keys import EPOCH
from refunds.services import control, observing
from refunds.services.states import (
    ABSENT_AFTER_LAST_SENDING,
    ABSENT_TWICE_WITHIN,
    State,
    absence_counts_from,
    back_off,
    locked,
    make_due,
    retried,
    settle,
    to_review,
)

log = structlog.get_logger(__name__)

COULD_BE_OURS = timedelta(minutes=10)  # how far Smartpay's clock may be behind ours
UNREADABLE_AFTER = timedelta(hours=12)  # after so long without a successful read, people decide
NOTED_EVERY = timedelta(minutes=10)  # how often the same absence of a case is written down again

# Note [Complete reads]
# Two kinds of reads can show that a refund is absent: a payment that lists its refunds, and a scan of all pages of
# GET /refunds that began after the last attempt. The sources disagree on whether the live API lists refunds on a
# payment, so both are built. The refunds of payments without a list wait for one scan that they share.


def reconcile_refund(refund_id: uuid.UUID, *, owner: str, client: smartpay.Client) -> bool:
    """Read the refund's payment at Smartpay and book what that shows; return whether the refund may be sent (again).

    True says only that no read speaks against it. A refund that was never sent needs no complete read. One that was
    sent is sent again only after a complete read without it, and two of these prove it absent: see Note [Proof of
    absence] in states.py. A read that fails is booked, not raised.
    """
    refund = Refund.objects.get(pk=refund_id)
    read_at = clock.now()
    try:
        complete = observing.read_payment(refund.payment_id, client=client)
        # The mirror may have a refund that the ledger has not settled by: its status is one that we do not know, or
        # the process that recorded it died before it told the ledger.
        for smartpay_id in refund.seen.values_list("pk", flat=True):
            seen_at = clock.now()
            observing.observe_refund(client.get_refund(smartpay_id), read_at=seen_at)
    except smartpay.SmartpayError as error:
        _book_failed_read(refund_id, error, owner=owner)
        return False
    if complete:
        return _book_absence(refund_id, kind=Evidence.Kind.READ, complete_at=read_at, owner=owner)
    return _book_absence(refund_id, kind=Evidence.Kind.LIST, complete_at=scanning.scanned_at(), owner=owner)


@retried
def _book_absence(refund_id: uuid.UUID, *, kind: str, complete_at: datetime | None, owner: str) -> bool:
    """Write down that a read did not show the refund; return whether it may be sent (again).

    `complete_at`: when the complete read began that would have shown the refund; None if there was none.
    """
    with locked(refund_id) as refund:
        now = clock.now()
        if refund.lease_owner != owner:
            return False  # the read found and settled it, or another worker took over
        if refund.state == State.QUEUED:
            return True  # never sent: its absence proves nothing
        if refund.last_sent_at is None or refund.seen.exists():
            _back_off_or_review(refund, now)  # Smartpay shows it, neither succeeded nor failed
            refund.save()
            return False
        complete = complete_at is not None and complete_at > refund.last_sent_at
        Evidence.objects.create(
            refund=refund,
            kind=kind if complete else Evidence.Kind.READ,
            at=now,
            found=False,
            detail="" if complete else Evidence.Detail.NO_LIST,
        )
        if complete_at is None or not complete:
            _back_off_or_review(refund, now)
        elif complete_at < absence_counts_from(refund):
            if refund.absent_since is None:
                return True
            back_off(refund, now)
        elif refund.absent_since:
            _conclude_absence(refund, now)
        else:
            refund.absent_since = complete_at
            back_off(refund, now, at_least=ABSENT_TWICE_WITHIN.total_seconds())
        refund.save()
    return False


@retried
def book_absence_of_case(refund_id: uuid.UUID, *, kind: str, complete_at: datetime | None) -> None:
    """Write down that a read did not show a refund under review; the decision stays with people.

    `complete_at`: when the complete read began that would have shown the refund; None if there was none. The page of a
    case reads Smartpay each time it is opened, so a read that proves nothing is not written down, nor is one that
    repeats what was written down less than NOTED_EVERY ago.
    """
    with locked(refund_id) as refund:
        if refund.state != State.REVIEW or refund.seen.exists():
            return
        absences, now = refund.evidence.filter(found=False), clock.now()
        if complete_at is not None and complete_at >= absence_counts_from(refund):
            if refund.absent_since is None:
                refund.absent_since = complete_at
                refund.save()
            elif absences.filter(detail="", at__gt=now - NOTED_EVERY).exists():
                return
            Evidence.objects.create(refund=refund, kind=kind, at=now, found=False)
        elif kind == Evidence.Kind.LIST and not absences.filter(detail=Evidence.Detail.NO_LIST).exists():
            Evidence.objects.create(
                refund=refund, kind=Evidence.Kind.READ, at=now, found=False, detail=Evidence.Detail.NO_LIST
            )


def _conclude_absence(refund: Refund, now: datetime) -> None:
    """Settle a refund that two complete reads did not show: not executed, or under review.

    It goes to review if Smartpay shows a refund without our reference that could be this one.
    """
    first_sent_at = cast(datetime, refund.first_sent_at)
    could_be_it = SmartpayRefund.objects.filter(
        payment=refund.payment_id,
        ours=None,
        amount=refund.amount,
        created_at__gte=first_sent_at - COULD_BE_OURS,
    ).counting()
    if could_be_it.exists():
        to_review(refund, "a refund without our reference could be it")
    else:
        settle(refund, State.NOT_EXECUTED, now)
    audit.record(None, f"refund.{refund.state}", refund, absent_since=str(refund.absent_since))


@retried
def _book_failed_read(refund_id: uuid.UUID, error: smartpay.SmartpayError, *, owner: str) -> None:
    """Log a read that failed, react to its error, and put the refund's next turn off."""
    with locked(refund_id) as refund:
        log.warning(
            "refund.unread", refund=str(refund_id), outcome=error.outcome, http_status=error.http_status
        )
        control.react_to_error(error, refund)
        if refund.lease_owner == owner:
            _back_off_or_review(refund, clock.now(), at_least=error.retry_after)
            refund.save()


def _back_off_or_review(refund: Refund, now: datetime, *, at_least: float | None = None) -> None:
    """Back off; or move the refund to review if it was sent and could not be read for UNREADABLE_AFTER."""
    since = now - UNREADABLE_AFTER
    read = refund.evidence.filter(at__gt=since).exclude(detail=Evidence.Detail.NO_LIST)
    if refund.state == State.UNKNOWN and cast(datetime, refund.first_sent_at) < since and not read.exists():
        to_review(refund, "unreadable for twelve hours")
        audit.record(None, "refund.review", refund, why="unreadable")
    else:
        back_off(refund, now, at_least=at_least)


# --- Reading everything -------------------------------------------------------------------------------------


def scan_if_needed(*, client: smartpay.Client) -> None:
    """Read all of Smartpay's refunds if one of ours, a case or the restore fence waits for a complete scan.

    Raises: smartpay.SmartpayError.
    """
    if not needs_full_scan():
        return
    cases = _cases_waiting_for_scan()
    scanning.scan_refunds(client, observe=observing.observe_refund)
    for refund in cases:
        book_absence_of_case(refund.pk, kind=Evidence.Kind.LIST, complete_at=scanning.scanned_at())
    scanned_at = scanning.scanned_at() or EPOCH
    # Make the refunds due whose absence this scan proves. Those that may still be re-sent keep their back-off, which
    # spares Smartpay.
    for refund in _waiting_for_scan():
        if absence_counts_from(refund) <= scanned_at:
            make_due(refund.pk)


def needs_full_scan() -> bool:
    """Return whether something waits for a scan of all refunds. See Note [Complete reads]."""
    now, scanned_at = clock.now(), scanning.scanned_at()
    restored_at = Control.objects.values_list("restored_at", flat=True).first()
    if restored_at and (scanned_at is None or scanned_at < restored_at):
        return True  # finds the refunds that the restore lost, and writes them again
    if restored_at and scanned_at and scanned_at < restored_at + ABSENT_AFTER_LAST_SENDING <= now:
        return True  # finds those that the first scan could not show yet
    if _cases_waiting_for_scan():
        return True
    waiting = list(_waiting_for_scan())
    if scanned_at is None or now >= scanned_at + ABSENT_TWICE_WITHIN:
        return bool(waiting)
    return any(
        cast(datetime, refund.last_sent_at) >= scanned_at or scanned_at < absence_counts_from(refund) <= now
        for refund in waiting
    )


def _cases_waiting_for_scan() -> list[Refund]:
    """Return the cases that people opened, whose payments list no refunds, and that wait for a scan.

    A case waits for one scan since its last attempt, and for one more whenever a scan can next prove absence. After the
    second proof it asks for no further scan, however long it stays open.
    """
    now, scanned_at = clock.now(), scanning.scanned_at()
    looked_at = Evidence.objects.filter(refund=OuterRef("pk"), detail=Evidence.Detail.NO_LIST)
    cases = Refund.objects.filter(Exists(looked_at), state=State.REVIEW)
    return [
        refund
        for refund in cases
        if scanned_at is None
        or scanned_at <= (refund.last_sent_at or refund.requested_at)
        or scanned_at < absence_counts_from(refund) <= now
    ]


def _waiting_for_scan() -> QuerySet[Refund]:
    """Return the unknown refunds of payments that list no refunds."""
    without_list = Evidence.objects.filter(refund=OuterRef("pk"), found=False).filter(
        Q(detail=Evidence.Detail.NO_LIST) | Q(kind=Evidence.Kind.LIST)
    )
    return Refund.objects.filter(Exists(without_list), state=State.UNKNOWN)
