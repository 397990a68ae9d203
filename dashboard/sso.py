"""Single sign-on: the company's claims -> a person, a name and roles, anew at each sign-in.

A strict subclass of mozilla-django-oidc. The library keeps state, nonce and PKCE and walks through the code flow;
what it believes of the provider's answers is replaced: as it stands it accepts a token made for another
client, recognises people by e-mail and leaves a refused person signed in.
"""

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Callable
from datetime import timedelta
from functools import wraps
from importlib import import_module
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlencode, urlsplit

import structlog
from django.conf import settings
from django.contrib import auth, messages
from django.contrib.auth.backends import ModelBackend
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group
from django.contrib.auth.signals import user_logged_in, user_login_failed
from django.contrib.auth.views import redirect_to_login
from django.db import transaction
from django.db.models import Q, QuerySet
from django.dispatch import receiver
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBase,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    QueryDict,
)
from django.shortcuts import render
from django.urls import Resolver404, resolve, reverse
from django.utils import timezone
from django.utils.http import escape_leading_slashes, url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from mozilla_django_oidc.auth import OIDCAuthenticationBackend
from mozilla_django_oidc.utils import import_from_settings
from mozilla_django_oidc.views import (
    OIDCAuthenticationCallbackView,
    OIDCAuthenticationRequestView,
    OIDCLogoutView,
    get_next_url,
)

from dashboard import limits
from dashboard.models import BreakGlass, SeenLogoutToken, SessionIndex, User
from dashboard.oidc_provider import (
    CANCELLED,
    LEEWAY,
    MISCONFIGURED,
    NO_ROLE,
    NOT_FRESH,
    REFUSES_US,
    STALE,
    SUSPENDED,
    UNAVAILABLE,
    UNPROVEN,
    WITHOUT_PROVIDER,
    Refused,
    ask,
    check_token,
    provider,
)
from refunds import audit
from refunds.roles import ROLES, STAFF_ROLES

ID_TOKEN_CLAIMS = ["iss", "sub", "aud", "exp", "iat", "nonce"]
LOGOUT_TOKEN_CLAIMS = ["iss", "aud", "iat", "exp", "jti", "events"]
LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
NEEDS_A_PERSON = {"login_required", "interaction_required", "consent_required", "account_selection_required"}
PARKED_SECONDS = 600
PARKED_PAGES = 5  # at most; the oldest makes room
# One that is older is refused for its age, so that it need not be remembered.
LOGOUT_TOKENS_KEPT = timedelta(days=1)

log = structlog.get_logger(__name__)

type View = Callable[..., HttpResponseBase]
SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


# --- The person ---------------------------------------------------------------------------------------------
class Strict:
    """Answers the library's questions for settings: from discovery, or as a rule that no deployment may soften."""

    @staticmethod
    def get_settings(attr: str, *args: Any) -> Any:
        match attr:
            case "OIDC_OP_AUTHORIZATION_ENDPOINT":
                return provider().authorization_endpoint
            case "OIDC_RP_SCOPES":  # some providers refuse a scope that they do not know
                roles = {settings.OIDC_ROLES_CLAIM} & provider().scopes
                return " ".join(["openid", "profile", "email", *roles])
            case "OIDC_USE_PKCE" | "OIDC_USE_NONCE":
                return True
            case "OIDC_PKCE_CODE_CHALLENGE_METHOD":
                return "S256"
            case "OIDC_RENEW_ID_TOKEN_EXPIRY_SECONDS":
                return settings.SSO_RECHECK_SECONDS
        return import_from_settings(attr, *args)


class StrictOIDCBackend(Strict, OIDCAuthenticationBackend):  # type: ignore[misc]
    """Turns an authorization code into a person, or raises Refused. It never returns None.

    (Django would announce a None with the nonce and the code verifier among the "credentials".)
    """

    get_user = ModelBackend.get_user  # the library's own keeps people in who were deactivated

    def __init__(self) -> None:
        # Not the library's: Django makes a backend for every request, and no page may wait for discovery.
        self.OIDC_RP_CLIENT_ID = settings.OIDC_RP_CLIENT_ID
        self.OIDC_RP_CLIENT_SECRET = settings.OIDC_RP_CLIENT_SECRET

    def get_all_permissions(self, user: Any, obj: Any = None) -> set[str]:
        """Those of the person's roles, by the table that the database's groups are made equal to; nobody has others.

        Asked for by every page: Django's own way takes two more statements.
        """
        if obj is not None or not user.is_active or user.is_anonymous:
            return set()
        return {name for role in user.role_names for name in ROLES.get(role, ())}

    def get_token(self, payload: dict[str, str]) -> dict[str, Any]:
        credentials = None
        if provider().basic_auth:
            # RFC 6749, 2.3.1: form-encoded first, or a secret with a colon in it is split at the wrong place.
            credentials = (quote_plus(payload.pop("client_id")), quote_plus(payload.pop("client_secret")))
        return ask(
            "POST",
            provider().token_endpoint,
            data=payload,
            auth=credentials,
            rejected=lambda error: (
                # A code that was used, or is too old. Of all else another code would hear the same.
                Refused(STALE, "code")
                if error == "invalid_grant"
                else Refused(MISCONFIGURED, f"token_{error}")
            ),
        )

    def verify_token(self, token: object, **kwargs: Any) -> dict[str, Any]:
        claims = check_token(token, required=ID_TOKEN_CLAIMS)
        if not kwargs.get("nonce") or claims["nonce"] != kwargs["nonce"]:
            raise Refused(UNPROVEN, "nonce")
        if not claims["sub"] or len(claims["sub"]) > 255 or not claims["sub"].isprintable():
            raise Refused(UNPROVEN, "sub")
        return claims

    def get_userinfo(self, access_token: str, id_token: str, payload: dict[str, Any]) -> dict[str, Any]:
        info = ask("GET", provider().userinfo_endpoint, headers={"Authorization": f"Bearer {access_token}"})
        if info.get("sub") != payload["sub"]:
            raise Refused(UNPROVEN, "userinfo_sub")
        return info

    def get_or_create_user(self, access_token: str, id_token: str, payload: dict[str, Any]) -> User:
        user = sync_user({**self.get_userinfo(access_token, id_token, payload), **payload})
        self.request.id_token = payload
        return user


def sync_user(claims: dict[str, Any]) -> User:
    """Make our record of a person equal to the provider's, and return it. Roles are set, never added.

    Raises: Refused.
    """
    issuer, subject = claims["iss"], claims["sub"]
    username = hashlib.sha256(json.dumps([issuer, subject]).encode()).hexdigest()[:32]
    values = claims.get(settings.OIDC_ROLES_CLAIM)
    values = [values] if isinstance(values, str) else values if isinstance(values, list) else []
    roles = {role for value, role in settings.OIDC_ROLE_VALUES.items() if value and value in values}
    if not roles:
        people = User.objects.filter(issuer=issuer, subject=subject)
        with transaction.atomic():
            for user in people.filter(groups__isnull=False).distinct():
                audit.record(
                    None,
                    "person.signed_in",
                    user,
                    refused=True,
                    reason="no_role",
                    roles_before=user.role_names,
                )
            take_roles(people)
        raise Refused(NO_ROLE, "no_role", username)
    with transaction.atomic():
        # The database lets one of two simultaneous first sign-ins create the person; the other finds it.
        user, is_new = User.objects.get_or_create(
            issuer=issuer, subject=subject, defaults={"username": username, "password": make_password(None)}
        )
        if not user.is_active:
            raise Refused(SUSPENDED, "deactivated", username)
        known_as = user.name
        user.name = _text(claims.get("name") or claims.get("preferred_username"), 150)
        user.email = _text(claims.get("email"), 254)
        user.is_staff = bool(roles & STAFF_ROLES)
        user.is_superuser = False
        user.save(update_fields=["name", "email", "is_staff", "is_superuser"])
        before: dict[str, Any] = {}
        had = sorted(user.groups.values_list("name", flat=True))
        if had != sorted(roles):
            user.groups.set([Group.objects.get_or_create(name=role)[0] for role in sorted(roles)])
            before["roles_before"] = had
        if known_as != user.name and not is_new:
            before["name_before"] = known_as
        if before:
            audit.record(user, "person.signed_in", user, **before)
    return user


def take_roles(people: QuerySet[User]) -> None:
    """Let these people do nothing any more, at once."""
    User.groups.through.objects.filter(user__in=people).delete()
    people.update(is_staff=False, is_superuser=False)
    end_sessions(SessionIndex.objects.filter(user__in=people))


def _text(value: object, length: int) -> str:
    """A claim as one line of text: PostgreSQL takes no NUL, and no name needs a line break."""
    return "".join(c for c in value if c.isprintable())[:length] if isinstance(value, str) else ""


# --- The session --------------------------------------------------------------------------------------------
@receiver(user_logged_in, dispatch_uid="dashboard.sso")
def begin_session(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Start the clocks that SessionPolicy reads."""
    now = time.time()
    request.session["signed_in_at"] = request.session["seen_at"] = now
    request.session["oidc_id_token_expiration"] = now + settings.SSO_RECHECK_SECONDS  # the library's name


def end_session(request: HttpRequest) -> None:
    """Sign a person out here. What was parked stays, for the same person only."""
    parked = request.session.get("parked")
    SessionIndex.objects.filter(session_key=request.session.session_key).delete()
    auth.logout(request)
    if parked:
        request.session["parked"] = parked


def end_sessions(rows: QuerySet[SessionIndex]) -> None:
    """End sessions that others hold, at once."""
    for row in rows:
        SessionStore(row.session_key).delete()
        row.delete()


# Note [Parked forms]
# A form may arrive when its sender must first be asked for again at the provider. Sending it afterwards by
# ourselves would move money without a person looking on; refusing it would lose what was typed. So its fields are
# kept in the session, for ten minutes and for this person, and the page that held the form finds them in
# `request.parked` when it is next drawn. Nothing is sent until the person presses the button again.
def park(request: HttpRequest) -> str:
    """Keep the fields of a posted form; return the address of the page that held it. See Note [Parked forms].

    Call it after the CSRF check: another site must not be able to fill in a form here.
    """
    page = request.get_full_path()
    held_by = request.headers.get("Referer", "")
    if url_has_allowed_host_and_scheme(held_by, {request.get_host()}, require_https=request.is_secure()):
        parts = urlsplit(held_by)
        page = escape_leading_slashes(parts.path + (f"?{parts.query}" if parts.query else ""))
    page = _page_with_form(request, page)
    fields = request.POST.copy()
    fields.pop("csrfmiddlewaretoken", None)
    parked = request.session.get("parked", {})
    parked.pop(page, None)
    while len(parked) >= PARKED_PAGES:
        del parked[next(iter(parked))]
    parked[page] = {
        "fields": fields.urlencode(),
        "user": request.user.pk,
        "until": time.time() + PARKED_SECONDS,
    }
    request.session["parked"] = parked
    return page


def _page_with_form(request: HttpRequest, page: str) -> str:
    """The page itself, or the one that holds the form where it is the address of a view for posts alone."""
    try:
        there = resolve(urlsplit(page).path)
    except Resolver404:
        return page
    holder = getattr(there.func, "form_is_on", None)
    return str(holder(request, *there.args, **there.kwargs)) if holder else page


def posted_from(page: Callable[..., str]) -> Callable[[View], View]:
    """Make a view for posts alone, whose form is on another page: `page(request, …)` returns the address of that.

    A post that is refused leaves the view's own address in the browser. Whoever opens it again, or has to sign in
    first, comes to the page with the form.
    """

    def decorate(view: View) -> View:
        @wraps(view)
        def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
            if request.method in {"GET", "HEAD"}:
                return HttpResponseRedirect(page(request, *args, **kwargs))
            if request.method != "POST":
                return HttpResponseNotAllowed(["GET", "HEAD", "POST"])
            return view(request, *args, **kwargs)

        inner.form_is_on = page  # type: ignore[attr-defined]
        return inner

    return decorate


def take_parked(request: HttpRequest) -> None:
    """Hand parked fields to the page that is being drawn, once."""
    parked = request.session.get("parked")
    if not parked or request.get_full_path() not in parked:
        return
    item = parked.pop(request.get_full_path())
    request.session["parked"] = parked
    if item["user"] == request.user.pk and time.time() < item["until"]:
        request.parked = QueryDict(item["fields"])  # type: ignore[attr-defined]
        messages.warning(
            request,
            _(
                "サインインを確認しました。"
                "入力した内容はまだ送信されていません。"
                "内容を確かめて、もう一度送信してください。"
            ),
        )


# --- The screens --------------------------------------------------------------------------------------------
def explained(view: View) -> View:
    """Draw a refused sign-in as a page, tell the audit trail, and leave nobody signed in who was refused."""

    @wraps(view)
    def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except Refused as refusal:
            explanation = refusal.explanation
            credentials = {"reason": refusal.reason}
            if refusal.username:
                credentials["username"] = refusal.username
            log.warning("sign_in_refused", reason=refusal.reason)
            # What nobody began here can be sent by anybody, as often as they like: the log is enough.
            if refusal.reason != "state":
                user_login_failed.send(sender=__name__, credentials=credentials, request=request)
            if explanation.ends_session and request.user.is_authenticated:
                end_session(request)
            return render(
                request, explanation.template, {"explanation": explanation}, status=explanation.status
            )

    return inner


class Authenticate(Strict, OIDCAuthenticationRequestView):  # type: ignore[misc]
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
class Farewell(Authenticate):
    """Ask the provider for an ID token to sign out with. See Note [Signing out there]."""

    def remember(self, request: HttpRequest) -> dict[str, Any]:
        return {"leaving": True}

    def get_extra_params(self, request: HttpRequest) -> dict[str, str]:
        return {"prompt": "none", "scope": "openid"}


class Callback(Strict, OIDCAuthenticationCallbackView):  # type: ignore[misc]
    """Receive a person back from the provider."""

    def get(self, request: HttpRequest) -> HttpResponseBase:
        state = request.GET.get("state", "")
        states = request.session.get("oidc_states", {})
        if state not in states:
            raise Refused(STALE, "state")
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
            raise Refused(UNPROVEN, "iss" if foreign else "code_missing")
        if error in NEEDS_A_PERSON and "silent" in self.begun:
            end_session(request)
            messages.info(
                request, _("会社のアカウントからサインアウトしています。もう一度サインインしてください。")
            )
            return redirect_to_login(self.begun["next"])
        reason = error if re.fullmatch(r"[a-z_]{1,40}", error) else "provider_error"
        if error in REFUSES_US:
            raise Refused(MISCONFIGURED, reason)
        raise Refused(CANCELLED if error == "access_denied" else UNAVAILABLE, reason)

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
        with contextlib.suppress(Refused):
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
                raise Refused(NOT_FRESH, "auth_time", self.user.username)
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
        with contextlib.suppress(Refused):
            if provider().can_be_left() and provider().can_be_asked_on_leaving():
                return Farewell().get(request)
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
    except Refused as refusal:
        log.warning("sign_out_here_only", reason=refusal.reason)
    return HttpResponseRedirect(reverse("signed_out") + "?here=only")


@csrf_exempt
@login_not_required
@require_POST
def backchannel_logout(request: HttpRequest) -> HttpResponse:
    """End a person's sessions because the provider says so, whoever holds the cookies."""
    try:
        claims = check_token(request.POST.get("logout_token"), required=LOGOUT_TOKEN_CLAIMS, typ="logout+jwt")
        sid, subject, events = claims.get("sid"), claims.get("sub"), claims["events"]
        told = isinstance(events, dict) and events.get(LOGOUT_EVENT) == {}
        names = [name for name in (sid, subject) if name is not None]
        named = bool(names) and all(isinstance(name, str) and name for name in names)
        if not told or not named or "nonce" in claims:  # an ID token must not pass for one
            raise Refused(UNPROVEN, "logout_token")
        if claims["iat"] < time.time() - LOGOUT_TOKENS_KEPT.total_seconds():
            raise Refused(UNPROVEN, "logout_token_age")
        jti = hashlib.sha256(claims["jti"].encode()).hexdigest()
        rows = SessionIndex.objects.filter(user__issuer=claims["iss"])
        # Together, or a crash between the two would have the repeat refused and nothing ended.
        with transaction.atomic():
            if not SeenLogoutToken.objects.get_or_create(jti=jti)[1]:
                raise Refused(UNPROVEN, "replayed")
            end_sessions(rows.filter(provider_session=sid) if sid else rows.filter(user__subject=subject))
    except Refused as refusal:
        return HttpResponse(status=503 if refusal.explanation is UNAVAILABLE else 400)
    return HttpResponse()


def fresh_sign_in_required(view: View) -> View:
    """Let a view be reached only within SSO_STEP_UP_SECONDS of the provider having asked for the person."""

    @wraps(view)
    def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        # One by break-glass has no `auth_time`, so it is never fresh.
        if time.time() - request.session.get("auth_time", 0) <= settings.SSO_STEP_UP_SECONDS:
            return view(request, *args, **kwargs)
        page = park(request) if request.method == "POST" else request.get_full_path()
        return HttpResponseRedirect(reverse("oidc_step_up") + "?" + urlencode({"next": page}))

    return inner


def prune() -> None:
    """Forget what is over: sessions, also of whoever only looked in, logout tokens that would be refused again, and
    the roles of whom break-glass let in."""
    now = timezone.now()
    take_roles(User.objects.filter(pk__in=BreakGlass.objects.filter(expires_at__lte=now).values("user")))
    SessionStore.clear_expired()
    SessionIndex.objects.filter(
        created_at__lt=now - timedelta(seconds=settings.SSO_ABSOLUTE_SECONDS)
    ).delete()
    SeenLogoutToken.objects.filter(seen_at__lt=now - LOGOUT_TOKENS_KEPT - timedelta(seconds=LEEWAY)).delete()


@explained
def step_up(request: HttpRequest) -> HttpResponseBase:
    """Ask for the person again, if there is somebody to ask."""
    if "break_glass" in request.session:
        raise Refused(WITHOUT_PROVIDER, "break_glass", request.user.get_username())
    response: HttpResponseBase = StepUp.as_view()(request)
    return response


@login_not_required
@explained
def authenticate(request: HttpRequest) -> HttpResponseBase:
    """Begin a sign-in where somebody pressed our button; another site leads to the button, and counts for nothing."""
    if request.headers.get("Sec-Fetch-Site", "none") not in {"same-origin", "none"}:
        return redirect_to_login(get_next_url(request, "next") or settings.LOGIN_REDIRECT_URL)
    if wait := limits.taken(request, limits.SIGN_INS):
        return limits.too_many(request, wait)
    response: HttpResponseBase = Authenticate.as_view()(request)
    return response


@login_not_required
@explained
def callback(request: HttpRequest) -> HttpResponseBase:
    """What was begun here was counted then; what was not may be a picture on another site, a hundred times."""
    if request.GET.get("state") not in request.session.get("oidc_states", {}):
        if request.headers.get("Sec-Fetch-Mode", "navigate") != "navigate":
            raise Refused(STALE, "state")
        if wait := limits.taken(request, limits.CALLBACKS):
            return limits.too_many(request, wait)
    response: HttpResponseBase = Callback.as_view()(request)
    return response


recheck = explained(Recheck.as_view())
logout = login_not_required(Logout.as_view())
