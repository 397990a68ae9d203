"""The product's addresses, and beside them what it is measured against. Never part of the product's own."""

import copy
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import path
from django.utils import timezone
from django.utils.decorators import method_decorator
from django.views.decorators.http import require_safe

from dashboard import limits
from dashboard.urls import handler400 as handler400  # noqa: PLC0414
from dashboard.urls import urlpatterns as product
from refunds import audit, search
from refunds.forms import OrderFilterForm
from refunds.models import Order, Search
from refunds.views.common import may_see

ROWS = search.list_orders(search.Filters()).orders
SHOWN = [order.order_id for order in ROWS]
NOW = timezone.now()
LOOKED_FOR = Search(pk="0", text="田中")
for each in ROWS:
    each.matched = ["お客様名"]


@limits.limited(limits.LISTS)
@require_safe
@may_see
def floor(request: HttpRequest) -> HttpResponse:
    """Nothing, behind the same middleware, sign-in, limit and trail as a list."""
    audit.record(request.user, "orders.listed", None, shown=SHOWN)
    return HttpResponse("")


@limits.limited(limits.LISTS)
@require_safe
@may_see
def fifty(request: HttpRequest, searched: str) -> HttpResponse:
    """The list's own template over 50 rows at hand."""
    audit.record(request.user, "orders.listed", None, shown=SHOWN)
    filters = OrderFilterForm(request.GET)
    filters.filters()
    context = {
        "orders": ROWS,
        "page_size": len(ROWS),
        "search": LOOKED_FOR if searched == "search" else None,
        "typed": "",
        "filters": filters,
        "export_url": "?",
        "newer_url": "",
        "older_url": "?page=o0.5",
        "synced_at": NOW,
        "now": NOW,
    }
    return render(request, "refunds/order_list.html", context)


@method_decorator(limits.limited(limits.LISTS), name="changelist_view")
class Plain(admin.ModelAdmin):  # type: ignore[type-arg]  # not generic when it runs
    """What one writes for staff in ten minutes: Django's admin, which shows and searches what our list does."""

    list_display = (
        "created_at",
        "family_name",
        "given_name",
        "email",
        "order_id",
        "reference",
        "amount",
        "refunded",
        "status",
        "refund_status",
    )
    search_fields = (
        "family_name",
        "given_name",
        "family_kana",
        "given_kana",
        "email",
        "order_id",
        "reference",
        "payments__id",
        "payments__smartpay_refunds__id",
    )
    list_per_page = 50

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return True

    has_module_permission = has_view_permission


class Staff(admin.AdminSite):
    def has_permission(self, request: HttpRequest) -> bool:
        return request.user.is_authenticated


site = Staff(name="bench_admin")
site.register(Order, Plain)
urlpatterns = [
    path("bench/floor/", floor, name="floor"),
    path("bench/fifty/<str:searched>/", fifty, name="fifty"),
    path("bench/admin/", site.urls),
    *copy.copy(product),
]
