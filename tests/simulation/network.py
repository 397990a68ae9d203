"""The client whose wire is simulated, and what happens to its requests on their way to Smartpay."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from requests.structures import CaseInsensitiveDict

from refunds import smartpay
from refunds.sandbox import scenarios
from refunds.sandbox.api import Answer, Request, refused, unauthorized
from refunds.sandbox.model import Refusal
from refunds.sandbox.scenarios import Outcome
from tests.simulation.scheduler import Actor, Process
from tests.simulation.weather import Fate

if TYPE_CHECKING:
    from tests.simulation.shop import Shop

URL, KEY = "https://smartpay.example/v1", "sk_test_simulation"
REFUNDS = "/v1/refunds"


class Wire:
    """Stands where requests.Session does: a call is not made, but told as the request that would leave."""

    def get(self, url: str, *, params: dict[str, str], headers: dict[str, str], **how: Any) -> Request:
        return Request("GET", urlsplit(url).path, params, _lower(headers))

    def post(self, url: str, *, data: bytes, headers: dict[str, str], **how: Any) -> Request:
        return Request("POST", urlsplit(url).path, {}, _lower(headers), data)


def _lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


class Client(smartpay.Client):
    """The product's client: what it asks and how it judges answers is its own."""

    def __init__(self, network: Network) -> None:
        self._network = network
        super().__init__(base_url=URL, secret_key=KEY)

    def within(self, seconds: float) -> Client:
        other = Client.__new__(Client)
        other.__dict__ = self.__dict__ | {"_deadline": seconds}
        return other

    def _session(self, adapter: Any) -> Any:
        return Wire()

    def _call(self, send: Callable[[Any], Any], *, session: Any, largest: int) -> smartpay._Response:
        return self._network.exchange(send(session), deadline=self._deadline, largest=largest)


@dataclass(eq=False)
class Call:
    """A request under way, and who waits for its answer."""

    request: Request
    fate: Fate
    actor: Actor
    repeats: bool  # whether Smartpay had made the refund before this request left
    outcome: Outcome | None = None


class Network:
    """Between us and Smartpay: nothing here is ever certain."""

    def __init__(self, shop: Shop) -> None:
        self._shop = shop
        self._random = shop.random_for("network")
        self._smartpay = Process("Smartpay")
        self.down = (
            ""  # how Smartpay is out of order, if it is: "no connection", "silent" or "a proxy's page"
        )
        self.key_refused = False  # the secret key was rotated, and ours is not the new one yet

    def exchange(self, request: Request, *, deadline: float, largest: int) -> smartpay._Response:
        """Make a call as the running actor. Raises: NotSent, Unclear."""
        shop, scheduler = self._shop, self._shop.scheduler
        assert scheduler.running is not None
        is_refund = request.method == "POST"
        shop.rules.network_is_used()
        shop.perhaps_die()
        fate = self._fate(is_refund)
        if is_refund and fate.connects:
            shop.rules.request_leaves(request)
        if fate.name != "none":
            shop.count("refund fault" if is_refund else "read fault", fate.name)
        if is_refund:
            shop.tell(f"POST {request.headers['idempotency-key']}: {fate.name}")
        if not fate.connects:
            scheduler.pause(self._random.uniform(0, 5))
            raise smartpay.NotSent("No answer: ConnectionError.")

        repeats = is_refund and shop.rules.is_executed(request.headers["idempotency-key"])
        call = Call(request, fate, scheduler.running, repeats)
        for nth, delay in enumerate(fate.deliveries):
            copy = partial(self._deliver, call, nth)
            scheduler.spawn("Smartpay", copy, process=self._smartpay, delay=delay)
        shop.perhaps_die_within(2)
        gives_up = deadline if fate.resets is None else min(deadline, fate.resets)
        scheduler.pause(gives_up, awaits=call)
        shop.perhaps_die()
        if call.outcome is None or self.down:
            raise smartpay.Unclear(
                "No answer within the deadline." if fate.resets is None else "No answer: ConnectionError."
            )
        if fate.name == "none" and not is_refund and call.outcome.answer.status == 200:
            shop.rules.was_read(request.path)
        return self._received(call.outcome, deadline=deadline, largest=largest)

    def _fate(self, is_refund: bool) -> Fate:
        match self.down:
            case "no connection":
                return Fate("Smartpay is down", connects=False)
            case "silent":
                return Fate("Smartpay is down", deliveries=())
            case "a proxy's page":
                fault = scenarios.Fault("html", status=503, executed=False)
                return Fate("Smartpay is down", fault=fault)
        weather = self._shop.weather
        return weather.request(self._random) if is_refund else weather.read(self._random)

    def _deliver(self, call: Call, nth: int) -> None:
        """A copy of the request arrives at Smartpay; the answer to the first one goes back."""
        shop, request = self._shop, call.request
        if self.down:
            return
        faults = scenarios.Faults()
        if call.fate.fault and nth == 0:
            faults.add(call.fate.fault)
        if self.key_refused:
            outcome = Outcome(unauthorized())
        elif call.repeats and self._random.random() < shop.climate.forgets:
            # Smartpay has done this, and does not know the key any more: a no that means yes.
            shop.count("refund fault", "repeat refused")
            outcome = Outcome(refused(Refusal(403, "amount.insufficient", "Nothing is left to refund")))
        else:
            outcome = scenarios.play(shop.api, faults, request)
            if request.method == "POST":
                shop.rules.request_was_handled(request, contradicted=call.fate.contradicts)
                shop.refund_was_handled()
        if request.method == "POST":
            shop.tell(f"POST {request.headers['idempotency-key']} arrived: {outcome.answer.status}")
        if nth == 0 and call.fate.answers and call.actor.rests is call:
            call.outcome = outcome
            shop.scheduler.wake(call.actor, call, after=self._random.uniform(0.01, 0.2))

    def _received(self, outcome: Outcome, *, deadline: float, largest: int) -> smartpay._Response:
        """What the wire makes of an answer. Raises what the product's own wire would: NotSent, Unclear."""
        answer: Answer = outcome.answer
        if outcome.manner == "drip" and outcome.seconds * len(answer.body) > deadline:
            self._shop.scheduler.pause(deadline)
            raise smartpay.Unclear("No answer within the deadline.", http_status=answer.status)
        if outcome.manner == "cut":
            raise smartpay.Unclear("The answer was cut off.", http_status=answer.status)
        if outcome.manner in ("silent", "reset"):
            raise smartpay.Unclear("No answer: ConnectionError.")
        if len(answer.body) > largest:
            raise smartpay.Unclear("The answer is too large.", http_status=answer.status)
        return smartpay._Response(answer.status, CaseInsensitiveDict(answer.headers), answer.body)
