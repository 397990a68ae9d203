"""A handle on panva's certified OpenID Connect provider, in a process of its own: see provider.mjs."""

import contextlib
import json
import subprocess
import time
from pathlib import Path
from typing import Any, Self

import requests

from tests.npm import NODE, installed

HERE = Path(__file__).resolve().parent
CLIENT_ID, CLIENT_SECRET = "refund-dashboard", "a-secret: with a colon, and more than 32 bytes"
PATIENCE = 60  # seconds


class CertifiedProvider:
    """port: of its own, on loopback. Ends with the process when closed."""

    def __init__(self, port: int, app: str) -> None:
        installed(HERE)
        self.issuer = f"http://127.0.0.1:{port}"
        settings = {"port": port, "app": app, "client_id": CLIENT_ID, "client_secret": CLIENT_SECRET}
        self._process = subprocess.Popen([NODE, "provider.mjs", json.dumps(settings)], cwd=HERE)
        ends = time.monotonic() + PATIENCE
        while True:
            with contextlib.suppress(requests.ConnectionError):  # not listening yet
                self.told()
                break
            if self._process.poll() is not None or time.monotonic() > ends:
                raise RuntimeError("the provider did not start")
            time.sleep(0.1)

    def set_people(self, people: dict[str, Any]) -> None:
        """Have exactly these accounts, login -> claims. An account that is left out is disabled."""
        requests.put(f"{self.issuer}/door/people", json=people, timeout=5).raise_for_status()

    def told(self) -> list[list[str]]:
        """Whom it told the dashboard to sign out, and what came of it."""
        answers: list[list[str]] = requests.get(f"{self.issuer}/door/told", timeout=5).json()
        return answers

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._process.terminate()
        self._process.wait(PATIENCE)
