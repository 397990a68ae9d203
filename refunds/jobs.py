"""The background jobs beside refunds, as one table: name, function, schedule. job_queue.py or a timer runs them.

Refunds and bulk files are not here: their rows are their own queue. Nor is what each machine has to watch by itself
(run_worker). See decisions 10 and 13.

Each function does what is due and nothing else. Called too often, it finds nothing to do; called late, it catches up;
killed, it goes on at the next call. So schedules need not be exact, and a failed call is not repeated before its time.
"""

import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import structlog
from croniter import croniter
from django.db import connection
from django.db.models import Max
from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from dashboard.sso import sessions
from refunds import (
    clock,
    notices,
    reconciling,
    retention,
    scanning,
    sealing,
    services,
    smartpay,
    state_file,
    webhooks,
)
from refunds.models import JobRun

log = structlog.get_logger(__name__)

FULL_SWEEP_EVERY = timedelta(hours=24)
CATCH_UP_SECONDS = 0.1  # between two batches, since SQLite has one lock for all writers
RUNS_KEPT = timedelta(days=1)
FAILURES_KEPT = timedelta(days=30)


def sweep() -> None:
    """Read the newest pages of Smartpay's lists, or continue a full scan that was killed."""
    scanning.sync(smartpay.client(), observe=services.observe_refund)


def sweep_all() -> None:
    """Read all pages once a day. Until the first scan is complete, sweep() does that."""
    if scanning.is_older_than(FULL_SWEEP_EVERY):
        scanning.sync(smartpay.client(), full=True, observe=services.observe_refund)


def follow_events() -> None:
    """Catch up with the events that their delivery did not wait for."""
    webhooks.follow(smartpay.client())


def seal() -> None:
    """Seal all audit entries that wait for it."""
    while sealing.seal() >= sealing.BATCH:
        time.sleep(CATCH_UP_SECONDS)


def forget_runs() -> None:
    """Delete old runs. Kept are those of a day, failed ones of a month, and each job's last successful one.

    metrics.py tells by the last successful run how late a job is, however long it has been failing.
    """
    now, done = clock.now(), JobRun.objects.filter(outcome=JobRun.Outcome.DONE).order_by()
    last = list(done.values("job").annotate(last=Max("pk")).values_list("last", flat=True))
    old = JobRun.objects.exclude(pk__in=last)
    old.filter(started_at__lt=now - FAILURES_KEPT).delete()
    old.filter(started_at__lt=now - RUNS_KEPT, outcome=JobRun.Outcome.DONE).delete()


@dataclass(frozen=True)
class Job:
    """A job of the table.

    name: in the log, the admin and the queue; never changed. schedule: cron in UTC, with seconds as the sixth field.
    alone: jobs with the same word never run at the same time, on any machine.
    """

    name: str
    label: str | Promise
    function: Callable[[], object]
    schedule: str
    alone: str

    def next_at(self, after: datetime) -> datetime:
        """Return the job's next time, strictly after this moment."""
        return datetime.fromtimestamp(croniter(self.schedule, after.timestamp()).get_next(float), UTC)


JOBS = [
    Job("sweep", _("新しい注文の読み取り"), sweep, "* * * * *", "mirror"),
    Job("sweep_all", _("すべての注文の読み取り"), sweep_all, "*/10 * * * *", "mirror"),
    Job("follow_events", _("通知された注文と返金の読み取り"), follow_events, "* * * * *", "events"),
    Job("seal", _("監査記録の封印"), seal, "* * * * * */5", "trail"),
    Job("expire_requests", _("承認待ちの期限切れ"), services.expire_requests, "* * * * *", "requests"),
    Job("notices", _("確定の知らせ"), notices.send_due, "* * * * * */30", "notices"),
    Job("reread_lately", _("最近の返金の読み直し"), reconciling.reread_lately, "35 * * * *", "reread"),
    Job("reconcile", _("照合"), reconciling.reconcile_due, "*/10 * * * *", "reconcile"),
    Job("prune_personal_data", _("個人情報の削除"), retention.prune, "5 * * * *", "personal data"),
    Job("prune_sessions", _("終わったセッションの削除"), sessions.prune, "15 * * * *", "sessions"),
    Job("forget_runs", _("実行記録の整理"), forget_runs, "25 * * * *", "runs"),
]
BY_NAME = {job.name: job for job in JOBS}
NOBODY_ELSE = nullcontext()


def run(job: Job, alone: AbstractContextManager[None] = NOBODY_ELSE) -> None:
    """Run a job and record the run. An error is logged, and the job is tried again at its next time.

    `alone`: a lock to hold meanwhile, where no queue keeps the jobs apart.
    """
    try:
        with alone:
            _recorded(job)
    except smartpay.SmartpayError as error:
        log.warning("job.unread", job=job.name, outcome=error.outcome, http_status=error.http_status)
    except Exception:
        log.exception("job.failed", alarm=True, job=job.name)
    finally:
        connection.close()


def _recorded(job: Job) -> None:
    runs = JobRun.objects.filter(job=job.name)
    # Nobody else can be running it now, so the process of an unfinished run has died.
    runs.filter(outcome=JobRun.Outcome.RUNNING).update(outcome=JobRun.Outcome.DIED)
    this = runs.create(job=job.name, started_at=clock.now())
    outcome, error = JobRun.Outcome.DONE, ""
    try:
        job.function()
    except Exception as raised:
        outcome, error = JobRun.Outcome.FAILED, type(raised).__name__
        raise
    finally:
        runs.filter(pk=this.pk).update(ended_at=clock.now(), outcome=outcome, error=error)


# --- The timer, where there is no queue: on SQLite, which is one machine ------------------------------------


def keep_time(stop: threading.Event) -> None:
    """Run each job now and then at its times, in a daemon thread of its own. The process may end at any point."""
    for job in JOBS:
        threading.Thread(target=_on_time, args=(job, stop), daemon=True).start()


def _on_time(job: Job, stop: threading.Event) -> None:
    while not stop.is_set():
        run(job, state_file.locked(f"job-{job.alone.replace(' ', '-')}"))
        stop.wait(job.next_at(datetime.now(UTC)).timestamp() - time.time())
