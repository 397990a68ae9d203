"""How fast the mirror reads and writes, beside whoever only reads and whoever only inserts: scripts/sync_scale.py."""

import json
import os
import sys

from scripts.bench import databases
from scripts.bench.site import Part
from scripts.bench.site import run as output

ORDERS, FAR_ORDERS = 60_000, 4_000
FAR = 0.1  # seconds before each answer, of a Smartpay beyond a network; told, without a bar
READING, MOST_MEMORY = 0.6, 200  # of the bare client's rate; MB
WRITING = {"SQLite": 0.07, "PostgreSQL": 0.04}  # of executemany, of COPY


def run() -> Part:
    lines, missed = ["## The mirror", ""], []
    for engine, writing in WRITING.items():
        *figures, last = scaled(engine, "--orders", str(ORDERS))
        lines += [f"{engine}, {ORDERS:,} orders:", "", *(f"- {line}" for line in figures), ""]
        *far, _last = scaled(engine, "--orders", str(FAR_ORDERS), "--written", "0", "--latency", str(FAR))
        lines += [
            f"{engine}, {FAR_ORDERS:,} orders, each answer {FAR:g} s later, as across a network:", "",
            *(f"- {line}" for line in far), "",
        ]  # fmt: skip
        told = json.loads(last)
        for what, least in (("sync_orders", READING), ("sync_orders --full", READING), ("written", writing)):
            if told[what] < least:
                missed.append(f"{engine}: {what}: {told[what]:.1%}, at least {least:.0%}")
        if told["memory"] > MOST_MEMORY:
            missed.append(f"{engine}: memory of a sync: {told['memory']} MB, at most {MOST_MEMORY}")
        print("\n".join([*figures, *far]), flush=True)
    return Part("\n".join(lines), missed)


def scaled(engine: str, *arguments: str) -> list[str]:
    """The lines that scripts/sync_scale.py prints."""
    with databases.server() as server, databases.empty(server, engine) as url:
        command = [sys.executable, "-m", "scripts.sync_scale", *arguments]
        return output(command, os.environ | {"DATABASE_URL": url}).splitlines()
