"""The ledger: refunds with their attempts, evidence and decisions; files; the switch for sending."""

from typing import Any

from django.contrib import admin
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _

from refunds.admin.base import AuditorAdmin, AuditorInline, as_error_text, as_money, as_yes_or_no, column
from refunds.models import Attempt, Bulk, BulkLine, Control, Evidence, Refund, ReviewDecision
from refunds.wording import money


class AttemptInline(AuditorInline):
    model = Attempt
    fields = (
        "number",
        "started_at",
        "finished_at",
        "outcome",
        "http_status",
        "error_code",
        column(Attempt, "replayed", as_yes_or_no),
    )


class EvidenceInline(AuditorInline):
    model = Evidence
    fields = ("kind", "at", column(Evidence, "found", as_yes_or_no), "smartpay_id", "detail")


class ReviewDecisionInline(AuditorInline):
    model = ReviewDecision
    fields = ("round", "person", "verdict", "smartpay_id", "note", "at")


@admin.register(Refund)
class RefundAdmin(AuditorAdmin):
    shown_by = "id"
    list_display = (
        "requested_at",
        column(Refund, "amount", as_money),
        "label",
        "requested_by",
        "decided_by",
        "order_id",
        "smartpay_id",
    )
    list_filter = ("state", "requested_by", "reason")
    list_select_related = ("payment__order", "requested_by", "decided_by")
    date_hierarchy = "requested_at"
    search_fields = ("=id", "=smartpay_id", "=payment__id", "=payment__order__order_id", "requested_by__name")
    search_help_text = _("受付番号、Smartpay 返金ID、支払いID、注文ID、申請者の氏名")
    fields = (
        "id",
        "order_id",
        "payment",
        column(Refund, "amount", as_money),
        "currency",
        "label",
        "reason",
        "description",
        "memo",
        "similar_reason",
        column(Refund, "refundable_before", as_money),
        column(Refund, "external_before", as_money),
        "requested_by",
        "requested_at",
        "decided_by",
        "decided_at",
        "decision_note",
        "cancelled_because",
        "attempt_no",
        "first_sent_at",
        "last_sent_at",
        "next_check_at",
        "absent_since",
        "smartpay_id",
        "error_code",
        column(Refund, "error_message", as_error_text),
        "settled_at",
        "reviews",
        column(Refund, "recovered", as_yes_or_no),
    )
    inlines = (AttemptInline, EvidenceInline, ReviewDecisionInline)

    @admin.display(description=_("状態"), ordering="state")
    def label(self, refund: Refund) -> str:
        return refund.label

    @admin.display(description=_("注文ID"))
    def order_id(self, refund: Refund) -> str:
        order = refund.payment.order
        return format_html(
            '<a href="{}">{}</a>', reverse("admin:refunds_order_change", args=[order.pk]), order.order_id
        )


@admin.register(Attempt)
class AttemptAdmin(AuditorAdmin):
    list_display = (
        "started_at",
        "refund",
        "number",
        "outcome",
        "http_status",
        "error_code",
        column(Attempt, "replayed", as_yes_or_no),
    )
    fields = (
        "refund",
        "number",
        "started_at",
        "finished_at",
        "outcome",
        "http_status",
        "error_code",
        column(Attempt, "error_message", as_error_text),
        column(Attempt, "replayed", as_yes_or_no),
        "response_sha256",
    )
    list_filter = ("outcome",)
    list_select_related = ("refund",)
    date_hierarchy = "started_at"
    search_fields = (
        "=refund__id",
        "=refund__payment__order__order_id",
        "refund__requested_by__name",
    )
    search_help_text = _("返金の受付番号、注文ID、申請者の氏名")


@admin.register(Bulk)
class BulkAdmin(AuditorAdmin):
    """The files. Their lines, of which one may have ten thousand, are in BulkLineAdmin."""

    shown_by = "id"
    list_display = ("uploaded_at", "file_name", "state", "lines_count", "yen", "uploaded_by", "decided_by")
    list_filter = ("state", "uploaded_by")
    list_select_related = ("uploaded_by", "decided_by")
    date_hierarchy = "uploaded_at"
    search_fields = ("=id", "file_name", "uploaded_by__name")
    search_help_text = _("受付番号、ファイル名、申請者の氏名")
    fields = (
        "id",
        "file_name",
        "state",
        "lines_count",
        "yen",
        "similar_reason",
        "uploaded_by",
        "uploaded_at",
        "started_at",
        "decided_by",
        "decided_at",
        "decision_note",
        "paused_by",
        "ended_at",
    )

    @admin.display(description=_("合計"), ordering="total")
    def yen(self, bulk: Bulk) -> str:
        return "" if bulk.total is None else money(bulk.total, "JPY")


@admin.register(BulkLine)
class BulkLineAdmin(AuditorAdmin):
    list_display = ("bulk", "number", "order_text", "reference_text", "yen", "state", "problem", "request_id")
    list_filter = ("state",)
    list_select_related = ("bulk",)
    ordering = ("-id",)  # the model's own, by file and number, would sort the whole table
    search_fields = ("=bulk__id", "=request_id", "=payment__id", "=order_text")
    search_help_text = _("一括返金の受付番号、返金の受付番号、支払いID、注文ID")
    fields = (
        "bulk",
        "number",
        "order_text",
        "reference_text",
        "amount_text",
        "description",
        "reason_text",
        "request_id",
        "payment",
        "yen",
        column(BulkLine, "is_similar", as_yes_or_no),
        "state",
        "problem",
    )

    @admin.display(description=_("金額"), ordering="amount")
    def yen(self, line: BulkLine) -> str:
        return "" if line.amount is None else money(line.amount, "JPY")


def as_sending(value: bool, row: Any) -> str:
    return str(_("送信しています") if value else _("停止しています"))


@admin.register(Control)
class ControlAdmin(AuditorAdmin):
    list_display = (
        column(Control, "sends_enabled", as_sending),
        "cause",
        "reason",
        "changed_at",
        "changed_by",
    )
    fields = (*list_display, "restored_at", "restore_accepted_at")
