"""The restore drill, with real processes: dump, refund on, lose the database, restore, reconcile, go on.

    python -m scripts.restore_drill

It takes a PostgreSQL, a sandbox Smartpay, the site and a worker of its own, and touches nothing else. The steps between
the dump and the first new refund are those of docs/operations.md, "Back up, restore". Ends with 1 where the missing
refunds are not exactly those that reconcile finds, where the ledger is not what it was, or where anything was sent.
"""

import csv
import io
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import psycopg

from scripts import postgres
from tests.kills.databases import Database, database
from tests.kills.world import World
from tests.sandbox import ROOT

FACTS = "id, payment_id, amount, currency, state, smartpay_id"
BEFORE, AFTER = 4, 6  # refunds in the dump, and after it


@dataclass(frozen=True)
class Drill:
    """lost: what only Smartpay still had. found: what reconcile said so of. sent: refund requests before resumption."""

    lost: set[UUID]
    found: set[UUID]
    facts_are_back: bool
    sent: int
    goes_on: bool
    seconds: float  # from the restored database to a compared ledger

    @property
    def passed(self) -> bool:
        return (
            self.lost == self.found
            and len(self.lost) == AFTER
            and self.facts_are_back
            and not self.sent
            and self.goes_on
        )

    def __str__(self) -> str:
        return (
            f"lost={len(self.lost)} found={len(self.found)} exactly={self.lost == self.found} "
            f"facts_are_back={self.facts_are_back} sent={self.sent} goes_on={self.goes_on} seconds={self.seconds:.1f}"
        )


def drill(home: Path) -> Drill:
    with database("postgresql", home) as place, World(home, place, workers=1, people=2) as world:
        for _ in range(BEFORE):
            _refund(world)
        world.stop()
        dump = home / "refunds.dump"
        _program("pg_dump", "--format=custom", f"--file={dump}", place.url)
        kept = _ledger(world)
        world.start()

        for _ in range(AFTER):
            _refund(world)
        world.stop()
        whole = _ledger(world)
        _lose(place)
        _program("pg_restore", "--exit-on-error", f"--dbname={place.url}", str(dump))
        if _ledger(world) != kept:
            raise RuntimeError("the dump does not hold what it was made of")

        world.sandbox.forget_requests()
        world.manage("sends", "off", "--reason", "restored")
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "manage.py", "reconcile", "--csv", "-"],
            cwd=ROOT, env=world.environment, check=False, capture_output=True, text=True,
        )  # fmt: skip
        seconds = time.monotonic() - began
        rows = list(csv.DictReader(io.StringIO(done.stdout.removeprefix("\ufeff"))))
        found = {UUID(row["refund"]) for row in rows if row["repaired"]}
        if done.returncode != 1:
            raise RuntimeError(f"reconcile ended with {done.returncode}: {done.stderr}")
        facts_are_back = _ledger(world) == whole

        world.start()
        world.pass_three_quarters()
        world.until(
            lambda: "sends: on" in world.manage("sends", "on", "--reason", "drill", check=False),
            "sending goes on",
        )
        sent = len(world.sandbox.requests("POST", "/v1/refunds"))
        new = _refund(world)
        return Drill(
            lost=set(whole) - set(kept),
            found=found,
            facts_are_back=facts_are_back,
            sent=sent,
            goes_on=world.refund(new)["state"] == "succeeded",
            seconds=seconds,
        )


def _refund(world: World) -> UUID:
    with world.payment() as order:
        made = world.people[0].refund(order["order"], order["payments"][0]["id"], 7)
    world.until_settled(made)
    return made


def _ledger(world: World) -> dict[UUID, dict[str, Any]]:
    return {row["id"]: row for row in world.database.rows(f"SELECT {FACTS} FROM refunds_refund")}  # noqa: S608


def _lose(place: Database) -> None:
    parts = urlsplit(place.url.replace("postgres://", "postgresql://"))
    elsewhere = urlunsplit(parts._replace(path="/template1"))
    name = psycopg.sql.Identifier(parts.path.lstrip("/"))
    with psycopg.connect(elsewhere, autocommit=True) as connection:
        connection.execute(psycopg.sql.SQL("DROP DATABASE {} WITH (FORCE)").format(name))
        connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(name))


def _program(name: str, *arguments: str) -> None:
    where = postgres.programs()
    if where is None:
        raise postgres.PostgresError("PostgreSQL is not installed.")
    subprocess.run([str(where / name), *arguments], check=True, capture_output=True)


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="refund-dashboard-drill-") as home:
        result = drill(Path(home))
    print(result)
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
