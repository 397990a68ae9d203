import signal
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import structlog
from django.core.management.base import BaseCommand
from django.db import close_old_connections, connection

from dashboard import sso
from refunds import bulk, mirror, sealing, services, smartpay

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 1.0
SYNC_SECONDS = 60.0
UNREAD_SECONDS = 15.0  # until a list that could not be read is tried again
SEAL_SECONDS = 1.0
CATCH_UP_SECONDS = 0.1  # between two batches of entries that were not sealed for a while
HEAD_SECONDS = 60.0
PRUNE_SECONDS = 3600.0
FULL_SYNC_EVERY = timedelta(hours=24)


class Command(BaseCommand):
    help = (
        "The background work of a deployment, as many as wanted, anywhere: settles refunds, keeps the mirror fresh, "
        "seals the trail, forgets sessions that are over."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Work until told to stop (SIGTERM, Ctrl-C); the refund in flight is finished first.

        A defect, or the database gone for a moment, ends a round and never the worker: refunds wait for it.
        """
        stop = threading.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: stop.set())
        client = smartpay.client()
        log.info("worker.started", mode=client.mode)
        # A thread of its own, so that a long scan never keeps a refund waiting. It may be ended anywhere: a scan goes
        # on at its page.
        threading.Thread(target=self._keep_mirror, args=(client, stop), daemon=True).start()
        # The same for the trail, of which each batch is a transaction, and for files of refunds, line by line.
        threading.Thread(target=self._keep_trail, args=(stop,), daemon=True).start()
        threading.Thread(target=self._work_on_files, args=(stop,), daemon=True).start()
        next_pruning = 0.0
        while not stop.is_set():
            close_old_connections()
            # One by one: whatever stops sending, such as a mark that can't be read, never stops settling.
            self._do(services.watch)
            self._do(lambda: services.settle_due(client=client, stop=stop.is_set))
            self._do(services.expire_requests)
            if time.monotonic() >= next_pruning:
                next_pruning = time.monotonic() + PRUNE_SECONDS
                self._do(sso.prune)
            stop.wait(SETTLE_SECONDS)
        log.info("worker.stopped")

    def _do(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception:
            log.exception("worker.round_failed", alarm=True)
            connection.close()

    def _keep_mirror(self, client: smartpay.Client, stop: threading.Event) -> None:
        """Read what refunds wait for at once, and everything from time to time."""
        next_sync = 0.0
        while not stop.is_set():
            close_old_connections()
            try:
                services.scan_if_needed(client=client)
                if time.monotonic() >= next_sync:
                    next_sync = time.monotonic() + SYNC_SECONDS
                    full = mirror.is_older_than(FULL_SYNC_EVERY)
                    mirror.sync(client, full=full, observe=services.observe_refund)
            except smartpay.SmartpayError as error:
                log.warning("mirror.not_read", outcome=error.outcome, http_status=error.http_status)
                stop.wait(UNREAD_SECONDS)
            except Exception:
                log.exception("mirror.round_failed", alarm=True)
                connection.close()
                stop.wait(UNREAD_SECONDS)
            stop.wait(SETTLE_SECONDS)

    def _work_on_files(self, stop: threading.Event) -> None:
        while not stop.is_set():
            close_old_connections()
            self._do(lambda: bulk.work(stop=stop.is_set))
            stop.wait(SETTLE_SECONDS)

    def _keep_trail(self, stop: threading.Event) -> None:
        """Seal what was recorded, and keep the newest seal outside the database from time to time."""
        next_head = 0.0
        while not stop.is_set():
            close_old_connections()
            sealed = 0
            try:
                sealed = sealing.seal()
                if time.monotonic() >= next_head:
                    next_head = time.monotonic() + HEAD_SECONDS
                    sealing.keep_head()
            except Exception:
                log.exception("trail.round_failed", alarm=True)
                connection.close()
            stop.wait(CATCH_UP_SECONDS if sealed >= sealing.BATCH else SEAL_SECONDS)
