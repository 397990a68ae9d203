"""Orders: the list, its search and what is kept of searches; and the page of an order."""

from datetime import timedelta
from typing import Any
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from dashboard import limits
from dashboard.parked_forms import posted_from
from refunds import audit, paging, roles, search, services, smartpay
from refunds.forms import OrderFilterForm, SavedSearchForm
from refunds.models import AuditEntry, Order, Payment, Refund, SavedSearch, Search, SmartpayRefund
from refunds.views.common import (
    may_see,
    parked_fields,
    person,
    problem_text,
    remember_way_back,
    see_other,
    uuid_of,
)

NOW = timedelta(minutes=5)  # of 「いま開いています」
LATE = timedelta(minutes=15)  # read every minute, the list is not: who looks for a new order has to know


@limits.limited(limits.LISTS)
@require_safe
@may_see
def order_list(request: HttpRequest) -> HttpResponse:
    """Orders, newest first, or what a search found. What was typed is never in the address."""
    if request.GET.get("q"):
        return _searched(request, request.GET["q"])
    remembered = own_search(request, request.GET.get("search", ""))
    typed = remembered.asked
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
        audit.record(request.user, "orders.searched", typed, words=search.words(typed), shown=shown)
        if request.session.get("search") != typed.pk:
            request.session["search"] = typed.pk
    else:
        audit.record(request.user, "orders.listed", None, shown=shown)
        if "search" in request.session:
            del request.session["search"]
    remember_way_back(request)
    now, synced_at = timezone.now(), remembered.read_at
    context = {
        "orders": result.orders,
        "page_size": search.PAGE,
        "search": typed,
        "typed": parked_fields(request).get("q", ""),
        "recent": remembered.recent,
        "saved": remembered.saved,
        "filters": form,
        "export_url": f"{reverse('refunds:order_export')}?{paging.filters(request.GET)}",
        "newer_url": paging.url(request.GET, result.newer),
        "older_url": paging.url(request.GET, result.older),
        "hidden_by_filters": result.hidden_by_filters,
        "only_unpaid": result.hidden_by_filters and filters == search.Filters(),
        "clear_filters_url": "?"
        + urlencode({"search": typed.pk if typed else "", "status": search.ANY_STATUS}),
        "partial": result.partial,
        "synced_at": synced_at,
        "late": synced_at is not None and now - synced_at > LATE,
        "now": now,
    }
    return render(request, "refunds/order_list.html", context)


@limits.limited(limits.SEARCHES)
@posted_from(lambda request: reverse("refunds:order_list"))
@may_see
def order_search(request: HttpRequest) -> HttpResponse:
    return _searched(request, request.POST.get("q", ""))


def _searched(request: HttpRequest, typed: str) -> HttpResponse:
    """Keep what was typed on our side and go on to an address without it; a whole id opens its order or refund."""
    text = search.as_typed(typed)
    if not text:
        return redirect("refunds:order_list")
    if order_id := search.whole_order_id(text):
        return redirect("refunds:order", order_id)
    refund_id = uuid_of(text)
    if refund_id and Refund.objects.filter(pk=refund_id).exists():
        return redirect("refunds:refund", refund_id)
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
    name, typed = form.cleaned_data["name"], own_search(request, form.cleaned_data["search"]).asked
    if mine.exclude(name=name).count() >= SavedSearch.MOST:
        messages.warning(request, _("保存できる検索は %(most)s 件までです。") % {"most": SavedSearch.MOST})
        return see_other("refunds:order_list")
    SavedSearch.objects.update_or_create(
        person=person(request), name=name, defaults={"search": typed, "filters": form.as_address()}
    )
    messages.success(request, _("検索を保存しました。"))
    address = urlencode({"search": typed.pk}) + "&" if typed else ""
    return redirect(f"{reverse('refunds:order_list')}?{address}{form.as_address()}")


def own_search(request: HttpRequest, search_id: str) -> search.Remembered:
    """What is remembered for the person; `asked` is the search of this id, for its person and for auditors.

    To everybody else that does not exist: raises Http404. None without an id.
    """
    remembered = search.remembered(person(request), search_id)
    asked = remembered.asked
    if search_id and asked is None:
        raise Http404
    if asked and asked.person_id != request.user.pk and not request.user.has_perm(roles.AUDIT):
        audit.record(request.user, "orders.searched", asked, refused=True)
        raise Http404
    return remembered


@limits.limited(limits.ORDERS)
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
    others = others_on(request, order)
    audit.record(request.user, "order.viewed", order, fresh=not problem)
    gone = isinstance(problem, smartpay.NotFound)
    blocked = why_no_refund(request, order, payments, gone=gone)
    timeline = _timeline(order, payments)
    open_ones = [entry for entry in timeline if entry.get("refund") and entry["state"] in Refund.BLOCKING]
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
        "timeline": timeline,
        "open_refunds": open_ones,
        "in_review": any(entry["state"] == Refund.State.REVIEW for entry in open_ones),
        "refund_url": "" if blocked else reverse("refunds:refund_form", args=[order.order_id]),
        # Of what the notices of these refunds say already, only what follows from it.
        "refund_blocked": _("いまは返金できません。") if blocked == unsettled() and open_ones else blocked,
        "fresh": not problem,
        "read_at": order.read_at,
        "problem": problem_text(problem) if problem else "",
        "back_url": reverse("refunds:order_list") + (f"?{urlencode({'search': kept})}" if kept else ""),
    }
    return render(request, "refunds/order_detail.html", context)


def others_on(request: HttpRequest, order: Order) -> list[AuditEntry]:
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
        explanation = problem_text(problem)
    context = {"order_id": order_id[:80], "explanation": explanation}
    found_out = problem is None or isinstance(problem, smartpay.NotFound)
    return render(request, "refunds/order_missing.html", context, status=404 if found_out else 503)


def why_no_refund(request: HttpRequest, order: Order, payments: list[Payment], *, gone: bool = False) -> str:
    """Why this person can't refund this order now, in words; "" if they can. `gone`: Smartpay said that it has none."""
    if not request.user.has_perm(roles.REQUEST_REFUND):
        return _("返金の権限がありません。返金は返金担当者に依頼してください。")
    if gone or order.vanished_at:
        return _("Smartpay にこの注文が見つからないため返金できません。システム担当者に連絡してください。")
    if not payments:
        if order.status == Order.Status.REQUIRES_CAPTURE:
            return _(
                "売上がまだ確定していないため返金できません。"
                "取り消したいときは、返金ではなく Smartpay で注文をキャンセルします。"
            )
        return _("支払いがないため、返金するものがありません。")
    open_ones = [payment for payment in payments if payment.refundable()]
    if open_ones:
        blocked = Refund.objects.filter(payment__in=open_ones, state__in=Refund.BLOCKING)
        if len(set(blocked.values_list("payment", flat=True))) < len(open_ones):
            return ""
        return unsettled()
    if any(payment.reserved for payment in payments):
        return _("残額はすべて処理中の返金に充てられています。")
    return _("全額が返金済みです。")


def unsettled() -> str:
    return _("結果が確定していない返金があります。確定するまで返金できません。もう一度返金しないでください。")


def _line(item: dict[str, Any]) -> dict[str, Any]:
    """A line of the order with the amount of all its pieces; a discount takes off."""
    amount = item["amount"] * item["quantity"]
    return item | {"amount": -abs(amount) if item["kind"] == "discount" else amount}


def _timeline(order: Order, payments: list[Payment]) -> list[dict[str, Any]]:
    """What happened to an order, newest first: the order, its payments, our refunds, and those made elsewhere."""
    ours = Refund.objects.filter(payment__in=payments).select_related("requested_by")
    elsewhere = SmartpayRefund.objects.filter(SmartpayRefund.beside_the_ledger(), payment__in=payments)
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
            "contradicts": seen.ours_id is not None,
        }
        for seen in elsewhere
    ]
    return sorted(entries, key=lambda entry: entry["at"], reverse=True)
