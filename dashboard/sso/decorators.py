"""View decorators: explain a failed sign-in on a page; require a recent sign-in."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import urlencode

import structlog
from django.conf import settings
from django.contrib.auth.signals import user_login_failed
from django.http import HttpRequest, HttpResponseBase, HttpResponseRedirect
from django.shortcuts import render
from django.urls import reverse

from dashboard.oidc_provider import SignInFailed
from dashboard.parked_forms import park
from dashboard.sso.sessions import end_session

log = structlog.get_logger(__name__)

type View = Callable[..., HttpResponseBase]


def explain_failed_sign_in(view: View) -> View:
    """Make a view answer SignInFailed with a page, record it on the audit trail, and end the session if it must end."""

    @wraps(view)
    def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        try:
            return view(request, *args, **kwargs)
        except SignInFailed as error:
            problem = error.problem
            credentials = {"reason": error.reason}
            if error.username:
                credentials["username"] = error.username
            log.warning("sign_in_refused", reason=error.reason)
            # Anybody can send an answer to a sign-in that was not begun here, any number of times. The log is enough.
            if error.reason != "state":
                user_login_failed.send(sender=__name__, credentials=credentials, request=request)
            if problem.ends_session and request.user.is_authenticated:
                end_session(request)
            return render(request, problem.template, {"explanation": problem}, status=problem.status)

    return inner


def fresh_sign_in_required(view: View) -> View:
    """Let a view run only if the provider authenticated the person within the last SSO_STEP_UP_SECONDS.

    Otherwise the person is sent to the provider first; a posted form is parked meanwhile. See Note [Parked forms].
    """

    @wraps(view)
    def inner(request: HttpRequest, *args: Any, **kwargs: Any) -> HttpResponseBase:
        # A break-glass session has no `auth_time`, so it is never fresh.
        if time.time() - request.session.get("auth_time", 0) <= settings.SSO_STEP_UP_SECONDS:
            return view(request, *args, **kwargs)
        page = park(request) if request.method == "POST" else request.get_full_path()
        return HttpResponseRedirect(reverse("oidc_step_up") + "?" + urlencode({"next": page}))

    return inner
