"""Real deaths: web and workers are killed by SIGKILL at named points, the database stops, is restored, is raced for.

Real processes on the database of this run, each with a sandbox of its own; `make kills` does the same for longer.
"""

import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from django.db import connection

from scripts import postgres
from tests.kills.crowd import crowd
from tests.kills.databases import PostgreSQL, database
from tests.kills.files import refund_by_file
from tests.kills.lives import HEARD, PLANS, Lives, Reaper
from tests.kills.people import Person
from tests.kills.world import World
from tests.sandbox import ROOT

pytestmark = [
    pytest.mark.skipif(
        connection.vendor == "postgresql" and postgres.programs() is None, reason="no server to stop and copy"
    ),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all tests of this file: each leaves it running, with every refund settled."""
    home = tmp_path_factory.mktemp("kills")
    with database(connection.vendor, home) as place, World(home, place) as running:
        yield running


def ask(world: World, person: Person, *plan: str, amount: int = 7) -> uuid.UUID:
    """A refund of a payment that nobody else uses now."""
    with world.payment() as order:
        return person.refund(
            order["order"],
            order["payments"][0]["id"],
            amount,
            before=lambda refund_id: world.arm(refund_id, plan),
        )


def posted(world: World) -> list[str]:
    """The keys of the refund requests that Smartpay saw."""
    return [seen["headers"]["idempotency-key"] for seen in world.sandbox.requests("POST", "/v1/refunds")]


def until_sent(world: World, sent: int) -> None:
    world.until(lambda: len(posted(world)) > sent, "a request is at Smartpay")


def until_answered(world: World, key: uuid.UUID) -> None:
    """The log tells of the answer, whatever became of the database."""
    line = f'"refund": "{key}", "attempt": 1, "outcome": '
    world.until(lambda: line in world.log("web"), "the log has the answer")


def in_flight(world: World) -> tuple[list[uuid.UUID], threading.Thread, uuid.UUID]:
    """A refund that Smartpay is at work on, sent by the web process; who waits for it, and what they were told."""
    world.sandbox.fault("slow", seconds=0.8)
    made: list[uuid.UUID] = []
    sent = len(posted(world))
    waiting = threading.Thread(target=lambda: made.append(ask(world, world.people[0])))
    waiting.start()
    until_sent(world, sent)
    return made, waiting, uuid.UUID(posted(world)[sent])


def test_death_at_every_point_leaves_each_refund_done_once_or_not_at_all(world: World) -> None:
    lives = Lives(world)

    lives.each(PLANS)
    world.sandbox.switch(webhook_copies=1)
    lives.each(HEARD)
    ends = time.monotonic() + 12
    with Reaper(world, every=3):
        lives.live(lambda rng: rng.choice(PLANS) if time.monotonic() < ends else None)
    world.sandbox.switch(webhook_copies=0)

    tally = lives.tally()
    print(tally)
    assert tally.faults == []
    assert {step for plan in (*PLANS, *HEARD) for step in plan} <= tally.deaths.keys()
    assert tally.kills >= 30
    assert tally.slowest_recovery < 60


def test_worker_that_is_told_to_end_finishes_what_is_in_flight(world: World) -> None:
    for _ in range(3):
        world.sandbox.fault("slow", seconds=0.8)
        sent = len(posted(world))
        refund_id = ask(world, world.people[0], "web attempt.begun")
        until_sent(world, sent)

        began = time.monotonic()
        assert set(world.stop("worker").values()) == {0}
        assert time.monotonic() - began < 10
        assert world.refund(refund_id)["state"] in (
            "succeeded",
            "unknown",
        )  # unknown: the machine was too busy

        world.start("worker")
        world.until_settled(refund_id)
        assert world.tally([refund_id]).faults == []


def test_web_that_is_told_to_end_answers_who_waits(world: World) -> None:
    made, waiting, key = in_flight(world)

    assert world.stop("web") == {"web": 0}

    assert world.refund(key)["state"] in ("succeeded", "unknown")
    world.start("web")
    waiting.join()
    world.until_settled(key)
    assert (made, world.tally(made).faults) == ([key], [])


def test_many_turns_at_the_same_moment_send_once(world: World) -> None:
    world.stop("worker")
    world.manage("sends", "off", "--reason", "競走の準備")
    rows: list[uuid.UUID] = []

    def four(person: Person) -> None:
        rows.extend(ask(world, person) for _ in range(4))

    world.together(four)
    world.manage("sends", "on", "--reason", "競走")
    world.sandbox.fault("slow", seconds=0.3, times=10)

    moment = time.time() + 4  # all have started by then
    racers = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.kills.racing", str(moment), *map(str, rows)],
            cwd=ROOT,
            env=world.environment,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]
    assert [racer.wait(60) for racer in racers] == [0, 0, 0]
    world.sandbox.clear_faults()

    attempts = world.database.rows("SELECT refund_id FROM refunds_attempt")
    tried = [uuid.UUID(str(attempt["refund_id"])) for attempt in attempts]
    assert sorted(refund_id for refund_id in tried if refund_id in rows) == sorted(rows)
    assert sorted(key for key in posted(world) if uuid.UUID(key) in rows) == sorted(map(str, rows))
    world.start("worker")
    for refund_id in rows:
        world.until_settled(refund_id)
    assert world.tally(rows).faults == []


@pytest.mark.postgresql
def test_database_that_stops_between_sending_and_outcome(world: World) -> None:
    assert isinstance(world.database, PostgreSQL)
    for _ in range(2):
        made, waiting, key = in_flight(world)

        world.database.stop("immediate")
        until_answered(world, key)
        world.database.start()

        assert world.refund(key)["state"] == "sending"
        world.until_settled(key)
        waiting.join()
        assert made == [key]
        assert posted(world).count(str(key)) == 1
        evidence = world.database.rows("SELECT kind FROM refunds_evidence WHERE refund_id = %s", key)
        [kind] = [row["kind"] for row in evidence]
        assert kind in ("read", "list")  # whoever looks first, and not the answer
        assert world.tally(made).faults == []


def test_crowd_on_few_payments(world: World) -> None:
    for person in world.people:
        person.answers.clear()

    result: Any = crowd(world, each=4, payments=3)

    print(result)
    assert (result.tally.faults, result.errors) == ([], 0)


def test_file_of_refunds_is_made_line_by_line_whatever_dies(world: World) -> None:
    tally = refund_by_file(world, lines=120, kills=6, every=3, patience=300)

    print(tally)
    assert tally.faults == []
    assert tally.refunds >= 120  # and those of the tests before


def test_restored_database_sends_nothing_until_everything_was_read(world: World) -> None:
    one, two, three = world.people[:3]
    world.stop("worker")
    world.manage("sends", "off", "--reason", "複製の前")
    queued = ask(world, one, amount=11)  # in the copy: not sent yet
    world.stop("web")
    world.database.save()
    world.manage("sends", "on", "--reason", "複製の後")
    world.start()
    world.until_settled(queued)
    later = ask(world, two, amount=12)  # not in the copy
    world.until_settled(later)
    world.stop()
    world.database.restore()
    assert (world.refund(queued)["state"], world.refund(later)) == ("queued", {})
    world.sandbox.forget_requests()
    world.sandbox.fault(
        "error", method="GET", path="/v1/refunds", times=None
    )  # nothing can be read to the end

    world.start()
    world.pass_three_quarters()
    new = ask(world, three, amount=13)
    assert resume(world).startswith("CommandError: ")
    time.sleep(2)
    assert (posted(world), world.refund(new)["state"]) == ([], "queued")

    world.sandbox.clear_faults()
    for name in world.names("worker"):
        world.kill(name)  # who is started anew reads at once
    world.until_settled(queued)
    world.until(lambda: "sends: on" in resume(world), "everything was read")
    recovered = world.refund(later)
    assert (recovered["state"], recovered["amount"], bool(recovered["recovered"])) == ("succeeded", 12, True)
    world.until_settled(new)

    assert posted(world) == [str(new)]
    assert world.tally([queued, later, new]).faults == []


def resume(world: World) -> str:
    return world.manage("sends", "on", "--reason", "復元を確認した", check=False)
