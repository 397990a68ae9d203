"""The ledger, the mirror and the trail for auditors. Nothing can be changed here, and each read is recorded."""

import copy
import re
import unicodedata
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl

import structlog
from django.contrib import admin
from django.contrib.admin.options import IS_FACETS_VAR, IncorrectLookupParameters
from django.contrib.admin.utils import label_for_field, unquote
from django.contrib.admin.views.main import (
    ALL_VAR,
    ERROR_FLAG,
    ORDER_VAR,
    PAGE_VAR,
    SEARCH_VAR,
    ChangeList,
)
from django.contrib.auth.models import Group
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import models
from django.db.models import Q
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, QueryDict, StreamingHttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.functional import cached_property
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST, require_safe

from dashboard import limits
from dashboard.models import User
from refunds import audit, audit_export, audit_words, clock, jobs, roles, sealing, search
from refunds.models import (
    Attempt,
    AuditEntry,
    Bulk,
    BulkLine,
    Control,
    Evidence,
    JobRun,
    Order,
    Payment,
    Refund,
    ReviewDecision,
    Search,
    SmartpayRefund,
    SyncCursor,
)
from refunds.order_keys import first_key
from refunds.wording import error_text, grouped, money

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[models.Model]
    TabularInline = admin.TabularInline[models.Model, models.Model]
else:
    ModelAdmin = admin.ModelAdmin
    TabularInline = admin.TabularInline

log = structlog.get_logger(__name__)

MOST_ROWS = 10_000  # a list counts and pages no further; filters find what is behind
WAYS_TO_SHOW = {
    ALL_VAR,
    ERROR_FLAG,
    IS_FACETS_VAR,
    ORDER_VAR,
    PAGE_VAR,
}  # parameters of the list whose values are numbers or True
COLLECTIONS = {
    SyncCursor.ORDERS: _("注文"),
    SyncCursor.SESSIONS: _("お客様情報"),
    SyncCursor.REFUNDS: _("返金"),
}
LINE_KINDS = {"product": _("商品"), "discount": _("割引"), "tax": _("税")}
VERIFY_SECONDS = 10.0  # for each press of the button; a long trail takes several

# Procrastinate's own pages would let jobs be cancelled, and exist on PostgreSQL only. JobRun shows the jobs on both
# databases. `_registry` is private, but Django has no public way to list the registered models.
for model in [*admin.site._registry]:
    if model._meta.app_label == "procrastinate":
        admin.site.unregister(model)
admin.site.unregister(Group)  # the roles are a table in roles.py, not rows to be edited


class CappedPaginator(Paginator):  # type: ignore[type-arg]  # generic for the type checker alone
    """Counts at most MOST_ROWS rows, because counting all of a growing table would cost more than the page."""

    @cached_property
    def count(self) -> int:
        rows: models.QuerySet[Any] = self.object_list  # type: ignore[assignment]  # the admin passes one
        return len(rows.values_list("pk")[:MOST_ROWS])


class ReadOnly:
    """Nobody may add, change or delete. Who may view is decided by permissions."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


def kept_search(query: str) -> Search | None:
    return Search.objects.filter(pk=query).first() if query.isprintable() else None


def _in_words(names: Iterable[str]) -> str:
    """Return the labels of roles. A role that this version does not know stays as it is named."""
    return _("、").join(str(roles.LABELS.get(name, name)) for name in names)


# --- What every list shares ------------------------------------------------------------------------------------


def _address(page: str, query: QueryDict) -> str:
    return f"{page}?{query.urlencode()}" if query else page


class KeptSearch(ChangeList):
    """A list whose `q` is the id of a Search. What was typed is kept in the database and shown in the box again."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> models.QuerySet[Any]:
        kept = Search.objects.filter(pk=self.query).first()
        self.query = kept.text if kept else ""
        return super().get_queryset(request, exclude_parameters)


class Trail(KeptSearch):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        audit_words.look_up(self.result_list)


def column(
    model: type[models.Model], name: str, show: Callable[[Any, Any], str]
) -> Any:  # a callable, which the types of `fields` do not know
    """Return a column of a list or a form that shows a field's value in another way.

    Args:
        show: returns the text for the value and its row.
    """

    @admin.display(description=cast(str, label_for_field(name, model)), ordering=name)
    def shown(row: Any) -> str:
        return show(getattr(row, name), row)

    shown.__name__ = name
    return shown


def as_money(value: int, row: Any) -> str:
    """With the sign of the row's currency, grouped."""
    return money(value, row.currency)


def as_yes_or_no(value: bool, row: Any) -> str:
    """As a word, because Django's red cross looks like a failure."""
    return str(_("はい") if value else _("いいえ"))


def as_sending(value: bool, row: Any) -> str:
    return str(_("送信しています") if value else _("停止しています"))


def as_error_text(value: str, row: Any) -> str:
    """Smartpay's error message as staff read it."""
    return error_text(value)


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


class AuditorAdmin(ReadOnly, ModelAdmin):
    actions = None
    list_per_page = 50
    show_full_result_count = False
    paginator = CappedPaginator
    shown_by = ""  # the column by which the trail names the rows of a list; "": it does not name them

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return KeptSearch

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> models.Model | None:
        """Return None for an id with NUL: PostgreSQL would raise an error."""
        return None if "\0" in object_id else super().get_object(request, object_id, from_field)

    def offered(self, request: HttpRequest) -> QueryDict:
        """Return the address' parameters, without those that no link of the list could have put there.

        Django accepts any column as a filter. A mail address that somebody types as one would stay in the address and
        be recorded on the trail.
        """
        plain = copy.copy(request)
        plain.GET = QueryDict()
        linked: set[tuple[str, str]] = set()
        if request.GET.keys() - WAYS_TO_SHOW - {SEARCH_VAR}:
            page = self.get_changelist_instance(plain)
            for filter_spec in page.filter_specs:
                for choice in filter_spec.choices(page):
                    linked.update(parse_qsl(str(choice["query_string"]).removeprefix("?")))
        days = {f"{self.date_hierarchy}__{part}" for part in ("year", "month", "day")}
        found = QueryDict(mutable=True)
        for name, values in request.GET.lists():
            for value in values:
                number = name in WAYS_TO_SHOW | days and re.fullmatch(r"True|[-.0-9]{0,20}", value)
                if name == SEARCH_VAR or number or (name, value) in linked:
                    found.appendlist(name, value)
        return found

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Show the list, and record that it was read, with its filters. A typed search is redirected to its id."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        query = self.offered(request)
        typed = query.get(SEARCH_VAR, "")
        kept = kept_search(typed)
        if typed and kept is None:
            kept = Search.objects.create(
                person=cast(User, request.user), text=search.as_typed(typed), created_at=timezone.now()
            )
            query[SEARCH_VAR] = kept.pk
        if query != request.GET:
            return redirect(_address(request.path, query))
        title = {"title": self.opts.verbose_name_plural}
        answer = super().changelist_view(request, title | (extra_context or {}))
        shown: dict[str, Any] = {}
        if self.shown_by and isinstance(answer, TemplateResponse):  # else a redirect
            rows = cast(dict[str, Any], answer.context_data)["cl"].result_list
            shown = {"shown": [str(getattr(row, self.shown_by)) for row in rows]}
        audit.record(
            request.user,
            "admin.listed",
            kept,
            model=self.opts.model_name,
            filters=request.GET.dict(),
            words=search.words(kept),
            **shown,
        )
        return answer

    def change_view(
        self,
        request: HttpRequest,
        object_id: str,
        form_url: str = "",
        extra_context: dict[str, Any] | None = None,
    ) -> HttpResponse:
        """Show one row, and record that it was read."""
        obj = self.get_object(request, unquote(object_id))  # the admin's links write _ as _5F
        audit.record(request.user, "admin.viewed", obj, model=self.opts.model_name)
        title = {"title": self.opts.verbose_name}
        return super().change_view(request, object_id, form_url, title | (extra_context or {}))

    def history_view(
        self, request: HttpRequest, object_id: str, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        """Answer 404: this would be Django's log of changes made in the admin, and there are none."""
        raise Http404


class AuditorInline(ReadOnly, TabularInline):
    extra = 0
    can_delete = False

    def get_readonly_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        return self.fields


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


@admin.register(AuditEntry)
class AuditEntryAdmin(AuditorAdmin):
    """The trail, by person, action, order and day, with buttons to verify it and to export what the filters leave."""

    list_display = ("at", "person", "action", "outcome", "order_id", "target", "summary")
    list_filter = ("outcome", "action", "actor")
    list_select_related = ("actor",)
    date_hierarchy = "at"
    search_fields = (
        "=object_id",
        "=order_id",
        "=request_id",
        "=actor__username",
        "actor_name",
        "actor__name",
    )
    search_help_text = _("利用者の氏名、注文ID、返金の受付番号、検索された言葉、接続元、リクエスト番号")
    fields = (
        "at",
        "actor",
        "actor_name",
        "actors_roles",
        "action",
        "outcome",
        "kind",
        "target",
        "order_id",
        "contents",
        "ip",
        "session",
        "request_id",
        "sealed_text",
        "previous_seal",
        "seal",
    )

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return Trail

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> models.Model | None:
        entry = super().get_object(request, object_id, from_field)
        audit_words.look_up([entry] if entry else [])
        return entry

    def get_search_results(
        self, request: HttpRequest, queryset: models.QuerySet[Any], search_term: str
    ) -> tuple[models.QuerySet[Any], bool]:
        """Find also entries of searches for these words, by their hash: who looked for 田中?"""
        try:
            address = ip_address(search_term.strip().partition("%")[0])  # as audit.record() keeps it
        except ValueError:
            found, may_repeat = super().get_search_results(request, queryset, search_term)
        else:
            return queryset.filter(ip=str(address)), False
        if words := search.hashes(search_term):
            searched = Q(action=AuditEntry.Action.ORDERS_SEARCHED, data__words__in=words)
            found |= queryset.filter(searched)
        return found, may_repeat

    @admin.display(description=_("利用者"), ordering="actor")
    def person(self, entry: AuditEntry) -> str:
        return entry.person

    @admin.display(description=_("役割"))
    def actors_roles(self, entry: AuditEntry) -> str:
        return _in_words(entry.roles.split(",") if entry.roles else [])

    @admin.display(description=_("対象の種類"))
    def kind(self, entry: AuditEntry) -> str:
        return str(audit_words.CODES["model"].get(entry.object_type, entry.object_type))

    @admin.display(description=_("対象"))
    def target(self, entry: Any) -> str:
        if entry.object_type == "user" and entry.object_id in entry.people:
            return f"{entry.people[entry.object_id]} ({entry.object_id})"
        return "" if entry.object_id == entry.order_id else entry.object_id

    @admin.display(description=_("内容"))
    def summary(self, entry: AuditEntry) -> str:
        return " · ".join(
            f"{label}: {Truncator(value).chars(60)}"
            for label, value in audit_words.told(entry)
            if value != "–"
        )

    @admin.display(description=_("内容"))
    def contents(self, entry: AuditEntry) -> str:
        rows = format_html_join("", '<tr><th scope="row">{}</th><td>{}</td></tr>', audit_words.told(entry))
        return format_html('<table class="told">{}</table>', rows) if rows else "–"

    @admin.display(description=_("封印の対象の文"))
    def sealed_text(self, entry: AuditEntry) -> str:
        return format_html("<pre>{}</pre>", entry.text)

    def get_urls(self) -> list[URLPattern]:
        return [
            path("verify/", self.admin_site.admin_view(self.verify_view), name="refunds_auditentry_verify"),
            *(
                path(
                    f"export.{kind}",
                    self.admin_site.admin_view(self.export_view),
                    {"kind": kind},
                    name=f"refunds_auditentry_export_{kind}",
                )
                for kind in audit_export.KINDS
            ),
            *super().get_urls(),
        ]

    @method_decorator(require_POST)
    def verify_view(self, request: HttpRequest) -> HttpResponse:
        """Verify the trail for VERIFY_SECONDS, from the entry after `after` on, and record that."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        after = request.POST.get("after", "")
        report: sealing.Report | None = None
        try:
            report = sealing.verify(
                after=int(after) if re.fullmatch(r"[0-9]{1,18}", after) else None, seconds=VERIFY_SECONDS
            )
        except (OSError, sealing.UnreadableHead):
            log.exception("trail.head_unreadable", alarm=True)
        facts = report.facts() if report else {"broken": "kept_head"}
        audit.record(request.user, "audit.verified", None, **facts)
        context = self.admin_site.each_context(request) | {
            "title": _("監査記録の検証結果"),
            "opts": self.opts,
            "report": report,
        }
        return TemplateResponse(request, "admin/refunds/auditentry/verified.html", context)

    @method_decorator(require_safe)
    def export_view(self, request: HttpRequest, kind: str) -> HttpResponseBase:
        """Send all entries that the list has under the same filters as a file, and record that."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        listed = reverse("admin:refunds_auditentry_changelist")
        typed = request.GET.get(SEARCH_VAR, "")
        kept = kept_search(typed)
        query = self.offered(request)
        if (typed and kept is None) or query != request.GET:
            return redirect(_address(listed, query))
        try:
            entries = self.get_changelist_instance(request).queryset
        except IncorrectLookupParameters:
            return redirect(f"{listed}?{ERROR_FLAG}=1")
        newest = AuditEntry.objects.order_by("-pk").values_list("pk", flat=True).first() or 0
        entries = entries.filter(pk__lte=newest)
        audit.record(
            request.user,
            "audit.exported",
            kept,
            kind=kind,
            filters=request.GET.dict(),
            words=search.words(kept),
            entries=entries.count(),
            until=newest,
        )
        content_type, write = audit_export.KINDS[kind]
        name = f"audit-{timezone.localtime():%Y%m%d-%H%M%S}.{kind}"
        return StreamingHttpResponse(
            write(entries),
            content_type=content_type,
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )


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


PAYMENT_AMOUNTS = [
    column(Payment, name, as_money) for name in ("captured", "refunded", "external", "reserved")
]


class PaymentInline(AuditorInline):
    model = Payment
    fields = ("id", *PAYMENT_AMOUNTS, "created_at")
    show_change_link = True


class WordsFilter(admin.SimpleListFilter):
    """A filter with labels for a column that has no choices of its own."""

    words: list[tuple[str, Any]]  # value, label

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, str(label)) for value, label in self.words]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset.filter(**{str(self.parameter_name): self.value()}) if self.value() else queryset


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


class JobFilter(WordsFilter):
    title = _("処理")
    parameter_name = "job"
    words = [(job.name, job.label) for job in jobs.JOBS]


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
        "lists_refunds",
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


@admin.register(Search)
@method_decorator(limits.limited(limits.LISTS), name="changelist_view")
class SearchAdmin(AuditorAdmin):
    list_display = ("created_at", "person", "text")
    list_filter = ("person",)
    list_select_related = ("person",)
    date_hierarchy = "created_at"
    search_fields = ("=id", "person__name")
    search_help_text = _("検索の番号、利用者の氏名")


@admin.register(User)
class UserAdmin(AuditorAdmin):
    list_display = ("name", "username", "role_list", column(User, "is_active", as_yes_or_no), "last_login")
    search_fields = ("name", "=username", "=subject")
    fields = (
        "name",
        "username",
        "issuer",
        "subject",
        "role_list",
        column(User, "is_active", as_yes_or_no),
        "last_login",
        "date_joined",
    )

    @admin.display(description=_("役割"))
    def role_list(self, user: User) -> str:
        return _in_words(user.role_names)


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


@admin.register(JobRun)
class JobRunAdmin(AuditorAdmin):
    """The runs of the jobs, below their schedule with the next time and the last run of each."""

    list_display = ("label", "started_at", "ended_at", "outcome", "error")
    list_filter = (JobFilter, "outcome")

    @admin.display(description=_("処理"), ordering="job")
    def label(self, run: JobRun) -> str:
        job = jobs.BY_NAME.get(run.job)
        return str(job.label) if job else run.job

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        now = clock.now()
        schedule = [
            {
                "job": job,
                "next_at": job.next_at(now),
                "last": JobRun.objects.filter(job=job.name).order_by("-started_at").first(),
            }
            for job in jobs.JOBS
        ]
        return super().changelist_view(request, {"schedule": schedule})
