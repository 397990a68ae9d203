"""Operators at work: 1,000 people who read a page, think for five seconds and go on, beside one person alone.

    python -m scripts.bench.load         (LOAD_OPERATORS="1000 200", LOAD_SECONDS=60, WEB_CONCURRENCY=2)

The web server is deploy/'s, with limits, trail and sessions as they are by default, on PostgreSQL. Whoever asks lives
on the same cores. Smartpay is nobody's: an order's page is the mirror's, so that no third party is measured. Part of
`make bench`.
"""

import asyncio
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.parse
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import requests

from scripts.bench import databases
from scripts.bench.databases import ROOT, run
from scripts.parents import end_with_parent
from scripts.postgres import free_port

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
                status, text = await self._ask("POST", "/orders/search/", urllib.parse.urlencode(typed))
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


@contextmanager
def served(environment: dict[str, str]) -> Iterator[int]:
    """The web server of deploy/; its port."""
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "-c", "deploy/gunicorn.conf.py", "dashboard.wsgi"]
    command += ["--bind", f"127.0.0.1:{port}"]
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        preexec_fn=lambda: end_with_parent(signal.SIGTERM),  # noqa: PLW1509
    )
    try:
        while True:
            if process.poll() is not None:
                sys.exit("load: the server did not start.")
            try:
                requests.get(f"http://127.0.0.1:{port}/healthz", timeout=60)
                break
            except requests.ConnectionError:
                time.sleep(0.1)
        yield port
    finally:
        process.terminate()
        process.wait()


def found(environment: dict[str, str], count: int) -> tuple[list[str], list[str]]:
    """Cookies of so many people who are signed in, and orders to look at."""
    told = json.loads(run([sys.executable, "-m", "scripts.bench.people", str(count)], environment))
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


def measured(server: str, environment: dict[str, str]) -> list[str]:
    """Print a table for each number of operators; what went wrong, in words."""
    build = [sys.executable, "-m", "scripts.bench.data", str(ORDERS)]
    url = databases.on_postgresql(server, f"load-{ORDERS}", build, environment)
    # The limits of a deployment: each of these people stays below them.
    environment |= {
        "DATABASE_URL": url,
        "LOG_LEVEL": "WARNING",
        "DJANGO_SETTINGS_MODULE": "dashboard.settings",
    }
    environment |= {"SEARCHES_PER_HOUR": "300", "ORDERS_PER_HOUR": "600", "REFUND_FORMS_PER_HOUR": "300"}
    cookies, orders = found(environment, max(*OPERATORS, ALONE))
    wrong = []
    with served(environment) as port:
        operators = [Operator(port, cookie, orders, number) for number, cookie in enumerate(cookies)]
        asyncio.run(alone(operators))  # warms up
        for count in OPERATORS:
            idle, busy = asyncio.run(alone(operators)), asyncio.run(crowd(operators[:count]))
            print(table(count, idle, busy), flush=True)
            if told := busy.wrong + idle.wrong:
                wrong.append(f"{count} operators: {dict(told)}")
    return wrong


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


def main() -> int:
    from scripts.bench.__main__ import environment

    run(
        [sys.executable, "manage.py", "collectstatic", "--no-input", "-v", "0"],
        environment("sqlite://:memory:"),
    )
    with databases.server() as server:
        wrong = measured(server, environment(""))
    for each in wrong:
        print(each)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
