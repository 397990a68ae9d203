"""The trail, with buttons to verify it and to export it; the searches and the people that it names."""

import re
from collections.abc import Iterable
from typing import Any

import structlog
from django.contrib import admin
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import ERROR_FLAG, SEARCH_VAR, ChangeList
from django.core.exceptions import PermissionDenied
from django.db import models
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseBase, StreamingHttpResponse
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.utils.html import format_html, format_html_join
from django.utils.text import Truncator
from django.utils.translation import gettext_lazy as _
from django.views.decorators.http import require_POST, require_safe

from dashboard import limits
from dashboard.client_address import parse
from dashboard.models import User
from refunds import audit, audit_export, audit_words, roles, sealing, search
from refunds.admin.base import AuditorAdmin, KeptSearch, as_yes_or_no, column, kept_search, with_query
from refunds.models import AuditEntry, Search

log = structlog.get_logger(__name__)
VERIFY_SECONDS = 10.0  # for each press of the button; a long trail takes several


class Trail(KeptSearch):
    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        audit_words.look_up(self.result_list)


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
        if address := parse(search_term):
            return queryset.filter(ip=str(address)), False
        found, may_repeat = super().get_search_results(request, queryset, search_term)
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
            return redirect(with_query(listed, query))
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


def _in_words(names: Iterable[str]) -> str:
    """Return the labels of roles. A role that this version does not know stays as it is named."""
    return _("、").join(str(roles.LABELS.get(name, name)) for name in names)
