"""How often somebody may do something: counted in the database, so that it holds over all processes and machines.

Windows are fixed: an hour, and a fifth of the hour's number in each minute. One statement counts both. A person is
counted by who they are, whoever is not signed in by their address.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from ipaddress import IPv6Address, ip_network
from typing import Any

import structlog
from django.conf import settings
from django.db import connection
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.shortcuts import render
from django.utils import timezone
from django.utils.translation import gettext as _

from dashboard import opened
from dashboard.client_address import client_address
from dashboard.models import Count
from refunds import audit

MINUTE, HOUR, DAY = 60, 3600, 86400
LONGEST_ECHO = 200  # characters of a search that come back; its box takes no more

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """`name`: of what is counted. `setting`: how often in an hour; None is no limit. `action`: the trail's word."""

    name: str
    setting: str
    action: str


# Taken by their views, which know what is none of a person's doing: see sso/views.py and break_glass.py.
SIGN_INS = Limit("sign_ins", "SIGN_INS_PER_HOUR", "person.signed_in")
CALLBACKS = Limit("callbacks", "SIGN_INS_PER_HOUR", "person.signed_in")
CODES = Limit("codes", "SIGN_INS_PER_HOUR", "person.signed_in")
SEARCHES = Limit("searches", "SEARCHES_PER_HOUR", "orders.searched")
LISTS = Limit("lists", "SEARCHES_PER_HOUR", "orders.listed")
ORDERS = Limit("orders", "ORDERS_PER_HOUR", "order.viewed")
REFUND_FORMS = Limit("refund_forms", "REFUND_FORMS_PER_HOUR", "refund.requested")  # taken by its view

# Whatever shows names, but for one's own start page. Webhooks are signed, and Smartpay sends many.
LIMITED = {
    "refunds:order_search": SEARCHES,
    "refunds:order_list": LISTS,
    "refunds:refund_list": LISTS,
    "refunds:approvals": LISTS,
    "refunds:order_export": LISTS,
    "refunds:refund_export": LISTS,
    "refunds:order": ORDERS,
    "refunds:refund": ORDERS,
    "refunds:bulk": ORDERS,
    "refunds:refund_decide": ORDERS,
    "refunds:refund_review": ORDERS,
    "admin:refunds_order_changelist": LISTS,
    "admin:refunds_search_changelist": LISTS,
    "admin:refunds_order_change": ORDERS,
}


class RateLimitMiddleware:
    """Middleware: answers 429 at an address of the table above, but not to a page that only goes on.

    After LoginRequiredMiddleware, and inside RequestContext, so that the trail knows from where.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(self, request: HttpRequest, *view: Any) -> HttpResponse | None:
        assert request.resolver_match is not None  # noqa: S101  (there is a view)
        limit = LIMITED.get(request.resolver_match.view_name)
        wait = hit(request, limit) if limit and not opened.is_continuation(request) else 0
        return too_many(request, wait) if wait else None


def hit(request: HttpRequest, limit: Limit) -> int:
    """Count one more; return the seconds until this person may go on, 0 where they may now.

    The first that is too much in a window is told to the trail and raises an alarm; those after it do neither.
    """
    per_hour: int | None = getattr(settings, limit.setting)
    if per_hour is None:
        return 0
    allowed = {MINUTE: max(1, per_hour // 5), HOUR: per_hour}
    who, now, wait = _who(request), time.time(), 0
    for seconds, (began, times) in _counted(limit, who, now).items():
        if times <= allowed[seconds]:
            continue
        wait = max(wait, began + seconds - int(now))
        if times == allowed[seconds] + 1:
            log.warning(
                "limit.reached", alarm=True, limit=limit.name, seconds=seconds, allowed=allowed[seconds]
            )
            audit.record(
                request.user, limit.action, refused=True,
                why="limit", limit=limit.name, seconds=seconds, allowed=allowed[seconds],
            )  # fmt: skip
    return wait


def _counted(limit: Limit, who: str, now: float) -> dict[int, tuple[int, int]]:
    """Count one more in both windows: seconds of the window -> when it began, and how often until now.

    A machine whose clock is behind another's goes on in the later window, or the two would begin it in turns.
    """
    keys = {f"{limit.name}:{seconds}:{who}": seconds for seconds in (MINUTE, HOUR)}
    begun = [(key, int(now // seconds) * seconds) for key, seconds in keys.items()]
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO dashboard_count (key, began, times) VALUES (%s, %s, 1), (%s, %s, 1) "
            "ON CONFLICT (key) DO UPDATE SET "
            "times = CASE WHEN excluded.began > dashboard_count.began THEN 1 ELSE dashboard_count.times + 1 END, "
            "began = CASE WHEN excluded.began > dashboard_count.began THEN excluded.began "
            "ELSE dashboard_count.began END "
            "RETURNING key, began, times",
            [value for each in begun for value in each],
        )
        counted = {keys[key]: (began, times) for key, began, times in cursor.fetchall()}
    if who.startswith("address:") and counted[HOUR][1] == 1:  # people are few, addresses are without end
        Count.objects.filter(began__lt=now - DAY).delete()
    return counted


def _who(request: HttpRequest) -> str:
    if request.user.is_authenticated:
        return f"person:{request.user.pk}"
    address = client_address(request)
    if address is None:
        return "address:"
    # One customer of a provider has a whole /64 of IPv6, and may choose anew for each request.
    return (
        f"address:{ip_network((address, 64), strict=False) if isinstance(address, IPv6Address) else address}"
    )


def explanation(wait: int) -> str:
    until = timezone.localtime() + timedelta(seconds=wait)
    return _("短い時間に操作が続いたため、いったん止めました。%(time)s から続けられます。") % {
        "time": f"{until:%H:%M:%S}"
    }


def retry_after(page: HttpResponse, wait: int) -> HttpResponse:
    page["Retry-After"] = str(wait)
    return page


def too_many(request: HttpRequest, wait: int) -> HttpResponse:
    """429, in words; with what was typed into the search box."""
    context = {"explanation": explanation(wait)}
    if request.user.is_authenticated:
        context["typed"] = (request.POST.get("q") or request.GET.get("q", ""))[:LONGEST_ECHO]
    return retry_after(render(request, "429.html", context, status=429), wait)
