"""The worker as a process: it settles, keeps the mirror fresh, and ends when told."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError

from refunds import sealing, services, smartpay
from refunds.management.commands import run_worker
from tests.sandbox import Sandbox
from tests.site import ROOT

PATIENCE = 30  # seconds


@pytest.mark.sqlite  # a process of its own needs a file of its own; PostgreSQL adds nothing here
def test_worker_fills_the_mirror_and_ends_when_told(tmp_path: Path) -> None:
    database = tmp_path / "worker.sqlite3"
    with Sandbox(orders=120) as sandbox:
        environment = os.environ | {
            "DATABASE_URL": f"sqlite:///{database}",
            "STATE_DIR": str(tmp_path),
            "SMARTPAY_API_URL": sandbox.url,
            "SMARTPAY_SECRET_KEY": sandbox.secret_key,
        }

        def manage(*arguments: str) -> str:
            done = subprocess.run(
                [sys.executable, "manage.py", *arguments],
                cwd=ROOT, env=environment, check=True, capture_output=True, text=True,
            )  # fmt: skip
            return done.stdout

        manage("migrate", "-v", "0")
        worker = subprocess.Popen([sys.executable, "manage.py", "run_worker"], cwd=ROOT, env=environment)
        ends = time.monotonic() + PATIENCE
        count = "from refunds.models import *; print(Order.objects.count(), SyncCursor.objects.filter(last_finished_at__isnull=False).count())"
        while (seen := manage("shell", "-v", "0", "-c", count).split()) != ["120", "3"]:
            assert time.monotonic() < ends, seen
            time.sleep(0.3)

        worker.send_signal(signal.SIGTERM)
        assert worker.wait(PATIENCE) == 0


class Gone:
    """The connection, as far as a worker closes it after a fault."""

    def close(self) -> None:
        pass


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Rounds without pauses, on the test's own connection."""
    for name in ("SETTLE_SECONDS", "UNREAD_SECONDS"):
        monkeypatch.setattr(run_worker, name, 0.01)
    monkeypatch.setattr(run_worker, "close_old_connections", lambda: None)
    monkeypatch.setattr(run_worker, "connection", Gone())
    monkeypatch.setattr(run_worker.Command, "_run_jobs", lambda *_: None)  # see test_jobs.py
    monkeypatch.setattr(run_worker.Command, "_work_on_files", lambda *_: None)  # see test_bulk.py
    monkeypatch.setattr(sealing, "keep_head", lambda: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_worker_outlives_a_fault_of_the_database(
    sandbox: Sandbox, hasty: None, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds = []

    def settle(**_options: Any) -> int:
        rounds.append(1)
        if len(rounds) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
            return 0
        raise OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr(services, "settle_due", settle)
    monkeypatch.setattr(services, "scan_if_needed", lambda **_options: None)

    run_worker.Command().handle()

    assert len(rounds) == 3


def test_mark_that_can_not_be_read_stops_no_settling(
    sandbox: Sandbox, hasty: None, db: None, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> None:
    (Path(settings.STATE_DIR) / "ledger-mark").write_text("")
    monkeypatch.setattr(services, "settle_due", lambda **_: os.kill(os.getpid(), signal.SIGTERM))
    monkeypatch.setattr(services, "scan_if_needed", lambda **_options: None)

    run_worker.Command().handle()  # ends only because it is called


@pytest.mark.parametrize("fault", [OperationalError("deadlock detected"), smartpay.Unclear("silence")])
def test_reading_for_refunds_outlives_a_fault(
    sandbox: Sandbox, hasty: None, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    rounds: list[int] = []
    stop = threading.Event()

    def scan(**_options: Any) -> None:
        rounds.append(1)
        if len(rounds) == 3:
            stop.set()
        raise fault

    monkeypatch.setattr(services, "scan_if_needed", scan)

    run_worker.Command()._read_for_refunds(smartpay.client(), stop)

    assert len(rounds) == 3
