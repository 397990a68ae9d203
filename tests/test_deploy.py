"""deploy/ is kept honest: read by the programs that will read it, and held against what it has to agree with."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.conf import settings
from django.test import Client

from scripts import nginx
from scripts.check import PRODUCTION
from scripts.postgres import free_port
from tests.deployment import DEPLOY, nginx_configuration
from tests.sandbox import ROOT

UNITS = sorted((DEPLOY / "systemd").iterdir())
SERVICES = [unit for unit in UNITS if unit.suffix == ".service"]
NGINX = (DEPLOY / "nginx" / "refund-dashboard.conf").read_text()
CONTAINER = (DEPLOY / "Containerfile").read_text().replace("\\\n", " ").splitlines()


# --- nginx ------------------------------------------------------------------------------------------------------
def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    configuration = nginx_configuration(tmp_path, port=free_port(), plain=free_port())

    done = subprocess.run(
        [str(nginx.program()), "-t", "-p", str(tmp_path), "-c", str(configuration)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, "warn" in done.stderr) == (0, False), done.stderr


def test_nginx_agrees_with_the_site() -> None:
    [body] = re.findall(r"client_max_body_size (\d+)m;", NGINX)
    [patience] = re.findall(r"proxy_read_timeout (\d+)s;", NGINX)

    assert int(body) * 1024 * 1024 == max(settings.LARGER_BODIES.values())
    assert int(patience) > 2 * settings.SMARTPAY_DEADLINE + 10  # of a refund, which reads and sends
    assert "add_header" not in NGINX  # what the site sends would be there twice
    assert not re.search(
        r"\$(request|request_uri|uri|args|query_string|http_referer)\b(?!;)", NGINX
    )  # in no log
    assert "$proxy_add_x_forwarded_for;" not in NGINX  # what a caller made up would be kept


# --- systemd ----------------------------------------------------------------------------------------------------
@pytest.fixture
def units(tmp_path: Path) -> Path:
    """The units as on a machine: templates with a number, and what they start where it is here."""
    for unit in UNITS:
        text = unit.read_text().replace("/opt/refund-dashboard/.venv/bin/python", sys.executable)
        (tmp_path / unit.name.replace("@", "@1")).write_text(text.replace("/opt/refund-dashboard", str(ROOT)))
    return tmp_path


def test_systemd_takes_the_units(units: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *map(str, sorted(units.iterdir()))],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    ours = [line for line in done.stderr.splitlines() if "refund-dashboard" in line]
    assert (done.returncode, ours) == (0, []), done.stderr


@pytest.mark.parametrize("unit", SERVICES, ids=lambda unit: unit.name)
def test_units_may_do_little(units: Path, unit: Path) -> None:
    file = units / unit.name.replace("@", "@1")

    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(file)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == 0, done.stdout[-200:] + done.stderr


def test_whoever_stops_a_process_waits_for_its_refund() -> None:
    longest = 2 * settings.SMARTPAY_DEADLINE + 10  # graceful_timeout of gunicorn.conf.py

    for name in ("web", "worker"):
        [seconds] = re.findall(
            r"^TimeoutStopSec=(\d+)$",
            (DEPLOY / f"systemd/refund-dashboard-{name}@.service").read_text(),
            re.M,
        )
        assert int(seconds) > longest
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    for name in ("web", "worker"):
        assert int(compose["services"][name]["stop_grace_period"].removesuffix("s")) > longest


def test_who_can_not_start_is_started_again_for_ever() -> None:
    """A database that comes up a minute after the machine must not leave the site down for the night."""
    for name in ("web", "worker"):
        unit = (DEPLOY / f"systemd/refund-dashboard-{name}@.service").read_text()
        assert re.findall(r"^(?:Restart|StartLimitIntervalSec)=(\S+)$", unit, re.M) == ["0", "always"]


def test_readyz_says_no_while_the_machine_is_taken_out(client: Client, db: None) -> None:
    (settings.STATE_DIR / "draining").touch()

    assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (503, 200)


# --- The container ------------------------------------------------------------------------------------------------
def test_container_is_built_from_what_there_is(tmp_path: Path) -> None:
    """All that needs no engine: its files, its packages as locked, its static files, its web server's settings."""
    image = tmp_path / "image"
    for line in CONTAINER:
        match line.split():
            case ["COPY", str() as first, *_] if first.startswith("--from"):
                continue
            case ["COPY", *sources, target]:
                place = image / target
                for source in sources:
                    if (ROOT / source).is_dir():
                        shutil.copytree(ROOT / source, place, ignore=shutil.ignore_patterns("__pycache__"))
                    else:
                        place.mkdir(parents=True, exist_ok=True)
                        shutil.copy(ROOT / source, place)
    runs = {line.split()[1]: line.removeprefix("RUN ") for line in CONTAINER if line.startswith("RUN ")}
    environment = {
        "PATH": f"{image}/.venv/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
    }
    environment |= {
        name: os.environ[name] for name in ("UV_CACHE_DIR", "UV_DEFAULT_INDEX") if name in os.environ
    }
    environment |= {"STATE_DIR": str(tmp_path / "state"), "STATIC_ROOT": str(image / "collected")}
    environment.setdefault("UV_CACHE_DIR", str(Path.home() / ".cache" / "uv"))

    def run(words: str) -> None:
        done = subprocess.run(
            ["sh", "-c", words], cwd=image, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr

    locked, _and, install = runs["python"].partition(" && ")
    run(locked)
    assert re.match(r"uv==\S+ --hash=sha256:", (image / "uv.txt").read_text())
    assert "--require-hashes -r uv.txt" in install
    run(f"{runs['uv']} --offline --python {shlex.quote(sys.executable)}")
    run(next(line for line in runs.values() if "collectstatic" in line))
    [start] = [line.removeprefix("CMD ") for line in CONTAINER if line.startswith("CMD ")]
    environment |= {name: value for name, value in PRODUCTION.items() if name != "STATE_DIR"}
    run(shlex.join([*yaml.safe_load(start), "--check-config"]))

    hashed = {path.name for path in (image / "collected").glob("dashboard.*.css*")}
    assert len(hashed) == 2  # its name has a hash of its contents; compressed beside it
    assert any(name.endswith(".gz") for name in hashed)
    assert not (image / ".env").exists()


def test_compose_finds_a_web_server_healthy_while_it_is(tmp_path: Path) -> None:
    port = free_port()
    services = yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]
    kind, *words = services["web"]["healthcheck"]["test"]
    [start] = [line.removeprefix("CMD ") for line in CONTAINER if line.startswith("CMD ")]
    command = [word.replace("0.0.0.0:8000", f"127.0.0.1:{port}") for word in yaml.safe_load(start)]
    here = {"STATE_DIR": str(tmp_path), "STATIC_ROOT": str(tmp_path / "static"), "WEB_CONCURRENCY": "1"}
    environment = os.environ | PRODUCTION | here | {"ALLOWED_HOSTS": ".example.jp,refunds.example.com"}

    def is_healthy() -> bool:
        check = [sys.executable, *(word.replace(":8000/", f":{port}/") for word in words[1:])]
        return subprocess.run(check, env=environment, check=False, capture_output=True).returncode == 0

    assert (kind, words[0], is_healthy()) == ("CMD", "python", False)
    web = subprocess.Popen([sys.executable, *command[1:]], cwd=ROOT, env=environment)
    try:
        ends = time.monotonic() + 60
        while not is_healthy():
            assert time.monotonic() < ends
            time.sleep(0.5)
    finally:
        web.terminate()
        web.wait(60)


# --- Alerts -------------------------------------------------------------------------------------------------------
RULES = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text())["groups"][0]["rules"]


def test_every_alert_is_raised_by_what_it_says_and_not_before() -> None:
    for words in (
        "check config --syntax-only prometheus.yml",
        "check rules alerts.yml",
        "test rules alerts_test.yml",
    ):
        done = subprocess.run(
            ["promtool", *words.split()],
            cwd=DEPLOY / "prometheus",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    done = subprocess.run(
        ["prometheus-blackbox-exporter", "--config.check", "--config.file=blackbox.yml"],
        cwd=DEPLOY / "prometheus", capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    raised: dict[str, set[bool]] = {}
    for group in yaml.safe_load((DEPLOY / "prometheus" / "alerts_test.yml").read_text())["tests"]:
        for each in group["alert_rule_test"]:
            raised.setdefault(each["alertname"], set()).add("exp_alerts" in each)
    assert {rule["alert"] for rule in RULES} == raised.keys()
    for name, tried in raised.items():
        assert True in tried, name


def test_prometheus_asks_where_the_units_answer() -> None:
    jobs = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text())["scrape_configs"]
    asked = {job["job_name"]: job["static_configs"][0]["targets"] for job in jobs}
    web = (DEPLOY / "systemd" / "refund-dashboard-web@.socket").read_text()
    worker = (DEPLOY / "systemd" / "refund-dashboard-worker@.service").read_text()

    [served] = re.findall(r"^ListenStream=(\S+)%i$", web, re.M)
    [shown] = re.findall(r"^Environment=METRICS_LISTEN=(\S+)%i$", worker, re.M)

    assert asked == {
        "refund-dashboard-web": [f"{served}{number}" for number in (1, 2)],
        "refund-dashboard-worker": [f"{shown}{number}" for number in (1, 2, 3)],
        "refund-dashboard-front": ["127.0.0.1:9115"],  # where Debian's exporter listens
    }


def test_every_metric_of_an_alert_is_there(client: Client, db: None, settings: Any) -> None:
    settings.METRICS_TOKEN = "a-token"
    shown = client.get("/metrics", headers={"Authorization": "Bearer a-token"}).content.decode()
    there = set(re.findall(r"^# TYPE (\w+) ", shown, re.M))

    named = {name for rule in RULES for name in re.findall(r"dashboard_\w+", rule["expr"])}

    assert len(RULES) > 10
    assert {re.sub(r"_(bucket|count|sum)$", "", name) for name in named} - there == set()
    for rule in RULES:
        assert rule["labels"]["severity"] in ("page", "ticket"), rule["alert"]
        assert rule["annotations"]["summary"], rule["alert"]
