"""What docs/operations.md promises of a deployment, tried on one: the main job works through it, nothing fails in a
rolling restart, nothing is lost or made twice whichever part dies, and what stays away is told.

`make drill` makes 500 refunds meanwhile (DRILL_REFUNDS).
"""

import itertools
import os
import statistics
import time
from collections.abc import Iterator
from contextlib import closing

import pytest
from playwright.sync_api import Browser

from tests import test_journeys
from tests.deployment import Deployment, Load
from tests.kills.databases import PostgreSQL, database

pytestmark = pytest.mark.postgresql
chrome = test_journeys.chrome
REFUNDS = int(os.environ.get("DRILL_REFUNDS", "0"))  # 0: as many as there are while each part dies once
PAUSE = (
    8.0 if REFUNDS else 1.5
)  # seconds between two deaths: in the short one a part may die while another starts
SLOW = 1.0  # seconds


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("deployment")
    with database("postgresql", home) as server:
        assert isinstance(server, PostgreSQL)
        with closing(Deployment(home, server)) as running:
            yield running


def test_main_job_is_done_through_nginx_and_tls(site: Deployment, chrome: Browser) -> None:
    test_journeys.test_operator_refunds_auditor_reads_viewer_can_not(site, chrome)


def test_rolling_restart_under_load_fails_no_request_twice_in_a_row(site: Deployment) -> None:
    asked = []
    for _ in range(2):
        site.failed.clear()
        site.seconds.clear()
        load = Load(site, refunds=10_000).begin()
        time.sleep(1)
        for name in (*site.WEBS, *site.WORKERS):
            site.restart(name)
            site.wait_until_up()
        load.stop()
        load.end()

        slow = [each for each in site.seconds if each > SLOW]
        print(
            f"rolling restart: requests={len(site.seconds)} failed={dict(site.failed)} refunds={len(load.asked)} "
            f"median={statistics.median(site.seconds):.2f} slower_than_{SLOW:.0f}_s={len(slow)} "
            f"slowest={max(site.seconds):.1f}"
        )
        assert dict(site.failed) == {}
        assert len(load.asked) > 5
        asked += load.asked
    for refund in asked:
        site.until_settled(refund, 120)
    tally = site.tally(asked)
    assert tally.right, tally.faults


def test_ledger_is_smartpays_whichever_part_is_killed(site: Deployment) -> None:
    load = Load(site, refunds=REFUNDS or 10_000).begin()
    parts = (*site.WEBS, *site.WORKERS, "nginx", "postgresql")
    kills = 0
    for part in itertools.cycle(parts):
        time.sleep(PAUSE)
        if part == "postgresql":
            site.server.kill()
        else:
            site.kill(part)
        kills += 1
        if kills >= len(parts) and (load.over or not REFUNDS):
            break
    site.wait_until_up()
    load.stop()
    load.end()

    ends = time.monotonic() + 120  # nothing is stuck after two minutes
    for refund in load.asked:
        site.until_settled(refund, ends - time.monotonic())
    tally = site.tally(load.asked)
    print(f"killed: parts={kills} {tally}, failed={dict(site.failed)}")
    assert tally.right, tally.faults
    assert len(load.asked) >= (REFUNDS or 5)
    standing = site.metrics("web-1")
    assert "dashboard_queue_depth 0.0" in standing
    assert 'dashboard_refunds_unsettled{state="unknown"} 0.0' in standing


def test_what_stays_away_is_told_by_prometheus(site: Deployment) -> None:
    def fires(alert: str) -> None:
        site.until(lambda: alert in site.firing(), f"{alert}, not {site.firing()}", 60)

    def is_calm() -> None:
        told = {"RefundWebDown", "RefundWorkersDown", "RefundWorkerDown", "RefundUnknown"}
        site.until(lambda: not site.firing() & told, f"calm, not {site.firing()}", 60)

    is_calm()
    with site.without("web-1"):
        fires("RefundWebDown")
    is_calm()
    with site.without("worker-1"):
        fires("RefundWorkerDown")
    is_calm()
    with site.without(*site.WORKERS), site.payment() as order:
        fires("RefundWorkersDown")
        site.sandbox.go_silent()
        refund = site.people[0].refund(order["order"], order["payments"][0]["id"], 7)
        fires("RefundUnknown")
    site.until_settled(refund, 120)
    is_calm()
    site.server.crash()
    fires("RefundWebDown")
    site.server.start()
    is_calm()
    print(f"alerts fired: {dict(site.fired())}")


def test_what_prometheus_asks_is_asked_of_the_process_and_not_of_the_world(site: Deployment) -> None:
    person = site.people[0]
    person.look(f"{site.url}/orders/")

    told = site.metrics("web-1")
    answer = person._http.get(
        f"{site.url}/metrics", headers={"Authorization": "Bearer the-token-of-prometheus"}
    )

    assert answer.status_code == 404
    assert "dashboard_requests_total{" in told
    assert "dashboard_sends_on 1.0" in told


def test_headers_are_there_once_and_the_request_is_found_again_in_the_log(site: Deployment) -> None:
    answer = site.people[0]._http.get(f"{site.url}/orders/")

    for header in (
        "Strict-Transport-Security",
        "Content-Security-Policy",
        "X-Frame-Options",
        "Cache-Control",
    ):
        assert len(answer.raw.headers.getlist(header)) == 1, header
    number = answer.headers["X-Request-Id"]
    site.until(lambda: number in site.log("nginx-of-the-site"), "nginx's own line")
    assert number in site.log("web")


def test_logs_of_the_deployment_hold_no_mail_key_or_session(site: Deployment) -> None:
    person = site.people[0]
    person.look(f"{site.url}/orders/")
    with site.payment() as order:
        refund = person.refund(order["order"], order["payments"][0]["id"], 7)
    site.until_settled(refund, 120)
    site.until(lambda: str(refund) in site.log("web"), "the refund's own lines")

    written = "".join(file.read_text() for file in site.home.glob("*.log"))
    secrets = [site.environment[name] for name in ("SECRET_KEY", "SMARTPAY_SECRET_KEY", "METRICS_TOKEN")]
    secrets += [person._http.cookies["__Host-session"] for person in site.people]
    assert [secret for secret in [*secrets, "of-the-app", "@example", "田中"] if secret in written] == []
