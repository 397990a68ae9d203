"""Middlewares for every page: client address, request log, privacy headers, language, body size, session policy."""

import re
import time
import uuid
from collections.abc import Callable
from ipaddress import IPv6Address
from typing import Any

import structlog
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.views import redirect_to_login
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    QueryDict,
)
from django.template.loader import render_to_string
from django.utils import translation
from django.utils.translation import gettext as _

from dashboard import break_glass, metrics, parked_forms
from dashboard.client_address import Address, client_address, parse
from dashboard.sso.sessions import end_session
from dashboard.sso.views import recheck

log = structlog.get_logger(__name__)

METHODS = ["GET", "HEAD", "POST", "OPTIONS"]
UNUSED = ["camera", "display-capture", "geolocation", "microphone", "payment", "usb"]

type GetResponse = Callable[[HttpRequest], HttpResponseBase]


class LanguageCookieMiddleware:
    """Sets the language from the cookie that the language switch writes; without one it is Japanese.

    Accept-Language is ignored: the staff are Japanese, whatever their browsers ask for.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        chosen = request.COOKIES.get(settings.LANGUAGE_COOKIE_NAME)
        request.LANGUAGE_CODE = chosen if chosen in dict(settings.LANGUAGES) else settings.LANGUAGE_CODE
        with translation.override(request.LANGUAGE_CODE):
            response = self.get_response(request)
        response["Content-Language"] = request.LANGUAGE_CODE
        return response


class PrivacyHeadersMiddleware:
    """Adds headers that keep pages out of caches and other sites, and answers 405 to methods that the site never uses.

    WhiteNoise answers static files before the request gets here.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        known = request.method in METHODS
        response = self.get_response(request) if known else HttpResponseNotAllowed(METHODS)
        response["Cache-Control"] = "no-store"
        response["Cross-Origin-Resource-Policy"] = "same-origin"
        response["Permissions-Policy"] = ", ".join(f"{feature}=()" for feature in UNUSED)
        return response


class ClientAddressMiddleware:
    """Sets REMOTE_ADDR to the address that called our outermost proxy, for the audit trail and the limits.

    Every proxy appends its caller's address to X-Forwarded-For. The caller may have made up the addresses before that
    one, and also X-Request-Id, which is therefore dropped unless one of our proxies sent it.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        caller = without_mapping(client_address(request))
        if not self.is_ours(caller):
            request.META.pop("HTTP_X_REQUEST_ID", None)
        for hop in reversed(request.headers.get("X-Forwarded-For", "").split(",")):
            before = without_mapping(parse(hop))
            if before is None or not self.is_ours(caller):
                break
            caller = before
        if caller is not None:
            request.META["REMOTE_ADDR"] = str(caller)
        return self.get_response(request)

    def is_ours(self, address: Address | None) -> bool:
        return address is not None and any(address in network for network in settings.TRUSTED_PROXIES)


def without_mapping(address: Address | None) -> Address | None:
    """Return ::ffff:192.0.2.1 as 192.0.2.1, and any other address as it is.

    A socket for both versions of IP reports IPv4 clients in the longer form, and the limits, which count a /64 of IPv6
    as one client, would count all of them together.
    """
    return (address.ipv4_mapped or address) if isinstance(address, IPv6Address) else address


class RequestLogMiddleware:
    """Gives each request an id, one line in the log, and its count and duration in the metrics.

    The id is the proxy's or a new one. The line names the view and not the path, since a path may hold what somebody
    typed. A streamed export is timed until its first byte.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        given = request.headers.get("X-Request-Id", "")
        request_id = given if re.fullmatch(r"[0-9A-Za-z-]{8,36}", given) else str(uuid.uuid4())
        structlog.contextvars.bind_contextvars(request_id=request_id)
        began = time.perf_counter()
        try:
            response = self.get_response(request)
            seconds = time.perf_counter() - began
            view = request.resolver_match.view_name if request.resolver_match else ""
            metrics.REQUESTS.labels(view, response.status_code).inc()
            metrics.REQUEST_SECONDS.labels(view).observe(seconds)
            log.info(
                "request.done",
                method=request.method if request.method in METHODS else "other",
                view=view,
                status=response.status_code,
                seconds=round(seconds, 3),
            )
        finally:
            structlog.contextvars.clear_contextvars()
        response["X-Request-Id"] = request_id
        return response

    def process_view(self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any) -> None:
        """Bind the UUIDs in the URL to all lines logged from here on: `refund_id` as `refund`, for instance.

        Only UUIDs, since any other value in a URL may be something that somebody typed.
        """
        ids = {name: str(value) for name, value in kwargs.items() if isinstance(value, uuid.UUID)}
        structlog.contextvars.bind_contextvars(
            **{name.removesuffix("_id"): value for name, value in ids.items()}
        )


class BodySizeMiddleware:
    """Refuses bodies that no page of ours sends, before any of it is read.

    413: larger than DATA_UPLOAD_MAX_MEMORY_SIZE, or than LARGER_BODIES allows the path. Django's own limit does not
    count files.
    411: of unknown length (Transfer-Encoding). Django reads nothing of such a body and would miss the form's token.
    400: with a Content-Length that is no number.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        length = request.headers.get("Content-Length") or "0"
        if "Transfer-Encoding" in request.headers:
            return HttpResponse(render_to_string("400.html"), status=411)
        if not (length.isascii() and length.isdigit() and len(length) < 19):
            return HttpResponse(render_to_string("400.html"), status=400)
        if int(length) > settings.LARGER_BODIES.get(request.path, settings.DATA_UPLOAD_MAX_MEMORY_SIZE):
            return HttpResponse(render_to_string("413.html"), status=413)
        return self.get_response(request)


class SessionPolicyMiddleware:
    """Ends a session that is idle or lasts too long, and asks the provider again every SSO_RECHECK_SECONDS.

    It works in process_view, after the CSRF check and before LoginRequiredMiddleware. So it parks only forms of our
    own, and a person whose session it ends is taken to the sign-in page.
    """

    def __init__(self, get_response: GetResponse) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        request.parked = QueryDict()  # type: ignore[attr-defined]  # See Note [Parked forms]
        return self.get_response(request)

    def process_view(
        self, request: HttpRequest, view: Callable[..., Any], args: Any, kwargs: Any
    ) -> HttpResponseBase | None:
        if not getattr(view, "login_required", True) or not request.user.is_authenticated:
            return None
        # A script sent this. It cannot follow a redirect to the provider, so its page has to be loaded again.
        by_script = request.headers.get("Sec-Fetch-Dest") == "empty"
        # A page that renews itself does not count as activity: it would keep an unattended screen signed in.
        by_itself = by_script or "renew" in request.GET
        session, now = request.session, time.time()
        over = self.over(request, now)
        if not (over or by_itself) and now - session["seen_at"] > min(30, settings.SSO_IDLE_SECONDS / 10):
            session["seen_at"] = now
        if not over and now < session.get("oidc_id_token_expiration", 0):
            if request.method == "GET" and not by_script:
                parked_forms.take_parked(request)
            return None
        if by_script:
            return redirect_to_login(request.get_full_path())
        posted = request.method == "POST"
        page = parked_forms.park(request) if posted else request.get_full_path()
        if over:
            end_session(request)
            messages.info(request, f"{over} {_unsent(request)}" if posted else over)
            return redirect_to_login(page)
        return HttpResponseRedirect(page, status=303) if posted else recheck(request)

    def over(self, request: HttpRequest, now: float) -> str:
        """Return the reason why the session has ended, for the person; empty if it goes on."""
        if "break_glass" in request.session and break_glass.is_over(request.session["break_glass"]):
            return _("緊急用サインインの期限が切れたため、サインアウトしました。")
        if now - request.session.get("signed_in_at", 0) > settings.SSO_ABSOLUTE_SECONDS:
            return _("サインインから時間がたったため、サインアウトしました。もう一度サインインしてください。")
        if now - request.session.get("seen_at", 0) > settings.SSO_IDLE_SECONDS:
            return _("しばらく操作がなかったため、サインアウトしました。もう一度サインインしてください。")
        return ""


def _unsent(request: HttpRequest) -> str:
    """Say what happened to a form that was posted after the session ended. Files are lost. See Note [Parked forms]."""
    if request.FILES:
        return _("ファイルは送信されていません。サインインしてから、もう一度選んでください。")
    return _(
        "入力した内容はまだ送信されていません。%(minutes)s 分以内にサインインすると、続きから確かめられます。"
    ) % {"minutes": parked_forms.PARKED_SECONDS // 60}
