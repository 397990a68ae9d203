import signal
import threading
from datetime import timedelta
from typing import Any

import structlog
from django.core.management.base import BaseCommand
from django.db import close_old_connections

from refunds import mirror, services, smartpay

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 1.0
SYNC_SECONDS = 60.0
FULL_SYNC_EVERY = timedelta(hours=24)


class Command(BaseCommand):
    help = "The background work of a deployment, as many as wanted, anywhere: settles refunds, keeps the mirror fresh."

    def handle(self, *args: Any, **options: Any) -> None:
        """Work until told to stop (SIGTERM, Ctrl-C); the refund in flight is finished first."""
        stop = threading.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: stop.set())
        client = smartpay.client()
        log.info("worker.started", mode=client.mode)
        # A thread of its own, so that a long scan never keeps a refund waiting. It may be ended anywhere: a scan goes
        # on at its page.
        threading.Thread(target=self._keep_mirror, args=(client, stop), daemon=True).start()
        while not stop.is_set():
            close_old_connections()
            services.settle_due(client=client, stop=stop.is_set)
            stop.wait(SETTLE_SECONDS)
        log.info("worker.stopped")

    def _keep_mirror(self, client: smartpay.Client, stop: threading.Event) -> None:
        while not stop.is_set():
            close_old_connections()
            try:
                mirror.sync(
                    client, full=mirror.is_older_than(FULL_SYNC_EVERY), observe=services.observe_refund
                )
            except smartpay.SmartpayError as error:  # the next round tries again
                log.warning("mirror.not_synced", outcome=error.outcome, http_status=error.http_status)
            stop.wait(SYNC_SECONDS)
