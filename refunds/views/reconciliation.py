"""照合: the reconciled days, and the differences of one of them. Shows ids and amounts, no names."""

from datetime import date

from django.contrib.auth.decorators import permission_required
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_safe

from refunds import audit, reconciling, roles
from refunds.models import Reconciliation

DAYS = 31  # on a page
MOST_SHOWN = 500  # differences of a day; the `reconcile` command prints all

may_compare = permission_required(roles.RECONCILE, raise_exception=True)


@require_safe
@may_compare
def reconciliation_list(request: HttpRequest) -> HttpResponse:
    """The days, newest first, below the refund that has waited longest for its outcome."""
    days = Reconciliation.objects.all()
    if before := _day(request.GET.get("before", "")):
        days = days.filter(day__lt=before)
    found = list(days[: DAYS + 1])
    shown = found[:DAYS]
    audit.record(request.user, "reconciliation.viewed", None, days=[str(each) for each in shown])
    context = {
        "days": shown,
        "oldest": reconciling.oldest_unsettled(),
        "newest_url": "?" if before else "",
        "older_url": f"?before={shown[-1]}" if len(found) > DAYS else "",
    }
    return render(request, "refunds/reconciliation_list.html", context)


@require_safe
@may_compare
def reconciliation_detail(request: HttpRequest, day: str) -> HttpResponse:
    """The differences of one day."""
    if (at := _day(day)) is None:
        raise Http404
    compared = get_object_or_404(Reconciliation, pk=at)
    audit.record(request.user, "reconciliation.viewed", compared)
    context = {"compared": compared, "found": compared.found.all()[:MOST_SHOWN], "most_shown": MOST_SHOWN}
    return render(request, "refunds/reconciliation_detail.html", context)


def _day(text: str) -> date | None:
    try:
        return date.fromisoformat(text)
    except ValueError:
        return None
