"""要調査: the page of a refund under review, where two approvers decide what became of it."""

import uuid
from dataclasses import dataclass
from datetime import datetime

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from dashboard import limits
from dashboard.sso.decorators import fresh_sign_in_required
from refunds import paging, roles, services, smartpay
from refunds.forms import ReviewForm, SendsForm
from refunds.models import Refund
from refunds.views.common import (
    may_see,
    parked_fields,
    person,
    problem_text,
    quick_client,
    refused,
    see_other,
    viewed,
)
from refunds.views.refunds import refund_of, why_not_my_case, with_seen
from refunds.wording import money


@limits.limited(limits.ORDERS)
@require_http_methods(["GET", "HEAD", "POST"])
@may_see
def refund_review(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponseBase:
    """要調査: the request beside what Smartpay shows. Two approvers decide, neither of them the requester."""
    if request.method == "POST":
        return _decide_case(request, refund_id)
    return render_case(request, refund_of(refund_id), form=ReviewForm(initial=parked_fields(request)))


@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def _decide_case(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    refund = refund_of(refund_id)
    form = ReviewForm(request.POST)
    if not form.is_valid():
        return render_case(request, refund, form=form, status=422)
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
        return render_case(request, refund, form=form, status=422)
    except smartpay.SmartpayError as error:
        refused(request, "refund.judged", refund, error)
        form.add_error(None, _undecided(error))
        return render_case(request, refund, form=form, problem=error, status=503)
    if refund.state == Refund.State.REVIEW:
        messages.success(request, _("判定を記録しました。もう一人の承認者が同じ判定をすると確定します。"))
        return see_other("refunds:refund_review", refund_id)
    messages.success(request, _("二人の判定が一致し、確定しました。"))
    return see_other("refunds:refund", refund_id)


def render_case(
    request: HttpRequest,
    refund: Refund,
    *,
    form: ReviewForm | None = None,
    sends_form: SendsForm | None = None,
    problem: smartpay.SmartpayError | None = None,
    status: int = 200,
) -> HttpResponse:
    """Render the page of a case, read afresh from Smartpay; from the mirror if Smartpay does not answer.

    `problem`: why Smartpay could not be read a moment ago; it is not read again then.
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
        "judged": with_seen(case.decisions),
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


@dataclass(frozen=True, slots=True)
class ComparedField:
    """A field of the request beside the same field of a refund that Smartpay shows, both as text."""

    label: str
    kind: str  # of its value, for the style sheet: "num", "id" or ""
    asked: str
    shown: str

    @property
    def compared(self) -> str:
        """How the two compare: "same", "absent" at Smartpay, or "differs"."""
        if self.asked == self.shown:
            return "same"
        return "differs" if self.shown else "absent"


def _compare(refund: Refund, candidate: services.Candidate) -> list[ComparedField]:
    mirrored = candidate.mirrored
    named = mirrored.reference or str(mirrored.metadata.get("refund_dashboard_id") or "")
    reasons = dict(Refund.Reason.choices)
    return [
        ComparedField(
            _("返金額"),
            "num",
            money(refund.amount, refund.currency),
            money(mirrored.amount, mirrored.currency),
        ),
        ComparedField(_("支払い"), "id", refund.payment_id, mirrored.payment_id),
        ComparedField(_("受付番号"), "id", str(refund.pk), str(refund.pk) if candidate.is_named else named),
        ComparedField(
            _("理由"), "", refund.get_reason_display(), str(reasons.get(mirrored.reason, mirrored.reason))
        ),
        ComparedField(_("説明"), "", refund.description, mirrored.description),
    ]


def _undecided(error: smartpay.SmartpayError) -> str:
    """Say why the decision was not recorded: Smartpay could not be read."""
    if isinstance(error, smartpay.Unauthorized):
        return _(
            "Smartpay が API キーを受け付けないため、いまは判定できません。判定は記録していません。"
            "システム担当者に連絡してください。"
        )
    return _(
        "Smartpay から応答がないため、いまは判定できません。判定は記録していません。"
        "時間をおいてもう一度お試しください。"
    )
