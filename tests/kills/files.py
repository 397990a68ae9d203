"""A file of refunds while everybody who works on it is killed again and again: every line once, and the result says so."""

import csv
import io
import random
import re
import threading
import time
import uuid
from collections import Counter
from typing import NamedTuple

from tests.kills.lives import Reaper
from tests.kills.people import Person
from tests.kills.world import Tally, World

FAULTS = ("silent", "error", "reset", "truncated", "doubled", "html")
SHARE = 0.05  # of the requests that meet a fault


class Told(NamedTuple):
    """What the result file says of one line."""

    state: str
    amount: str
    smartpay_id: str
    refund: str


def refund_by_file(world: World, *, lines: int, kills: int, every: float, patience: float) -> Tally:
    """Upload a file of so many lines, kill so many times, wait until it is done; tell what was not as it should be.

    `every`: seconds between two deaths.
    """
    orders = [world.payment() for _ in range(min(lines, 100))]
    taken = [each.__enter__() for each in orders]
    rng = random.Random(lines)
    wanted = [(taken[number % len(taken)], 1 + number % 3, f"{number:05d} 番") for number in range(lines)]
    text = "注文ID,返金額,説明\n" + "".join(
        f"{order['order']},{amount},{words}\n" for order, amount, words in wanted
    )
    person, killed = world.people[0], world.killed_from_outside
    page = upload(person, text)
    until(world, person, page, "それでも返金する理由|返金する", patience)
    person.act(page, {"do": "start_with_similar", "similar_reason": "負荷試験"})
    ended = threading.Event()
    weather = threading.Thread(target=storm, args=(world, rng, ended))
    weather.start()
    try:
        with Reaper(world, every=every):
            world.until(lambda: world.killed_from_outside >= killed + kills, "killed", patience)
        world.until(lambda: is_done(world, page), "the file is done", patience)
    finally:
        ended.set()
        weather.join()
        world.sandbox.clear_faults()
    told = result(person, page)
    made = [uuid.UUID(each.refund) for each in told if each.refund]
    tally = world.tally(made)
    judge(world, wanted, told, tally)
    for each in orders:
        each.__exit__(None, None, None)
    return tally


def judge(
    world: World, wanted: list[tuple[dict[str, object], int, str]], told: list[Told], tally: Tally
) -> None:
    """Each line is made once, or told as not made and is not."""
    there = Counter(each.get("description") for each in world.at_smartpay() if each["status"] != "failed")
    ids = {each["id"] for each in world.at_smartpay()}
    for (_order, amount, words), line in zip(wanted, told, strict=True):
        if there[words] > 1:
            tally.add("twice", f"{words}: {there[words]} refunds")
        if (line.state == "返金済み") != (there[words] == 1):
            tally.add("wrong", f"{words} is told as {line.state}, and Smartpay has {there[words]}")
        if line.state == "返金済み" and (line.smartpay_id not in ids or line.amount != str(amount)):
            tally.add("wrong", f"{words}: {line}")


def storm(world: World, rng: random.Random, ended: threading.Event) -> None:
    while not ended.wait(0.2):
        sent = world.sandbox.overview()
        if not sent["faults"] and rng.random() < SHARE * 4:
            world.sandbox.fault(rng.choice(FAULTS))


def upload(person: Person, text: str) -> str:
    return person.upload(f"{person.url}/bulk/", text.encode("cp932"))


def until(world: World, person: Person, page: str, words: str, patience: float) -> None:
    def shown() -> bool:
        told = person.look(page)
        return 'data-state="checked"' in told and bool(re.search(words, told))

    world.until(shown, "the file is checked", patience)


def is_done(world: World, page: str) -> bool:
    bulk_id = uuid.UUID(page.rstrip("/").rpartition("/")[2])
    [row] = world.database.rows("SELECT state FROM refunds_bulk WHERE id = %s", bulk_id)
    time.sleep(0.5)
    return bool(row["state"] == "done")


def result(person: Person, page: str) -> list[Told]:
    rows = csv.DictReader(io.StringIO(person.look(f"{page}result/").removeprefix("\ufeff")))
    return [Told(row["状態"], row["金額"], row["Smartpay 返金ID"], row["受付番号"]) for row in rows]
