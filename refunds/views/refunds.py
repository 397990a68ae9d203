"""Refunds: the ledger, and the page of a refund, where it is followed, withdrawn, approved or rejected."""

import uuid
from collections.abc import Iterable
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.urls import reverse
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from django.views.decorators.http import require_safe

from dashboard import limits, opened
from dashboard.parked_forms import posted_from
from refunds import audit, paging, roles, services, waiting
from refunds.forms import DecisionForm, RefundFilterForm
from refunds.models import Control, Refund, ReviewDecision, SmartpayRefund
from refunds.views.common import (
    longest_wait,
    may_see,
    parked_fields,
    person,
    refused,
    remember_way_back,
    see_other,
    source_of_figures,
    viewed,
    whole_order,
)
from refunds.views.orders import timeline_beside
from refunds.views.similar import similar_rows
from refunds.wording import money

RENEW_SECONDS = {
    Refund.State.AWAITING_APPROVAL: 15,  # not for a person who may be typing a decision
    Refund.State.QUEUED: 3,
    Refund.State.SENDING: 3,
    Refund.State.UNKNOWN: 3,
    Refund.State.REVIEW: 15,
}

# What a state means for the money, and what happens next. Of a cancelled refund, its cause says the latter.
MEANINGS: dict[str, tuple[Any, Any]] = {
    Refund.State.AWAITING_APPROVAL: (
        gettext_lazy("もう一人の承認を待っています。まだ Smartpay に送られていません。"),
        gettext_lazy(
            "この金額は、すでに返金可能額から差し引かれています。却下されるか期限が切れると戻ります。"
        ),
    ),
    Refund.State.QUEUED: (
        gettext_lazy("受け付けました。まだ Smartpay に送られていません。"),
        gettext_lazy("順番が来ると自動で送信します。もう一度返金しないでください。"),
    ),
    Refund.State.SENDING: (
        gettext_lazy("Smartpay に送信しています。返金されたかどうかはまだ分かりません。"),
        gettext_lazy("応答を待っています。もう一度返金しないでください。"),
    ),
    Refund.State.UNKNOWN: (
        gettext_lazy("Smartpay からはっきりした応答がありません。返金されたかどうかはまだ分かりません。"),
        gettext_lazy("自動で確認しています。もう一度返金しないでください。"),
    ),
    Refund.State.REVIEW: (
        gettext_lazy("Smartpay の表示と記録が食い違っています。返金されたかどうかは確定していません。"),
        gettext_lazy(
            "承認者二人が判定するまで、この支払いの返金はできません。もう一度返金しないでください。"
        ),
    ),
    Refund.State.SUCCEEDED: (
        gettext_lazy("Smartpay で返金されたことを確認しました。"),
        gettext_lazy("お客様には Smartpay からメールが届きます。"),
    ),
    Refund.State.REJECTED: (
        gettext_lazy("Smartpay が返金を断りました。お金は動いていません。"),
        gettext_lazy("今回の返金は成立しませんでした。内容を確かめて、必要なら注文からやり直せます。"),
    ),
    Refund.State.NOT_EXECUTED: (
        gettext_lazy("返金は行われていないことを確認しました。お金は動いていません。"),
        gettext_lazy("今回の返金は成立しませんでした。必要なら注文からやり直せます。"),
    ),
    Refund.State.CANCELLED: (
        gettext_lazy("この返金は送信されませんでした。お金は動いていません。"),
        "",  # see WHY_CANCELLED
    ),
}
WHY_CANCELLED: dict[str, Any] = {
    Refund.Cancelled.WITHDRAWN: gettext_lazy("申請した人が取り下げました。"),
    Refund.Cancelled.REFUSED: gettext_lazy("承認者が却下しました。"),
    Refund.Cancelled.EXPIRED: gettext_lazy(
        "承認されないまま期限が過ぎました。必要なら、あらためて申請してください。"
    ),
    Refund.Cancelled.BALANCE: gettext_lazy(
        "送信の前に返金可能額が変わりました。残額を確かめて、必要なら申請し直してください。"
    ),
    Refund.Cancelled.ENTITLEMENT: gettext_lazy(
        "送信の前に、申請した人の権限がなくなりました。必要なら別の担当者が申請し直してください。"
    ),
    "": "",
}


@limits.limited(limits.LISTS)
@require_safe
@may_see
def refund_list(request: HttpRequest) -> HttpResponse:
    """返金一覧: the ledger, newest first, filtered by state, person, period and amount."""
    form = RefundFilterForm(request.GET)
    refunds = form.refunds().select_related("payment__order", "requested_by")
    rows, newer, older = paging.newest_first(refunds, "requested_at", request.GET.get("page", ""))
    audit.record(request.user, "refunds.listed", None, shown=[str(refund.pk) for refund in rows])
    remember_way_back(request, request.get_full_path())
    context = {
        "refunds": rows,
        "filters": form,
        "export_url": f"{reverse('refunds:refund_export')}?{paging.filters(request.GET)}",
        "newer_url": paging.url(request.GET, newer),
        "older_url": paging.url(request.GET, older),
    }
    return render(request, "refunds/refund_list.html", context)


@limits.limited(limits.ORDERS)
@opened.renews_itself
@require_safe
@may_see
def refund_detail(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    """The page of a refund. Loading it again never sends anything."""
    return render_refund(request, refund_of(refund_id), DecisionForm(initial=parked_fields(request)))


def refund_page(request: HttpRequest, refund_id: uuid.UUID) -> str:
    return reverse("refunds:refund", args=[refund_id])


def refund_of(refund_id: uuid.UUID) -> Refund:
    related = Refund.objects.select_related("payment__order", "requested_by", "decided_by")
    return get_object_or_404(related, pk=refund_id)


def render_refund(
    request: HttpRequest, refund: Refund, decision: DecisionForm, status: int = 200
) -> HttpResponse:
    viewed(request, "refund.viewed", refund)
    undecided = refund.state == Refund.State.AWAITING_APPROVAL
    mine = refund.requested_by_id == request.user.pk
    order = refund.payment.order
    is_approver = request.user.has_perm(roles.APPROVE_REFUND)
    can_decide = undecided and not mine and is_approver
    similar = services.similar_refunds(refund.payment, refund.amount, but=refund.pk) if can_decide else []
    explanation, what_now = _meaning(refund)
    if can_decide:
        explanation = _("あなたの承認を待っています。まだ Smartpay に送られていません。")
    held = _why_held(refund)
    held_unsent = bool(held) and refund.state == Refund.State.QUEUED
    if held_unsent:
        what_now = _("もう一度返金しないでください。")
    left_after = refund.refundable_before - refund.amount
    rest = whole_order(refund.payment, left_after if undecided else refund.payment.refundable())
    next_label, next_url = _next_act(request, refund, left_of_others=rest["left_of_others"])
    back = request.session.get("way_back") or reverse("refunds:order", args=[order.order_id])
    lists = {
        reverse("refunds:approvals"): _("承認に戻る"),
        reverse("refunds:refund_list"): _("返金一覧に戻る"),
    }
    context = {
        "refund": refund,
        "order": order,
        "back_url": back,
        "back_label": lists.get(back.partition("?")[0], _("注文に戻る")),
        "next_waiting": waiting.refunds(person(request), Refund.State.AWAITING_APPROVAL).first()
        if is_approver and refund.decided_by_id == request.user.pk
        else None,
        "attempts": refund.attempts.all(),
        "evidence": refund.evidence.order_by("-at")[: paging.PAGE],
        "explanation": explanation,
        "what_now": what_now,
        "held": held,
        "shows_next_check": not undecided and not held_unsent,  # nothing is looked up for these
        "judged": with_seen(refund.review_decisions.select_related("person").order_by("id")),
        "can_judge": refund.state == Refund.State.REVIEW and not why_not_my_case(request, refund),
        "other_amount": _other_amount(refund),
        "renew_seconds": 0 if can_decide else RENEW_SECONDS.get(Refund.State(refund.state), 0),
        "can_withdraw": mine and (undecided or refund.state == Refund.State.QUEUED),
        "can_decide": can_decide,
        "similar": similar_rows(similar, order),
        "decision": decision,
        "left_after": left_after,
        **source_of_figures(order.payments.all() if can_decide else []),
        **rest,
        "next_label": next_label,
        "next_url": next_url,
        "longest_wait": longest_wait(),
        "timeline": timeline_beside(refund) if can_decide else [],
        "approve_label": _("%(amount)s の返金を承認する") % {"amount": money(refund.amount, refund.currency)},
    }
    return render(request, "refunds/refund_detail.html", context, status=status)


def _next_act(request: HttpRequest, refund: Refund, *, left_of_others: int) -> tuple[str, str]:
    """Return what to do after a refund that has ended, and its address; ("", "") if nothing follows."""
    order_id = refund.payment.order.order_id
    if refund.state in (Refund.State.REJECTED, Refund.State.NOT_EXECUTED):
        return _("注文を開く"), reverse("refunds:order", args=[order_id])
    if not request.user.has_perm(roles.REQUEST_REFUND):
        return "", ""
    form = reverse("refunds:refund_form", args=[order_id])
    if refund.state == Refund.State.SUCCEEDED and left_of_others:
        return _("残りの支払いを返金する"), form
    asks_again = (Refund.Cancelled.REFUSED, Refund.Cancelled.EXPIRED, Refund.Cancelled.BALANCE)
    mine = refund.requested_by_id == request.user.pk
    if refund.cancelled_because in asks_again and mine and not _is_shown_all_the_same(refund):
        return _("内容を直して申請し直す"), form
    return "", ""


def _is_shown_all_the_same(refund: Refund) -> bool:
    """Whether Smartpay shows the refund although it was cancelled here."""
    return refund.seen.counting().exists()


def _why_held(refund: Refund) -> str:
    """Say why a refund that could be sent is not sent now; "" if nothing holds it."""
    if refund.state not in (Refund.State.QUEUED, Refund.State.UNKNOWN):
        return ""
    if not Control.sends_are_on():
        if refund.state == Refund.State.QUEUED:
            return _("返金の送信が停止されているため、いまは送信されません。再開されると自動で送信します。")
        return _(  # a reading may settle it first, and then nothing is sent
            "返金の送信が停止されているため、いまは送信されません。再開されると、必要なら自動で送信します。"
        )
    if services.smartpay_is_silent():
        return _(
            "Smartpay から応答がない状態が続いているため、返金の送信を控えています。"
            "応答が戻ると、必要なら自動で送信します。"
        )
    if refund.state == Refund.State.UNKNOWN and refund.is_overtaken():
        return _(
            "この支払いに、このツール以外での返金がありました。二重に返金しないよう、もう送信しません。"
            "結果が分かるまで、自動で調べています。"
        )
    return ""


def with_seen(decisions: Iterable[ReviewDecision]) -> list[tuple[ReviewDecision, SmartpayRefund | None]]:
    """Return each decision with the refund at Smartpay that it names, by one statement, or with None."""
    decisions = list(decisions)
    named = {decision.smartpay_id for decision in decisions} - {""}
    seen = SmartpayRefund.objects.in_bulk(named) if named else {}
    return [(decision, seen.get(decision.smartpay_id)) for decision in decisions]


def why_not_my_case(request: HttpRequest, refund: Refund) -> str:
    """Say why this person can't decide this case; "" if they can."""
    if not request.user.has_perm(roles.APPROVE_REFUND):
        return _("判定できるのは承認者だけです。承認者二人に依頼してください。")
    if refund.requested_by_id == request.user.pk:
        return _("自分が申請した返金は判定できません。ほかの承認者二人が判定します。")
    return ""


def _other_amount(refund: Refund) -> int | None:
    """Return what Smartpay says was refunded if that is not the amount asked for; else None.

    It happens when people decided that a refund of another amount is this one.
    """
    seen = SmartpayRefund.objects.filter(pk=refund.smartpay_id).first() if refund.smartpay_id else None
    return seen.amount if seen and seen.counts and seen.amount != refund.amount else None


def _meaning(refund: Refund) -> tuple[str, str]:
    """Return what the refund's state means for the money, and what happens next or is to be done."""
    explanation, what_now = MEANINGS[refund.state]
    if refund.state != Refund.State.CANCELLED:
        return str(explanation), str(what_now)
    if _is_shown_all_the_same(refund):
        return (
            _("この返金はこのツールから送信していませんが、Smartpay に同じ返金があります。"),
            _("システム担当者に連絡してください。もう一度返金しないでください。"),
        )
    return str(explanation), str(WHY_CANCELLED[refund.cancelled_because])


@posted_from(refund_page)
@permission_required(roles.REQUEST_REFUND, raise_exception=True)
def refund_withdraw(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    refund = get_object_or_404(Refund, pk=refund_id)
    try:
        services.withdraw(refund_id, by=person(request))
    except services.NotWaiting as error:
        refused(request, "refund.cancelled", refund, error)
        messages.warning(request, str(error))
    return see_other("refunds:refund", refund_id)
