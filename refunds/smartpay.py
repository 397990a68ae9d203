"""A client of Smartpay's API: typed answers, and errors named by what happened to the money. It knows no models.

Every fact comes from Smartpay's API reference and its official SDKs. Where they are silent, this module takes the
cautious reading and says so. Amounts are integers in the currency's minor unit (¥2,500 is 2500).
"""

import copy
import hashlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Literal, Self
from urllib.parse import quote

import requests
from django.conf import settings
from django.db import connection
from prometheus_client import Histogram
from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, HTTPError, MaxRetryError, NewConnectionError
from urllib3.util.retry import Retry

type Json = dict[str, Any]

USER_AGENT = "refund-dashboard"
LARGEST_REFUND_ANSWER = 1024 * 1024  # bytes
LARGEST_READ_ANSWER = 16 * 1024 * 1024  # bytes: a page of expanded orders with all their products
LARGEST_AMOUNT = 2**63 - 1
PAGE_SIZES = (100, 20)  # the largest maxResults is unknown; 20 is the only size known to work
RETRIED_READS = Retry(
    total=2,
    connect=1,  # without a pause, since a person may be waiting for the page
    backoff_factor=0.3,
    status_forcelist=(502, 503, 504),
    allowed_methods=("GET",),
    respect_retry_after_header=False,  # the caller decides how to wait; Retry would sleep in here
)

CALL_SECONDS = Histogram(
    "dashboard_smartpay_call_seconds",
    "Calls of Smartpay, by what was asked and what the answer meant: ANSWERED, or an error's outcome.",
    ["call", "outcome"],
    buckets=(0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60),
)

_KEY = re.compile(r"sk_(test|live)_[0-9a-zA-Z]+")
_ID = re.compile(r"(order|payment|refund|checkout)_(test|live)_[0-9a-zA-Z]+")

type Kind = Literal["order", "payment", "refund", "checkout"]
type Mode = Literal["test", "live"]


# --- Errors -------------------------------------------------------------------------------------------------


class SmartpayError(Exception):
    """Smartpay did not do, or did not show, what was asked. The text holds no key, name or mail."""

    outcome = "AMBIGUOUS"

    def __init__(
        self,
        message: str = "",
        *,
        http_status: int | None = None,
        error_code: str = "",
        retry_after: float | None = None,
        sha256: str = "",
        replayed: bool = False,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.http_status = http_status
        self.error_code = error_code
        self.retry_after = retry_after
        self.sha256 = sha256
        self.replayed = replayed

    @property
    def about(self) -> str:
        """For engineers: `AMBIGUOUS HTTP 503 internal`."""
        return f"{self.outcome} HTTP {self.http_status or '-'} {self.error_code}".strip()


class Refused(SmartpayError):
    """Smartpay refused in its own words. On a first attempt nothing happened; after an earlier one it may have."""

    outcome = "REFUSED"


class NotFound(Refused):
    """No such object for this key: unknown, or of the other mode."""


class NotSent(SmartpayError):
    """No byte of the request left: nothing happened, and it may be sent again."""

    outcome = "NOT_SENT"


class Unclear(SmartpayError):
    """It may have been done: only the same request, under its key, may follow."""


class NotAccepted(Unclear):
    """The request was turned away before Smartpay applied its own rules: a foreign 403 or 404, a 405, a 415."""

    outcome = "NOT_ACCEPTED"


class Unauthorized(NotAccepted):
    """401: the secret key is missing, wrong or outdated. Every further call would get the same answer."""


class InProgress(Unclear):
    """409 or 425: Smartpay is working on the same idempotency key, or it was used with another body."""

    outcome = "IN_PROGRESS"


class Limited(Unclear):
    """429: Smartpay asks us to wait."""

    outcome = "LIMITED"


class Contradiction(Unclear):
    """The answer is not the refund asked for: its payment, amount, currency, mode or reference differs."""

    outcome = "CONTRADICTION"


# --- Answers ------------------------------------------------------------------------------------------------


def _moment(value: Any) -> datetime:
    """Return Smartpay's milliseconds since 1970 as an aware datetime."""
    return datetime.fromtimestamp(value / 1000, tz=UTC)


def _whole(value: Any, *, least: int = 0) -> int:
    """Return an amount.

    Raises: TypeError for anything but an int, since no amount is a fraction of a yen; ValueError for an int below
    `least` or too large for our databases.
    """
    if type(value) is not int:
        raise TypeError("An amount is an integer.")
    if not least <= value <= LARGEST_AMOUNT:
        raise ValueError("An amount is out of bounds.")
    return value


def _text(value: Any) -> str:
    """Return a text; "" if it is absent or null, which are the same to Smartpay."""
    return value if isinstance(value, str) else ""


def _word(value: Any) -> str:
    """Return a text that has to be there. Raises TypeError."""
    if not isinstance(value, str):
        raise TypeError("Not a text.")
    return value


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _object(value: Any) -> Json:
    return value if isinstance(value, dict) else {}


def _printable(text: str) -> str:
    """Return Smartpay's words as one line for every database and log: no NUL, no line break, no lone surrogate."""
    return "".join(character if character.isprintable() else " " for character in text)


def _id(value: Any) -> str:
    """Return the id that a reference names: the reference is the id itself, or the expanded object."""
    return _text(value.get("id")) if isinstance(value, dict) else _text(value)


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund as Smartpay shows it. `status` is "succeeded", "failed" or, where absent, ""."""

    id: str
    payment: str
    amount: int
    currency: str
    status: str
    reason: str
    description: str
    reference: str
    metadata: Json
    test: bool
    created_at: datetime

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=_word(data["id"]),
            payment=_id(data["payment"]),
            amount=_whole(data["amount"]),
            currency=data["currency"].upper(),
            status=_text(data.get("status")),
            reason=_text(data.get("reason")),
            description=_text(data.get("description")),
            reference=_text(data.get("reference")),
            metadata=_object(data.get("metadata")),
            test=data["test"],
            created_at=_moment(data["createdAt"]),
        )


@dataclass(frozen=True, slots=True)
class Payment:
    """A capture. `refund_ids` is None if the answer does not list refunds; the sources disagree on whether it does."""

    id: str
    order: str
    amount: int
    currency: str
    status: str
    description: str
    reference: str
    refund_ids: tuple[str, ...] | None
    test: bool
    created_at: datetime

    @classmethod
    def parse(cls, data: Json) -> Self:
        refunds = data.get("refunds")
        if not isinstance(refunds, list | None):
            raise TypeError("A list that can't be read is not an empty one.")
        return cls(
            id=_word(data["id"]),
            order=_id(data["order"]),
            amount=_whole(data["amount"]),
            currency=data["currency"].upper(),
            status=_text(data.get("status")),
            description=_text(data.get("description")),
            reference=_text(data.get("reference")),
            refund_ids=None if refunds is None else tuple(_id(refund) for refund in refunds),
            test=data["test"],
            created_at=_moment(data["createdAt"]),
        )


@dataclass(frozen=True, slots=True)
class Customer:
    """The customer that the merchant sent to prefill a checkout. Every field may be missing ("")."""

    family_name: str = ""
    given_name: str = ""
    family_kana: str = ""
    given_kana: str = ""
    email: str = ""

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            family_name=_text(data.get("lastName")),
            given_name=_text(data.get("firstName")),
            family_kana=_text(data.get("lastNameKana")),
            given_kana=_text(data.get("firstNameKana")),
            email=_text(data.get("emailAddress")) or _text(data.get("email")),  # official samples send either
        )

    def __bool__(self) -> bool:
        return bool(self.family_name or self.given_name or self.family_kana or self.given_kana or self.email)

    @property
    def is_named(self) -> bool:
        return bool(self.family_name or self.given_name)

    def __repr__(self) -> str:
        return "Customer(…)"  # so that no repr brings a person's data into a log


@dataclass(frozen=True, slots=True)
class LineItem:
    """A line of an order. `amount` is the price of one piece; `kind` is "product", "tax" or "discount"."""

    name: str
    quantity: int
    amount: int
    currency: str
    kind: str

    @classmethod
    def parse(cls, data: Json) -> Self:
        price = data.get("price")
        price = price if isinstance(price, dict) else {}
        product = price.get("product")
        product = product if isinstance(product, dict) else {}
        return cls(
            name=_text(product.get("name")) or _text(data.get("description")) or _text(price.get("label")),
            quantity=_whole(data.get("quantity") or 1),
            amount=_whole(
                data["amount"] if data.get("amount") is not None else price.get("amount") or 0,
                least=-LARGEST_AMOUNT,
            ),
            currency=_text(data.get("currency") or price.get("currency")).upper(),
            kind=_text(data.get("kind")) or "product",
        )

    @classmethod
    def parse_all(cls, items: list[Any]) -> Iterator[Self]:
        """Yield the items that can be read. They are only displayed, so an unreadable one does not fail its order."""
        for item in items:
            with suppress(*UNREADABLE):
                yield cls.parse(item)


@dataclass(frozen=True, slots=True)
class Order:
    """An order, read with `expand=all`. It carries no customer: see CheckoutSession."""

    id: str
    amount: int
    currency: str
    status: str
    reference: str
    description: str
    token_id: str
    test: bool
    created_at: datetime
    expires_at: datetime | None
    payments: tuple[Payment, ...]
    line_items: tuple[LineItem, ...]  # those that can be read
    customer: Customer = field(default_factory=Customer)

    @classmethod
    def parse(cls, data: Json) -> Self:
        return cls(
            id=_word(data["id"]),
            amount=_whole(data["amount"]),
            currency=data["currency"].upper(),
            status=_word(data["status"]),
            reference=_text(data.get("reference")),
            description=_text(data.get("description")),
            token_id=_text(data.get("tokenId")),
            test=data["test"],
            created_at=_moment(data["createdAt"]),
            expires_at=None if data.get("expiresAt") is None else _moment(data["expiresAt"]),
            payments=tuple(Payment.parse(payment) for payment in _list(data.get("payments"))),
            line_items=tuple(LineItem.parse_all(_list(data.get("lineItems")))),
            # No schema has it. It is read if the live API returns it all the same, and never required.
            customer=Customer.parse(data.get("customerInfo") or {}),
        )


@dataclass(frozen=True, slots=True)
class CheckoutSession:
    """A checkout, the only object with a customer's name and mail. `order` is None in token mode."""

    id: str
    order: Order | None
    customer: Customer
    reference: str
    created_at: datetime | None = None  # the sources disagree: seconds or milliseconds. Only compare it

    @classmethod
    def parse(cls, data: Json) -> Self:
        order = data.get("order")
        return cls(
            id=_word(data["id"]),
            order=Order.parse(order) if isinstance(order, dict) else None,
            customer=Customer.parse(data.get("customerInfo") or {}),
            reference=_text(data.get("reference")),
            created_at=_moment(data["createdAt"]) if type(data.get("createdAt")) is int else None,
        )


@dataclass(frozen=True, slots=True)
class Page[T]:
    """One page of a list. `next_token` is "" at the end. `unreadable`: ids of objects that are missing in `items`."""

    items: tuple[T, ...]
    next_token: str
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to a refund request that is our refund: its contents, and what the attempt keeps of the answer."""

    refund: Refund
    outcome: Literal["EXECUTED", "FAILED"]
    http_status: int
    replayed: bool
    sha256: str


# What parse() raises for an object that is not as expected. A time beyond all calendars is an OSError.
UNREADABLE = (KeyError, TypeError, ValueError, AttributeError, OverflowError, OSError)


@dataclass(frozen=True, slots=True)
class _Response:
    status: int
    headers: requests.structures.CaseInsensitiveDict[str]
    body: bytes

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.body).hexdigest()

    @property
    def replayed(self) -> bool:
        """Whether Smartpay replayed a stored answer. The documents cut the header's name off: "Idempotency-R…"."""
        return any(name.lower().startswith("idempotency-re") for name in self.headers)

    @property
    def json(self) -> Json | None:
        """The body as an object; None if it is no JSON object, or not declared as JSON."""
        kind = self.headers.get("Content-Type", "").split(";")[0].strip().lower()
        if kind not in {"application/json", "text/json"}:
            return None
        try:
            data = json.loads(self.body)
        except (ValueError, RecursionError):
            return None
        return data if isinstance(data, dict) else None


# --- Ids and modes ------------------------------------------------------------------------------------------


def mode_of(secret_key: str) -> Mode:
    """Return "test" or "live". Raises ValueError for what is not a secret key; the message does not hold it."""
    match = _KEY.fullmatch(secret_key)
    if not match:
        raise ValueError("Not a Smartpay secret key: sk_test_… or sk_live_… is expected.")
    return "test" if match[1] == "test" else "live"


def id_kind(text: str) -> tuple[Kind, Mode] | None:
    """Return what an id names: ("order", "test") for "order_test_…"; None for anything that is not a whole id."""
    match = _ID.fullmatch(text)
    return (match[1], match[2]) if match else None  # type: ignore[return-value]


def refund_body(
    *, payment_id: str, amount: int, currency: str, reason: str, description: str, key: str
) -> str:
    """Return the body of a refund request. It is stored, and every attempt sends it byte for byte.

    `amount` is always included, since Smartpay would otherwise refund all that is left. The key goes into `reference`
    and into `metadata`, because not every schema of Smartpay returns both. An empty description is left out.

    Raises: TypeError for an amount that is not an int (a bool is not), ValueError for one below 1.
    Source: Smartpay API reference, "Create a refund" (POST /refunds).
    """
    if type(amount) is not int:
        raise TypeError("An amount is an integer in the currency's minor unit.")
    if amount < 1:
        raise ValueError("An amount is at least 1.")
    body: Json = {
        "payment": payment_id,
        "amount": amount,
        "currency": currency,
        "reason": reason,
        "reference": key,
        "metadata": {"refund_dashboard_id": key},
    }
    if description:
        body["description"] = description
    return json.dumps(body, ensure_ascii=False, separators=(",", ":"))


@contextmanager
def _measured(call: str) -> Iterator[None]:
    """Measure how long a call takes, by what its answer means. It serves as a decorator, too."""
    began, outcome = time.perf_counter(), "ANSWERED"
    try:
        yield
    except SmartpayError as error:
        outcome = error.outcome
        raise
    finally:
        CALL_SECONDS.labels(call, outcome).observe(time.perf_counter() - began)


# --- The client ---------------------------------------------------------------------------------------------


class _Session(requests.Session):
    def get_redirect_target(self, resp: requests.Response) -> None:
        """Return none. With `allow_redirects=False` alone, requests still looks at it, after a body of any size."""


class _Punctual(HTTPAdapter):
    """Lets no request leave after `ends`: a name lookup alone may take longer than the caller waits for the answer."""

    def __init__(self, *, ends: float) -> None:
        self._ends = ends
        super().__init__(max_retries=Retry(0))

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, **kwargs)
        ends = self._ends

        class InTime:
            def connect(self: Any) -> None:
                super().connect()  # type: ignore[misc]  # of the connection that this is mixed into
                if time.monotonic() > ends:
                    self.close()
                    raise ConnectTimeoutError(self, "Connected too late to send.")

        class Plain(InTime, HTTPConnection):
            pass

        class Secure(InTime, HTTPSConnection):
            pass

        class PlainPool(HTTPConnectionPool):
            ConnectionCls = Plain

        class SecurePool(HTTPSConnectionPool):
            ConnectionCls = Secure

        self.poolmanager.pool_classes_by_scheme = {"http": PlainPool, "https": SecurePool}


class Client:
    """Smartpay for one secret key. Reads share connections and are retried; a refund is sent once, on a new one."""

    def __init__(self, *, base_url: str, secret_key: str, deadline: float | None = None) -> None:
        """`deadline`: seconds that a whole call may take, however slowly bytes arrive; default SMARTPAY_DEADLINE."""
        self.mode = mode_of(secret_key)
        self._base_url = base_url
        self._authorization = f"Basic {secret_key}"  # Smartpay wants the key as it is, not in base64
        self._timeout = (settings.SMARTPAY_CONNECT_TIMEOUT, settings.SMARTPAY_READ_TIMEOUT)
        self._deadline: float = settings.SMARTPAY_DEADLINE if deadline is None else deadline
        self._reads = self._session(HTTPAdapter(max_retries=RETRIED_READS))
        self._page_size = PAGE_SIZES[0]

    def __repr__(self) -> str:
        return f"<Client {self.mode} {self._base_url}>"

    def within(self, seconds: float) -> "Client":
        """Return a copy with another deadline, which shares connections: for a page that a person waits for."""
        other = copy.copy(self)
        other._deadline = seconds
        return other

    # -- reads

    def get_order(self, order_id: str) -> Order:
        """Return an order with its payments and line items. Raises: NotFound, Refused, NotSent, Unclear."""
        path = f"/orders/{quote(order_id, safe='')}"
        return self._parsed(Order.parse, self._read(path, {"expand": "all"}), "order", asked=order_id)

    def get_payment(self, payment_id: str) -> Payment:
        """Return a payment. Raises: NotFound, Refused, NotSent, Unclear."""
        path = f"/payments/{quote(payment_id, safe='')}"
        return self._parsed(Payment.parse, self._read(path, {"expand": "all"}), "payment", asked=payment_id)

    def get_refund(self, refund_id: str) -> Refund:
        """Return a refund. Raises: NotFound, Refused, NotSent, Unclear."""
        path = f"/refunds/{quote(refund_id, safe='')}"
        return self._parsed(Refund.parse, self._read(path, {}), "refund", asked=refund_id)

    def list_orders(self, page_token: str = "") -> Page[Order]:
        """Return a page of orders, expanded. Raises: Refused (a token that expired, too), NotSent, Unclear."""
        return self._page("/orders", page_token, Order.parse, "order", passes="order", expand="all")

    def list_checkout_sessions(self, page_token: str = "") -> Page[CheckoutSession]:
        """Return a page of checkout sessions with their orders. Raises: as list_orders."""
        return self._page(
            "/checkout-sessions",
            page_token,
            CheckoutSession.parse,
            "checkoutSession",
            passes="checkout",
            expand="all",
        )

    def list_refunds(self, page_token: str = "") -> Page[Refund]:
        """Return a page of refunds, in no promised order; there is no filter.

        Raises: as list_orders; also Unclear if one refund of the page can't be read, since a complete scan is a proof.
        """
        return self._page("/refunds", page_token, Refund.parse, "refund")

    # -- the one write

    @_measured("refund")
    def create_refund(self, *, body: str, key: str, payment_id: str, amount: int, currency: str) -> Answer:
        """Send a refund request. Smartpay executes it once, even if it is repeated under its key within six hours.

        Args:
            body: the frozen text of refund_body().
            key: a UUID's text; the Idempotency-Key and the body's `reference`.
            payment_id, amount, currency: what the answer has to repeat.

        Returns the refund as Smartpay answered it: executed, or failed by its own `status`.
        Raises: Refused, NotSent, Unclear (and its subclasses): see Note [What an answer means].
        Source: Smartpay API reference, "Create a refund" (POST /refunds) and "Idempotency".
        """
        response = self._call(
            lambda session: session.post(
                f"{self._base_url}/refunds",
                data=body.encode(),
                headers={
                    "Authorization": self._authorization,
                    "Content-Type": "application/json",
                    "Idempotency-Key": key,
                    "Connection": "close",
                },
                timeout=self._timeout,
                allow_redirects=False,  # a 307 would post the refund, and the key, to another place
                stream=True,
            ),
            # A new connection: on a shared one that the server is just closing, the answer would be lost.
            session=self._session(_Punctual(ends=time.monotonic() + self._deadline)),
            largest=LARGEST_REFUND_ANSWER,
        )
        if not 200 <= response.status < 300:
            raise self._error(response, refusals=REFUSALS)
        return self._judged(response, payment_id=payment_id, amount=amount, currency=currency, key=key)

    def _judged(
        self, response: _Response, *, payment_id: str, amount: int, currency: str, key: str
    ) -> Answer:
        """Return a 2xx answer that is the refund asked for. Raises Unclear or Contradiction for any other.

        See Note [What an answer means].
        """
        data = response.json
        kept: Json = {
            "http_status": response.status,
            "sha256": response.sha256,
            "replayed": response.replayed,
        }
        if data is None:
            raise Unclear("The answer is not JSON.", **kept)
        required = ("object", "id", "payment", "amount", "currency", "test")
        if any(data.get(name) is None for name in required):
            raise Unclear("The answer lacks a field.", **kept)
        if type(data["amount"]) is not int or not isinstance(data["currency"], str):
            raise Unclear("The answer has a field of another type.", **kept)
        metadata = data.get("metadata")
        echo = metadata.get("refund_dashboard_id") if isinstance(metadata, dict) else None
        contradictions = {
            "object": data["object"] != "refund",
            "id": id_kind(_text(data["id"])) != ("refund", self.mode),
            "payment": _id(data["payment"]) != payment_id,
            "amount": data["amount"] != amount,
            "currency": data["currency"].upper() != currency,
            "test": data["test"] is not (self.mode == "test"),
            "reference": data.get("reference") not in (None, key),
            "metadata": echo not in (None, key),
        }
        if wrong := [name for name, differs in contradictions.items() if differs]:
            raise Contradiction(f"The answer differs in: {', '.join(wrong)}.", **kept)
        if data.get("status") not in (None, "succeeded", "failed"):
            raise Unclear("The refund's status is one that we do not know.", **kept)
        try:
            refund = Refund.parse(data)
        except UNREADABLE as error:
            raise Unclear("The answer lacks a field.", **kept) from error
        return Answer(refund=refund, outcome="FAILED" if refund.status == "failed" else "EXECUTED", **kept)

    # -- how a call is made

    def _session(self, adapter: HTTPAdapter) -> requests.Session:
        session = _Session()
        session.trust_env = (
            False  # a .netrc would replace our Authorization, a proxy variable would reroute money
        )
        # Compressed bodies could be small on the wire and huge here.
        session.headers.update(
            {"Accept": "application/json", "Accept-Encoding": "identity", "User-Agent": USER_AGENT}
        )
        session.mount("https://", adapter)
        session.mount("http://", adapter)
        return session

    def _read(self, path: str, query: Json) -> Json:
        with _measured(path.split("/")[1]):
            response = self._call(
                lambda session: session.get(
                    f"{self._base_url}{path}",
                    params=query,
                    headers={"Authorization": self._authorization},
                    timeout=self._timeout,
                    allow_redirects=False,
                    stream=True,
                ),
                session=self._reads,
                largest=LARGEST_READ_ANSWER,
            )
            if response.status != 200:
                raise self._error(response, refusals=None)
            data = response.json
            if data is None:
                raise Unclear("The answer is not JSON.", http_status=response.status)
            return data

    def _page[T](
        self,
        path: str,
        page_token: str,
        parse: Callable[[Json], T],
        kind: str,
        *,
        passes: Kind | None = None,
        **query: str,
    ) -> Page[T]:
        """Return one page. `passes`: an unreadable object with an id of this kind and mode goes into `unreadable`."""
        if page_token:
            query["pageToken"] = page_token
        try:
            data = self._read(path, query | {"maxResults": str(self._page_size)})
        except Refused as error:
            if error.http_status != 400 or self._page_size == PAGE_SIZES[-1]:
                raise
            data = self._read(path, query | {"maxResults": str(PAGE_SIZES[-1])})
            self._page_size = PAGE_SIZES[-1]  # only now: a page token that ran out is a 400 as well
        if not isinstance(data.get("data"), list):
            raise Unclear("The answer is not a collection.")
        token = data.get("nextPageToken")
        if not isinstance(token, str | None):
            raise Unclear(
                "The place of the next page can't be read."
            )  # taken for none, the list would end here
        items, unreadable = [], []
        for item in data["data"]:
            try:
                items.append(self._parsed(parse, item, kind))
            except Unclear:
                if id_kind(_id(item)) != (passes, self.mode):
                    raise
                unreadable.append(_id(item))
        return Page(items=tuple(items), next_token=token or "", unreadable=tuple(unreadable))

    def _parsed[T](self, parse: Callable[[Json], T], data: Any, kind: str, *, asked: str = "") -> T:
        """Parse one object. Raises Unclear if its mode or kind is wrong, it was not asked for, or can't be read."""
        try:
            if data["object"] != kind or data["test"] is not (self.mode == "test"):
                raise Unclear(f"Not a {kind} of {self.mode} mode.")
            if asked and data["id"] != asked:
                raise Unclear(f"Not the {kind} that was asked for.")
            return parse(data)
        except UNREADABLE as error:
            raise Unclear(f"The {kind} lacks a field.") from error

    def _call(
        self,
        send: Callable[[requests.Session], requests.Response],
        *,
        session: requests.Session,
        largest: int,
    ) -> _Response:
        """Make one call and return its whole answer, within the deadline.

        The call runs in a thread of its own. Timeouts of requests count from byte to byte, so neither a header that
        drips nor a name server that hangs would ever exceed one. Past the deadline the thread is abandoned.

        Raises: NotSent, Unclear; RuntimeError inside a transaction, since what is not committed before the request
            leaves could be lost, and the transaction would hold its locks during the call.
        """
        # As in atomic(durable=True), the transactions in which tests run do not count.
        if any(not block._from_testcase for block in connection.atomic_blocks):  # type: ignore[attr-defined]
            raise RuntimeError("Smartpay is not called inside a transaction.")
        ends = time.monotonic() + self._deadline
        result: list[_Response | SmartpayError] = []

        def run() -> None:
            try:
                with send(session) as response:
                    body = b"".join(_chunks(response, largest=largest, ends=ends))
                    result.append(_Response(response.status_code, response.headers, body))
            except (requests.RequestException, HTTPError) as error:
                # Name only the class: the error's own text may hold the URL, with ids in it.
                kind = NotSent if _nothing_left(error) else Unclear
                result.append(kind(f"No answer: {type(error).__name__}."))
            except SmartpayError as error:
                result.append(error)

        thread = threading.Thread(target=run, name="smartpay", daemon=True)
        thread.start()
        thread.join(self._deadline)
        if not result:
            raise Unclear("No answer within the deadline.")
        if isinstance(result[0], SmartpayError):
            raise result[0]
        return result[0]

    def _error(self, response: _Response, *, refusals: set[tuple[int, str]] | None) -> SmartpayError:
        """Return the error for an answer that is not 2xx.

        `refusals`: the statuses and codes that are Smartpay's own refusal; None for every error in Smartpay's shape.
        """
        data = response.json or {}
        code = _text(data.get("errorCode"))
        is_smartpays = bool(code) and data.get("statusCode") == response.status
        about: Json = {
            "http_status": response.status,
            "error_code": _printable(code)[:64],
            "retry_after": _retry_after(response.headers.get("Retry-After", "")),
            "sha256": response.sha256,
            "replayed": response.replayed,
        }
        message = _printable(_text(data.get("message")))[:500] if is_smartpays else ""
        match response.status:
            case 401:
                return Unauthorized(message, **about)
            case 409 | 425:
                return InProgress(message, **about)
            case 429:
                return Limited(message, **about)
            case 400 | 403 | 404 | 410 | 422 if is_smartpays and (
                refusals is None or (response.status, code) in refusals
            ):
                return (NotFound if response.status == 404 else Refused)(message, **about)
            case 403 | 404 | 405 | 415:
                return NotAccepted(message, **about)
            case _:
                return Unclear(message, **about)


# Note [What an answer means]
# Only these errors, in Smartpay's own error shape, prove that nothing happened on a first attempt. Every answer that is
# neither clearly the refund asked for nor clearly one of these leaves the outcome open. Silence never means "failed".
REFUSALS = {(400, "request.invalid"), (403, "amount.insufficient"), (404, "payment.not-found")}


def _chunks(response: requests.Response, *, largest: int, ends: float) -> Iterator[bytes]:
    """Yield the body as it arrives. Raises Unclear if it is too large, too late or cut off."""
    size = 0
    while chunk := response.raw.read1(64 * 1024):
        size += len(chunk)
        if size > largest:
            raise Unclear("The answer is too large.", http_status=response.status_code)
        if time.monotonic() > ends:
            raise Unclear("No answer within the deadline.", http_status=response.status_code)
        yield chunk
    declared = response.headers.get("Content-Length", "")
    if declared.isdigit() and int(declared) != size:
        raise Unclear("The answer was cut off.", http_status=response.status_code)


def _nothing_left(error: Exception) -> bool:
    """Return whether a network error came before the first byte left: no host, refused, or no connection in time."""
    cause = error.args[0] if error.args else None
    if isinstance(cause, MaxRetryError):
        cause = cause.reason
    return isinstance(cause, (NewConnectionError, ConnectTimeoutError))


def _retry_after(value: str) -> float | None:
    """Return the seconds of a Retry-After header; None if it is absent, a date or nonsense."""
    return float(value) if value.isascii() and value.isdigit() and len(value) < 6 else None


@cache
def client() -> Client:
    """Return this process's client, for SMARTPAY_API_URL and SMARTPAY_SECRET_KEY."""
    return Client(base_url=settings.SMARTPAY_API_URL, secret_key=settings.SMARTPAY_SECRET_KEY)
