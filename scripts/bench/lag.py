"""How soon the mirror holds a refund that was made elsewhere: told by its event, and where the event was lost.

The clock starts before Smartpay is asked to make the refund, and stops when the row is found in the database.
"""

import time
from collections.abc import Iterable
from contextlib import closing
from typing import Any

from scripts.bench import databases
from scripts.bench.site import Part, Times
from scripts.bench.world import World, world

EVENTS, LOST = 300, 5
EVERY = 0.1  # seconds between two events
LOOK = 0.005  # seconds between two looks into the database
PATIENCE = 180  # seconds
MOST = 2.0  # seconds, p99
HEAD = f"""## How far the mirror lags behind

{EVENTS} refunds made elsewhere, one each {EVERY:g} s: until the mirror holds them. Then {LOST} whose events are
lost. The bars: p99 ≤ {MOST:g} s, and the next sweep to begin reads the lost ones.

| | median s | p95 s | p99 s | longest s | lost: all held after s | sweeps begun until then |
|---|---|---|---|---|---|---|"""


def run() -> Part:
    lines = [HEAD]
    missed = []
    for engine in databases.ENGINES:
        with (
            world(engine, orders=3 * EVENTS) as there,
            closing(databases.connect(there.database)) as connection,
        ):
            payments = [
                payment["id"]
                for order in there.sandbox.find_all("refundable", limit=EVENTS + LOST, min_amount=3000)
                for payment in order["payments"]
            ]
            told = Times(heard(there, connection, payments[LOST : LOST + EVENTS]))
            lost, sweeps = unheard(there, connection, payments[:LOST])
        p99 = told.seconds[int(len(told.seconds) * 0.99)]
        figures = (told.median, told.p95, p99, told.seconds[-1])
        lines.append(
            f"| {engine} | {' | '.join(f'{each:.3f}' for each in figures)} | {lost:.0f} | {sweeps} |"
        )
        print(lines[-1], flush=True)
        if p99 > MOST:
            missed.append(f"{engine}: lag after an event, p99: {p99:.2f} s, at most {MOST:g} s")
        if sweeps > 1:
            missed.append(f"{engine}: lost events needed {sweeps} sweeps, at most 1")
    return Part("\n".join([*lines, ""]), missed)


def heard(there: World, connection: Any, payments: list[str]) -> list[float]:
    """Make a refund of each payment, one after the other; the seconds until the mirror held them, least first."""
    begun, seconds = dict[str, float](), list[float]()
    due = ends = time.monotonic()
    while payments or begun:
        now = time.monotonic()
        if payments and now >= due:
            begun[there.sandbox.refund_elsewhere(payments.pop(), 1000)["id"]] = now
            due, ends = now + EVERY, now + PATIENCE
        seconds += [time.monotonic() - begun.pop(each) for each in held(connection, begun)]
        wait(ends)
    return sorted(seconds)


def unheard(there: World, connection: Any, payments: list[str]) -> tuple[float, int]:
    """Lose the events of these refunds: the seconds until the mirror held all, and how many sweeps began until then."""
    there.sandbox.switch(webhook_copies=0)
    began = time.monotonic()
    refunds = [there.sandbox.refund_elsewhere(payment, 1000)["id"] for payment in payments]
    [(last,)] = connection.execute("SELECT coalesce(max(id), 0) FROM refunds_jobrun").fetchall()
    while len(held(connection, refunds)) < len(refunds):
        wait(began + PATIENCE)
    seconds = time.monotonic() - began
    sweeps = f"SELECT count(*) FROM refunds_jobrun WHERE job = 'sweep' AND id > {last}"  # noqa: S608
    [(begun,)] = connection.execute(sweeps).fetchall()
    return seconds, begun


def held(connection: Any, refunds: Iterable[str]) -> list[str]:
    ids = ", ".join(f"'{each}'" for each in refunds) or "''"
    rows = connection.execute(f"SELECT id FROM refunds_smartpayrefund WHERE id IN ({ids})")  # noqa: S608
    return [each for (each,) in rows.fetchall()]


def wait(ends: float) -> None:
    if time.monotonic() > ends:
        raise TimeoutError(f"The mirror does not hold what was made {PATIENCE} s ago.")
    time.sleep(LOOK)
