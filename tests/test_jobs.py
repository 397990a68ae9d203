"""The jobs beside refunds: what is written down of a run, and real workers that take turns and die."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from django.db import OperationalError, connection

from refunds import jobs, smartpay
from refunds.models import AuditEntry, JobRun
from tests.conftest import Clock, sign_in
from tests.kills.databases import PostgreSQL, database
from tests.sandbox import ROOT, Sandbox

PATIENCE = 90  # seconds; a worker that was killed is missed after 20
Outcome = JobRun.Outcome


class Gone:
    """The test's own connection, as far as a job closes its thread's."""

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def _own_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "connection", Gone())


def job(function: Callable[[], object]) -> jobs.Job:
    return jobs.Job("probe", "", function, "* * * * *", "probe")


def ended() -> list[tuple[str, str]]:
    return list(JobRun.objects.order_by("pk").values_list("outcome", "error"))


def test_run_tells_when_and_how_it_ended(db: None, at: Clock) -> None:
    began = at.now

    jobs.run(job(lambda: at.advance(seconds=3)))

    run = JobRun.objects.get()
    assert (run.job, run.started_at, run.ended_at) == ("probe", began, began + timedelta(seconds=3))
    assert (run.outcome, run.error) == (Outcome.DONE, "")


@pytest.mark.parametrize("fault", [OperationalError("田中 太郎"), smartpay.Unclear("silence")])
def test_failed_run_tells_the_class_of_its_error_and_nothing_else(db: None, fault: Exception) -> None:
    def fail() -> None:
        raise fault

    jobs.run(job(fail))

    assert ended() == [(Outcome.FAILED, type(fault).__name__)]


def test_run_that_never_ended_has_died_when_the_next_one_begins(db: None) -> None:
    JobRun.objects.create(job="probe", started_at=datetime.now(UTC))

    jobs.run(job(lambda: None))

    assert ended() == [(Outcome.DIED, ""), (Outcome.DONE, "")]


def test_failures_are_remembered_for_longer(db: None, at: Clock) -> None:
    for days, outcome in [(31, Outcome.FAILED), (2, Outcome.FAILED), (2, Outcome.DONE), (0, Outcome.DONE)]:
        JobRun.objects.create(
            job=f"{days} {outcome}", started_at=at.now - timedelta(days=days), outcome=outcome
        )

    jobs.forget_runs()

    assert sorted(JobRun.objects.values_list("job", flat=True)) == ["0 done", "2 done", "2 failed"]


def test_last_run_that_ended_well_is_remembered_for_as_long_as_the_job_fails(db: None, at: Clock) -> None:
    for days in (40, 39, 0):
        outcome = Outcome.DONE if days else Outcome.FAILED
        JobRun.objects.create(job="probe", started_at=at.now - timedelta(days=days), outcome=outcome)

    jobs.forget_runs()

    assert ended() == [(Outcome.DONE, ""), (Outcome.FAILED, "")]
    assert JobRun.objects.earliest("pk").started_at == at.now - timedelta(days=39)


def test_timer_outlives_a_state_dir_that_can_not_be_written(
    db: None, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    settings.STATE_DIR = tmp_path / "in the way"
    settings.STATE_DIR.write_text("")
    stop = threading.Event()

    def mend(_seconds: float) -> None:
        settings.STATE_DIR = tmp_path

    monkeypatch.setattr(stop, "wait", mend)

    jobs._on_time(job(stop.set), stop)

    assert ended() == [(Outcome.DONE, "")]
    assert [line.msg["event"] for line in caplog.records if line.levelname == "ERROR"] == ["job.failed"]


def test_every_schedule_has_a_next_turn_within_its_hour() -> None:
    now = datetime(2026, 4, 1, 12, 0, 0, tzinfo=UTC)

    turns = {each.name: (each.next_at(now) - now).total_seconds() for each in jobs.JOBS}

    assert (turns.pop("seal"), turns.pop("notices")) == (5, 30)
    assert all(60 <= seconds <= 3600 for seconds in turns.values())


def test_queue_knows_every_job(db: None) -> None:
    """On PostgreSQL each has its task, its lock, and its times; on SQLite the timer reads the table itself."""
    if connection.vendor != "postgresql":
        assert "procrastinate" not in sys.modules["django.apps"].apps.app_configs
        return
    from procrastinate.contrib.django import app

    known = {
        (periodic.task.name, periodic.cron, periodic.task.lock, periodic.task.queueing_lock)
        for periodic in app.periodic_registry.periodic_tasks.values()
    }
    wanted = {(each.name, each.schedule, each.alone, each.name) for each in jobs.JOBS}
    assert known - wanted == {("strike_out_stalled", "* * * * * */10", None, "strike_out_stalled")}
    assert wanted <= known


def test_auditor_sees_schedule_and_runs(db: None, auditor: Any) -> None:
    jobs.run(jobs.Job("seal", "", lambda: None, "* * * * *", "trail"))

    page = sign_in(auditor).get("/admin/refunds/jobrun/").content.decode()

    for each in jobs.JOBS:
        assert f"<code>{each.schedule}</code>" in page
        assert str(each.label) in page
    assert AuditEntry.objects.filter(action="admin.listed", data__model="jobrun").count() == 1


# --- Real workers -------------------------------------------------------------------------------------------


def test_jobs_are_done_once_at_a_time_and_outlive_workers_and_database(tmp_path: Path) -> None:
    with database(connection.vendor, tmp_path) as place, Sandbox(orders=120) as sandbox:
        environment = os.environ | {
            "DATABASE_URL": place.url,
            "STATE_DIR": str(tmp_path),
            "SMARTPAY_API_URL": sandbox.url,
            "SMARTPAY_SECRET_KEY": sandbox.secret_key,
        }

        log = tmp_path / "log"

        def start() -> subprocess.Popen[bytes]:
            command = [sys.executable, "manage.py", "run_worker"]
            with log.open("ab") as stderr:
                return subprocess.Popen(command, cwd=ROOT, env=environment, stderr=stderr)

        def started() -> int:
            return log.read_bytes().count(b"worker.started")

        def runs(outcome: str, name: str) -> list[dict[str, Any]]:
            return place.rows("SELECT * FROM refunds_jobrun WHERE outcome = %s AND job = %s", outcome, name)

        def ended() -> set[str]:
            rows = place.rows("SELECT job FROM refunds_jobrun WHERE ended_at IS NOT NULL")
            return {jobs.BY_NAME[row["job"]].alone for row in rows}

        def until(condition: Callable[[], object]) -> None:
            ends = time.monotonic() + PATIENCE
            while not condition():
                assert time.monotonic() < ends
                time.sleep(0.2)

        kinds = {each.alone for each in jobs.JOBS}
        migrate = [sys.executable, "manage.py", "migrate", "-v", "0"]
        subprocess.run(migrate, cwd=ROOT, env=environment, check=True)
        sandbox.fault("slow", method="GET", path="/v1/orders", seconds=20)
        workers = [start(), start()]
        try:
            until(lambda: sandbox.requests("GET", "/v1/orders"))
            until(lambda: ended() >= kinds - {"mirror"})
            for worker in workers:  # one of them is reading
                worker.kill()
                worker.wait()
            sandbox.clear_faults()
            killed = started()
            workers = [start(), start()]

            until(lambda: started() == killed + 2)  # who is not there yet ends by SIGTERM as any process does
            until(lambda: runs("died", "sweep") and runs("done", "sweep"))
            until(lambda: len(runs("done", "seal")) >= 3)
            if isinstance(place, PostgreSQL):
                place.stop("immediate")
                place.start()
                before = len(runs("done", "seal"))
                until(lambda: len(runs("done", "seal")) > before)
            for worker in workers:
                worker.send_signal(signal.SIGTERM)
            assert [worker.wait(30) for worker in workers] == [0, 0]
        finally:
            for worker in workers:
                worker.kill()

        taken: dict[str, list[tuple[Any, Any]]] = defaultdict(list)
        for row in place.rows("SELECT * FROM refunds_jobrun WHERE ended_at IS NOT NULL ORDER BY started_at"):
            taken[jobs.BY_NAME[row["job"]].alone].append((row["started_at"], row["ended_at"]))
        assert taken.keys() == kinds
        for spans in taken.values():
            for (_began, end), (began, _end) in pairwise(spans):
                assert end <= began
        assert len(place.rows("SELECT order_id FROM refunds_order")) == 120
