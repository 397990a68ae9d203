"""Where the data sets stand: SQLite files and a PostgreSQL server's directory below .state/bench, built once."""

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psycopg

from scripts import postgres

ROOT = Path(__file__).resolve().parent.parent.parent
HOME = ROOT / ".state" / "bench"


@dataclass(frozen=True)
class Part:
    """What one part of the bench says in Markdown, and the bars that it missed, in words."""

    text: str
    missed: list[str]


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The bench's own PostgreSQL server, whose data stays; gives the URL of its databases, without a name."""
    where = postgres.programs()
    if where is None:
        raise postgres.PostgresError("The PostgreSQL server (initdb, postgres) is not installed.")
    who = postgres.account()
    # The account that root lends it may not enter the clone.
    home = Path("/var/tmp/refund-dashboard-bench") if who else HOME / "postgres"  # noqa: S108  (data are drawn)
    if not (home / "data" / "PG_VERSION").exists():
        home.mkdir(parents=True, mode=0o700)
        if who:
            os.chown(home, who["user"], who["group"])
        postgres.initialise(where, home, "bench", who)
    with postgres.running(where, home, who) as port:
        yield f"postgres://refunds:bench@127.0.0.1:{port}/"


def sqlite(name: str, build: list[str], environment: dict[str, str]) -> str:
    """The URL of a data set, which the command makes where it is not there."""
    file = HOME / f"{name}.sqlite3"
    if not file.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        building = file.with_suffix(".building")
        for left in HOME.glob(f"{building.name}*"):
            left.unlink()
        run(build, environment | {"DATABASE_URL": f"sqlite:///{building}"})
        building.rename(file)
    return f"sqlite:///{file}"


def on_postgresql(server_url: str, name: str, build: list[str], environment: dict[str, str]) -> str:
    with psycopg.connect(f"{server_url}postgres", autocommit=True) as connection:
        names = {each for (each,) in connection.execute("SELECT datname FROM pg_database")}
        if name not in names:
            connection.execute("DROP DATABASE IF EXISTS building")
            connection.execute("CREATE DATABASE building")
            run(build, environment | {"DATABASE_URL": f"{server_url}building"})
            connection.execute(f'ALTER DATABASE building RENAME TO "{name}"')
    return f"{server_url}{name}"


@contextlib.contextmanager
def empty(server_url: str, engine: str) -> Iterator[str]:
    """The URL of a database with nothing in it, for once."""
    if engine == "SQLite":
        with tempfile.TemporaryDirectory() as home:
            yield f"sqlite:///{home}/empty.sqlite3"
        return
    with psycopg.connect(f"{server_url}postgres", autocommit=True) as connection:
        connection.execute("DROP DATABASE IF EXISTS empty")
        connection.execute("CREATE DATABASE empty")
        yield f"{server_url}empty"
        connection.execute("DROP DATABASE empty WITH (FORCE)")


def run(command: list[str], environment: dict[str, str]) -> str:
    """What the command prints; one that fails ends the bench."""
    done = subprocess.run(command, check=False, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        sys.exit(f"bench: {' '.join(command[:4])} failed.")
    return done.stdout
