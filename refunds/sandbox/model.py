"""Smartpay's state and rules, without HTTP: what may be captured, cancelled and refunded, and what follows.

The clock is passed in, so that a simulation can let six hours go by in no time.
"""

import itertools
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final, NamedTuple

from .ids import Ids
from .journal import Journal
from .world import AUTHORIZATION_MS, PREFIX, Resource, World

# Codes of the contract's error table where it has one, otherwise by the same pattern (UNKNOWN).
_NOT_FOUND: Final = {
    "checkoutSession": "checkout-session.not-found",
    "webhookEndpoint": "webhook-endpoint.not-found",
    "promotionCode": "promotion-code.not-found",
}
# References that expand=all turns into objects; `order` of a payment and `payment` of a refund stay ids.
_EXPANDS: Final = {
    "order": {"lineItems": "lineItem", "payments": "payment", "discounts": "discount"},
    "payment": {"lineItems": "lineItem"},
    "refund": {"lineItems": "lineItem"},
    "checkoutSession": {"order": "order", "token": "token"},
    "lineItem": {"price": "price"},
    "price": {"product": "product"},
}
_MADE_FROM: Final = 1 << 62  # the numbers of seeded objects are below, those made since the start above
_EVENT_VERSION: Final = "2022-02-18"  # the only one seen in a sample


class Refusal(Exception):
    """Smartpay's answer to a request that it does not carry out."""

    def __init__(self, status: int, code: str, message: str, details: list[Any] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.details = status, code, message, details or []


class Clock:
    """Real time, moved on by hand where a test wants it to."""

    def __init__(self, source: Callable[[], float] = time.time) -> None:
        self._source, self._ahead_ms = source, 0

    def now(self) -> int:
        """Milliseconds since 1970."""
        return int(self._source() * 1_000) + self._ahead_ms

    def advance(self, seconds: float) -> None:
        self._ahead_ms += int(seconds * 1_000)

    def set_right(self) -> None:
        self._ahead_ms = 0


@dataclass
class Switches:
    """Where Smartpay's behaviour is UNKNOWN, both ways can be had; and how far its reads may lag."""

    payments_list_refunds: bool = True  # disputed between the SDKs
    newest_first: bool = True  # the sort order of lists
    read_lag_seconds: float = 0  # refunds younger than this are not shown by any GET
    max_results_limit: int = 100  # larger pages are refused; only 20 is known to work
    idle_seconds: float | None = None  # how long an idle keep-alive connection is kept
    webhook_copies: int = 1  # 0 loses every event, 3 sends each three times
    webhook_shuffled: bool = False  # let later events overtake earlier ones
    webhook_waits: tuple[float, ...] = (0.5, 2, 8, 30)  # seconds before each repeat; the schedule is UNKNOWN

    def set(self, values: dict[str, Any]) -> None:
        names = {item.name for item in fields(self)}
        if unknown := values.keys() - names:
            raise ValueError(
                f"no such switch: {', '.join(sorted(unknown))}; there are {', '.join(sorted(names))}"
            )
        for name, value in values.items():
            setattr(self, name, tuple(value) if isinstance(value, list) else value)


class Cursor(NamedTuple):
    """A place in a list: object `number` of the seeded ones, or of those made since."""

    seeded: bool
    number: int


class Event(NamedTuple):
    mode: str
    body: Resource


class Account:
    """Everything of one mode. The modes are walls: neither can see or name the other's objects."""

    def __init__(self, mode: str, world: World | None, *, seed: int, life: int) -> None:
        """`life`: different for each start and reset, so that no id is ever given twice."""
        self.mode, self.world = mode, world
        self._made_from = _MADE_FROM + (life << 20)
        self.objects: dict[str, Resource | None] = {}  # changed or made since the start; None if deleted
        self.made: dict[str, list[str]] = defaultdict(list)  # ids by kind, oldest first
        self._ids = Ids(seed)

    def new_id(self, kind: str, number: int) -> str:
        prefix = f"{PREFIX[kind]}_{self.mode}"
        return f"{prefix}_{self._ids.make(prefix, self._made_from + number)}"

    def find(self, kind: str, id: str) -> Resource | None:
        if not id.startswith(f"{PREFIX[kind]}_{self.mode}_"):
            return None
        if id in self.objects:
            return self.objects[id]
        number = self.world.number(kind, id) if self.world else None
        return self.world.make(kind, number) if self.world and number is not None else None

    def walk(
        self, kind: str, start: Cursor | None, *, newest_first: bool
    ) -> Iterator[tuple[Cursor, Resource]]:
        """Objects of a kind with their places, from `start` on."""
        parts = [self._walk_made, self._walk_seeded]
        for part in parts if newest_first else reversed(parts):
            yield from part(kind, start, newest_first)

    def _walk_made(
        self, kind: str, start: Cursor | None, newest_first: bool
    ) -> Iterator[tuple[Cursor, Resource]]:
        made = self.made[kind]
        if start is None or start.seeded:
            if start and newest_first:
                return  # already past these
            first = len(made) - 1 if newest_first else 0
        else:
            first = min(start.number, len(made) - 1)  # a token from before a reset may point too far
        for number in range(first, -1, -1) if newest_first else range(first, len(made)):
            if (resource := self.objects[made[number]]) is not None:
                yield Cursor(False, number), resource

    def _walk_seeded(
        self, kind: str, start: Cursor | None, newest_first: bool
    ) -> Iterator[tuple[Cursor, Resource]]:
        if self.world is None or (start and not start.seeded and not newest_first):
            return
        first = start.number if start and start.seeded else (0 if newest_first else _MADE_FROM)
        for number in self.world.walk(kind, first, newest_first=newest_first):
            seeded = self.world.make(kind, number)
            resource = self.objects.get(seeded["id"], seeded)
            if resource is not None:
                yield Cursor(True, number), resource

    def cursor_text(self, kind: str, cursor: Cursor, *, newest_first: bool) -> str:
        packed = cursor.number * 4 + cursor.seeded * 2 + newest_first
        return self._ids.make(f"page_{self.mode}_{kind}", packed)

    def read_cursor(self, kind: str, text: str) -> tuple[Cursor, bool] | None:
        """The place a page token stands for and its direction; None if it is none of this list's tokens."""
        packed = self._ids.read(f"page_{self.mode}_{kind}", text)
        if packed is None:
            return None
        return Cursor(bool(packed & 2), packed // 4), bool(packed & 1)


@dataclass
class StoredAnswer:
    """What an idempotency key is bound to. `status` is 0 while the first request is still running."""

    first_ms: int
    fingerprint: str  # SHA-256 of the request's body
    status: int = 0
    body: str = ""


@dataclass
class Change:
    """What one request changed: written to the journal as one line, so that it holds wholly or not at all."""

    objects: list[tuple[str, str, str, Resource | None]] = field(
        default_factory=list
    )  # mode, kind, id, object
    keys: dict[str, StoredAnswer] = field(default_factory=dict)
    advanced: float = 0  # seconds
    events: list[Event] = field(default_factory=list)

    def line(self) -> dict[str, Any]:
        """The change as the journal has it. Events are left out: they are delivered in their day."""
        keys = {scope: asdict(answer) for scope, answer in self.keys.items()}
        parts = {"objects": self.objects, "keys": keys, "advanced": self.advanced}
        return {name: part for name, part in parts.items() if part}


class Smartpay:
    """The whole of Smartpay: two accounts, a clock, what idempotency keys are bound to.

    Every change happens inside `with changing()`, under one lock, after all checks: a refused
    request leaves nothing behind. Events go to `on_event` when the change is complete.
    """

    def __init__(self, world: World, clock: Clock | None = None, journal: Journal | None = None) -> None:
        self.world, self.clock = world, clock or Clock()
        self.lock = threading.RLock()
        self.on_event: Callable[[Event], None] = lambda event: None
        self._journal = journal
        self._change = Change()
        self._lives = itertools.count()
        self._begin()
        if journal:
            for line in journal.lines:
                self._apply(line)

    def _begin(self) -> None:
        self.switches = Switches()
        life = self.world.epoch + next(self._lives)
        self.accounts = {
            "test": Account("test", self.world, seed=self.world.seed, life=life),
            "live": Account("live", None, seed=self.world.seed, life=life),
        }
        self.keys: dict[str, StoredAnswer] = {}

    def reset(self) -> None:
        """Back to the seeded world and to real time."""
        with self.lock:
            self._begin()
            self.clock.set_right()
            if self._journal:
                self._journal.clear()

    @contextmanager
    def changing(self) -> Iterator[Change]:
        with self.lock:
            self._change = change = Change()
            yield change
            if self._journal and (line := change.line()):
                self._journal.append(line)
        for event in change.events:
            self.on_event(event)

    def advance(self, seconds: float) -> None:
        with self.changing() as change:
            change.advanced = seconds
            self.clock.advance(seconds)

    def store_answer(self, scope: str, answer: StoredAnswer) -> None:
        """Bind an idempotency key to an answer; part of the change that made it."""
        self.keys[scope] = self._change.keys[scope] = answer

    # Reading

    def get(self, account: Account, kind: str, id: str) -> Resource:
        """An object as it stands now; Refusal 404 if there is none, or it belongs to the other mode."""
        resource = account.find(kind, id)
        if resource is None or self._unseen(resource):
            code = _NOT_FOUND.get(kind, f"{kind}.not-found")
            raise Refusal(404, code, f"No such {kind}, or it belongs to the other mode")
        return self._expired(resource) if kind == "order" else resource

    def list(self, account: Account, kind: str, token: str, limit: int) -> tuple[list[Resource], str, str]:
        """A page of a list: the objects, the token of this page, the token of the next one or ""."""
        with self.lock:
            start, newest_first = None, self.switches.newest_first
            if token:
                place = account.read_cursor(kind, token)
                if place is None:  # what the live API says to a bad token is UNKNOWN: 400
                    raise Refusal(400, "request.invalid", "pageToken is not valid")
                start, newest_first = place
            page: list[Resource] = []
            here = token
            for cursor, resource in account.walk(kind, start, newest_first=newest_first):
                if self._unseen(resource):
                    continue
                if len(page) == limit:
                    return page, here, account.cursor_text(kind, cursor, newest_first=newest_first)
                here = here or account.cursor_text(kind, cursor, newest_first=newest_first)
                page.append(self._expired(resource) if kind == "order" else resource)
            return page, here, ""

    def show(self, account: Account, resource: Resource, *, expand: bool = False) -> Resource:
        """An object as an answer shows it: without what is Smartpay's own, references as objects if wished."""
        shown = {key: value for key, value in resource.items() if key[0] != "_"}
        kind = resource["object"]
        if kind == "payment":
            self._show_refunds(account, shown)
        for name, other in _EXPANDS.get(kind, {}).items() if expand else ():
            if isinstance(shown.get(name), list):
                shown[name] = [self._expanded(account, other, id) for id in shown[name]]
            elif name in shown:
                shown[name] = self._expanded(account, other, shown[name])
        return shown

    def _expanded(self, account: Account, kind: str, id: str) -> Resource | str:
        """What stands for an id under expand=all; the id itself if its object was deleted since.

        Whether the payments inside an order are expanded in turn is UNKNOWN: they keep their ids.
        """
        resource = account.find(kind, id)
        if resource is None:
            return id
        if kind == "order":
            resource = self._expired(resource)
        return self.show(account, resource, expand=kind != "payment")

    def refundable(self, account: Account, payment: Resource) -> int:
        """Yen of a payment not yet given back. Failed refunds gave nothing back."""
        refunds = (account.find("refund", id) for id in payment["refunds"])
        given_back: int = sum(r["amount"] for r in refunds if r and r["status"] != "failed")
        return int(payment["amount"]) - given_back

    def _unseen(self, resource: Resource) -> bool:
        lag = self.switches.read_lag_seconds
        return (
            bool(lag)
            and resource["object"] == "refund"
            and resource["createdAt"] > self.clock.now() - lag * 1_000
        )

    def _show_refunds(self, account: Account, payment: Resource) -> None:
        """Under a read lag the payment, too, looks as it did before its youngest refunds."""
        if self.switches.read_lag_seconds:
            refunds = [account.find("refund", id) for id in payment["refunds"]]
            payment["refunds"] = [refund["id"] for refund in refunds if refund and not self._unseen(refund)]
            if any(refund and self._unseen(refund) for refund in refunds):
                payment["status"] = "processed"
        if not self.switches.payments_list_refunds:
            del payment["refunds"]

    def _expired(self, order: Resource) -> Resource:
        """An order not captured within seven days is cancelled by itself.

        What becomes of a partly captured one is UNKNOWN: as if its rest had been cancelled.
        """
        if order["status"] == "requires_capture" and order["expiresAt"] <= self.clock.now():
            status = "succeeded" if order["payments"] else "canceled"
            return order | {"status": status, "updatedAt": order["expiresAt"]}
        return order

    # Changing. Every method runs inside `with changing()` and checks all before it changes anything.

    def create(self, account: Account, kind: str, /, **values: Any) -> Resource:
        """Make an object; optional values that are None are left out, as Smartpay leaves them out."""
        id = account.new_id(kind, len(account.made[kind]))
        now = self.clock.now()
        resource: Resource = {"id": id, "object": kind}
        resource |= {key: value for key, value in sorted(values.items()) if value is not None}
        resource |= {"test": account.mode == "test", "createdAt": now, "updatedAt": now}
        account.made[kind].append(id)
        self._put(account, kind, resource)
        return resource

    def update(self, account: Account, kind: str, resource: Resource, **values: Any) -> Resource:
        updated = resource | values | {"updatedAt": self.clock.now()}
        self._put(account, kind, updated)
        return updated

    def delete(self, account: Account, kind: str, id: str) -> None:
        account.objects[id] = None
        self._change.objects.append((account.mode, kind, id, None))

    def emit(self, account: Account, type: str, resource: Resource) -> None:
        """Tell of something that happened. Events carry the object in its plain form."""
        data = {"type": type, "version": _EVENT_VERSION, "data": self.show(account, resource)}
        event = self.create(account, "event", eventData=data)
        del event["updatedAt"]
        self._change.events.append(Event(account.mode, event))

    def refund(
        self, account: Account, payment: Resource, amount: int | None, *, failed: bool = False, **values: Any
    ) -> Resource:
        """Give back `amount` yen of a payment; None is all that is left.

        403, not 409, for too high an amount: the contract is definite about it.
        """
        rest = self.refundable(account, payment)
        amount = rest if amount is None else amount
        if rest == 0 or amount > rest:
            raise Refusal(
                403, "amount.insufficient", f"The amount left to refund is {rest} {payment['currency']}"
            )
        refund = self.create(
            account,
            "refund",
            amount=amount,
            currency=payment["currency"],
            payment=payment["id"],
            status="failed" if failed else "succeeded",
            **values,
        )
        # When a payment turns `refunded` is UNKNOWN: here when nothing is left. Its order does not change.
        status = "refunded" if amount == rest and not failed else payment["status"]
        self.update(account, "payment", payment, refunds=[*payment["refunds"], refund["id"]], status=status)
        self.emit(account, "refund.created", refund)
        return refund

    def capture(
        self, account: Account, order: Resource, amount: int, *, cancel_remainder: bool = True, **values: Any
    ) -> Resource:
        """Take `amount` yen of an authorized order; the rest is cancelled unless kept for later captures."""
        if order["status"] != "requires_capture":
            raise Refusal(
                409, "order.cannot-capture", f"The order is {order['status']}, nothing is left to capture"
            )
        rest = order["amount"] - sum(self.get(account, "payment", id)["amount"] for id in order["payments"])
        if amount > rest:
            raise Refusal(
                409, "payment.excessive-amount", f"Only {rest} {order['currency']} is left to capture"
            )
        payment = self._pay(account, order, amount, **values)
        done = cancel_remainder or amount == rest
        payments = [*order["payments"], payment["id"]]
        self.update(
            account, "order", order, payments=payments, status="succeeded" if done else "requires_capture"
        )
        return payment

    def cancel(self, account: Account, order: Resource) -> Resource:
        """Cancel what is not captured yet. Cancelling twice is no error."""
        if order["status"] == "canceled":
            return order
        if order["status"] != "requires_capture":
            raise Refusal(
                409, "order.cannot-cancel", f"An order that is {order['status']} cannot be cancelled"
            )
        canceled = self.update(
            account, "order", order, status="succeeded" if order["payments"] else "canceled"
        )
        self.emit(account, "order.canceled", canceled)
        return canceled

    def authorize(self, account: Account, order: Resource, *, approved: bool) -> Resource:
        """What the shopper's side does: approve the order, and capture it at once unless that is manual."""
        if order["status"] != "requires_authorization":
            raise Refusal(409, "order.cannot-authorize", f"The order is {order['status']}")
        if not approved:
            rejected = self.update(account, "order", order, status="rejected")
            self.emit(account, "order.rejected", rejected)
            return rejected
        expires = self.clock.now() + AUTHORIZATION_MS
        order = self.update(account, "order", order, status="requires_capture", expiresAt=expires)
        self.emit(account, "order.authorized", order)
        if not order.get("_manual"):
            # Whether automatic captures copy the order's reference is UNKNOWN; a sample has it.
            self.capture(account, order, order["amount"], reference=order.get("reference"), metadata={})
        return self.get(account, "order", order["id"])

    def _pay(self, account: Account, order: Resource, amount: int, **values: Any) -> Resource:
        line_items = values.pop("lineItems", None)
        payment = self.create(
            account,
            "payment",
            amount=amount,
            currency=order["currency"],
            lineItems=order["lineItems"] if line_items is None else line_items,
            order=order["id"],
            refunds=[],
            status="processed",
            **values,
        )
        self.emit(account, "payment.created", payment)
        return payment

    def _put(self, account: Account, kind: str, resource: Resource) -> None:
        account.objects[resource["id"]] = resource
        self._change.objects.append((account.mode, kind, resource["id"], resource))

    def _apply(self, line: dict[str, Any]) -> None:
        """Do again what a line of the journal tells."""
        for mode, kind, id, resource in line.get("objects", []):
            account = self.accounts[mode]
            if account.find(kind, id) is None:
                account.made[kind].append(id)
            account.objects[id] = resource
        for scope, answer in line.get("keys", {}).items():
            self.keys[scope] = StoredAnswer(**answer)
        self.clock.advance(line.get("advanced", 0))
