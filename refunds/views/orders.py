"""Orders: the list with its search and saved searches, and the page of an order."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlencode

from django.conf import settings
from django.contrib import messages
from django.db.models import F
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from django.views.decorators.http import require_safe

from dashboard import limits
from dashboard.models import User
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
    source_of_figures,
    uuid_of,
)

PRESENCE_WINDOW = timedelta(minutes=5)  # a colleague who opened an order within it counts as being at it
TIMELINE_BESIDE_DECISION = 10  # entries; the order's own page has all
MIRROR_LATE_AFTER = timedelta(minutes=15)  # it is read every minute; past this the list warns that it is late


@limits.limited(limits.LISTS)
@require_safe
@may_see
def order_list(request: HttpRequest) -> HttpResponse:
    """注文一覧: orders, newest first, or what a search found. The address holds the search's id, not its text."""
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
        "keeps": form.narrowing
        if typed is None
        else bool(result.orders or result.hidden_by_filters or result.partial),
        "export_url": f"{reverse('refunds:order_export')}?{paging.filters(request.GET)}",
        "newer_url": paging.url(request.GET, result.newer),
        "older_url": paging.url(request.GET, result.older),
        "hidden_by_filters": result.hidden_by_filters,
        "only_unpaid": result.hidden_by_filters and filters == search.Filters(),
        "clear_filters_url": "?"
        + urlencode({"search": typed.pk if typed else "", "status": search.ANY_STATUS}),
        "partial": result.partial,
        "synced_at": synced_at,
        "late": synced_at is not None and now - synced_at > MIRROR_LATE_AFTER,
        "now": now,
    }
    return render(request, "refunds/order_list.html", context)


@limits.limited(limits.SEARCHES)
@posted_from(lambda request: reverse("refunds:order_list"))
@may_see
def order_search(request: HttpRequest) -> HttpResponse:
    return _searched(request, request.POST.get("q", ""))


def _searched(request: HttpRequest, typed: str) -> HttpResponse:
    """Store what was typed and redirect to an address without it; the id of an order or refund opens its page.

    It answers 302 to the post of the search box as well as to a GET with `?q=`.
    """
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
    """保存した検索: save the filters and the search under a name, replacing one of that name; or delete one."""
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
    return see_other(f"{reverse('refunds:order_list')}?{address}{form.as_address()}")


def own_search(request: HttpRequest, search_id: str) -> search.Remembered:
    """Return what is remembered for the person. Its `asked` is the search of this id; None without an id.

    Raises Http404 if there is no such search, or if it is another person's and this one is no auditor.
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
    """注文詳細, read afresh from Smartpay; if Smartpay does not answer, the mirror's copy with its age."""
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
    unsettled_refunds = [entry for entry in timeline if entry.refund and entry.state in Refund.RESERVING]
    open_refunds = [entry for entry in unsettled_refunds if entry.state in Refund.BLOCKING]
    cases = _cases(unsettled_refunds)
    refunded = {
        payment.pk: payment.already_refunded() - sum(case.unjudged.get(payment.pk, 0) for case in cases)
        for payment in payments
    }
    kept = request.session.get("search", "")
    context = {
        "order": order,
        "others": others,
        "payments": [(payment, refunded[payment.pk]) for payment in payments],
        "totals": {
            "amount": order.amount,
            "captured": sum(payment.captured for payment in payments),
            "refunded": sum(refunded.values()),
            "refundable": sum(payment.refundable() for payment in payments),
            "reserved": sum(payment.reserved for payment in payments),
        },
        "line_items": [_line(item) for item in order.line_items],
        "timeline": timeline,
        "open_refunds": open_refunds,
        "waiting_refunds": [entry for entry in unsettled_refunds if entry not in open_refunds],
        "cases": cases,
        # Only what was captured can be refunded; the rest of the order has not been paid yet.
        "captured_only": order.status == Order.Status.REQUIRES_CAPTURE and not blocked,
        "refund_url": "" if blocked else reverse("refunds:refund_form", args=[order.order_id]),
        # The notices of these refunds tell the reason already.
        "refund_blocked": _("いまは返金できません。") if blocked == unsettled() and open_refunds else blocked,
        "fresh": not problem,
        "read_at": order.read_at,
        **source_of_figures(payments),
        "problem": problem_text(problem) if problem else "",
        "back_url": reverse("refunds:order_list") + (f"?{urlencode({'search': kept})}" if kept else ""),
    }
    return render(request, "refunds/order_detail.html", context)


def others_on(request: HttpRequest, order: Order) -> list[AuditEntry]:
    """Return the last entries of colleagues at this order: two people may be handling the same request."""
    return audit.other_people_on_order(order, person(request), since=PRESENCE_WINDOW)


def _order_missing(
    request: HttpRequest, order_id: str, problem: smartpay.SmartpayError | None
) -> HttpResponse:
    """Return 404 if the order does not exist, 503 if that could not be found out.

    `problem`: what Smartpay answered; None if it was not asked, because the id can't be one of this environment.
    """
    known = order_id if smartpay.id_kind(order_id) else ""  # anything else was typed, and may be a name
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
    """Say why this person can't refund this order now; "" if they can. `gone`: Smartpay says it does not exist."""
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
    refundable = [payment for payment in payments if payment.refundable()]
    if refundable:
        blocked = Refund.objects.blocking().filter(payment__in=refundable)
        if len(set(blocked.values_list("payment", flat=True))) < len(refundable):
            return ""
        return unsettled()
    if any(payment.reserved for payment in payments):
        return _("残額はすべて処理中の返金に充てられています。")
    return _("全額が返金済みです。")


def unsettled() -> str:
    return _("結果が確定していない返金があります。確定するまで返金できません。もう一度返金しないでください。")


def _line(item: dict[str, Any]) -> dict[str, Any]:
    """Return a line item with the amount of all its pieces; that of a discount is negative."""
    amount = item["amount"] * item["quantity"]
    return item | {"amount": -abs(amount) if item["kind"] == "discount" else amount}


@dataclass(frozen=True, slots=True, kw_only=True)
class TimelineEntry:
    """A line of refunds/_timeline.html: what happened to an order."""

    at: datetime
    kind: Literal["order", "payment", "refund", "external"]  # external: a refund made outside this tool
    amount: int  # in the currency's minor unit
    currency: str
    description: str = ""
    state: str = ""  # a Refund.State, of refunds
    # Of our own refunds:
    label: str = ""
    person: User | None = None
    refund: Refund | None = None
    # Of external refunds:
    smartpay_id: str = ""
    contradicts: bool = (
        False  # it carries the reference of a refund of ours, which the ledger does not have it for
    )


@dataclass(frozen=True, slots=True)
class Case:
    """A refund in 要調査: what was asked for, and what Smartpay shows of it."""

    refund: Refund
    shown: list[SmartpayRefund]
    # What Payment.external holds of it, by payment. Until people have judged the case, it is not known to be refunded,
    # and the figures leave it out.
    unjudged: dict[str, int]


def _cases(entries: list[TimelineEntry]) -> list[Case]:
    """Return the cases among the entries; one query if there are any, else none."""
    in_review = [entry.refund for entry in entries if entry.refund and entry.state == Refund.State.REVIEW]
    cases = {refund.pk: Case(refund, [], {}) for refund in in_review}
    if not cases:
        return []
    seen_ones = SmartpayRefund.objects.counting().filter(ours__in=in_review).select_related("ours")
    for seen in seen_ones.order_by("created_at", "id"):
        assert seen.ours_id  # noqa: S101
        case = cases[seen.ours_id]
        case.shown.append(seen)
        case.unjudged[seen.payment_id] = case.unjudged.get(seen.payment_id, 0) + seen.uncovered()
    return list(cases.values())


def timeline_beside(refund: Refund) -> list[TimelineEntry]:
    """Return the newest of what else happened to the refund's order, for whoever decides about the refund."""
    order = refund.payment.order
    entries = _timeline(order, list(order.payments.all()))
    return [entry for entry in entries if entry.refund != refund][:TIMELINE_BESIDE_DECISION]


def _timeline(order: Order, payments: list[Payment]) -> list[TimelineEntry]:
    """Return the order, its payments, our refunds and those made outside this tool, newest first."""
    ours = Refund.objects.filter(payment__in=payments).select_related("requested_by")
    elsewhere = SmartpayRefund.objects.beside_the_ledger().filter(payment__in=payments)
    # If Smartpay's refund failed, and our row was settled with it and says so, our row is enough.
    elsewhere = elsewhere.exclude(status=SmartpayRefund.Status.FAILED, ours__smartpay_id=F("id"))
    entries = [
        TimelineEntry(at=order.created_at, kind="order", amount=order.amount, currency=order.currency),
        *[
            TimelineEntry(
                at=payment.created_at,
                kind="payment",
                amount=payment.captured,
                currency=payment.currency,
                description=payment.description,
            )
            for payment in payments
        ],
        *[
            TimelineEntry(
                at=refund.requested_at,
                kind="refund",
                amount=refund.amount,
                currency=refund.currency,
                description=refund.description,
                state=refund.state,
                label=refund.label,
                person=refund.requested_by,
                refund=refund,
            )
            for refund in ours
        ],
        *[
            TimelineEntry(
                at=seen.created_at,
                kind="external",
                amount=seen.amount,
                currency=seen.currency,
                description=seen.description,
                state=Refund.State.SUCCEEDED if seen.counts else Refund.State.REJECTED,
                smartpay_id=seen.pk,
                contradicts=seen.ours_id is not None,
            )
            for seen in elsewhere
        ],
    ]
    return sorted(entries, key=lambda entry: entry.at, reverse=True)
