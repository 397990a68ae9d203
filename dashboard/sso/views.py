"""Views of signing in and out: they send the browser to the provider, and receive it back."""

import contextlib
import re
import time
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import structlog
from django.conf import settings
from django.contrib import messages
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.db.models import Q
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import gettext as _
from mozilla_django_oidc.views import (
    OIDCAuthenticationCallbackView,
    OIDCAuthenticationRequestView,
    OIDCLogoutView,
    get_next_url,
)

from dashboard import limits
from dashboard.models import SessionIndex
from dashboard.oidc_provider import (
    CANCELLED,
    LEEWAY,
    MISCONFIGURED,
    NOT_FRESH,
    REFUSES_US,
    STALE,
    UNAVAILABLE,
    UNPROVEN,
    WITHOUT_PROVIDER,
    SignInFailed,
    provider,
)
from dashboard.sso.backend import StrictOIDCBackend, StrictSettingsMixin
from dashboard.sso.decorators import explain_failed_sign_in
from dashboard.sso.sessions import end_session

NEEDS_A_PERSON = {"login_required", "interaction_required", "consent_required", "account_selection_required"}

log = structlog.get_logger(__name__)


class Authenticate(StrictSettingsMixin, OIDCAuthenticationRequestView):  # type: ignore[misc]
    """Redirect to the provider's sign-in."""

    def get(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseRedirect = super().get(request)
        # Kept with the state, not once for the session: two tabs must not land on each other's page.
        state = parse_qs(urlsplit(response.url).query)["state"][0]
        request.session["oidc_states"][state] |= self.remember(request)
        request.session.modified = True
        return response

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {"next": get_next_url(request, "next") or settings.LOGIN_REDIRECT_URL}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "login"} if request.GET.get("account") == "other" else {}


class Recheck(Authenticate):
    """Ask the provider silently (`prompt=none`) whether the person is still signed in, and with which roles."""

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {"next": request.get_full_path(), "silent": True}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "none"}


class StepUp(Authenticate):
    """Have the provider authenticate the person again, now.

    Callback judges by the `auth_time` in the answer, since a provider may ignore the parameters sent here.
    """

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {**super().remember(request), "fresh_since": time.time()}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "login", "max_age": "0"}


# Note [Signing out at the provider]
# Some providers end their session only if they are shown an ID token (`id_token_hint`); others, without it, ask the
# person to confirm. The site keeps no ID token, because it would lie in the database for hours with a name and a mail
# address in it. So it requests one when somebody signs out: silently (`prompt=none`), after the session here has ended,
# and without the scopes of name and mail. The token goes into the URL of the provider's sign-out, and nowhere else.
class LogoutHintRequest(Authenticate):
    """Ask the provider for an ID token to sign out with. See Note [Signing out at the provider]."""

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {"leaving": True}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "none", "scope": "openid"}


class Callback(StrictSettingsMixin, OIDCAuthenticationCallbackView):  # type: ignore[misc]
    """Receive the provider's answer to Authenticate, Recheck, StepUp or LogoutHintRequest."""

    def get(self, request: HttpRequest) -> HttpResponseBase:
        state = request.GET.get("state", "")
        states = request.session.get("oidc_states", {})
        if state not in states:
            raise SignInFailed(STALE, "state")
        self.begun = states[state]
        if "leaving" in self.begun:
            return self.leave(request)
        foreign, error = self.is_foreign(request), request.GET.get("error", "")
        if not foreign and not error and "code" in request.GET:
            response: HttpResponseBase = super().get(request)
            return response
        del states[state]
        request.session.modified = True
        if foreign or not error:
            raise SignInFailed(UNPROVEN, "iss" if foreign else "code_missing")
        if error in NEEDS_A_PERSON and "silent" in self.begun:
            end_session(request)
            messages.info(
                request, _("会社のアカウントからサインアウトしています。もう一度サインインしてください。")
            )
            return redirect_to_login(self.begun["next"])
        reason = error if re.fullmatch(r"[a-z_]{1,40}", error) else "provider_error"
        if error in REFUSES_US:
            raise SignInFailed(MISCONFIGURED, reason)
        raise SignInFailed(CANCELLED if error == "access_denied" else UNAVAILABLE, reason)

    def is_foreign(self, request: HttpRequest) -> bool:
        """Return whether another provider sent this answer, to have its code redeemed at ours (RFC 9207)."""
        issuer = request.GET.get("iss")
        return issuer != settings.OIDC_ISSUER and (issuer is not None or provider().names_itself)

    def leave(self, request: HttpRequest) -> HttpResponseBase:
        """Redirect to the provider's sign-out, with its ID token, if any. See Note [Signing out at the provider]."""
        end_session(request)  # somebody may have signed in meanwhile in another tab
        if request.GET.get("error") == "login_required":  # the person is already signed out there
            return HttpResponseRedirect(reverse("signed_out"))
        hint = ""
        with contextlib.suppress(SignInFailed):
            if "code" in request.GET and not self.is_foreign(request):
                hint = self.id_token(request)
        return leave_provider(request, hint)

    def id_token(self, request: HttpRequest) -> str:
        """Return the ID token of this answer, or "". It is not verified, since it only goes back to the provider."""
        tokens = StrictOIDCBackend().get_token(
            {
                "client_id": settings.OIDC_RP_CLIENT_ID,
                "client_secret": settings.OIDC_RP_CLIENT_SECRET,
                "grant_type": "authorization_code",
                "code": request.GET["code"],
                "redirect_uri": request.build_absolute_uri(reverse("oidc_authentication_callback")),
                "code_verifier": self.begun["code_verifier"],
            }
        )
        token = tokens.get("id_token")
        return token if isinstance(token, str) else ""

    def login_success(self) -> HttpResponseBase:
        request, claims = self.request, self.request.id_token
        before = request.session.session_key
        told = claims.get("auth_time")
        # An `auth_time` in the future (given in milliseconds, for instance) would make the sign-in fresh for ever.
        auth_time = told if type(told) is int and told <= time.time() + LEEWAY else 0
        if "fresh_since" in self.begun:
            if auth_time < self.begun["fresh_since"] - LEEWAY:
                raise SignInFailed(NOT_FRESH, "auth_time", self.user.username)
            request.session.cycle_key()  # a new key for a session that may do more than before
        response: HttpResponseBase = super().login_success()
        request.session["auth_time"] = auth_time
        if not request.session.session_key:
            request.session.save()  # a session taken over from another person has no key yet
        old = timezone.now() - timedelta(seconds=settings.SSO_ABSOLUTE_SECONDS)
        SessionIndex.objects.filter(Q(session_key=before) | Q(created_at__lt=old)).delete()
        SessionIndex.objects.update_or_create(
            session_key=request.session.session_key,
            defaults={"user": self.user, "provider_session": str(claims.get("sid", ""))[:255]},
        )
        return response

    @property
    def success_url(self) -> str:
        return str(self.begun["next"])


class Logout(OIDCLogoutView):  # type: ignore[misc]
    """Sign out here and, if the provider offers it, there."""

    http_method_names = ["post"]  # so that no link on another site signs anybody out

    def post(self, request: HttpRequest) -> HttpResponseBase:
        known_there = "break_glass" not in request.session
        end_session(request)
        request.session.flush()  # parked forms too: the person is leaving this screen
        response = self._leave(request) if known_there else HttpResponseRedirect(reverse("signed_out"))
        response["Clear-Site-Data"] = '"cache"'  # pages that Back would show again
        return response

    def _leave(self, request: HttpRequest) -> HttpResponseBase:
        """Go on to the provider's sign-out, by way of a sign-in there that nobody sees if that gets us an ID token."""
        with contextlib.suppress(SignInFailed):
            if provider().can_be_left() and provider().can_be_asked_on_leaving():
                return LogoutHintRequest().get(request)
        return leave_provider(request)


def leave_provider(request: HttpRequest, hint: str = "") -> HttpResponseBase:
    """Redirect to the provider's sign-out. If it has none that the site may use, say that the sign-out was here only.

    hint: an ID token, or "".
    """
    try:
        if provider().can_be_left():
            there = provider().end_session_endpoint
            query = {
                "client_id": settings.OIDC_RP_CLIENT_ID,
                "post_logout_redirect_uri": request.build_absolute_uri(reverse("signed_out")),
                **({"id_token_hint": hint} if hint else {}),
            }
            return HttpResponseRedirect(f"{there}{'&' if '?' in there else '?'}{urlencode(query)}")
    except SignInFailed as error:
        log.warning("sign_out_here_only", reason=error.reason)
    return HttpResponseRedirect(reverse("signed_out") + "?here=only")


@explain_failed_sign_in
def step_up(request: HttpRequest) -> HttpResponseBase:
    """Have the provider authenticate the person again. A break-glass session has no provider, so it is refused."""
    if "break_glass" in request.session:
        raise SignInFailed(WITHOUT_PROVIDER, "break_glass", request.user.get_username())
    response: HttpResponseBase = StepUp.as_view()(request)
    return response


@login_not_required
@explain_failed_sign_in
def authenticate(request: HttpRequest) -> HttpResponseBase:
    """Begin a sign-in when somebody pressed the button on our sign-in page, and count it against the address.

    A request that another site made the browser send leads to that page instead, and is not counted.
    """
    if request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
        return redirect_to_login(get_next_url(request, "next") or settings.LOGIN_REDIRECT_URL)
    if wait := limits.hit(request, limits.SIGN_INS):
        return limits.too_many(request, wait)
    response: HttpResponseBase = Authenticate.as_view()(request)
    return response


@login_not_required
@explain_failed_sign_in
def callback(request: HttpRequest) -> HttpResponseBase:
    """Receive the provider's answer. One that belongs to a sign-in begun here was counted then.

    Any other counts against the address, since another site can make a browser send it. Such a site can embed it as an
    image a hundred times; what is no navigation is refused without being counted.
    """
    if request.GET.get("state") not in request.session.get("oidc_states", {}):
        if request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
            raise SignInFailed(STALE, "state")
        if wait := limits.hit(request, limits.CALLBACKS):
            return limits.too_many(request, wait)
    response: HttpResponseBase = Callback.as_view()(request)
    return response


recheck = explain_failed_sign_in(Recheck.as_view())
logout = login_not_required(Logout.as_view())
