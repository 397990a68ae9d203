"""承認: what waits for a second person, and that person's decision about a refund."""

import uuid

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from dashboard import limits
from dashboard.parked_forms import posted_from
from dashboard.sso.decorators import fresh_sign_in_required
from refunds import audit, paging, roles, services, smartpay, waiting
from refunds.forms import DecisionForm, SendsForm
from refunds.models import Refund
from refunds.views.common import not_now, parked_fields, person, refused, remember_way_back, see_other
from refunds.views.refunds import refund_of, refund_page, render_refund


@limits.limited(limits.LISTS)
@require_safe
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
def approvals(request: HttpRequest) -> HttpResponse:
    """承認: what this person may decide, the longest waiting first. Own requests wait for somebody else."""
    remember_way_back(request, request.get_full_path())
    return render_approvals(request, SendsForm(initial=parked_fields(request)))


def render_approvals(request: HttpRequest, sends_form: SendsForm, status: int = 200) -> HttpResponse:
    """Render 承認 and record what it lists."""
    approver = person(request)
    rows = list(waiting.refunds(approver, Refund.State.AWAITING_APPROVAL)[: paging.PAGE])
    cases = list(waiting.cases(approver)[: paging.PAGE])
    audit.record(request.user, "refunds.listed", None, shown=[str(refund.pk) for refund in (*rows, *cases)])
    undecided = [Refund.State.AWAITING_APPROVAL, Refund.State.REVIEW]
    own = Refund.objects.filter(requested_by=approver, state__in=undecided).exists()
    bulks = list(waiting.bulks(approver)[: paging.PAGE])
    context = {"refunds": rows, "bulks": bulks, "cases": cases, "own": own, "sends_form": sends_form}
    return render(request, "refunds/approvals.html", context, status=status)


@limits.limited(limits.ORDERS)
@posted_from(refund_page)
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def refund_decide(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    """承認する sends the refund, 却下する frees its amount. Both need a fresh sign-in."""
    refund = refund_of(refund_id)
    form = DecisionForm(request.POST)
    if not form.is_valid():
        return render_refund(request, refund, form, status=422)
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
        return render_refund(request, refund, form, status=422)
    except smartpay.SmartpayError as error:
        refund = refund_of(refund_id)
        if refund.state != Refund.State.AWAITING_APPROVAL:  # somebody else decided meanwhile
            return see_other("refunds:refund", refund_id)
        refused(request, action, refund, error)
        form.add_error(None, not_now(error))
        return render_refund(request, refund, form, status=503)
    return see_other("refunds:refund", refund_id)
