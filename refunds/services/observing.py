"""Book what Smartpay shows of a refund, into the mirror and the ledger, no matter who read it."""

import uuid
from collections.abc import Iterable
from datetime import datetime

from django.db import transaction

from dashboard.models import User
from refunds import audit, clock, mirror, smartpay
from refunds.database_values import storable
from refunds.models import Evidence, Payment, Refund, SmartpayRefund
from refunds.services.states import (
    State,
    alarm,
    cancel,
    locked,
    locked_payment,
    retried,
    settle,
    to_review,
)


@retried
def observe_refund(
    shown: smartpay.Refund, *, read_at: datetime, kind: str = Evidence.Kind.READ
) -> SmartpayRefund:
    """Book a refund that Smartpay showed into the mirror, and into the ledger if it is ours; return the mirror's row.

    All reads come through here: those of a payment, for a webhook and in a scan. The only exception is the answer to an
    attempt of our own, which sending.book() books into the ledger first.
    """
    if lost := mirror.lost_refund(shown):
        mirror.record_refund(shown, read_at=read_at)  # the database allows _recover() only with this row
        _recover(lost, shown)
    # Skip a refund that is already booked unchanged: booking it again would open a new review round and void the
    # approvers' decisions. If it changed, write mirror and ledger in one transaction; otherwise a crash in between
    # leaves the ledger never told.
    if mirror.is_news(shown) and (refund_id := mirror.ledger_id_of(shown)):
        with locked(refund_id) as refund:
            mirrored = mirror.record_refund(shown, read_at=read_at)
            book_evidence(refund, shown, kind=kind, now=clock.now())
            mirror.count_external([refund.payment_id])
    else:
        mirrored = mirror.record_refund(shown, read_at=read_at)
    if mirrored.ours_id is None:
        _cancel_what_no_longer_fits(shown.payment)
    return mirrored


def _recover(refund_id: uuid.UUID, shown: smartpay.Refund) -> None:
    """Write a row again that the ledger has lost, as after a restore to an older backup, from what Smartpay shows.

    Who asked for the refund is lost too. The row begins as succeeded, so nothing is ever sent for it again.
    """
    person, _ = User.objects.get_or_create(
        username="recovered", defaults={"name": "データベースの復元", "is_active": False}
    )
    reason, description = storable(shown.reason)[:32], storable(shown.description)
    with transaction.atomic(durable=True):
        payment = locked_payment(shown.payment)
        refund = Refund(
            id=refund_id,
            payment=payment,
            amount=shown.amount,
            currency=shown.currency,
            reason=reason,
            description=description[:80],
            refundable_before=payment.refundable(),
            external_before=payment.external,
            body=smartpay.refund_body(
                payment_id=shown.payment,
                amount=shown.amount,
                currency=shown.currency,
                reason=reason,
                description=description,
                key=str(refund_id),
            ),
            state=State.SUCCEEDED,
            smartpay_id=shown.id,
            requested_by=person,
            requested_at=shown.created_at,
            settled_at=shown.created_at,
            recovered=True,
        )
        refund.save(force_insert=True)
        audit.record(None, "refund.recovered", refund, smartpay_id=shown.id, amount=refund.amount)
        _cancel_never_sent(payment)
        # Before the commit: if the process dies here, the next read raises the alarm again.
        alarm("refund.recovered", refund, smartpay_id=shown.id)


def read_order(order_id: str, *, client: smartpay.Client) -> None:
    """Read an order and book the refunds of its payments that are new to us. Raises: smartpay.SmartpayError."""
    read_at = clock.now()
    _observe_all(mirror.refresh_order(order_id, client), read_at)


def read_payment(payment_id: str, *, client: smartpay.Client) -> bool:
    """Read a payment and book the refunds of it that are new to us; return whether the read was complete.

    What complete means: see mirror.refresh_payment(). Raises: smartpay.SmartpayError.
    """
    read_at = clock.now()
    complete, refunds = mirror.refresh_payment(payment_id, client)
    _observe_all(refunds, read_at)
    return complete


def _observe_all(refunds: Iterable[smartpay.Refund], read_at: datetime) -> None:
    for shown in refunds:
        observe_refund(shown, read_at=read_at)


def book_evidence(refund: Refund, shown: smartpay.Refund, *, kind: str, now: datetime) -> None:
    """Settle a locked refund by what Smartpay shows of it: evidence of success wins over every state."""
    before = refund.state
    known = refund.smartpay_id == shown.id
    failed = shown.status == SmartpayRefund.Status.FAILED
    never_sent = refund.state in Refund.NEVER_SENT
    denied = refund.state in (State.REJECTED, State.NOT_EXECUTED)
    if is_strange := shown.status not in ("", *SmartpayRefund.Status.values):
        alarm("refund.status_unknown", refund, smartpay_id=shown.id)
        if not never_sent and not denied:
            return  # neither succeeded nor failed: the worker reads it again
    if known and refund.state == (State.REJECTED if failed else State.SUCCEEDED):
        return
    matches = (shown.payment, shown.amount, shown.currency) == (
        refund.payment_id,
        refund.amount,
        refund.currency,
    )
    detail = Evidence.Detail.FAILED if failed else "" if matches else Evidence.Detail.DIFFERS
    Evidence.objects.create(refund=refund, kind=kind, at=now, found=True, smartpay_id=shown.id, detail=detail)
    if never_sent and shown.payment != refund.payment_id:
        alarm("refund.named_elsewhere", refund, smartpay_id=shown.id)
    else:
        if never_sent:
            # It was sent before a restore that made the database forget it. It must never be sent again.
            to_review(refund, f"{shown.id} was sent and forgotten")
            refund.save()  # first to review: the database's guards let no waiting row settle in one step
        if not is_strange:
            _judge(refund, shown, now, matches=matches)
        elif denied:
            to_review(refund, f"{shown.id} exists, with a status of its own")
        refund.save()
    if denied and refund.state == State.REVIEW:
        _cancel_never_sent(refund.payment)
    action = f"refund.{refund.state}" if refund.state != before else "refund.observed"
    audit.record(None, action, refund, smartpay_id=shown.id, evidence=kind)


def _judge(refund: Refund, shown: smartpay.Refund, now: datetime, *, matches: bool) -> None:
    """Move a refund to the state that Smartpay's refund proves; raise an alarm where there should be no refund."""
    known = refund.smartpay_id == shown.id
    failed = shown.status == SmartpayRefund.Status.FAILED
    if refund.smartpay_id and not known:
        alarm("refund.two_executions", refund, smartpay_id=shown.id)
        if refund.state in (State.REJECTED, State.NOT_EXECUTED):
            to_review(refund, f"second refund {shown.id}")
    elif refund.state in Refund.OPEN:
        if not matches or Refund.objects.filter(smartpay_id=shown.id).exclude(pk=refund.pk).exists():
            to_review(refund, f"{shown.id} differs")
        elif failed and refund.state in Refund.IN_FLIGHT:
            refund.smartpay_id = shown.id
            refund.error_code = "status.failed"
            settle(refund, State.REJECTED, now)
        elif not failed:
            others = refund.seen.exclude(pk=shown.id).counting()
            if refund.state == State.REVIEW and others.exists():  # the other one made it a case
                alarm("refund.two_executions", refund, smartpay_id=shown.id)
            refund.smartpay_id = shown.id
            refund.error_code = refund.error_message = ""
            settle(refund, State.SUCCEEDED, now)
    elif failed:
        if known:
            alarm("refund.taken_back", refund, smartpay_id=shown.id)
    elif refund.state in (State.REJECTED, State.NOT_EXECUTED):
        to_review(refund, f"{shown.id} exists")
    else:
        alarm("refund.executed_unasked", refund, smartpay_id=shown.id)


def _cancel_never_sent(payment: Payment) -> None:
    """Cancel the payment's refunds that were never sent, after one that was lost or ended without turned out to exist.

    They may be the same refund, asked for once more.
    """
    for waiting in payment.refunds.never_sent().select_for_update():
        waiting.payment = payment
        cancel(waiting, Refund.Cancelled.BALANCE, by=None)
        alarm("refund.no_longer_fits", waiting)


def _cancel_what_no_longer_fits(payment_id: str) -> None:
    """Cancel refunds that were never sent and no longer fit after one made elsewhere, the newest first."""
    with transaction.atomic():
        payment = Payment.objects.select_for_update().filter(pk=payment_id).first()
        if payment is None:
            return
        waiting = payment.refunds.never_sent().order_by("-requested_at")
        for refund in waiting.select_for_update():
            payment.refresh_from_db()
            if not payment.is_overdrawn():
                break
            cancel(refund, Refund.Cancelled.BALANCE, by=None)
            alarm("refund.no_longer_fits", refund)
