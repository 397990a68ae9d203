"""Break glass: a way in while the identity provider is dead, for one person, for minutes.

Whoever has a shell on the server lets somebody in (`manage.py break_glass`). Nobody vouches for that person, and the
same human could be let in twice. So they are nobody's second person: they cannot be an approver, and since their
sign-in is never fresh, they decide nothing and ask for nothing above REFUND_APPROVAL_ABOVE.
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
from refunds import audit
from refunds.roles import STAFF_ROLES

ISSUER = "break-glass"  # no provider's: those are web addresses
ROLES = ["viewer", "operator", "auditor"]
MOST_MINUTES = 60

log = structlog.get_logger(__name__)


def issue(*, name: str, role: str, minutes: int, **told: Any) -> str:
    """Let somebody in once, until so many minutes from now; return the code that they type.

    `told`: what the trail shall know besides.
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
            is_staff=role in STAFF_ROLES,
        )
        user.groups.set([Group.objects.get(name=role)])
        BreakGlass.objects.create(
            code=_hash(code), user=user, expires_at=timezone.now() + timedelta(minutes=minutes)
        )
        audit.record(None, "break_glass.issued", user, role=role, minutes=minutes, **told)
    log.warning("break_glass.issued", alarm=True, person=user.pk, role=role, minutes=minutes)
    return code


def end_all(**told: Any) -> int:
    """Put an end to every code, session and role by break-glass, at once; return how many codes were still good.

    What such a person asked for and is not sent yet is not sent any more.
    """
    with transaction.atomic():
        ended = _good().update(expires_at=timezone.now())
        take_roles(User.objects.filter(issuer=ISSUER))
        audit.record(None, "break_glass.ended", None, ended=ended, **told)
    log.warning("break_glass.ended", alarm=True, ended=ended)
    return ended


def is_over(code: str) -> bool:
    """Whether a session that was begun by this code has come to its end."""
    return not _good().filter(code=code).exists()


@login_not_required
@require_http_methods(["GET", "HEAD", "POST"])
def enter(request: HttpRequest) -> HttpResponse:
    """Where the code is typed: in no address, and so in no log. There is no such page unless a code waits for it."""
    if not _good().filter(used_at=None).exists():
        raise Http404
    wrong = request.method == "POST"
    if wrong:
        # By itself, or whoever uses up the sign-ins of an address would close this way in as well.
        if wait := limits.hit(request, limits.CODES):
            return limits.too_many(request, wait)
        code = _hash(request.POST.get("code", "").strip())
        if _good().filter(code=code, used_at=None).update(used_at=timezone.now()):  # of two at once, one
            _begin(request, BreakGlass.objects.select_related("user").get(code=code))
            return redirect("/")
        audit.record(None, "person.signed_in", None, refused=True, reason="break_glass_code")
        log.warning("break_glass.refused", alarm=True)
    return render(request, "site/break_glass.html", {"wrong": wrong}, status=403 if wrong else 200)


def _begin(request: HttpRequest, entry: BreakGlass) -> None:
    auth.login(request, entry.user)
    request.session["break_glass"] = entry.code
    # There is nobody to ask again; SessionPolicyMiddleware ends it.
    request.session["oidc_id_token_expiration"] = entry.expires_at.timestamp()
    request.session.save()  # or it has no key yet
    SessionIndex.objects.create(session_key=str(request.session.session_key), user=entry.user)
    log.warning("break_glass.used", alarm=True, person=entry.user.pk)


def _good() -> QuerySet[BreakGlass]:
    return BreakGlass.objects.filter(expires_at__gt=timezone.now())


def _hash(code: str) -> str:
    return hashlib.sha256(code.encode()).hexdigest()
