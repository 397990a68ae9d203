"""What docs/operations.md promises of a deployment, tried on one: nothing fails in a rolling restart, nothing is lost
or made twice whichever part dies."""

import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.deployment import Deployment, Load
from tests.kills.databases import PostgreSQL, database

pytestmark = pytest.mark.postgresql


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    home = tmp_path_factory.mktemp("deployment")
    with database("postgresql", home) as server:
        assert isinstance(server, PostgreSQL)
        with closing(Deployment(home, server)) as running:
            yield running


def test_rolling_restart_under_load_fails_no_request(site: Deployment) -> None:
    site.failed.clear()
    site.answered.clear()
    load = Load(site, refunds=10_000).begin()
    time.sleep(1)
    for name in (*site.WEBS, *site.WORKERS, *site.WEBS):
        site.restart(name)
        time.sleep(2)
    site.wait_until_up()
    load.stop()
    load.end()

    print(
        f"rolling restart: requests={dict(site.answered)} failed={dict(site.failed)} refunds={len(load.asked)}"
    )
    assert dict(site.failed) == {}
    assert len(load.asked) > 10
    for refund in load.asked:
        site.until_settled(refund, 120)
    tally = site.tally(load.asked)
    assert tally.right, tally.faults


def test_ledger_is_smartpays_whichever_part_is_killed(site: Deployment) -> None:
    load = Load(site, refunds=10_000).begin()
    for name in (*site.WEBS, *site.WORKERS, "nginx"):
        time.sleep(1.5)
        site.kill(name)
    time.sleep(1.5)
    site.server.kill()
    site.wait_until_up()
    load.stop()
    load.end()

    ends = time.monotonic() + 120  # nothing is stuck after two minutes
    for refund in load.asked:
        site.until_settled(refund, ends - time.monotonic())
    tally = site.tally(load.asked)
    print(f"killed: {tally}, failed={dict(site.failed)}")
    assert tally.right, tally.faults
    assert tally.kills == 6
    standing = site.metrics("web-1")
    assert "dashboard_queue_depth 0.0" in standing
    assert 'dashboard_refunds_unsettled{state="unknown"} 0.0' in standing


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
    written = "".join(file.read_text() for file in site.home.glob("*.log"))

    secrets = [site.environment[name] for name in ("SECRET_KEY", "SMARTPAY_SECRET_KEY", "METRICS_TOKEN")]
    secrets += [person._http.cookies["__Host-session"] for person in site.people]
    assert len(written) > 10_000
    assert [secret for secret in [*secrets, "of-the-app", "@example"] if secret in written] == []
