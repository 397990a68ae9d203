"""The web server: `python -m gunicorn -c deploy/gunicorn.conf.py dashboard.wsgi`

Restart it to change anything: neither HUP nor USR2 reads the settings anew.
"""

import os
import shutil
import tempfile
from typing import Any

from dashboard.settings import LOGGING, SMARTPAY_DEADLINE, STATE_DIR

worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = 8  # each; a person who refunds holds one for as long as Smartpay takes
timeout = 60  # seconds without a sign of life from a worker; a slow request is none
# A refund reads and sends: two calls. What is not done by then is killed, and left for a worker to settle.
graceful_timeout = int(2 * SMARTPAY_DEADLINE + 10)
control_socket_disable = True
# The site's own lines tell of requests; a second access log would hold addresses and what was typed into them.
accesslog = None
logconfig_dict = LOGGING | {
    "loggers": LOGGING["loggers"]
    | {"gunicorn.error": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}


def on_starting(server: Any) -> None:
    """Whoever starts means to serve. Each server's processes add up what they count in a directory of their own."""
    (STATE_DIR / "draining").unlink(missing_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="refund-dashboard-metrics-")


def child_exit(server: Any, worker: Any) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
