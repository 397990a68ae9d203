"""How fast the mirror reads and writes, beside whoever only reads and whoever only inserts: scripts/sync_scale.py."""

import json
import os
import sys

from scripts.bench import databases
from scripts.bench.site import Part
from scripts.bench.site import run as output

ORDERS = 20_000
READING, MOST_MEMORY = 0.6, 200  # of the bare client's rate; MB
WRITING = {"SQLite": 0.07, "PostgreSQL": 0.04}  # of executemany, of COPY


def run() -> Part:
    lines, missed = ["## The mirror", ""], []
    for engine, writing in WRITING.items():
        with databases.server() as server, databases.empty(server, engine) as url:
            printed = output(
                [sys.executable, "-m", "scripts.sync_scale", "--orders", str(ORDERS)],
                os.environ | {"DATABASE_URL": url},
            )
        *figures, last = printed.splitlines()
        lines += [f"{engine}, {ORDERS:,} orders:", "", *(f"- {line}" for line in figures), ""]
        told = json.loads(last)
        for what, least in (("sync_orders", READING), ("sync_orders --full", READING), ("written", writing)):
            if told[what] < least:
                missed.append(f"{engine}: {what}: {told[what]:.1%}, at least {least:.0%}")
        if told["memory"] > MOST_MEMORY:
            missed.append(f"{engine}: memory of a sync: {told['memory']} MB, at most {MOST_MEMORY}")
        print("\n".join(lines[-len(figures) - 3 :]), flush=True)
    return Part("\n".join(lines), missed)
