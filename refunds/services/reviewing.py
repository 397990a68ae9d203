"""要調査: Smartpay contradicts the ledger about a refund, and two people decide by evidence what became of it.

They may decide that it is a certain refund of Smartpay's, which is read in that very call; or that it was not executed.
The second needs the proof of two complete reads, or that every refund which Smartpay shows for it has failed.
"""

import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from django.core.exceptions import PermissionDenied
from django.db.models import Q
from django.utils.translation import gettext as _

from dashboard.models import User
from refunds import audit, clock, mirror, roles, scanning, smartpay
from refunds.models import Attempt, Evidence, Refund, ReviewDecision, SmartpayRefund
from refunds.services import absence, observing
from refunds.services.errors import NoReason, NotProved, NotWaiting
from refunds.services.states import (
    ABSENT_TWICE_WITHIN,
    State,
    absence_counts_from,
    locked,
    retried,
    settle,
)
from refunds.wording import minute, money

Verdict = ReviewDecision.Verdict


@dataclass(frozen=True, slots=True)
class Candidate:
    """A refund that Smartpay shows and that this row may be."""

    mirrored: SmartpayRefund
    is_named: bool  # it carries this row's reference
    why_not: str  # why people may not decide that it is this row, in words; "" if they may


@dataclass(frozen=True, slots=True)
class Case:
    """What two people decide a refund by."""

    refund: Refund
    why: list[str]  # what made it a case, in words
    candidates: list[Candidate]
    decisions: list[ReviewDecision]  # each person's latest of this round
    why_not_absent: (
        str  # why people may not decide yet that it was not executed, and from when; "" if they may
    )


def review_case(refund: Refund, *, complete_at: datetime | None = None) -> Case:
    """Return what is known of a case. `complete_at`: what look_again() returned; None if the read failed."""
    candidates = _candidates(refund)
    return Case(
        refund=refund,
        why=_why(refund, candidates),
        candidates=candidates,
        decisions=list(_last_words(refund).values()),
        why_not_absent=_why_not_absent(refund, complete_at),
    )


# --- Looking ------------------------------------------------------------------------------------------------


def look_again(refund_id: uuid.UUID, *, client: smartpay.Client) -> datetime | None:
    """Read the payment of a case at Smartpay now, and book what that shows; it may settle the case.

    Returns when the complete read began that would have shown the refund; None if there was none yet. A payment that
    does not list its refunds waits for a scan of all of them: see Note [Complete reads] in absence.py.

    Raises: smartpay.SmartpayError.
    """
    refund = Refund.objects.get(pk=refund_id)
    read_at = clock.now()
    complete = observing.read_payment(refund.payment_id, client=client)
    for smartpay_id in refund.seen.values_list("pk", flat=True):
        _read_again(smartpay_id, client=client)
    complete_at = read_at if complete else scanning.scanned_at()
    kind = Evidence.Kind.READ if complete else Evidence.Kind.LIST
    absence.book_absence_of_case(refund_id, kind=kind, complete_at=complete_at)
    return complete_at


def _read_again(smartpay_id: str, *, client: smartpay.Client) -> smartpay.Refund | None:
    """Read one refund, book it and return it; None if Smartpay has no refund of this id."""
    read_at = clock.now()
    try:
        shown = client.get_refund(smartpay_id)
    except smartpay.NotFound:
        return None
    observing.observe_refund(shown, read_at=read_at)
    return shown


def _candidates(refund: Refund) -> list[Candidate]:
    """Return Smartpay's refunds that may be this row, oldest first.

    They are those of its payment that are no other row's, and those of another payment that carry its reference.
    """
    found = refund.evidence.filter(found=True).values("smartpay_id")
    rows = SmartpayRefund.objects.filter(Q(payment=refund.payment_id) | Q(pk__in=found))
    others = Refund.objects.filter(payment=refund.payment_id, smartpay_id__isnull=False).exclude(pk=refund.pk)
    rows = rows.filter(Q(ours=None) | Q(ours=refund)).exclude(pk__in=others.values("smartpay_id"))
    by_id = {row.pk: row for row in rows.filter(pk__in=found) | rows.filter(ours=refund)}
    since = (refund.first_sent_at or refund.requested_at) - absence.COULD_BE_OURS
    by_id |= {row.pk: row for row in rows.filter(ours=None, created_at__gte=since)}
    return [
        Candidate(row, is_named=_names(row, refund), why_not=_why_not(refund, row))
        for row in sorted(by_id.values(), key=lambda row: (row.created_at, row.pk))
    ]


def _names(row: SmartpayRefund, refund: Refund) -> bool:
    return str(refund.pk) in (row.reference, row.metadata.get("refund_dashboard_id"))


def _why_not(refund: Refund, row: SmartpayRefund) -> str:
    """Return why a refund that Smartpay shows can't be this row, in words; "" if people may decide that it is."""
    if row.payment_id != refund.payment_id:
        return _("別の支払いの返金です。")
    if row.currency != refund.currency:
        return _("通貨が異なります。")
    others = Refund.objects.filter(smartpay_id=row.pk).exclude(pk=refund.pk)
    if row.ours_id not in (None, refund.pk) or others.exists():
        return _("このツールの別の返金です。")
    if row.status == SmartpayRefund.Status.FAILED:
        return _("Smartpay は返金不可と示しています。")
    if row.status not in ("", SmartpayRefund.Status.SUCCEEDED):
        return _("Smartpay は返金済みとも返金不可とも示していません。")
    sent_at = refund.first_sent_at or refund.requested_at
    if row.ours_id is None and row.created_at < sent_at - absence.COULD_BE_OURS:
        return _("この返金を送るより前の返金です。")
    return ""


def _why_not_absent(refund: Refund, complete_at: datetime | None) -> str:
    """Return why people may not decide yet that it was not executed, in words; "" if they may.

    See Note [Proof of absence] in states.py.
    """
    mirrored = list(refund.seen.filter(payment=refund.payment_id))
    if any(row.counts for row in mirrored):
        return _("Smartpay にこの返金の受付番号がある返金が示されているため、返金不成立とは判定できません。")
    if mirrored:
        return ""  # every refund that Smartpay shows for it has failed
    counts_from = absence_counts_from(refund)
    if refund.absent_since and complete_at and complete_at >= counts_from:
        return ""
    provable_from = counts_from if refund.absent_since else counts_from + ABSENT_TWICE_WITHIN
    if clock.now() < provable_from:
        return _(
            "返金されていないことは、まだ確かめられていません。返金不成立と判定できるのは、早くて %(moment)s からです。"
        ) % {"moment": minute(provable_from)}
    return _(
        "返金されていないことを確かめるため、Smartpay の読み取りを待っています。"
        "しばらくしてから、この画面を開き直してください。"
    )


def _why(refund: Refund, candidates: Iterable[Candidate]) -> list[str]:
    """Return what made it a case, in words. They follow from the evidence, not from the alarm that was logged then."""
    candidates, found = list(candidates), refund.evidence.filter(found=True)
    named = [candidate for candidate in candidates if candidate.is_named and candidate.mirrored.counts]
    same_amount = [
        each for each in candidates if each.mirrored.amount == refund.amount and each.mirrored.counts
    ]
    reasons = {
        _("送信への応答が、申請した内容と食い違っていました。"): refund.attempts.filter(
            outcome=Attempt.Outcome.CONTRADICTION
        ).exists(),
        _what_differs(refund, named): found.filter(detail=Evidence.Detail.DIFFERS).exists(),
        _("この返金の受付番号がある返金が、Smartpay に二つ以上あります。"): len(named) > 1,
        _("いったん確定したあとに、Smartpay が返金を示しました。"): refund.settled_at is not None,
        _("送信した記録がないのに、Smartpay が返金を示しました。"): refund.first_sent_at is None,
        _("この返金の受付番号がある返金はありませんが、受付番号のない同じ金額の返金があります。"): bool(
            refund.absent_since and not named and same_amount
        ),
    }
    told = [words for words, is_so in reasons.items() if is_so]
    return told or [_("送信したあと、Smartpay を長いあいだ読み取れませんでした。")]


def _what_differs(refund: Refund, named: list[Candidate]) -> str:
    """Return in words how the one refund with this row's reference differs: with both amounts, if only they do."""
    row = named[0].mirrored if len(named) == 1 else None
    only_amount = row and (row.payment_id, row.currency) == (refund.payment_id, refund.currency)
    if row and only_amount and row.amount != refund.amount:
        return _("Smartpay が示す返金は、金額が申請と異なります(申請 %(asked)s、Smartpay %(shown)s)。") % {
            "asked": money(refund.amount, refund.currency),
            "shown": money(row.amount, row.currency),
        }
    return _("Smartpay が示す返金は、支払い・金額・通貨のいずれかが申請と異なります。")


# --- Deciding -----------------------------------------------------------------------------------------------


def decide_case(
    refund_id: uuid.UUID,
    *,
    verdict: str,
    smartpay_id: str = "",
    note: str,
    by: User,
    client: smartpay.Client,
    at_round: int | None = None,
) -> Refund:
    """Record a person's decision about a case, and settle it if another approver decided the same. Return the refund.

    Args:
        verdict: "succeeded", with the `smartpay_id` of the refund that it is; or "not_executed".
        note: the person's reason; required.
        at_round: the round (Refund.reviews) whose evidence the person saw; None skips the comparison.

    Raises: PermissionDenied (also for the person's own refund), NoReason, NotWaiting (it is settled, perhaps by what
        was just read), NotProved (it tells when it may be proved), smartpay.SmartpayError. Then nothing was decided.
    """
    _check_may(Refund.objects.get(pk=refund_id), by)
    if not note:
        raise NoReason(_("判定の理由を入力してください。"))
    complete_at, shown, read_at = look_again(refund_id, client=client), None, clock.now()
    if verdict == Verdict.SUCCEEDED:
        if smartpay.id_kind(smartpay_id) != ("refund", client.mode):
            raise NotProved(_("Smartpay の返金を選んでください。"))
        shown = _read_again(smartpay_id, client=client)
        if shown is None:
            raise NotProved(_("Smartpay にこの返金はありません。"))
    return _decide(
        refund_id,
        verdict=Verdict(verdict),
        shown=shown,
        read_at=read_at,
        complete_at=complete_at,
        note=note,
        by=by,
        at_round=at_round,
    )


@retried
def _decide(
    refund_id: uuid.UUID,
    *,
    verdict: Verdict,
    shown: smartpay.Refund | None,
    read_at: datetime,
    complete_at: datetime | None,
    note: str,
    by: User,
    at_round: int | None,
) -> Refund:
    with locked(refund_id) as refund:
        _check_may(refund, by)
        if refund.state != State.REVIEW:
            raise NotWaiting(_("この返金はすでに確定しています。判定は記録していません。"))
        if at_round not in (None, refund.reviews):
            raise NotProved(
                _("Smartpay が示す内容が変わりました。新しい内容を確かめて、もう一度判定してください。")
            )
        why_not = (
            _why_not(refund, SmartpayRefund.objects.get(pk=shown.id))
            if shown
            else _why_not_absent(refund, complete_at)
        )
        if why_not:
            raise NotProved(why_not)
        smartpay_id = shown.id if shown else ""
        decision = ReviewDecision.objects.create(
            refund=refund,
            round=refund.reviews,
            person=by,
            verdict=verdict,
            smartpay_id=smartpay_id,
            note=note,
            at=clock.now(),
        )
        audit.record(
            by, "refund.judged", refund, verdict=verdict, smartpay_id=smartpay_id, round=decision.round
        )
        if _another_agrees(refund, decision):
            _settle(refund, decision, shown, read_at=read_at)
    return refund


def _settle(
    refund: Refund, decision: ReviewDecision, shown: smartpay.Refund | None, *, read_at: datetime
) -> None:
    """Settle the refund as two people decided.

    The mirror is told in the same transaction whose refund it is. So a crash leaves no refund counted twice, as ours
    and as made elsewhere, and none counted nowhere.
    """
    refund.error_code = refund.error_message = ""
    if shown is not None:
        refund.smartpay_id = shown.id
        if not refund.evidence.filter(found=True, smartpay_id=shown.id).exists():
            differs = shown.amount != refund.amount
            Evidence.objects.create(
                refund=refund,
                kind=Evidence.Kind.READ,
                at=decision.at,
                found=True,
                smartpay_id=shown.id,
                detail=Evidence.Detail.DIFFERS if differs else "",
            )
    settle(refund, State(decision.verdict), decision.at)
    refund.save()
    if shown is not None:
        mirror.record_refund(shown, read_at=read_at)
    audit.record(
        decision.person, f"refund.{refund.state}", refund, smartpay_id=decision.smartpay_id, by_review=True
    )


def _check_may(refund: Refund, by: User) -> None:
    roles.require(by, roles.APPROVE_REFUND)
    if refund.requested_by_id == by.pk:
        raise PermissionDenied


def _last_words(refund: Refund) -> dict[int, ReviewDecision]:
    """Return each person's latest decision of this round, by the person's id."""
    said = refund.review_decisions.filter(round=refund.reviews).select_related("person").order_by("id")
    return {decision.person_id: decision for decision in said}


def _another_agrees(refund: Refund, decision: ReviewDecision) -> bool:
    return any(
        (other.verdict, other.smartpay_id) == (decision.verdict, decision.smartpay_id)
        and other.person_id != decision.person_id
        and roles.may(other.person, roles.APPROVE_REFUND)
        for other in _last_words(refund).values()
    )
