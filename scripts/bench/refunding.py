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

REFUNDS, FAR_REFUNDS, WARM_UP = 60, 20, 5
FAR = 0.2  # seconds before each answer, of a Smartpay beyond a network; told, without a bar
COMMITS = 4
MOST = 2.0  # of the bare way
TIMEOUT = 60  # seconds
SUCCEEDED = "SELECT count(*) FROM refunds_refund WHERE state = 'succeeded'"
HEAD = f"""## A refund

{REFUNDS} refunds, in turns with as many bare ones: a `requests.post` to the sandbox and {COMMITS} commits of a
row. The bar: the final button takes ≤ {MOST:g} × the bare way (median), beside a sandbox that answers at once.
Told as well, of {FAR_REFUNDS} refunds: where each answer comes {FAR:g} s later, as across a network. Least: an empty
view and the bare way, which no refund through a page does without.

| | answers | final button, median / p95 ms | bare, median / p95 ms | ratio | least ÷ bare | form / confirmation ms |
|---|---|---|---|---|---|---|"""


def run() -> Part:
    lines = [HEAD]
    missed = []
    for engine in databases.ENGINES:
        with world(engine, orders=30 * REFUNDS) as there:
            orders = there.sandbox.find_all(
                "refundable", limit=2 * (REFUNDS + FAR_REFUNDS + 2 * WARM_UP), min_amount=3000
            )
            near = measured(there, orders, REFUNDS)
            there.sandbox.fault("slow", method=None, path="", seconds=FAR, times=None)
            far = measured(there, orders, FAR_REFUNDS)
        for times, answers in ((near, "at once"), (far, f"after {FAR:g} s")):
            button, bare = times["button"], times["bare"]
            ratio = button.median / bare.median
            least = (times["empty"].median + bare.median) / bare.median
            lines.append(
                f"| {engine} | {answers} | {button} | {bare} | {ratio:.2f} "
                f"| {least:.2f} | {times['form'].median * 1000:.1f} / {times['confirmation'].median * 1000:.1f} |"
            )
            print(lines[-1], flush=True)
            if times is near and ratio > MOST:
                missed.append(f"{engine}: a refund / the bare way: {ratio:.2f}, at most {MOST:g}")
    return Part("\n".join([*lines, ""]), missed)


def measured(there: World, orders: list[dict[str, Any]], refunds: int) -> dict[str, Times]:
    """Seconds of each step. `orders`: to refund; each is taken out."""
    times: dict[str, Times] = defaultdict(Times)
    with requests.Session() as browser, closing(databases.connect(there.database)) as connection:
        browser.cookies.set(*there.cookie.split("=", 1))
        connection.execute("CREATE TABLE IF NOT EXISTS bench_row (text TEXT)")
        [(before,)] = connection.execute(SUCCEEDED).fetchall()
        for number in range(refunds + WARM_UP):
            if number == WARM_UP:  # until now nothing was warm
                times.clear()
            # Another amount each time: two of the same to one customer would be asked for a reason.
            through_our_page(there, browser, orders.pop(), 1000 + number, times)
            with taking(times["empty"]):
                browser.get(f"{there.site}/bench/floor/", timeout=TIMEOUT).raise_for_status()
            with taking(times["bare"]):
                bare(there, connection, orders.pop(), 1000 + number)
        [(made,)] = connection.execute(SUCCEEDED).fetchall()
        assert made - before == refunds + WARM_UP, (made, before)  # noqa: S101
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
