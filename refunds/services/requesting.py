"""Request a refund: preview what it would do, check it, and commit its row before anything is sent."""

import uuid
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.core.exceptions import PermissionDenied
from django.db import IntegrityError, transaction
from django.db.models import Q, Sum
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.models import User
from refunds import audit, clock, roles, smartpay
from refunds.models import Attempt, Payment, Refund, SmartpayRefund
from refunds.services import sending
from refunds.services.errors import (
    AboveDailyLimit,
    AboveMaximum,
    AmountTooHigh,
    BalanceMoved,
    NotWaiting,
    RefundUnsettled,
    RequestReused,
    SimilarRefund,
    SimilarUnexplained,
)
from refunds.services.states import NO_LEASE, State, cancel, locked, locked_with_siblings, retried
from refunds.wording import money

FIRST_TURN_HEAD_START = timedelta(
    seconds=5
)  # the web request that made the row sends it; workers wait this long
SIMILAR_ON_ORDER = timedelta(hours=24)
SIMILAR_FOR_CUSTOMER = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class RefundRequest:
    """What a person asks for. `request_id` is created with the form and is the refund's id for ever."""

    request_id: uuid.UUID
    payment_id: str
    amount: int
    reason: str
    description: str = ""
    memo: str = ""


@dataclass(frozen=True, slots=True)
class Approval:
    """A second person's approval that is older than the refund's row: that of a bulk file as a whole."""

    by: User
    at: datetime
    note: str


@dataclass(frozen=True, slots=True)
class Similar:
    """A refund like the one asked for; similar_refunds() tells which ones are."""

    id: str  # the ledger's, or Smartpay's
    at: datetime
    amount: int
    currency: str
    order_id: str
    person: User | None
    refund: Refund | None  # None if made outside this tool


@dataclass(frozen=True, slots=True)
class Preview:
    """What would happen, for the confirmation."""

    payment: Payment
    refundable_before: int
    refundable_after: int
    similar: list[Similar]
    needs_approval: bool


def find_request(request: RefundRequest, *, by: User) -> Refund | None:
    """Return the refund that this form made already; None if it made none.

    Raises RequestReused if a refund with other contents, or of another person, has this id.
    """
    refund = Refund.objects.filter(pk=request.request_id).first()
    if refund is None:
        return None
    kept = RefundRequest(
        refund.id, refund.payment_id, refund.amount, refund.reason, refund.description, refund.memo
    )
    if kept != request or refund.requested_by_id != by.pk:
        raise RequestReused(
            _("この申請は別の内容ですでに受け付けられています。新しい申請は送られていません。"), refund
        )
    return refund


@retried
def was_recorded(request: RefundRequest) -> bool:
    """Return whether this form made its refund, once no process can still be about to commit it.

    An earlier press of the button may have written the row and not committed it yet, perhaps in a process that died
    meanwhile. The payment's lock waits for that, before anybody is told that nothing was recorded.
    """
    with transaction.atomic(durable=True):
        Payment.objects.select_for_update().get(pk=request.payment_id)
        return Refund.objects.filter(pk=request.request_id).exists()


def preview_refund(request: RefundRequest, *, by: User) -> Preview:
    """Return what the request would do. Raises PermissionDenied and the RefundErrors of request_refund()."""
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


@retried
def request_refund(
    request: RefundRequest,
    *,
    refundable: int,
    by: User,
    similar_reason: str = "",
    bulk: uuid.UUID | None = None,
    approval: Approval | None = None,
    head_start: timedelta = FIRST_TURN_HEAD_START,
) -> Refund:
    """Record the refund that `by` asks for, committed before anything is sent, and return its row.

    Called again with the same contents, it returns the same row and does nothing else.

    Args:
        refundable: what the person saw as left, in the minor unit; if that changed, they have to ask again.
        similar_reason: why the person refunds all the same, if preview_refund() showed a similar refund.
        bulk: the file whose line this is, for the trail.
        approval: if it is approved already. The database accepts that only for a line of an approved file.
        head_start: how long workers leave the first turn to the caller.

    Raises: PermissionDenied; RequestReused, RefundUnsettled, BalanceMoved, AmountTooHigh, SimilarRefund.
    """
    with _asking(request, by=by):
        refund, _is_new = _record(
            request,
            refundable=refundable,
            by=by,
            similar_reason=similar_reason,
            bulk=bulk,
            approval=approval,
            head_start=head_start,
        )
    return refund


def refund_payment(
    request: RefundRequest,
    *,
    refundable: int,
    by: User,
    similar_reason: str = "",
    similar_shown: Collection[str] | None = None,
    client: smartpay.Client | None = None,
) -> Refund:
    """Record a refund and take its first turn at once; return the row with its outcome so far.

    `similar_shown`: the ids of the similar refunds that the reason is about; None if it is about all of them.

    Raises what request_refund() raises, before anything is recorded or sent. Smartpay's answer, or the lack of one, is
    not raised: the state of the returned refund tells it.
    """
    refund, attempt = _request_and_begin(
        request, refundable=refundable, by=by, similar_reason=similar_reason, similar_shown=similar_shown
    )
    if attempt is None:
        return refund
    return sending.book(attempt, sending.send(attempt, client=client or smartpay.client()))


@retried
def _request_and_begin(
    request: RefundRequest,
    *,
    refundable: int,
    by: User,
    similar_reason: str,
    similar_shown: Collection[str] | None,
) -> tuple[Refund, Attempt | None]:
    """Commit the refund together with the intent to send it; the attempt is None if nothing is to be sent from here.

    That is so if the refund waits for approval, may not be sent now, or existed before. An existing row is left to a
    worker, which reads Smartpay before it sends.
    """
    with _asking(request, by=by):
        refund, is_new = _record(
            request, refundable=refundable, by=by, similar_reason=similar_reason, similar_shown=similar_shown
        )
        begins = is_new and refund.state == State.QUEUED
        attempt = sending.begin(refund, owner=NO_LEASE, now=refund.requested_at) if begins else None
    return refund, attempt


@contextmanager
def _asking(request: RefundRequest, *, by: User) -> Iterator[None]:
    """Open the transaction of a request; raise RequestReused instead of an integrity error that this caused."""
    try:
        with transaction.atomic(durable=True):
            yield
    except IntegrityError:
        find_request(request, by=by)  # raises if the id was used a moment ago for another payment
        raise


def _record(
    request: RefundRequest,
    *,
    refundable: int,
    by: User,
    similar_reason: str,
    similar_shown: Collection[str] | None = None,
    bulk: uuid.UUID | None = None,
    approval: Approval | None = None,
    head_start: timedelta = FIRST_TURN_HEAD_START,
) -> tuple[Refund, bool]:
    """Do request_refund() inside the caller's transaction; return the row, and whether it is new."""
    if settings.REFUND_DAILY_LIMIT is not None:
        # Without this lock, two requests of one person for two payments would not see each other in the day's sum.
        User.objects.select_for_update(no_key=True).get(pk=by.pk)
    payment = locked_with_siblings(request.payment_id)  # their refunds may be similar to this one
    if refund := find_request(request, by=by):
        return refund, False
    _check(payment, request, by=by, refundable=refundable)
    _check_similar(payment, request, reason=similar_reason, shown=similar_shown)
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
        external_before=payment.external,
        body=smartpay.refund_body(
            payment_id=payment.pk,
            amount=request.amount,
            currency=payment.currency,
            reason=request.reason,
            description=request.description,
            key=str(request.request_id),
        ),
        state=State.AWAITING_APPROVAL if needs_approval(request.amount) and not approval else State.QUEUED,
        requested_by_id=by.pk,  # the id alone, so that sending looks the person's permissions up anew
        requested_at=now,
        next_check_at=now + head_start,
    )
    of_file: dict[str, Any] = {"bulk": str(bulk)} if bulk else {}
    if approval:
        refund.decided_by, refund.decided_at = approval.by, approval.at
        refund.decision_note = approval.note
        of_file["approved_by"] = approval.by.pk
    refund.save(force_insert=True)
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
        **of_file,
    )
    return refund, True


def _check_similar(
    payment: Payment, request: RefundRequest, *, reason: str, shown: Collection[str] | None
) -> None:
    """Raise if a similar refund has no reason, or was not shown when the person gave theirs."""
    if reason and shown is None:
        return
    similar = {each.id for each in similar_refunds(payment, request.amount, but=request.request_id)}
    if similar and not reason:
        raise SimilarUnexplained(
            _("似た返金があります。それでも返金する理由を入力してください。何も送られていません。")
        )
    if shown is not None and not similar <= set(shown):
        raise SimilarRefund(
            _(
                "確認のあとに、似た返金が増えました。内容を見て、もう一度確認してください。何も送られていません。"
            )
        )


@retried
def withdraw(refund_id: uuid.UUID, *, by: User) -> Refund:
    """Cancel a refund that was never sent. Raises PermissionDenied unless `by` asked for it, NotWaiting once sent."""
    with locked(refund_id) as refund:
        if refund.requested_by_id != by.pk:
            raise PermissionDenied
        if refund.state not in Refund.NEVER_SENT or refund.first_sent_at:
            raise NotWaiting(_("この返金はすでに送信されたか、決定されています。取り下げられません。"))
        cancel(refund, Refund.Cancelled.WITHDRAWN, by=by)
    return refund


def needs_approval(amount: int) -> bool:
    return settings.REFUND_APPROVAL_ABOVE is not None and amount > settings.REFUND_APPROVAL_ABOVE


def similar_refunds(payment: Payment, amount: int, *, but: uuid.UUID) -> list[Similar]:
    """Return refunds like this one, by anyone, here or elsewhere, newest first; `but` is this request's own id.

    Similar are refunds of the same order within 24 hours, whatever their amount, and those of the same amount to the
    same customer (told by mail, else by name) within seven days. The time counts from when the money left, which may be
    days after the request. A refund whose money may still leave is similar however old it is.
    """
    order, now = payment.order, clock.now()
    on_order, same_amount = Q(payment__order=order), Q(amount=amount)
    # The customer's orders include this one, so one index leads to them, and to their few refunds.
    if order.email_folded:
        customers = Q(payment__order__email_folded=order.email_folded)
    elif order.name_folded:
        customers = Q(payment__order__name_folded=order.name_folded)
    else:
        customers = on_order

    def lately(moment: str) -> Q:
        in_a_day, in_a_week = (
            Q((f"{moment}__gte", now - span)) for span in (SIMILAR_ON_ORDER, SIMILAR_FOR_CUSTOMER)
        )
        return on_order & in_a_day | same_amount & in_a_week

    ours = (
        Refund.objects.filter(customers)
        .filter(
            Q(state__in=Refund.RESERVING) & (on_order | same_amount)
            | Q(state=State.SUCCEEDED) & lately("settled_at")
        )
        .exclude(pk=but)
        .select_related("payment__order", "requested_by")
    )
    elsewhere = (
        SmartpayRefund.objects.beside_the_ledger()
        .counting()
        .filter(customers, lately("created_at"))
        .select_related("payment__order")
    )
    found = [
        Similar(
            str(r.pk),
            r.settled_at or r.requested_at,
            r.amount,
            r.currency,
            r.payment.order.order_id,
            r.requested_by,
            r,
        )
        for r in ours
    ] + [
        Similar(s.pk, s.created_at, s.amount, s.currency, s.payment.order.order_id, None, None)
        for s in elsewhere
    ]
    return sorted(found, key=lambda similar: similar.at, reverse=True)


def _check(payment: Payment, request: RefundRequest, *, by: User, refundable: int | None = None) -> None:
    """Raise what forbids the request. `refundable` is what the person saw as left; None before they saw anything."""
    roles.require(by, roles.REQUEST_REFUND)
    if payment.refunds.blocking().exists():
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
        raise AmountTooHigh(too_high(payment))
    maximum = settings.REFUND_MAX_AMOUNT
    if maximum is not None and request.amount > maximum:
        raise AboveMaximum(
            _("一回の返金は%(maximum)sまでです。") % {"maximum": money(maximum, payment.currency)}
        )
    limit = settings.REFUND_DAILY_LIMIT
    if limit is not None and request.amount + (today := refunded_today(by)) > limit:
        figures = {
            "limit": money(limit, payment.currency),
            "left": money(max(0, limit - today), payment.currency),
        }
        raise AboveDailyLimit(_("一日の返金は合計%(limit)sまでです。本日はあと%(left)sです。") % figures)


def too_high(payment: Payment) -> str:
    """Return the message of AmountTooHigh, with what is left of the payment."""
    shown = money(payment.refundable(), payment.currency)
    return _("返金可能額は%(left)sです。これを超える返金はできません。") % {"left": shown}


def refunded_today(by: User) -> int:
    """Return the sum of a person's refunds of this Japanese day, in the minor unit: made, open, or waiting."""
    morning = timezone.localtime(clock.now()).replace(hour=0, minute=0, second=0, microsecond=0)
    counted = Refund.objects.filter(requested_by=by, requested_at__gte=morning).filter(
        state__in=[*Refund.RESERVING, State.SUCCEEDED]
    )
    return counted.aggregate(total=Sum("amount"))["total"] or 0
