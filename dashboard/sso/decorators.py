"""Decorators of views: a sign-in that is refused becomes a page, and some views need a fresh one."""

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
    """Draw a refused sign-in as a page, tell the audit trail, and leave nobody signed in who was refused."""

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
            # What nobody began here can be sent by anybody, as often as they like: the log is enough.
            if error.reason != "state":
                user_login_failed.send(sender=__name__, credentials=credentials, request=request)
            if problem.ends_session and request.user.is_authenticated:
                end_session(request)
            return render(request, problem.template, {"explanation": problem}, status=problem.status)

    return inner


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
