"""Absence: what it means when Smartpay shows nothing of a refund, and the reads that prove it."""

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
UNREADABLE_AFTER = timedelta(hours=12)  # reads that fail for so long are a case for people
NOTED_EVERY = timedelta(minutes=10)  # absence of a case that somebody looks at

# Note [Complete reads]
# Whether a refund is absent can be told in two ways: by a payment that lists its refunds, or by a scan of all of
# GET /refunds that began after the last sending. The sources disagree whether the live API offers the first, so
# both are built; refunds of payments without a list wait for one scan that they share.


def reconcile_refund(refund_id: uuid.UUID, *, owner: str, client: smartpay.Client) -> bool:
    """Look for the refund at Smartpay; return whether it may be sent (again), as far as a read can tell.

    A refund that was never sent needs no complete read; one that was is sent again only after a complete read
    without it, and is proved absent by two of them. See Note [Proof of absence].
    """
    refund = Refund.objects.get(pk=refund_id)
    read_at = clock.now()
    try:
        complete = observing.read_payment(refund.payment_id, client=client)
        # The mirror has it and the ledger does not: who recorded it died in between, or its status is a new word.
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

    `complete_at`: when the complete read began that would have shown it; None where there was none.
    """
    with locked(refund_id) as refund:
        now = clock.now()
        if refund.lease_owner != owner:
            return False  # found, and settled; or taken over by another
        if refund.state == State.QUEUED:
            return True  # never sent: there is nothing to be absent
        if refund.last_sent_at is None or refund.seen.exists():
            _back_off_or_review(refund, now)  # Smartpay shows it, in a state that says neither yes nor no
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
    """Write down that a read did not show a refund that people decide about; it stays theirs to conclude.

    `complete_at`: when the complete read began that would have shown it; None where there was none. Pages are read
    again and again: what proves nothing, or was written down a moment ago, is not written down.
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
    """Two complete reads did not show it: it was not executed, unless a refund that nobody claims could be it."""
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
    """Write down that a read failed."""
    with locked(refund_id) as refund:
        log.warning(
            "refund.unread", refund=str(refund_id), outcome=error.outcome, http_status=error.http_status
        )
        control.react_to_error(error, refund)
        if refund.lease_owner == owner:
            _back_off_or_review(refund, clock.now(), at_least=error.retry_after)
            refund.save()


def _back_off_or_review(refund: Refund, now: datetime, *, at_least: float | None = None) -> None:
    """Look again later; ask people where the refund was sent, and could not be looked for, for twelve hours."""
    since = now - UNREADABLE_AFTER
    read = refund.evidence.filter(at__gt=since).exclude(detail=Evidence.Detail.NO_LIST)
    if refund.state == State.UNKNOWN and cast(datetime, refund.first_sent_at) < since and not read.exists():
        to_review(refund, "unreadable for twelve hours")
        audit.record(None, "refund.review", refund, why="unreadable")
    else:
        back_off(refund, now, at_least=at_least)


# --- Reading everything -------------------------------------------------------------------------------------


def scan_if_needed(*, client: smartpay.Client) -> None:
    """Read all of Smartpay's refunds where one of ours, or the restore fence, waits for that.

    Raises: smartpay.SmartpayError.
    """
    if not needs_full_scan():
        return
    cases = _cases_waiting_for_scan()
    scanning.scan_refunds(client, observe=observing.observe_refund)
    for refund in cases:
        book_absence_of_case(refund.pk, kind=Evidence.Kind.LIST, complete_at=scanning.scanned_at())
    scanned_at = scanning.scanned_at() or EPOCH
    # Whose absence this proves need not wait. Whoever may be sent again does: its pauses are for Smartpay's sake.
    for refund in _waiting_for_scan():
        if absence_counts_from(refund) <= scanned_at:
            make_due(refund.pk)


def needs_full_scan() -> bool:
    """Whether something waits for a complete read that no payment offers. See Note [Complete reads]."""
    now, scanned_at = clock.now(), scanning.scanned_at()
    restored_at = Control.objects.values_list("restored_at", flat=True).first()
    if restored_at and (scanned_at is None or scanned_at < restored_at):
        return True  # what was lost is found, and written anew
    if restored_at and scanned_at and scanned_at < restored_at + ABSENT_AFTER_LAST_SENDING <= now:
        return True  # and what could not be seen yet
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
    """Cases that people looked at and whose payment lists no refunds: one scan shows what there is, two more prove
    absence as soon as they can. However long a case then stays open, it asks for no further one.
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
    without_list = Evidence.objects.filter(refund=OuterRef("pk"), found=False).filter(
        Q(detail=Evidence.Detail.NO_LIST) | Q(kind=Evidence.Kind.LIST)
    )
    return Refund.objects.filter(Exists(without_list), state=State.UNKNOWN)
