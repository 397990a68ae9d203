import signal
import threading
import time
from typing import Any

import structlog
from django.core.management.base import BaseCommand
from django.db import close_old_connections

from refunds import mirror, services, smartpay

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 1.0
SYNC_SECONDS = 60.0


class Command(BaseCommand):
    help = "The background work of a deployment, as many as wanted, anywhere: settles refunds, keeps the mirror fresh."

    def handle(self, *args: Any, **options: Any) -> None:
        """Work until told to stop (SIGTERM, Ctrl-C); the request in flight is finished first."""
        stop = threading.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: stop.set())
        client = smartpay.client()
        log.info("worker.started", mode=client.mode)
        next_sync = 0.0
        while not stop.is_set():
            close_old_connections()
            services.settle_due(client=client)
            if time.monotonic() >= next_sync and not stop.is_set():
                self._sync(client)
                next_sync = time.monotonic() + SYNC_SECONDS
            stop.wait(SETTLE_SECONDS)
        log.info("worker.stopped")

    def _sync(self, client: smartpay.Client) -> None:
        """Bring the mirror up to date. Smartpay's silence is no reason to stop settling: the next sweep tries again."""
        try:
            mirror.sync(client, observe=services.observe_refund)
        except smartpay.SmartpayError as error:
            log.warning("mirror.not_synced", outcome=error.outcome, http_status=error.http_status)
