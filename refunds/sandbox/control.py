"""The control door, /_sandbox/: for tests and people, never for the app. Smartpay has nothing like it."""

import json
import re
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

from .api import Answer, Fields, Request, compact, refused
from .model import Account, Refusal, Smartpay
from .scenarios import MODES, Fault, Faults
from .webhooks import Deliveries
from .world import Resource

# What `find` can look for: a question about an order, its payments and its checkout session.
type _Test = Callable[[Resource, list[Resource], Resource | None], bool]


class Control:
    """What the door does. `refuse` stops listening; `play` carries out requests that were held back."""

    def __init__(
        self,
        smartpay: Smartpay,
        faults: Faults,
        deliveries: Deliveries,
        *,
        play: Callable[[Request], Answer],
        refuse: Callable[[float | None], None],
        listen: Callable[[], None],
        begin: Callable[[], None],
        addresses: Callable[[], dict[str, str]],
    ) -> None:
        """`begin` is called on a fresh world: it registers the endpoint given at the start."""
        self._smartpay, self._faults, self._deliveries = smartpay, faults, deliveries
        self._play, self._refuse, self._listen, self._begin = play, refuse, listen, begin
        self._addresses = addresses
        self.requests: deque[dict[str, Any]] = deque(maxlen=10_000)
        self._actions: Final[dict[str, Callable[[Request], Any]]] = {
            "GET /_sandbox/": self._overview,
            "GET /_sandbox/faults": lambda request: {"faults": faults.waiting(), "modes": MODES},
            "POST /_sandbox/faults": self._add_fault,
            "DELETE /_sandbox/faults": self._clear_faults,
            "GET /_sandbox/requests": self._list_requests,
            "DELETE /_sandbox/requests": lambda request: self.requests.clear(),
            "POST /_sandbox/reset": self._reset,
            "GET /_sandbox/clock": lambda request: {"now": smartpay.clock.now()},
            "POST /_sandbox/clock": self._advance,
            "GET /_sandbox/switches": lambda request: vars(smartpay.switches),
            "POST /_sandbox/switches": self._switch,
            "POST /_sandbox/refunds": self._refund,
            "POST /_sandbox/objects": self._set,
            "GET /_sandbox/find": self._find,
            "GET /_sandbox/deliveries": lambda request: {"deliveries": list(deliveries.log)},
            "POST /_sandbox/held": self._release,
        }

    def handle(self, request: Request) -> Answer:
        action = self._actions.get(f"{request.method} {request.path}")
        try:
            if action is None:
                raise Refusal(404, "sandbox.not-found", f"The door has {', '.join(self._actions)}")
            try:
                result = action(request)
            except (ValueError, TypeError, KeyError) as error:
                raise Refusal(400, "sandbox.invalid", str(error)) from None
        except Refusal as refusal:
            return refused(refusal)
        return Answer(200, compact({} if result is None else result), {"Content-Type": "application/json"})

    def _overview(self, request: Request) -> Any:
        smartpay = self._smartpay
        return self._addresses() | {
            "seed": smartpay.world.seed,
            "orders": smartpay.world.orders,
            "epoch": smartpay.world.epoch,
            "now": smartpay.clock.now(),
            "switches": vars(smartpay.switches),
            "faults": self._faults.waiting(),
            "requests": len(self.requests),
            "door": list(self._actions),
        }

    def _add_fault(self, request: Request) -> Any:
        fault = Fault.parse(json.loads(request.body))
        if fault.mode == "refusing":
            self._refuse(fault.seconds)
        else:
            self._faults.add(fault)

    def _clear_faults(self, request: Request) -> Any:
        self._faults.clear()
        self._listen()

    def _list_requests(self, request: Request) -> Any:
        wanted = {name: request.query[name] for name in ("method", "path") if name in request.query}
        return {"requests": [seen for seen in list(self.requests) if wanted.items() <= seen.items()]}

    def _reset(self, request: Request) -> Any:
        self._clear_faults(request)
        self._deliveries.drop()
        self.requests.clear()
        self._smartpay.reset()
        self._begin()

    def _advance(self, request: Request) -> Any:
        self._smartpay.advance(json.loads(request.body)["advance"])
        return {"now": self._smartpay.clock.now()}

    def _switch(self, request: Request) -> Any:
        self._smartpay.switches.set(json.loads(request.body))
        return vars(self._smartpay.switches)

    def _refund(self, request: Request) -> Any:
        """A refund made in Smartpay's own dashboard: no idempotency key, and maybe no reference."""
        body, smartpay = Fields(request.body), self._smartpay
        account = self._account(body.needed("payment"))
        with smartpay.changing():
            values = body.notes()
            refund = smartpay.refund(
                account,
                smartpay.get(account, "payment", body.needed("payment")),
                body.whole("amount"),
                reason=body.text("reason") or "requested_by_customer",
                **(values | {"metadata": values["metadata"] or {}}),
            )
            return smartpay.show(account, refund)

    def _set(self, request: Request) -> Any:
        """Give an object other values: states that nothing else brings about, such as `pending`."""
        body, smartpay = json.loads(request.body), self._smartpay
        account = self._account(body["id"])
        kinds = {"order": "order", "payment": "payment", "refund": "refund", "checkout": "checkoutSession"}
        kind = kinds[body["id"].split("_")[0]]
        with smartpay.changing():
            resource = smartpay.get(account, kind, body["id"])
            return smartpay.show(account, smartpay.update(account, kind, resource, **body["values"]))

    def _release(self, request: Request) -> Any:
        """Let the requests that were held on their way arrive now; nobody waits for the answers."""
        held, self._faults.held = self._faults.held, []
        return {"statuses": [self._play(one).status for one in held]}

    def _find(self, request: Request) -> Any:
        """Orders with wanted properties, newest first, as they stand now."""
        query, account = request.query, self._smartpay.accounts["test"]
        test = _KINDS.get(query.get("kind", "any"))
        if test is None:
            raise ValueError(f"kind is one of {', '.join(_KINDS)}")
        least, most = int(query.get("min_amount", 0)), int(query.get("max_amount", 10**12))
        name, skip, limit = query.get("name", ""), int(query.get("skip", 0)), int(query.get("limit", 1))
        found: list[Any] = []
        for order, payments, session in self._orders(account):
            if not least <= order["amount"] <= most or not test(order, payments, session):
                continue
            customer = (session or {}).get("customerInfo", {})
            if name and not any(name in str(value) for key, value in customer.items() if "Name" in key):
                continue
            found.append(self._found(account, order, payments, session))
            if len(found) == skip + limit:
                break
        return {"orders": found[skip:]}

    def _orders(self, account: Account) -> Iterator[tuple[Resource, list[Resource], Resource | None]]:
        smartpay = self._smartpay
        sessions: dict[str, Resource] = {
            session["order"]: session
            for session in (account.objects[id] for id in account.made["checkoutSession"])
            if session and "order" in session
        }
        for _, stored in account.walk("order", None, newest_first=True):
            order = smartpay.get(account, "order", stored["id"])
            number = smartpay.world.number("order", order["id"])
            session = sessions.get(order["id"])
            if number is not None and smartpay.world.exists("checkoutSession", number):
                session = account.find("checkoutSession", smartpay.world.id("checkoutSession", number))
            payments = [smartpay.get(account, "payment", id) for id in order["payments"]]
            yield order, [one | {"_rest": smartpay.refundable(account, one)} for one in payments], session

    def _found(
        self, account: Account, order: Resource, payments: list[Resource], session: Resource | None
    ) -> Resource:
        return {
            "order": order["id"],
            "status": order["status"],
            "amount": order["amount"],
            "createdAt": order["createdAt"],
            "reference": order.get("reference") or (session or {}).get("reference"),
            "payments": [
                {
                    "id": payment["id"],
                    "amount": payment["amount"],
                    "refundable": payment["_rest"],
                    "refunds": payment["refunds"],
                }
                for payment in payments
            ],
            "session": session and session["id"],
            "customerInfo": session and session.get("customerInfo"),
        }

    def _account(self, id: str) -> Account:
        match = re.match(r"[a-z]+_(test|live)_", id)
        if match is None:
            raise ValueError(f"{id} is no id of Smartpay's")
        return self._smartpay.accounts[match[1]]


def _refunded(payments: list[Resource]) -> int:
    return sum(payment["amount"] - payment["_rest"] for payment in payments)


_KINDS: Final[dict[str, _Test]] = {
    "any": lambda order, payments, session: True,
    "succeeded": lambda order, payments, session: order["status"] == "succeeded",
    # The usual case: one payment, never refunded, a session with a customer
    "refundable": lambda order, payments, session: (
        order["status"] == "succeeded"
        and len(payments) == 1
        and not payments[0]["refunds"]
        and session is not None
        and "customerInfo" in session
    ),
    "several_payments": lambda order, payments, session: len(payments) > 1 and not _refunded(payments),
    "partly_refunded": lambda order, payments, session: (
        0 < _refunded(payments) < sum(p["amount"] for p in payments)
    ),
    "wholly_refunded": lambda order, payments, session: (
        bool(payments) and not any(payment["_rest"] for payment in payments)
    ),
    "failed_refund": lambda order, payments, session: any(
        p["refunds"] and p["_rest"] == p["amount"] for p in payments
    ),
    "never_paid": lambda order, payments, session: order["status"] == "requires_authorization",
    "rejected": lambda order, payments, session: order["status"] == "rejected",
    "canceled": lambda order, payments, session: order["status"] == "canceled",
    "uncaptured": lambda order, payments, session: order["status"] == "requires_capture" and not payments,
    "partly_captured": lambda order, payments, session: (
        order["status"] == "requires_capture" and bool(payments)
    ),
    "token": lambda order, payments, session: "tokenId" in order and order["status"] == "succeeded",
    "no_name": lambda order, payments, session: (
        order["status"] == "succeeded" and session is not None and "customerInfo" not in session
    ),
    "email_key": lambda order, payments, session: "email" in (session or {}).get("customerInfo", {}),
}
