"""Sessions of the people who signed in: how they begin, and how they end before their time."""

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

# One that is older is refused for its age, so that it need not be remembered.
LOGOUT_TOKENS_KEPT = timedelta(days=1)

SessionStore = import_module(settings.SESSION_ENGINE).SessionStore


@receiver(user_logged_in, dispatch_uid="dashboard.sso")
def begin_session(sender: object, request: HttpRequest, user: User, **kwargs: Any) -> None:
    """Start the clocks that SessionPolicyMiddleware reads."""
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


def take_roles(people: QuerySet[User]) -> None:
    """Let these people do nothing any more, at once."""
    User.groups.through.objects.filter(user__in=people).delete()
    people.update(is_staff=False, is_superuser=False)
    end_sessions(SessionIndex.objects.filter(user__in=people))


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
