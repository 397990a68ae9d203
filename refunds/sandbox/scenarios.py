"""Ways to misbehave: on the network, in front of Smartpay, inside it, and in what it answers."""

import json
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any, Final, Literal, NamedTuple

from .api import Answer, Api, Mishap, Request, compact, refused, unauthorized
from .model import Refusal

MODES: Final = {
    "silent": "takes the request and never answers",
    "reset": "the connection is reset",
    "garbage": "200, but what comes is no JSON",
    "html": "a proxy's page instead of an answer; `status`, default 502",
    "error": "a server error in Smartpay's shape; `status`, default 500; `stored` keeps it under the key",
    "truncated": "done, but the answer breaks off in the middle",
    "drip": "done, but the answer comes a byte at a time, `seconds` apart",
    "slow": "the work itself takes `seconds`; meanwhile its key is in progress",
    "altered": "done, but the answer shows `values` instead (null takes a field out)",
    "wrong_amount": "done, but the answer shows one yen more",
    "wrong_payment": "done, but the answer names another payment",
    "wrong_mode": "done, but the answer says the other mode",
    "odd_status": "done, but the answer's status is `value`, default processing",
    "too_large": "done, but the answer has `size` bytes more, default 2 MiB",
    "status_failed": "200 and a refund whose status is failed: no money goes back",
    "rate_limited": "429 with Retry-After: `seconds`",
    "conflict": "409",
    "unauthorized": "401",
    "forbidden": "403, but not in Smartpay's shape",
    "redirect": "`status` 307 or 308 to `value`, default the same address",
    "held": "the connection is reset; the request waits on its way until POST /_sandbox/held",
    "doubled": "a proxy delivers the request twice",
    "refusing": "no connection is accepted until the fault is cleared, or for `seconds`",
    "close_at_accept": "connections are accepted and closed",
}
_NOT_AT_ALL: Final = {"rate_limited", "conflict", "unauthorized", "forbidden", "redirect", "held"}
_DEFAULT_SECONDS: Final = {"drip": 0.05, "slow": 1.0, "rate_limited": 30.0}


@dataclass
class Fault:
    """One way to misbehave, for the next `times` requests that match (None: until cleared).

    executed: whether the request was carried out all the same, where that can be either way.
    path: the whole path under the base URL's host, such as "/v1/refunds"; a trailing * takes all
    that begin so; "" takes all.
    """

    mode: str
    method: str | None = None
    path: str = ""
    times: int | None = 1
    skip: int = 0  # so many matching requests pass unharmed first
    executed: bool = True
    stored: bool = False
    seconds: float | None = None
    status: int | None = None
    value: str | None = None
    values: dict[str, Any] | None = None
    size: int = 2 << 20

    @classmethod
    def parse(cls, values: dict[str, Any]) -> "Fault":
        names = {item.name for item in fields(cls)}
        if unknown := values.keys() - names:
            raise ValueError(
                f"a fault has no {', '.join(sorted(unknown))}; it has {', '.join(sorted(names))}"
            )
        if values.get("mode") not in MODES:
            raise ValueError(f"mode is one of {', '.join(MODES)}")
        return cls(**values)

    def matches(self, request: Request) -> bool:
        if self.method and self.method != request.method:
            return False
        if self.path.endswith("*"):
            return request.path.startswith(self.path[:-1])
        return self.path in ("", request.path)

    @property
    def wait(self) -> float:
        return _DEFAULT_SECONDS.get(self.mode, 0) if self.seconds is None else self.seconds


class Faults:
    """The faults waiting for their requests, first come, first served."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []
        self.held: list[Request] = []
        self.cleared = threading.Event()  # wakes the connections that are kept silent

    def add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(fault)

    def clear(self) -> None:
        with self._lock:
            self._waiting.clear()
            self.held.clear()
            self.cleared.set()
            self.cleared = threading.Event()

    def waiting(self) -> list[dict[str, Any]]:
        with self._lock:
            return [asdict(fault) for fault in self._waiting]

    def take(self, request: Request) -> Fault | None:
        """The fault that this request meets."""
        return self._take(lambda fault: fault.mode != "close_at_accept" and fault.matches(request))

    def take_connection(self) -> bool:
        """Whether a new connection is closed at once."""
        return self._take(lambda fault: fault.mode == "close_at_accept") is not None

    def _take(self, wanted: Callable[[Fault], bool]) -> Fault | None:
        with self._lock:
            for fault in self._waiting:
                if not wanted(fault):
                    continue
                if fault.skip:
                    fault.skip -= 1
                    return None
                if fault.times is not None:
                    fault.times -= 1
                    if not fault.times:
                        self._waiting.remove(fault)
                return fault
        return None


class Outcome(NamedTuple):
    """What the connection does: send the answer (whole, cut or slowly), say nothing, or be reset."""

    answer: Answer = Answer(0)
    manner: Literal["send", "cut", "drip", "silent", "reset"] = "send"
    seconds: float = 0


def play(api: Api, faults: Faults, request: Request) -> Outcome:
    """Answer a request, with the fault that waits for it, if one does."""
    fault = faults.take(request)
    if fault is None:
        return Outcome(api.handle(request))
    if fault.mode == "held":
        faults.held.append(request)
        return Outcome(manner="reset")
    stored_error: Literal["", "before", "after"] = ""
    if fault.mode == "error" and fault.stored:
        stored_error = "after" if fault.executed else "before"
    elif fault.mode in _NOT_AT_ALL or not fault.executed:
        return _on_the_way(fault, request)
    mishap = Mishap(
        delay=fault.wait if fault.mode == "slow" else 0,
        stored_error=stored_error,
        refund_fails=fault.mode == "status_failed",
    )
    answer = api.handle(request, mishap)
    if fault.mode == "doubled":
        api.handle(request)
    return _on_the_way_back(fault, answer)


def _on_the_way(fault: Fault, request: Request) -> Outcome:
    """Nothing reaches Smartpay, or Smartpay does nothing."""
    match fault.mode:
        case "rate_limited":
            answer = refused(Refusal(429, "request.rate-limited", "Too many requests"))
            answer.headers["Retry-After"] = f"{fault.wait:.0f}"
        case "conflict":
            answer = refused(Refusal(409, "request.conflict", "The resource is being changed"))
        case "unauthorized":
            answer = unauthorized()
        case "forbidden":
            answer = _page(403)
        case "redirect":
            answer = Answer(fault.status or 307, b"", {"Location": fault.value or request.path})
        case _:
            return _on_the_way_back(fault, Answer(200, b"{}"))
    return Outcome(answer)


def _on_the_way_back(fault: Fault, answer: Answer) -> Outcome:  # noqa: PLR0912  one branch a mode
    match fault.mode:
        case "silent":
            return Outcome(manner="silent", seconds=fault.seconds or 600)
        case "reset":
            return Outcome(manner="reset")
        case "garbage":
            return Outcome(Answer(200, b"\x00OK, done.", {"Content-Type": "application/json"}))
        case "html":
            return Outcome(_page(fault.status or 502))
        case "error":
            return Outcome(refused(Refusal(fault.status or 500, "server.error", "Something went wrong")))
        case "truncated":
            return Outcome(answer, "cut")
        case "drip":
            return Outcome(answer, "drip", fault.wait)
        case "too_large":
            return Outcome(_altered(answer, {"padding": "x" * fault.size}))
        case "altered":
            return Outcome(_altered(answer, fault.values or {}))
        case "odd_status":
            return Outcome(_altered(answer, {"status": fault.value or "processing"}))
        case "wrong_amount":
            return Outcome(_altered(answer, lambda shown: {"amount": shown.get("amount", 0) + 1}))
        case "wrong_payment":
            return Outcome(_altered(answer, {"payment": "payment_test_00000000000000000000xx"}))
        case "wrong_mode":
            return Outcome(_altered(answer, lambda shown: {"test": not shown.get("test")}))
    return Outcome(answer)


def _altered(answer: Answer, values: dict[str, Any] | Callable[[dict[str, Any]], dict[str, Any]]) -> Answer:
    """A successful answer with other values in it; a refusal stays as it is."""
    if answer.status != 200 or not answer.body:
        return answer
    shown = json.loads(answer.body)
    shown |= values(shown) if callable(values) else values
    return Answer(
        200, compact({key: value for key, value in shown.items() if value is not None}), answer.headers
    )


def _page(status: int) -> Answer:
    body = f"<html><head><title>{status}</title></head><body><h1>{status}</h1></body></html>"
    return Answer(status, body.encode(), {"Content-Type": "text/html"})
