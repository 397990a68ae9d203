"""Rate limits, counted in the database so that they hold across all processes and machines.

Windows are fixed: an hour, and a minute in which a fifth of the hour's number is allowed. One statement counts both.
People who are signed in are counted by their id, all others by their address.
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
LONGEST_ECHO = 200  # characters of a search that the page shows again; the search box takes no more

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Limit:
    """A kind of request that is counted.

    name: in the counter's key and in the log.
    setting: the name of the setting with the number allowed in an hour; None there means no limit.
    action: the audit action that is recorded, as refused, when the limit is reached.
    """

    name: str
    setting: str
    action: str


# The first three are counted by their views, which leave out requests that another site made: see sso/views.py and
# break_glass.py.
SIGN_INS = Limit("sign_ins", "SIGN_INS_PER_HOUR", "person.signed_in")
CALLBACKS = Limit("callbacks", "SIGN_INS_PER_HOUR", "person.signed_in")
CODES = Limit("codes", "SIGN_INS_PER_HOUR", "person.signed_in")
SEARCHES = Limit("searches", "SEARCHES_PER_HOUR", "orders.searched")
LISTS = Limit("lists", "SEARCHES_PER_HOUR", "orders.listed")
ORDERS = Limit("orders", "ORDERS_PER_HOUR", "order.viewed")
REFUND_FORMS = Limit("refund_forms", "REFUND_FORMS_PER_HOUR", "refund.requested")  # counted by its view


def limited[View: Callable[..., Any]](limit: Limit) -> Callable[[View], View]:
    """Return a decorator for views: RateLimitMiddleware counts the requests for the view against this limit.

    Every view that shows names needs it, except a person's own start page. Webhooks have no limit: they are signed, and
    Smartpay sends many.
    """

    def decorate(view: View) -> View:
        view.rate_limit = limit  # type: ignore[attr-defined]
        return view

    return decorate


class RateLimitMiddleware:
    """Middleware: answers 429 at the views that are `limited`, except to a page that only renews itself.

    It stands after LoginRequiredMiddleware, and inside RequestContext so that the audit entry has the address.
    """

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponse | None:
        limit: Limit | None = getattr(view, "rate_limit", None)
        wait = hit(request, limit) if limit and not opened.is_continuation(request) else 0
        return too_many(request, wait) if wait else None


def hit(request: HttpRequest, limit: Limit) -> int:
    """Count one more request; return the seconds until the caller may go on, 0 if it is within the limit.

    The first request above the limit in a window is recorded on the audit trail and raises an alarm. Later ones in that
    window do neither.
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
    """Count one more request in both windows; return {window's seconds: (its beginning, requests so far)}.

    A machine whose clock is behind counts in the later window that another machine has begun. Otherwise the two would
    keep resetting the window in turns.
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
    if who.startswith("address:") and counted[HOUR][1] == 1:  # people are few, addresses unlimited
        Count.objects.filter(began__lt=now - DAY).delete()
    return counted


def _who(request: HttpRequest) -> str:
    if request.user.is_authenticated:
        return f"person:{request.user.pk}"
    address = client_address(request)
    if address is None:
        return "address:"
    # One customer of an internet provider has a whole /64 of IPv6 and can use another address for each request.
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
    """Return a 429 page that says when to go on; to a person signed in it shows again what they searched for."""
    context = {"explanation": explanation(wait)}
    if request.user.is_authenticated:
        context["typed"] = (request.POST.get("q") or request.GET.get("q", ""))[:LONGEST_ECHO]
    return retry_after(render(request, "429.html", context, status=429), wait)
