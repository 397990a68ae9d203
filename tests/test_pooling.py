"""PgBouncer between the product and PostgreSQL, from deploy/: a connection is another's after each transaction."""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from refunds.jobs import BY_NAME
from scripts import postgres
from tests.deployment import DEPLOY
from tests.kills.crowd import crowd
from tests.kills.databases import PostgreSQL, database
from tests.kills.files import refund_by_file
from tests.kills.world import QUICK, World
from tests.sandbox import ROOT

pytestmark = pytest.mark.postgresql
CONNECTIONS = 4  # for two web processes of eight threads and two workers
JOBS = "SELECT DISTINCT job FROM refunds_jobrun WHERE outcome = 'done'"
OTHERS = """
    SELECT pid FROM pg_stat_activity
    WHERE usename = 'refunds' AND backend_type = 'client backend' AND pid <> pg_backend_pid()
"""


class Pooled(PostgreSQL):
    """The server, reached through the pool; what the tests ask goes past it."""

    def __init__(self, server: PostgreSQL, url: str) -> None:
        self._server, self.url = server, url

    def rows(self, statement: str, *values: Any) -> list[dict[str, Any]]:
        return self._server.rows(statement, *values)


@contextmanager
def pool(server: PostgreSQL) -> Iterator[Pooled]:
    where, port, who = urlsplit(server.url), postgres.free_port(), postgres.account()
    home = Path(tempfile.mkdtemp(prefix="refund-dashboard-pool-"))
    text = (DEPLOY / "pgbouncer" / "refund-dashboard.ini").read_text()
    for old, new in {
        "refunds = host": "postgres = host",
        "port=5432 dbname=refunds": f"port={where.port} dbname=postgres",
        "listen_port = 6432": f"listen_port = {port}",
        "/etc/pgbouncer/userlist.txt": str(home / "userlist.txt"),
        "default_pool_size = 20": f"default_pool_size = {CONNECTIONS}",
    }.items():
        assert old in text, old
        text = text.replace(old, new)
    (home / "pool.ini").write_text(text)
    (home / "userlist.txt").write_text(f'"{where.username}" "{where.password}"\n')
    if who:
        for path in (home, *home.iterdir()):
            shutil.chown(path, who["user"], who["group"])
    program = shutil.which("pgbouncer", path=os.pathsep.join([os.environ["PATH"], "/usr/sbin"]))
    assert program, "pgbouncer is not installed"
    with (home / "log").open("wb") as log:
        process = subprocess.Popen([program, str(home / "pool.ini")], cwd=home, stdout=log, stderr=log, **who)
    try:
        yield Pooled(server, server.url.replace(f":{where.port}/", f":{port}/"))
    finally:
        process.terminate()
        process.wait(30)
        shutil.rmtree(home)


def test_product_works_where_each_transaction_has_another_connection(tmp_path: Path) -> None:
    with database("postgresql", tmp_path) as server:
        assert isinstance(server, PostgreSQL)
        told = QUICK | {"DATABASE_POOLED": "True"}
        with pool(server) as pooled, World(tmp_path, pooled, settings=told) as world:
            people = crowd(world, each=3, payments=6)
            file = refund_by_file(world, lines=6, kills=2, every=2, patience=120)
            world.until(
                lambda: {row["job"] for row in server.rows(JOBS)} == BY_NAME.keys(),
                "every job has ended well",
            )
            world.until(
                lambda: len(server.rows(OTHERS)) <= CONNECTIONS, "no more connections than the pool has"
            )

            assert people.tally.right, people.tally.faults
            assert file.right, file.faults
            assert "intact" in world.manage("verify_audit", "--no-head")


def test_site_does_not_start_where_it_is_not_told_of_the_pool(tmp_path: Path) -> None:
    with database("postgresql", tmp_path) as server:
        assert isinstance(server, PostgreSQL)
        with pool(server) as pooled:
            check = [sys.executable, "manage.py", "check"]
            direct, through = (
                subprocess.run(
                    check,
                    cwd=ROOT,
                    env=os.environ | {"DATABASE_URL": url},
                    capture_output=True,
                    text=True,
                    check=False,
                )
                for url in (server.url, pooled.url)
            )

    assert "E009" not in direct.stderr
    assert direct.returncode == 0
    assert "E009" in through.stderr
    assert through.returncode == 1
