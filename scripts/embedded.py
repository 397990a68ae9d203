"""The environment of the embedded default: SQLite, the sandbox Smartpay and the loopback identity provider.

`make run` runs in it; manage.py reads it from .state/embedded.env. What the environment or `.env` says wins, and
what they leave empty counts as not said.
"""

import os
import secrets
import string
import sys
from pathlib import Path

import environ

from scripts.identity_provider import CLIENT_ID, CLIENT_SECRET

BASE_DIR = Path(__file__).resolve().parent.parent
FILE = BASE_DIR / ".state" / "embedded.env"
PORTS = {"PORT": 8000, "SANDBOX_PORT": 8001, "IDENTITY_PORT": 8002}


def enter() -> tuple[set[str], dict[str, str]]:
    """Complete os.environ; gives the processes that stand in for the real ones, and what was added."""
    environ.Env.read_env(BASE_DIR / ".env")
    added = {
        "SECRET_KEY": kept("SECRET_KEY") or secrets.token_urlsafe(50),  # so that a restart signs nobody out
        "HTTPS": "False",
        "ALLOWED_HOSTS": "127.0.0.1,localhost",
        "STATE_DIR": str(BASE_DIR / ".state"),
    }
    ports = choose_ports()
    stand_ins = set()
    # Never half of a pair: a real key must not meet the sandbox, nor a real provider the demo's client.
    if not any(map(os.environ.get, ("SMARTPAY_API_URL", "SMARTPAY_SECRET_KEY"))):
        stand_ins.add("sandbox")
        added["SMARTPAY_API_URL"] = f"http://127.0.0.1:{ports['SANDBOX_PORT']}/v1"
        added["SMARTPAY_SECRET_KEY"] = "sk_test_sandbox"  # noqa: S105  the sandbox takes any
        added["SMARTPAY_WEBHOOK_SECRETS"] = kept("SMARTPAY_WEBHOOK_SECRETS") or signing_secret()
    if not any(map(os.environ.get, ("OIDC_ISSUER", "OIDC_CLIENT_ID", "OIDC_CLIENT_SECRET"))):
        stand_ins.add("identity")
        added["OIDC_ISSUER"] = f"http://127.0.0.1:{ports['IDENTITY_PORT']}"
        added["OIDC_CLIENT_ID"] = CLIENT_ID
        added["OIDC_CLIENT_SECRET"] = CLIENT_SECRET

    added = {name: value for name, value in added.items() if not os.environ.get(name)}
    os.environ.update(added)
    os.environ.update({name: str(port) for name, port in ports.items()})
    Path(os.environ["STATE_DIR"]).mkdir(mode=0o700, parents=True, exist_ok=True)
    return stand_ins, added


def choose_ports() -> dict[str, int]:
    """PORT moves the other two along; each can be moved alone."""
    moved, ports = 0, {}
    for name, usual in PORTS.items():
        text = os.environ.get(name) or str(usual + moved)
        if not (text.isascii() and text.isdecimal() and 0 < int(text) < 2**16):
            sys.exit(f"{name} is a port's number, not {text!r}.")
        ports[name] = int(text)
        moved = ports["PORT"] - PORTS["PORT"]
    return ports


def kept(wanted: str) -> str | None:
    """What was written the last time."""
    if FILE.exists():
        for line in FILE.read_text().splitlines():
            name, _, value = line.partition("=")
            if name == wanted:
                return value
    return None


def signing_secret() -> str:
    """Base62, as Smartpay's are."""
    return secrets.choice("123456789") + "".join(secrets.choice(string.ascii_letters) for _ in range(39))


def save(added: dict[str, str]) -> None:
    """For manage.py."""
    FILE.parent.mkdir(mode=0o700, exist_ok=True)
    lines = [f"{name}={value}\n" for name, value in added.items()]
    with open(os.open(FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.writelines(["# Written by scripts/embedded.py, anew at each set-up and `make run`.\n", *lines])


if __name__ == "__main__":
    save(enter()[1])
