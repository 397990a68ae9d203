"""The worker as a process: it settles, keeps the mirror fresh, and ends when told."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
