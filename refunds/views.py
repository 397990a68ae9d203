"""One view a screen or button: load, check, one call, answer."""

import uuid
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import wraps
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import permission_required
from django.core import signing
from django.db.models import Model, QuerySet
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.http.response import HttpResponseBase
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_http_methods, require_safe

from dashboard import limits, opened
from dashboard.models import User
from dashboard.sso import fresh_sign_in_required, posted_from
from refunds import audit, mirror, notices, paging, roles, search, services, smartpay
from refunds.forms import (
    DecisionForm,
    OrderFilterForm,
    RefundFilterForm,
    RefundForm,
    ReviewForm,
    SavedSearchForm,
    SendsForm,
    SimilarForm,
)
from refunds.models import (
    AuditEntry,
    Bulk,
    Control,
    Order,
    Payment,
    Refund,
    SavedSearch,
    Search,
    SmartpayRefund,
)
from refunds.templatetags.money import money

CONFIRMATION = "refunds.confirmation"  # the salt of its signature
CONFIRMATION_SECONDS = 3600
NOW = timedelta(minutes=5)  # of 「いま開いています」
RENEW_SECONDS = {
    Refund.State.QUEUED: 3,
    Refund.State.SENDING: 3,
    Refund.State.UNKNOWN: 3,
    Refund.State.REVIEW: 15,
}

may_see = permission_required(roles.VIEW_ORDERS, raise_exception=True)


def every_page(request: HttpRequest) -> dict[str, Any]:
    """Context of every page: test or live, what the person may open, and whether sending is stopped."""
    context: dict[str, Any] = {"mode": smartpay.mode_of(settings.SMARTPAY_SECRET_KEY)}
    if request.user.is_authenticated:
        context["nav"] = {
            "can_request": request.user.has_perm(roles.REQUEST_REFUND),
            "can_approve": request.user.has_perm(roles.APPROVE_REFUND),
            "can_compare": request.user.has_perm(roles.RECONCILE),
            "can_audit": request.user.has_perm(roles.AUDIT),
            "roles": [roles.LABELS[role] for role in person(request).role_names],
        }
        context["sends"] = Control.objects.select_related("changed_by").filter(one=True).first() or Control()
    return context


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
        len(_waiting(request, Refund.State.AWAITING_APPROVAL)[: paging.PAGE])
        + len(_waiting_files(request)[: paging.PAGE])
        if may_decide
        else 0
    )
    cases = len(_waiting(request, Refund.State.REVIEW)[: paging.PAGE]) if may_decide else 0
    found_out = (
        notices.found_out(notices.SHOWN)
        .filter(requested_by=person(request))
        .select_related("payment__order")[: paging.PAGE]
    )
    if shown := [str(refund.pk) for refund in (*unsettled, *found_out)]:
        audit.record(request.user, "refunds.listed", None, shown=shown)
    context = {
        "unsettled": unsettled,
        "found_out": found_out,
        "recent": search.recent(person(request)),
        "waiting": waiting,
        "cases": cases,
        "typed": _parked(request).get("q", ""),
    }
    return render(request, "refunds/start.html", context)


# --- 注文一覧 -------------------------------------------------------------------------------------------------


@require_safe
@may_see
def order_list(request: HttpRequest) -> HttpResponse:
    """Orders, newest first, or what a search found. What was typed is never in the address."""
    if request.GET.get("q"):
        return _searched(request, request.GET["q"])
    typed = own_search(request, request.GET.get("search", ""))
    form = OrderFilterForm(request.GET)
    filters = form.filters()
    cursor = request.GET.get("page", "")
    result = (
        search.find(typed.text, filters=filters, cursor=cursor)
        if typed
        else search.list_orders(filters, cursor)
    )
    shown = [order.order_id for order in result.orders]
    if typed:
        words = audit.keyed_hash(search.fold(typed.text))
        audit.record(request.user, "orders.searched", typed, words=words, shown=shown)
        if request.session.get("search") != typed.pk:
            request.session["search"] = typed.pk
    else:
        audit.record(request.user, "orders.listed", None, shown=shown)
        if "search" in request.session:
            del request.session["search"]
    context = {
        "orders": result.orders,
        "search": typed,
        "typed": _parked(request).get("q", ""),
        "recent": search.recent(person(request)),
        "saved": SavedSearch.objects.filter(person=person(request))[: SavedSearch.MOST],
        "filters": form,
        "export_url": f"{reverse('refunds:order_export')}?{paging.filters(request.GET)}",
        "newer_url": paging.url(request.GET, result.newer),
        "older_url": paging.url(request.GET, result.older),
        "hidden_by_filters": result.hidden_by_filters,
        "clear_filters_url": "?"
        + urlencode({"search": typed.pk if typed else "", "status": search.ANY_STATUS}),
        "partial": result.partial,
        "synced_at": mirror.freshness(),
        "now": timezone.now(),
    }
    return render(request, "refunds/order_list.html", context)


@posted_from(lambda request: reverse("refunds:order_list"))
@may_see
def order_search(request: HttpRequest) -> HttpResponse:
    return _searched(request, request.POST.get("q", ""))


def _searched(request: HttpRequest, typed: str) -> HttpResponse:
    """Keep what was typed on our side and go on to an address without it; a whole order ID opens the order."""
    text = search.as_typed(typed)
    if not text:
        return redirect("refunds:order_list")
    if order_id := search.whole_order_id(text):
        return redirect("refunds:order", order_id)
    kept = Search.objects.create(person=person(request), text=text, created_at=timezone.now())
    return redirect(f"{reverse('refunds:order_list')}?{urlencode({'search': kept.pk})}")


@posted_from(lambda request: reverse("refunds:order_list"))
@may_see
def saved_searches(request: HttpRequest) -> HttpResponse:
    """保存した検索: keep the filters, and the search, under a name; the same name again replaces it. Or forget one."""
    mine = SavedSearch.objects.filter(person=person(request))
    if forgotten := request.POST.get("forget", ""):
        mine.filter(name=forgotten).delete()
        return see_other("refunds:order_list")
    form = SavedSearchForm(request.POST)
    if not form.is_valid():
        messages.warning(request, " ".join(str(error) for errors in form.errors.values() for error in errors))
        return see_other("refunds:order_list")
    name, typed = form.cleaned_data["name"], own_search(request, form.cleaned_data["search"])
    if mine.exclude(name=name).count() >= SavedSearch.MOST:
        messages.warning(request, _("保存できる検索は %(most)s 件までです。") % {"most": SavedSearch.MOST})
        return see_other("refunds:order_list")
    SavedSearch.objects.update_or_create(
        person=person(request), name=name, defaults={"search": typed, "filters": form.as_address()}
    )
    messages.success(request, _("検索を保存しました。"))
    address = urlencode({"search": typed.pk}) + "&" if typed else ""
    return redirect(f"{reverse('refunds:order_list')}?{address}{form.as_address()}")


def own_search(request: HttpRequest, search_id: str) -> Search | None:
    """The search of this id, for its person and for auditors; to everybody else it does not exist."""
    if not search_id:
        return None
    if not search_id.isprintable():
        raise Http404
    kept = get_object_or_404(Search, pk=search_id)
    if kept.person_id != request.user.pk and not request.user.has_perm(roles.AUDIT):
        audit.record(request.user, "orders.searched", kept, refused=True)
        raise Http404
    return kept


# --- 注文詳細 -------------------------------------------------------------------------------------------------


@require_safe
@may_see
def order_detail(request: HttpRequest, order_id: str) -> HttpResponse:
    """An order, read afresh from Smartpay; the mirror's copy, with its age, where Smartpay does not answer."""
    client = smartpay.client()
    if smartpay.id_kind(order_id) != ("order", client.mode):
        return _order_missing(request, order_id, None)
    problem: smartpay.SmartpayError | None = None
    try:
        services.read_order(order_id, client=client.within(settings.SMARTPAY_VIEW_DEADLINE))
    except smartpay.SmartpayError as error:
        problem = error
    order = Order.objects.filter(order_id=order_id).prefetch_related("payments").first()
    if order is None:
        return _order_missing(request, order_id, problem)
    payments = list(order.payments.all())
    others = _others(request, order)
    audit.record(request.user, "order.viewed", order, fresh=not problem)
    blocked = _why_no_refund(request, order, payments)
    kept = request.session.get("search", "")
    context = {
        "order": order,
        "others": others,
        "payments": payments,
        "totals": {
            "amount": order.amount,
            "captured": sum(payment.captured for payment in payments),
            "refunded": sum(payment.already_refunded() for payment in payments),
            "refundable": sum(payment.refundable() for payment in payments),
            "reserved": sum(payment.reserved for payment in payments),
        },
        "line_items": [_line(item) for item in order.line_items],
        "timeline": _timeline(order, payments),
        "refund_url": "" if blocked else reverse("refunds:refund_form", args=[order.order_id]),
        "refund_blocked": blocked,
        "fresh": not problem,
        "read_at": order.read_at,
        "problem": _problem_text(problem) if problem else "",
        "back_url": reverse("refunds:order_list") + (f"?{urlencode({'search': kept})}" if kept else ""),
    }
    return render(request, "refunds/order_detail.html", context)


def _others(request: HttpRequest, order: Order) -> list[AuditEntry]:
    """Colleagues who are, or a moment ago were, on this order: two people may hold the same call."""
    return audit.others_at(order, person(request), since=NOW)


def _order_missing(
    request: HttpRequest, order_id: str, problem: smartpay.SmartpayError | None
) -> HttpResponse:
    """404 where there is no such order for us; 503 where nobody could tell. `problem`: None if nobody was asked."""
    known = order_id if smartpay.id_kind(order_id) else ""  # else it is what somebody typed: perhaps a name
    audit.record(request.user, "order.viewed", None, refused=True, order_id=known[:80])
    if problem is None:
        explanation = _(
            "注文IDの形が正しくないか、別の環境(テスト・本番)の注文です。注文IDをもう一度確認してください。"
        )
    elif isinstance(problem, smartpay.NotFound):
        explanation = _(
            "Smartpay にこの注文は見つかりません。注文IDをもう一度確認するか、お名前などで検索してください。"
        )
    else:
        explanation = _problem_text(problem)
    context = {"order_id": order_id[:80], "explanation": explanation}
    found_out = problem is None or isinstance(problem, smartpay.NotFound)
    return render(request, "refunds/order_missing.html", context, status=404 if found_out else 503)


def _problem_text(problem: smartpay.SmartpayError) -> str:
    """What an operator has to know of a read that failed."""
    if isinstance(problem, smartpay.KeyRefused):
        return _("Smartpay が API キーを受け付けません。システム担当者に連絡してください。")
    if isinstance(problem, smartpay.NotFound):
        return _("Smartpay にこの注文は見つかりません。システム担当者に連絡してください。")
    return _("Smartpay から応答がありません。時間をおいて開き直してください。")


def _why_no_refund(request: HttpRequest, order: Order, payments: list[Payment]) -> str:
    """Why this person can't refund this order now, in words; "" if they can."""
    if not request.user.has_perm(roles.REQUEST_REFUND):
        return _("返金の権限がありません。返金は返金担当者に依頼してください。")
    if not payments:
        if order.status == Order.Status.REQUIRES_CAPTURE:
            return _("売上がまだ確定していないため返金できません。Smartpay で注文をキャンセルしてください。")
        return _("支払いがないため、返金するものがありません。")
    open_ones = [payment for payment in payments if payment.refundable()]
    if open_ones:
        blocked = Refund.objects.filter(payment__in=open_ones, state__in=Refund.BLOCKING)
        if len(set(blocked.values_list("payment", flat=True))) < len(open_ones):
            return ""
        return _(
            "結果が確定していない返金があります。確定するまで返金できません。もう一度返金しないでください。"
        )
    if any(payment.reserved for payment in payments):
        return _("残額はすべて処理中の返金に充てられています。")
    return _("全額が返金済みです。")


def _line(item: dict[str, Any]) -> dict[str, Any]:
    """A line of the order with the amount of all its pieces; a discount takes off."""
    amount = item["amount"] * item["quantity"]
    return item | {"amount": -abs(amount) if item["kind"] == "discount" else amount}


def _timeline(order: Order, payments: list[Payment]) -> list[dict[str, Any]]:
    """What happened to an order, newest first: the order, its payments, our refunds, and those made elsewhere."""
    ours = Refund.objects.filter(payment__in=payments).select_related("requested_by")
    elsewhere = SmartpayRefund.objects.filter(payment__in=payments, ours=None)
    entries: list[dict[str, Any]] = [
        {
            "at": order.created_at,
            "kind": "order",
            "amount": order.amount,
            "currency": order.currency,
        }
    ]
    entries += [
        {
            "at": payment.created_at,
            "kind": "payment",
            "amount": payment.captured,
            "currency": payment.currency,
            "description": payment.description,
        }
        for payment in payments
    ]
    entries += [
        {
            "at": refund.requested_at,
            "kind": "refund",
            "label": refund.label,
            "state": refund.state,
            "amount": refund.amount,
            "currency": refund.currency,
            "person": refund.requested_by,
            "refund": refund,
            "description": refund.description,
        }
        for refund in ours
    ]
    entries += [
        {
            "at": seen.created_at,
            "kind": "external",
            "state": Refund.State.SUCCEEDED if seen.counts else Refund.State.REJECTED,
            "amount": seen.amount,
            "currency": seen.currency,
            "description": seen.description,
            "smartpay_id": seen.pk,
        }
        for seen in elsewhere
    ]
    return sorted(entries, key=lambda entry: entry["at"], reverse=True)


# --- 返金フォーム ----------------------------------------------------------------------------------------------


def not_too_often(view: Callable[[HttpRequest, str], HttpResponseBase]) -> Callable[..., HttpResponseBase]:
    """Counts forms opened as orders, and posts by themselves; too many get the page as it was typed."""

    @wraps(view)
    def inner(request: HttpRequest, order_id: str) -> HttpResponseBase:
        unjudged = request.method != "POST" or "all" in request.POST or "back" in request.POST
        wait = limits.taken(request, limits.ORDERS if unjudged else limits.REFUND_FORMS)
        if not wait:
            return view(request, order_id)
        # A customer's name is on it: past the limit it is drawn for whom it was drawn before.
        seen = opened.goes_on(request)
        return _as_typed(request, order_id, wait) if seen else limits.too_many(request, wait)

    return inner


def _as_typed(request: HttpRequest, order_id: str, wait: int) -> HttpResponse:
    """429: the form or its confirmation; or the refund, where an earlier press of the button has made it."""
    order = get_object_or_404(Order.objects.prefetch_related("payments"), order_id=order_id)
    form = RefundForm(request.POST, payments=list(order.payments.all()))
    if form.is_valid() and _made(request.POST["request_id"]):
        return redirect("refunds:refund", form.request().request_id)
    messages.warning(request, limits.explanation(wait))
    if form.is_valid() and "confirm" in request.POST:
        with suppress(services.RefundError):  # said when it may be posted again
            page = _confirmation(
                request, order, form.request(), similar_form=SimilarForm(request.POST), status=429
            )
            return limits.retry_after(page, wait)
    return limits.retry_after(
        _draw_form(request, order, _typed_form(request, form.payments), status=429), wait
    )


@require_http_methods(["GET", "HEAD", "POST"])
@permission_required(roles.REQUEST_REFUND, raise_exception=True)
@not_too_often
def refund_form(request: HttpRequest, order_id: str) -> HttpResponseBase:
    """The form, its confirmation, and the refund: three answers of one address, told apart by what is posted."""
    if smartpay.id_kind(order_id) is None:
        raise Http404
    order = get_object_or_404(Order.objects.prefetch_related("payments"), order_id=order_id)
    payments = list(order.payments.all())
    parked = _parked(request)
    if request.method != "POST" and "confirm" not in parked:
        if blocked := _why_no_refund(request, order, payments):
            messages.warning(request, blocked)
            return redirect("refunds:order", order_id)
        return _draw_form(request, order, _empty_form(request, order, payments))
    # A confirmation whose sign-in had to be checked is drawn again, as if 返金する had been pressed.
    form = RefundForm(request.POST or parked, payments=payments)
    if "all" in request.POST or "back" in request.POST:
        return _draw_form(request, order, _typed_form(request, payments))
    if not form.is_valid():
        codes = {name: [error.code for error in errors.as_data()] for name, errors in form.errors.items()}
        audit.record(request.user, "refund.requested", order, refused=True, errors=codes)
        return _draw_form(request, order, form, status=422)
    asked = form.request()
    try:
        if made := services.find_request(asked, by=person(request)):
            return redirect("refunds:refund", made.pk)
        services.read_payment(asked.payment_id, client=_quick_client())
        if "confirm" not in request.POST:
            return _confirmation(request, order, asked, similar_form=SimilarForm(initial=parked))
        confirmed = (
            fresh_sign_in_required(_confirmed) if services.needs_approval(asked.amount) else _confirmed
        )
        try:
            return confirmed(request, order, asked)
        except services.SimilarRefund as error:
            _refused(request, order, asked, error)
            return _confirmation(request, order, asked, similar_form=SimilarForm(request.POST), status=422)
    except services.RequestReused as error:
        audit.record(request.user, "refund.requested", error.refund, refused=True, why="request_id reused")
        return render(request, "refunds/conflict.html", {"refund": error.refund}, status=409)
    except (services.RefundError, smartpay.SmartpayError) as error:
        if _made(
            str(asked.request_id)
        ):  # another click of this very form was quicker: nothing of it was in vain
            return redirect("refunds:refund", asked.request_id)
        return _not_taken(request, order, form, asked, error)


def _not_taken(
    request: HttpRequest,
    order: Order,
    form: RefundForm,
    asked: services.Request,
    error: services.RefundError | smartpay.SmartpayError,
) -> HttpResponse:
    """The form with what speaks against it; nothing was recorded and nothing sent."""
    if isinstance(error, smartpay.SmartpayError):
        form.add_error(None, _not_now(error))
        return _draw_form(request, order, form, status=503)
    _refused(request, order, asked, error)
    form.add_error(error.field, str(error))
    for payment in form.payments:  # the figures beside the message are those it speaks of
        payment.refresh_from_db()
    return _draw_form(request, order, form, status=422)


def _empty_form(request: HttpRequest, order: Order, payments: list[Payment]) -> RefundForm:
    """A new form with a new id; or the one that was typed, with its own: after Back from the confirmation, or where
    the sign-in had to be checked before the form was taken.

    What was typed lives until its refund is made: then the next form is another refund.
    """
    draft = request.session.get("draft") or {}
    typed = _parked(request) or (draft.get("fields") if draft.get("order") == order.order_id else None)
    if typed and not _made(typed.get("request_id", "")):
        return RefundForm(initial=typed, payments=payments)
    open_ones = [payment.pk for payment in payments if payment.refundable()]
    initial = {"request_id": uuid.uuid4(), "payment": open_ones[0] if len(open_ones) == 1 else None}
    return RefundForm(initial=initial, payments=payments)


def _made(request_id: str) -> bool:
    """Whether the refund of this id exists; no id that can be read, no refund."""
    refund_id = _uuid(request_id)
    return refund_id is not None and Refund.objects.filter(pk=refund_id).exists()


def _typed_form(request: HttpRequest, payments: list[Payment]) -> RefundForm:
    """The form as it was typed, unjudged; with 残額すべて, the amount is what is left of the payment chosen."""
    typed = {name: request.POST.get(name, "") for name in RefundForm.base_fields}
    form = RefundForm(initial=typed, payments=payments)
    if "all" in request.POST and form.chosen:
        form.initial["amount"] = form.chosen.refundable()
    return form


def _draw_form(request: HttpRequest, order: Order, form: RefundForm, status: int = 200) -> HttpResponse:
    viewed(request, "order.viewed", order)
    payment = form.chosen or (form.payments[0] if len(form.payments) == 1 else None)
    context = {
        "order": order,
        "others": _others(request, order),
        "payments": form.payments,
        "payment": payment,
        "form": form,
        "refundable": payment.refundable() if payment else None,
    }
    return render(request, "refunds/refund_form.html", context, status=status)


def _confirmation(
    request: HttpRequest,
    order: Order,
    asked: services.Request,
    *,
    similar_form: SimilarForm | None = None,
    status: int = 200,
) -> HttpResponse:
    """What would happen, drawn by the server, signed over every field, the person and the balance shown."""
    preview = services.preview_refund(asked, by=person(request))
    viewed(request, "order.viewed", order)
    fields = _fields(asked)
    request.session["draft"] = {"order": order.order_id, "fields": fields}
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
        "similar": [_similar(each, order) for each in preview.similar],
        "similar_form": (similar_form or SimilarForm()) if preview.similar else None,
        "fields": [*fields.items(), ("signature", _sign(request, fields, preview.refundable_before))],
        "final_label": (
            _("%(amount)s の返金を申請する") if preview.needs_approval else _("%(amount)s を返金する")
        )
        % {"amount": shown},
        "needs_approval": preview.needs_approval,
    }
    return render(request, "refunds/refund_confirm.html", context, status=status)


def _confirmed(request: HttpRequest, order: Order, asked: services.Request) -> HttpResponse:
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
    refund = services.refund_payment(asked, refundable=signed, by=person(request), similar_reason=reason)
    request.session.pop("draft", None)
    return see_other("refunds:refund", refund.pk)


def _fields(asked: services.Request) -> dict[str, str]:
    """The form's fields as text: what is posted again, and what is signed."""
    return {
        "request_id": str(asked.request_id),
        "payment": asked.payment_id,
        "amount": str(asked.amount),
        "reason": asked.reason,
        "description": asked.description,
        "memo": asked.memo,
    }


def _sign(request: HttpRequest, fields: dict[str, str], refundable: int) -> str:
    digest = audit.keyed_hash("\0".join(fields.values()))
    return signing.dumps([digest, request.user.pk, refundable], salt=CONFIRMATION)


def _signed(request: HttpRequest, fields: dict[str, str]) -> int | None:
    """The balance that was shown to this person with these fields; None if that is not what was signed."""
    try:
        digest, signed_for, refundable = signing.loads(
            request.POST.get("signature", ""), salt=CONFIRMATION, max_age=CONFIRMATION_SECONDS
        )
    except (signing.BadSignature, ValueError):
        return None
    right = digest == audit.keyed_hash("\0".join(fields.values())) and signed_for == request.user.pk
    return int(refundable) if right else None


def _similar(each: services.Similar, order: Order) -> dict[str, Any]:
    return {
        "refund": each.refund,
        "at": each.at,
        "person": each.person,
        "amount": each.amount,
        "currency": each.currency,
        "same_order": each.order_id == order.order_id,
        "order_id": each.order_id,
        "elsewhere": each.refund is None,
        "url": reverse("refunds:refund", args=[each.refund.pk])
        if each.refund
        else reverse("refunds:order", args=[each.order_id]),
    }


def _refused(
    request: HttpRequest, order: Order, asked: services.Request, error: services.RefundError
) -> None:
    audit.record(
        request.user,
        "refund.requested",
        order,
        refused=True,
        why=type(error).__name__,
        amount=asked.amount,
        payment=asked.payment_id,
    )


def _not_now(error: smartpay.SmartpayError) -> str:
    """Why nothing was sent: the payment could not be read first."""
    if isinstance(error, smartpay.KeyRefused):
        return _(
            "Smartpay が API キーを受け付けないため、いまは返金できません。何も送られていません。"
            "システム担当者に連絡してください。"
        )
    return _(
        "Smartpay から応答がないため、いまは返金できません。何も送られていません。"
        "時間をおいてもう一度お試しください。"
    )


# --- 返金 ----------------------------------------------------------------------------------------------------


@require_safe
@may_see
def refund_detail(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    """The one page of a refund. Reading it again never sends anything."""
    return _draw_refund(request, _refund(refund_id), DecisionForm(initial=_parked(request)))


def _refund_page(request: HttpRequest, refund_id: uuid.UUID) -> str:
    return reverse("refunds:refund", args=[refund_id])


def _refund(refund_id: uuid.UUID) -> Refund:
    related = Refund.objects.select_related("payment__order", "requested_by", "decided_by")
    return get_object_or_404(related, pk=refund_id)


def _draw_refund(
    request: HttpRequest, refund: Refund, decision: DecisionForm, status: int = 200
) -> HttpResponse:
    viewed(request, "refund.viewed", refund)
    waiting = refund.state == Refund.State.AWAITING_APPROVAL
    mine = refund.requested_by_id == request.user.pk
    explanation, what_now = _meaning(refund)
    if (
        refund.state == Refund.State.CANCELLED
        and refund.seen.exclude(status=SmartpayRefund.Status.FAILED).exists()
    ):
        explanation = _("この返金は取り下げられましたが、Smartpay に同じ返金があります。")
        what_now = _("システム担当者に連絡してください。もう一度返金しないでください。")
    context = {
        "refund": refund,
        "order": refund.payment.order,
        "attempts": refund.attempts.all(),
        "evidence": refund.evidence.order_by("-at")[: paging.PAGE],
        "explanation": explanation,
        "what_now": what_now,
        "held": _why_held(refund),
        "judged": refund.review_decisions.select_related("person").order_by("id"),
        "can_judge": refund.state == Refund.State.REVIEW and not _why_not_my_case(request, refund),
        "other_amount": _other_amount(refund),
        "renew_seconds": RENEW_SECONDS.get(Refund.State(refund.state), 0),
        "can_withdraw": mine and (waiting or refund.state == Refund.State.QUEUED),
        "can_decide": waiting and not mine and request.user.has_perm(roles.APPROVE_REFUND),
        "decision": decision,
        "left_after": refund.refundable_before - refund.amount,
        "approve_label": _("%(amount)s の返金を承認する") % {"amount": money(refund.amount, refund.currency)},
    }
    return render(request, "refunds/refund_detail.html", context, status=status)


def _why_held(refund: Refund) -> str:
    """Why a refund that could be sent is not sent now, in words; "" where nothing holds it."""
    if refund.state not in (Refund.State.QUEUED, Refund.State.UNKNOWN):
        return ""
    if not Control.sends_are_on():
        return _(
            "返金の送信が停止されているため、いまは送信されません。再開されると、必要なら自動で送信します。"
        )
    if services.smartpay_is_silent():
        return _(
            "Smartpay から応答がない状態が続いているため、返金の送信を控えています。"
            "応答が戻ると、必要なら自動で送信します。"
        )
    return ""


def _other_amount(refund: Refund) -> int | None:
    """What Smartpay says was refunded, where that is not what was asked for: people decided that it is this one."""
    seen = SmartpayRefund.objects.filter(pk=refund.smartpay_id).first() if refund.smartpay_id else None
    return seen.amount if seen and seen.counts and seen.amount != refund.amount else None


@require_safe
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
def approvals(request: HttpRequest) -> HttpResponse:
    """承認: what waits for a second person, the longest waiting first; one's own waits for somebody else."""
    return _draw_approvals(request, SendsForm(initial=_parked(request)))


def _draw_approvals(request: HttpRequest, sends_form: SendsForm, status: int = 200) -> HttpResponse:
    rows = list(_waiting(request, Refund.State.AWAITING_APPROVAL)[: paging.PAGE])
    cases = list(_waiting(request, Refund.State.REVIEW)[: paging.PAGE])
    audit.record(request.user, "refunds.listed", None, shown=[str(refund.pk) for refund in (*rows, *cases)])
    waiting = [Refund.State.AWAITING_APPROVAL, Refund.State.REVIEW]
    own = Refund.objects.filter(requested_by=person(request), state__in=waiting).exists()
    files = list(_waiting_files(request)[: paging.PAGE])
    context = {"refunds": rows, "bulks": files, "cases": cases, "own": own, "sends_form": sends_form}
    return render(request, "refunds/approvals.html", context, status=status)


def _waiting_files(request: HttpRequest) -> QuerySet[Bulk]:
    """一括返金 that this person could decide."""
    waiting = Bulk.objects.filter(state=Bulk.State.AWAITING_APPROVAL).exclude(uploaded_by=person(request))
    return waiting.select_related("uploaded_by").order_by("uploaded_at", "id")


def _waiting(request: HttpRequest, state: Refund.State) -> QuerySet[Refund]:
    """Refunds of this state that this person could decide, the longest waiting first."""
    return (
        Refund.objects.filter(state=state)
        .exclude(requested_by=person(request))
        .select_related("payment__order", "requested_by")
        .order_by("requested_at", "id")
    )


@posted_from(_refund_page)
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def refund_decide(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    """承認する sends the refund; 却下する frees its amount. The sign-in has to be fresh for either."""
    refund = _refund(refund_id)
    form = DecisionForm(request.POST)
    if not form.is_valid():
        return _draw_refund(request, refund, form, status=422)
    note = form.cleaned_data["note"]
    try:
        if "approve" in request.POST:
            services.approve(refund_id, by=person(request), note=note)
        else:
            services.reject(refund_id, by=person(request), note=note)
    except services.NotWaiting as error:
        messages.warning(request, str(error))
    except services.RefundError as error:
        form.add_error(error.field, str(error))
        return _draw_refund(request, refund, form, status=422)
    except smartpay.SmartpayError as error:
        refund = _refund(refund_id)
        if refund.state != Refund.State.AWAITING_APPROVAL:  # another click was quicker
            return redirect("refunds:refund", refund_id)
        form.add_error(None, _not_now(error))
        return _draw_refund(request, refund, form, status=503)
    return redirect("refunds:refund", refund_id)


@require_http_methods(["GET", "HEAD", "POST"])
@may_see
def refund_review(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponseBase:
    """要調査: what was asked for beside what Smartpay shows; two approvers decide, neither of them the requester."""
    if request.method == "POST":
        return _decide_case(request, refund_id)
    return _draw_case(request, _refund(refund_id), form=ReviewForm(initial=_parked(request)))


@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def _decide_case(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    refund = _refund(refund_id)
    form = ReviewForm(request.POST)
    if not form.is_valid():
        return _draw_case(request, refund, form=form, status=422)
    try:
        refund = services.decide_case(
            refund_id, **form.cleaned_data, by=person(request), client=_quick_client()
        )
    except services.NotWaiting as error:
        messages.warning(request, str(error))
        return see_other("refunds:refund", refund_id)
    except services.RefundError as error:
        form.add_error(error.field or "choice", str(error))
        return _draw_case(request, refund, form=form, status=422)
    except smartpay.SmartpayError as error:
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
            complete_at = services.look_again(refund.pk, client=_quick_client())
        except smartpay.SmartpayError as error:
            problem = error
        refund = _refund(refund.pk)
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
        "sends_form": sends_form or SendsForm(initial=_parked(request)),
        "attempts": refund.attempts.all(),
        "evidence": refund.evidence.order_by("-at")[: paging.PAGE],
        "problem": _problem_text(problem) if problem else "",
        "read_at": timezone.now(),
        "is_open": refund.state == Refund.State.REVIEW,
        "blocked": _why_not_my_case(request, refund),
    }
    return render(request, "refunds/refund_review.html", context, status=status)


def _why_not_my_case(request: HttpRequest, refund: Refund) -> str:
    """Why this person can't decide this case, in words; "" if they can."""
    if not request.user.has_perm(roles.APPROVE_REFUND):
        return _("判定できるのは承認者だけです。承認者二人に依頼してください。")
    if refund.requested_by_id == request.user.pk:
        return _("自分が申請した返金は判定できません。ほかの承認者二人が判定します。")
    return ""


def _compare(refund: Refund, candidate: services.Candidate) -> list[dict[str, Any]]:
    """What was asked for beside what Smartpay shows, line by line; how they compare is told in words."""
    seen = candidate.seen
    named = seen.reference or str(seen.metadata.get("refund_dashboard_id") or "")
    reasons = dict(Refund.Reason.choices)
    lines = [  # label, how it is shown, asked, shown
        (_("返金額"), "num", money(refund.amount, refund.currency), money(seen.amount, seen.currency)),
        (_("支払い"), "id", refund.payment_id, seen.payment_id),
        (_("返金の番号"), "id", str(refund.pk), str(refund.pk) if candidate.is_named else named),
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


def _quick_client() -> smartpay.Client:
    return smartpay.client().within(settings.SMARTPAY_VIEW_DEADLINE)


def see_other(view: str, *args: Any) -> HttpResponse:
    response = redirect(view, *args)
    response.status_code = 303
    return response


def _page_of_switch(request: HttpRequest) -> str:
    """Where somebody stops or resumes sending: 承認, or the page of a case."""
    case = _uuid(request.POST.get("case", ""))
    return reverse("refunds:refund_review", args=[case]) if case else reverse("refunds:approvals")


@posted_from(_page_of_switch)
@permission_required(roles.APPROVE_REFUND, raise_exception=True)
@fresh_sign_in_required
def sends(request: HttpRequest) -> HttpResponse:
    """Stop or resume all sending, with a reason: from 承認, or from the page of a case."""
    form = SendsForm(request.POST)
    resume = "resume" in request.POST
    case_id = _uuid(request.POST.get("case", ""))
    case = Refund.objects.filter(pk=case_id).first() if case_id else None
    if form.is_valid():
        try:
            services.set_sends(enabled=resume, reason=form.cleaned_data["reason"], by=person(request))
        except services.NotReconciled as error:
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
        return _draw_case(request, _refund(case.pk), sends_form=form, status=422)
    return _draw_approvals(request, form, status=422)


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _meaning(refund: Refund) -> tuple[str, str]:
    """What a state means for the money, and what happens next."""
    return {
        Refund.State.AWAITING_APPROVAL: (
            _("もう一人の承認を待っています。まだ Smartpay に送られていません。"),
            _("承認されるまで、この金額は返金可能額から差し引かれています。"),
        ),
        Refund.State.QUEUED: (
            _("受け付けました。まだ Smartpay に送られていません。"),
            _("順番が来ると自動で送信します。もう一度返金しないでください。"),
        ),
        Refund.State.SENDING: (
            _("Smartpay に送信しています。返金されたかどうかはまだ分かりません。"),
            _("応答を待っています。もう一度返金しないでください。"),
        ),
        Refund.State.UNKNOWN: (
            _("Smartpay からはっきりした応答がありません。返金されたかどうかはまだ分かりません。"),
            _("自動で確認しています。もう一度返金しないでください。"),
        ),
        Refund.State.REVIEW: (
            _("Smartpay の表示と記録が食い違っています。返金されたかどうかは確定していません。"),
            _("承認者二人が判定するまで、この支払いの返金はできません。もう一度返金しないでください。"),
        ),
        Refund.State.SUCCEEDED: (
            _("Smartpay が返金を確認しました。"),
            _("お客様には Smartpay からメールが届きます。"),
        ),
        Refund.State.REJECTED: (
            _("Smartpay が返金を断りました。お金は動いていません。"),
            _("内容を確かめて、必要なら注文からあらためて返金してください。"),
        ),
        Refund.State.NOT_EXECUTED: (
            _("返金は行われていないことを確認しました。お金は動いていません。"),
            _("必要なら注文からあらためて返金してください。"),
        ),
        Refund.State.CANCELLED: (_("この返金は送信されませんでした。お金は動いていません。"), ""),
    }[Refund.State(refund.state)]


@posted_from(_refund_page)
@permission_required(roles.REQUEST_REFUND, raise_exception=True)
def refund_withdraw(request: HttpRequest, refund_id: uuid.UUID) -> HttpResponse:
    get_object_or_404(Refund, pk=refund_id)
    try:
        services.withdraw(refund_id, by=person(request))
    except services.NotWaiting as error:
        messages.warning(request, str(error))
    return redirect("refunds:refund", refund_id)


@require_safe
@may_see
def refund_list(request: HttpRequest) -> HttpResponse:
    """The ledger, newest first: by state, person, period and amount."""
    form = RefundFilterForm(request.GET)
    refunds = form.refunds().select_related("payment__order", "requested_by")
    rows, newer, older = paging.newest_first(refunds, "requested_at", request.GET.get("page", ""))
    audit.record(request.user, "refunds.listed", None, shown=[str(refund.pk) for refund in rows])
    context = {
        "refunds": rows,
        "filters": form,
        "export_url": f"{reverse('refunds:refund_export')}?{paging.filters(request.GET)}",
        "newer_url": paging.url(request.GET, newer),
        "older_url": paging.url(request.GET, older),
    }
    return render(request, "refunds/refund_list.html", context)


def _parked(request: HttpRequest) -> dict[str, str]:
    """The fields of a form that was put aside while the sign-in was checked; empty where there was none.

    See Note [Parked forms] in dashboard/sso.py.
    """
    parked: QueryDict = getattr(request, "parked")  # noqa: B009  (SessionPolicy gives it to every request)
    return {name: str(value) for name, value in parked.items()}


def viewed(request: HttpRequest, action: str, obj: Model) -> None:
    """Record that somebody looks at this, unless their page only goes on: see dashboard/opened.py."""
    if not opened.goes_on(request):
        audit.record(request.user, action, obj)
        opened.remember(request)


def person(request: HttpRequest) -> User:
    """The person signed in; every view here stands behind the sign-in."""
    assert isinstance(request.user, User)  # noqa: S101
    return request.user
