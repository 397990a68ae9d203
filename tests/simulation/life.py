"""One life: it begins in peace, things go wrong for some hours, the world heals, and everything has to be settled."""

from __future__ import annotations

import gc
import hashlib
import random
import sqlite3
import tempfile
import time
import uuid
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import structlog
from django.conf import settings
from django.contrib.auth.models import Group
from django.core.management import call_command
from django.db import connection
from django.utils import timezone

from dashboard.models import User
from refunds import clock, scanning, services, smartpay
from tests.simulation.database.base import DatabaseWrapper
from tests.simulation.mutants import Mutant
from tests.simulation.network import Client
from tests.simulation.people import APPROVERS, OPERATORS, Approver, Fortune, Judge, Person
from tests.simulation.rules import SETTLED_WITHIN, Row, Violation
from tests.simulation.shop import WEBHOOK_SECRET, Shop
from tests.simulation.weather import HOUR, LARGEST_CLOCK_ERROR, LONGEST_DELAY, MINUTE, Weather

MONDAY = 1_772_409_600.0  # 2026-03-02 00:00 UTC
LENGTHS = (HOUR, 4 * HOUR, 9 * HOUR, 16 * HOUR, 30 * HOUR)  # of the time in which things go wrong


@dataclass
class Life:
    """What is told of a life."""

    seed: int
    violations: list[Violation]
    journal: list[tuple[float, str, str]]
    rows: dict[str, Row]
    counts: Counter[tuple[str, str]]
    settled_after: list[
        float
    ]  # seconds from unknown to settled, without those in which Smartpay or we were down

    def digest(self) -> str:
        """The same for the same life."""
        return hashlib.sha256(repr(self.journal).encode()).hexdigest()


class Stage:
    """What all lives of a process share: the migrated database they begin with, and the product's own doors to time
    and chance, which lead into the life that is being lived."""

    def __init__(self, mutant: Mutant | None = None) -> None:
        self._mutant = mutant
        self._shop: Shop | None = None
        self._database = cast(DatabaseWrapper, connection)
        self._directory = tempfile.TemporaryDirectory(prefix="simulation-", dir=_fast_directory())
        settings.STATE_DIR = Path(self._directory.name)
        settings.SMARTPAY_WEBHOOK_SECRETS = [WEBHOOK_SECRET]
        self._quieten()
        self._template = self._migrated()
        self._replace_time_and_chance()
        gc.disable()
        gc.freeze()

    def _quieten(self) -> None:
        def tell(logger: Any, method: str, event: Any) -> Any:
            if self._shop:
                self._shop.logged(event)
            raise structlog.DropEvent

        structlog.configure(processors=[tell], logger_factory=structlog.ReturnLoggerFactory())

    def _migrated(self) -> sqlite3.Connection:
        """An empty ledger with its guards, and the people."""
        call_command("migrate", verbosity=0)
        for name in (*OPERATORS, *APPROVERS):
            user = User.objects.create_user(username=name, issuer="https://idp.example", subject=name)
            user.groups.set([Group.objects.get(name=name.split("-")[0])])
        template: sqlite3.Connection = self._database.connection
        if self._mutant:
            self._mutant.disarm(template)
        return template

    def _replace_time_and_chance(self) -> None:
        def now() -> Any:
            assert self._shop
            return self._shop.now()

        def moment() -> float:
            assert self._shop
            return self._shop.scheduler.now

        def sleep(seconds: float) -> None:
            assert self._shop
            self._shop.scheduler.pause(seconds)

        def client() -> Client:
            assert self._shop
            return Client(self._shop.network)

        class Ahead:
            """A thread that has done its work as soon as it starts: lives have one thread."""

            def __init__(self, *, target: Any, **how: Any) -> None:
                self.start = target

        scanning.Thread = Ahead  # type: ignore[assignment, attr-defined]
        clock.now = timezone.now = now
        time.sleep, time.monotonic, time.time = sleep, moment, moment  # type: ignore[assignment]
        uuid.uuid4 = lambda: uuid.UUID(int=random.getrandbits(128), version=4)
        smartpay.client = client  # type: ignore[assignment]

    def live(self, seed: int) -> Life:
        """Live the life of a seed."""
        gc.collect()  # and not in between, where it would take a third of the time
        random.seed(f"{seed} product")
        for left in Path(self._directory.name).iterdir():
            left.unlink()
        shop = self._shop = Shop(seed, database=self._fresh_database(), began=MONDAY + seed % 7 * 86_400)
        self._database.surroundings = shop
        try:
            _live(shop)
        finally:
            shop.scheduler.end()
            self._database.surroundings = None
            self._shop = None
        return Life(
            seed, shop.rules.violations, shop.journal, shop.rules.rows, shop.counts, _settling_times(shop)
        )

    def _fresh_database(self) -> DatabaseWrapper:
        database = self._database
        if database.connection is not self._template:
            database.connection.close()
        database.connection = database.get_new_connection(database.get_connection_params())
        database.connection.isolation_level = None
        self._template.backup(database.connection)
        if self._mutant and not self._mutant.checks:
            database.connection.execute("PRAGMA ignore_check_constraints = ON")
        return database


def _fast_directory() -> str | None:
    """Where a file that is flushed to the disk costs nothing, if there is such a place."""
    memory = Path("/dev/shm")  # noqa: S108
    return str(memory) if memory.is_dir() else None


def _live(shop: Shop) -> None:
    scheduler, chance = shop.scheduler, shop.random_for("life")
    settings.REFUND_APPROVAL_ABOVE = chance.choice((None, None, None, 0, 2000))
    settings.REFUND_DAILY_LIMIT = chance.choice((None, None, None, None, 20_000))
    shop.smartpay.switches.payments_list_refunds = chance.random() < 0.6
    for _ in range(chance.choice((1, 1, 2, 3))):
        shop.sell(chance.choice((1, 300, 5000, 12_800)))
    shop.open()
    began = scheduler.now
    ends = began + chance.choice(LENGTHS)

    def first_look() -> None:
        client = Client(shop.network)
        for order_id in shop.orders.values():
            services.read_order(order_id, client=client)

    scheduler.spawn("first look", first_look)
    if scheduler.run(began + 5 * MINUTE, shop.rules.check):
        return

    fortune = Fortune(shop, ends=ends)
    scheduler.spawn("fortune", fortune.live)
    for number in range(chance.choice((1, 2, 3, 5))):
        payment = chance.choice(list(shop.captured))
        person = Person(
            shop, number, name=chance.choice((*OPERATORS, APPROVERS[0])), payment=payment, ends=ends
        )
        delay = chance.choice((chance.uniform(0, 60), chance.uniform(0, (ends - began) * 0.6)))
        scheduler.spawn(f"person {number}", person.live, delay=delay)
    for name in APPROVERS:
        scheduler.spawn(f"judge {name}", Judge(shop, name).live)
    if settings.REFUND_APPROVAL_ABOVE is not None:
        for name in APPROVERS:
            scheduler.spawn(name, Approver(shop, name, ends=ends).live)
    if scheduler.run(ends, shop.rules.check):
        return
    _heal(shop, fortune)


def _heal(shop: Shop, fortune: Fortune) -> None:
    """Everything works again; after seven hours nothing may be open that a machine can settle."""
    scheduler = shop.scheduler

    def heal() -> None:
        shop.tell("the world heals")
        shop.weather = Weather()
        shop.network.down, shop.network.key_refused = "", False
        shop.smartpay.switches.read_lag_seconds = 0
        if shop.is_closed:
            shop.open()
        fortune.resume_sends()

    scheduler.spawn("fortune", heal)
    # The clock may have been wrong at the first sending; a request that was held back may come yet; and what waited
    # behind the last refund to be settled has its own turns then.
    patience = SETTLED_WITHIN + 2 * LARGEST_CLOCK_ERROR + LONGEST_DELAY
    if scheduler.run(scheduler.now + patience, shop.rules.check):
        return

    def expire_and_read() -> None:
        client = Client(shop.network)
        shop.clock_error += (settings.REFUND_REQUEST_DAYS + 1) * 24 * HOUR
        services.expire_requests()
        shop.sync(client, full=True)

    scheduler.spawn("the last look", expire_and_read)
    if not scheduler.run(scheduler.now + 5 * MINUTE, shop.rules.check):
        shop.rules.check_at_end()


def _settling_times(shop: Shop) -> list[float]:
    times = []
    for since, until in shop.rules.settled_after:
        down = sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in shop.outages)
        times.append(until - since - down)
    return times
