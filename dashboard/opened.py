"""The pages that a session has open, so that one that goes on with itself is told from another look.

A page with a refund under way renews itself (`?renew=1`), and a form that is refused is drawn again. Neither shows
anybody what they have not seen. That a page was seen is the session's to say, since anybody can write `?renew=1`.
"""

from django.http import HttpRequest

MOST_PAGES = 50  # the oldest makes room, and is then another look
RENEWING = {"refunds:refund", "refunds:bulk"}  # pages that renew themselves


def was_opened(request: HttpRequest) -> bool:
    return request.path in request.session.get("opened", [])


def is_continuation(request: HttpRequest) -> bool:
    """Whether this is no other look at what the page of this address has shown in this session.

    Whatever else stands in the address may ask for another part of it.
    """
    if request.method == "POST":
        again = not request.GET
    else:
        page = request.resolver_match and request.resolver_match.view_name
        again = page in RENEWING and list(request.GET) == ["renew"]
    return again and was_opened(request)


def remember(request: HttpRequest) -> None:
    """Call it where the page is drawn. An address that names no object shows now this, now that: it is not kept."""
    names_it = request.resolver_match is not None and bool(request.resolver_match.kwargs)
    if names_it and not was_opened(request):
        request.session["opened"] = [*request.session.get("opened", []), request.path][-MOST_PAGES:]
