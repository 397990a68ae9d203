"""Sending: a turn is taken by one process, committed before the first byte leaves, and its answer booked.

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

AT_WORK_SECONDS = 30.0
FINISHED = (  # what an answer adds to its attempt
    "finished_at",
    "outcome",
    "http_status",
    "replayed",
    "response_sha256",
    "error_code",
    "error_message",
)


def take_turn(refund_id: uuid.UUID, *, client: smartpay.Client, first: bool = False) -> None:
    """Do the next thing for a refund: read, and send where that is allowed and still needed.

    Several processes may call it for the same refund at once: one takes the turn, the others return. `first` is
    the turn of the web request that approved it, which has read the payment itself: this one does not read before.
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
    """Refunds whose turn has come, the longest waiting first: the ledger is its own queue."""
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
    """Take a turn for up to a hundred refunds that are due; return how many. Called by workers, as many as wanted.

    `stop` is asked between two turns.
    """
    ids = list(due().values_list("pk", flat=True)[:100])
    for refund_id in ids:
        if stop():
            return len(ids)
        try:
            take_turn(refund_id, client=client)
        except Exception:
            # A defect, or the database gone. Its lease runs out and its turn comes again; the others shall not wait.
            log.exception("refund.turn_failed", alarm=True, refund=str(refund_id))
    return len(ids)


@retried
def take_lease(refund_id: uuid.UUID, *, owner: str) -> bool:
    """Reserve the turn for this process. A lease that ran out says that its holder died: what it sent is unknown."""
    with locked(refund_id) as refund:
        now = clock.now()
        if refund.is_settled or refund.state in (State.AWAITING_APPROVAL, State.REVIEW):
            return False
        if refund.next_check_at and refund.next_check_at > now:
            return False  # leased, or told to wait
        if refund.state == State.SENDING:
            move(refund, State.UNKNOWN)
            audit.record(None, "refund.unknown", refund, why="the sender died", attempt=refund.attempt_no)
        refund.turns += 1
        lease(refund, owner, now)
        refund.save()
    return True


@retried
def begin_attempt(refund_id: uuid.UUID, *, owner: str) -> Attempt | None:
    """Commit the intent to send, before the first byte leaves; None where nothing may be sent now.

    `owner` holds the lease. "" is a web request that takes the first turn: nobody holds a lease, which is "" as well.
    """
    with locked(refund_id) as refund:
        return begin(refund, owner=owner, now=clock.now())


def begin(refund: Refund, *, owner: str, now: datetime) -> Attempt | None:
    """begin_attempt() for a refund that the caller's transaction holds. Nothing may leave before that is committed."""
    if refund.lease_owner != owner or refund.state not in (State.QUEUED, State.UNKNOWN):
        return None
    if owner == NO_LEASE and refund.state != State.QUEUED:
        return None  # somebody sent it already: only a turn that reads first may do so again
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
    """Why nothing may be sent for this refund at this moment; "" if it may."""
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
    # What was lost may be what somebody then refunded by hand. It is looked for until its absence is proved.
    if refund.first_sent_at and refund.is_overtaken():
        return "a refund made elsewhere could be it"
    return ""


def _still_wanted(refund: Refund) -> bool:
    """Whether a refund that was never sent may still be; if not, it is cancelled with its cause.

    What was refunded elsewhere since the person looked may be what they wanted: whoever still wants it asks again.
    Where the database was restored since, it may even be this very refund, and that is for people to say.
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
    """Whether the file whose line it is was cancelled since; who cancelled it may have died half-way.

    The same contents may have been uploaded again: that file's line is another, and has not asked for this refund.
    """
    asked = BulkLine.objects.filter(request_id=refund.pk, state=BulkLine.State.ASKED)
    return asked.filter(bulk__state__in=Bulk.GIVEN_UP).exists()


def _entitled(refund: Refund) -> bool:
    """Whether who asked, and who approved, are still active and still may."""
    asked = refund.requested_by
    decided = refund.decided_by
    return roles.may(asked, roles.REQUEST_REFUND) and (
        decided is None or roles.may(decided, roles.APPROVE_REFUND)
    )


def send(attempt: Attempt, *, client: smartpay.Client) -> smartpay.Answer | smartpay.SmartpayError:
    """Post the frozen request. Whatever comes back, or does not, is returned, and logged before it is booked.

    Never inside a transaction: the one that made the attempt is durable, and refuses to be nested.
    """
    refund = attempt.refund
    too_late = attempt.started_at + timedelta(seconds=settings.REFUND_LEASE_SECONDS / 2)
    try:
        control.remember(attempt.pk)
        # The last thing before the request, with nothing in between that could take long.
        if clock.now() > too_late:
            # This process slept. Another may have taken over long ago, and the key may be forgotten at Smartpay.
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
    # Second-hand evidence, should the database be gone at the next line.
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
    """Write down what an attempt's answer means: the attempt always, the refund where it is still this attempt's.

    Returns the refund as it then is. See Note [What an answer means] in smartpay.py.
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
            # After the ledger, whose smartpay_id tells that it is ours where Smartpay repeats no reference.
            is_it = refund.smartpay_id == answer.refund.id
            mirror.record_answer(answer.refund, ours_id=refund.pk if is_it else None, read_at=now)
        except Exception:
            if transaction.get_rollback():
                raise  # the outcome can't be committed any more either
            # The next reading records it. What is known of the money is not given up for it.
            log.exception("refund.not_mirrored", alarm=True, refund=str(refund.pk))
    return refund


@retried
def _book_error(attempt: Attempt, answer: smartpay.SmartpayError) -> Refund:
    with locked(attempt.refund_id, payment_id=attempt.refund.payment_id) as refund:
        now = _finish(attempt, answer)
        if refund.state != State.SENDING or refund.attempt_no != attempt.number:
            # Settled, or taken over, meanwhile: this answer changes nothing, and is heard all the same.
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
    """Seconds that Smartpay wants to be left alone: what it says, and half a minute where it is at work or busy."""
    if isinstance(answer, smartpay.InProgress | smartpay.Limited):
        return max(AT_WORK_SECONDS, answer.retry_after or 0)
    return answer.retry_after


def _finish(attempt: Attempt, answer: smartpay.Answer | smartpay.SmartpayError) -> datetime:
    attempt.finished_at = clock.now()
    attempt.outcome = answer.outcome
    attempt.http_status = answer.http_status
    attempt.replayed = answer.replayed
    attempt.response_sha256 = answer.sha256
    if isinstance(answer, smartpay.SmartpayError):
        attempt.error_code, attempt.error_message = answer.error_code, answer.message
    attempt.save(update_fields=FINISHED)
    return attempt.finished_at
