"""deploy/ on one machine: nginx, two web servers, three workers and PostgreSQL, from the very files that are deployed.

What systemd does is done here: the commands are those of the units, their sockets stay open, who dies is started again.
"""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import psycopg
import requests
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from scripts import nginx
from scripts.postgres import free_port
from tests.kills.databases import PostgreSQL
from tests.kills.people import Person
from tests.kills.world import FOUNDING, QUICK, World
from tests.sandbox import ROOT, Sandbox

DEPLOY = ROOT / "deploy"
INSTALLED = "/opt/refund-dashboard/.venv/bin/python"


def command(unit: str) -> list[str]:
    """What a unit starts, with this Python."""
    text = (DEPLOY / "systemd" / unit).read_text()
    [line] = re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)
    return [sys.executable if word == INSTALLED else word for word in shlex.split(line)]


def certificate(home: Path) -> None:
    """A key and a certificate for 127.0.0.1 that vouches for itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name, now = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")]), datetime.now(tz=UTC)
    own = x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + timedelta(days=1))
    signed = builder.add_extension(own, critical=False).sign(key, hashes.SHA256())
    (home / "site.pem").write_bytes(signed.public_bytes(serialization.Encoding.PEM))
    (home / "site.key").write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )


def nginx_configuration(home: Path, *, port: int, plain: int, webs: tuple[int, int] = (8001, 8002)) -> Path:
    """deploy/nginx with this machine's ports and files, inside the least that nginx wants around it."""
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
        f"events {{}}\nhttp {{\n{places}    include {home}/site.conf;\n}}\n"
    )
    return home / "nginx.conf"


class Watching(requests.Session):
    """A browser that keeps count of what did not come, or came as a fault."""

    def __init__(self, failed: Counter[str], answered: Counter[str]) -> None:
        super().__init__()
        self.failed, self.answered = failed, answered

    def request(self, method: Any, url: Any, *args: Any, **options: Any) -> requests.Response:
        options["timeout"] = (
            120  # less than nginx's: on a busy machine a start takes long, and nobody is turned away
        )
        try:
            answer = super().request(method, url, *args, **options)
        except requests.RequestException as error:
            self.failed[f"{method} {type(error).__name__}"] += 1
            raise
        self.answered[str(method)] += 1
        if answer.status_code >= 500:
            self.failed[f"{method} {answer.status_code}"] += 1
        return answer


class Deployment(World):
    WEBS = ("web-1", "web-2")
    WORKERS = ("worker-1", "worker-2", "worker-3")

    def __init__(self, home: Path, database: PostgreSQL, *, people: int = 4) -> None:
        self.home, self.database, self.server = home, database, database
        port, plain = free_port(), free_port()
        self._sockets = {name: socket.create_server(("127.0.0.1", 0), backlog=512) for name in self.WEBS}
        self.ports = {name: each.getsockname()[1] for name, each in self._sockets.items()}
        self.url = f"https://127.0.0.1:{port}"
        self.sandbox = Sandbox()
        self.deaths_dir = home / "deaths"
        (self.deaths_dir / "died").mkdir(parents=True)
        self.environment = {
            **os.environ, **QUICK,
            "DATABASE_URL": database.url, "STATE_DIR": str(home / "state"), "STATIC_ROOT": str(home / "static"),
            "HTTPS": "True", "ALLOWED_HOSTS": "127.0.0.1", "TRUSTED_PROXIES": "127.0.0.1",
            "SECRET_KEY": "long-enough-and-of-many-different-letters-0123456789-ABCDEFGHIJ",
            "SMARTPAY_API_URL": self.sandbox.url, "SMARTPAY_SECRET_KEY": self.sandbox.secret_key,
            "OIDC_ISSUER": "https://login.example.jp", "METRICS_TOKEN": "the-token-of-prometheus",
            "SSO_RECHECK_SECONDS": "86400", "WEB_CONCURRENCY": "1",
        }  # fmt: skip
        self.failed: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self._processes: dict[str, subprocess.Popen[Any]] = {}
        self._lock = threading.RLock()
        self._told: set[str] = set()
        self._closing = threading.Event()
        self.ended_by_themselves: list[str] = []
        self.killed_from_outside = 0
        self._lock_payments = threading.Lock()
        configuration = nginx_configuration(home, port=port, plain=plain, webs=tuple(self.ports.values()))
        self._commands = (
            {name: command("refund-dashboard-web@.service") for name in self.WEBS}
            | {name: command("refund-dashboard-worker@.service") for name in self.WORKERS}
            | {"nginx": [str(nginx.program()), "-p", str(home), "-c", str(configuration)]}
        )
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
        person._http = Watching(self.failed, self.answered)
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
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=keep,
            )

    def kill(self, name: str) -> None:
        """SIGKILL, with all its children; it is started again."""
        with self._lock:
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
