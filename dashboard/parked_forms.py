"""Parked forms: what a person posted when they had to sign in again first is kept, and shown again on its page."""

import time
from collections.abc import Callable
from functools import wraps
from typing import Any
from urllib.parse import urlsplit

from django.contrib import messages
from django.http import (
    HttpRequest,
    HttpResponseBase,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    QueryDict,
)
from django.urls import Resolver404, resolve
from django.utils.http import escape_leading_slashes, url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _

PARKED_SECONDS = 600
PARKED_PAGES = 5  # at most; the oldest makes room

type View = Callable[..., HttpResponseBase]


# Note [Parked forms]
# A form may arrive when the provider must first authenticate the person again. Carrying it out afterwards by itself
# would move money with nobody watching; refusing it would lose what was typed. So its fields are kept in the session,
# for ten minutes and for this person, and the page that holds the form finds them in `request.parked` when it is next
# drawn. Nothing is carried out until the person presses the button again.
def park(request: HttpRequest) -> str:
    """Keep the fields of a posted form; return the path of the page that holds it. See Note [Parked forms].

    Call it after the CSRF check, so that no other site can fill in a form here.
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
    """Return the page that holds the form if `page` is the path of a view made by posted_from(); otherwise `page`."""
    try:
        there = resolve(urlsplit(page).path)
    except Resolver404:
        return page
    holder = getattr(there.func, "form_is_on", None)
    return str(holder(request, *there.args, **there.kwargs)) if holder else page


def posted_from(page: Callable[..., str]) -> Callable[[View], View]:
    """Make a view accept posts only and redirect GET to the page with its form, whose path `page(request, …)` returns.

    A refused post leaves the view's own address in the browser. A person who opens it again, or has to sign in first,
    comes to the page with the form.
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
    """Move the fields parked for this page into `request.parked`, and tell the person. They are handed over once."""
    parked = request.session.get("parked")
    if not parked or request.get_full_path() not in parked:
        return
    item = parked.pop(request.get_full_path())
    request.session["parked"] = parked
    if item["user"] == request.user.pk and time.time() < item["until"]:
        request.parked = QueryDict(item["fields"])  # type: ignore[attr-defined]
        messages.info(
            request,
            _(
                "ご本人を確認しました。操作はまだ実行していません。"
                "内容を確かめて、下のボタンを押してください。"
            ),
        )
