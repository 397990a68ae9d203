"""A small shop: Smartpay, our processes, and the ground they stand on. What people do in it is in people.py."""

from __future__ import annotations

import sqlite3
import sys
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random
from typing import Any

from django.core.exceptions import PermissionDenied
from django.db import OperationalError
from django.test import RequestFactory

from refunds import scanning, services, smartpay, webhooks
from refunds.sandbox.api import Api, compact
from refunds.sandbox.model import Clock, Event, Smartpay
from refunds.sandbox.webhooks import new_signing_secret, sign
from refunds.sandbox.world import World
from tests.simulation.database.base import DatabaseWrapper
from tests.simulation.network import Client, Network
from tests.simulation.rules import Rules
from tests.simulation.scheduler import Actor, Process, Scheduler
from tests.simulation.weather import HOUR, MINUTE, Climate, Weather

WEBHOOK_SECRET = new_signing_secret(Random(0).randbytes)
WEBHOOK_REPEATS = (0.5, 2, 8, 30, 600)  # seconds until an event comes again that we did not take
LONGEST_REST = 20 * MINUTE  # of a worker whose turns are there, and can't be taken
NOTHING_TO_DO = 6 * HOUR  # until a worker looks again of itself; in life it does so every second, in vain


class Trouble(OperationalError):
    """The database's own trouble: expected, unlike every other exception of the database."""

    @classmethod
    def make(cls, name: str) -> Trouble:
        cause = sqlite3.OperationalError(name)
        cause.sqlite_errorname = name
        trouble = cls(name)
        trouble.__cause__ = cause
        return trouble


@dataclass(eq=False)
class Visit:
    """A request of a browser, or of Smartpay, to the site: a process of its own."""

    name: str
    done: bool = False
    value: Any = None
    error: BaseException | None = None  # None with no value: the connection was reset
    waiting: Actor | None = None


class Shop:
    """One life's world. Everything in it is drawn from the seed."""

    def __init__(self, seed: int, *, database: DatabaseWrapper, began: float) -> None:
        self.seed, self.database = seed, database
        self.raw: sqlite3.Connection = database.connection
        self.scheduler = Scheduler(began)
        self.journal: list[tuple[float, str, str]] = []
        self.counts: Counter[tuple[str, str]] = Counter()
        self.random = self.random_for("shop")
        self.climate = Climate.draw(self.random_for("climate"))
        self.weather = Weather()  # the beginning is quiet
        self.clock_error = 0.0  # seconds by which the database's clock is ahead
        self.is_closed = False  # all our processes are out of order
        self.captured: dict[str, int] = {}  # by payment
        self.orders: dict[str, str] = {}  # by payment
        self.outages: list[tuple[float, float]] = []

        world = World(seed=seed, orders=0, epoch=int(began * 1000))
        self.smartpay = Smartpay(world, Clock(lambda: self.scheduler.now))
        self.account = self.smartpay.accounts["test"]
        self.api = Api(self.smartpay)
        self.rules = Rules(self)
        self.network = Network(self)
        self._workers: list[Actor] = []
        self._mirrors: list[Actor] = []
        self.waits_for_a_refund: list[Actor] = []
        self._visits = 0
        self._open: dict[Process, Visit] = {}  # visits under way
        self._factory = RequestFactory()
        self.smartpay.on_event = self.happened

    def random_for(self, purpose: str) -> Random:
        """A stream of chance of its own, so that a draw more here changes nothing there."""
        return Random(f"{self.seed} {purpose}")

    def tell(self, text: str) -> None:
        running = self.scheduler.running
        self.journal.append((self.scheduler.now, running.name if running else "world", text))

    def count(self, what: str, which: str) -> None:
        self.counts[what, which] += 1
        if what in ("fault", "read fault", "crash"):
            self.rules.something_goes_wrong()

    def now(self) -> datetime:
        """The database's clock."""
        return datetime.fromtimestamp(self.scheduler.now + self.clock_error, tz=UTC)

    def sell(self, amount: int) -> str:
        """Have an order of so many yen paid at Smartpay; return its payment's id."""
        smartpay, account = self.smartpay, self.account
        with smartpay.changing():
            values: dict[str, Any] = {"amount": amount, "currency": "JPY", "lineItems": [], "payments": []}
            order = smartpay.create(account, "order", status="requires_authorization", **values)
            order = smartpay.authorize(account, order, approved=True)
        payment_id: str = order["payments"][0]
        self.captured[payment_id] = amount
        self.orders[payment_id] = order["id"]
        return payment_id

    # -- around every transaction: see database/base.py

    def before_statement(self) -> None:
        if self.scheduler.running is None:
            return
        self.scheduler.pause(self._moment(self.weather.stalls / 8))
        if self._happens(self.weather.commits / 4):
            self.count("fault", "database: busy")
            raise Trouble.make("SQLITE_BUSY")

    def before_commit(self) -> None:
        if self.scheduler.running is None:
            return
        self.perhaps_die()
        if self._happens(self.weather.commits):
            self.count("fault", "database: not committed")
            raise Trouble.make(self.random.choice(("SQLITE_BUSY", "SQLITE_FULL")))

    def after_commit(self) -> None:
        if self.scheduler.running is None:
            return
        self.perhaps_die()
        if self._happens(self.weather.commits):
            self.count("fault", "database: committed, but not told so")
            raise Trouble.make("SQLITE_IOERR")

    def after_transaction(self) -> None:
        if self.scheduler.running is not None:
            self.scheduler.pause(self._moment(self.weather.stalls))

    def _moment(self, stalls: float) -> float:
        """Until a process goes on: at once, mostly; much later, where the machine was busy or asleep."""
        if self._happens(stalls):
            self.count("fault", "stall")
            return self.random.uniform(1, self.random.choice((100, 900, 10 * HOUR)))
        return self.random.uniform(0, 0.02)

    def _happens(self, share: float) -> bool:
        return share > 0 and self.random.random() < share

    def refund_was_handled(self) -> None:
        """Smartpay has decided about a refund, and its answer is on its way: what waits for that moment happens now."""
        for actor in self.waits_for_a_refund:
            self.scheduler.wake(actor, "a refund")
        self.waits_for_a_refund.clear()

    def wait_for_a_refund(self, at_most: float) -> None:
        assert self.scheduler.running
        self.waits_for_a_refund.append(self.scheduler.running)
        self.scheduler.pause(at_most, awaits="a refund")

    # -- processes and their deaths

    def open(self) -> None:
        """Start the workers."""
        self.is_closed = False
        for number in (1, 2):
            self._start_worker(f"worker {number}", delay=self.random.uniform(0, 3))

    def close(self) -> None:
        """All processes die, and none is started until the shop is opened again."""
        self.is_closed = True
        for actor in [*self._workers, *self._mirrors]:
            if not actor.process.dead:
                self.scheduler.kill(actor.process)
        for process in list(self._open):
            self.scheduler.kill(process)

    def perhaps_die(self) -> None:
        """A place where the running process may end."""
        running = self.scheduler.running
        if running and running.process.mortal and self._happens(self.weather.crashes):
            self._crash(running.process)

    def perhaps_die_within(self, seconds: float) -> None:
        running = self.scheduler.running
        if running and running.process.mortal and self._happens(self.weather.crashes * 3):
            process = running.process
            self.scheduler.after(self.random.uniform(0, seconds), lambda: self._crash(process))

    def _crash(self, process: Process) -> None:
        if process.dead or not process.actors:
            return
        self.tell(f"{process.name} dies")
        self.count("crash", process.name.split()[0])
        if process.name.startswith("worker"):
            wait = self.random.choice((1.0, self.random.uniform(1, 120)))
            self.scheduler.after(wait, lambda: self._restart(process.name))
        self.scheduler.kill(process)

    def _restart(self, name: str) -> None:
        if not self.is_closed and not any(
            actor.process.name == name and not actor.process.dead for actor in self._workers
        ):
            self._start_worker(name, delay=0)

    def _start_worker(self, name: str, *, delay: float) -> None:
        """What run_worker does, with its two threads; it rests where it would only look in vain."""
        process = Process(name, mortal=True)
        client = Client(self.network)
        self._workers = [actor for actor in self._workers if not actor.process.dead]
        self._mirrors = [actor for actor in self._mirrors if not actor.process.dead]
        self._workers.append(
            self.scheduler.spawn(name, lambda: self._settle(client), process=process, delay=delay)
        )
        self._mirrors.append(
            self.scheduler.spawn(
                f"{name} mirror", lambda: self._keep_mirror(client), process=process, delay=delay
            )
        )

    def _settle(self, client: Client) -> None:
        in_vain = 1.0
        while True:
            changes = self.raw.total_changes
            self._guarded(self._round, client)
            in_vain = 1.0 if self.raw.total_changes != changes else min(in_vain * 2, LONGEST_REST)
            wait = self._until_next_turn()
            self.scheduler.pause(in_vain if wait <= 0 else wait, awaits="a turn")

    def _round(self, client: Client) -> None:
        if self._happens(0.2):  # in life, every time
            services.watch()
            services.expire_requests()
        services.settle_due(client=client)

    def _keep_mirror(self, client: Client) -> None:
        syncs_at = self.scheduler.now + self.random.uniform(0, 36 * HOUR)
        while True:
            self._guarded(services.scan_if_needed, client=client)
            if self.scheduler.now >= syncs_at:
                syncs_at = self.scheduler.now + self.random.uniform(6 * HOUR, 48 * HOUR)
                self._guarded(self.sync, client)
            unknown = any(row.state == "unknown" for row in self.rules.rows.values())
            rest = self.random.uniform(0, 20 * MINUTE) if unknown else syncs_at - self.scheduler.now
            self.scheduler.pause(rest, awaits="a turn")

    def sync(self, client: Client, *, full: bool = False) -> None:
        scanning.sync(client, full=full, observe=services.observe_refund)

    def _guarded(self, do: Callable[..., object], *arguments: Any, **named: Any) -> None:
        """A round of a worker: what may go wrong ends the round and not the worker; anything else is a defect."""
        try:
            do(*arguments, **named)
        except (smartpay.SmartpayError, Trouble):
            pass
        except Exception as error:
            self.defect(error)

    def defect(self, error: BaseException) -> None:
        where = traceback.extract_tb(error.__traceback__)[-1]
        self.rules.violate("defect", f"{type(error).__name__}: {error} ({where.name}, line {where.lineno})")
        self.tell("".join(traceback.format_exception(error)))

    def logged(self, event: dict[str, Any]) -> None:
        """What the product logs: alarms are told; an exception that nobody expected is a defect."""
        name = event.pop("event", "")
        if event.pop("exc_info", None):
            error = sys.exc_info()[1]
            if error is not None and not isinstance(error, Trouble):
                self.defect(error)
        if event.get("alarm"):
            self.count("alarm", name)
            self.tell(f"alarm {name} {event.get('refund', '')} {event.get('why', '')}")

    def _until_next_turn(self) -> float:
        """Seconds until the next row is due, by the ledger itself."""
        moments = [
            row.next_check for row in self.rules.rows.values() if row.state in TURNS and row.next_check
        ]
        if not moments:
            return NOTHING_TO_DO
        due = datetime.fromisoformat(min(moments)).replace(tzinfo=UTC).timestamp() - self.clock_error
        return due - self.scheduler.now + self.random.uniform(0, 1.5)

    def ledger_changed(self) -> None:
        """Workers would see it within a second."""
        wait = max(0.0, self._until_next_turn())
        for actor in self._workers:
            self.scheduler.wake(actor, "a turn", after=wait)
        if any(row.state == "unknown" for row in self.rules.rows.values()):
            for actor in self._mirrors:
                self.scheduler.wake(actor, "a turn", after=self.random.uniform(1, 60))

    # -- the site

    def visit(self, name: str, do: Callable[[Client], Any]) -> Visit:
        """Have the site do something, in a process of its own."""
        visit = Visit(name)
        self._visits += 1
        process = Process(f"web {self._visits}", mortal=True)
        if self.is_closed:
            visit.done = True
            return visit
        client = Client(self.network)

        def serve() -> None:
            try:
                visit.value = do(client)
            except (services.RefundError, PermissionDenied, smartpay.SmartpayError, Trouble) as error:
                self.tell(f"{name}: {type(error).__name__}")
                visit.error = error
            except Exception as error:
                self.defect(error)
            finally:
                visit.done = True
                self._open.pop(process, None)
                if visit.waiting:
                    self.scheduler.wake(visit.waiting, visit)

        self._open[process] = visit
        self.scheduler.spawn(f"web {self._visits} {name}", serve, process=process)
        return visit

    def wait_for(self, visit: Visit) -> Visit:
        """As the running actor, wait until a visit is over."""
        visit.waiting = self.scheduler.running
        while not visit.done:
            self.scheduler.pause(HOUR, awaits=visit)
        return visit

    # -- webhooks

    def happened(self, event: Event) -> None:
        """Smartpay tells of something: once, not at all, late, or several times."""
        if event.body["eventData"]["type"] != "refund.created":
            return
        delays = [self.random.uniform(0.02, 3)]
        if self._happens(self.weather.webhooks):
            self.count("fault", "webhook")
            delays = [
                self.random.choice((self.random.uniform(0, 5), self.random.uniform(0, 8 * HOUR)))
                for _ in range(self.random.choice((0, 1, 2, 3)))
            ]
        for delay in delays:
            self.scheduler.spawn("webhook", lambda: self._deliver(compact(event.body)), delay=delay)

    def _deliver(self, body: bytes) -> None:
        for repeat in (*WEBHOOK_REPEATS, None):
            visit = self.wait_for(self.visit("webhook", lambda client: self._receive(client, body)))
            if visit.value == 200 or repeat is None:
                return
            self.scheduler.pause(repeat)

    def _receive(self, client: Client, body: bytes) -> int:
        timestamp = str(int(self.scheduler.now * 1000))
        headers = {
            "Smartpay-Signature": sign(WEBHOOK_SECRET, timestamp.encode() + b"." + body),
            "Smartpay-Signature-Timestamp": timestamp,
        }
        request = self._factory.post("/", data=body, content_type="application/json", headers=headers)
        return webhooks.receive(request).status_code


TURNS = ("queued", "sending", "unknown")
