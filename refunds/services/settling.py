"""Settling: what Smartpay shows of a refund, whoever looked, and what it means when it shows nothing."""

import uuid
from datetime import datetime, timedelta
from typing import cast

import structlog
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from dashboard.models import User
from refunds import audit, clock, mirror, scanning, smartpay
from refunds.database_values import storable
from refunds.models import Control, Evidence, Payment, Refund, SmartpayRefund
from refunds.order_keys import EPOCH
from refunds.services import control
from refunds.services.states import (
    ABSENT_AFTER_LAST_SENDING,
    ABSENT_TWICE_WITHIN,
    State,
    absence_counts_from,
    alarm,
    cancel,
    locked,
    locked_payment,
    pause,
    retried,
    settle,
    to_review,
    wake,
)

log = structlog.get_logger(__name__)

COULD_BE_OURS = timedelta(minutes=10)  # how far Smartpay's clock may be behind ours
UNREADABLE_AFTER = timedelta(hours=12)  # reads that fail for so long are a case for people
NOTED_EVERY = timedelta(minutes=10)  # absence of a case that somebody looks at

# Note [Complete reads]
# Whether a refund is absent can be told in two ways: by a payment that lists its refunds, or by a scan of all of
# GET /refunds that began after the last sending. The sources disagree whether the live API offers the first, so
# both are built; refunds of payments without a list wait for one scan that they share.


@retried
def observe_refund(
    seen: smartpay.Refund, *, read_at: datetime, kind: str = Evidence.Kind.READ
) -> SmartpayRefund:
    """Book a refund that Smartpay showed: into the mirror, and into the ledger where it is ours.

    The one door for what is read: a payment's refunds, a webhook's, a scan's. Only the answer to a sending of our own
    goes to the ledger first, where it is known to be ours.
    """
    if lost := mirror.lost_refund(seen):
        mirror.record_refund(seen, read_at=read_at)  # a guard wants to see it
        _recover(lost, seen)
    # What says nothing new is not booked again: a case would have a further round each time, and nobody's word would be
    # the last. What does is recorded and booked at once: recorded alone, it would be news no more to whoever books it.
    if mirror.is_news(seen) and (refund_id := mirror.ledger_id_of(seen)):
        with locked(refund_id) as refund:
            row = mirror.record_refund(seen, read_at=read_at)
            book_evidence(refund, seen, kind=kind, now=clock.now())
            mirror.count_external([refund.payment_id])
    else:
        row = mirror.record_refund(seen, read_at=read_at)
    if row.ours_id is None:
        _cancel_what_no_longer_fits(seen.payment)
    return row


def _recover(refund_id: uuid.UUID, seen: smartpay.Refund) -> None:
    """Write a refund anew that the ledger has lost, as a database restored to an older state has: Smartpay shows it.

    Who asked for it is lost too. That it was sent says that it was asked for; so nothing is ever sent for it again.
    """
    person, _ = User.objects.get_or_create(
        username="recovered", defaults={"name": "データベースの復元", "is_active": False}
    )
    reason, description = storable(seen.reason)[:32], storable(seen.description)
    with transaction.atomic(durable=True):
        payment = locked_payment(seen.payment)
        refund = Refund(
            id=refund_id,
            payment=payment,
            amount=seen.amount,
            currency=seen.currency,
            reason=reason,
            description=description[:80],
            refundable_before=payment.refundable(),
            external_before=payment.external,
            body=smartpay.refund_body(
                payment_id=seen.payment,
                amount=seen.amount,
                currency=seen.currency,
                reason=reason,
                description=description,
                key=str(refund_id),
            ),
            state=State.SUCCEEDED,
            smartpay_id=seen.id,
            requested_by=person,
            requested_at=seen.created_at,
            settled_at=seen.created_at,
            recovered=True,
        )
        refund.save(force_insert=True)
        audit.record(None, "refund.recovered", refund, smartpay_id=seen.id, amount=refund.amount)
        _cancel_what_waits(payment)
        alarm(
            "refund.recovered", refund, smartpay_id=seen.id
        )  # before the commit: who dies here raises it again


def read_order(order_id: str, *, client: smartpay.Client) -> bool:
    """Read an order at Smartpay, and the refunds of its payments that we did not know; return whether they list them.

    Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    listed, refunds = mirror.refresh_order(order_id, client)
    for seen in refunds:
        observe_refund(seen, read_at=read_at)
    return listed


def read_payment(payment_id: str, *, client: smartpay.Client) -> bool:
    """Read a payment at Smartpay, and the refunds of it that we did not know; return whether it lists them.

    Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    complete, refunds = mirror.refresh_payment(payment_id, client)
    for seen in refunds:
        observe_refund(seen, read_at=read_at)
    return complete


def book_evidence(refund: Refund, seen: smartpay.Refund, *, kind: str, now: datetime) -> None:
    """Settle a locked refund by what Smartpay shows of it: evidence of success wins over every state."""
    before = refund.state
    known = refund.smartpay_id == seen.id
    failed = seen.status == SmartpayRefund.Status.FAILED
    never_sent = refund.state in Refund.NEVER_SENT
    denied = refund.state in (State.REJECTED, State.NOT_EXECUTED)
    if is_strange := seen.status not in ("", *SmartpayRefund.Status.values):
        alarm("refund.status_unknown", refund, smartpay_id=seen.id)
        if not never_sent and not denied:
            return  # neither done nor failed: it is read again
    if known and refund.state == (State.REJECTED if failed else State.SUCCEEDED):
        return
    matches = (seen.payment, seen.amount, seen.currency) == (
        refund.payment_id,
        refund.amount,
        refund.currency,
    )
    detail = Evidence.Detail.FAILED if failed else "" if matches else Evidence.Detail.DIFFERS
    Evidence.objects.create(refund=refund, kind=kind, at=now, found=True, smartpay_id=seen.id, detail=detail)
    if never_sent and seen.payment != refund.payment_id:
        alarm("refund.named_elsewhere", refund, smartpay_id=seen.id)
    else:
        if never_sent:
            # Sent by a life of this row that the database has forgotten: it never may be sent again.
            to_review(refund, f"{seen.id} was sent and forgotten")
            refund.save()  # a step of its own: no guard lets a waiting row become a settled one at once
        if not is_strange:
            _judge(refund, seen, now, matches=matches)
        elif denied:
            to_review(refund, f"{seen.id} exists, with a status of its own")
        refund.save()
    if denied and refund.state == State.REVIEW:
        _cancel_what_waits(refund.payment)
    action = f"refund.{refund.state}" if refund.state != before else "refund.observed"
    audit.record(None, action, refund, smartpay_id=seen.id, evidence=kind)


def _judge(refund: Refund, seen: smartpay.Refund, now: datetime, *, matches: bool) -> None:
    """Give a refund the state that what Smartpay shows of it asks for; raise the alarm where it should show nothing."""
    known = refund.smartpay_id == seen.id
    failed = seen.status == SmartpayRefund.Status.FAILED
    if refund.smartpay_id and not known:
        alarm("refund.two_executions", refund, smartpay_id=seen.id)
        if refund.state in (State.REJECTED, State.NOT_EXECUTED):
            to_review(refund, f"second refund {seen.id}")
    elif refund.state in Refund.OPEN:
        if not matches or Refund.objects.filter(smartpay_id=seen.id).exclude(pk=refund.pk).exists():
            to_review(refund, f"{seen.id} differs")
        elif failed and refund.state in Refund.IN_FLIGHT:
            refund.smartpay_id = seen.id
            refund.error_code = "status.failed"
            settle(refund, State.REJECTED, now)
        elif not failed:
            others = refund.seen.exclude(pk=seen.id).exclude(status=SmartpayRefund.Status.FAILED)
            if refund.state == State.REVIEW and others.exists():  # what made it a case
                alarm("refund.two_executions", refund, smartpay_id=seen.id)
            refund.smartpay_id = seen.id
            refund.error_code = refund.error_message = ""
            settle(refund, State.SUCCEEDED, now)
    elif failed:
        if known:
            alarm("refund.taken_back", refund, smartpay_id=seen.id)
    elif refund.state in (State.REJECTED, State.NOT_EXECUTED):
        to_review(refund, f"{seen.id} exists")
    else:
        alarm("refund.executed_unasked", refund, smartpay_id=seen.id)


def look_for(refund_id: uuid.UUID, *, owner: str, client: smartpay.Client) -> bool:
    """Look for the refund at Smartpay; return whether it may be sent (again), as far as a read can tell.

    A refund that was never sent needs no complete read; one that was is sent again only after a complete read
    without it, and is proved absent by two of them. See Note [Proof of absence].
    """
    refund = Refund.objects.get(pk=refund_id)
    read_at = clock.now()
    try:
        complete = read_payment(refund.payment_id, client=client)
        # The mirror has it and the ledger does not: who recorded it died in between, or its status is a new word.
        for smartpay_id in refund.seen.values_list("pk", flat=True):
            seen_at = clock.now()
            observe_refund(client.get_refund(smartpay_id), read_at=seen_at)
    except smartpay.SmartpayError as error:
        _book_silence(refund_id, error, owner=owner)
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
            _wait_or_ask(refund, now)  # Smartpay shows it, in a state that says neither yes nor no
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
            _wait_or_ask(refund, now)
        elif complete_at < absence_counts_from(refund):
            if refund.absent_since is None:
                return True
            pause(refund, now)
        elif refund.absent_since:
            _conclude_absence(refund, now)
        else:
            refund.absent_since = complete_at
            pause(refund, now, at_least=ABSENT_TWICE_WITHIN.total_seconds())
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
    ).exclude(status=SmartpayRefund.Status.FAILED)
    if could_be_it.exists():
        to_review(refund, "a refund without our reference could be it")
    else:
        settle(refund, State.NOT_EXECUTED, now)
    audit.record(None, f"refund.{refund.state}", refund, absent_since=str(refund.absent_since))


@retried
def _book_silence(refund_id: uuid.UUID, error: smartpay.SmartpayError, *, owner: str) -> None:
    """Write down that a read failed."""
    with locked(refund_id) as refund:
        log.warning(
            "refund.unread", refund=str(refund_id), outcome=error.outcome, http_status=error.http_status
        )
        control.heed(error, refund)
        if refund.lease_owner == owner:
            _wait_or_ask(refund, clock.now(), at_least=error.retry_after)
            refund.save()


def _wait_or_ask(refund: Refund, now: datetime, *, at_least: float | None = None) -> None:
    """Look again later; ask people where the refund was sent, and could not be looked for, for twelve hours."""
    since = now - UNREADABLE_AFTER
    read = refund.evidence.filter(at__gt=since).exclude(detail=Evidence.Detail.NO_LIST)
    if refund.state == State.UNKNOWN and cast(datetime, refund.first_sent_at) < since and not read.exists():
        to_review(refund, "unreadable for twelve hours")
        audit.record(None, "refund.review", refund, why="unreadable")
    else:
        pause(refund, now, at_least=at_least)


def _cancel_what_waits(payment: Payment) -> None:
    """Cancel what waits beside a refund that was lost, or called not made: it may be the same, asked for once more."""
    for waiting in payment.refunds.filter(state__in=Refund.NEVER_SENT).select_for_update():
        waiting.payment = payment
        cancel(waiting, Refund.Cancelled.BALANCE, by=None)
        alarm("refund.no_longer_fits", waiting)


def _cancel_what_no_longer_fits(payment_id: str) -> None:
    """After a refund made elsewhere: cancel ours that were never sent and no longer fit, the newest first."""
    with transaction.atomic():
        payment = Payment.objects.select_for_update().filter(pk=payment_id).first()
        if payment is None:
            return
        waiting = payment.refunds.filter(state__in=Refund.NEVER_SENT).order_by("-requested_at")
        for refund in waiting.select_for_update():
            payment.refresh_from_db()
            if not payment.is_overdrawn():
                break
            cancel(refund, Refund.Cancelled.BALANCE, by=None)
            alarm("refund.no_longer_fits", refund)


# --- Reading everything -------------------------------------------------------------------------------------


def scan_if_needed(*, client: smartpay.Client) -> None:
    """Read all of Smartpay's refunds where one of ours, or the restore fence, waits for that.

    Raises: smartpay.SmartpayError.
    """
    if not needs_full_scan():
        return
    cases = _cases_waiting_for_scan()
    scanning.scan_refunds(client, observe=observe_refund)
    for refund in cases:
        book_absence_of_case(refund.pk, kind=Evidence.Kind.LIST, complete_at=scanning.scanned_at())
    scanned_at = scanning.scanned_at() or EPOCH
    # Whose absence this proves need not wait. Whoever may be sent again does: its pauses are for Smartpay's sake.
    for refund in _waiting_for_scan():
        if absence_counts_from(refund) <= scanned_at:
            wake(refund.pk)


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
