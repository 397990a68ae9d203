"""Everything that moves money; nothing else writes Refund.

The life of a refund: request_refund() commits its row; take_turn() sends it and books the answer, first in the web
request that made it, later in a worker, always through the same function; observe_refund() books what Smartpay
shows of it, whoever looked. Nothing talks to Smartpay inside a transaction, and nothing changes a state outside one.
"""

import random
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import cast

import structlog
from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.db.models import Exists, OuterRef, Q, QuerySet, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.models import User
from refunds import audit, clock, mirror, roles, smartpay
from refunds.models import Attempt, Control, Evidence, Payment, Refund, SmartpayRefund, SyncCursor
from refunds.templatetags.money import money

log = structlog.get_logger(__name__)

State = Refund.State

# Note [The send window]
# Smartpay keeps a key for six hours from when it first received it; after that the same key would be a second
# refund. We count from our first sending, which is earlier, and stop an hour before: room for a request that the
# network held back and for clocks that differ. The database refuses a later attempt too.
SEND_WINDOW = timedelta(hours=5)

# Note [Proof of absence]
# "Not executed" needs two complete reads without our reference, a quarter of an hour apart, both after the last
# moment at which a request of ours could still have been carried out or have been hidden from a reader.
ABSENT_AFTER_FIRST_SENDING = timedelta(hours=6, minutes=30)
ABSENT_AFTER_LAST_SENDING = timedelta(minutes=45)
ABSENT_TWICE_WITHIN = timedelta(minutes=15)

COULD_BE_OURS = timedelta(minutes=10)  # how far Smartpay's clock may be behind ours
UNREADABLE_AFTER = timedelta(hours=12)  # reads that fail for so long are a case for people
LONGEST_PAUSE = timedelta(minutes=30)
FIRST_TURN_HEAD_START = timedelta(
    seconds=5
)  # the web request that made the row sends it; a worker steps in later
SIMILAR_ON_ORDER = timedelta(hours=24)
SIMILAR_FOR_CUSTOMER = timedelta(days=7)


# --- What an operator can act on ----------------------------------------------------------------------------


class RefundError(Exception):
    """Nothing was recorded as a refund and nothing was sent; str(error) tells the operator why.

    `field` is the field of the form that it belongs to, None for the whole form.
    """

    field: str | None = None


class AmountTooHigh(RefundError):
    field = "amount"


class BalanceMoved(RefundError):
    """What is left is not what the confirmation showed."""


class RefundUnsettled(RefundError):
    """An earlier refund of this payment is not confirmed yet."""


class SimilarRefund(RefundError):
    """There was one like it; a reason is asked for."""

    field = "similar_reason"


class RequestReused(RefundError):
    """This request_id is another refund's already. `refund` is that one."""

    def __init__(self, message: str, refund: Refund) -> None:
        super().__init__(message)
        self.refund = refund


class NotWaiting(RefundError):
    """It can't be withdrawn or decided any more: it was sent, or somebody decided."""


class NoReason(RefundError):
    """Who turns a refund down says why."""

    field = "note"


# --- Asking for a refund ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Request:
    """What a person asks for. `request_id` is minted when the form is drawn and stays this refund's id for ever."""

    request_id: uuid.UUID
    payment_id: str
    amount: int
    reason: str
    description: str = ""
    memo: str = ""


@dataclass(frozen=True, slots=True)
class Similar:
    """A refund like the one asked for: of the same order within a day, or to the same customer of the same amount."""

    at: datetime
    amount: int
    currency: str
    order_id: str
    person: User | None
    refund: Refund | None  # None: made outside this tool


@dataclass(frozen=True, slots=True)
class Preview:
    """What would happen, for the confirmation."""

    payment: Payment
    refundable_before: int
    refundable_after: int
    similar: list[Similar]
    needs_approval: bool


def find_request(request: Request, *, by: User) -> Refund | None:
    """Return the refund that this very form made already, None if it has made none.

    Raises RequestReused where the id is that of a refund with other contents, or of another person.
    """
    refund = Refund.objects.filter(pk=request.request_id).first()
    if refund is None:
        return None
    kept = Request(
        refund.id, refund.payment_id, refund.amount, refund.reason, refund.description, refund.memo
    )
    if kept != request or refund.requested_by_id != by.pk:
        raise RequestReused(
            _("この申請は別の内容ですでに受け付けられています。新しい申請は送られていません。"), refund
        )
    return refund


def preview_refund(request: Request, *, by: User) -> Preview:
    """Tell what the request would do. Raises PermissionDenied and the RefundErrors of request_refund()."""
    payment = Payment.objects.select_related("order").get(pk=request.payment_id)
    _check(payment, request, by=by)
    left = payment.refundable()
    return Preview(
        payment=payment,
        refundable_before=left,
        refundable_after=left - request.amount,
        similar=similar_refunds(payment, request.amount, but=request.request_id),
        needs_approval=needs_approval(request.amount),
    )


def request_refund(request: Request, *, refundable: int, by: User, similar_reason: str = "") -> Refund:
    """Record the refund that `by` asks for, committed before anything is sent, and return its row.

    Asked again with the same contents it is the same row, and nothing new happens.

    Args:
        refundable: what the person saw as left, in the minor unit; if that moved, it has to be asked anew.
        similar_reason: why all the same, where preview_refund() showed a similar refund.

    Raises: PermissionDenied; RequestReused, RefundUnsettled, BalanceMoved, AmountTooHigh, SimilarRefund.
    """
    with transaction.atomic(durable=True):
        if settings.REFUND_DAILY_LIMIT is not None:
            # Two of a person's requests at once, for two payments, would not see each other in the day's sum.
            User.objects.select_for_update().get(pk=by.pk)
        payment = (
            Payment.objects.select_for_update(of=("self",)).select_related("order").get(pk=request.payment_id)
        )
        if refund := find_request(request, by=by):
            return refund
        _check(payment, request, by=by, refundable=refundable)
        if not similar_reason and similar_refunds(payment, request.amount, but=request.request_id):
            raise SimilarRefund(
                _("似た返金があります。それでも返金する理由を入力してください。何も送られていません。")
            )
        now = clock.now()
        refund = Refund(
            id=request.request_id,
            payment=payment,
            amount=request.amount,
            currency=payment.currency,
            reason=request.reason,
            description=request.description,
            memo=request.memo,
            similar_reason=similar_reason,
            refundable_before=refundable,
            body=smartpay.refund_body(
                payment_id=payment.pk,
                amount=request.amount,
                currency=payment.currency,
                reason=request.reason,
                description=request.description,
                key=str(request.request_id),
            ),
            state=State.AWAITING_APPROVAL if needs_approval(request.amount) else State.QUEUED,
            requested_by=by,
            requested_at=now,
            next_check_at=now + FIRST_TURN_HEAD_START,
        )
        try:
            with transaction.atomic():
                refund.save(force_insert=True)
        except IntegrityError:
            find_request(request, by=by)  # raises where the id was used a moment ago for another payment
            raise
        audit.record(
            by,
            "refund.requested",
            refund,
            amount=refund.amount,
            currency=refund.currency,
            reason=refund.reason,
            payment=payment.pk,
            refundable=refundable,
            state=refund.state,
            similar=bool(similar_reason),
        )
    return refund


def refund_payment(
    request: Request,
    *,
    refundable: int,
    by: User,
    similar_reason: str = "",
    client: smartpay.Client | None = None,
) -> Refund:
    """Record a refund and take its first turn at once; return the row with its outcome so far.

    Raises what request_refund() raises, before anything is recorded or sent. What Smartpay answers, or fails to
    answer, is not raised: it is the state of the refund returned.
    """
    refund = request_refund(request, refundable=refundable, by=by, similar_reason=similar_reason)
    if refund.state == State.QUEUED and refund.attempt_no == 0:
        take_turn(refund.pk, client=client or smartpay.client(), first=True)
    refund.refresh_from_db()
    return refund


def withdraw(refund_id: uuid.UUID, *, by: User) -> Refund:
    """Cancel one's own refund that was never sent. Raises PermissionDenied for another's, NotWaiting once sent."""
    with _locked(refund_id) as refund:
        if refund.requested_by_id != by.pk:
            raise PermissionDenied
        if refund.state not in (State.AWAITING_APPROVAL, State.QUEUED) or refund.first_sent_at:
            raise NotWaiting(_("この返金はすでに送信されたか、決定されています。取り下げられません。"))
        _cancel(refund, Refund.Cancelled.WITHDRAWN, by=by)
    return refund


# --- Four eyes ----------------------------------------------------------------------------------------------


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
    read_payment(payment_id, client=client.within(settings.SMARTPAY_VIEW_DEADLINE))
    with _to_decide(refund_id, by=by, note=note) as refund:
        if refund.payment.refundable() + refund.amount != refund.refundable_before:
            _cancel(refund, Refund.Cancelled.BALANCE, by=by)
            return refund
        _move(refund, State.QUEUED)
        refund.next_check_at = clock.now() + FIRST_TURN_HEAD_START
        refund.save()
        audit.record(by, "refund.approved", refund, amount=refund.amount)
    take_turn(refund_id, client=client, first=True)
    refund.refresh_from_db()
    return refund


def reject(refund_id: uuid.UUID, *, by: User, note: str) -> Refund:
    """Turn down another person's refund, with a reason. Raises: PermissionDenied, NotWaiting, NoReason."""
    if not note:
        raise NoReason(_("却下する理由を入力してください。"))
    with _to_decide(refund_id, by=by, note=note) as refund:
        _cancel(refund, Refund.Cancelled.REFUSED, by=by)
    return refund


def expire_requests() -> int:
    """Cancel what has waited for a second person for REFUND_REQUEST_DAYS; return how many."""
    before = clock.now() - timedelta(days=settings.REFUND_REQUEST_DAYS)
    old = Refund.objects.filter(state=State.AWAITING_APPROVAL, requested_at__lt=before)
    ids = list(old.values_list("pk", flat=True))
    for refund_id in ids:
        with _locked(refund_id) as refund:
            if refund.state == State.AWAITING_APPROVAL:  # nobody decided meanwhile
                _cancel(refund, Refund.Cancelled.EXPIRED, by=None)
    return len(ids)


@contextmanager
def _to_decide(refund_id: uuid.UUID, *, by: User, note: str) -> Iterator[Refund]:
    """A waiting refund, locked, with this person's decision written into it; the first of several is the one."""
    with _locked(refund_id) as refund:
        if not by.is_active or not by.has_perm(roles.APPROVE_REFUND) or refund.requested_by_id == by.pk:
            raise PermissionDenied
        if refund.state != State.AWAITING_APPROVAL:
            raise NotWaiting(_("この返金はすでに決定されたか、取り下げられています。"))
        refund.decided_by, refund.decided_at, refund.decision_note = by, clock.now(), note
        yield refund


def needs_approval(amount: int) -> bool:
    return settings.REFUND_APPROVAL_ABOVE is not None and amount > settings.REFUND_APPROVAL_ABOVE


def similar_refunds(payment: Payment, amount: int, *, but: uuid.UUID) -> list[Similar]:
    """Refunds like this one, by anyone, here or elsewhere, newest first; `but` is this request's own id.

    Alike: of the same order within 24 hours, whatever the amount; of the same amount to the same customer (told by
    mail, else by name) within seven days.
    """
    order, now = payment.order, clock.now()
    same_customer = Q(payment__order=order)
    if order.email_folded:
        same_customer |= Q(payment__order__email_folded=order.email_folded)
    elif order.name_folded:
        same_customer |= Q(payment__order__name_folded=order.name_folded)

    def alike(moment: str) -> Q:
        same_order = Q(payment__order=order) & Q((f"{moment}__gte", now - SIMILAR_ON_ORDER))
        same_amount = same_customer & Q(amount=amount) & Q((f"{moment}__gte", now - SIMILAR_FOR_CUSTOMER))
        return same_order | same_amount

    ours = (
        Refund.objects.filter(alike("requested_at"), state__in=[*Refund.RESERVING, State.SUCCEEDED])
        .exclude(pk=but)
        .select_related("payment__order", "requested_by")
    )
    elsewhere = (
        SmartpayRefund.objects.filter(alike("created_at"), ours=None)
        .exclude(status=SmartpayRefund.Status.FAILED)
        .select_related("payment__order")
    )
    found = [
        Similar(r.requested_at, r.amount, r.currency, r.payment.order.order_id, r.requested_by, r)
        for r in ours
    ] + [Similar(s.created_at, s.amount, s.currency, s.payment.order.order_id, None, None) for s in elsewhere]
    return sorted(found, key=lambda similar: similar.at, reverse=True)


def _check(payment: Payment, request: Request, *, by: User, refundable: int | None = None) -> None:
    """Raise what speaks against the request; `refundable` is what the person saw, None before they saw anything."""
    if not by.is_active or not by.has_perm(roles.REQUEST_REFUND):
        raise PermissionDenied
    if payment.refunds.filter(state__in=Refund.BLOCKING).exists():
        raise RefundUnsettled(
            _(
                "この支払いには結果が確定していない返金があります。確定するまで返金できません。何も送られていません。"
            )
        )
    left = payment.refundable()
    shown = money(left, payment.currency)
    if refundable is not None and refundable != left:
        raise BalanceMoved(
            _(
                "確認画面を開いたあとに返金可能額が変わりました。いまの返金可能額は%(left)sです。何も送られていません。"
            )
            % {"left": shown}
        )
    if request.amount > left:
        raise AmountTooHigh(_("返金可能額は%(left)sです。これを超える返金はできません。") % {"left": shown})
    maximum = settings.REFUND_MAX_AMOUNT
    if maximum is not None and request.amount > maximum:
        raise AmountTooHigh(
            _("一回の返金は%(maximum)sまでです。") % {"maximum": money(maximum, payment.currency)}
        )
    limit = settings.REFUND_DAILY_LIMIT
    if limit is not None and request.amount + (today := refunded_today(by)) > limit:
        figures = {
            "limit": money(limit, payment.currency),
            "left": money(max(0, limit - today), payment.currency),
        }
        raise AmountTooHigh(_("一日の返金は合計%(limit)sまでです。本日はあと%(left)sです。") % figures)


def refunded_today(by: User) -> int:
    """The sum of a person's refunds of this Japanese day, in the minor unit: made, open, or waiting."""
    morning = timezone.localtime(clock.now()).replace(hour=0, minute=0, second=0, microsecond=0)
    counted = Refund.objects.filter(requested_by=by, requested_at__gte=morning).filter(
        state__in=[*Refund.RESERVING, State.SUCCEEDED]
    )
    return counted.aggregate(total=Sum("amount"))["total"] or 0


# --- Sending ------------------------------------------------------------------------------------------------


def take_turn(refund_id: uuid.UUID, *, client: smartpay.Client, first: bool = False) -> None:
    """Do the next thing for a refund: read, and send where that is allowed and still needed.

    Several processes may call it for the same refund at once: one takes the turn, the others return. `first` is
    the turn inside the web request that made the row: the only one that may send without reading before.
    """
    owner = "" if first else str(uuid.uuid4())
    if not first and not (
        _take_lease(refund_id, owner=owner) and _read(refund_id, owner=owner, client=client)
    ):
        return
    attempt = _begin_attempt(refund_id, owner=owner)
    if attempt is not None:
        _book(attempt, _send(attempt, client=client))


def due() -> QuerySet[Refund]:
    """Refunds whose turn has come, the longest waiting first: the ledger is its own queue."""
    now = clock.now()
    open_one = Refund.objects.filter(payment=OuterRef("payment"), state__in=Refund.OPEN)
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


def scan_if_needed(*, client: smartpay.Client) -> None:
    """Read all of Smartpay's refunds where one of ours waits for that. Raises: smartpay.SmartpayError."""
    if needs_full_scan():
        mirror.scan_refunds(client, observe=observe_refund)


def needs_full_scan() -> bool:
    """Whether a refund waits for a complete read that its payment does not offer. See Note [Complete reads]."""
    waiting = Refund.objects.filter(state=State.UNKNOWN, evidence__detail=Evidence.Detail.NO_LIST)
    scanned_at = SyncCursor.objects.filter(pk="refunds").values_list("last_started_at", flat=True).first()
    if scanned_at is None or clock.now() >= scanned_at + ABSENT_TWICE_WITHIN:
        return waiting.exists()
    return waiting.filter(last_sent_at__gte=scanned_at).exists()


def _take_lease(refund_id: uuid.UUID, *, owner: str) -> bool:
    """Reserve the turn for this process. A lease that ran out says that its holder died: what it sent is unknown."""
    with _locked(refund_id) as refund:
        now = clock.now()
        if refund.is_settled or refund.state in (State.AWAITING_APPROVAL, State.REVIEW):
            return False
        if refund.next_check_at and refund.next_check_at > now:
            return False  # leased, or told to wait
        if refund.state == State.SENDING:
            _move(refund, State.UNKNOWN)
            audit.record(None, "refund.unknown", refund, why="the sender died", attempt=refund.attempt_no)
        refund.turns += 1
        _lease(refund, owner, now)
        refund.save()
    return True


def _begin_attempt(refund_id: uuid.UUID, *, owner: str) -> Attempt | None:
    """Commit the intent to send, before the first byte leaves; None where nothing may be sent now.

    `owner` holds the lease. "" is the web request that made the row: nobody holds a lease of it, which is "" as well.
    """
    with _locked(refund_id) as refund:
        now = clock.now()
        if refund.lease_owner != owner or refund.state not in (State.QUEUED, State.UNKNOWN):
            return None
        if not owner and refund.state != State.QUEUED:
            return None  # somebody sent it already: only a turn that reads first may do so again
        if reason := _why_not_sent(refund, now):
            log.info("refund.not_sent_now", refund=str(refund.pk), why=reason)
            _pause(refund, now)
            refund.save()
            return None
        if refund.state == State.QUEUED and not _still_wanted(refund):
            return None
        _move(refund, State.SENDING)
        refund.attempt_no += 1
        refund.first_sent_at = refund.first_sent_at or now
        refund.last_sent_at = now
        _lease(refund, owner, now)
        refund.save()
        attempt = Attempt.objects.create(refund=refund, number=refund.attempt_no, started_at=now)
        audit.record(None, "refund.sending", refund, attempt=attempt.number)
    return attempt


def _why_not_sent(refund: Refund, now: datetime) -> str:
    """Why nothing may be sent for this refund at this moment; "" if it may."""
    if not Control.sends_are_on():
        return "sending is stopped"
    if refund.last_sent_at and now < refund.last_sent_at:
        return "the clock went back"
    if refund.first_sent_at and now >= refund.first_sent_at + SEND_WINDOW:
        return "the send window is over"
    others = refund.payment.refunds.filter(state__in=Refund.OPEN).exclude(pk=refund.pk)
    if others.exists():
        return "another refund of the payment is open"
    if refund.first_sent_at and not _entitled(refund):
        return "a person behind it may no longer refund"
    return ""


def _still_wanted(refund: Refund) -> bool:
    """Whether a refund that was never sent may still be; if not, it is cancelled with its cause."""
    if refund.payment.is_overdrawn():
        _cancel(refund, Refund.Cancelled.BALANCE, by=None)
    elif not _entitled(refund):
        _cancel(refund, Refund.Cancelled.ENTITLEMENT, by=None)
    return refund.state == State.QUEUED


def _entitled(refund: Refund) -> bool:
    """Whether who asked, and who approved, are still active and still may."""
    asked = refund.requested_by
    decided = refund.decided_by
    return (asked.is_active and asked.has_perm(roles.REQUEST_REFUND)) and (
        decided is None or (decided.is_active and decided.has_perm(roles.APPROVE_REFUND))
    )


def _send(attempt: Attempt, *, client: smartpay.Client) -> smartpay.Answer | smartpay.SmartpayError:
    """Post the frozen request. Whatever comes back, or does not, is returned, and logged before it is booked.

    Never inside a transaction: the one that made the attempt is durable, and refuses to be nested.
    """
    refund = attempt.refund
    too_late = attempt.started_at + timedelta(seconds=settings.REFUND_LEASE_SECONDS / 2)
    try:
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


def _book(attempt: Attempt, answer: smartpay.Answer | smartpay.SmartpayError) -> None:
    """Write down what an attempt's answer means: the attempt always, the refund where it is still this attempt's.

    See Note [What an answer means] in smartpay.py.
    """
    if isinstance(answer, smartpay.Answer):
        with _locked(attempt.refund_id) as refund:
            now = _finish(attempt, answer)
            _book_evidence(refund, answer.refund, kind=Evidence.Kind.ANSWER)
        # After the ledger, whose smartpay_id tells that it is ours where Smartpay repeats no reference.
        mirror.record_refund(answer.refund, read_at=now)
        return
    with _locked(attempt.refund_id) as refund:
        now = _finish(attempt, answer)
        if refund.state != State.SENDING or refund.attempt_no != attempt.number:
            return  # settled, or taken over, meanwhile: this answer is only recorded
        refund.error_code, refund.error_message = answer.error_code, answer.message
        if isinstance(answer, smartpay.Refused) and attempt.number == 1:
            _settle(refund, State.REJECTED, now)
        elif isinstance(answer, smartpay.Contradiction):
            _to_review(refund, str(answer))
        else:
            _move(refund, State.UNKNOWN)
            _pause(refund, now, at_least=answer.retry_after)
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
        _heed(answer, refund)


def _finish(attempt: Attempt, answer: smartpay.Answer | smartpay.SmartpayError) -> datetime:
    attempt.finished_at = clock.now()
    attempt.outcome = answer.outcome
    attempt.http_status = answer.http_status
    attempt.replayed = answer.replayed
    attempt.response_sha256 = answer.sha256
    if isinstance(answer, smartpay.SmartpayError):
        attempt.error_code, attempt.error_message = answer.error_code, answer.message
    attempt.save()
    return attempt.finished_at


# --- Settling -----------------------------------------------------------------------------------------------

# Note [Complete reads]
# Whether a refund is absent can be told in two ways: by a payment that lists its refunds, or by a scan of all of
# GET /refunds that began after the last sending. The sources disagree whether the live API offers the first, so
# both are built; refunds of payments without a list wait for one scan that they share.


def observe_refund(
    seen: smartpay.Refund, *, read_at: datetime, kind: str = Evidence.Kind.READ
) -> SmartpayRefund:
    """Book a refund that Smartpay showed: into the mirror, and into the ledger where it is ours.

    The one door for what is read: a payment's refunds, a webhook's, a scan's. Only the answer to a sending of our own
    goes to the ledger first, where it is known to be ours.
    """
    row = mirror.record_refund(seen, read_at=read_at)
    if row.ours_id is None:
        _cancel_what_no_longer_fits(seen.payment)
    # One that names a row of ours but belongs to another payment is not ours, and yet no stranger's.
    if refund_id := row.ours_id or mirror.named_refund(seen):
        with _locked(refund_id) as refund:
            _book_evidence(refund, seen, kind=kind)
    return row


def read_order(order_id: str, *, client: smartpay.Client) -> None:
    """Read an order at Smartpay, and the refunds of its payments that we did not know.

    Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    for seen in mirror.refresh_order(order_id, client):
        observe_refund(seen, read_at=read_at)


def read_payment(payment_id: str, *, client: smartpay.Client) -> bool:
    """Read a payment at Smartpay, and the refunds of it that we did not know; return whether it lists them.

    Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    complete, refunds = mirror.refresh_payment(payment_id, client)
    for seen in refunds:
        observe_refund(seen, read_at=read_at)
    return complete


def _book_evidence(refund: Refund, seen: smartpay.Refund, *, kind: str) -> None:
    """Settle a locked refund by what Smartpay shows of it: evidence of success wins over every state."""
    now, before = clock.now(), refund.state
    known = refund.smartpay_id == seen.id
    failed = seen.status == SmartpayRefund.Status.FAILED
    if seen.status not in ("", *SmartpayRefund.Status.values):
        alarm("refund.status_unknown", refund, smartpay_id=seen.id)
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
    if refund.state in (State.AWAITING_APPROVAL, State.QUEUED):
        # Sent by a life of this row that the database has forgotten: it never may be sent again.
        _to_review(refund, f"{seen.id} was sent and forgotten")
        refund.save()  # a step of its own: no guard lets a waiting row become a settled one at once
    _judge(refund, seen, now, matches=matches)
    refund.save()
    action = f"refund.{refund.state}" if refund.state != before else "refund.observed"
    audit.record(None, action, refund, smartpay_id=seen.id, evidence=kind)


def _judge(refund: Refund, seen: smartpay.Refund, now: datetime, *, matches: bool) -> None:
    """Give a refund the state that what Smartpay shows of it asks for; raise the alarm where it should show nothing."""
    known = refund.smartpay_id == seen.id
    failed = seen.status == SmartpayRefund.Status.FAILED
    if refund.smartpay_id and not known:
        alarm("refund.two_executions", refund, smartpay_id=seen.id)
        if refund.state in (State.REJECTED, State.NOT_EXECUTED):
            _to_review(refund, f"second refund {seen.id}")
    elif refund.state in Refund.OPEN:
        if not matches or Refund.objects.filter(smartpay_id=seen.id).exclude(pk=refund.pk).exists():
            _to_review(refund, f"{seen.id} differs")
        elif failed and refund.state in Refund.IN_FLIGHT:
            refund.smartpay_id = seen.id
            refund.error_code = "status.failed"
            _settle(refund, State.REJECTED, now)
        elif not failed:
            refund.smartpay_id = seen.id
            refund.error_code = refund.error_message = ""
            _settle(refund, State.SUCCEEDED, now)
    elif failed:
        if known:
            alarm("refund.taken_back", refund, smartpay_id=seen.id)
    elif refund.state in (State.REJECTED, State.NOT_EXECUTED):
        _to_review(refund, f"{seen.id} exists")
    else:
        alarm("refund.executed_unasked", refund, smartpay_id=seen.id)


def _read(refund_id: uuid.UUID, *, owner: str, client: smartpay.Client) -> bool:
    """Look for the refund at Smartpay; return whether it may be sent (again), as far as a read can tell.

    A refund that was never sent needs no complete read; one that was is sent again only after a complete read
    without it, and is proved absent by two of them. See Note [Proof of absence].
    """
    refund = Refund.objects.get(pk=refund_id)
    read_at = clock.now()
    try:
        complete = read_payment(refund.payment_id, client=client)
    except smartpay.SmartpayError as error:
        _book_silence(refund_id, error, owner=owner)
        return False
    if complete:
        return _book_absence(refund_id, kind=Evidence.Kind.READ, complete_at=read_at, owner=owner)
    scanned_at = SyncCursor.objects.filter(pk="refunds").values_list("last_started_at", flat=True).first()
    return _book_absence(refund_id, kind=Evidence.Kind.LIST, complete_at=scanned_at, owner=owner)


def _book_absence(refund_id: uuid.UUID, *, kind: str, complete_at: datetime | None, owner: str) -> bool:
    """Write down that a read did not show the refund; return whether it may be sent (again).

    `complete_at`: when the complete read began that would have shown it; None where there was none.
    """
    with _locked(refund_id) as refund:
        now = clock.now()
        if refund.lease_owner != owner:
            return False  # found, and settled; or taken over by another
        if refund.state == State.QUEUED:
            return True  # never sent: there is nothing to be absent
        if refund.last_sent_at is None or refund.seen.exists():
            _pause(refund, now)  # Smartpay shows it, in a state that says neither yes nor no
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
        elif complete_at < _absence_counts_from(refund):
            return True
        elif refund.absent_since and complete_at >= refund.absent_since + ABSENT_TWICE_WITHIN:
            _conclude_absence(refund, now)
        else:
            refund.absent_since = refund.absent_since or complete_at
            _pause(refund, now, at_least=ABSENT_TWICE_WITHIN.total_seconds())
        refund.save()
    return False


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
        _to_review(refund, "a refund without our reference could be it")
    else:
        _settle(refund, State.NOT_EXECUTED, now)
    audit.record(None, f"refund.{refund.state}", refund, absent_since=str(refund.absent_since))


def _absence_counts_from(refund: Refund) -> datetime:
    first, last = (
        cast(datetime, refund.first_sent_at),
        cast(datetime, refund.last_sent_at),
    )  # constraints say so
    return max(first + ABSENT_AFTER_FIRST_SENDING, last + ABSENT_AFTER_LAST_SENDING)


def _book_silence(refund_id: uuid.UUID, error: smartpay.SmartpayError, *, owner: str) -> None:
    """Write down that a read failed."""
    with _locked(refund_id) as refund:
        log.warning(
            "refund.unread", refund=str(refund_id), outcome=error.outcome, http_status=error.http_status
        )
        _heed(error, refund)
        if refund.lease_owner == owner:
            _wait_or_ask(refund, clock.now(), at_least=error.retry_after)
            refund.save()


def _wait_or_ask(refund: Refund, now: datetime, *, at_least: float | None = None) -> None:
    """Look again later; ask people where the refund was sent, and could not be looked for, for twelve hours."""
    since = now - UNREADABLE_AFTER
    read = refund.evidence.filter(at__gt=since).exclude(detail=Evidence.Detail.NO_LIST)
    if refund.state == State.UNKNOWN and cast(datetime, refund.first_sent_at) < since and not read.exists():
        _to_review(refund, "unreadable for twelve hours")
        audit.record(None, "refund.review", refund, why="unreadable")
    else:
        _pause(refund, now, at_least=at_least)


def _cancel_what_no_longer_fits(payment_id: str) -> None:
    """After a refund made elsewhere: cancel ours that were never sent and no longer fit, the newest first."""
    with transaction.atomic():
        payment = Payment.objects.select_for_update().filter(pk=payment_id).first()
        if payment is None:
            return
        waiting = payment.refunds.filter(state__in=[State.AWAITING_APPROVAL, State.QUEUED]).order_by(
            "-requested_at"
        )
        for refund in waiting.select_for_update():
            payment.refresh_from_db()
            if not payment.is_overdrawn():
                break
            _cancel(refund, Refund.Cancelled.BALANCE, by=None)
            alarm("refund.no_longer_fits", refund)


# --- Small steps, each inside the caller's transaction ------------------------------------------------------
# They change the object in hand. Saving is the caller's, who may have more to change; only _cancel() saves, and writes
# its own entry, since there is never more to it.


@contextmanager
def _locked(refund_id: uuid.UUID) -> Iterator[Refund]:
    """A transaction that holds a refund, its payment first. See Note [Lock order] in models.py."""
    with transaction.atomic(durable=True):
        payment_id = Refund.objects.values_list("payment_id", flat=True).get(pk=refund_id)
        payment = Payment.objects.select_for_update(of=("self",)).select_related("order").get(pk=payment_id)
        refund = Refund.objects.select_for_update().get(pk=refund_id)
        refund.payment = payment
        yield refund


def _move(refund: Refund, state: State) -> None:
    refund.state = state
    refund.lease_until, refund.lease_owner = None, ""


def _lease(refund: Refund, owner: str, now: datetime) -> None:
    refund.lease_until = refund.next_check_at = now + timedelta(seconds=settings.REFUND_LEASE_SECONDS)
    refund.lease_owner = owner


def _pause(refund: Refund, now: datetime, *, at_least: float | None = None) -> None:
    """Give the turn back until later: twice as long each time, up to half an hour, never in step with others."""
    seconds = min(
        settings.REFUND_BACKOFF_SECONDS * 2 ** min(refund.turns - 1, 10), LONGEST_PAUSE.total_seconds()
    ) * random.uniform(0.5, 1.5)  # noqa: S311  (spreads load, hides nothing)
    seconds = max(seconds, min(at_least or 0, LONGEST_PAUSE.total_seconds()))
    refund.next_check_at = now + timedelta(seconds=seconds)
    refund.lease_until, refund.lease_owner = None, ""


def _settle(refund: Refund, state: State, now: datetime) -> None:
    _move(refund, state)
    refund.settled_at, refund.next_check_at = now, None


def _cancel(refund: Refund, because: Refund.Cancelled, *, by: User | None) -> None:
    _settle(refund, State.CANCELLED, clock.now())
    refund.cancelled_because = because
    refund.save()
    audit.record(by, "refund.cancelled", refund, because=because)


def _to_review(refund: Refund, why: str) -> None:
    _move(refund, State.REVIEW)
    refund.next_check_at = None
    refund.error_message = refund.error_message or why
    alarm("refund.review", refund, why=why)


def _heed(answer: smartpay.SmartpayError, refund: Refund) -> None:
    """Raise the alarm where Smartpay did not take a request at all; stop sending where it refuses the key."""
    if isinstance(answer, smartpay.KeyRefused) and Control.sends_are_on():
        set_sends(enabled=False, reason="Smartpay: 401")
    if isinstance(answer, smartpay.NotAccepted):
        alarm("smartpay.not_accepted", refund, http_status=answer.http_status)


def set_sends(*, enabled: bool, reason: str, by: User | None = None) -> None:
    """Stop or resume all sending, with a reason; reading and settling go on either way.

    `by`: None is the machine, or whoever types the command.
    """
    with transaction.atomic():
        Control.objects.update_or_create(
            one=True,
            defaults={
                "sends_enabled": enabled,
                "reason": reason[:200],
                "changed_at": clock.now(),
                "changed_by": by,
            },
        )
        audit.record(by, "sends.resumed" if enabled else "sends.stopped", None, reason=reason)


def alarm(name: str, refund: Refund, **about: object) -> None:
    """Tell whoever watches the logs; ids and states only."""
    log.error(name, alarm=True, refund=str(refund.pk), state=str(refund.state), **about)
