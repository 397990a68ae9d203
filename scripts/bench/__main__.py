"""`make bench`: the product measured beside a floor, and beside what people use instead.

    python -m scripts.bench              every part; writes docs/performance.md
    python -m scripts.bench recall lag   these parts alone; writes nothing

Read the ratios, not the times: what is compared was asked for in turns, in one run. Ends with the number of bars that
were missed, and fails unless it is 0.
"""

import os
import platform
import sys
from datetime import UTC, datetime

from scripts.bench import first_touch, lag, load, mirroring, oscar, pages, recall, refunding
from scripts.bench.site import ROOT, collect_static

DOCUMENT = ROOT / "docs" / "performance.md"
PARTS = {
    "pages": pages.run,
    "oscar": oscar.run,
    "first_touch": first_touch.run,
    "refunding": refunding.run,
    "lag": lag.run,
    "mirroring": mirroring.run,
    "recall": recall.run,
    "load": load.run,
}


def main() -> int:
    wanted = sys.argv[1:]
    if unknown := [name for name in wanted if name not in PARTS]:
        sys.exit(f"bench: {', '.join(unknown)}: parts are {', '.join(PARTS)}.")
    collect_static()
    parts = [PARTS[name]() for name in wanted or PARTS]
    missed = [each for part in parts for each in part.missed]
    if not wanted:
        DOCUMENT.write_text(
            "\n".join(
                [
                    HEAD.format(
                        today=datetime.now(tz=UTC).date(),
                        machine=f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
                        rounds=pages.ROUNDS,
                        peer_rounds=pages.PEER_ROUNDS,
                        warm_up=pages.WARM_UP,
                    ),
                    "## Bars missed\n",
                    *(f"- {each}" for each in missed or ["none"]),
                    "",
                    *(part.text for part in parts),
                ]
            )
        )
    for each in missed:
        print(f"missed: {each}")
    print(f"bars missed: {len(missed)}")
    return bool(missed)


HEAD = """# Performance

Written by `make bench` on {today}; machine: {machine}. Read ratios, not times: all rows of a table were asked for in
turns, over HTTP, of the web server of `deploy/`, {rounds} times each, after {warm_up} times to warm up, some four for
each of its 16 threads ({peer_rounds} times the admin, after one). What each page is measured against:

- **empty**: a view that answers nothing, behind the same middleware, sign-in and limits, with the same audit entry;
- **static**: the list's template over 50 rows at hand, with the same audit entry;
- **admin**: Django's admin over the same table: the columns that our list shows, a search over what ours looks in, the
  IDs of payments and refunds included.

The bars, at the largest number of orders: every list and search ≤ 1.3 × the static page and ≤ 3.5 × the empty view,
its p95 ≤ 8 × the empty view's median; ≤ 1.25 × from the smallest number of orders on, against the static page, where
both fill the page; ≥ 40 × faster than the admin in every search that it answers; on the first page of the list ≥ 5 ×
on PostgreSQL and ≥ 4 × on SQLite. PostgreSQL runs without fsync, which makes the empty view quick and the bars hard.
The other parts say their bars themselves. What ten million orders cost is in
[performance-10m.md](performance-10m.md).
"""

if __name__ == "__main__":
    sys.exit(main())
