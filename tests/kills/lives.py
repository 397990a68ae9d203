"""Many refunds at once, each with deaths planned into its life, until as many were died as were asked for."""

import random
import threading
import time
import uuid
from collections.abc import Callable, Sequence

from tests.kills.people import Person
from tests.kills.world import Faults, Tally, World

# What a refund lives through, one death after the other; a step that is not reached is not died.
# The first turn is the web's; what it leaves behind is a worker's.
PLANS: Sequence[Sequence[str]] = (
    ("web requested.uncommitted",),
    ("web sending.uncommitted",),
    ("web attempt.begun", "worker lease.before", "worker lease.taken"),
    ("web attempt.begun", "worker payment.read", "worker attempt.begun"),
    ("web attempt.begun", "worker unknown.uncommitted", "worker mark.half"),
    ("web mark.half", "worker sending.uncommitted"),
    ("web send.first_byte", "worker send.half"),
    ("web send.half", "worker send.unanswered", "worker refund.read"),
    ("web send.unanswered", "worker mirrored.unbooked"),
    ("web answer.unbooked", "worker refund.read", "worker succeeded.uncommitted"),
    ("web succeeded.uncommitted", "worker lease.taken"),
    ("web mirrored.uncommitted",),
    ("web booked",),
    ("web attempt.begun", "worker answer.unbooked"),
    ("web mark.half", "worker mirrored.uncommitted"),
    ("web attempt.begun", "worker send.first_byte", "worker booked"),
)
# These need Smartpay's events; otherwise an event would often settle what a worker was to die of.
HEARD: Sequence[Sequence[str]] = (
    ("web send.unanswered", "web refund.read", "web mirrored.unbooked"),
    ("web answer.unbooked", "web webhook.followed"),
)


class Lives:
    """`enough` is asked before each refund, with what was died so far."""

    def __init__(self, world: World, *, seed: int = 1) -> None:
        self.world = world
        self.asked: list[uuid.UUID] = []
        self.slowest_recovery = 0.0
        self._rng = random.Random(seed)
        self._faults = Faults(world, self._rng)
        self._lock = threading.Lock()

    def live(
        self,
        choose: Callable[[random.Random], Sequence[str] | None],
        *,
        faults: bool = True,
        patience: float = 120,
    ) -> None:
        """All people ask for refunds, one after the other, until `choose` gives no plan for another."""

        def work(person: Person) -> None:
            while True:
                with self._lock:
                    plan = choose(self._rng)
                    amount = self._rng.randint(1, 60)
                if plan is None:
                    return
                self._one(person, plan, amount, faults=faults, patience=patience)

        self.world.together(work)
        self._faults.end()

    def each(self, plans: Sequence[Sequence[str]], *, faults: bool = False) -> None:
        """Live until every step of these plans was died."""
        ends = time.monotonic() + 150
        turn = 0

        def choose(rng: random.Random) -> Sequence[str] | None:
            nonlocal turn
            died = {f"{death.role} {death.point}" for death in self.world.deaths()}
            missing = [plan for plan in plans if set(plan) - died]
            if not missing or time.monotonic() > ends:
                return None
            turn += 1
            return missing[turn % len(missing)]

        self.live(choose, faults=faults)

    def tally(self) -> Tally:
        tally = self.world.tally(self.asked)
        tally.slowest_recovery = self.slowest_recovery
        return tally

    def _one(
        self, person: Person, plan: Sequence[str], amount: int, *, faults: bool, patience: float
    ) -> None:
        world, made = self.world, []

        def before(refund_id: uuid.UUID) -> None:
            made.append(refund_id)
            world.arm(refund_id, plan)
            if faults:
                self._faults.maybe()

        with world.payment() as order:
            refund_id = person.refund(order["order"], order["payments"][0]["id"], amount, before=before)
            self.asked.append(refund_id)
            world.until_settled(refund_id, patience)
            settled_at = time.time()
            # What dies after the outcome does so in this moment; what did not by now, will not.
            time.sleep(0.3)
            world.disarm(refund_id)
        died = [death.at for death in world.deaths() if death.refund == refund_id and death.at < settled_at]
        if died:
            self.slowest_recovery = max(self.slowest_recovery, settled_at - max(died))


class Reaper:
    """Kills somebody every few seconds, whatever they are doing."""

    def __init__(self, world: World, every: float, *, seed: int = 1) -> None:
        self._world, self._every, self._rng = world, every, random.Random(seed)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._reap, daemon=True)

    def _reap(self) -> None:
        while not self._ended.wait(self._every * self._rng.uniform(0.5, 1.5)):
            self._world.kill(self._rng.choice(self._world.names()))

    def __enter__(self) -> "Reaper":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join()
