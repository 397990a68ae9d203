"""How bad a life is: which faults there are in it, how often, and what they do to one request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from refunds.sandbox.scenarios import Fault

MINUTE, HOUR = 60.0, 3600.0
LONGEST_DELAY = 20 * MINUTE  # how long the network may hold a request back; see Note [The send window]
LONGEST_LAG = 10 * MINUTE  # how far Smartpay's reads may be behind its writes
LARGEST_CLOCK_ERROR = 10 * MINUTE  # of the database's clock, ahead or behind
LONGEST_OUTAGE = 12 * HOUR

PROXY_STATUSES = (400, 403, 404, 405, 408, 413, 500, 502, 503, 504)
ERROR_STATUSES = (400, 403, 404, 408, 422, 500, 502, 503)


@dataclass
class Fate:
    """What happens to one request."""

    name: str = "none"
    deliveries: tuple[float, ...] = (0.1,)  # after so many seconds a copy of it arrives; (): it is lost
    fault: Fault | None = None  # what happens where it arrives
    connects: bool = True
    answers: bool = True  # whether the answer to the first copy finds its way back
    resets: float | None = None  # seconds until the connection is reset
    contradicts: bool = False  # the answer is about another refund than the one that was asked for


def _silence(random: Random) -> float | None:
    """The two ways to give no answer: a reset, or nothing at all."""
    return random.choice((None, random.uniform(0.1, 25)))


def _soon(random: Random) -> float:
    return random.uniform(0.02, 0.4)


def _lost(random: Random) -> Fate:
    return Fate("lost", deliveries=(), resets=_silence(random))


def _answer_lost(random: Random) -> Fate:
    return Fate("answer lost", deliveries=(_soon(random),), answers=False, resets=_silence(random))


def _delayed(random: Random) -> Fate:
    late = random.choice((random.uniform(1, LONGEST_DELAY), LONGEST_DELAY))
    return Fate("delayed", deliveries=(late,), resets=_silence(random))


def _doubled(random: Random) -> Fate:
    again = random.choice((_soon(random), random.uniform(1, LONGEST_DELAY)))
    return Fate("doubled", deliveries=(_soon(random), again), answers=random.random() < 0.5)


def _meets(name: str, fault: Callable[[Random], Fault]) -> Callable[[Random], Fate]:
    return lambda random: Fate(name, deliveries=(_soon(random),), fault=fault(random))


def _either_way(name: str, mode: str, statuses: tuple[int, ...]) -> Callable[[Random], Fate]:
    def fault(random: Random) -> Fault:
        return Fault(mode, status=random.choice(statuses), executed=random.random() < 0.5)

    return _meets(name, fault)


def _contradicts(random: Random) -> Fate:
    mode = random.choice(("wrong_amount", "wrong_payment", "wrong_mode"))
    return Fate("contradicts", deliveries=(_soon(random),), fault=Fault(mode), contradicts=True)


# What can happen to a refund request. Each life has some of it.
REQUESTS: dict[str, Callable[[Random], Fate]] = {
    "no connection": lambda random: Fate("no connection", connects=False),
    "lost": _lost,
    "answer lost": _answer_lost,
    "delayed": _delayed,
    "doubled": _doubled,
    "a proxy's page": _either_way("a proxy's page", "html", PROXY_STATUSES),
    "error": _either_way("error", "error", ERROR_STATUSES),
    "error that is kept": _meets(
        "error that is kept",
        lambda random: Fault("error", status=500, stored=True, executed=random.random() < 0.5),
    ),
    "conflict": _meets("conflict", lambda random: Fault("conflict")),
    "too early": _meets("too early", lambda random: Fault("error", status=425, executed=False)),
    "limited": _meets(
        "limited", lambda random: Fault("rate_limited", seconds=random.choice((0, 30, 600, 7200)))
    ),
    "forbidden": _meets("forbidden", lambda random: Fault("forbidden")),
    "redirect": _meets("redirect", lambda random: Fault("redirect", status=random.choice((307, 308)))),
    "garbage": _meets("garbage", lambda random: Fault("garbage", executed=random.random() < 0.5)),
    "truncated": _meets("truncated", lambda random: Fault("truncated")),
    "drip": _meets("drip", lambda random: Fault("drip", seconds=random.choice((0.01, 1)))),
    "too large": _meets("too large", lambda random: Fault("too_large", size=1 << 21)),
    "slow": _meets("slow", lambda random: Fault("slow", seconds=random.uniform(1, 300))),
    "odd status": _meets("odd status", lambda random: Fault("odd_status")),
    "refund fails": _meets("refund fails", lambda random: Fault("status_failed")),
    "sparse": _meets(
        "sparse",
        lambda random: Fault("altered", values={"reference": None, "metadata": None, "status": None}),
    ),
    "contradicts": _contradicts,
}
DANGEROUS = (
    "lost", "answer lost", "delayed", "doubled", "a proxy's page", "error", "error that is kept", "truncated", "slow"
)  # fmt: skip
RARE = ("contradicts", "too large")

# What can happen to a read.
READS: dict[str, Callable[[Random], Fate]] = {
    "no connection": lambda random: Fate("no connection", connects=False),
    "lost": _lost,
    "late": lambda random: Fate("late", deliveries=(random.uniform(1, 60),)),
    "a proxy's page": _meets(
        "a proxy's page", lambda random: Fault("html", status=random.choice(PROXY_STATUSES), executed=False)
    ),
    "error": _meets("error", lambda random: Fault("error", status=random.choice((500, 503)), executed=False)),
    "limited": _meets("limited", lambda random: Fault("rate_limited", seconds=random.choice((0, 30, 600)))),
    "garbage": _meets("garbage", lambda random: Fault("garbage")),
    "truncated": _meets("truncated", lambda random: Fault("truncated")),
}


@dataclass
class Weather:
    """The shares of what goes wrong; it changes from hour to hour, within what there is in this life."""

    requests: float = 0  # of refund requests
    reads: float = 0
    crashes: float = 0  # of the places where a process can die
    commits: float = 0  # of transactions that fail
    stalls: float = 0  # of the places where a process can be held up
    webhooks: float = 0  # of events that are lost, late or repeated
    kinds: list[str] = field(default_factory=list)  # of REQUESTS

    def request(self, random: Random) -> Fate:
        if self.kinds and random.random() < self.requests:
            return REQUESTS[random.choice(self.kinds)](random)
        return Fate(deliveries=(_soon(random),))

    def read(self, random: Random) -> Fate:
        if random.random() < self.reads:
            return READS[random.choice(list(READS))](random)
        return Fate(deliveries=(_soon(random),))


@dataclass(frozen=True)
class Climate:
    """What there is in a life at all: few kinds of faults often, or many seldom."""

    kinds: tuple[str, ...]
    worst: Weather
    forgets: (
        float  # the share of repeated requests that Smartpay answers as if they were new: nothing is left
    )

    @classmethod
    def draw(cls, random: Random) -> Climate:
        weights = [4 if kind in DANGEROUS else 1 for kind in REQUESTS]
        kinds = set(random.choices(list(REQUESTS), weights, k=random.choice((1, 2, 4, 8, 100))))
        kinds -= {kind for kind in RARE if random.random() < 0.75}
        worst = Weather(
            requests=random.choice((0.3, 0.6, 0.9, 0.97)),
            reads=random.choice((0, 0.05, 0.3, 0.7, 0.97)),
            crashes=random.choice((0, 0.005, 0.02, 0.05)),
            commits=random.choice((0, 0, 0.01, 0.05)),
            stalls=random.choice((0, 0, 0.002, 0.01)),
            webhooks=random.choice((0, 0.5, 1)),
        )
        forgets = random.choice((0, 0, 0, 0.5, 1))
        return cls(tuple(kind for kind in REQUESTS if kind in kinds), worst, forgets)

    def weather(self, random: Random) -> Weather:
        if random.random() < 0.1:
            return Weather()  # a quiet hour
        share = random.choice((0.5, 1, 1))
        worst = self.worst
        return Weather(
            requests=worst.requests * share,
            reads=worst.reads * share,
            crashes=worst.crashes * share,
            commits=worst.commits * share,
            stalls=worst.stalls * share,
            webhooks=worst.webhooks * share,
            kinds=list(self.kinds),
        )
