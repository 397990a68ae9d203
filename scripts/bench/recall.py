"""Whether searches find what the rules promise, nothing else, in order: against a look at every row."""

import json
import os
import random
import sys

import django

from scripts.bench import databases
from scripts.bench.databases import Part

ORDERS = 100_000
QUERIES = 10_000


def run(server: str, environment: dict[str, str]) -> Part:
    """Ask the queries of both databases."""
    build = [sys.executable, "-m", "scripts.bench.data", str(ORDERS)]
    lines, missed = ["## Recall", ""], []
    for engine, url in (
        ("SQLite", databases.sqlite(f"orders-{ORDERS}", build, environment)),
        ("PostgreSQL", databases.on_postgresql(server, f"orders-{ORDERS}", build, environment)),
    ):
        inside = environment | {"DATABASE_URL": url}
        told = json.loads(databases.run([sys.executable, "-m", "scripts.bench.recall"], inside))
        lines.append(
            f"{engine}: {QUERIES:,} drawn queries on {ORDERS:,} orders, two pages of 50 each: "
            f"{told['wrong']} wrong, {told['partial']} said that they were partial."
        )
        print(lines[-1], flush=True)
        if told["wrong"]:
            missed.append(
                f"{engine}: {told['wrong']} of {QUERIES:,} searches differ from a look at every row"
            )
    return Part("\n".join(lines), missed)


def main() -> None:
    django.setup()
    from refunds.models import Order
    from tests.plain_search import Plain, draw_query, is_right

    rows = list(Order.objects.exclude(status__in=Order.UNPAID))
    plain, draw = Plain(rows), random.Random(20261123)  # noqa: S311
    told = {"wrong": 0, "partial": 0}
    for _ in range(int(os.environ.get("BENCH_QUERIES", QUERIES))):
        right, partial = is_right(plain, draw_query(draw, rows), 50)
        told["wrong"] += not right
        told["partial"] += partial
    print(json.dumps(told))


if __name__ == "__main__":
    main()
