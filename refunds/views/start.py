"""A person's start page."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.views.decorators.http import require_safe

from refunds import audit, notices, paging, roles, search
from refunds.models import Refund
from refunds.views.common import (
    files_waiting,
    may_see,
    parked_fields,
    person,
    refunds_waiting,
    remember_way_back,
)


@require_safe
@may_see
def start(request: HttpRequest) -> HttpResponse:
    """A person's start page: the search box, own refunds that are not settled, and those found out lately."""
    unsettled = (
        Refund.objects.filter(requested_by=person(request), state__in=Refund.RESERVING)
        .select_related("payment__order")
        .order_by("-requested_at", "-id")[: paging.PAGE]
    )
    may_decide = request.user.has_perm(roles.APPROVE_REFUND)
    waiting = (
        len(refunds_waiting(request, Refund.State.AWAITING_APPROVAL)[: paging.PAGE])
        + len(files_waiting(request)[: paging.PAGE])
        if may_decide
        else 0
    )
    cases = len(refunds_waiting(request, Refund.State.REVIEW)[: paging.PAGE]) if may_decide else 0
    found_out = (
        notices.found_out(notices.SHOWN)
        .filter(requested_by=person(request))
        .select_related("payment__order")[: paging.PAGE]
    )
    if shown := [str(refund.pk) for refund in (*unsettled, *found_out)]:
        audit.record(request.user, "refunds.listed", None, shown=shown)
    remember_way_back(request)
    context = {
        "unsettled": unsettled,
        "found_out": found_out,
        "recent": search.remembered(person(request)).recent,
        "waiting": waiting,
        "cases": cases,
        "typed": parked_fields(request).get("q", ""),
    }
    return render(request, "refunds/start.html", context)
