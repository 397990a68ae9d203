"""The pages that a session has opened, so that renewing one is not counted and recorded as opening another.

A page with a refund under way renews itself (`?renew=1`), and a form that is refused is drawn again. Neither shows the
person anything new. The session says whether the page was seen before, since anybody can add `?renew=1`.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

MOST_PAGES = 50  # the oldest is dropped, and counts as opened anew the next time


def renews_itself[View: Callable[..., HttpResponseBase]](view: View) -> View:
    """Mark a view whose page renews itself with `?renew=1`."""
    view.renews_itself = True  # type: ignore[attr-defined]
    return view


def was_opened(request: HttpRequest) -> bool:
    return request.path in request.session.get("opened", [])


def is_continuation(request: HttpRequest) -> bool:
    """Return whether this request only renews or redraws a page that this session has already seen.

    Any other parameter in the address may ask for another part of the page.
    """
    if request.method == "POST":
        again = not request.GET
    else:
        view = request.resolver_match and request.resolver_match.func
        again = getattr(view, "renews_itself", False) and list(request.GET) == ["renew"]
    return again and was_opened(request)


def remember(request: HttpRequest) -> None:
    """Remember that this session has seen the page; call it where the page is drawn.

    An address that names no object, such as a list's, is not kept: it shows something else each time.
    """
    names_it = request.resolver_match is not None and bool(request.resolver_match.kwargs)
    if names_it and not was_opened(request):
        request.session["opened"] = [*request.session.get("opened", []), request.path][-MOST_PAGES:]
