"""The first touch after a night: the database's server restarted, its files dropped from the page cache.

Each list and search is asked for once on cold files, some rounds of it, and then warm. The web server stands anew as
well, and has shown the static page before the clock starts: code and templates are loaded, the orders are not.
"""

import random
from dataclasses import replace

from scripts.bench import databases
from scripts.bench.pages import LISTS, SEARCHES, STATIC_SEARCH, Table, Visitor, measure
from scripts.bench.site import Part, Times, environment, served
from scripts.postgres import free_port

COLD, WARM = 5, 20  # rounds
LOADING = 10  # connections, so that each of the web server's processes gets some
MOST = 10.0  # of the warm p95
HEAD = f"""## First touch

{{size:,}} orders, all lists and searches, {COLD} rounds cold and {WARM} warm. The bar: p95 ≤ {MOST:g} × the warm one.

| | cold, median / p95 ms | warm, median / p95 ms | p95 ÷ p95 | slowest cold page, median |
|---|---|---|---|---|"""


def run() -> Part:
    size, missed = max(databases.SIZES), list[str]()
    lines = [HEAD.format(size=size)]
    for engine in databases.ENGINES:
        cold, warm, slowest = compared(engine, size)
        ratio = cold.p95 / warm.p95
        lines.append(f"| {engine} | {cold} | {warm} | {ratio:.1f} | {slowest} |")
        print(lines[-1], flush=True)
        if ratio > MOST:
            missed.append(f"{engine}, {size:,}: first touch / warm, p95: {ratio:.1f}, at most {MOST:g}")
    return Part("\n".join([*lines, ""]), missed)


def compared(engine: str, size: int) -> tuple[Times, Times, str]:
    """The answers of cold pages and of warm ones, and which cold page was the slowest."""
    port, draw = free_port(), random.Random(1)  # noqa: S311
    cold, warm = Table(), Table()
    with databases.server() as server:
        inside = environment(databases.orders(server, engine, size))
        visitor = Visitor(inside)
        with served(inside, port=port) as site:
            static = visitor.page(STATIC_SEARCH, f"{site}/bench/fifty/search/", 1)
            pages = [visitor.list(site, name, WARM) for name in LISTS]
            pages += [visitor.search(site, name, WARM) for name in SEARCHES]
            measure(pages, warm)
    for _ in range(COLD):
        databases.drop_from_page_cache()
        with databases.server() as server:
            inside = environment(databases.orders(server, engine, size))
            with served(inside, port=port):
                for _ in range(LOADING):
                    measure([static], Table())
                # In another order each time: who comes first reads what the others then find.
                for page in draw.sample(pages, len(pages)):
                    measure([replace(page, rounds=0)], cold, warm_up=False)
    slowest = max(cold, key=lambda each: cold[each].median)
    return together(cold), together(warm), f"{slowest}, {cold[slowest].median * 1000:.1f} ms"


def together(table: Table) -> Times:
    return Times([each for times in table.values() for each in times.seconds])
