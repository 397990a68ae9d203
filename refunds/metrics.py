"""Gauges of refunds, the mirror and the trail, from a few indexed queries whose cost does not grow with the data."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.db.models import Count, Min
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from refunds import clock, jobs, services
from refunds.models import AuditEntry, Bulk, Control, JobRun, Refund, SyncCursor

LATELY = timedelta(hours=1)


class DatabaseCollector(Collector):
    """Gauges read from the database. All processes report the same values: take the maximum, never the sum."""

    def collect(self) -> Iterator[Metric]:
        now = clock.now()
        first = MigrationRecorder.Migration.objects.filter(app="refunds", name="0001_initial")
        # The age of what never succeeded is counted from the creation of the tables.
        installed = first.values_list("applied", flat=True).first()
        yield from _unsettled(now)
        yield from _asked_for(now)
        yield from _work(now)
        yield from _mirror(now, installed)
        yield from _jobs(now, installed)
        yield from _trail(now)
        yield from _sending()


def _unsettled(now: datetime) -> Iterator[Metric]:
    """Unsettled refunds are few, because people are alerted to them. Settled ones are never all counted."""
    unsettled = _gauge("refunds_unsettled", "Refunds whose money is reserved, by state.", "state")
    oldest = _gauge("refunds_oldest_seconds", "Since the oldest of them was asked for.", "state")
    waiting = Refund.objects.reserving().order_by()
    found = {
        state: (count, since)
        for state, count, since in waiting.values_list("state").annotate(Count("pk"), Min("requested_at"))
    }
    for state in Refund.RESERVING:
        count, since = found.get(state, (0, None))
        unsettled.add_metric([state], count)
        oldest.add_metric([state], _age(now, since))
    yield unsettled
    yield oldest


def _asked_for(now: datetime) -> Iterator[Metric]:
    lately = _gauge("refunds_last_hour", "Refunds asked for in the last hour, by their state now.", "state")
    asked = Refund.objects.filter(requested_at__gt=now - LATELY).order_by()
    counts = dict(asked.values_list("state").annotate(Count("pk")))
    for state in Refund.State.values:
        lately.add_metric([state], counts.get(state, 0))
    yield lately


def _work(now: datetime) -> Iterator[Metric]:
    due = services.due().order_by().aggregate(count=Count("pk"), since=Min("next_check_at"))
    yield _gauge(
        "queue_depth", "Refunds whose turn has come and that no worker took yet.", value=due["count"]
    )
    yield _gauge("queue_seconds", "Since the first of them was due.", value=_age(now, due["since"]))
    running = Bulk.objects.filter(state__in=[Bulk.State.CHECKING, Bulk.State.RUNNING]).count()
    yield _gauge("bulk_running", "Files of refunds that workers are at.", value=running)


def _mirror(now: datetime, installed: datetime | None) -> Iterator[Metric]:
    read = _gauge("mirror_seconds", "Since a list of Smartpay's was last read.", "collection")
    whole = _gauge("mirror_whole_seconds", "Since a list was last read from end to end.", "collection")
    cursors = SyncCursor.objects.in_bulk()
    for collection in SyncCursor.COLLECTIONS:
        cursor = cursors.get(collection) or SyncCursor()
        read.add_metric([collection], _age(now, cursor.last_read_at or installed))
        whole.add_metric([collection], _age(now, cursor.last_finished_at or installed))
    yield read
    yield whole


def _jobs(now: datetime, installed: datetime | None) -> Iterator[Metric]:
    late = _gauge("job_late_seconds", "Since a job should have run again after it last ended well.", "job")
    for job in jobs.JOBS:
        done = JobRun.objects.filter(job=job.name, outcome=JobRun.Outcome.DONE)
        last = done.order_by("-started_at").values_list("started_at", flat=True).first() or installed
        late.add_metric([job.name], _age(now, last and job.next_at(last)))
    yield late
    if connection.vendor == "postgresql":
        from procrastinate.contrib.django.models import ProcrastinateJob

        waiting = ProcrastinateJob.objects.filter(status="todo").count()
        yield _gauge("job_queue_depth", "Jobs that no worker took yet: each at most once.", value=waiting)


def _trail(now: datetime) -> Iterator[Metric]:
    unsealed = AuditEntry.objects.filter(seal__isnull=True).order_by("pk").values_list("at", flat=True)
    yield _gauge(
        "unsealed_seconds",
        "Since the oldest entry of the trail without a seal.",
        value=_age(now, unsealed.first()),
    )
    # Read from the trail: a command issues them, and no Prometheus scrapes the process of a command.
    issued = AuditEntry.objects.filter(action="break_glass.issued", at__gt=now - LATELY).count()
    yield _gauge("break_glass_issued_last_hour", "Codes that let somebody in.", value=issued)


def _sending() -> Iterator[Metric]:
    control = Control.current()
    yield _gauge("sends_on", "1: refunds may be sent.", value=control.sends_enabled)
    restored = bool(control.restored_at)
    yield _gauge("restored", "1: the database was restored and nobody resumed.", value=restored)
    silent = services.smartpay_is_silent()
    yield _gauge("smartpay_silent", "1: the last sendings had no answer.", value=silent)


def _age(now: datetime, moment: datetime | None) -> float:
    """Return the seconds since the moment; 0 for None."""
    return max(0.0, (now - moment).total_seconds()) if moment else 0.0


def _gauge(name: str, about: str, label: str = "", value: float | None = None) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"dashboard_{name}", about, value=value, labels=[label] if label else None)
