"""What the screens share: who may see them, what they record in the audit trail, and how they answer."""

import math
import uuid
from collections.abc import Iterable
from typing import Any

from django.conf import settings
from django.contrib.auth.decorators import permission_required
from django.db.models import Model
from django.http import HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.utils.translation import gettext as _

from dashboard import opened
from dashboard.models import User
from refunds import audit, roles, scanning, smartpay
from refunds.models import Payment

may_see = permission_required(roles.VIEW_ORDERS, raise_exception=True)


def whole_order(payment: Payment, left: int) -> dict[str, int]:
    """Return what a page needs that says what is `left` of the payment: what is left of its order.

    A refund is of one payment. If the order has others, "¥0 is left" must not read as the end of the order.
    """
    others = list(Payment.objects.filter(order=payment.order_id).exclude(pk=payment.pk))
    left_of_others = sum(each.refundable() for each in others)
    return {
        "other_payments": len(others),
        "left_of_others": left_of_others,
        "left_of_order": left + left_of_others,
    }


def source_of_figures(payments: Iterable[Payment]) -> dict[str, Any]:
    """Return what _estimate.html needs to tell whether what is left of these payments is an estimate.

    Where Smartpay does not list a payment's refunds, those made elsewhere are as old as the list of all refunds here.
    """
    listed = all(payment.lists_refunds is not False for payment in payments)
    return {"refunds_listed": listed, "refunds_read_at": None if listed else scanning.refunds_read_at()}


def longest_wait() -> int:
    """Return for how many seconds the last button may wait for Smartpay: it reads the payment, then sends."""
    seconds: float = settings.SMARTPAY_VIEW_DEADLINE + settings.SMARTPAY_DEADLINE
    return math.ceil(seconds)


def person(request: HttpRequest) -> User:
    """Return the signed-in user, typed. Every view here is behind the sign-in."""
    assert isinstance(request.user, User)  # noqa: S101
    return request.user


def viewed(request: HttpRequest, action: str, obj: Model, **about: Any) -> None:
    """Record that the person looked at this, unless the look only continues: see dashboard/opened.py."""
    if not opened.is_continuation(request):
        audit.record(request.user, action, obj, **about)
        opened.remember(request)


def refused(request: HttpRequest, action: str, obj: Model | None, error: Exception, **about: Any) -> None:
    """Record an attempt that was refused. `why` is the error's class, or "smartpay" if Smartpay could not be read."""
    why = "smartpay" if isinstance(error, smartpay.SmartpayError) else type(error).__name__
    audit.record(request.user, action, obj, refused=True, why=why, **about)


def remember_way_back(request: HttpRequest, page: str = "") -> None:
    """Keep the address of the list, with its filters, that a refund's page links back to; without one, its order."""
    if request.session.get("way_back", "") != page:
        request.session["way_back"] = page


def parked_fields(request: HttpRequest) -> dict[str, str]:
    """Return the fields of a form that was put aside while the sign-in was checked; {} if there was none.

    See Note [Parked forms] in dashboard/parked_forms.py.
    """
    parked: QueryDict = getattr(request, "parked")  # noqa: B009  (SessionPolicyMiddleware gives it to every request)
    return {name: str(value) for name, value in parked.items()}


def uuid_of(text: str) -> uuid.UUID | None:
    """Return the UUID that the text spells, None if it spells none."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def see_other(to: str, *args: Any) -> HttpResponse:
    """Return a 303 to a view, by its name and arguments, or to an address: the browser follows it by GET."""
    response = redirect(to, *args)
    response.status_code = 303
    return response


def quick_client() -> smartpay.Client:
    """Return a client whose calls end within SMARTPAY_VIEW_DEADLINE: a person is waiting for the page."""
    return smartpay.client().within(settings.SMARTPAY_VIEW_DEADLINE)


def problem_text(problem: smartpay.SmartpayError) -> str:
    """Say why Smartpay could not be read, and what to do."""
    if isinstance(problem, smartpay.Unauthorized):
        return _("Smartpay が API キーを受け付けません。システム担当者に連絡してください。")
    if isinstance(problem, smartpay.NotFound):
        return _("Smartpay にこの注文は見つかりません。")
    return _("Smartpay から応答がありません。時間をおいて開き直してください。")


def not_now(error: smartpay.SmartpayError) -> str:
    """Say why the refund was not sent: the payment could not be read first."""
    if isinstance(error, smartpay.Unauthorized):
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
