"""A person's start page."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from refunds import audit, notices, paging, roles, search, waiting
from refunds.models import Refund
from refunds.views.common import (
    may_see,
    parked_fields,
    person,
    remember_way_back,
)


@require_safe
@may_see
def start(request: HttpRequest) -> HttpResponse:
    """A person's start page: the search box, their unsettled refunds, and those whose outcome became known lately."""
    me = person(request)
    unsettled = (
        Refund.objects.reserving()
        .filter(requested_by=me)
        .select_related("payment__order")
        .order_by("-requested_at", "-id")[: paging.PAGE]
    )
    to_approve = cases = 0
    if request.user.has_perm(roles.APPROVE_REFUND):
        to_approve = len(waiting.refunds(me, Refund.State.AWAITING_APPROVAL)[: paging.PAGE])
        to_approve += len(waiting.bulks(me)[: paging.PAGE])
        cases = len(waiting.refunds(me, Refund.State.REVIEW)[: paging.PAGE])
    found_out = (
        notices.found_out(notices.SHOWN)
        .filter(requested_by=me)
        .select_related("payment__order")[: paging.PAGE]
    )
    if shown := [str(refund.pk) for refund in (*unsettled, *found_out)]:
        audit.record(request.user, "refunds.listed", None, shown=shown)
    remember_way_back(request)
    context = {
        "unsettled": unsettled,
        "found_out": found_out,
        "recent": search.remembered(me).recent,
        "waiting": to_approve,
        "cases": cases,
        "typed": parked_fields(request).get("q", ""),
    }
    return render(request, "refunds/start.html", context)
