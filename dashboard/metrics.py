"""/metrics: counters of what this machine has done, and the present state, read from the database at each scrape.

Every label takes one of a few values that we define: never an id, nor anything that somebody typed.
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
    """Answer Prometheus, which sends METRICS_TOKEN as a bearer token. Raises Http404 for everybody else.

    Where METRICS_TOKEN is empty, a site without HTTPS, on a developer's machine, answers everybody; any other nobody.
    """
    given = request.headers.get("Authorization", "")
    token = settings.METRICS_TOKEN
    if not (constant_time_compare(given, f"Bearer {token}") if token else not settings.HTTPS):
        raise Http404
    text = generate_latest(_counted()) + generate_latest(DATABASE_REGISTRY)
    return HttpResponse(text, content_type=CONTENT_TYPE_LATEST)


def _counted() -> CollectorRegistry:
    """Return the counters of all processes of a server set up by deploy/gunicorn.conf.py, else of this process."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return registry


def listen() -> None:
    """Serve the counters of this process at METRICS_LISTEN, if that is set: a worker serves no pages."""
    if settings.METRICS_LISTEN:
        address, _, port = settings.METRICS_LISTEN.rpartition(":")
        start_http_server(int(port), address)
