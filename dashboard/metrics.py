"""/metrics: what this machine did, counted as it happens, and how things stand, asked anew each time.

A label is one of a few words of ours: never an id, nor anything that somebody typed.
"""

import os

from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.http import Http404, HttpRequest, HttpResponse
from django.utils.crypto import constant_time_compare
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    Counter,
    Histogram,
    generate_latest,
    start_http_server,
)
from prometheus_client.multiprocess import MultiProcessCollector

SECONDS = (0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)

REQUESTS = Counter("dashboard_requests", "Requests answered, by view and status.", ["view", "status"])
REQUEST_SECONDS = Histogram("dashboard_request_seconds", "Until the answer.", ["view"], buckets=SECONDS)
ALARMS = Counter("dashboard_alarms", "Lines of the log that need a person, by event.", ["event"])
# The app registers here what it reads from the database at each scrape.
DATABASE_REGISTRY = CollectorRegistry()


@login_not_required
def metrics(request: HttpRequest) -> HttpResponse:
    """For Prometheus, which carries METRICS_TOKEN; for everybody else there is no such page.

    Without a token only a site without HTTPS shows it, which is one on a developer's machine.
    """
    given = request.headers.get("Authorization", "")
    token = settings.METRICS_TOKEN
    if not (constant_time_compare(given, f"Bearer {token}") if token else not settings.HTTPS):
        raise Http404
    text = generate_latest(_counted()) + generate_latest(DATABASE_REGISTRY)
    return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)


def _counted() -> CollectorRegistry:
    """What was counted by all processes of this web server, where deploy/gunicorn.conf.py has them write it down."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def listen() -> None:
    """Show what this process counts at METRICS_LISTEN, if that is set: a worker has no pages."""
    if settings.METRICS_LISTEN:
        address, _, port = settings.METRICS_LISTEN.rpartition(":")
        start_http_server(int(port), address)
