"""The pages around the app: signing in and out, health, and forms that came without token or lost their session."""

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
        return HttpResponseRedirect(page)  # as it is: redirect() would look for a view of that name
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
    """Django's draws the page with its reader, who is not known yet when it is the host's name that is wrong."""
    if isinstance(exception, SessionInterrupted):
        with translation.override(getattr(request, "LANGUAGE_CODE", settings.LANGUAGE_CODE)):
            return session_interrupted(request) if _is_gone(exception) else server_error(request)
    return HttpResponseBadRequest(render_to_string("400.html"))


def server_error(request: HttpRequest) -> HttpResponse:
    """Drawn without the request: what is broken may be the database, or whatever pages show around themselves."""
    told = {
        "at": timezone.localtime(),
        # RequestLogMiddleware has bound it.
        "request_id": structlog.contextvars.get_contextvars().get("request_id", ""),
    }
    return HttpResponse(render_to_string("500.html", told), status=500)


def _is_gone(interrupted: SessionInterrupted) -> bool:
    """Whether the session is no more; Django says the same of a database that died before it was saved."""
    update_error = interrupted.__context__
    return update_error is not None and isinstance(update_error.__context__, ObjectNotUpdated)


def session_interrupted(request: HttpRequest) -> HttpResponse:
    """The session ended while its request was under way, which is noticed after the view: what was sent may be done."""
    page = render_to_string("site/session_interrupted.html", {"posted": request.method == "POST"})
    return HttpResponse(page, status=409)


@login_not_required
def healthz(request: HttpRequest) -> HttpResponse:
    """Alive: asks nothing of the database, or a slow database would have us restarted."""
    return plain("ok")


@login_not_required
def readyz(request: HttpRequest) -> HttpResponse:
    """Able to serve: not told to leave, and the database answers and has this version's tables."""
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
