"""Break-glass access: one person signs in for some minutes while the identity provider is down.

An administrator with a shell on the server issues a code (`manage.py break_glass`). No identity provider vouches for
the person, and one human could be let in twice. So such a person never counts as the second person of a refund: they
cannot be an approver, and since their sign-in is never fresh, they can neither decide a refund nor request one above
REFUND_APPROVAL_ABOVE.
"""

import hashlib
import secrets
from datetime import timedelta
from typing import Any

import structlog
from django.contrib import auth
from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.hashers import make_password
from django.contrib.auth.models import Group
from django.db import transaction
from django.db.models import QuerySet
from django.http import Http404, HttpRequest, HttpResponse
from django.shortcuts import redirect, render
from django.utils import timezone
from django.views.decorators.http import require_http_methods

from dashboard import limits
from dashboard.models import BreakGlass, SessionIndex, User
from dashboard.sso.sessions import take_roles
from refunds import audit, roles

ISSUER = "break-glass"  # of no provider: a provider's issuer is a URL
# Never a second person.
ROLES = [role for role, rights in roles.ROLES.items() if roles.APPROVE_REFUND not in rights]
MOST_MINUTES = 60

log = structlog.get_logger(__name__)


def issue(*, name: str, role: str, minutes: int, **told: Any) -> str:
    """Create a person and a code that signs them in once; return the code.

    Args:
        minutes: until the code and the person's session end, 1 to MOST_MINUTES.
        told: further data for the audit entry.

    Raises: ValueError for another role or number of minutes.
    """
    if role not in ROLES or not 1 <= minutes <= MOST_MINUTES:
        raise ValueError(f"one of {', '.join(ROLES)}; from 1 to {MOST_MINUTES} minutes")
    code, subject = secrets.token_urlsafe(24), secrets.token_hex(16)
    with transaction.atomic():
        user = User.objects.create(
            username=subject,
            issuer=ISSUER,
            subject=subject,
            name=f"{name[:140]}(緊急用)",
            password=make_password(None),
            is_staff=role in roles.STAFF_ROLES,
        )
        user.groups.set([Group.objects.get(name=role)])
        BreakGlass.objects.create(
            code=_hash(code), user=user, expires_at=timezone.now() + timedelta(minutes=minutes)
        )
        audit.record(None, "break_glass.issued", user, role=role, minutes=minutes, **told)
    log.warning("break_glass.issued", alarm=True, person=user.pk, role=role, minutes=minutes)
    return code


def end_all(**told: Any) -> int:
    """End every break-glass code, session and role at once; return how many codes were still valid.

    Refunds that such people requested and that are not sent yet are no longer sent.

    told: further data for the audit entry.
    """
    with transaction.atomic():
        ended = _good().update(expires_at=timezone.now())
        take_roles(User.objects.filter(issuer=ISSUER))
        audit.record(None, "break_glass.ended", None, ended=ended, **told)
    log.warning("break_glass.ended", alarm=True, ended=ended)
    return ended


def is_over(code: str) -> bool:
    """Return whether the time of this code, and so of the session that it began, has run out."""
    return not _good().filter(code=code).exists()


@login_not_required
@require_http_methods(["GET", "HEAD", "POST"])
def enter(request: HttpRequest) -> HttpResponse:
    """Show the form for the code, and sign in the person who posts a valid one.

    The code is posted, so that it appears in no address and no log. The page answers 404 while no unused code is valid.
    """
    if not _good().filter(used_at=None).exists():
        raise Http404
    wrong = request.method == "POST"
    if wrong:
        # A limit of its own: if it were shared, using up the sign-ins of an address would block this way in too.
        if wait := limits.hit(request, limits.CODES):
            return limits.too_many(request, wait)
        code = _hash(request.POST.get("code", "").strip())
        if (
            _good().filter(code=code, used_at=None).update(used_at=timezone.now())
        ):  # of two simultaneous posts, one wins
            _begin(request, BreakGlass.objects.select_related("user").get(code=code))
            return redirect("/")
        audit.record(None, "person.signed_in", None, refused=True, reason="break_glass_code")
        log.warning("break_glass.refused", alarm=True)
    return render(request, "site/break_glass.html", {"wrong": wrong}, status=403 if wrong else 200)


def _begin(request: HttpRequest, entry: BreakGlass) -> None:
    auth.login(request, entry.user)
    request.session["break_glass"] = entry.code
    # No provider can be asked again, so SessionPolicyMiddleware must not ask: it ends the session at this time.
    request.session["oidc_id_token_expiration"] = entry.expires_at.timestamp()
    request.session.save()  # gives the session its key
    SessionIndex.objects.create(session_key=str(request.session.session_key), user=entry.user)
    log.warning("break_glass.used", alarm=True, person=entry.user.pk)


def _good() -> QuerySet[BreakGlass]:
    return BreakGlass.objects.filter(expires_at__gt=timezone.now())


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
