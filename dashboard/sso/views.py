"""The pages of signing in and out: to the provider, and back from it."""

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
    """Send a person to the provider."""

    def get(self, request: HttpRequest) -> HttpResponseBase:
        response: HttpResponseRedirect = super().get(request)
        # Beside the state, not beside the session: two tabs must not land on one another's page.
        state = parse_qs(urlsplit(response.url).query)["state"][0]
        request.session["oidc_states"][state] |= self.remember(request)
        request.session.modified = True
        return response

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {"next": get_next_url(request, "next") or settings.LOGIN_REDIRECT_URL}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "login"} if request.GET.get("account") == "other" else {}


class Recheck(Authenticate):
    """Ask the provider, unseen by the person, whether they still are who they were and may what they might."""

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {"next": request.get_full_path(), "silent": True}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "none"}


class StepUp(Authenticate):
    """Have the provider ask for the person again, now. Judged by its `auth_time`, never by what we asked for."""

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {**super().remember(request), "fresh_since": time.time()}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "login", "max_age": "0"}


# Note [Signing out there]
# Some providers end their session only for whoever shows an ID token (`id_token_hint`); others ask the person once
# more without it. No ID token is kept here: for hours it would lie in the database, with a name and a mail in it. So
# one is asked for when somebody leaves: silently, once the session here is over, and without the scopes of name and
# mail. It goes into the address of the provider's own sign-out, and nowhere else.
class LogoutHintRequest(Authenticate):
    """Ask the provider for an ID token to sign out with. See Note [Signing out there]."""

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {"leaving": True}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "none", "scope": "openid"}


class Callback(StrictSettingsMixin, OIDCAuthenticationCallbackView):  # type: ignore[misc]
    """Receive a person back from the provider."""

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
        """RFC 9207: an answer of another provider, which would have us take its code to ours."""
        issuer = request.GET.get("iss")
        return issuer != settings.OIDC_ISSUER and (issuer is not None or provider().names_itself)

    def leave(self, request: HttpRequest) -> HttpResponseBase:
        """Go on to the provider's sign-out, with an ID token if it gave one. See Note [Signing out there]."""
        end_session(request)  # in another tab somebody may have signed in meanwhile
        if request.GET.get("error") == "login_required":  # there they are signed out already
            return HttpResponseRedirect(reverse("signed_out"))
        hint = ""
        with contextlib.suppress(SignInFailed):
            if "code" in request.GET and not self.is_foreign(request):
                hint = self.id_token(request)
        return leave_provider(request, hint)

    def id_token(self, request: HttpRequest) -> str:
        """The ID token of this answer. Nobody here believes it: it goes back to whom it came from."""
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
        # Of a time to come (in milliseconds, say) each sign-in would be fresh for ever.
        auth_time = told if type(told) is int and told <= time.time() + LEEWAY else 0
        if "fresh_since" in self.begun:
            if auth_time < self.begun["fresh_since"] - LEEWAY:
                raise SignInFailed(NOT_FRESH, "auth_time", self.user.username)
            request.session.cycle_key()  # who has proven more than before gets another key than before
        response: HttpResponseBase = super().login_success()
        request.session["auth_time"] = auth_time
        if not request.session.session_key:
            request.session.save()  # whoever takes over from another person begins without one
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
    """Sign out here and, where the provider offers it, there."""

    http_method_names = ["post"]  # a link on another site must not sign anybody out

    def post(self, request: HttpRequest) -> HttpResponseBase:
        known_there = "break_glass" not in request.session
        end_session(request)
        request.session.flush()  # parked forms go as well: this is the end of somebody's work at this screen
        if not known_there:
            return HttpResponseRedirect(reverse("signed_out"))
        with contextlib.suppress(SignInFailed):
            if provider().can_be_left() and provider().can_be_asked_on_leaving():
                return LogoutHintRequest().get(request)
        return leave_provider(request)


def leave_provider(request: HttpRequest, hint: str = "") -> HttpResponseBase:
    """Take the browser to the provider's sign-out; where there is none for us, say that it was signed out here only."""
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
    """Ask for the person again, if there is somebody to ask."""
    if "break_glass" in request.session:
        raise SignInFailed(WITHOUT_PROVIDER, "break_glass", request.user.get_username())
    response: HttpResponseBase = StepUp.as_view()(request)
    return response


@login_not_required
@explain_failed_sign_in
def authenticate(request: HttpRequest) -> HttpResponseBase:
    """Begin a sign-in where somebody pressed our button; another site leads to the button, and counts for nothing."""
    if request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
        return redirect_to_login(get_next_url(request, "next") or settings.LOGIN_REDIRECT_URL)
    if wait := limits.hit(request, limits.SIGN_INS):
        return limits.too_many(request, wait)
    response: HttpResponseBase = Authenticate.as_view()(request)
    return response


@login_not_required
@explain_failed_sign_in
def callback(request: HttpRequest) -> HttpResponseBase:
    """What was begun here was counted then; what was not may be a picture on another site, a hundred times."""
    if request.GET.get("state") not in request.session.get("oidc_states", {}):
        if request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
            raise SignInFailed(STALE, "state")
        if wait := limits.hit(request, limits.CALLBACKS):
            return limits.too_many(request, wait)
    response: HttpResponseBase = Callback.as_view()(request)
    return response


recheck = explain_failed_sign_in(Recheck.as_view())
logout = login_not_required(Logout.as_view())
