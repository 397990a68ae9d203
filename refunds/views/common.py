"""What every screen stands on: who may see, what each page shows around itself, and what is put on the trail."""

import uuid
from functools import partial
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import permission_required
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from dashboard import opened
from dashboard.models import User
from refunds import audit, paging, roles, smartpay
from refunds.models import Bulk, Control, Refund

may_see = permission_required(roles.VIEW_ORDERS, raise_exception=True)


def every_page(request: HttpRequest) -> dict[str, Any]:
    """Context of every page: test or live, what the person may open, and whether sending is stopped."""
    context: dict[str, Any] = {"mode": smartpay.mode_of(settings.SMARTPAY_SECRET_KEY)}
    if request.user.is_authenticated:
        context["nav"] = {
            "can_request": request.user.has_perm(roles.REQUEST_REFUND),
            "can_approve": request.user.has_perm(roles.APPROVE_REFUND),
            "to_decide": partial(decisions_waiting, request),  # asked by the pages that show it
            "can_compare": request.user.has_perm(roles.RECONCILE),
            "can_audit": request.user.has_perm(roles.AUDIT),
            "roles": [roles.LABELS[role] for role in person(request).role_names],
        }
        context["sends"] = Control.objects.filter(one=True).first() or Control()
    return context


def refunds_waiting(request: HttpRequest, *states: Refund.State) -> QuerySet[Refund]:
    """Refunds of these states that this person could decide, the longest waiting first."""
    return (
        Refund.objects.filter(state__in=states)
        .exclude(requested_by=person(request))
        .select_related("payment__order", "requested_by")
        .order_by("requested_at", "id")
    )


def files_waiting(request: HttpRequest) -> QuerySet[Bulk]:
    """一括返金 that this person could decide."""
    waiting = Bulk.objects.filter(state=Bulk.State.AWAITING_APPROVAL).exclude(uploaded_by=person(request))
    return waiting.select_related("uploaded_by").order_by("uploaded_at", "id")


def decisions_waiting(request: HttpRequest) -> str:
    """How many refunds and files this person could decide, as the navigation shows it: "", "3", "50+"."""
    refunds = refunds_waiting(request, Refund.State.AWAITING_APPROVAL, Refund.State.REVIEW)
    waiting = sum(
        len(rows.order_by().values_list("pk")[: paging.PAGE + 1])
        for rows in (refunds, files_waiting(request))
    )
    return f"{paging.PAGE}+" if waiting > paging.PAGE else str(waiting or "")


def person(request: HttpRequest) -> User:
    """The person signed in; every view here stands behind the sign-in."""
    assert isinstance(request.user, User)  # noqa: S101
    return request.user


def viewed(request: HttpRequest, action: str, obj: Model) -> None:
    """Record that somebody looks at this, unless their page only goes on: see dashboard/opened.py."""
    if not opened.is_continuation(request):
        audit.record(request.user, action, obj)
        opened.remember(request)


def refused(request: HttpRequest, action: str, obj: Model | None, error: Exception, **about: Any) -> None:
    """Record what somebody tried, and why it was not done: the error's class, or that Smartpay could not be asked."""
    why = "smartpay" if isinstance(error, smartpay.SmartpayError) else type(error).__name__
    audit.record(request.user, action, obj, refused=True, why=why, **about)


def remember_way_back(request: HttpRequest, page: str = "") -> None:
    """Keep the list that a refund is opened from, as it is filtered; without one, the way back is to the order."""
    if request.session.get("way_back", "") != page:
        request.session["way_back"] = page


def parked_fields(request: HttpRequest) -> dict[str, str]:
    """The fields of a form that was put aside while the sign-in was checked; empty where there was none.

    See Note [Parked forms] in dashboard/parked_forms.py.
    """
    parked: QueryDict = getattr(request, "parked")  # noqa: B009  (SessionPolicyMiddleware gives it to every request)
    return {name: str(value) for name, value in parked.items()}


def uuid_of(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def see_other(view: str, *args: Any) -> HttpResponse:
    response = redirect(view, *args)
    response.status_code = 303
    return response


def quick_client() -> smartpay.Client:
    return smartpay.client().within(settings.SMARTPAY_VIEW_DEADLINE)


def problem_text(problem: smartpay.SmartpayError) -> str:
    """What an operator has to know of a read that failed."""
    if isinstance(problem, smartpay.KeyRefused):
        return _("Smartpay が API キーを受け付けません。システム担当者に連絡してください。")
    if isinstance(problem, smartpay.NotFound):
        return _("Smartpay にこの注文は見つかりません。")
    return _("Smartpay から応答がありません。時間をおいて開き直してください。")


def not_now(error: smartpay.SmartpayError) -> str:
    """Why nothing was sent: the payment could not be read first."""
    if isinstance(error, smartpay.KeyRefused):
        return _(
            "Smartpay が API キーを受け付けないため、いまは返金できません。何も送られていません。"
            "システム担当者に連絡してください。"
        )
    if isinstance(error, smartpay.NotFound):
        return _(
            "Smartpay にこの支払いは見つからないため、返金できません。何も送られていません。"
            "システム担当者に連絡してください。"
        )
    return _(
        "Smartpay から応答がないため、いまは返金できません。何も送られていません。"
        "時間をおいてもう一度お試しください。"
    )
