"""What approvers decide: 承認, the cases of 要調査, and whether anything is sent at all."""

import uuid
from datetime import datetime
from typing import Any

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from dashboard import limits
from dashboard.parked_forms import posted_from
from dashboard.sso.decorators import fresh_sign_in_required
from refunds import audit, paging, roles, services, smartpay
from refunds.forms import DecisionForm, ReviewForm, SendsForm
from refunds.models import Refund
from refunds.views.common import (
    files_waiting,
    may_see,
    not_now,
    parked_fields,
    person,
    problem_text,
    quick_client,
    refunds_waiting,
    refused,
    remember_way_back,
    see_other,
    uuid_of,
    viewed,
)
from refunds.views.refunds import draw_refund, refund_of, refund_page, why_not_my_case
from refunds.wording import money


@limits.limited(limits.LISTS)
@require_safe
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
def approvals(request: HttpRequest) -> HttpResponse:
    """承認: what waits for a second person, the longest waiting first; one's own waits for somebody else."""
    remember_way_back(request, request.get_full_path())
    return _draw_approvals(request, SendsForm(initial=parked_fields(request)))


def _draw_approvals(request: HttpRequest, sends_form: SendsForm, status: int = 200) -> HttpResponse:
    rows = list(refunds_waiting(request, Refund.State.AWAITING_APPROVAL)[: paging.PAGE])
    cases = list(refunds_waiting(request, Refund.State.REVIEW)[: paging.PAGE])
    audit.record(request.user, "refunds.listed", None, shown=[str(refund.pk) for refund in (*rows, *cases)])
    waiting = [Refund.State.AWAITING_APPROVAL, Refund.State.REVIEW]
    own = Refund.objects.filter(requested_by=person(request), state__in=waiting).exists()
    files = list(files_waiting(request)[: paging.PAGE])
    context = {"refunds": rows, "bulks": files, "cases": cases, "own": own, "sends_form": sends_form}
    return render(request, "refunds/approvals.html", context, status=status)


@limits.limited(limits.ORDERS)
@posted_from(refund_page)
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def refund_decide(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    """承認する sends the refund; 却下する frees its amount. The sign-in has to be fresh for either."""
    refund = refund_of(refund_id)
    form = DecisionForm(request.POST)
    if not form.is_valid():
        return draw_refund(request, refund, form, status=422)
    note, approves = form.cleaned_data["note"], "approve" in request.POST
    action = "refund.approved" if approves else "refund.cancelled"
    try:
        if approves:
            services.approve(refund_id, by=person(request), note=note)
        else:
            services.reject(refund_id, by=person(request), note=note)
    except services.NotWaiting as error:
        refused(request, action, refund, error)
        messages.warning(request, str(error))
    except services.RefundError as error:
        refused(request, action, refund, error)
        form.add_error(error.field, str(error))
        return draw_refund(request, refund, form, status=422)
    except smartpay.SmartpayError as error:
        refund = refund_of(refund_id)
        if refund.state != Refund.State.AWAITING_APPROVAL:  # another click was quicker
            return redirect("refunds:refund", refund_id)
        refused(request, action, refund, error)
        form.add_error(None, not_now(error))
        return draw_refund(request, refund, form, status=503)
    return redirect("refunds:refund", refund_id)


@limits.limited(limits.ORDERS)
@require_http_methods(["GET", "HEAD", "POST"])
@may_see
def refund_review(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponseBase:
    """要調査: what was asked for beside what Smartpay shows; two approvers decide, neither of them the requester."""
    if request.method == "POST":
        return _decide_case(request, refund_id)
    return _draw_case(request, refund_of(refund_id), form=ReviewForm(initial=parked_fields(request)))


@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def _decide_case(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    refund = refund_of(refund_id)
    form = ReviewForm(request.POST)
    if not form.is_valid():
        return _draw_case(request, refund, form=form, status=422)
    try:
        refund = services.decide_case(
            refund_id, **form.cleaned_data, by=person(request), client=quick_client()
        )
    except services.NotWaiting as error:
        refused(request, "refund.judged", refund, error)
        messages.warning(request, str(error))
        return see_other("refunds:refund", refund_id)
    except services.RefundError as error:
        refused(request, "refund.judged", refund, error)
        form.add_error(error.field or "choice", str(error))
        return _draw_case(request, refund, form=form, status=422)
    except smartpay.SmartpayError as error:
        refused(request, "refund.judged", refund, error)
        form.add_error(None, _undecided(error))
        return _draw_case(request, refund, form=form, problem=error, status=503)
    if refund.state == Refund.State.REVIEW:
        messages.success(request, _("判定を記録しました。もう一人の承認者が同じ判定をすると確定します。"))
        return see_other("refunds:refund_review", refund_id)
    messages.success(request, _("二人の判定が一致し、確定しました。"))
    return see_other("refunds:refund", refund_id)


def _draw_case(
    request: HttpRequest,
    refund: Refund,
    *,
    form: ReviewForm | None = None,
    sends_form: SendsForm | None = None,
    problem: smartpay.SmartpayError | None = None,
    status: int = 200,
) -> HttpResponse:
    """The page of a case, read afresh from Smartpay; the mirror's copy where Smartpay does not answer.

    `problem`: why it could not be read a moment ago.
    """
    viewed(request, "refund.viewed", refund)
    complete_at: datetime | None = None
    if refund.state == Refund.State.REVIEW and not problem:
        try:
            complete_at = services.look_again(refund.pk, client=quick_client())
        except smartpay.SmartpayError as error:
            problem = error
        refund = refund_of(refund.pk)
    case = services.review_case(refund, complete_at=complete_at)
    own = next((each for each in case.decisions if each.person_id == request.user.pk), None)
    context = {
        "refund": refund,
        "order": refund.payment.order,
        "case": case,
        "compared": [(each, _compare(refund, each)) for each in case.candidates],
        "own_decision": own,
        "others_decided": any(each is not own for each in case.decisions),
        "form": form or ReviewForm(),
        "sends_form": sends_form or SendsForm(initial=parked_fields(request)),
        "attempts": refund.attempts.all(),
        "evidence": refund.evidence.order_by("-at")[: paging.PAGE],
        "problem": problem_text(problem) if problem else "",
        "read_at": timezone.now(),
        "is_open": refund.state == Refund.State.REVIEW,
        "blocked": why_not_my_case(request, refund),
    }
    return render(request, "refunds/refund_review.html", context, status=status)


def _compare(refund: Refund, candidate: services.Candidate) -> list[dict[str, Any]]:
    """What was asked for beside what Smartpay shows, line by line; how they compare is told in words."""
    seen = candidate.seen
    named = seen.reference or str(seen.metadata.get("refund_dashboard_id") or "")
    reasons = dict(Refund.Reason.choices)
    lines = [  # label, how it is shown, asked, shown
        (_("返金額"), "num", money(refund.amount, refund.currency), money(seen.amount, seen.currency)),
        (_("支払い"), "id", refund.payment_id, seen.payment_id),
        (_("受付番号"), "id", str(refund.pk), str(refund.pk) if candidate.is_named else named),
        (_("理由"), "", str(reasons[refund.reason]), str(reasons.get(seen.reason, seen.reason))),
        (_("説明"), "", refund.description, seen.description),
    ]
    return [
        {
            "label": label,
            "kind": kind,
            "asked": asked,
            "shown": shown,
            "compared": "same" if asked == shown else "absent" if not shown else "differs",
        }
        for label, kind, asked, shown in lines
    ]


def _undecided(error: smartpay.SmartpayError) -> str:
    """Why nothing was decided: Smartpay could not be read."""
    if isinstance(error, smartpay.KeyRefused):
        return _(
            "Smartpay が API キーを受け付けないため、いまは判定できません。判定は記録していません。"
            "システム担当者に連絡してください。"
        )
    return _(
        "Smartpay から応答がないため、いまは判定できません。判定は記録していません。"
        "時間をおいてもう一度お試しください。"
    )


def _page_of_switch(request: HttpRequest) -> str:
    """Where somebody stops or resumes sending: 承認, or the page of a case."""
    case = uuid_of(request.POST.get("case", ""))
    return reverse("refunds:refund_review", args=[case]) if case else reverse("refunds:approvals")


@posted_from(_page_of_switch)
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def sends(request: HttpRequest) -> HttpResponse:
    """Stop or resume all sending, with a reason: from 承認, or from the page of a case."""
    form = SendsForm(request.POST)
    resume = "resume" in request.POST
    case_id = uuid_of(request.POST.get("case", ""))
    case = Refund.objects.filter(pk=case_id).first() if case_id else None
    if form.is_valid():
        try:
            services.set_sends(enabled=resume, reason=form.cleaned_data["reason"], by=person(request))
        except services.NotReconciled as error:
            refused(request, "sends.resumed", None, error)
            form.add_error(None, str(error))
        else:
            messages.success(
                request,
                _("返金の送信を再開しました。待っていた返金は自動で送信します。")
                if resume
                else _("返金の送信を止めました。"),
            )
            return see_other("refunds:refund_review", case.pk) if case else see_other("refunds:approvals")
    if case:
        return _draw_case(request, refund_of(case.pk), sends_form=form, status=422)
    return _draw_approvals(request, form, status=422)
