"""deploy/ on one machine: nginx, two web servers, three workers, PostgreSQL, Prometheus and its blackbox exporter, from
the very files that are deployed.

What systemd does is done here: the commands are those of the units, their sockets stay open, who dies is started again.
Prometheus lives sixty times as fast: what its rules call a minute is a second.
"""

import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psycopg
import requests
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scripts import nginx
from scripts.identity_provider import CLIENT_ID, CLIENT_SECRET
from scripts.postgres import free_port
from tests.kills.databases import PostgreSQL
from tests.kills.people import Person
from tests.kills.world import FOUNDING, QUICK, Tally, World
from tests.sandbox import ROOT, Sandbox

DEPLOY = ROOT / "deploy"
PROVIDER = "127.0.0.2"  # where the company's sign-in is: another machine, as far as the site can tell
INSTALLED = "/opt/refund-dashboard/.venv/bin/python"
CODE = ("manage.py", "dashboard", "refunds", "templates", "static", "locale", "deploy")
NEXT_COLUMN = (
    'models.CharField(max_length=10, default="next", db_default="before")'  # of the code that wrote the row
)
NEXT_MIGRATION = f"""
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("refunds", "%s")]
    operations = [migrations.AddField("refund", "version", {NEXT_COLUMN})]
"""


def commands(unit: str) -> list[list[str]]:
    """What a unit starts, with this Python."""
    text = (DEPLOY / "systemd" / unit).read_text()
    lines = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    return [[sys.executable if word == INSTALLED else word for word in shlex.split(line)] for line in lines]


def next_version(place: Path) -> None:
    """The product with one column more in the ledger, which it writes itself: as a later version might have it."""
    place.mkdir()
    for name in CODE:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / name)
    models = place / "refunds" / "models" / "ledger.py"
    column = "    external_before = models"  # of the ledger alone
    assert models.read_text().count(column) == 1
    models.write_text(models.read_text().replace(column, f"    version = {NEXT_COLUMN}\n{column}"))
    migrations = place / "refunds" / "migrations"
    last = max(each.stem for each in migrations.glob("0*.py"))
    (migrations / "9999_next.py").write_text(NEXT_MIGRATION % last)


def certificate(home: Path) -> None:
    """A key and a certificate for this machine's addresses that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")]), datetime.now(tz=UTC)
    own = x509.SubjectAlternativeName([x509.IPAddress(ip_address(each)) for each in ("127.0.0.1", PROVIDER)])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=90))
    signed = builder.add_extension(own, critical=False).sign(key, hashes.SHA256())
    (home / "site.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (home / "site.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def nginx_configuration(
    home: Path, *, port: int, plain: int, webs: tuple[int, int] = (8001, 8002), provider: int = 9
) -> Path:
    """deploy/nginx with this machine's ports and files, inside the least that nginx wants around it.

    Beside it, over TLS as well, the company's identity provider, which listens at the port `provider`.
    """
    certificate(home)
    text = (DEPLOY / "nginx" / "refund-dashboard.conf").read_text()
    text = re.sub(r"^ *listen \[::\].*\n", "", text, flags=re.MULTILINE)
    for old, new in {
        "listen 443": f"listen 127.0.0.1:{port}",
        "listen 80;": f"listen 127.0.0.1:{plain};",
        "127.0.0.1:8001": f"127.0.0.1:{webs[0]}",
        "127.0.0.1:8002": f"127.0.0.1:{webs[1]}",
        "refunds.example.jp;": "127.0.0.1;",
        "/etc/ssl/certs/refunds.example.jp.pem": str(home / "site.pem"),
        "/etc/ssl/private/refunds.example.jp.key": str(home / "site.key"),
        "/var/log/nginx/refund-dashboard": str(home / "nginx-of-the-site"),
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    (home / "site.conf").write_text(text)
    places = "".join(
        f"    {name}_temp_path {home}/{name};\n"
        for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    user = "user root;\n" if os.geteuid() == 0 else ""
    (home / "nginx.conf").write_text(
        f"{user}daemon off;\npid {home}/nginx.pid;\nerror_log {home}/nginx.log;\nworker_processes 2;\n"
        f"events {{}}\nhttp {{\n{places}    include {home}/site.conf;\n"
        f"    server {{\n        listen {PROVIDER}:{port} ssl;\n        access_log off;\n"
        f"        ssl_certificate {home}/site.pem;\n        ssl_certificate_key {home}/site.key;\n"
        f"        location / {{\n            proxy_pass http://127.0.0.1:{provider};\n"
        "            proxy_set_header Host $http_host;\n            proxy_set_header X-Forwarded-Proto https;\n"
        "        }\n    }\n}\n"
    )
    return home / "nginx.conf"


def prometheus_configuration(
    home: Path, *, webs: list[int], workers: list[int], front: int, site: str, token: str
) -> Path:
    """deploy/prometheus with this machine's ports, and with seconds for minutes."""
    probe = yaml.safe_load((DEPLOY / "prometheus" / "blackbox.yml").read_text())
    probe["modules"]["refund_dashboard"]["http"]["tls_config"] = {"ca_file": str(home / "site.pem")}
    (home / "blackbox.yml").write_text(yaml.safe_dump(probe))
    (home / "token").write_text(token)
    text = (DEPLOY / "prometheus" / "prometheus.yml").read_text()
    ports = dict(zip((8001, 8002, 9101, 9102, 9103, 9115), [*webs, *workers, front], strict=True))
    for old, new in {
        "interval: 15s": "interval: 1s",
        "/etc/prometheus/refund-dashboard.token": str(home / "token"),
        "https://refunds.example.jp": site,
        **{f"127.0.0.1:{old}": f"127.0.0.1:{new}" for old, new in ports.items()},
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    (home / "prometheus.yml").write_text(text)
    rules = (DEPLOY / "prometheus" / "alerts.yml").read_text()
    rules = re.sub(r"\b(\d+)m\b", r"\1s", rules)
    rules = re.sub(
        r"_seconds(\S*) > (\d+)", lambda found: f"_seconds{found[1]} > {int(found[2]) // 60}", rules
    )
    rules = re.sub(r"\) > (\d{3,})", lambda found: f") > {int(found[1]) // 60}", rules)
    (home / "alerts.yml").write_text(rules)
    return home / "prometheus.yml"


class Watching(requests.Session):
    """A browser that keeps count of what did not come, or came as a fault, and of how long each answer took."""

    def __init__(self, failed: Counter[str], seconds: list[float]) -> None:
        super().__init__()
        self.failed, self.seconds = failed, seconds

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
        options["timeout"] = (
            120  # less than nginx's: on a busy machine a start takes long, and nobody is turned away
        )
        began = time.monotonic()
        try:
            answer = super().request(method, url, *args, **options)
        except requests.RequestException as error:
            self.failed[f"{method} {type(error).__name__}"] += 1
            raise
        self.seconds.append(time.monotonic() - began)
        if answer.status_code >= 500:
            self.failed[f"{method} {answer.status_code}"] += 1
        return answer


class Deployment(World):
    WEBS = ("web-1", "web-2")
    WORKERS = ("worker-1", "worker-2", "worker-3")

    def __init__(self, home: Path, database: PostgreSQL, *, people: int = 4) -> None:
        self.home, self.database, self.server = home, database, database
        self._code = ROOT
        self.in_browser: set[uuid.UUID] = set()
        port, plain, provider, watching, front = (free_port() for _ in range(5))
        shown = {name: free_port() for name in self.WORKERS}
        self._sockets = {name: socket.create_server(("127.0.0.1", 0), backlog=512) for name in self.WEBS}
        self.ports = {name: each.getsockname()[1] for name, each in self._sockets.items()}
        self.url = f"https://127.0.0.1:{port}"
        self._prometheus = f"http://127.0.0.1:{watching}"
        self.sandbox = Sandbox()
        self.deaths_dir = home / "deaths"
        (self.deaths_dir / "died").mkdir(parents=True)
        self.environment = {
            **os.environ, **QUICK,
            "DATABASE_URL": database.url, "STATE_DIR": str(home / "state"), "STATIC_ROOT": str(home / "static"),
            "HTTPS": "True", "ALLOWED_HOSTS": "127.0.0.1", "TRUSTED_PROXIES": "127.0.0.1",
            "SECRET_KEY": "long-enough-and-of-many-different-letters-0123456789-ABCDEFGHIJ",
            "SMARTPAY_API_URL": self.sandbox.url, "SMARTPAY_SECRET_KEY": self.sandbox.secret_key,
            "OIDC_ISSUER": f"https://{PROVIDER}:{port}", "OIDC_CA_BUNDLE": str(home / "site.pem"),
            "OIDC_CLIENT_ID": CLIENT_ID, "OIDC_CLIENT_SECRET": CLIENT_SECRET, "METRICS_TOKEN": "the-token-of-prometheus",
            "SSO_RECHECK_SECONDS": "86400", "WEB_CONCURRENCY": "1",
        }  # fmt: skip
        self.failed: Counter[str] = Counter()
        self.seconds: list[float] = []
        self._processes: dict[str, subprocess.Popen[Any]] = {}
        self._lock = threading.RLock()
        self._told: set[str] = set()
        self._closing = threading.Event()
        self.ended_by_themselves: list[str] = []
        self.killed_from_outside = 0
        self._lock_payments = threading.Lock()
        web_1, web_2 = self.ports.values()
        proxy = nginx_configuration(home, port=port, plain=plain, webs=(web_1, web_2), provider=provider)
        token = self.environment["METRICS_TOKEN"]
        watched = prometheus_configuration(
            home, webs=[web_1, web_2], workers=[*shown.values()], front=front, site=self.url, token=token
        )
        self.alerts = {
            **{name: ("RefundWebDown", f"127.0.0.1:{port}") for name, port in self.ports.items()},
            **{name: ("RefundWorkerDown", f"127.0.0.1:{port}") for name, port in shown.items()},
            "nginx": ("RefundFrontDown", f"127.0.0.1:{front}"),
            "postgresql": ("RefundWebDown", f"127.0.0.1:{web_1}"),
        }
        [web] = commands("refund-dashboard-web@.service")
        [worker] = commands("refund-dashboard-worker@.service")
        self._commands = (
            dict.fromkeys(self.WEBS, web)
            | {name: ["env", f"METRICS_LISTEN=127.0.0.1:{listen}", *worker] for name, listen in shown.items()}
            | {
                "nginx": [str(nginx.program()), "-p", str(home), "-c", str(proxy)],
                "prometheus": [
                    "prometheus", f"--config.file={watched}", f"--storage.tsdb.path={home / 'series'}",
                    f"--web.listen-address=127.0.0.1:{watching}", "--log.level=warn",
                ],
                "blackbox": [
                    "prometheus-blackbox-exporter", f"--config.file={home / 'blackbox.yml'}",
                    f"--web.listen-address=127.0.0.1:{front}", "--log.level=error",
                ],
                "identity": [
                    sys.executable, "-m", "scripts.identity_provider", "--port", str(provider), "--app-url", self.url,
                ],
            }
        )  # fmt: skip
        sessions = self.manage("shell", "-v", "0", "-c", FOUNDING % people).splitlines()[-1]
        self._let_in_as_the_app()
        self.people = [self._person(session) for session in re.findall(r'"(\w+)"', sessions)]
        self._free = self.sandbox.find_all("refundable", limit=200, min_amount=3000)
        self._supervisor = threading.Thread(target=self._supervise, daemon=True)
        self._supervisor.start()
        try:
            self.wait_until_up()
        except BaseException:
            self.close()
            raise

    def _let_in_as_the_app(self) -> None:
        """From here on as docs/operations.md has it: as a role that owns nothing."""
        with psycopg.connect(self.database.url.replace("postgres://", "postgresql://")) as owner:
            owner.execute("CREATE ROLE refunds_app LOGIN PASSWORD 'of-the-app'")
        self.manage("grant_app_role", "refunds_app")
        place = self.database.url.split("@")[1]
        self.environment["DATABASE_URL"] = f"postgres://refunds_app:of-the-app@{place}"

    def _person(self, session: str) -> Person:
        person = Person(self.url, session)
        person._http = Watching(self.failed, self.seconds)
        person._http.trust_env = False
        person._http.verify = str(self.home / "site.pem")
        person._http.headers["Referer"] = self.url
        person._http.cookies.clear()
        person._http.cookies.set("__Host-session", session, domain="127.0.0.1", path="/", secure=True)
        return person

    def _start(self, name: str) -> None:
        words, environment, keep = self._commands[name], self.environment, []
        if name in self._sockets:  # as systemd hands a socket over
            keep = [self._sockets[name].fileno()]
            words = ["bash", "-c", f'exec 3<&{keep[0]}; LISTEN_PID=$$ LISTEN_FDS=1 exec "$@"', "bash", *words]
        with (self.home / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                words,
                cwd=self._code if name in (*self.WEBS, *self.WORKERS) else ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=keep,
            )

    def kill(self, name: str) -> None:
        """SIGKILL, with all its children; it is started again. "postgresql": only from the main thread."""
        with self._lock:
            if name == "postgresql":
                self.server.kill()
            else:
                self._kill(self._processes[name])
            self.killed_from_outside += 1

    def restart(self, name: str) -> None:
        """As `systemctl restart`: told to end, waited for, started again."""
        with self._lock:
            process = self._processes[name]
            self._told.add(name)
        process.send_signal(signal.SIGTERM)
        process.wait(90)
        with self._lock:
            del self._processes[name]
            self._told.remove(name)
        self.until(lambda: name in self._processes, f"{name} is started")

    def upgrade(self) -> None:
        """What the upgrade's unit does, with the next version's code, which whoever is started from now on has."""
        code = self.home / "next"
        next_version(code)
        owner = self.environment | {"DATABASE_URL": self.database.url}
        for words in commands("refund-dashboard-upgrade.service"):
            done = subprocess.run(words, cwd=code, env=owner, check=False, capture_output=True, text=True)
            assert done.returncode == 0, (words, done.stderr[-600:])
        self._code = code

    @contextmanager
    def without(self, *names: str) -> Iterator[None]:
        """SIGKILL, and not started again for as long as this lasts. "postgresql": only from the main thread."""
        self.killed_from_outside += len(names)
        if names == ("postgresql",):
            self.server.crash()
            yield
            self.server.start()
            self.wait_until_up()
            return
        with self._lock:
            self._told |= set(names)
            for name in names:
                self._kill(self._processes[name])
        yield
        with self._lock:
            for name in names:
                del self._processes[name]
            self._told -= set(names)
        self.wait_until_up()

    def firing(self) -> set[tuple[str, str]]:
        """The alerts that Prometheus raises now: their names, and the address they are about; "" for none."""
        answer = requests.get(f"{self._prometheus}/api/v1/alerts", timeout=10).json()
        raised = [each["labels"] for each in answer["data"]["alerts"] if each["state"] == "firing"]
        return {(each["alertname"], each.get("instance", "")) for each in raised}

    def stays_away(self, part: str) -> float:
        """SIGKILL, and a start only when Prometheus has told of it; how many seconds that took."""
        alert = self.alerts[part]
        self.until(lambda: alert not in self.firing(), f"calm before {part} dies", 60)
        since = time.monotonic()
        with self.without(part):
            self.until(lambda: alert in self.firing(), f"{alert} is raised", 60)
            return time.monotonic() - since

    def fired(self) -> Counter[str]:
        """The alerts that Prometheus raised since it began, and for how many evaluations."""
        query = {"query": 'sum by (alertname) (count_over_time(ALERTS{alertstate="firing"}[1d]))'}
        answer = requests.get(f"{self._prometheus}/api/v1/query", query, timeout=10).json()
        return Counter(
            {each["metric"]["alertname"]: int(each["value"][1]) for each in answer["data"]["result"]}
        )

    def tally(self, asked: Sequence[uuid.UUID]) -> Tally:
        """And every row of the ledger is of a button that one of the people pressed, whom nothing else was told of it."""
        tally = super().tally(asked)
        pressed = {refund: status for person in self.people for refund, status in person.pressed.items()}
        for row in self.database.rows("SELECT id FROM refunds_refund"):
            status = pressed.get(row["id"], None if row["id"] not in self.in_browser else 303)
            if status is None:
                tally.add("untold", f"{row['id']}: nobody pressed for it")
            elif status not in (302, 303):
                tally.add("untold", f"{row['id']}: its person was answered {status} and gave up")
        return tally

    def _judge_alarms(self, tally: Tally) -> None:
        """But nobody starts without the database: who tries ends, and is started again until it is there."""
        self.ended_by_themselves = [
            ended
            for ended in self.ended_by_themselves
            if "connection to server at" not in ended and "server terminated abnormally" not in ended
        ]
        super()._judge_alarms(tally)

    def wait_until_up(self) -> None:
        addresses = [f"http://127.0.0.1:{port}/readyz" for port in self.ports.values()]
        self.until(lambda: all(map(self._answers, addresses)), "the web servers are up", 60)
        self.until(lambda: self._answers(f"{self.url}/readyz"), "nginx is up", 60)

    def _answers(self, url: str) -> bool:
        try:
            return requests.get(url, timeout=5, verify=str(self.home / "site.pem")).status_code == 200
        except requests.RequestException:
            return False

    def metrics(self, name: str) -> str:
        header = {"Authorization": f"Bearer {self.environment['METRICS_TOKEN']}"}
        return requests.get(f"http://127.0.0.1:{self.ports[name]}/metrics", headers=header, timeout=10).text

    def close(self) -> None:
        super().close()
        for each in self._sockets.values():
            each.close()


class Load:
    """Everybody refunds, one payment after the other, until told to stop. `asked`: what they were told of."""

    def __init__(self, site: Deployment, *, refunds: int) -> None:
        self._site, self._left = site, refunds
        self.asked: list[Any] = []
        self.wrong: list[BaseException] = []
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._work, args=(person,)) for person in site.people]

    def _work(self, person: Person) -> None:
        try:
            while True:
                with self._lock:
                    if self._left <= 0:
                        return
                    self._left -= 1
                with self._site.payment() as order:
                    made = person.refund(order["order"], order["payments"][0]["id"], 7)
                    self.asked.append(made)
                person.look(f"{self._site.url}/orders/")
        except BaseException as error:
            self.wrong.append(error)

    def begin(self) -> "Load":
        for each in self._threads:
            each.start()
        return self

    @property
    def over(self) -> bool:
        return not any(each.is_alive() for each in self._threads)

    def stop(self) -> None:
        with self._lock:
            self._left = 0

    def end(self) -> None:
        for each in self._threads:
            each.join(150)
        for error in self.wrong:
            raise error
        assert self.over
