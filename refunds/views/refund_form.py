"""返金フォーム: the form, its confirmation and the final button, all at one address."""

import time
import uuid
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
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
from dashboard.models import User
from dashboard.parked_forms import PARKED_SECONDS
from dashboard.sso.decorators import fresh_sign_in_required
from refunds import audit, clock, roles, services, smartpay
from refunds.forms import RefundForm, SimilarForm
from refunds.models import Order, Payment, Refund
from refunds.views.common import (
    longest_wait,
    not_now,
    parked_fields,
    person,
    quick_client,
    refused,
    remember_way_back,
    see_other,
    source_of_figures,
    uuid_of,
    viewed,
    whole_order,
)
from refunds.views.orders import others_on, why_no_refund
from refunds.views.similar import similar_rows
from refunds.wording import money

CONFIRMATION = "refunds.confirmation"  # the salt of its signature
CONFIRMATION_SECONDS = 3600
READING_FRESH_FOR = timedelta(minutes=1)  # an order read longer ago is read anew for the form
READ_SECONDS = 20  # how long a reading of the payment is recent enough to send; the engine's rules allow 60


class Action(StrEnum):
    """What a request to this address asks for: the button that was pressed, by its name in the form."""

    OPEN = "open"  # no button: the form as it is first seen
    DROP = "drop"  # give up, and forget what was typed
    FILL = "all"  # 残額すべて: fill in what is left of the payment
    BACK = "back"  # from the confirmation to the form
    PREVIEW = "preview"  # 返金する on the form: show the confirmation; the button has no name
    CONFIRM = "confirm"  # the final button


@dataclass(frozen=True, slots=True)
class _Page:
    """What all actions share."""

    request: HttpRequest
    order: Order  # with its payments prefetched
    action: Action
    parked: dict[str, str]  # the fields of a form whose sign-in had to be checked

    @property
    def payments(self) -> list[Payment]:
        return list(self.order.payments.all())


class _Shown(NamedTuple):
    """What a confirmation showed, according to its signature."""

    refundable: int
    # When the reading of that balance began, in seconds since 1970; None if it was not read for the confirmation.
    read_at: float | None
    similar: list[str]  # ids of similar refunds


@dataclass(frozen=True, slots=True)
class _Submission:
    """A valid form, to be previewed or confirmed."""

    page: _Page
    form: RefundForm
    asked: services.RefundRequest
    shown: _Shown | None  # by the confirmation; None without one, or if its signature does not hold

    @property
    def user(self) -> User:
        return person(self.page.request)


# --- The view and its actions -------------------------------------------------------------------------------


@require_http_methods(["GET", "HEAD", "POST"])
@permission_required(roles.REQUEST_REFUND, raise_exception=True)
def refund_form(request: HttpRequest, order_id: str) -> HttpResponseBase:
    """The form, its confirmation and the refund share one address; `Action` tells them apart."""
    parked = parked_fields(request)
    action = _action_of(request, parked)
    wait = _seconds_to_wait(request, action)
    # The page shows a customer's name: past the limit it is rendered only in a session that has seen it.
    if wait and not opened.is_continuation(request):
        return limits.too_many(request, wait)
    if smartpay.id_kind(order_id) is None:
        raise Http404
    order = get_object_or_404(Order.objects.prefetch_related("payments"), order_id=order_id)
    page = _Page(request, order, action, parked)
    if wait:
        return _limited(page, wait)
    match action:
        case Action.OPEN:
            return _open(page)
        case Action.DROP:
            return _drop(page)
        case Action.FILL | Action.BACK:
            return _render_form(page, _typed_form(page))
        case Action.PREVIEW | Action.CONFIRM:
            return _submit(page)


def _action_of(request: HttpRequest, parked: dict[str, str]) -> Action:
    if request.method == "POST":
        buttons = (Action.DROP, Action.FILL, Action.BACK, Action.CONFIRM)
        return next((button for button in buttons if button in request.POST), Action.PREVIEW)
    if Action.CONFIRM in parked:  # the sign-in had to be checked: the confirmation is shown again
        return Action.PREVIEW
    return Action.DROP if Action.DROP in parked else Action.OPEN


def _seconds_to_wait(request: HttpRequest, action: Action) -> int:
    """Count the request against its limit; return the seconds until the person may go on, 0 if now.

    A preview or a confirmation counts as a post of the form, all else as opening an order.
    """
    if request.method != "POST":
        return limits.hit(request, limits.ORDERS)
    if action is Action.DROP:  # shows nothing and asks nobody
        return 0
    judged = action in (Action.PREVIEW, Action.CONFIRM)
    return limits.hit(request, limits.REFUND_FORMS if judged else limits.ORDERS)


def _limited(page: _Page, wait: int) -> HttpResponse:
    """Return 429 with the form or the confirmation as it was typed; 303 if an earlier press made the refund."""
    request = page.request
    form = RefundForm(request.POST, payments=page.payments)
    asked = form.request() if form.is_valid() else None
    if asked and services.was_recorded(asked):
        return see_other("refunds:refund", asked.request_id)
    kept = _("まだ返金していません。入力した内容は残っています。")
    messages.warning(request, f"{limits.explanation(wait)} {kept}")
    if asked and page.action is Action.CONFIRM:
        with suppress(services.RefundError):  # told when the form may be posted again
            confirmation = _render_confirmation(
                page, asked, read_at=None, similar_form=SimilarForm(request.POST), status=429
            )
            return limits.retry_after(confirmation, wait)
    return limits.retry_after(_render_form(page, _typed_form(page), status=429), wait)


def _open(page: _Page) -> HttpResponse:
    """Show the form, or go back to the order and say why nothing can be refunded."""
    order, gone = _read_lately(page.order)
    page = replace(page, order=order)
    if blocked := why_no_refund(page.request, order, page.payments, gone=gone):
        messages.warning(page.request, blocked)
        return redirect("refunds:order", order.order_id)
    return _render_form(page, _first_form(page))


def _drop(page: _Page) -> HttpResponse:
    """Forget what was typed for this order, and go back to it."""
    if _draft(page):
        del page.request.session["draft"]
    return see_other("refunds:order", page.order.order_id)


def _submit(page: _Page) -> HttpResponseBase:
    """Judge the form, then preview or confirm it. What stands against it is told in one place, here."""
    request = page.request
    form = RefundForm(request.POST or page.parked, payments=page.payments)
    if not form.is_valid():
        codes = {name: [error.code for error in errors.as_data()] for name, errors in form.errors.items()}
        audit.record(request.user, "refund.requested", page.order, refused=True, errors=codes)
        return _render_form(page, form, status=422)
    asked = form.request()
    confirms = page.action is Action.CONFIRM
    submission = _Submission(page, form, asked, _signed(request, _fields(asked)) if confirms else None)
    try:
        return _confirm(submission) if confirms else _preview(submission)
    except services.RequestReused as error:
        audit.record(request.user, "refund.requested", error.refund, refused=True, why="request_id reused")
        return render(request, "refunds/conflict.html", {"refund": error.refund}, status=409)
    except (services.RefundError, smartpay.SmartpayError) as error:
        if services.was_recorded(asked):  # by another click on this very form
            return see_other("refunds:refund", asked.request_id)
        return _not_taken(submission, error)


def _preview(submission: _Submission) -> HttpResponse:
    """Read the payment and show the confirmation; 303 if this form made its refund already."""
    page, asked = submission.page, submission.asked
    if made := services.find_request(asked, by=submission.user):
        return see_other("refunds:refund", made.pk)
    read_at = _read_payment(asked)
    draft = _draft(page)
    typed = page.parked or (draft if draft.get("request_id") == str(asked.request_id) else {})
    return _render_confirmation(page, asked, read_at=read_at, similar_form=SimilarForm(initial=typed))


def _confirm(submission: _Submission) -> HttpResponseBase:
    """Make the refund, after a fresh sign-in if it needs approval; ask for the reason if there is a similar one."""
    page, asked = submission.page, submission.asked
    read_at = _recent_reading(submission.shown)
    if read_at is None:  # otherwise services.refund_payment() looks for an earlier refund of this form
        if made := services.find_request(asked, by=submission.user):
            return see_other("refunds:refund", made.pk)
        read_at = _read_payment(asked)
    make = fresh_sign_in_required(_make_refund) if services.needs_approval(asked.amount) else _make_refund
    try:
        return make(page.request, submission)
    except services.SimilarRefund as error:
        _record_refusal(submission, error)
        similar_form = _no_reason(page.request, error)
        return _render_confirmation(page, asked, read_at=read_at, similar_form=similar_form, status=422)


def _make_refund(request: HttpRequest, submission: _Submission) -> HttpResponse:
    """Send the refund: the money leaves here. Raises RefundError if the confirmation's signature does not hold."""
    shown = submission.shown
    if shown is None:
        raise services.RefundError(
            _(
                "確認画面の有効期限が切れたか、内容が変わっています。もう一度確認してください。何も送られていません。"
            )
        )
    similar_form = SimilarForm(request.POST)
    reason = similar_form.cleaned_data["similar_reason"] if similar_form.is_valid() else ""
    refund = services.refund_payment(
        submission.asked,
        refundable=shown.refundable,
        by=submission.user,
        similar_reason=reason,
        similar_shown=shown.similar,
    )
    return see_other("refunds:refund", refund.pk)


def _not_taken(submission: _Submission, error: services.RefundError | smartpay.SmartpayError) -> HttpResponse:
    """Show the form with the error: 503 if Smartpay could not be read, else 422. Nothing was recorded or sent."""
    page, form = submission.page, submission.form
    _record_refusal(submission, error)
    if isinstance(error, smartpay.SmartpayError):
        form.add_error(None, not_now(error))
        return _render_form(page, form, status=503)
    form.add_error(error.field, str(error))
    for payment in form.payments:  # so that the figures shown are those the message speaks of
        payment.refresh_from_db()
    moved = isinstance(error, services.BalanceMoved)
    return _render_form(page, form, status=422, moved=moved)


def _record_refusal(submission: _Submission, error: services.RefundError | smartpay.SmartpayError) -> None:
    asked = submission.asked
    refused(
        submission.page.request,
        "refund.requested",
        submission.page.order,
        error,
        amount=asked.amount,
        payment=asked.payment_id,
    )


# --- Reading Smartpay ---------------------------------------------------------------------------------------


def _read_lately(order: Order) -> tuple[Order, bool]:
    """Return the order as read a moment ago, and whether Smartpay says that it does not exist.

    The order's page has usually just read it. If the form was opened by its address, nobody has, so it is read here.
    If Smartpay does not answer, the last copy is returned, and the form says how old its figures are.
    """
    if clock.now() - order.read_at <= READING_FRESH_FOR:
        return order, False
    try:
        services.read_order(order.order_id, client=quick_client())
    except smartpay.SmartpayError as error:
        return order, isinstance(error, smartpay.NotFound)
    return Order.objects.prefetch_related("payments").get(pk=order.pk), False


def _read_payment(asked: services.RefundRequest) -> datetime:
    """Read the payment from Smartpay and return when the reading began. Raises SmartpayError."""
    read_at = clock.now()
    services.read_payment(asked.payment_id, client=quick_client())
    return read_at


def _recent_reading(shown: _Shown | None) -> datetime | None:
    """Return when the payment was read for the confirmation; None if it has to be read again.

    A person who confirms at once does not wait for Smartpay a second time. What the mirror has heard since still
    counts. A confirmation that is rendered again keeps the time of the reading, so that it gets no younger.
    """
    if shown is None or shown.read_at is None:
        return None
    read_at = datetime.fromtimestamp(shown.read_at, tz=UTC)
    return read_at if timedelta(0) <= clock.now() - read_at <= timedelta(seconds=READ_SECONDS) else None


# --- Forms and what was typed -------------------------------------------------------------------------------


def _first_form(page: _Page) -> RefundForm:
    """Return the form as it was typed for this order, under its own id; else an empty one with a new id.

    It was typed before Back from the confirmation, or before the sign-in had to be checked. Once its refund is made
    it is forgotten: the next form is another refund.
    """
    if typed := page.parked or _draft(page):
        refund_id = uuid_of(typed.get("request_id", ""))
        if refund_id is None or not Refund.objects.filter(pk=refund_id).exists():
            return RefundForm(initial=typed, payments=page.payments)
    refundable = [payment.pk for payment in page.payments if payment.refundable()]
    initial = {"request_id": uuid.uuid4(), "payment": refundable[0] if len(refundable) == 1 else None}
    return RefundForm(initial=initial, payments=page.payments)


def _typed_form(page: _Page) -> RefundForm:
    """Return the form as it was typed, not validated.

    残額すべて fills in what is left of the chosen payment. Back keeps the reason that was typed on the confirmation.
    """
    typed = {name: page.request.POST.get(name, "") for name in RefundForm.base_fields}
    if page.action is Action.BACK:
        _keep_draft(page, typed, SimilarForm(page.request.POST))
    form = RefundForm(initial=typed, payments=page.payments)
    if page.action is Action.FILL and form.chosen:
        form.initial["amount"] = form.chosen.refundable()
    return form


def _no_reason(request: HttpRequest, error: services.SimilarRefund) -> SimilarForm:
    """Return the form of the reason with its error: it is empty, or there are more similar refunds than were shown."""
    form = SimilarForm(request.POST)
    if form.is_valid():
        form.add_error("similar_reason", str(error))
    return form


def _draft(page: _Page) -> dict[str, str]:
    """Return what was last typed for this order; {} if another order was typed since, or if it is too long ago.

    The next call must not begin with the amount of the one before.
    """
    draft = page.request.session.get("draft") or {}
    is_valid = draft.get("order") == page.order.order_id and time.time() < draft.get("until", 0)
    return draft["fields"] if is_valid else {}


def _keep_draft(page: _Page, fields: dict[str, str], similar_form: SimilarForm) -> None:
    reason = similar_form["similar_reason"].value() or ""
    page.request.session["draft"] = {
        "order": page.order.order_id,
        "fields": {**fields, "similar_reason": reason},
        "until": time.time() + PARKED_SECONDS,
    }


# --- Rendering ----------------------------------------------------------------------------------------------


def _render_form(page: _Page, form: RefundForm, status: int = 200, *, moved: bool = False) -> HttpResponse:
    """Show the form; without its fields if nothing is left to refund. `moved`: the balance changed meanwhile."""
    request, order = page.request, page.order
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
        "refundable_all": sum(each.refundable() for each in form.payments),
        "moved": moved,
        **source_of_figures(form.payments),
        "read_at": read_at,
        "late": clock.now() - read_at > READING_FRESH_FOR,
    }
    return render(request, "refunds/refund_form.html", context, status=status)


def _render_confirmation(
    page: _Page,
    asked: services.RefundRequest,
    *,
    read_at: datetime | None,
    similar_form: SimilarForm,
    status: int = 200,
) -> HttpResponse:
    """Show what would happen, signed over every field, the person and the balance shown. Raises RefundError.

    `read_at`: when the reading of the payment began that the balance comes from; None if it was not read for this.
    """
    request, order = page.request, page.order
    preview = services.preview_refund(asked, by=person(request))
    viewed(request, "order.viewed", order)
    fields = _fields(asked)
    _keep_draft(page, fields, similar_form)
    payment = preview.payment
    label = _("%(amount)s の返金を申請する") if preview.needs_approval else _("%(amount)s を返金する")
    context = {
        "order": order,
        "payment": payment,
        "refund": Refund(  # for the template alone; services/ writes the row
            id=asked.request_id,
            payment=payment,
            amount=asked.amount,
            currency=payment.currency,
            reason=asked.reason,
            description=asked.description,
            memo=asked.memo,
        ),
        "refundable_before": preview.refundable_before,
        "refundable_after": preview.refundable_after,
        **source_of_figures(page.payments),
        **whole_order(payment, preview.refundable_after),
        "similar": similar_rows(preview.similar, order),
        "similar_form": similar_form if preview.similar else None,
        "fields": [*fields.items(), ("signature", _sign(request, fields, preview, read_at))],
        "final_label": label % {"amount": money(asked.amount, payment.currency)},
        "needs_approval": preview.needs_approval,
        "longest_wait": longest_wait(),
    }
    return render(request, "refunds/refund_confirm.html", context, status=status)


# --- The signature of a confirmation ------------------------------------------------------------------------


def _fields(asked: services.RefundRequest) -> dict[str, str]:
    """Return the form's fields as text: they are posted again by the confirmation, and signed."""
    return {
        "request_id": str(asked.request_id),
        "payment": asked.payment_id,
        "amount": str(asked.amount),
        "reason": asked.reason,
        "description": asked.description,
        "memo": asked.memo,
    }


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
    """Return what this person's confirmation showed for these fields; None if it is too old or was not signed so."""
    try:
        digest, signed_for, *shown = signing.loads(
            request.POST.get("signature", ""), salt=CONFIRMATION, max_age=CONFIRMATION_SECONDS
        )
        said = _Shown(*shown)
    except (signing.BadSignature, ValueError, TypeError):
        return None
    right = digest == audit.keyed_hash("\0".join(fields.values())) and signed_for == request.user.pk
    return said if right else None
