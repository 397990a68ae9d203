"""Pages around the app: sign-in, sign-out, health, and errors such as a missing CSRF token or a lost session."""

import structlog
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.contrib.sessions.exceptions import SessionInterrupted
from django.core.exceptions import ObjectNotUpdated
from django.db import DatabaseError, connection
from django.db.migrations.executor import MigrationExecutor
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest, HttpResponseRedirect
from django.shortcuts import redirect, render
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone, translation
from django.utils.http import urlencode
from mozilla_django_oidc.views import get_next_url


@login_not_required
def sign_in(request: HttpRequest) -> HttpResponse:
    page = get_next_url(request, "next") or "/"
    if request.user.is_authenticated:
        return HttpResponseRedirect(page)  # not redirect(), which would try the path as a view's name first
    address = reverse("oidc_authentication_init") + "?" + urlencode({"next": page})
    return render(request, "site/sign_in.html", {"authenticate": address})


@login_not_required
def signed_out(request: HttpRequest) -> HttpResponse:
    if request.user.is_authenticated:
        return redirect("/")
    return render(request, "site/signed_out.html", {"here_only": request.GET.get("here") == "only"})


def csrf_failure(request: HttpRequest, reason: str = "") -> HttpResponse:
    return render(request, "site/csrf_failure.html", status=403)


def bad_request(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer 400 without request.user, which is missing when the host name is what is wrong. Django's own needs it.

    A session that ended during the request also comes here: see session_interrupted().
    """
    if isinstance(exception, SessionInterrupted):
        with translation.override(getattr(request, "LANGUAGE_CODE", settings.LANGUAGE_CODE)):
            return session_interrupted(request) if _is_gone(exception) else server_error(request)
    return HttpResponseBadRequest(render_to_string("400.html"))


def server_error(request: HttpRequest) -> HttpResponse:
    """Answer 500 without context processors: they, or the database that they read, may be what is broken."""
    told = {
        "at": timezone.localtime(),
        # RequestLogMiddleware has bound it.
        "request_id": structlog.contextvars.get_contextvars().get("request_id", ""),
    }
    return HttpResponse(render_to_string("500.html", told), status=500)


def _is_gone(interrupted: SessionInterrupted) -> bool:
    """Return whether the session was deleted. Django raises the same error when the database fails while saving it."""
    update_error = interrupted.__context__
    return update_error is not None and isinstance(update_error.__context__, ObjectNotUpdated)


def session_interrupted(request: HttpRequest) -> HttpResponse:
    """Answer 409: the session ended during the request. Django notices after the view, so a post may have worked."""
    page = render_to_string("site/session_interrupted.html", {"posted": request.method == "POST"})
    return HttpResponse(page, status=409)


@login_not_required
def healthz(request: HttpRequest) -> HttpResponse:
    """Answer that the process is alive, without a query: otherwise a slow database would get it restarted."""
    return plain("ok")


@login_not_required
def readyz(request: HttpRequest) -> HttpResponse:
    """Answer 200 if the process can serve: not draining, and the database answers and has all migrations. Else 503."""
    if (settings.STATE_DIR / "draining").exists():
        return plain("draining", status=503)
    try:
        executor = MigrationExecutor(connection)
        missing = executor.migration_plan(executor.loader.graph.leaf_nodes())
    except DatabaseError:
        fault = "the database does not answer"
    else:
        fault = f"{len(missing)} migrations are not applied" if missing else ""
    return plain(fault or "ok", status=503 if fault else 200)


def plain(text: str, status: int = 200) -> HttpResponse:
    return HttpResponse(f"{text}\n", status=status, content_type="text/plain; charset=utf-8")
