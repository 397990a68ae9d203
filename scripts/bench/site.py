"""The product as it is deployed, on a database of the bench: its environment, and its processes for a while."""

import contextlib
import os
import secrets
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import requests

from scripts.parents import end_with_parent
from scripts.postgres import free_port

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".state" / "bench"
PYTHON = sys.executable
SECRET = secrets.token_urlsafe(50)
PATIENCE = 60  # seconds until a process is there
LARGEST = "1000000000"  # a limit that nobody reaches


@dataclass(frozen=True)
class Part:
    """What one part of the bench says in Markdown, and the bars that it missed, in words."""

    text: str
    missed: list[str]


@dataclass
class Times:
    """Seconds of the answers of one kind, and how many rows they showed."""

    seconds: list[float] = field(default_factory=list)
    rows: int = 0

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    @property
    def p95(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.95)]

    def __str__(self) -> str:
        return f"{self.median * 1000:.1f} / {self.p95 * 1000:.1f}"


def environment(url: str, **more: str) -> dict[str, str]:
    """What a process of the product needs; Smartpay is nobody, so that a page of it is the mirror's."""
    return os.environ | {
        "DATABASE_URL": url,
        "DJANGO_SETTINGS_MODULE": "scripts.bench.settings",
        "SECRET_KEY": SECRET,
        "ALLOWED_HOSTS": "127.0.0.1",
        "HTTPS": "False",
        "STATE_DIR": str(HOME),
        "STATIC_ROOT": str(HOME / "static"),
        "SMARTPAY_API_URL": "http://127.0.0.1:1/v1",
        "SMARTPAY_SECRET_KEY": "sk_test_bench",
        "OIDC_ISSUER": "http://127.0.0.1:1",
        "OIDC_CLIENT_ID": "bench",
        "OIDC_CLIENT_SECRET": "bench",
        "LOG_LEVEL": "WARNING",
        **dict.fromkeys(("SSO_RECHECK_SECONDS", "SSO_IDLE_SECONDS", "SSO_ABSOLUTE_SECONDS"), "86400"),
        **dict.fromkeys(("SEARCHES_PER_HOUR", "ORDERS_PER_HOUR", "REFUND_FORMS_PER_HOUR"), LARGEST),
        **more,
    }


def run(command: list[str], environment: dict[str, str]) -> str:
    """What the command prints; one that fails ends the bench."""
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"bench: {' '.join(command[:4])} failed.")
    return done.stdout


def collect_static() -> None:
    run([PYTHON, "manage.py", "collectstatic", "--no-input", "-v", "0"], environment("sqlite://:memory:"))


@contextlib.contextmanager
def started(command: list[str], environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A process beside us, told to end afterwards; it ends with us, whatever becomes of us."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509  no threads here
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


@contextlib.contextmanager
def served(environment: dict[str, str], *, port: int = 0) -> Iterator[str]:
    """The web server of deploy/; its address."""
    port = port or free_port()
    command = [PYTHON, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "dashboard.wsgi"]
    with started([*command, "--bind", f"127.0.0.1:{port}"], environment) as process:
        wait_until_up(process, f"http://127.0.0.1:{port}/healthz")
        yield f"http://127.0.0.1:{port}"


def wait_until_up(process: subprocess.Popen[bytes], url: str) -> None:
    ends = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < ends:
        with contextlib.suppress(requests.ConnectionError):
            requests.get(url, timeout=PATIENCE)
            return
        time.sleep(0.1)
    sys.exit("bench: the server did not start.")
