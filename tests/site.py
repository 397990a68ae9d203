"""The whole product as `make run` has it: web, worker, sandbox and identity provider, each a process of its own."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Protocol, Self

import requests

from scripts.identity_provider import CLIENT_ID, CLIENT_SECRET
from scripts.postgres import free_port
from tests.sandbox import Sandbox

ROOT = Path(__file__).resolve().parent.parent
PATIENCE = 60  # seconds


class Running(Protocol):
    """What a browser's test needs of a site, wherever it runs."""

    url: str
    sandbox: Sandbox


class Site:
    """url: of the dashboard. sandbox: the Smartpay that it talks to. Ends all when closed."""

    def __init__(self, state: Path, **environment: str) -> None:
        self.sandbox = Sandbox(orders=300)
        port, identity = free_port(), free_port()
        self.url = f"http://127.0.0.1:{port}"
        issuer = f"http://127.0.0.1:{identity}"
        self.environment = {
            **os.environ,
            "DATABASE_URL": f"sqlite:///{state / 'site.sqlite3'}",
            "STATE_DIR": str(state),
            "STATIC_ROOT": str(state / "static"),
            "SMARTPAY_API_URL": self.sandbox.url,
            "SMARTPAY_SECRET_KEY": self.sandbox.secret_key,
            "OIDC_ISSUER": issuer,
            "OIDC_CLIENT_ID": CLIENT_ID,
            "OIDC_CLIENT_SECRET": CLIENT_SECRET,
            "LOG_LEVEL": "WARNING",
            **environment,
        }
        self.manage("migrate", "-v", "0")
        self.manage("collectstatic", "--no-input", "-v", "0")
        self.manage("sync_orders")
        serve = ["-m", "gunicorn", "dashboard.wsgi", "--bind", f"127.0.0.1:{port}", "--no-control-socket"]
        self.processes = [
            self._start("-m", "scripts.identity_provider", "--port", str(identity), "--app-url", self.url),
            self._start(*serve, "--worker-class", "gthread", "--threads", "4", "--log-level", "warning"),
            self._start("manage.py", "run_worker"),
        ]
        _wait_for(f"{issuer}/.well-known/openid-configuration")
        _wait_for(f"{self.url}/readyz")

    def manage(self, *arguments: str) -> str:
        """One command of manage.py; what it prints."""
        command = [sys.executable, "manage.py", *arguments]
        return subprocess.run(
            command, cwd=ROOT, env=self.environment, check=True, capture_output=True, text=True
        ).stdout

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(PATIENCE)
        self.sandbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _start(self, *arguments: str) -> subprocess.Popen[Any]:
        return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env=self.environment)


def _wait_for(url: str) -> None:
    ends = time.monotonic() + PATIENCE
    while time.monotonic() < ends:
        try:
            if requests.get(url, timeout=5).status_code == 200:
                return
        except (requests.ConnectionError, requests.Timeout):
            pass  # not listening yet, or still loading
        time.sleep(0.1)
    raise TimeoutError(url)
