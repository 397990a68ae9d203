"""/metrics, and the alerts that are raised from it."""

import os
import subprocess
import sys
import time
from datetime import timedelta
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import requests
import structlog
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import Client
from django.test.utils import CaptureQueriesContext
from prometheus_client.parser import text_string_to_metric_families

from dashboard.models import User
from refunds import clock, jobs, services
from refunds.models import JobRun, Payment, Refund, SyncCursor
from scripts.postgres import free_port
from tests.conftest import make_order, sign_in
from tests.sandbox import Sandbox
from tests.test_services import refund

TOKEN = "the-token-of-prometheus"
ROOT = Path(__file__).resolve().parent.parent

type Samples = dict[str, float]


@pytest.fixture(autouse=True)
def _token(settings: Any) -> None:
    settings.METRICS_TOKEN = TOKEN


def scraped() -> Samples:
    """Every sample: `name{label="value"}` -> value."""
    page = Client().get("/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
    assert page.status_code == 200
    return samples(page.content.decode())


def samples(text: str) -> Samples:
    found = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sample.labels.items())
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


# --- Who is shown it ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "given", ["", "Bearer ", "Bearer wrong", TOKEN, f"bearer {TOKEN}", f"Bearer {TOKEN} "]
)
def test_metrics_are_nowhere_without_the_token(client: Client, auditor: User, given: str) -> None:
    for each in (client, sign_in(auditor)):
        assert each.get("/metrics", headers={"Authorization": given}).status_code == 404


@pytest.mark.parametrize(("https", "status"), [(True, 404), (False, 200)])
def test_metrics_without_a_token_are_shown_on_a_developers_machine_alone(
    client: Client, db: None, settings: Any, https: bool, status: int
) -> None:
    settings.METRICS_TOKEN, settings.HTTPS = "", https

    assert client.get("/metrics", headers={"Authorization": "Bearer "}).status_code == status


# --- What it tells ----------------------------------------------------------------------------------------------
def test_requests_are_counted_by_view_and_status(viewer: User) -> None:
    counted = 'dashboard_requests_total{status="200",view="refunds:order_list"}'
    before = scraped().get(counted, 0)

    sign_in(viewer).get("/orders/")

    after = scraped()
    assert after[counted] == before + 1
    assert after['dashboard_request_seconds_count{view="refunds:order_list"}'] > 0


def test_calls_of_smartpay_are_counted_by_what_the_answer_meant(
    operator: User, sandbox: Sandbox, quick: None
) -> None:
    order = make_order(5000)
    silent = 'dashboard_smartpay_call_seconds_count{call="refund",outcome="AMBIGUOUS"}'
    absent = 'dashboard_smartpay_call_seconds_count{call="orders",outcome="REFUSED"}'
    before = scraped()
    sandbox.go_silent()

    refund(order.payments.get(), operator, amount=1000)
    sign_in(operator).get(f"/orders/{order.order_id}/")  # the sandbox does not know it

    after = scraped()
    assert {name: after[name] - before.get(name, 0) for name in (silent, absent)} == {silent: 1, absent: 1}


def test_standing_of_refunds_is_told(
    payment: Payment, operator: User, sandbox: Sandbox, quick: None, at: Any
) -> None:
    sandbox.go_silent()
    made = refund(payment, operator, amount=1000)
    at.advance(minutes=20)

    told = scraped()

    assert made.state == Refund.State.UNKNOWN
    assert told['dashboard_refunds_unsettled{state="unknown"}'] == 1
    assert told['dashboard_refunds_unsettled{state="queued"}'] == 0
    assert told['dashboard_refunds_oldest_seconds{state="unknown"}'] == pytest.approx(1200, abs=5)
    assert told['dashboard_refunds_last_hour{state="unknown"}'] == 1
    assert told["dashboard_queue_depth"] == 1
    assert told["dashboard_queue_seconds"] > 600
    assert told["dashboard_unsealed_seconds"] >= 1200
    assert (told["dashboard_sends_on"], told["dashboard_restored"], told["dashboard_smartpay_silent"]) == (
        1,
        0,
        0,
    )


def test_stopped_sending_and_a_silent_smartpay_are_told(
    operator: User, sandbox: Sandbox, quick: None
) -> None:
    for _ in range(5):
        sandbox.go_silent()
        refund(make_order(5000).payments.get(), operator, amount=1000, similar_reason="a test")
    services.set_sends(enabled=False, reason="a test")

    told = scraped()

    assert (told["dashboard_sends_on"], told["dashboard_smartpay_silent"]) == (0, 1)


def test_job_that_ends_well_no_more_is_told_by_how_late_it_is(operator: User, at: Any) -> None:
    job = jobs.BY_NAME["reconcile"]  # every ten minutes
    at.now = at.now.replace(minute=0, second=0, microsecond=0)
    for minutes, outcome in (
        (0, JobRun.Outcome.DONE),
        (10, JobRun.Outcome.FAILED),
        (20, JobRun.Outcome.DIED),
    ):
        started_at = at.now + timedelta(minutes=minutes)
        JobRun.objects.create(job=job.name, started_at=started_at, outcome=outcome)
    at.advance(minutes=25)

    told = scraped()

    assert told['dashboard_job_late_seconds{job="reconcile"}'] == 15 * 60
    assert told.get("dashboard_job_queue_depth", 0) == 0


def test_what_never_once_succeeded_is_as_old_as_the_tables(db: None, at: Any) -> None:
    at.now = at.now.replace(minute=0, second=0, microsecond=0)
    MigrationRecorder.Migration.objects.filter(app="refunds", name="0001_initial").update(applied=at.now)
    JobRun.objects.create(job="reconcile", started_at=at.now, outcome=JobRun.Outcome.FAILED)
    SyncCursor.objects.create(collection="orders", last_read_at=at.now + timedelta(hours=1))
    at.advance(hours=2)

    told = scraped()

    mirror = {name: value / 60 for name, value in told.items() if name.startswith("dashboard_mirror_")}
    assert mirror == {
        'dashboard_mirror_seconds{collection="checkout-sessions"}': 120,
        'dashboard_mirror_seconds{collection="orders"}': 60,
        'dashboard_mirror_seconds{collection="refunds"}': 120,
        'dashboard_mirror_whole_seconds{collection="checkout-sessions"}': 120,
        'dashboard_mirror_whole_seconds{collection="orders"}': 120,
        'dashboard_mirror_whole_seconds{collection="refunds"}': 120,
    }
    assert told['dashboard_job_late_seconds{job="reconcile"}'] == 110 * 60  # ten minutes after the tables
    assert told['dashboard_job_late_seconds{job="sweep"}'] == 119 * 60  # not even tried


def test_code_of_break_glass_is_told_for_an_hour(db: None, at: Any) -> None:
    told = [scraped()["dashboard_break_glass_issued_last_hour"]]
    call_command("break_glass", name="返金 花子", role="viewer", reason="a test", stdout=StringIO())
    for minutes in (59, 2):
        at.advance(minutes=minutes)
        told.append(scraped()["dashboard_break_glass_issued_last_hour"])

    assert told == [0, 1, 0]


def test_alarm_is_counted_by_its_event(viewer: User) -> None:
    counted = 'dashboard_alarms_total{event="job.failed"}'
    before = scraped().get(counted, 0)

    structlog.get_logger("refunds").error("job.failed", alarm=True, job="seal")
    structlog.get_logger("refunds").warning("job.died", job="seal")

    assert scraped()[counted] == before + 1
    assert not any("job.died" in name for name in scraped())


def test_scrape_asks_the_same_few_queries_however_much_there_is(operator: User) -> None:
    with CaptureQueriesContext(connection) as of_nothing:
        scraped()
    for _ in range(3):
        Refund.objects.create(
            payment=make_order(5000).payments.get(),
            amount=100,
            currency="JPY",
            reason="fraudulent",
            state="awaiting_approval",
            body="{}",
            refundable_before=5000,
            external_before=0,
            requested_by=operator,
            requested_at=clock.now() - timedelta(minutes=1),
        )

    with CaptureQueriesContext(connection) as of_some:
        scraped()

    assert len(of_some) == len(of_nothing) < 30


@pytest.mark.postgresql
@pytest.mark.django_db
def test_scrape_reads_no_table_that_grows_from_end_to_end() -> None:
    """Told to avoid it at any price, PostgreSQL finds an index for each query: then none is missing."""
    with CaptureQueriesContext(connection) as asked:
        scraped()
    with connection.cursor() as cursor:
        cursor.execute("SET LOCAL enable_seqscan = off")
        for query in asked:
            if query["sql"].startswith("SELECT") and " FROM " in query["sql"]:
                cursor.execute(f"EXPLAIN {query['sql']}")
                plan = "\n".join(line for (line,) in cursor.fetchall())
                grows = ("refunds_refund", "refunds_auditentry", "refunds_attempt", "refunds_bulk")
                assert not any(f"Seq Scan on {table}" in plan for table in grows), plan


# --- Several processes ------------------------------------------------------------------------------------------
def test_worker_shows_what_it_counts_where_it_is_told_to() -> None:
    port = free_port()
    program = "import django; django.setup(); from dashboard import metrics; metrics.listen(); input()"
    environment = os.environ | {
        "METRICS_LISTEN": f"127.0.0.1:{port}",
        "DJANGO_SETTINGS_MODULE": "dashboard.settings",
    }
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdin=subprocess.PIPE) as worker:
        text = eventually(f"http://127.0.0.1:{port}/metrics")
        worker.kill()

    assert "dashboard_smartpay_call_seconds" in text


def eventually(url: str) -> str:
    ends = time.monotonic() + 30
    while True:
        try:
            return requests.get(url, timeout=5).text
        except requests.ConnectionError:
            if time.monotonic() > ends:
                raise
            time.sleep(0.1)
