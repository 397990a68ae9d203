"""A PostgreSQL server for as long as a command runs: `python -m scripts.postgres COMMAND …`

The command finds it in DATABASE_URL. The server listens on a free port of 127.0.0.1 with a password made for
this run, keeps its data in a temporary directory and is gone afterwards, directory and all.
`--where` prints the directory of PostgreSQL's programs, or ends with 1.
"""

import contextlib
import glob
import os
import pwd
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from scripts.parents import end_with_parent

PROGRAMS = (  # newest version last
    *sorted(glob.glob("/usr/lib/postgresql/*/bin"), key=lambda path: float(path.split("/")[4])),
    *sorted(glob.glob("/opt/homebrew/opt/postgresql@*/bin") + glob.glob("/usr/local/opt/postgresql@*/bin")),
    *glob.glob("/Applications/Postgres.app/Contents/Versions/latest/bin"),
)
NOT_DURABLE = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")  # a test's data may die with it


class PostgresError(Exception):
    """The server did not start; the message holds its own words."""


def programs() -> Path | None:
    """The directory with initdb and postgres, or None."""
    for directory in (*reversed(PROGRAMS), *os.environ.get("PATH", "").split(os.pathsep)):
        if all(os.access(Path(directory) / name, os.X_OK) for name in ("initdb", "postgres")):
            return Path(directory)
    return None


def account() -> dict[str, Any]:
    """Whom to run as: PostgreSQL refuses root, so root lends it an account that owns nothing else."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            person = pwd.getpwnam(name)
            return {"user": person.pw_uid, "group": person.pw_gid, "extra_groups": []}
    raise PostgresError("PostgreSQL does not run as root, and neither 'postgres' nor 'nobody' exists here.")


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Run a server; gives its DATABASE_URL."""
    where = programs()
    if where is None:
        raise PostgresError("The PostgreSQL server (initdb, postgres) is not installed.")
    # Not below the clone: that may be in a home directory which the lent account cannot enter.
    home = Path(tempfile.mkdtemp(prefix="refund-dashboard-postgres-"))
    try:
        who = account()
        if who:
            os.chown(home, who["user"], who["group"])
        password = secrets.token_urlsafe(16)
        initialise(where, home, password, who)
        with running(where, home, who) as port:
            yield f"postgres://refunds:{password}@127.0.0.1:{port}/postgres"
    finally:
        shutil.rmtree(home, ignore_errors=True)


def initialise(where: Path, home: Path, password: str, who: dict[str, Any]) -> None:
    (home / "password").touch(mode=0o644)
    (home / "password").write_text(password)  # in a directory that only its owner may enter
    command = [
        str(where / "initdb"),
        f"--pgdata={home / 'data'}",
        "--username=refunds",
        f"--pwfile={home / 'password'}",
    ]
    command += ["--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"]
    done = subprocess.run(
        command, check=False, cwd=home, capture_output=True, text=True, env=environment(), **who
    )
    if done.returncode:
        raise PostgresError(f"initdb: {done.stderr.strip() or done.stdout.strip()}")


@contextlib.contextmanager
def running(
    where: Path, home: Path, who: dict[str, Any], settings: Sequence[str] = NOT_DURABLE
) -> Iterator[int]:
    port = free_port()
    command = [
        str(where / "postgres"),
        "-D",
        str(home / "data"),
        "-k",
        str(home),
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
    ]
    for setting in settings:
        command += ["-c", setting]
    with (home / "log").open("wb") as log:
        # A session of its own: Ctrl-C ends the tests first, and they end the server.
        process = subprocess.Popen(
            command,
            cwd=home,
            stdout=log,
            stderr=log,
            env=environment(),
            start_new_session=True,
            preexec_fn=lambda: end_with_parent(signal.SIGQUIT),  # noqa: PLW1509  no threads here
            **who,
        )
    try:
        wait_until_ready(process, home, port)
        yield port
    finally:
        process.send_signal(signal.SIGQUIT)  # at once: nothing of it is kept
        process.wait(timeout=30)


def wait_until_ready(process: subprocess.Popen[str], home: Path, port: int) -> None:
    for _ in range(300):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            # The last line of postmaster.pid tells when it takes connections, not only listens.
            if "ready" in (home / "data" / "postmaster.pid").read_text().splitlines()[-1]:
                return
        if process.poll() is not None:
            break
        time.sleep(0.1)
    raise PostgresError(f"postgres: {(home / 'log').read_text(errors='replace').strip()}")


def environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("PG")} | {"LC_ALL": "C"}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def main() -> int:
    if sys.argv[1:] == ["--where"]:
        where = programs()
        print(where or "no PostgreSQL server found")
        return where is None
    if not sys.argv[1:]:
        sys.exit(__doc__)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with server() as url:
        return subprocess.run(sys.argv[1:], check=False, env=os.environ | {"DATABASE_URL": url}).returncode


if __name__ == "__main__":
    sys.exit(main())
