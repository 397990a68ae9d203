"""Sessions: what is set when they begin, and how they are ended early."""

import time
from datetime import timedelta
from importlib import import_module
from typing import Any

from django.conf import settings
from django.contrib import auth
from django.contrib.auth.signals import user_logged_in
from django.db.models import QuerySet
from django.dispatch import receiver
from django.http import HttpRequest
from django.utils import timezone

from dashboard.models import BreakGlass, SeenLogoutToken, SessionIndex, User
from dashboard.oidc_provider import LEEWAY

# An older logout token is refused for its age, so its id need not be kept any longer.
LOGOUT_TOKENS_KEPT = timedelta(days=1)

SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


@receiver(user_logged_in, dispatch_uid="dashboard.sso")
def begin_session(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Set the times that SessionPolicyMiddleware reads."""
    now = time.time()
    request.session["signed_in_at"] = request.session["seen_at"] = now
    request.session["oidc_id_token_expiration"] = now + settings.SSO_RECHECK_SECONDS  # the library's key


def end_session(request: HttpRequest) -> None:
    """Sign the person out here. Parked forms stay in the session, and open only for the same person."""
    parked = request.session.get("parked")
    SessionIndex.objects.filter(session_key=request.session.session_key).delete()
    auth.logout(request)
    if parked:
        request.session["parked"] = parked


def end_sessions(rows: QuerySet[SessionIndex]) -> None:
    """Delete these sessions at once, whoever holds their cookies."""
    for row in rows:
        SessionStore(row.session_key).delete()
        row.delete()


def take_roles(people: QuerySet[User]) -> None:
    """Take all roles from these people and end their sessions, at once."""
    User.groups.through.objects.filter(user__in=people).delete()
    people.update(is_staff=False, is_superuser=False)
    end_sessions(SessionIndex.objects.filter(user__in=people))


def prune() -> None:
    """Delete what has expired: sessions (also those of visitors who never signed in), their index, and logout tokens.

    People whose break-glass access has expired lose their roles.
    """
    now = timezone.now()
    take_roles(User.objects.filter(pk__in=BreakGlass.objects.filter(expires_at__lte=now).values("user")))
    SessionStore.clear_expired()
    SessionIndex.objects.filter(
        created_at__lt=now - timedelta(seconds=settings.SSO_ABSOLUTE_SECONDS)
    ).delete()
    SeenLogoutToken.objects.filter(seen_at__lt=now - LOGOUT_TOKENS_KEPT - timedelta(seconds=LEEWAY)).delete()
