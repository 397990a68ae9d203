"""Whether searches find what the rules promise, nothing else, in order: against a look at every row."""

import json
import os
import random

import django

from scripts.bench import databases
from scripts.bench.site import PYTHON, Part, environment
from scripts.bench.site import run as output

ORDERS = 100_000
QUERIES = int(os.environ.get("BENCH_QUERIES", "10000"))


def run() -> Part:
    """Ask the queries of both databases."""
    lines, missed = ["## Recall", ""], []
    for engine in databases.ENGINES:
        with databases.server() as server:
            inside = environment(databases.orders(server, engine, ORDERS))
            told = json.loads(output([PYTHON, "-m", "scripts.bench.recall"], inside))
        lines.append(
            f"{engine}: {QUERIES:,} drawn queries on {ORDERS:,} orders, two pages of 50 each: "
            f"{told['wrong']} wrong, {told['partial']} said that they were partial."
        )
        print(lines[-1], flush=True)
        if told["wrong"]:
            missed.append(
                f"{engine}: {told['wrong']} of {QUERIES:,} searches differ from a look at every row"
            )
    return Part("\n".join([*lines, ""]), missed)


def main() -> None:
    django.setup()
    from refunds.models import Order
    from tests.plain_search import Plain, draw_query, is_right

    rows = list(Order.objects.exclude(status__in=Order.UNPAID))
    plain, draw = Plain(rows), random.Random(20261123)  # noqa: S311
    told = {"wrong": 0, "partial": 0}
    for _ in range(QUERIES):
        right, partial = is_right(plain, draw_query(draw, rows), 50)
        told["wrong"] += not right
        told["partial"] += partial
    print(json.dumps(told))


if __name__ == "__main__":
    main()
