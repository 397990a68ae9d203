"""Send refunds: one process takes a turn, commits its intent before the first byte leaves, and books the answer.

Nothing talks to Smartpay inside a transaction, and nothing changes a state outside one.
"""

import uuid
from collections.abc import Callable
from datetime import datetime, timedelta

import structlog
from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet

from refunds import audit, clock, mirror, roles, smartpay
from refunds.models import Attempt, Bulk, BulkLine, Evidence, Refund
from refunds.services import control
from refunds.services.absence import reconcile_refund
from refunds.services.observing import book_evidence
from refunds.services.states import (
    NO_LEASE,
    SEND_WINDOW,
    State,
    alarm,
    back_off,
    cancel,
    could_be_sent_until,
    lease,
    locked,
    move,
    retried,
    settle,
    to_review,
)

log = structlog.get_logger(__name__)

AT_WORK_SECONDS = 30.0  # the shortest wait after Smartpay said that it is at work on the key, or busy
FINISHED = (  # the columns of an attempt that its answer fills
    "finished_at",
    "outcome",
    "http_status",
    "replayed",
    "response_sha256",
    "error_code",
    "error_message",
)


def take_turn(refund_id: uuid.UUID, *, client: smartpay.Client, first: bool = False) -> None:
    """Do the next step for a refund: read Smartpay, then send if that is allowed and still needed.

    Several processes may call this for the same refund at once: one takes the turn, the others return.

    `first`: this is the web request that approved the refund. It has just read the payment, so it takes no lease and
    does not read again.
    """
    owner = NO_LEASE if first else str(uuid.uuid4())
    if not first and not (
        take_lease(refund_id, owner=owner) and reconcile_refund(refund_id, owner=owner, client=client)
    ):
        return
    attempt = begin_attempt(refund_id, owner=owner)
    if attempt is not None:
        book(attempt, send(attempt, client=client))


def due() -> QuerySet[Refund]:
    """Return the refunds that are due, the longest waiting first. The ledger is its own queue."""
    now = clock.now()
    open_one = Refund.objects.open().filter(payment=OuterRef("payment"))
    return (
        Refund.objects.filter(next_check_at__lte=now)
        .filter(Q(lease_until=None) | Q(lease_until__lte=now))
        .filter(
            Q(state__in=Refund.IN_FLIGHT)
            | (Q(state=State.QUEUED) & ~Exists(open_one.exclude(pk=OuterRef("pk"))))
        )
        .order_by("next_check_at", "requested_at")
    )


def settle_due(*, client: smartpay.Client, stop: Callable[[], bool] = lambda: False) -> int:
    """Take a turn for up to a hundred refunds that are due; return how many there were. Any number of workers call it.

    `stop` is asked before each turn; True ends the call.
    """
    ids = list(due().values_list("pk", flat=True)[:100])
    for refund_id in ids:
        if stop():
            return len(ids)
        try:
            take_turn(refund_id, client=client)
        except Exception:
            # A defect, or the database is gone. The lease runs out and the turn comes again; go on with the others.
            log.exception("refund.turn_failed", alarm=True, refund=str(refund_id))
    return len(ids)


@retried
def take_lease(refund_id: uuid.UUID, *, owner: str) -> bool:
    """Lease the refund to this process; return False if it is not due, or not a worker's to handle.

    If the refund is still sending after its lease ran out, its sender died, and the outcome is unknown.
    """
    with locked(refund_id) as refund:
        now = clock.now()
        if refund.is_settled or refund.state in (State.AWAITING_APPROVAL, State.REVIEW):
            return False
        if refund.next_check_at and refund.next_check_at > now:
            return False  # leased to another, or backing off
        if refund.state == State.SENDING:
            move(refund, State.UNKNOWN)
            audit.record(None, "refund.unknown", refund, why="the sender died", attempt=refund.attempt_no)
        refund.turns += 1
        lease(refund, owner, now)
        refund.save()
    return True


@retried
def begin_attempt(refund_id: uuid.UUID, *, owner: str) -> Attempt | None:
    """Commit the intent to send before the first byte leaves; return None if nothing may be sent now.

    `owner` must equal the row's lease owner. NO_LEASE is passed by the web request that asked for or approved the
    refund: it may send only if no worker holds the lease.
    """
    with locked(refund_id) as refund:
        return begin(refund, owner=owner, now=clock.now())


def begin(refund: Refund, *, owner: str, now: datetime) -> Attempt | None:
    """Do begin_attempt() inside the caller's transaction, which holds the refund's lock.

    Nothing may be sent before that transaction is committed.
    """
    if refund.lease_owner != owner or refund.state not in (State.QUEUED, State.UNKNOWN):
        return None
    if owner == NO_LEASE and refund.state != State.QUEUED:
        return None  # it was sent before: only a turn that reads first may send it again
    if reason := _why_not_sent(refund, now):
        log.info("refund.not_sent_now", refund=str(refund.pk), why=reason)
        back_off(refund, now)
        refund.save()
        return None
    if refund.state == State.QUEUED and not _still_wanted(refund):
        return None
    move(refund, State.SENDING)
    refund.attempt_no += 1
    refund.first_sent_at = refund.first_sent_at or now
    refund.last_sent_at = now
    lease(refund, owner, now)
    refund.save()
    attempt = Attempt.objects.create(refund=refund, number=refund.attempt_no, started_at=now)
    audit.record(None, "refund.sending", refund, attempt=attempt.number)
    return attempt


def _why_not_sent(refund: Refund, now: datetime) -> str:
    """Return why this refund may not be sent now, for the log; "" if it may."""
    if reason := control.why_nothing_is_sent(now):
        return reason
    if refund.last_sent_at and now < refund.last_sent_at:
        return "the clock went back"
    if refund.first_sent_at and now >= refund.first_sent_at + SEND_WINDOW:
        return "the send window is over"
    others = refund.payment.refunds.open().exclude(pk=refund.pk)
    if others.exists():
        return "another refund of the payment is open"
    if refund.first_sent_at and not _entitled(refund):
        return "a person behind it may no longer refund"
    # If the request was lost, somebody may have refunded by hand since. The worker keeps reading until this refund is
    # found or its absence is proved.
    if refund.first_sent_at and refund.is_overtaken():
        return "a refund made elsewhere could be it"
    return ""


def _still_wanted(refund: Refund) -> bool:
    """Return whether a refund that was never sent may still be sent; if not, cancel it with its cause.

    A refund made elsewhere after the person looked may be the one they wanted; a person who still wants this one asks
    again. If the database was restored since, that refund may even be this one, sent and forgotten: then people decide.
    """
    if refund.is_overtaken() and could_be_sent_until(refund) > refund.requested_at:
        to_review(refund, "a refund made elsewhere could be it, sent and forgotten")
        refund.save()
        audit.record(None, "refund.review", refund, why="restored")
    elif refund.payment.is_overdrawn() or refund.is_overtaken():
        cancel(refund, Refund.Cancelled.BALANCE, by=None)
        alarm("refund.no_longer_fits", refund)
    elif _file_was_given_up(refund):
        cancel(refund, Refund.Cancelled.WITHDRAWN, by=None)
    elif not _entitled(refund):
        cancel(refund, Refund.Cancelled.ENTITLEMENT, by=None)
    return refund.state == State.QUEUED


def _file_was_given_up(refund: Refund) -> bool:
    """Return whether the refund is a line of a bulk file that was cancelled or rejected since.

    The cancellation withdraws its refunds one by one, and may have died half-way. If the same contents were uploaded
    again, the new file's line does not count: it has not asked for this refund.
    """
    asked = BulkLine.objects.filter(request_id=refund.pk, state=BulkLine.State.ASKED)
    return asked.filter(bulk__state__in=Bulk.GIVEN_UP).exists()


def _entitled(refund: Refund) -> bool:
    """Return whether the requester and the approver, if any, are still active and still have their permissions."""
    asked = refund.requested_by
    decided = refund.decided_by
    return roles.may(asked, roles.REQUEST_REFUND) and (
        decided is None or roles.may(decided, roles.APPROVE_REFUND)
    )


def send(attempt: Attempt, *, client: smartpay.Client) -> smartpay.Answer | smartpay.SmartpayError:
    """Post the frozen request; return the answer or the error, after logging it.

    Never inside a transaction: the client refuses that, and the transaction that began the attempt is durable.
    """
    refund = attempt.refund
    too_late = attempt.started_at + timedelta(seconds=settings.REFUND_LEASE_SECONDS / 2)
    try:
        control.remember(attempt.pk)
        # The last check before the request: nothing that could take long may come between them.
        if clock.now() > too_late:
            # This process slept. A worker may have taken over long ago, and Smartpay may have forgotten the key.
            raise smartpay.NotSent("The lease was nearly over.")
        answer: smartpay.Answer | smartpay.SmartpayError = client.create_refund(
            body=refund.body,
            key=str(refund.pk),
            payment_id=refund.payment_id,
            amount=refund.amount,
            currency=refund.currency,
        )
    except smartpay.SmartpayError as error:
        answer = error
    # If the database is gone when the answer is booked, this log entry is the only record of it.
    log.info(
        "refund.answered",
        refund=str(refund.pk),
        attempt=attempt.number,
        outcome=answer.outcome,
        http_status=answer.http_status,
        smartpay_id=answer.refund.id if isinstance(answer, smartpay.Answer) else "",
    )
    return answer


def book(attempt: Attempt, answer: smartpay.Answer | smartpay.SmartpayError) -> Refund:
    """Book what an answer means, and return the refund as it then is. See Note [What an answer means] in smartpay.py.

    The attempt is always written. An error changes the refund only while this attempt is still its current one; an
    executed or failed refund that Smartpay answered always counts as evidence.
    """
    if isinstance(answer, smartpay.Answer):
        return _book_refund(attempt, answer)
    return _book_error(attempt, answer)


@retried
def _book_refund(attempt: Attempt, answer: smartpay.Answer) -> Refund:
    with locked(attempt.refund_id, payment_id=attempt.refund.payment_id) as refund:
        now = _finish(attempt, answer)
        book_evidence(refund, answer.refund, kind=Evidence.Kind.ANSWER, now=now)
        try:
            # After the ledger: where Smartpay repeats no reference, the ledger's smartpay_id shows that it is ours.
            is_it = refund.smartpay_id == answer.refund.id
            mirror.record_answer(answer.refund, ours_id=refund.pk if is_it else None, read_at=now)
        except Exception:
            if transaction.get_rollback():
                raise  # the outcome can't be committed any more either
            # The next read records it. The ledger's outcome must not be lost because the mirror failed.
            log.exception("refund.not_mirrored", alarm=True, refund=str(refund.pk))
    return refund


@retried
def _book_error(attempt: Attempt, answer: smartpay.SmartpayError) -> Refund:
    with locked(attempt.refund_id, payment_id=attempt.refund.payment_id) as refund:
        now = _finish(attempt, answer)
        if refund.state != State.SENDING or refund.attempt_no != attempt.number:
            # The refund was settled, or taken over, meanwhile: this answer only raises its alarms.
            if isinstance(answer, smartpay.Contradiction):
                alarm("refund.contradicted", refund, attempt=attempt.number)
            control.react_to_error(answer, refund)
            return refund
        refund.error_code, refund.error_message = answer.error_code, answer.message
        if isinstance(answer, smartpay.Refused) and attempt.number == 1:
            settle(refund, State.REJECTED, now)
        elif isinstance(answer, smartpay.Contradiction):
            to_review(refund, str(answer))
        else:
            move(refund, State.UNKNOWN)
            back_off(refund, now, at_least=_asked_to_wait(answer))
        refund.save()
        audit.record(
            None,
            f"refund.{refund.state}",
            refund,
            attempt=attempt.number,
            answer=answer.outcome,
            http_status=answer.http_status,
            error_code=answer.error_code,
        )
        control.react_to_error(answer, refund)
    return refund


def _asked_to_wait(answer: smartpay.SmartpayError) -> float | None:
    """Return for how many seconds Smartpay asks us to wait, at least AT_WORK_SECONDS if busy; None if it does not."""
    if isinstance(answer, smartpay.InProgress | smartpay.Limited):
        return max(AT_WORK_SECONDS, answer.retry_after or 0)
    return answer.retry_after


def _finish(attempt: Attempt, answer: smartpay.Answer | smartpay.SmartpayError) -> datetime:
    """Write the answer into its attempt; return when."""
    attempt.finished_at = clock.now()
    attempt.outcome = answer.outcome
    attempt.http_status = answer.http_status
    attempt.replayed = answer.replayed
    attempt.response_sha256 = answer.sha256
    if isinstance(answer, smartpay.SmartpayError):
        attempt.error_code, attempt.error_message = answer.error_code, answer.message
    attempt.save(update_fields=FINISHED)
    return attempt.finished_at
