"""`make simulate`: lives of the refund engine, on all cores. See tests/simulation.

python -m scripts.simulate --seeds 300 --from 1

A seed is the same life whatever the range it is part of: ranges that follow each other add up. The last line tells
how many seeds, refunds and deaths of a process there were, and what must be 0; the program then ends with 0.
"""

import argparse
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

BASE_DIR = Path(__file__).resolve().parent.parent
COUNTED = ("twice", "lost", "over", "stuck")
PROGRESS_SECONDS = 10.0

type Told = dict[str, Any]


class Totals:
    """What all lives came to."""

    def __init__(self) -> None:
        self.seeds = self.refunds = self.crashes = 0
        self.violations: Counter[str] = Counter()
        self.states: Counter[str] = Counter()
        self.counts: dict[str, Counter[str]] = {}
        self.settled_after: list[float] = []

    def add(self, life: Told) -> None:
        self.seeds += 1
        self.refunds += len(life["states"])
        self.states.update(life["states"])
        # A life ends at its first step that is wrong, which may be wrong in several ways.
        self.violations.update({kind for kind, _text in life["violations"]})
        self.settled_after += life["settled_after"]
        for what, which, count in life["counts"]:
            self.counts.setdefault(what, Counter())[which] += count
            self.crashes += count if what == "crash" else 0

    def statistics(self) -> str:
        lines = [f"refunds by final state: {_listed(self.states)}"]
        lines += [f"{what}: {_listed(counts)}" for what, counts in sorted(self.counts.items())]
        if times := sorted(self.settled_after):
            p50, p99 = (times[int(len(times) * share)] / 60 for share in (0.5, 0.99))
            lines.append(f"from unknown to settled while all is up: p50 {p50:.1f} min, p99 {p99:.1f} min")
        if self.violations["defect"]:
            lines.append(f"defects: {self.violations['defect']} lives met an error that nobody expects")
        return "\n".join(lines)

    def last_line(self) -> str:
        wrong = " ".join(f"{kind}={self.violations[kind]}" for kind in COUNTED)
        return f"seeds={self.seeds} refunds={self.refunds} crashes={self.crashes} {wrong}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.most_common())


def report(life: Told) -> str:
    """A life that went wrong: how, what came before, and how to live it again."""
    lines = [f"seed {life['seed']}:"]
    for moment, actor, event in life["journal"]:
        lines.append(
            f"  {datetime.fromtimestamp(moment, tz=UTC):%d %H:%M:%S.%f}  {actor:<16}  {event.rstrip()}"
        )
    lines += [f"  {kind.upper()}: {text}" for kind, text in life["violations"]]
    lines.append(f"  again: make simulate SEEDS=1 FROM={life['seed']}")
    return "\n".join(lines)


def live(first: int, seeds: int, step: int, told: queue.Queue[Told | int]) -> None:
    """Have one process live every `step`-th seed; put each life, and at last the process's exit code, into `told`."""
    command = [sys.executable, "-m", "tests.simulation", str(first), str(seeds), str(step)]
    with subprocess.Popen(command, cwd=BASE_DIR, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            told.put(json.loads(line))
    told.put(process.returncode)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make simulate", description=__doc__)
    parser.add_argument("--seeds", type=int, default=300)
    parser.add_argument("--from", type=int, default=1, dest="first")
    chosen = parser.parse_args()

    processes = max(1, min(os.cpu_count() or 1, chosen.seeds))
    told: queue.Queue[Told | int] = queue.Queue()
    for nth in range(processes):
        threading.Thread(
            target=live, args=(chosen.first + nth, chosen.seeds - nth, processes, told), daemon=True
        ).start()

    totals, ended, codes = Totals(), 0, []
    began = spoke = time.monotonic()
    while ended < processes:
        life = told.get()
        if isinstance(life, int):
            ended += 1
            codes.append(life)
            continue
        totals.add(life)
        if life["violations"]:
            print(report(life), flush=True)
        if time.monotonic() - spoke > PROGRESS_SECONDS:
            spoke = time.monotonic()
            rate = totals.seeds / (spoke - began)
            print(f"{totals.seeds} of {chosen.seeds} seeds, {rate:.1f} a second", flush=True)
    print(totals.statistics())
    broke = any(codes) or totals.seeds != chosen.seeds
    if broke:
        print(f"the simulation itself broke off: exit codes {codes}")
    print(totals.last_line())
    return 1 if broke or totals.violations else 0


if __name__ == "__main__":
    sys.exit(main())
