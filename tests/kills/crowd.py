"""Many people who refund the same few payments at once, and answer what they are told as people do."""

import random
import statistics
import uuid
from contextlib import ExitStack
from typing import NamedTuple

from tests.kills.people import Person
from tests.kills.world import Tally, World


class Crowd(NamedTuple):
    """waits: seconds that each final POST took. looked_again: those answered with 422, since something had moved."""

    tally: Tally
    refunds: int
    waits: list[float]
    looked_again: int
    errors: int
    tried_again: int

    @property
    def p95(self) -> float:
        return statistics.quantiles(self.waits, n=20)[-1]

    def __str__(self) -> str:
        return (
            f"refunds={self.refunds} p50={statistics.median(self.waits):.2f}s p95={self.p95:.2f}s "
            f"max={max(self.waits):.2f}s 422={self.looked_again} 500={self.errors} tried_again={self.tried_again}"
        )


def crowd(world: World, *, each: int, payments: int, patience: float = 120) -> Crowd:
    """Everybody makes `each` refunds of ¥1 to ¥9, every time of any of the payments; waits until all are settled."""
    asked: list[uuid.UUID] = []

    def work(person: Person) -> None:
        rng = random.Random(world.people.index(person))
        for _ in range(each):
            order = rng.choice(orders)
            payment = order["payments"][0]["id"]
            asked.append(person.refund(order["order"], payment, rng.randint(1, 9), patience=patience))

    with ExitStack() as held:
        orders = [held.enter_context(world.payment()) for _ in range(payments)]
        world.together(work)
        for refund_id in asked:
            world.until_settled(refund_id, patience)
    answers = [answer for person in world.people for answer in person.answers]
    assert len(set(asked)) == len(world.people) * each
    logs = world.log("web") + world.log("worker")
    tally = world.tally(asked)
    if "deadlock" in logs or "database is locked" in logs:
        tally.add("wrong", "a deadlock")
    return Crowd(
        tally=tally,
        refunds=len(asked),
        waits=[seconds for _, seconds in answers],
        looked_again=sum(status == 422 for status, _ in answers),
        errors=sum(status >= 500 for status, _ in answers),
        tried_again=logs.count("ledger.tried_again"),
    )
