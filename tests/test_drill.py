"""What docs/operations.md promises of a deployment, tried on one: the main job works through it, nothing fails in a
rolling restart or beside the next version, nothing is lost or made twice whichever part dies, and who stays away is told of.

`make drill` makes 500 refunds meanwhile (DRILL_REFUNDS).
"""

import os
import statistics
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime

import pytest
from playwright.sync_api import Browser

from tests import test_journeys
from tests.deployment import Deployment, Load
from tests.kills.databases import PostgreSQL, database

pytestmark = pytest.mark.postgresql
chrome = test_journeys.chrome
REFUNDS = int(os.environ.get("DRILL_REFUNDS", "0"))  # 0: as many as there are while each part dies twice
PAUSE = 1.5  # seconds between two deaths: a part may die while another starts
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

    site.in_browser = {row["id"] for row in site.database.rows("SELECT id FROM refunds_refund")}
    assert len(site.in_browser) == 1


@pytest.mark.parametrize("what", ["restart", "upgrade"])
def test_no_request_fails_under_load_in_a_rolling(site: Deployment, what: str) -> None:
    site.failed.clear()
    site.seconds.clear()
    load = Load(site, refunds=10_000).begin()
    time.sleep(1)
    if what == "upgrade":
        site.upgrade()
    began = datetime.now(tz=UTC)
    for name in (*site.WEBS, *site.WORKERS):
        site.restart(name)
        site.wait_until_up()
    load.stop()
    load.end()

    slow = [each for each in site.seconds if each > SLOW]
    print(
        f"rolling {what}: requests={len(site.seconds)} failed={dict(site.failed)} refunds={len(load.asked)} "
        f"median={statistics.median(site.seconds):.2f} slower_than_{SLOW:.0f}_s={len(slow)} "
        f"slowest={max(site.seconds):.1f}"
    )
    assert dict(site.failed) == {}
    assert len(load.asked) > 5
    for refund in load.asked:
        site.until_settled(refund, 120)
    tally = site.tally(load.asked)
    assert tally.right, tally.faults
    if what == "upgrade":
        rows = site.database.rows("SELECT version FROM refunds_refund WHERE requested_at > %s", began)
        wrote = Counter(row["version"] for row in rows)
        print(f"rolling upgrade: refunds by the version that wrote them, side by side: {dict(wrote)}")
        assert wrote.keys() == {"before", "next"}


def test_ledger_is_smartpays_and_people_are_told_whichever_part_is_killed(site: Deployment) -> None:
    """First each part dies and is started again at once; then each stays away until Prometheus has told of it."""
    parts = (*site.WEBS, *site.WORKERS, "nginx", "postgresql")
    site.failed.clear()
    load = Load(site, refunds=REFUNDS or 10_000).begin()
    told: dict[str, list[float]] = {
        part: [] for part in (parts if REFUNDS else ("web-1", "worker-1", *parts[-2:]))
    }
    while not all(told.values()) or (REFUNDS and not load.over):
        for part in parts:
            time.sleep(PAUSE)
            site.kill(part)
        site.wait_until_up()
        for part, seconds in told.items():
            seconds.append(site.stays_away(part))
    load.stop()
    load.end()

    ends = time.monotonic() + 120  # nothing is stuck after two minutes
    for refund in load.asked:
        site.until_settled(refund, ends - time.monotonic())
    tally = site.tally(load.asked)
    print(f"killed: asked={len(load.asked)} {tally} failed={dict(site.failed)}")
    for part, seconds in told.items():
        print(f"{part} away: {site.alerts[part][0]} after {', '.join(f'{each:.1f}' for each in seconds)} s")
    assert tally.right, tally.faults
    assert len(load.asked) >= (REFUNDS or 5)
    standing = site.metrics("web-1")
    assert "dashboard_queue_depth 0.0" in standing
    assert 'dashboard_refunds_unsettled{state="unknown"} 0.0' in standing


def test_refund_that_no_worker_settles_is_told_by_prometheus(site: Deployment) -> None:
    watched = {"RefundWorkersDown", "RefundUnknown"}

    def raised() -> set[str]:
        return watched & {name for name, _address in site.firing()}

    site.until(lambda: not raised(), "calm", 60)
    with site.without(*site.WORKERS), site.payment() as order:
        site.until(lambda: raised() == {"RefundWorkersDown"}, "the workers' alert", 60)
        site.sandbox.go_silent()
        refund = site.people[0].refund(order["order"], order["payments"][0]["id"], 7)
        site.until(lambda: raised() == watched, "the refund's alert", 60)
    site.until_settled(refund, 120)
    site.until(lambda: not raised(), "calm again", 60)
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
