"""What every page of the admin shares: nothing can be changed, each read is recorded, no address has what was typed."""

import copy
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import parse_qsl

from django.contrib import admin
from django.contrib.admin.options import IS_FACETS_VAR
from django.contrib.admin.utils import label_for_field, unquote
from django.contrib.admin.views.main import ALL_VAR, ERROR_FLAG, ORDER_VAR, PAGE_VAR, SEARCH_VAR, ChangeList
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.db import models
from django.http import Http404, HttpRequest, HttpResponse, QueryDict
from django.shortcuts import redirect
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.functional import cached_property
from django.utils.translation import gettext_lazy as _

from dashboard.models import User
from refunds import audit, search
from refunds.models import Search
from refunds.wording import error_text, money

if TYPE_CHECKING:
    ModelAdmin = admin.ModelAdmin[models.Model]
    TabularInline = admin.TabularInline[models.Model, models.Model]
else:
    ModelAdmin = admin.ModelAdmin
    TabularInline = admin.TabularInline

MOST_ROWS = 10_000  # a list counts and pages no further; filters find what is behind
WAYS_TO_SHOW = {
    ALL_VAR,
    ERROR_FLAG,
    IS_FACETS_VAR,
    ORDER_VAR,
    PAGE_VAR,
}  # parameters of the list whose values are numbers or True


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


class KeptSearch(ChangeList):
    """A list whose `q` is the id of a Search. What was typed is kept in the database and shown in the box again."""

    def get_queryset(self, request: HttpRequest, exclude_parameters: Any = None) -> models.QuerySet[Any]:
        kept = kept_search(self.query)
        self.query = kept.text if kept else ""
        return super().get_queryset(request, exclude_parameters)


def with_query(page: str, query: QueryDict) -> str:
    return f"{page}?{query.urlencode()}" if query else page


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
            return redirect(with_query(request.path, query))
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


class WordsFilter(admin.SimpleListFilter):
    """A filter with labels for a column that has no choices of its own."""

    words: list[tuple[str, Any]]  # value, label

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(value, str(label)) for value, label in self.words]

    def queryset(self, request: HttpRequest, queryset: models.QuerySet[Any]) -> models.QuerySet[Any]:
        return queryset.filter(**{str(self.parameter_name): self.value()}) if self.value() else queryset


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


def as_yes_or_no(value: bool | None, row: Any) -> str:
    """As a word, because Django's red cross looks like a failure."""
    return "–" if value is None else str(_("はい") if value else _("いいえ"))


def as_error_text(value: str, row: Any) -> str:
    """Smartpay's error message as staff read it."""
    return error_text(value)
