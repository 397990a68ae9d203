"""Smartpay's endpoints: secret keys, validation, idempotency, pages. A request in, an answer out; no sockets.

Every choice that the contract leaves open is marked UNKNOWN, with the cautious assumption taken.
"""

import hashlib
import json
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from .model import Account, Refusal, Smartpay, StoredAnswer
from .webhooks import new_signing_secret
from .world import Resource

KEY_WINDOW_MS: Final = 6 * 3_600_000  # how long an idempotency key is remembered
_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))
_SECRET_KEY: Final = re.compile(r"sk_(test|live)_[0-9a-zA-Z]+")
_KIND: Final = {
    "checkout-sessions": "checkoutSession",
    "orders": "order",
    "payments": "payment",
    "refunds": "refund",
    "webhook-endpoints": "webhookEndpoint",
    "coupons": "coupon",
    "promotion-codes": "promotionCode",
    "tokens": "token",
}
# The contract gives 80 and 40 for checkout sessions; the same for payments and refunds is assumed (UNKNOWN).
_DESCRIPTION, _REFERENCE, _METADATA_PAIRS = 80, 40, 20
_REASONS: Final = ("requested_by_customer", "fraudulent")
EVENT_TYPES: Final = (
    "order.authorized", "order.rejected", "order.canceled", "payment.created", "refund.created",
    "token.created", "token.approved", "token.rejected", "token.deleted", "token.disabled",
    "token.enabled", "token.used", "payout.generated", "payout.paid", "coupon.created",
    "coupon.updated", "promotion_code.created", "promotion_code.updated", "merchant_user.created",
    "merchant_user.password_reset",
)  # fmt: skip


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str] = field(default_factory=dict)
    headers: dict[str, str] = field(default_factory=dict)  # names in lower case
    body: bytes = b""


@dataclass
class Answer:
    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Mishap:
    """What goes wrong inside Smartpay, behind its idempotency: all else goes wrong on the way."""

    delay: float = 0  # seconds of work; meanwhile the same key is answered 409
    stored_error: Literal["", "before", "after"] = (
        ""  # "before" or "after" the work: a 500 that stays under the key for six hours
    )
    refund_fails: bool = False  # 200, but the refund's status is `failed`


class Fields:
    """The fields of a request's body. JSON null counts as absent: three SDKs send it for what is not given."""

    def __init__(self, body: bytes) -> None:
        try:
            values = json.loads(body, parse_constant=_no_constant) if body else {}
        except (ValueError, RecursionError):
            raise Refusal(400, "request.malformed", "The request could not be decoded") from None
        if not isinstance(values, dict):
            raise _invalid("", "an object is expected")
        self.values: dict[str, Any] = {name: value for name, value in values.items() if value is not None}

    def text(self, name: str, limit: int | None = None, *, required: bool = False) -> str | None:
        """A string of 1 to `limit` code points; empty ones are refused (assumed as for sessions, UNKNOWN)."""
        value = self._value(name, required)
        if value is None:
            return None
        if not isinstance(value, str) or not value:
            raise _invalid(name, "a string that is not empty is expected")
        if limit and len(value) > limit:
            raise _invalid(name, f"at most {limit} characters are allowed")
        return value

    def needed(self, name: str) -> str:
        return self.text(name, required=True) or ""

    def choice(self, name: str, options: tuple[str, ...], *, required: bool = False) -> str | None:
        value = self._value(name, required)
        if value is not None and value not in options:
            raise _invalid(name, f"one of {', '.join(options)} is expected")
        return None if value is None else str(value)

    def whole(self, name: str, *, least: int = 1, required: bool = False) -> int | None:
        """A whole number. Fractions are refused (UNKNOWN); 100.0 is 100, as everywhere in JSON."""
        value = self._value(name, required)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or value != value // 1:
            raise _invalid(name, "a whole number is expected")
        if value < least:
            raise _invalid(name, f"at least {least} is expected")
        return int(value)

    def flag(self, name: str) -> bool | None:
        value = self._value(name, required=False)
        if value is not None and not isinstance(value, bool):
            raise _invalid(name, "true or false is expected")
        return value

    def currency(self, expected: str = "JPY") -> str:
        """Upper or lower case: official tests send both."""
        if self.needed("currency").upper() != expected:
            raise _invalid("currency", f"{expected} is expected")
        return expected

    def mapping(self, name: str) -> Resource | None:
        value = self._value(name, required=False)
        if value is not None and not isinstance(value, dict):
            raise _invalid(name, "an object is expected")
        return value

    def metadata(self) -> Resource | None:
        value = self.mapping("metadata")
        if value is not None and len(value) > _METADATA_PAIRS:
            raise _invalid("metadata", f"at most {_METADATA_PAIRS} pairs are allowed")
        return value

    def texts(self, name: str) -> list[str] | None:
        value = self._value(name, required=False)
        if value is not None and not (
            isinstance(value, list) and all(isinstance(item, str) for item in value)
        ):
            raise _invalid(name, "a list of strings is expected")
        return value

    def notes(self) -> dict[str, Any]:
        """What a merchant may write on payments and refunds, at creation and later."""
        return {
            "description": self.text("description", _DESCRIPTION),
            "reference": self.text("reference", _REFERENCE),
            "metadata": self.metadata(),
        }

    def _value(self, name: str, required: bool) -> Any:
        if required and name not in self.values:
            raise _invalid(name, "is required")
        return self.values.get(name)


class Api:
    """Answers what comes in under /v1."""

    def __init__(self, smartpay: Smartpay) -> None:
        self.smartpay = smartpay
        one = r"/v1/(?P<name>[a-z-]+)/(?P<id>[^/]+)"
        self._routes: list[tuple[str, re.Pattern[str], Callable[..., Answer]]] = [
            ("GET", re.compile(r"/v1/(?P<name>[a-z-]+)"), self._list),
            ("GET", re.compile(one), self._get),
            ("POST", re.compile(r"/v1/refunds"), self._create_refund),
            ("POST", re.compile(r"/v1/payments"), self._create_payment),
            ("POST", re.compile(r"/v1/orders"), self._create_order),
            ("POST", re.compile(r"/v1/checkout-sessions"), self._create_session),
            ("POST", re.compile(r"/v1/webhook-endpoints"), self._create_endpoint),
            ("POST", re.compile(r"/v1/coupons"), self._create_coupon),
            ("POST", re.compile(r"/v1/promotion-codes"), self._create_promotion_code),
            ("PUT", re.compile(r"/v1/orders/(?P<id>[^/]+)/cancellation"), self._cancel_order),
            ("PUT", re.compile(r"/v1/tokens/(?P<id>[^/]+)/(?P<verb>enable|disable)"), self._switch_token),
            ("PATCH", re.compile(r"/v1/(?P<name>payments|refunds)/(?P<id>[^/]+)"), self._update_notes),
            ("PATCH", re.compile(r"/v1/webhook-endpoints/(?P<id>[^/]+)"), self._update_endpoint),
            (
                "PATCH",
                re.compile(r"/v1/(?P<name>coupons|promotion-codes)/(?P<id>[^/]+)"),
                self._update_coupon,
            ),
            ("DELETE", re.compile(r"/v1/(?P<name>webhook-endpoints|tokens)/(?P<id>[^/]+)"), self._delete),
        ]

    def handle(self, request: Request, mishap: Mishap = Mishap()) -> Answer:
        """Answer a request as Smartpay would."""
        key = _SECRET_KEY.fullmatch(request.headers.get("authorization", "").removeprefix("Basic ").strip())
        if key is None or not request.headers["authorization"].startswith("Basic "):
            return unauthorized()
        account = self.smartpay.accounts[key[1]]
        if request.method == "GET":  # always safe to repeat: no key needed, and none looked at
            _work(mishap)
            return self._answer(account, request, mishap)
        return self._once(key[0], account, request, mishap)

    def _once(self, secret_key: str, account: Account, request: Request, mishap: Mishap) -> Answer:
        """Carry out a request once for its Idempotency-Key; afterwards replay the answer.

        Scope, conflicts and what is stored are UNKNOWN; this is the contract's suggestion: secret
        key, method, path and key; another body or a first request still running is a 409; answers
        of 5xx and 401 are not stored. DELETE is not among the methods named: its keys are ignored.
        """
        smartpay, key = self.smartpay, request.headers.get("idempotency-key", "")
        if not key or request.method not in ("POST", "PUT", "PATCH"):
            _work(mishap)
            with smartpay.changing():
                return self._answer(account, request, mishap)
        scope = f"{secret_key} {request.method} {request.path} {key}"
        fingerprint = hashlib.sha256(request.body).hexdigest()
        with smartpay.lock:
            known = smartpay.keys.get(scope)
            if known and smartpay.clock.now() - known.first_ms < KEY_WINDOW_MS:
                return _replay(known, fingerprint)
            running = smartpay.keys[scope] = StoredAnswer(smartpay.clock.now(), fingerprint)
        try:
            _work(mishap)
            with smartpay.changing():
                answer = self._answer(account, request, mishap)
                if answer.status < 500 or mishap.stored_error:
                    running.status, running.body = answer.status, answer.body.decode()
                    smartpay.store_answer(scope, running)
            return answer
        finally:
            with smartpay.lock:
                if not running.status and smartpay.keys.get(scope) is running:
                    del smartpay.keys[scope]

    def _answer(self, account: Account, request: Request, mishap: Mishap) -> Answer:
        if mishap.stored_error == "before":
            return _server_error()
        try:
            answer = self._route(account, request, mishap)
        except Refusal as refusal:
            return refused(refusal)
        return _server_error() if mishap.stored_error == "after" else answer

    def _route(self, account: Account, request: Request, mishap: Mishap) -> Answer:
        known_path = False
        for method, pattern, action in self._routes:
            match = pattern.fullmatch(request.path)
            if not match or match.groupdict().get("name", "orders") not in _KIND:
                continue
            known_path = True
            if method == request.method:
                parts = match.groupdict()
                if action == self._create_refund:
                    parts["fails"] = mishap.refund_fails
                return action(account, request, **parts)
        if known_path:
            raise Refusal(405, "request.method-not-allowed", "This method is not available here")
        raise Refusal(404, "request.not-found", "There is nothing at this address")

    # Reading

    def _list(self, account: Account, request: Request, name: str) -> Answer:
        kind, expand = _KIND[name], _expand(request)
        text = request.query.get("maxResults", "") or "20"
        limit = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
        if not 1 <= limit <= self.smartpay.switches.max_results_limit:  # the upper bound is UNKNOWN
            raise _invalid("maxResults", f"1 to {self.smartpay.switches.max_results_limit} is expected")
        with self.smartpay.lock:
            page, token, next_token = self.smartpay.list(
                account, kind, request.query.get("pageToken", ""), limit
            )
            data = [self.smartpay.show(account, resource, expand=expand) for resource in page]
        collection: Resource = {"object": "collection", "pageToken": token}
        if next_token:
            collection["nextPageToken"] = next_token
        return _ok(collection | {"maxResults": limit, "results": len(data), "data": data})

    def _get(self, account: Account, request: Request, name: str, id: str) -> Answer:
        expand = _expand(request)
        with self.smartpay.lock:
            resource = self.smartpay.get(account, _KIND[name], id)
            return self._show(account, resource, expand=expand)

    def _show(self, account: Account, resource: Resource, *, expand: bool = False) -> Answer:
        return _ok(self.smartpay.show(account, resource, expand=expand))

    # Refunds and payments

    def _create_refund(self, account: Account, request: Request, fails: bool) -> Answer:
        body = Fields(request.body)
        id, amount = body.needed("payment"), body.whole("amount")
        body.currency()
        values = body.notes() | {"reason": body.choice("reason", _REASONS, required=True)}
        values |= {"metadata": values["metadata"] or {}, "lineItems": body.texts("lineItems")}
        payment = self.smartpay.get(account, "payment", id)
        if unknown := set(values["lineItems"] or []) - set(payment["lineItems"]):
            # No source says what foreign line items do: 400.
            raise _invalid("lineItems", f"not of this payment: {', '.join(sorted(unknown))}")
        return self._show(account, self.smartpay.refund(account, payment, amount, failed=fails, **values))

    def _create_payment(self, account: Account, request: Request) -> Answer:
        body = Fields(request.body)
        id, amount = body.needed("order"), body.whole("amount", required=True) or 0
        body.currency()
        values = body.notes() | {"lineItems": body.texts("lineItems")}
        values["metadata"] = values["metadata"] or {}
        keep = body.choice("cancelRemainder", ("automatic", "manual")) == "manual"
        order = self.smartpay.get(account, "order", id)
        if set(values["lineItems"] or []) - set(order["lineItems"]):
            raise _invalid("lineItems", "not of this order")
        return self._show(
            account, self.smartpay.capture(account, order, amount, cancel_remainder=not keep, **values)
        )

    def _update_notes(self, account: Account, request: Request, name: str, id: str) -> Answer:
        """PATCH of a payment or refund. Null leaves a field as it is, metadata is replaced whole (both UNKNOWN)."""
        resource = self.smartpay.get(account, _KIND[name], id)
        values = {key: value for key, value in Fields(request.body).notes().items() if value is not None}
        return self._show(account, self.smartpay.update(account, _KIND[name], resource, **values))

    # Orders and checkout sessions

    def _cancel_order(self, account: Account, request: Request, id: str) -> Answer:
        return self._show(account, self.smartpay.cancel(account, self.smartpay.get(account, "order", id)))

    def _create_order(self, account: Account, request: Request) -> Answer:
        """An order by token is authorized at once; its customerInfo comes back nowhere."""
        body = Fields(request.body)
        token = self.smartpay.get(account, "token", body.needed("token"))
        if token["status"] != "active":
            raise Refusal(400, "token.invalid", f"The token is {token['status']}")
        order = self._new_order(account, body, tokenId=token["id"])
        self.smartpay.emit(account, "token.used", token)
        return self._show(account, self.smartpay.authorize(account, order, approved=True))

    def _create_session(self, account: Account, request: Request) -> Answer:
        """A session makes its order at once, or a token in token mode. The answer is expanded."""
        body = Fields(request.body)
        urls = {name: body.text(name, required=True) for name in ("successUrl", "cancelUrl")}
        values = urls | {
            "customerInfo": body.mapping(
                "customerInfo"
            ),  # kept as sent: whether `email` is renamed is UNKNOWN
            "locale": body.choice("locale", ("en", "ja")),
            "metadata": body.metadata() or {},
            "reference": body.text("reference", _REFERENCE),
        }
        if body.choice("mode", ("token",)):
            token = self.smartpay.create(
                account, "token", status="requires_authorization", reference=values["reference"]
            )
            self.smartpay.emit(account, "token.created", token)
            values["token"] = token["id"]
        else:
            body.text("description", _DESCRIPTION)
            values["order"] = self._new_order(account, body)["id"]
        session = self.smartpay.create(account, "checkoutSession", **values)
        session["url"] = f"https://checkout.smartpay.co/{session['id']}"
        return self._show(account, session, expand=True)

    def _new_order(self, account: Account, body: Fields, **values: Any) -> Resource:
        amount, currency = body.whole("amount", least=0, required=True), body.currency()
        items = body.values.get("items")
        if not isinstance(items, list) or not 1 <= len(items) <= 50:
            raise _invalid("items", "1 to 50 items are expected")
        parsed = [Fields(json.dumps(item).encode()) for item in items]
        kinds = [item.choice("kind", ("product", "tax", "discount")) or "product" for item in parsed]
        if "product" not in kinds:
            raise _invalid("items", "at least one product is expected")
        shipping, notes = body.mapping("shippingInfo"), body.notes()
        manual = body.choice("captureMethod", ("automatic", "manual")) == "manual"
        for item in parsed:  # all of them before the first is made: a refusal leaves nothing behind
            item.whole("amount", least=0, required=True)
            item.whole("quantity", least=0)
            item.metadata()
        return self.smartpay.create(
            account,
            "order",
            amount=amount,
            currency=currency,
            discounts=[],
            lineItems=[self._new_line(account, *line) for line in zip(parsed, kinds, strict=True)],
            payments=[],
            shippingInfo=shipping,
            status="requires_authorization",
            _manual=manual,
            **(notes | {"metadata": notes["metadata"] or {}}),
            **values,
        )

    def _new_line(self, account: Account, item: Fields, kind: str) -> str:
        create, quantity = self.smartpay.create, item.whole("quantity", least=0)
        line: Resource = {"kind": kind, "quantity": 1 if quantity is None else quantity}
        line |= {"description": item.values.get("description"), "metadata": item.metadata() or {}}
        if kind == "product":
            named = ("name", "brand", "gtin", "reference", "url", "categories", "images")
            product = {name: item.values.get(name) for name in named}
            product |= {"description": item.values.get("productDescription"), "active": True}
            product["metadata"] = item.values.get("productMetadata", {})
            price: Resource = {
                "active": True,
                "amount": item.whole("amount", least=0),
                "currency": "JPY",
                "label": item.values.get("label"),
            }
            price |= {"description": item.values.get("priceDescription")}
            price["metadata"] = item.values.get("priceMetadata", {})
            price["product"] = create(account, "product", **product)["id"]
            line["price"] = create(account, "price", **price)["id"]
        else:
            line |= {"amount": item.whole("amount", least=0), "currency": "JPY"}
        return str(create(account, "lineItem", **line)["id"])

    # Webhook endpoints, tokens, coupons

    def _create_endpoint(self, account: Account, request: Request) -> Answer:
        body = Fields(request.body)
        values = self._endpoint_values(body, url_required=True)
        values = {"active": True, "eventSubscriptions": list(EVENT_TYPES), "metadata": {}} | values
        secret = new_signing_secret(secrets.token_bytes)
        return self._show(
            account, self.smartpay.create(account, "webhookEndpoint", signingSecret=secret, **values)
        )

    def _update_endpoint(self, account: Account, request: Request, id: str) -> Answer:
        endpoint = self.smartpay.get(account, "webhookEndpoint", id)
        values = self._endpoint_values(Fields(request.body), url_required=False)
        return self._show(account, self.smartpay.update(account, "webhookEndpoint", endpoint, **values))

    def _endpoint_values(self, body: Fields, *, url_required: bool) -> Resource:
        """The fields given. HTTP addresses are allowed, as Smartpay allows them for local use."""
        url = body.text("url", required=url_required)
        if url and not re.fullmatch(r"https?://[^\s/]+\S*", url):
            raise _invalid("url", "an http or https address is expected")
        types = body.texts("eventSubscriptions")
        if unknown := set(types or []) - set(EVENT_TYPES):
            raise _invalid("eventSubscriptions", f"no such event: {', '.join(sorted(unknown))}")
        values: Resource = {"url": url, "eventSubscriptions": types, "active": body.flag("active")}
        values |= {"description": body.text("description"), "metadata": body.metadata()}
        return {name: value for name, value in values.items() if value is not None}

    def _delete(self, account: Account, request: Request, name: str, id: str) -> Answer:
        resource = self.smartpay.get(account, _KIND[name], id)
        self.smartpay.delete(account, _KIND[name], id)
        if name == "tokens":
            self.smartpay.emit(account, "token.deleted", resource)
        return Answer(204)

    def _switch_token(self, account: Account, request: Request, id: str, verb: str) -> Answer:
        """Answers 200 with an empty body: not every success is JSON."""
        token = self.smartpay.get(account, "token", id)
        if token["status"] not in ("active", "disabled"):
            raise Refusal(409, "token.invalid", f"The token is {token['status']}")
        status, event = ("active", "token.enabled") if verb == "enable" else ("disabled", "token.disabled")
        self.smartpay.emit(account, event, self.smartpay.update(account, "token", token, status=status))
        return Answer(200)

    def _create_coupon(self, account: Account, request: Request) -> Answer:
        body = Fields(request.body)
        kind = body.choice("discountType", ("amount", "percentage"), required=True)
        field_name = "discountAmount" if kind == "amount" else "discountPercentage"
        values = {field_name: body.whole(field_name, required=True), "discountType": kind}
        values |= {"currency": body.currency() if kind == "amount" else None}
        values |= {name: body.whole(name) for name in ("expiresAt", "maxRedemptionCount")}
        coupon = self.smartpay.create(
            account,
            "coupon",
            active=True,
            name=body.needed("name"),
            description=body.text("description"),
            metadata=body.metadata() or {},
            redemptionCount=0,
            sponsored=False,
            **values,
        )
        self.smartpay.emit(account, "coupon.created", coupon)
        return self._show(account, coupon)

    def _create_promotion_code(self, account: Account, request: Request) -> Answer:
        body = Fields(request.body)
        code, coupon = body.needed("code"), self.smartpay.get(account, "coupon", body.needed("coupon"))
        for _, known in account.walk("promotionCode", None, newest_first=True):
            if known["code"] == code and known["active"]:
                # The contract knows this code of error, not its status: a conflict.
                raise Refusal(409, "promotion-code.exists", "An active promotion code has this code already")
        promotion = self.smartpay.create(
            account,
            "promotionCode",
            active=body.flag("active") is not False,
            code=code,
            coupon=coupon["id"],
            currency=coupon.get("currency"),
            expiresAt=body.whole("expiresAt"),
            firstTimeTransaction=bool(body.flag("firstTimeTransaction")),
            maxRedemptionCount=body.whole("maxRedemptionCount"),
            metadata=body.metadata() or {},
            minimumAmount=body.whole("minimumAmount"),
            onePerCustomer=bool(body.flag("onePerCustomer")),
            redemptionCount=0,
        )
        self.smartpay.emit(account, "promotion_code.created", promotion)
        return self._show(account, promotion)

    def _update_coupon(self, account: Account, request: Request, name: str, id: str) -> Answer:
        resource, body = self.smartpay.get(account, _KIND[name], id), Fields(request.body)
        values: Resource = {"active": body.flag("active"), "metadata": body.metadata()}
        if name == "coupons":
            values["name"] = body.text("name")
        values = {key: value for key, value in values.items() if value is not None}
        updated = self.smartpay.update(account, _KIND[name], resource, **values)
        self.smartpay.emit(
            account, "coupon.updated" if name == "coupons" else "promotion_code.updated", updated
        )
        return self._show(account, updated)


def _work(mishap: Mishap) -> None:
    if mishap.delay:
        time.sleep(mishap.delay)


def compact(value: Any) -> bytes:
    """JSON without blanks: an official test looks for `"errorCode":"token.not-found"` as a piece of text."""
    return _ENCODER.encode(value).encode()


def refused(refusal: Refusal) -> Answer:
    envelope = {
        "statusCode": refusal.status,
        "errorCode": refusal.code,
        "message": refusal.message,
        "details": refusal.details,
    }
    return _json(refusal.status, envelope)


def unauthorized() -> Answer:
    """The one error of another shape: no errorCode."""
    return _json(401, {"statusCode": 401, "scheme": "Basic", "realm": "Smartpay"})


def _json(status: int, value: Any) -> Answer:
    return Answer(status, compact(value), {"Content-Type": "application/json; charset=utf-8"})


def _ok(value: Resource) -> Answer:
    return _json(200, value)  # creations too: never 201


def _server_error() -> Answer:
    return refused(Refusal(500, "server.error", "Something went wrong"))


def _replay(known: StoredAnswer, fingerprint: str) -> Answer:
    if known.fingerprint != fingerprint:
        return refused(Refusal(409, "idempotency-key.reused", "This key was used with another body"))
    if not known.status:
        return refused(Refusal(409, "idempotency-key.in-progress", "The first request is still running"))
    # The contract's source breaks off after "Idempotency-R": this name is the likely one (UNKNOWN).
    headers = {"Content-Type": "application/json; charset=utf-8"} if known.body else {}
    return Answer(known.status, known.body.encode(), headers | {"Idempotency-Replayed": "true"})


def _expand(request: Request) -> bool:
    """`all`, `no`, or empty as Ruby and PHP send it. Anything else is UNKNOWN: 400."""
    value = request.query.get("expand", "")
    if value not in ("", "no", "all"):
        raise _invalid("expand", "all or no is expected")
    return value == "all"


def _invalid(name: str, problem: str) -> Refusal:
    """What `details` holds is UNKNOWN; here one object a problem."""
    message = f"Input parameter or payload is invalid: {name} {problem}".replace("  ", " ")
    return Refusal(400, "request.invalid", message, [{"field": name, "problem": problem}])


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")
