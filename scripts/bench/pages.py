"""Every list and search as a person asks for it, beside an empty view, a static page and Django's admin.

Everything of one table is asked in turns in one run, so that a busy machine is busy for all of it.
"""

import json
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

import requests
import urllib3

from scripts.bench import databases
from scripts.bench.databases import ENGINES, SIZES
from scripts.bench.site import PYTHON, Part, Times, environment, served
from scripts.bench.site import run as output

ROUNDS, PEER_ROUNDS = int(os.environ.get("BENCH_ROUNDS", "40")), 5
WARM_UP = (
    64  # rounds: four for each of the server's sixteen connections to PostgreSQL, which remember statements
)
TOO_LONG = 60  # seconds
MOST_PAGES = 50  # of a visitor

FLOOR, STATIC_LIST, STATIC_SEARCH = "empty view", "static 50 rows, list", "static 50 rows, search"
LISTS = {"list, first page": "", "list, deep page": "?page={deep}", "list, refunded": "?refund_status=full"}
SEARCHES = {
    "common family name": "田中",
    "given name": "翔太",
    "full name": "田中 翔太",
    "given and family name": "翔太田中",
    "rare family name": "勅使河原",
    "kana, half-width": "ﾀﾅｶ",
    "two characters across the names": "中健",
    "fragment of kana": "ナカケ",
    "frequent fragment of kana": "ナカ",
    "mail, whole": "{mail}",
    "mail, prefix": "tanaka1",
    "mail, domain": "example.co.jp",
    "reference": "{reference}",
    "beginning of an order ID": "{beginning}",
    "end of an order ID": "{tail}",
    "payment ID": "{payment}",
    "several words": "田中 example.co.jp",
    "no hit": "鳳凰院凶真",
}
PEER_SEARCHES = (
    "common family name",
    "full name",
    "rare family name",
    "mail, whole",
    "mail, prefix",
    "no hit",
)

Table = dict[str, Times]


@dataclass(frozen=True)
class Page:
    """An address in a session of its own: what one page leaves in its session does not slow another."""

    name: str
    url: str
    cookies: dict[str, str]
    rounds: int


def measure(pages: Sequence[Page], table: Table, *, warm_up: bool = True) -> None:
    """Ask for all pages in turns, their rounds and one more: the first, which only warms up or counts as well."""
    # Not requests: what it does for itself, an empty view has not done in the same time.
    with urllib3.PoolManager() as browser:
        for number in range(max(page.rounds for page in pages) + 1):
            for page in pages:
                if number > page.rounds:
                    continue
                cookies = {"Cookie": "; ".join(f"{name}={value}" for name, value in page.cookies.items())}
                began = time.perf_counter()
                answer = browser.request(
                    "GET", page.url, headers=cookies, timeout=10 * TOO_LONG, redirect=False, retries=False
                )
                took = time.perf_counter() - began
                if answer.status != 200:
                    sys.exit(f"bench: {page.name} was answered {answer.status}.")
                times = table.setdefault(page.name, Times())
                times.rows = answer.data.count(b"<tr>") - 1
                if number or not warm_up:
                    times.seconds.append(took)


class Visitor:
    """Somebody signed in at a data set, with a session for each page. door: what stands in it, see door.py."""

    def __init__(self, inside: dict[str, str]) -> None:
        self.door = json.loads(output([PYTHON, "-m", "scripts.bench.door", str(MOST_PAGES)], inside))
        self._sessions: list[str] = self.door.pop("sessions")
        self.posts = Times()

    def page(self, name: str, url: str, rounds: int = ROUNDS) -> Page:
        return Page(name, url, {self.door["cookie"]: self._sessions.pop()}, rounds)

    def list(self, site: str, name: str, rounds: int = ROUNDS) -> Page:
        return self.page(name, f"{site}/orders/{LISTS[name].format(**self.door)}", rounds)

    def search(self, site: str, name: str, rounds: int = ROUNDS) -> Page:
        """Type it into the box; the page is where that leads."""
        page = self.page(name, f"{site}/orders/search/", rounds)
        with requests.Session() as browser:
            browser.cookies.update(page.cookies)
            form = browser.get(f"{site}/orders/", timeout=TOO_LONG).text
            token = re.search(r'name="csrfmiddlewaretoken" value="(\w+)"', form)
            assert token  # noqa: S101
            data = {"q": SEARCHES[name].format(**self.door), "csrfmiddlewaretoken": token[1]}
            began = time.perf_counter()
            answer = browser.post(page.url, data, allow_redirects=False, timeout=TOO_LONG)
            self.posts.seconds.append(time.perf_counter() - began)
        return replace(page, url=site + answer.headers["Location"])


def ours(url: str) -> Table:
    """The product and Django's admin on a data set."""
    inside = environment(url)
    visitor = Visitor(inside)
    table: Table = {"a search's POST": visitor.posts}
    with served(inside) as site:
        order, admin = visitor.door["order"], f"{site}/bench/admin/refunds/order/"
        pages = [
            visitor.page(FLOOR, f"{site}/bench/floor/"),
            visitor.page(STATIC_LIST, f"{site}/bench/fifty/list/"),
            visitor.page(STATIC_SEARCH, f"{site}/bench/fifty/search/"),
            *(visitor.list(site, name) for name in LISTS),
            *(visitor.search(site, name) for name in SEARCHES),
            visitor.page("order", f"{site}/orders/{order}/"),
            visitor.page("refund form", f"{site}/orders/{order}/refund/"),
        ]
        measure([replace(page, rounds=WARM_UP) for page in pages], Table(), warm_up=False)
        pages.append(visitor.page("admin: list, first page", admin, PEER_ROUNDS))
        for name in PEER_SEARCHES:
            query = urlencode({"q": SEARCHES[name].format(**visitor.door)})
            pages.append(visitor.page(f"admin: {name}", f"{admin}?{query}", PEER_ROUNDS))
        measure(pages, table)
    return table


def run() -> Part:
    """All sizes on both databases."""
    tables: dict[tuple[str, int], Table] = {}
    with databases.server() as server:
        for size in SIZES:
            for engine in ENGINES:
                tables[engine, size] = ours(databases.orders(server, engine, size))
                print(written({(engine, size): tables[engine, size]}), flush=True)
    return Part(written(tables), misses(tables, max(SIZES)))


# --- Bars ---------------------------------------------------------------------------------------------------


def misses(tables: dict[tuple[str, int], Table], largest: int) -> list[str]:
    """Every bar that is not met, in words. See docs/performance.md for what they are."""
    missed = []

    def bar(what: str, value: float, limit: float, *, least: bool = False) -> None:
        if (value < limit) if least else (value > limit):
            missed.append(f"{what}: {value:.2f}, {'at least' if least else 'at most'} {limit:g}")

    for (engine, size), table in tables.items():
        if size != largest:
            continue
        where, small = f"{engine}, {size:,}", tables.get((engine, min(SIZES)))
        floor = table[FLOOR].median
        for name in (*LISTS, *SEARCHES):
            page = table[name]
            static = STATIC_SEARCH if name in SEARCHES else STATIC_LIST
            bar(f"{where}: {name} / static page", page.median / table[static].median, 1.3)
            bar(f"{where}: {name} / empty view", page.median / floor, 3.5)
            bar(f"{where}: {name} p95 / empty view", page.p95 / floor, 8)
            if small and small is not table and page.rows == small[name].rows == 50:
                growth = (page.median / table[static].median) / (small[name].median / small[static].median)
                bar(f"{where}: {name}, growth from {min(SIZES):,}", growth, 1.25)
        for name in ("list, first page", *PEER_SEARCHES):
            limit = 40 if name in SEARCHES else 5 if engine == "PostgreSQL" else 4
            faster = table[f"admin: {name}"].median / table[name].median
            bar(f"{where}: admin / ours, {name}", faster, limit, least=True)
    return missed


def written(tables: dict[tuple[str, int], Table]) -> str:
    """The tables in Markdown."""
    lines = []
    for (engine, size), table in tables.items():
        floor = table[FLOOR].median
        lines += [
            f"## {engine}, {size:,} orders",
            "",
            "| page | rows | median ms | p95 ms | ÷ empty | p95 ÷ empty | ÷ static | admin ÷ ours |",
            "|---|---|---|---|---|---|---|---|",
        ]
        for name, page in table.items():
            if ":" in name:
                continue
            static = table[STATIC_SEARCH if name in SEARCHES else STATIC_LIST].median
            theirs = table.get(f"admin: {name}")
            admin = f"{theirs.median / page.median:.0f}" if theirs else "–"
            shown = (
                page.rows if page.rows > 0 else "–",
                f"{page.median * 1000:.1f}",
                f"{page.p95 * 1000:.1f}",
            )
            ratios = (f"{page.median / floor:.2f}", f"{page.p95 / floor:.2f}", f"{page.median / static:.2f}")
            lines.append("| " + " | ".join(map(str, (name, *shown, *ratios, admin))) + " |")
        lines.append("")
    return "\n".join(lines)
