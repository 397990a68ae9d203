"""The web server: `python -m gunicorn -c deploy/gunicorn.conf.py dashboard.wsgi`

To change a setting, restart it: neither HUP nor USR2 reads the settings again.
"""

import os
import shutil
import tempfile
from typing import Any

from dashboard.settings import LOGGING, SMARTPAY_DEADLINE, STATE_DIR

worker_class = "gthread"
workers = int(os.environ.get("WEB_CONCURRENCY", "2"))
threads = 8  # of each worker; a request that refunds holds one for as long as Smartpay takes
timeout = 60  # seconds without a heartbeat until a worker is killed; a slow request does not count
# Seconds. A refund makes two calls, one to read and one to send. A request that has not finished by then is killed, and
# a background worker settles its refund.
graceful_timeout = int(2 * SMARTPAY_DEADLINE + 10)
control_socket_disable = True
# The site logs its requests itself. A second access log would hold URLs, and what people typed into them.
accesslog = None
logconfig_dict = LOGGING | {
    "loggers": LOGGING["loggers"]
    | {"gunicorn.error": {"handlers": ["console"], "level": "INFO", "propagate": False}},
}


def on_starting(server: Any) -> None:
    """End draining, since a start means to serve, and make a directory for the counters of this server's processes."""
    (STATE_DIR / "draining").unlink(missing_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix="refund-dashboard-metrics-")


def child_exit(server: Any, worker: Any) -> None:
    from prometheus_client.multiprocess import mark_process_dead

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]


def on_exit(server: Any) -> None:
    shutil.rmtree(os.environ["PROMETHEUS_MULTIPROC_DIR"], ignore_errors=True)
