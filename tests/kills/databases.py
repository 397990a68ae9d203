"""The two databases as a machine's mishaps meet them: stopped at once, started again, copied back."""

import os
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

import psycopg

from scripts import postgres
from scripts.parents import end_with_parent


class Database(Protocol):
    vendor: str
    url: str

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        """What a SELECT finds, told by nothing of the product. Placeholders are %s."""

    def save(self) -> None:
        """Copy it. Nobody may be using it."""

    def restore(self) -> None:
        """Put the copy in its place. Nobody may be using it."""


class SQLite:
    vendor = "sqlite"

    def __init__(self, home: Path) -> None:
        self._file = home / "ledger.sqlite3"
        self.url = f"sqlite:///{self._file}"

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with closing(sqlite3.connect(self._file, timeout=20)) as connection:
            connection.row_factory = sqlite3.Row
            plain = [value.hex if isinstance(value, uuid.UUID) else value for value in values]
            return [dict(row) for row in connection.execute(statement.replace("%s", "?"), plain)]

    def save(self) -> None:
        with closing(sqlite3.connect(self._file)) as connection:
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        shutil.copy(self._file, self._file.with_suffix(".copy"))

    def restore(self) -> None:
        for beside in ("-wal", "-shm"):
            Path(f"{self._file}{beside}").unlink(missing_ok=True)
        shutil.copy(self._file.with_suffix(".copy"), self._file)


class PostgreSQL:
    """A server of its own, always on the same port."""

    vendor = "postgresql"

    def __init__(self, home: Path) -> None:
        where = postgres.programs()
        if where is None:
            raise postgres.PostgresError("The PostgreSQL server (initdb, postgres) is not installed.")
        self._home, self._where, self._who = home, where, postgres.account()
        if self._who:
            shutil.chown(home, self._who["user"], self._who["group"])
        password = uuid.uuid4().hex
        postgres.initialise(where, home, password, self._who)
        self._port = postgres.free_port()
        self.url = f"postgres://refunds:{password}@127.0.0.1:{self._port}/postgres"
        self._process: subprocess.Popen[Any] | None = None
        self.start()

    def start(self) -> None:
        command = [str(self._where / "postgres"), "-D", str(self._home / "data"), "-k", str(self._home)]
        command += ["-h", "127.0.0.1", "-p", str(self._port), "-c", "fsync=off", "-c", "max_connections=200"]
        with (self._home / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd=self._home,
                stdout=log,
                stderr=log,
                env=postgres.environment(),
                start_new_session=True,
                preexec_fn=lambda: end_with_parent(signal.SIGQUIT),  # noqa: PLW1509  only from the main thread
                **self._who,
            )
        postgres.wait_until_ready(self._process, self._home, self._port)

    def stop(self, mode: str) -> None:
        """`pg_ctl stop -m`: "immediate" aborts all, as a crash does; "fast" is orderly."""
        command = [str(self._where / "pg_ctl"), "stop", "-D", str(self._home / "data"), "-m", mode]
        subprocess.run(command, check=True, capture_output=True, cwd=self._home, **self._who)
        assert self._process is not None
        self._process.wait(60)

    def crash(self) -> None:
        """SIGKILL to all of it: to each of its processes, since they are groups of their own."""
        assert self._process is not None
        pid = self._process.pid
        # Those that a postmaster leaves behind end when they notice; while one is busy, no other can be started.
        os.kill(pid, signal.SIGSTOP)  # it starts no further one meanwhile
        children = list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))
        for each in (*children, pid):
            os.kill(each, signal.SIGKILL)
        self._process.wait(60)
        while any(map(_runs, children)):
            time.sleep(0.01)

    def kill(self) -> None:
        """SIGKILL to all of it, and a new start: only from the main thread."""
        self.crash()
        self.start()

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        with psycopg.connect(self.url.replace("postgres://", "postgresql://")) as connection:
            cursor = connection.cursor(row_factory=psycopg.rows.dict_row)
            return cursor.execute(statement.encode(), values).fetchall()

    def save(self) -> None:
        self.stop("fast")
        copy = self._home / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        subprocess.run(["cp", "-a", str(self._home / "data"), str(copy)], check=True)
        self.start()

    def restore(self) -> None:
        self.stop("fast")
        shutil.rmtree(self._home / "data")
        subprocess.run(["cp", "-a", str(self._home / "copy"), str(self._home / "data")], check=True)
        self.start()

    def close(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(60)


@contextmanager
def database(vendor: str, home: Path) -> Iterator[Database]:
    """An empty database for as long as this lasts."""
    if vendor == "sqlite":
        yield SQLite(home)
        return
    # Not below `home`: the account that root lends PostgreSQL may not enter there.
    place = Path(tempfile.mkdtemp(prefix="refund-dashboard-kills-"))
    try:
        with closing(PostgreSQL(place)) as server:
            yield server
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _runs(pid: int) -> bool:
    """Whether the process is there, and not only its number, for a parent that has not asked."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
