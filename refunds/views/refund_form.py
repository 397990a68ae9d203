"""返金フォーム: the form, its confirmation, and the final button."""

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import wraps
from typing import NamedTuple

from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.core import signing
from django.http import Http404, HttpRequest, HttpResponse
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods

from dashboard import limits, opened
from dashboard.parked_forms import PARKED_SECONDS
from dashboard.sso.decorators import fresh_sign_in_required
from refunds import audit, clock, roles, services, smartpay
from refunds.forms import RefundForm, SimilarForm
from refunds.models import Order, Payment, Refund
from refunds.views.common import (
    not_now,
    parked_fields,
    person,
    quick_client,
    refused,
    remember_way_back,
    see_other,
    uuid_of,
    viewed,
)
from refunds.views.orders import others_on, why_no_refund
from refunds.views.similar import similar_rows
from refunds.wording import money

CONFIRMATION = "refunds.confirmation"  # the salt of its signature
CONFIRMATION_SECONDS = 3600
FRESH = timedelta(minutes=1)  # the form goes by a younger reading of its order, or says how old its own is
READ_SECONDS = 20  # for how long a reading of the payment is good enough to send; the engine's rules say 60


def not_too_often(view: Callable[[HttpRequest, str], HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Counts forms opened as orders, and posts by themselves; too many get the page as it was typed."""

    @wraps(view)
    def inner(request: HttpRequest, order_id: str) -> HttpResponseBase:
        if "drop" in request.POST:  # shows nothing and asks nobody
            return view(request, order_id)
        unjudged = request.method != "POST" or "all" in request.POST or "back" in request.POST
        wait = limits.hit(request, limits.ORDERS if unjudged else limits.REFUND_FORMS)
        if not wait:
            return view(request, order_id)
        # A customer's name is on it: past the limit it is drawn for whom it was drawn before.
        seen = opened.is_continuation(request)
        return _as_typed(request, order_id, wait) if seen else limits.too_many(request, wait)

    return inner


def _as_typed(request: HttpRequest, order_id: str, wait: int) -> HttpResponse:
    """429: the form or its confirmation; or the refund, where an earlier press of the button has made it."""
    order = get_object_or_404(Order.objects.prefetch_related("payments"), order_id=order_id)
    form = RefundForm(request.POST, payments=list(order.payments.all()))
    if form.is_valid() and services.was_recorded(asked := form.request()):
        return see_other("refunds:refund", asked.request_id)
    kept = _("まだ返金していません。入力した内容は残っています。")
    messages.warning(request, f"{limits.explanation(wait)} {kept}")
    if form.is_valid() and "confirm" in request.POST:
        with suppress(services.RefundError):  # said when it may be posted again
            page = _confirmation(
                request,
                order,
                form.request(),
                read_at=None,
                similar_form=SimilarForm(request.POST),
                status=429,
            )
            return limits.retry_after(page, wait)
    return limits.retry_after(
        _draw_form(request, order, _typed_form(request, order, form.payments), status=429), wait
    )


@require_http_methods(["GET", "HEAD", "POST"])
@permission_required(roles.REQUEST_REFUND, raise_exception=True)
@not_too_often
def refund_form(request: HttpRequest, order_id: str) -> HttpResponseBase:
    """The form, its confirmation, and the refund: three answers of one address, told apart by what is posted."""
    if smartpay.id_kind(order_id) is None:
        raise Http404
    order = get_object_or_404(Order.objects.prefetch_related("payments"), order_id=order_id)
    parked = parked_fields(request)
    if "drop" in request.POST or (request.method != "POST" and "confirm" not in parked):
        return _opened(request, order)
    payments = list(order.payments.all())
    # A confirmation whose sign-in had to be checked is drawn again, as if 返金する had been pressed.
    form = RefundForm(request.POST or parked, payments=payments)
    if "all" in request.POST or "back" in request.POST:
        return _draw_form(request, order, _typed_form(request, order, payments))
    if not form.is_valid():
        codes = {name: [error.code for error in errors.as_data()] for name, errors in form.errors.items()}
        audit.record(request.user, "refund.requested", order, refused=True, errors=codes)
        return _draw_form(request, order, form, status=422)
    asked = form.request()
    try:
        read_at = _read_just_now(request, asked)
        if read_at is None:  # else what is asked for next looks for it as well
            if made := services.find_request(asked, by=person(request)):
                return see_other("refunds:refund", made.pk)
            read_at = clock.now()
            services.read_payment(asked.payment_id, client=quick_client())
        if "confirm" not in request.POST:
            draft = _draft(request, order)
            again = draft if draft.get("request_id") == str(asked.request_id) else {}
            return _confirmation(
                request, order, asked, read_at=read_at, similar_form=SimilarForm(initial=parked or again)
            )
        confirmed = (
            fresh_sign_in_required(_confirmed) if services.needs_approval(asked.amount) else _confirmed
        )
        try:
            return confirmed(request, order, asked)
        except services.SimilarRefund as error:
            _refused(request, order, asked, error)
            return _confirmation(
                request, order, asked, read_at=read_at, similar_form=_no_reason(request, error), status=422
            )
    except services.RequestReused as error:
        audit.record(request.user, "refund.requested", error.refund, refused=True, why="request_id reused")
        return render(request, "refunds/conflict.html", {"refund": error.refund}, status=409)
    except (services.RefundError, smartpay.SmartpayError) as error:
        if services.was_recorded(asked):  # another click of this very form was quicker
            return see_other("refunds:refund", asked.request_id)
        return _not_taken(request, order, form, asked, error)


def _opened(request: HttpRequest, order: Order) -> HttpResponse:
    """The form as it is first seen, where there is something to refund; or given up, and what was typed dropped."""
    if "drop" in request.POST or "drop" in parked_fields(request):
        if _draft(request, order):
            del request.session["draft"]
        return see_other("refunds:order", order.order_id)
    order, gone = _read_lately(order)
    payments = list(order.payments.all())
    if blocked := why_no_refund(request, order, payments, gone=gone):
        messages.warning(request, blocked)
        return redirect("refunds:order", order.order_id)
    return _draw_form(request, order, _empty_form(request, order, payments))


def _not_taken(
    request: HttpRequest,
    order: Order,
    form: RefundForm,
    asked: services.RefundRequest,
    error: services.RefundError | smartpay.SmartpayError,
) -> HttpResponse:
    """The form with what speaks against it; nothing was recorded and nothing sent."""
    _refused(request, order, asked, error)
    if isinstance(error, smartpay.SmartpayError):
        form.add_error(None, not_now(error))
        return _draw_form(request, order, form, status=503)
    form.add_error(error.field, str(error))
    for payment in form.payments:  # the figures beside the message are those it speaks of
        payment.refresh_from_db()
    return _draw_form(request, order, form, status=422)


def _empty_form(request: HttpRequest, order: Order, payments: list[Payment]) -> RefundForm:
    """A new form with a new id; or the one that was typed, with its own: after Back from the confirmation, or where
    the sign-in had to be checked before the form was taken.

    What was typed lives until its refund is made: then the next form is another refund.
    """
    if typed := parked_fields(request) or _draft(request, order):
        refund_id = uuid_of(typed.get("request_id", ""))
        if refund_id is None or not Refund.objects.filter(pk=refund_id).exists():
            return RefundForm(initial=typed, payments=payments)
    open_ones = [payment.pk for payment in payments if payment.refundable()]
    initial = {"request_id": uuid.uuid4(), "payment": open_ones[0] if len(open_ones) == 1 else None}
    return RefundForm(initial=initial, payments=payments)


def _read_lately(order: Order) -> tuple[Order, bool]:
    """The order by a young reading, and whether Smartpay says that it has none.

    Its page has read it a moment ago; where the form was opened by its address, nobody has. Where Smartpay does not
    answer, it is the last copy, and the form says how old its figures are.
    """
    if clock.now() - order.read_at <= FRESH:
        return order, False
    try:
        services.read_order(order.order_id, client=quick_client())
    except smartpay.SmartpayError as error:
        return order, isinstance(error, smartpay.NotFound)
    return Order.objects.prefetch_related("payments").get(pk=order.pk), False


def _draft(request: HttpRequest, order: Order) -> dict[str, str]:
    """What was last typed for this order; empty where another order came after it, or too long a time: the next call
    must not begin with the amount of the one before."""
    draft = request.session.get("draft") or {}
    kept = draft.get("order") == order.order_id and time.time() < draft.get("until", 0)
    return draft["fields"] if kept else {}


def _keep_draft(
    request: HttpRequest, order: Order, fields: dict[str, str], similar_form: SimilarForm
) -> None:
    reason = similar_form["similar_reason"].value() or ""
    request.session["draft"] = {
        "order": order.order_id,
        "fields": {**fields, "similar_reason": reason},
        "until": time.time() + PARKED_SECONDS,
    }


def _typed_form(request: HttpRequest, order: Order, payments: list[Payment]) -> RefundForm:
    """The form as it was typed, unjudged; with 残額すべて, the amount is what is left of the payment chosen.

    Back from the confirmation, the reason typed there is kept for the next one.
    """
    typed = {name: request.POST.get(name, "") for name in RefundForm.base_fields}
    if "back" in request.POST:
        _keep_draft(request, order, typed, SimilarForm(request.POST))
    form = RefundForm(initial=typed, payments=payments)
    if "all" in request.POST and form.chosen:
        form.initial["amount"] = form.chosen.refundable()
    return form


def _draw_form(request: HttpRequest, order: Order, form: RefundForm, status: int = 200) -> HttpResponse:
    viewed(request, "order.viewed", order)
    remember_way_back(request)
    payment = form.chosen or (form.payments[0] if len(form.payments) == 1 else None)
    read_at = min((each.read_at for each in ([payment] if payment else form.payments)), default=order.read_at)
    context = {
        "order": order,
        "others": others_on(request, order),
        "payments": form.payments,
        "payment": payment,
        "form": form,
        "refundable": payment.refundable() if payment else None,
        "read_at": read_at,
        "late": clock.now() - read_at > FRESH,
    }
    return render(request, "refunds/refund_form.html", context, status=status)


def _confirmation(
    request: HttpRequest,
    order: Order,
    asked: services.RefundRequest,
    *,
    read_at: datetime | None,
    similar_form: SimilarForm,
    status: int = 200,
) -> HttpResponse:
    """What would happen, drawn by the server, signed over every field, the person and the balance shown.

    read_at: when the reading of the payment began that the balance comes from; None where it was not read for this.
    """
    preview = services.preview_refund(asked, by=person(request))
    viewed(request, "order.viewed", order)
    fields = _fields(asked)
    _keep_draft(request, order, fields, similar_form)
    shown = money(asked.amount, preview.payment.currency)
    context = {
        "order": order,
        "payment": preview.payment,
        "refund": {
            "amount": asked.amount,
            "currency": preview.payment.currency,
            "reason_label": Refund.Reason(asked.reason).label,
            "description": asked.description,
            "memo": asked.memo,
        },
        "refundable_before": preview.refundable_before,
        "refundable_after": preview.refundable_after,
        "similar": similar_rows(preview.similar, order),
        "similar_form": similar_form if preview.similar else None,
        "fields": [
            *fields.items(),
            ("signature", _sign(request, fields, preview, read_at)),
        ],
        "final_label": (
            _("%(amount)s の返金を申請する") if preview.needs_approval else _("%(amount)s を返金する")
        )
        % {"amount": shown},
        "needs_approval": preview.needs_approval,
    }
    return render(request, "refunds/refund_confirm.html", context, status=status)


def _confirmed(request: HttpRequest, order: Order, asked: services.RefundRequest) -> HttpResponse:
    """The final button: the money leaves here."""
    signed = _signed(request, _fields(asked))
    if signed is None:
        raise services.RefundError(
            _(
                "確認画面の有効期限が切れたか、内容が変わっています。もう一度確認してください。何も送られていません。"
            )
        )
    similar_form = SimilarForm(request.POST)
    reason = similar_form.cleaned_data["similar_reason"] if similar_form.is_valid() else ""
    refund = services.refund_payment(
        asked,
        refundable=signed.refundable,
        by=person(request),
        similar_reason=reason,
        similar_shown=signed.similar,
    )
    return see_other("refunds:refund", refund.pk)


def _no_reason(request: HttpRequest, error: services.SimilarRefund) -> SimilarForm:
    """The reason as typed, with why it does not do: there is none, or it speaks of fewer than there are now."""
    form = SimilarForm(request.POST)
    if form.is_valid():
        form.add_error("similar_reason", str(error))
    return form


def _fields(asked: services.RefundRequest) -> dict[str, str]:
    """The form's fields as text: what is posted again, and what is signed."""
    return {
        "request_id": str(asked.request_id),
        "payment": asked.payment_id,
        "amount": str(asked.amount),
        "reason": asked.reason,
        "description": asked.description,
        "memo": asked.memo,
    }


class _Shown(NamedTuple):
    """What a confirmation showed, as its signature says: the balance and when it was read, and the similar refunds."""

    refundable: int
    read_at: float | None
    similar: list[str]


def _sign(
    request: HttpRequest, fields: dict[str, str], preview: services.Preview, read_at: datetime | None
) -> str:
    digest = audit.keyed_hash("\0".join(fields.values()))
    shown = _Shown(
        preview.refundable_before,
        read_at.timestamp() if read_at else None,
        [each.id for each in preview.similar],
    )
    return signing.dumps([digest, request.user.pk, *shown], salt=CONFIRMATION)


def _signed(request: HttpRequest, fields: dict[str, str]) -> _Shown | None:
    """What was shown to this person with these fields; None if that was not signed."""
    try:
        digest, signed_for, *shown = signing.loads(
            request.POST.get("signature", ""), salt=CONFIRMATION, max_age=CONFIRMATION_SECONDS
        )
        said = _Shown(*shown)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    right = digest == audit.keyed_hash("\0".join(fields.values())) and signed_for == request.user.pk
    return said if right else None


def _read_just_now(request: HttpRequest, asked: services.RefundRequest) -> datetime | None:
    """When the payment was read for the confirmation whose final button was pressed; None where it has to be read anew.

    Who confirms at once is spared another wait for Smartpay. What the mirror has heard since still counts. The moment
    is that of the reading: a confirmation that is drawn again is no younger for it.
    """
    signed = _signed(request, _fields(asked)) if "confirm" in request.POST else None
    if signed is None or signed.read_at is None:
        return None
    read_at = datetime.fromtimestamp(signed.read_at, tz=UTC)
    return read_at if timedelta(0) <= clock.now() - read_at <= timedelta(seconds=READ_SECONDS) else None


def _refused(
    request: HttpRequest,
    order: Order,
    asked: services.RefundRequest,
    error: services.RefundError | smartpay.SmartpayError,
) -> None:
    refused(request, "refund.requested", order, error, amount=asked.amount, payment=asked.payment_id)
