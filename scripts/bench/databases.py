"""Where the data sets stand: SQLite files and a PostgreSQL server's directory below .state/bench, built once."""

import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psycopg

from scripts import postgres
from scripts.bench.site import HOME, PYTHON, ROOT, environment, run

ENGINES = os.environ.get("BENCH_ENGINES", "SQLite PostgreSQL").split()
SIZES = [int(size) for size in os.environ.get("BENCH_ORDERS", "10000 1000000").replace(",", " ").split()]
MADE_OF = ("refunds/migrations", "refunds/folding.py", "refunds/variants.py", "refunds/fragments.py",
           "refunds/sandbox/names.py", "scripts/bench/data.py")  # fmt: skip


@contextlib.contextmanager
def server(*, durable: bool = False) -> Iterator[str]:
    """The bench's own PostgreSQL server, whose data stays; gives the URL of its databases, without a name.

    durable: what is committed is on the disk, as in production.
    """
    with postgres.running(*_place(), settings=() if durable else postgres.NOT_DURABLE) as port:
        yield f"postgres://refunds:bench@127.0.0.1:{port}/"


def _place() -> tuple[Path, Path, dict[str, Any]]:
    """PostgreSQL's programs, the server's directory, made where it is not there, and whom it runs as."""
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
    return where, home, who


def orders(server_url: str, engine: str, count: int) -> str:
    """The URL of a data set of so many orders, made where it is not there."""
    command = [PYTHON, "-m", "scripts.bench.data", str(count)]
    return data_set(
        server_url, engine, f"orders-{count}", MADE_OF, lambda url: run(command, environment(url))
    )


def data_set(
    server_url: str, engine: str, name: str, made_of: Sequence[str], build: Callable[[str], object]
) -> str:
    """The URL of a data set, which `build` fills where it is not there, or where what it is made of has changed."""
    name, stamp = f"{name}-", _stamp(made_of)
    if engine == "SQLite":
        HOME.mkdir(parents=True, exist_ok=True)
        file, building = HOME / f"{name}{stamp}.sqlite3", HOME / "building.sqlite3"
        if not file.exists():
            for old in (*HOME.glob(f"{name}*"), *HOME.glob(f"{building.name}*")):
                old.unlink()
            build(f"sqlite:///{building}")
            building.rename(file)
        return f"sqlite:///{file}"
    with psycopg.connect(f"{server_url}postgres", autocommit=True) as connection:
        names = [each for (each,) in connection.execute("SELECT datname FROM pg_database")]
        if f"{name}{stamp}" not in names:
            for old in names:
                if old == "building" or old.startswith(name):
                    connection.execute(f'DROP DATABASE "{old}"')
            connection.execute("CREATE DATABASE building")
            build(f"{server_url}building")
            connection.execute(f'ALTER DATABASE building RENAME TO "{name}{stamp}"')
    return f"{server_url}{name}{stamp}"


def _stamp(made_of: Sequence[str]) -> str:
    """Another one when any of these files, or files of these directories, is another."""
    files = [file for each in made_of for file in (sorted((ROOT / each).glob("*.py")) or [ROOT / each])]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]


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


def connect(url: str) -> sqlite3.Connection | psycopg.Connection[Any]:
    """The driver's own connection, each statement committed, as durable as the product's."""
    if not url.startswith("sqlite:///"):
        return psycopg.connect(url, autocommit=True)
    connection = sqlite3.connect(url.removeprefix("sqlite:///"), timeout=20, isolation_level=None)
    connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;")
    return connection


def drop_from_page_cache() -> None:
    """Have Linux forget the files of all data sets, so that they are read from the disk. No server may run."""
    os.sync()  # what is not written yet would stay
    for file in (*HOME.glob("*.sqlite3*"), *(_place()[1] / "data").rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
