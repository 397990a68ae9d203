"""What a refund made through our page costs, beside the bare POST to the sandbox and four local commits.

Measured is the final button, answered with a redirect to the refund that Smartpay has made; the form and its
confirmation are told apart. Both ways in turns, over HTTP, on a database that writes to the disk.
"""

import time
import uuid
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import requests

from scripts.bench import databases
from scripts.bench.site import Part, Times
from scripts.bench.world import World, world
from tests.kills.people import hidden

REFUNDS, WARM_UP = 60, 5
COMMITS = 4
MOST = 2.0  # of the bare way
TIMEOUT = 60  # seconds
HEAD = f"""## A refund

{REFUNDS} refunds, in turns with as many bare ones: a `requests.post` to the sandbox and {COMMITS} commits of a
row. The bar: the final button takes ≤ {MOST:g} × the bare way (median).

| | final button, median / p95 ms | bare, median / p95 ms | ratio, median / p95 | form ms | confirmation ms |
|---|---|---|---|---|---|"""


def run() -> Part:
    lines = [HEAD]
    missed = []
    for engine in databases.ENGINES:
        with world(engine, orders=20 * REFUNDS) as there:
            times = measured(there)
        button, bare = times["button"], times["bare"]
        ratio = button.median / bare.median
        lines.append(
            f"| {engine} | {button} | {bare} | {ratio:.2f} / {button.p95 / bare.p95:.2f} "
            f"| {times['form'].median * 1000:.1f} | {times['confirmation'].median * 1000:.1f} |"
        )
        print(lines[-1], flush=True)
        if ratio > MOST:
            missed.append(f"{engine}: a refund / the bare way: {ratio:.2f}, at most {MOST:g}")
    return Part("\n".join([*lines, ""]), missed)


def measured(there: World) -> dict[str, Times]:
    times: dict[str, Times] = defaultdict(Times)
    orders = there.sandbox.find_all("refundable", limit=2 * (REFUNDS + WARM_UP), min_amount=3000)
    with requests.Session() as browser, closing(databases.connect(there.database)) as connection:
        browser.cookies.set(*there.cookie.split("=", 1))
        connection.execute("CREATE TABLE bench_row (text TEXT)")
        for number in range(REFUNDS + WARM_UP):
            if number == WARM_UP:  # until now nothing was warm
                times.clear()
            # Another amount each time: two of the same to one customer would be asked for a reason.
            through_our_page(there, browser, orders.pop(), 1000 + number, times)
            with taking(times["bare"]):
                bare(there, connection, orders.pop(), 1000 + number)
        [(made,)] = connection.execute(
            "SELECT count(*) FROM refunds_refund WHERE state = 'succeeded'"
        ).fetchall()
        assert made == REFUNDS + WARM_UP, made  # noqa: S101
    return times


def through_our_page(
    there: World, browser: requests.Session, order: dict[str, Any], amount: int, times: dict[str, Times]
) -> None:
    address, [payment] = f"{there.site}/orders/{order['order']}/refund/", order["payments"]
    with taking(times["form"]):
        form = browser.get(address, timeout=TIMEOUT)
    typed = hidden(form.text) | {
        "payment": payment["id"],
        "amount": str(amount),
        "reason": "requested_by_customer",
    }
    with taking(times["confirmation"]):
        shown = browser.post(address, typed, timeout=TIMEOUT)
    last = hidden(shown.text) | {"confirm": "1", "similar_reason": "別の商品の返品"}
    with taking(times["button"]):
        answer = browser.post(address, last, timeout=TIMEOUT, allow_redirects=False)
    assert answer.status_code == 303, (answer.status_code, answer.text[:2000])  # noqa: S101


def bare(there: World, connection: Any, order: dict[str, Any], amount: int) -> None:
    [payment] = order["payments"]
    answer = requests.post(
        f"{there.sandbox.url}/refunds",
        json={
            "payment": payment["id"], "amount": amount, "currency": "JPY", "reason": "requested_by_customer",
        },
        headers={"Authorization": f"Basic {there.sandbox.secret_key}", "Idempotency-Key": str(uuid.uuid4())},
        timeout=TIMEOUT,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text  # noqa: S101
    for _ in range(COMMITS):
        connection.execute(f"INSERT INTO bench_row VALUES ('{answer.json()['id']}')")  # noqa: S608


@contextmanager
def taking(times: Times) -> Iterator[None]:
    began = time.perf_counter()
    yield
    times.seconds.append(time.perf_counter() - began)
