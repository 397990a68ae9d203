"""The pages that a session has opened, so that renewing one is not counted and recorded as opening another.

A page with a refund under way renews itself (`?renew=1`), and a form that is refused is drawn again. Neither shows the
person anything new. The session says whether the page was seen before, since anybody can add `?renew=1`.
"""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponseBase

MOST_PAGES = 50  # the oldest is dropped, and counts as opened anew the next time
LONGEST = 200  # characters of an address; a longer one counts as opened anew each time


def renews_itself[View: Callable[..., HttpResponseBase]](view: View) -> View:
    """Mark a view whose page renews itself with `?renew=1`."""
    view.renews_itself = True  # type: ignore[attr-defined]
    return view


def was_opened(request: HttpRequest) -> bool:
    return _page(request) in request.session.get("opened", [])


def renewal_query(request: HttpRequest) -> str:
    """The query with which this part of a page renews itself."""
    query = request.GET.copy()
    query["renew"] = "1"
    return query.urlencode()


def is_continuation(request: HttpRequest) -> bool:
    """Return whether this request only renews or redraws a page that this session has already seen.

    Any other parameter in the address may ask for another part of the page, which is a page of its own here.
    """
    again = (
        not request.GET if request.method == "POST" else _renews_itself(request) and "renew" in request.GET
    )
    return again and was_opened(request)


def remember(request: HttpRequest) -> None:
    """Remember that this session has seen the page; call it where the page is drawn.

    An address that names no object, such as a list's, is not kept: it shows something else each time.
    """
    names_it = request.resolver_match is not None and bool(request.resolver_match.kwargs)
    page = _page(request)
    if names_it and not was_opened(request) and len(page) <= LONGEST:
        request.session["opened"] = [*request.session.get("opened", []), page][-MOST_PAGES:]


def _renews_itself(request: HttpRequest) -> bool:
    view = request.resolver_match and request.resolver_match.func
    return bool(getattr(view, "renews_itself", False))


def _page(request: HttpRequest) -> str:
    """The address that is remembered; of a page that renews itself, with the part that it shows."""
    query = request.GET.copy()
    query.pop("renew", None)
    return f"{request.path}?{query.urlencode()}" if query and _renews_itself(request) else request.path
