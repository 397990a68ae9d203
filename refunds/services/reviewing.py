"""要調査: what Smartpay shows contradicts, and two people decide what became of a refund, by evidence alone."""

import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from django.core.exceptions import PermissionDenied
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard.models import User
from refunds import audit, clock, mirror, roles, smartpay
from refunds.models import Evidence, Refund, ReviewDecision, SmartpayRefund
from refunds.services import settling
from refunds.services.errors import NoReason, NotProved, NotWaiting
from refunds.services.states import State, absence_counts_from, locked, retried, settle

Verdict = ReviewDecision.Verdict


@dataclass(frozen=True, slots=True)
class Case:
    """What two people decide by."""

    refund: Refund
    shown: list[SmartpayRefund]  # what Smartpay has of this payment and nobody else's row is
    decisions: list[ReviewDecision]  # of this round, the last word of each person
    provable_from: datetime | None  # from when a reading proves that there is none; None: it can't be proved


def review_case(refund: Refund) -> Case:
    """Return what is known of a case, as last read."""
    shown = SmartpayRefund.objects.filter(payment=refund.payment_id).order_by("created_at", "id")
    booked = Refund.objects.filter(payment=refund.payment_id, state=State.SUCCEEDED).values("smartpay_id")
    last_words = {decision.person_id: decision for decision in _decisions(refund)}
    return Case(
        refund=refund,
        shown=list(shown.exclude(pk__in=booked)),
        decisions=list(last_words.values()),
        provable_from=absence_counts_from(refund) if refund.last_sent_at else None,
    )


def look_again(refund_id: uuid.UUID, *, client: smartpay.Client) -> bool:
    """Read the payment of a case at Smartpay now, and write down what that shows; it may settle the case.

    Returns whether it proves that there is no such refund. Where the payment lists no refunds, the next full scan is
    asked for, and counts when people look again.

    Raises: smartpay.SmartpayError.
    """
    refund = Refund.objects.get(pk=refund_id)
    read_at = clock.now()
    if settling.read_payment(refund.payment_id, client=client):
        return _note_absence(refund_id, kind=Evidence.Kind.READ, complete_at=read_at)
    return _note_absence(refund_id, kind=Evidence.Kind.LIST, complete_at=mirror.scanned_at())


@retried
def _note_absence(refund_id: uuid.UUID, *, kind: str, complete_at: datetime | None) -> bool:
    """Write down that a complete read, begun at `complete_at`, did not show the refund; return whether that proves it.

    See Note [Proof of absence] in states.py.
    """
    with locked(refund_id) as refund:
        if refund.state != State.REVIEW or refund.last_sent_at is None or _shown_as_ours(refund):
            return False
        counts = complete_at is not None and complete_at >= absence_counts_from(refund)
        is_proved = counts and refund.absent_since is not None
        waits_for_scan = kind == Evidence.Kind.LIST and not is_proved
        Evidence.objects.create(
            refund=refund,
            kind=kind,
            at=clock.now(),
            found=False,
            detail=Evidence.Detail.NO_LIST if waits_for_scan else "",
        )
        if counts and not is_proved:
            refund.absent_since = complete_at
            refund.save()
    return is_proved


def decide_case(
    refund_id: uuid.UUID,
    *,
    verdict: str,
    smartpay_id: str = "",
    note: str,
    by: User,
    client: smartpay.Client,
) -> Refund:
    """Write down what a person says of a case; settle it where another one said the same. Return the refund.

    Args:
        verdict: "succeeded", with the `smartpay_id` of the refund that it is, read at Smartpay in this very call; or
            "not_executed", which two complete reads, a quarter of an hour apart, have to have proved.
        note: why; it is asked for.

    Raises: PermissionDenied (one's own, too), NoReason, NotWaiting, NotProved, smartpay.SmartpayError.
    """
    if not note:
        raise NoReason(_("判定の理由を入力してください。"))
    is_absent = look_again(refund_id, client=client)
    if verdict == Verdict.NOT_EXECUTED:
        return _decide(
            refund_id,
            Verdict.NOT_EXECUTED,
            "",
            note,
            by,
            check=lambda refund: _check_absent(refund, is_absent),
        )
    read_at = clock.now()
    try:
        seen = client.get_refund(smartpay_id)
    except smartpay.NotFound as error:
        raise NotProved(_("Smartpay にこの返金はありません。")) from error
    settling.observe_refund(seen, read_at=read_at)
    refund = _decide(
        refund_id, Verdict.SUCCEEDED, seen.id, note, by, check=lambda refund: _check_shown(refund, seen)
    )
    if refund.state == State.SUCCEEDED:
        # Now that the ledger says whose it is, the mirror counts it as ours, and any other one as made elsewhere.
        retried(mirror.record_refund)(seen, read_at=read_at)
    return refund


@retried
def _decide(
    refund_id: uuid.UUID,
    verdict: Verdict,
    smartpay_id: str,
    note: str,
    by: User,
    *,
    check: Callable[[Refund], None],
) -> Refund:
    with locked(refund_id) as refund:
        if not by.is_active or not by.has_perm(roles.APPROVE_REFUND) or refund.requested_by_id == by.pk:
            raise PermissionDenied
        if refund.state != State.REVIEW:
            raise NotWaiting(_("この返金はすでに確定しています。"))
        check(refund)
        others = {
            each.person_id: (each.verdict, each.smartpay_id)
            for each in _decisions(refund)
            if each.person_id != by.pk
        }
        ReviewDecision.objects.create(
            refund=refund,
            round=refund.reviews,
            person=by,
            verdict=verdict,
            smartpay_id=smartpay_id,
            note=note,
            at=clock.now(),
        )
        audit.record(by, "refund.judged", refund, verdict=verdict, smartpay_id=smartpay_id)
        if (verdict, smartpay_id) in others.values():
            if smartpay_id:
                refund.smartpay_id = smartpay_id
            refund.error_code = refund.error_message = ""
            settle(refund, State(verdict), clock.now())
            refund.save()
            audit.record(by, f"refund.{refund.state}", refund, smartpay_id=smartpay_id, by_review=True)
    return refund


def _decisions(refund: Refund) -> list[ReviewDecision]:
    return list(refund.review_decisions.filter(round=refund.reviews).select_related("person").order_by("id"))


def _shown_as_ours(refund: Refund) -> bool:
    """Whether Smartpay shows a refund of this payment, not failed, that names this row."""
    return refund.seen.filter(payment=refund.payment_id).exclude(status=SmartpayRefund.Status.FAILED).exists()


def _check_shown(refund: Refund, seen: smartpay.Refund) -> None:
    fits = (seen.payment, seen.currency) == (refund.payment_id, refund.currency)
    another = Refund.objects.filter(smartpay_id=seen.id).exclude(pk=refund.pk)
    if not fits or seen.status not in ("", SmartpayRefund.Status.SUCCEEDED) or another.exists():
        raise NotProved(_("この Smartpay の返金は、この返金ではありません。"))


def _check_absent(refund: Refund, is_absent: bool) -> None:
    if _shown_as_ours(refund) or refund.last_sent_at is None:
        raise NotProved(_("Smartpay にこの返金があるため、返金不成立にはできません。"))
    if not is_absent:
        moment = timezone.localtime(absence_counts_from(refund)).strftime("%Y/%m/%d %H:%M")
        raise NotProved(
            _("返金されていないことは、まだ確かめられていません。%(moment)s 以降にもう一度判定してください。")
            % {"moment": moment}
        )
