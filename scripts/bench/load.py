"""Operators at work: 1,000 people who read a page, think for five seconds and go on, beside one person alone.

    python -m scripts.bench load         (LOAD_OPERATORS="1000 200", LOAD_SECONDS=60, WEB_CONCURRENCY=2)

The web server is deploy/'s, with limits, trail and sessions as they are by default, on PostgreSQL. Whoever asks lives
on the same cores. Smartpay is nobody's: an order's page is the mirror's, so that no third party is measured. Part of
`make bench`.
"""

import asyncio
import json
import os
import random
import re
import statistics
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from scripts.bench import databases
from scripts.bench.site import PYTHON, Part, environment, served
from scripts.bench.site import run as output

OPERATORS = [int(number) for number in os.environ.get("LOAD_OPERATORS", "1000").split()]
SECONDS = float(os.environ.get("LOAD_SECONDS", "60"))
ORDERS = 10_000
THINKING = 5.0  # seconds on average, between an answer and the next request
ALONE = 25  # requests of each screen while nobody else is there
TYPED = ("田中", "佐藤", "tanaka1", "ﾀﾅｶ", "example.co.jp", "鈴木 翔太")
# How often each screen is asked for.
SCREENS = {"start": 1, "list": 3, "search": 4, "order": 6, "refund form": 2, "ledger": 1}


@dataclass
class Told:
    """seconds: of the answers, by screen. wrong: what else came, and how often."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    wrong: Counter[str] = field(default_factory=Counter)

    def p95(self, screen: str) -> float:
        return sorted(self.seconds[screen])[int(len(self.seconds[screen]) * 0.95)]


class Operator:
    def __init__(self, port: int, cookie: str, orders: list[str], number: int) -> None:
        self._port, self._cookies, self._orders = (
            port,
            {cookie.split("=", maxsplit=1)[0]: cookie.split("=")[1]},
            orders,
        )
        self._draw = random.Random(number)  # noqa: S311
        self._token = ""

    async def work(self, told: Told, until: float) -> None:
        await asyncio.sleep(self._draw.uniform(0, 2 * THINKING))
        while time.monotonic() < until:
            [screen] = self._draw.choices([*SCREENS], [*SCREENS.values()])
            await self.look(screen, told)
            await asyncio.sleep(self._draw.uniform(0, 2 * THINKING))

    async def look(self, screen: str, told: Told) -> None:
        began = time.monotonic()
        order = self._draw.choice(self._orders)
        match screen:
            case "start":
                status, text = await self._ask("GET", "/")
            case "list":
                status, text = await self._ask("GET", "/orders/")
            case "ledger":
                status, text = await self._ask("GET", "/refunds/")
            case "order":
                status, text = await self._ask("GET", f"/orders/{order}/")
            case "refund form":
                status, text = await self._ask("GET", f"/orders/{order}/refund/")
            case _:
                if not self._token:
                    _status, text = await self._ask("GET", "/orders/")
                    [self._token] = re.findall(r'name="csrfmiddlewaretoken" value="(\w+)"', text)[:1] or [""]
                    began = time.monotonic()
                typed = {"q": self._draw.choice(TYPED), "csrfmiddlewaretoken": self._token}
                status, text = await self._ask("POST", "/orders/search/", urlencode(typed))
                if status == 302:
                    status, text = await self._ask("GET", text)
        if status == 200:
            told.seconds[screen].append(time.monotonic() - began)
        else:
            told.wrong[f"{screen} {status}"] += 1

    async def _ask(self, method: str, path: str, body: str = "") -> tuple[int, str]:
        """The status, 0 for a connection that broke; and the page, or where it leads."""
        cookies = "; ".join(f"{name}={value}" for name, value in self._cookies.items())
        head = f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nCookie: {cookies}\r\n"
        if body:
            head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(body)}\r\n"
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            writer.write(f"{head}\r\n{body}".encode())
            answer = (await reader.read()).decode(errors="replace")
            writer.close()
        except OSError:
            return 0, ""
        headers, _, text = answer.partition("\r\n\r\n")
        for name, value in re.findall(r"(?im)^set-cookie: ([\w-]+)=([^;\r]*)", headers):
            self._cookies[name] = value
        if found := re.search(r"(?im)^location: (\S+)", headers):
            text = found[1]
        return int(headers[9:12] or 0), text


def found(inside: dict[str, str], count: int) -> tuple[list[str], list[str]]:
    """Cookies of so many people who are signed in, and orders to look at."""
    told = json.loads(output([PYTHON, "-m", "scripts.bench.people", str(count)], inside))
    return told["cookies"], told["orders"]


async def alone(operators: list[Operator]) -> Told:
    """One after the other, each of them once at each screen: a single person would meet the limit of a minute."""
    told = Told()
    for operator in operators[:ALONE]:
        for screen in SCREENS:
            await operator.look(screen, told)
    return told


async def crowd(operators: list[Operator]) -> Told:
    told = Told()
    until = time.monotonic() + SECONDS
    await asyncio.gather(*(operator.work(told, until) for operator in operators))
    return told


def run() -> Part:
    """A table for each number of operators; any error is a bar missed."""
    with databases.server() as server:
        return measured(databases.orders(server, "PostgreSQL", ORDERS))


def measured(url: str) -> Part:
    # The limits of a deployment: each of these people stays below them.
    inside = environment(
        url,
        DJANGO_SETTINGS_MODULE="dashboard.settings",
        SEARCHES_PER_HOUR="300",
        ORDERS_PER_HOUR="600",
        REFUND_FORMS_PER_HOUR="300",
    )
    cookies, orders = found(inside, max(*OPERATORS, ALONE))
    tables, wrong = ["## Operators at work", ""], []
    with served(inside) as site:
        operators = [
            Operator(urlsplit(site).port or 0, cookie, orders, number)
            for number, cookie in enumerate(cookies)
        ]
        asyncio.run(alone(operators))  # warms up
        for count in OPERATORS:
            idle, busy = asyncio.run(alone(operators)), asyncio.run(crowd(operators[:count]))
            tables.append(table(count, idle, busy))
            print(tables[-1], flush=True)
            if told := busy.wrong + idle.wrong:
                wrong.append(f"{count} operators: {dict(told)}")
    return Part("\n".join(tables), wrong)


def table(count: int, alone: Told, busy: Told) -> str:
    answers = sum(map(len, busy.seconds.values()))
    lines = [
        f"{count} operators, {answers / SECONDS:.0f} screens a second, errors {busy.wrong.total()}",
        "",
        "| screen | times | alone, p95 ms | busy, median ms | busy, p95 ms | p95 ÷ alone |",
        "|---|---|---|---|---|---|",
    ]
    for screen in filter(busy.seconds.get, SCREENS):
        median, slow, quiet = statistics.median(busy.seconds[screen]), busy.p95(screen), alone.p95(screen)
        figures = (f"{each * 1000:.0f}" for each in (quiet, median, slow))
        lines.append(
            f"| {screen} | {len(busy.seconds[screen])} | {' | '.join(figures)} | {slow / quiet:.1f} |"
        )
    return "\n".join([*lines, ""])
