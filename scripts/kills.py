"""`make kills`: the product killed for minutes on end, then Smartpay and the ledger held against each other.

On PostgreSQL and on SQLite: refunds asked for over HTTP while web and workers die of SIGKILL at named points and at
none in particular, and Smartpay misbehaves; then a crowd on few payments; then a file of KILLS_LINES lines (10,000);
then, with the settings of production, ten deaths whose recovery is timed. KILLS_PG and KILLS_SQLITE say how many deaths
(200 and 50). Ends with 1 where a refund was done twice, lost, booked wrongly or is stuck, or where recovery took longer
than PROMISED.
"""

import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kills.crowd import Crowd, crowd
from tests.kills.databases import database
from tests.kills.files import refund_by_file
from tests.kills.lives import HEARD, PLANS, Lives, Reaper
from tests.kills.world import QUICK, Tally, World

PROMISED = 150  # seconds until a refund whose process died is settled, with the settings of production
TEN = (
    "requested.uncommitted", "sending.uncommitted", "attempt.begun", "mark.half", "send.first_byte", "send.half",
    "send.unanswered", "answer.unbooked", "succeeded.uncommitted", "mirrored.uncommitted",
)  # fmt: skip
PRODUCTION: dict[str, str] = {}  # every lease, deadline and pause as it is by default


def main() -> int:
    wanted = {
        "postgresql": int(os.environ.get("KILLS_PG", "200")),
        "sqlite": int(os.environ.get("KILLS_SQLITE", "50")),
    }
    began = time.monotonic()
    total, lines = Tally(), []

    def keep(what: str, tally: Tally, about: object) -> None:
        nonlocal total
        total += tally
        lines.append(f"{what:<22} {tally}  {about}")
        print(f"  {lines[-1]}", flush=True)

    for vendor, kills in wanted.items():
        if kills:
            tally = deaths(vendor, kills)
            keep(f"{vendor} deaths", tally, dict(tally.states))
    for vendor, kills in wanted.items():
        if kills:
            result = load(vendor)
            keep(f"{vendor} crowd", result.tally, result)
    for vendor, kills in wanted.items():
        if kills:
            tally = files(vendor)
            keep(f"{vendor} file", tally, dict(tally.states))
    tally = production()
    keep("postgresql production", tally, "")
    if tally.slowest_recovery > PROMISED:
        total.add("stuck", f"recovered after {tally.slowest_recovery:.0f} s")

    print("\n=== what was died of ===")
    for step, times in sorted(total.deaths.items()):
        print(f"{times:5}  {step}")
    print("\n=== what came of it ===")
    print("\n".join([*lines, *total.faults, f"in {time.monotonic() - began:.0f} s"]))
    print(total)
    return not total.right


def deaths(vendor: str, kills: int) -> Tally:
    """Refunds that die on their way, until there were so many deaths."""
    print(f"{vendor}: {kills} deaths …", flush=True)
    with opened(vendor) as place, database(vendor, place.path) as server, World(place.path, server) as world:
        lives = Lives(world, seed=kills)

        def choose(rng: random.Random) -> Sequence[str] | None:
            return rng.choice((*PLANS, *HEARD)) if world.kills < kills else None

        with Reaper(world, every=5), Weather(world):
            lives.live(choose)
        return lives.tally()


def load(vendor: str) -> Crowd:
    """Twenty people, fifty refunds each, ten payments. Nobody dies."""
    print(f"{vendor}: a crowd …", flush=True)
    settings = PRODUCTION | {"REFUND_BACKOFF_SECONDS": "1"}  # who waits for another refund looks again soon
    with (
        opened(vendor) as place,
        database(vendor, place.path) as server,
        World(place.path, server, people=20, settings=settings) as world,
    ):
        result = crowd(world, each=50, payments=10, patience=600)
        if result.errors:
            result.tally.add("wrong", f"{result.errors} answers of 500 and above")
        return result


def files(vendor: str) -> Tally:
    """A file of 10,000 lines; twenty deaths at moments that nobody chose, one request in twenty meets a fault."""
    print(f"{vendor}: a file …", flush=True)
    with (
        opened(vendor) as place,
        database(vendor, place.path) as server,
        # Nobody touches the page for longer than a session may be idle.
        World(place.path, server, settings=QUICK | {"SSO_IDLE_SECONDS": "7200"}) as world,
    ):
        lines = int(os.environ.get("KILLS_LINES", "10000"))
        return refund_by_file(world, lines=lines, kills=20, every=20, patience=3600)


def production() -> Tally:
    """Ten deaths at ten points with the leases of production, and how long until each was settled."""
    print(f"{len(TEN)} deaths with the settings of production …", flush=True)
    with (
        opened("postgresql") as place,
        database("postgresql", place.path) as server,
        # A process for each: who dies takes nobody along.
        World(
            place.path,
            server,
            people=len(TEN),
            web=("--workers", str(len(TEN)), "--threads", "1"),
            settings=PRODUCTION,
        ) as world,
    ):
        lives = Lives(world)
        plans = [(f"web {point}",) for point in TEN]

        def choose(rng: random.Random) -> Sequence[str] | None:
            return plans.pop() if plans else None

        lives.live(choose, faults=False, patience=2 * PROMISED)
        return lives.tally()


class Weather:
    """Smartpay's ways change all the time: events lost, repeated, overtaking; payments that list no refunds."""

    def __init__(self, world: World) -> None:
        self._world, self._rng, self._ended = world, random.Random(2), threading.Event()  # noqa: S311  no secret
        self._thread = threading.Thread(target=self._change, daemon=True)

    def _change(self) -> None:
        rng = self._rng
        while not self._ended.wait(8):
            self._world.sandbox.switch(
                webhook_copies=rng.choice((0, 0, 1, 3)),
                webhook_shuffled=rng.random() < 0.5,
                payments_list_refunds=rng.random() < 0.8,
            )

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()


class opened:  # noqa: N801  a context manager that reads as a word
    """A directory for one world, gone afterwards."""

    def __init__(self, vendor: str) -> None:
        self._directory = tempfile.TemporaryDirectory(prefix=f"refund-dashboard-{vendor}-")
        self.path = Path(self._directory.name)

    def __enter__(self) -> "opened":
        return self

    def __exit__(self, *error: object) -> None:
        self._directory.cleanup()


if __name__ == "__main__":
    sys.exit(main())
