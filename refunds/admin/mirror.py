"""The mirror: orders, payments, the refunds that Smartpay shows, and how far its lists were read."""

import re
import unicodedata
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin
from django.db import models
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html, format_html_join
from django.utils.translation import gettext_lazy as _

from dashboard import limits
from refunds import search
from refunds.admin.base import AuditorAdmin, AuditorInline, WordsFilter, as_money, as_yes_or_no, column
from refunds.models import Order, Payment, SmartpayRefund, SyncCursor
from refunds.order_keys import first_key
from refunds.wording import grouped, money

LINE_KINDS = {"product": _("商品"), "discount": _("割引"), "tax": _("税")}
COLLECTIONS = {
    SyncCursor.ORDERS: _("注文"),
    SyncCursor.SESSIONS: _("お客様情報"),
    SyncCursor.REFUNDS: _("返金"),
}


class RefundStatusFilter(WordsFilter):
    """refund_status is a generated column."""

    title = _("返金状況")
    parameter_name = "refund_status"
    words = Order.RefundStatus.choices


class OrderStatusFilter(WordsFilter):
    """Shows the two statuses that are labelled 手続き中 as one entry."""

    title = _("状態")
    parameter_name = "status__exact"
    words = [each for each in Order.Status.choices if each[0] != Order.Status.PENDING]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        if self.value() == Order.Status.REQUIRES_AUTHORIZATION:
            return queryset.filter(status__in=search.STATUSES[search.IN_PROGRESS])
        return super().queryset(request, queryset)


class SeenStatusFilter(WordsFilter):
    """The column may also hold other words of Smartpay's, so it has no choices."""

    title = _("状態")
    parameter_name = "status"
    words = SmartpayRefund.Status.choices


PAYMENT_AMOUNTS = [
    column(Payment, name, as_money) for name in ("captured", "refunded", "external", "reserved")
]


class PaymentInline(AuditorInline):
    model = Payment
    fields = ("id", *PAYMENT_AMOUNTS, "created_at")
    show_change_link = True


@admin.register(Order)
@method_decorator(limits.limited(limits.LISTS), name="changelist_view")
@method_decorator(limits.limited(limits.ORDERS), name="change_view")
class OrderAdmin(AuditorAdmin):
    list_display = (
        "created_at",
        "order_id",
        "reference",
        "customer_name",
        column(Order, "amount", as_money),
        "status",
        "refunded_how",
    )
    list_filter = (OrderStatusFilter, RefundStatusFilter, "customer_source")
    shown_by = "order_id"
    search_fields = ("order_id",)  # makes Django show the box; get_search_results() searches as 注文一覧 does
    search_help_text = _("注文ID・ショップ注文番号・お客様名・メールアドレス・注文日(2026/12/01)")
    fields = (
        "order_id",
        "reference",
        "created_at",
        column(Order, "amount", as_money),
        "currency",
        "status",
        "refunded_how",
        column(Order, "captured", as_money),
        column(Order, "refunded", as_money),
        column(Order, "reserved", as_money),
        "family_name",
        "given_name",
        "family_kana",
        "given_kana",
        "email",
        "customer_source",
        "items",
        "read_at",
        "vanished_at",
    )
    inlines = (PaymentInline,)

    def get_search_results(
        self, request: HttpRequest, queryset: models.QuerySet[Order], search_term: str
    ) -> tuple[models.QuerySet[Order], bool]:
        if not search_term:
            return queryset, False
        found = search.find(search.as_typed(search_term), filters=search.Filters(status="any"))
        matching = Q(pk__in=[order.key for order in found.orders])
        if day := _day(search_term):
            of_day = Q(pk__gte=first_key(day), pk__lt=first_key(day + timedelta(days=1)))
            matching = (
                of_day | matching if found.orders else of_day
            )  # a range of keys, which is read in its order
        return queryset.filter(matching), False

    @admin.display(description=_("お客様名"))
    def customer_name(self, order: Order) -> str:
        return order.customer_name

    @admin.display(description=_("返金状況"), ordering="refund_status")
    def refunded_how(self, order: Order) -> str:
        return order.get_refund_status_display()

    @admin.display(description=_("明細"))
    def items(self, order: Order) -> str:
        rows = format_html_join(
            "",
            '<tr><th scope="row">{}</th><td>{}</td><td class="num">{}</td><td class="num">{}</td></tr>',
            [
                (
                    item["name"],
                    LINE_KINDS.get(item["kind"], item["kind"]),
                    grouped(item["quantity"]),
                    money(item["amount"], item["currency"]),
                )
                for item in order.line_items
            ],
        )
        heads = format_html_join(
            "", '<th scope="col">{}</th>', [(_("品名"),), (_("種類"),), (_("数量"),), (_("単価"),)]
        )
        table = '<table class="items"><thead><tr>{}</tr></thead><tbody>{}</tbody></table>'
        return format_html(table, heads, rows) if rows else "–"


@admin.register(Payment)
class PaymentAdmin(AuditorAdmin):
    list_display = ("created_at", "id", "order", *PAYMENT_AMOUNTS)
    list_select_related = ("order",)
    fields = (
        "id",
        "order",
        "currency",
        *PAYMENT_AMOUNTS,
        column(Payment, "lists_refunds", as_yes_or_no),
        "status",
        "description",
        "reference",
        "created_at",
        "read_at",
    )
    date_hierarchy = "created_at"
    search_fields = ("=id", "=order__order_id")


@admin.register(SmartpayRefund)
class SmartpayRefundAdmin(AuditorAdmin):
    list_display = (
        "created_at",
        "id",
        "of_payment",
        column(SmartpayRefund, "amount", as_money),
        "shown_status",
        "ours",
    )
    list_filter = (SeenStatusFilter, ("ours", admin.EmptyFieldListFilter))
    list_select_related = ("ours",)
    date_hierarchy = "created_at"
    search_fields = ("=id", "=payment__id", "=reference")
    fields = (
        "id",
        "of_payment",
        column(SmartpayRefund, "amount", as_money),
        "currency",
        "shown_status",
        "reason",
        "description",
        "reference",
        "metadata",
        "created_at",
        "read_at",
        "vanished_at",
        "ours",
    )

    @admin.display(description=_("支払いID"))
    def of_payment(self, seen: SmartpayRefund) -> str:
        return seen.payment_id

    @admin.display(description=_("状態"), ordering="status")
    def shown_status(self, seen: SmartpayRefund) -> str:
        return str(dict(SmartpayRefund.Status.choices).get(seen.status, seen.status))


@admin.register(SyncCursor)
class SyncCursorAdmin(AuditorAdmin):
    list_display = (
        "label",
        "scan_started_at",
        "seen",
        "last_started_at",
        "last_finished_at",
        "last_read_at",
    )

    @admin.display(description=_("一覧"), ordering="collection")
    def label(self, cursor: SyncCursor) -> str:
        return str(COLLECTIONS.get(cursor.collection, cursor.collection))


def _day(text: str) -> datetime | None:
    """Return when the day begins in Japan that is typed as 2026/12/01, 2026-12-1 or 2026年12月1日; None if none is."""
    typed = re.fullmatch(
        r"(\d{4})[/-](\d{1,2})[/-](\d{1,2})|(\d{4})年(\d{1,2})月(\d{1,2})日",
        unicodedata.normalize("NFKC", text).strip(),
    )
    try:
        year, month, day = (int(part) for part in typed.groups() if part) if typed else (0, 0, 0)
        return datetime(year, month, day, tzinfo=timezone.get_default_timezone())
    except ValueError:  # there is no such day
        return None
