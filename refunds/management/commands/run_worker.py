import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import structlog
from django.core.management.base import BaseCommand
from django.db import close_old_connections, connection

from dashboard import metrics
from refunds import bulk, jobs, sealing, services, smartpay

log = structlog.get_logger(__name__)

SETTLE_SECONDS = 1.0
UNREAD_SECONDS = 15.0  # until a list that could not be read is tried again
HEAD_SECONDS = 60.0
GOODBYE_SECONDS = 10.0  # left to the running jobs when told to stop; another worker continues longer ones


class Command(BaseCommand):
    help = (
        "The background work of a deployment, as many as wanted, anywhere: settles refunds, works on files of them, "
        "and runs the jobs of refunds/jobs.py, each on one machine at a time."
    )

    def handle(self, *args: Any, **options: Any) -> None:
        """Work until told to stop (SIGTERM, Ctrl-C); finish the refund in flight first.

        A defect, or a database that is gone for a moment, ends one round and never the worker: refunds wait for it.
        """
        stop = threading.Event()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, lambda *_: stop.set())
        client = smartpay.client()
        log.info("worker.started", mode=client.mode)
        metrics.listen()
        # These run in threads of their own, so that no refund waits for them. Each may end at any point: a scan goes on
        # at its page, a bulk file at its line.
        threading.Thread(target=self._read_for_refunds, args=(client, stop), daemon=True).start()
        threading.Thread(target=self._work_on_files, args=(stop,), daemon=True).start()
        others = threading.Thread(target=self._run_jobs, args=(stop,), daemon=True)
        others.start()
        next_head = 0.0
        while not stop.is_set():
            close_old_connections()
            # One by one, so that an error that stops sending, such as an unreadable mark, never stops settling.
            self._do(services.watch)
            self._do(lambda: services.settle_due(client=client, stop=stop.is_set))
            if time.monotonic() >= next_head:
                # Not a job of jobs.py: each machine has to keep the head that it saw, as it keeps the ledger's mark.
                next_head = time.monotonic() + HEAD_SECONDS
                self._do(sealing.keep_head)
            stop.wait(SETTLE_SECONDS)
        others.join(GOODBYE_SECONDS)
        log.info("worker.stopped")

    def _do(self, step: Callable[[], object]) -> None:
        try:
            step()
        except Exception:
            log.exception("worker.round_failed", alarm=True)
            connection.close()

    def _run_jobs(self, stop: threading.Event) -> None:
        if connection.vendor == "postgresql":
            from refunds import job_queue  # Procrastinate is installed there only

            job_queue.work(stop)
        else:
            jobs.keep_time(stop)

    def _read_for_refunds(self, client: smartpay.Client, stop: threading.Event) -> None:
        """Scan Smartpay's refunds as soon as a refund, a case or the restore fence waits for that."""
        while not stop.is_set():
            close_old_connections()
            try:
                services.scan_if_needed(client=client)
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
