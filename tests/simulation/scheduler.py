"""Virtual time, and actors that take turns in it: one thread, and never two at once."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

from greenlet import getcurrent, greenlet


class Died(BaseException):
    """The process ends here. Nothing catches it, as nothing catches a SIGKILL."""


@dataclass(eq=False)
class Process:
    """What dies at once: a worker with its threads, a web request."""

    name: str
    mortal: bool = False  # whether it may die at any moment
    dead: bool = False
    actors: list[Actor] = field(default_factory=list)


@dataclass(eq=False)
class Actor:
    name: str
    process: Process
    body: greenlet
    wakes_at: float = 0
    turn: int = 0  # whoever wakes it means the wait of this turn, and comes too late for any other
    rests: object = None  # what it waits for, if that may come before its time


class Scheduler:
    """Who goes on next, and when. The time is in seconds since 1970 and the same for all: nobody can read it."""

    def __init__(self, now: float) -> None:
        self.now = now
        self.running: Actor | None = None
        self.steps = 0
        self._hub = getcurrent()
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._actors: list[Actor] = []

    def at(self, moment: float, do: Callable[[], None]) -> None:
        heapq.heappush(self._due, (max(moment, self.now), next(self._numbers), do))

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        self.at(self.now + seconds, do)

    def spawn(
        self, name: str, run: Callable[[], None], *, process: Process | None = None, delay: float = 0
    ) -> Actor:
        """Begin an actor, after a delay; without a process it is one of its own, that nobody kills."""
        process = process or Process(name)

        def live() -> None:
            try:
                if not process.dead:
                    run()
            except Died:
                pass
            finally:
                process.actors.remove(actor)
                self._actors.remove(actor)

        actor = Actor(name, process, greenlet(live, parent=self._hub))
        process.actors.append(actor)
        self._actors.append(actor)
        self._wake_at(actor, self.now + delay)
        return actor

    def pause(self, seconds: float, *, awaits: object = None) -> None:
        """Let others go on; the running actor goes on after so many seconds, or when what it awaits has come."""
        actor = self.running
        assert actor is not None, "only an actor can wait"
        if actor.process.dead:
            raise Died
        self._wake_at(actor, self.now + seconds)
        actor.rests = awaits
        self._hub.switch()
        actor.rests = None
        if actor.process.dead:
            raise Died

    def wake(self, actor: Actor, awaited: object, *, after: float = 0) -> None:
        """What an actor awaits has come: it goes on at the latest then."""
        if actor.rests is awaited and self.now + after < actor.wakes_at:
            self._wake_at(actor, self.now + after)

    def kill(self, process: Process) -> None:
        """End a process: those who wait in it end now; the running one, where it kills its own, by Died."""
        process.dead = True
        for actor in list(process.actors):
            if actor is not self.running:
                self._wake_at(actor, self.now)
        if self.running and self.running.process is process:
            raise Died

    def run(self, until: float, after_step: Callable[[], bool]) -> bool:
        """Go on until then, or until `after_step` says that it is enough; return whether it did."""
        while self._due and self._due[0][0] <= until:
            self.now, _number, do = heapq.heappop(self._due)
            do()
            self.steps += 1
            if after_step():
                return True
        self.now = max(self.now, until)
        return False

    def end(self) -> None:
        """Kill whoever is left."""
        for actor in list(self._actors):
            actor.process.dead = True
            if actor.body:
                self.running = actor
                actor.body.throw(Died)
            elif actor in self._actors:
                self._actors.remove(actor)
        self.running = None

    def _wake_at(self, actor: Actor, moment: float) -> None:
        actor.turn += 1
        actor.wakes_at = moment
        turn = actor.turn

        def go_on() -> None:
            if actor.turn == turn and not actor.body.dead:
                actor.turn += 1
                self.running = actor
                actor.body.switch()
                self.running = None

        self.at(moment, go_on)
