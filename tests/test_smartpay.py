"""What every answer means for the money, what is sent and what never is: over real sockets, mostly the sandbox's."""

import contextlib
import gzip
import inspect
import ipaddress
import json
import logging
import re
import socket
import ssl
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import responses
import sentry_sdk
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from django.db import transaction
from hypothesis import given, settings, strategies
from requests.structures import CaseInsensitiveDict
from urllib3.util.retry import Retry

from dashboard import faults
from refunds import smartpay
from refunds.smartpay import (
    Answer,
    Client,
    Contradiction,
    InProgress,
    Limited,
    NotAccepted,
    NotFound,
    NotSent,
    Refused,
    Unauthorized,
    Unclear,
)
from tests.sandbox import Sandbox

SECRET_KEY = "sk_test_CanaryOfTheSecretKey"
KEY = "0c2ab4c7-9a0c-4f0e-9a3c-0d4b8d6c1f11"
PAYMENT = "payment_test_a7zPsUYt1CZPEZ7xtbUYB"
CREATED = 1_700_000_000_123


# --- Two Smartpays: the sandbox, and a bare socket for what the sandbox can't say ---------------------------


class Wire:
    """A server on loopback that says what it is told to say, byte for byte, to each request that came in whole."""

    def __init__(
        self, say: bytes | Callable[[socket.socket], None], tls: ssl.SSLContext | None = None
    ) -> None:
        self.heard: list[bytes] = []
        self.refusals: list[str] = []  # why a client ended the handshake
        self._say, self._tls = say, tls
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        scheme = "https" if tls else "http"
        self.url = f"{scheme}://127.0.0.1:{self._listener.getsockname()[1]}/v1"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                connection, _address = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._tls:
                try:
                    connection = self._tls.wrap_socket(connection, server_side=True)
                except ssl.SSLError as error:
                    self.refusals.append(error.reason)
                    return
            request = b""
            while b"\r\n\r\n" not in request:
                request += connection.recv(65536)
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", request)
            while length and len(request.split(b"\r\n\r\n", 1)[1]) < int(length[1]):
                request += connection.recv(65536)
            self.heard.append(request)
            if callable(self._say):
                self._say(connection)
            else:
                connection.sendall(self._say)


@pytest.fixture
def wire() -> Iterator[Callable[..., Wire]]:
    wires: list[Wire] = []

    def serve(say: bytes | Callable[[socket.socket], None], tls: ssl.SSLContext | None = None) -> Wire:
        wires.append(Wire(say, tls))
        return wires[-1]

    yield serve
    for each in wires:
        each.close()


def http(body: Any = b"", status: int = 200, length: int | None = None, **headers: str) -> bytes:
    """An answer as bytes; JSON unless it says otherwise."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    told = {"Content-Type": "application/json", "Content-Length": str(len(raw) if length is None else length)}
    told |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} Whatever", *(f"{name}: {value}" for name, value in told.items() if value)]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + raw


def made(**other: Any) -> dict[str, Any]:
    """The refund that ask() asks for, as Smartpay shows it."""
    return {
        "id": "refund_test_0000000000000000000001",
        "object": "refund",
        "payment": PAYMENT,
        "amount": 1000,
        "currency": "JPY",
        "reason": "requested_by_customer",
        "status": "succeeded",
        "reference": KEY,
        "metadata": {"refund_dashboard_id": KEY},
        "test": True,
        "createdAt": CREATED,
    } | other


def without(*names: str) -> dict[str, Any]:
    return {name: value for name, value in made().items() if name not in names}


def refusal(status: int, code: str, **other: Any) -> dict[str, Any]:
    return {"statusCode": status, "errorCode": code, "message": "No.", "details": []} | other


def ask(client: Client, payment: str = PAYMENT, amount: int = 1000, key: str = KEY, **other: str) -> Answer:
    facts = {"payment_id": payment, "amount": amount, "currency": "JPY"}
    body = smartpay.refund_body(
        **facts,  # type: ignore[arg-type]
        key=key,
        reason=other.get("reason", "requested_by_customer"),
        description=other.get("description", ""),
    )
    return client.create_refund(body=body, key=key, **facts)  # type: ignore[arg-type]


def asked(client: Client, *arguments: Any, **options: Any) -> smartpay.SmartpayError:
    """The error that a refund request ends in."""
    with pytest.raises(smartpay.SmartpayError) as caught:
        ask(client, *arguments, **options)
    return caught.value


def client_of(url: str, *, deadline: float = 5, key: str = SECRET_KEY) -> Client:
    return Client(base_url=url, secret_key=key, deadline=deadline)


@pytest.fixture
def client(sandbox: Sandbox) -> Client:
    return client_of(sandbox.url)


@pytest.fixture
def payment(sandbox: Sandbox) -> str:
    """A payment of ¥2,000 or more, never refunded."""
    return str(sandbox.find("refundable", min_amount=2000)["payments"][0]["id"])


def soon(happened: Callable[[], bool], within: float = 2) -> bool:
    until = time.monotonic() + within
    while not (done := happened()) and time.monotonic() < until:
        time.sleep(0.01)
    return done


def left_alone_ends() -> bool:
    """Whether no thread of a call is left; one that was given up may take a moment."""
    return soon(lambda: all(thread.name != "smartpay" for thread in threading.enumerate()))


# --- What is sent -------------------------------------------------------------------------------------------


@pytest.fixture(params=["quiet", "reporting"])
def faults_are(request: Any) -> Iterator[None]:
    """Whether faults are told to a Sentry, whose library patches http.client and would add headers of its own."""
    if request.param == "reporting":
        faults.report_to("http://public@127.0.0.1:9/1")
    yield
    sentry_sdk.get_global_scope().set_client(None)


@pytest.mark.usefixtures("faults_are")
@pytest.mark.django_db
def test_nothing_is_asked_inside_a_transaction(sandbox: Sandbox) -> None:
    with transaction.atomic(), pytest.raises(RuntimeError):
        smartpay.client().list_refunds()

    assert sandbox.requests() == []


def test_refund_is_posted_byte_for_byte_under_its_key(wire: Any) -> None:
    server = wire(http(made()))

    answer = ask(client_of(server.url), description="サイズ交換のため🎁")

    [request] = server.heard
    head, body = request.split(b"\r\n\r\n", 1)
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert first == "POST /v1/refunds HTTP/1.1"
    assert headers == {
        "host": server.url.removeprefix("http://").removesuffix("/v1"),
        "authorization": f"Basic {SECRET_KEY}",
        "idempotency-key": KEY,
        "content-type": "application/json",
        "content-length": str(len(body)),
        "accept": "application/json",
        "accept-encoding": "identity",
        "user-agent": "refund-dashboard",
        "connection": "close",
    }
    assert body.decode() == (
        f'{{"payment":"{PAYMENT}","amount":1000,"currency":"JPY","reason":"requested_by_customer",'
        f'"reference":"{KEY}","metadata":{{"refund_dashboard_id":"{KEY}"}},"description":"サイズ交換のため🎁"}}'
    )
    assert (answer.outcome, answer.http_status, answer.replayed) == ("EXECUTED", 200, False)


def test_answer_tells_the_refund_and_a_repeat_is_the_same_one(
    client: Client, payment: str, sandbox: Sandbox
) -> None:
    key = str(uuid.uuid4())

    first, second = (ask(client, payment, key=key, description="返品のため") for _time in range(2))

    [there] = [each for each in sandbox.api("GET", "/refunds").json()["data"] if each["payment"] == payment]
    assert first.refund == second.refund == client.get_refund(there["id"])
    assert (first.refund.id, first.refund.reference, first.refund.description) == (
        there["id"],
        key,
        "返品のため",
    )
    assert (first.replayed, second.replayed) == (False, True)
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("amount", [0, -1, -(2**63)])
def test_no_refund_is_written_of_nothing_or_less(amount: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        written(amount)


@given(
    strategies.floats()
    | strategies.booleans()
    | strategies.text()
    | strategies.decimals(allow_nan=True)
    | strategies.none()
    | strategies.sampled_from(["１００", "1e3", "1,000", b"100", Decimal(100), 1000.0])
)
@settings(max_examples=500, deadline=None)
def test_no_refund_is_written_of_anything_but_an_int(amount: Any) -> None:
    with pytest.raises(TypeError):
        written(amount)


@given(strategies.integers(min_value=1), strategies.text(strategies.characters(exclude_categories=["Cs"])))
@settings(max_examples=500, deadline=None)
def test_written_refund_says_what_was_asked_and_always_the_same(amount: int, description: str) -> None:
    body = written(amount, description)

    said = json.loads(body.encode(), parse_int=int)
    assert body == written(amount, description)
    assert said == {
        "payment": PAYMENT,
        "amount": amount,
        "currency": "JPY",
        "reason": "fraudulent",
        "reference": KEY,
        "metadata": {"refund_dashboard_id": KEY},
    } | ({"description": description} if description else {})


def written(amount: Any, description: str = "") -> str:
    return smartpay.refund_body(
        payment_id=PAYMENT,
        amount=amount,
        currency="JPY",
        reason="fraudulent",
        description=description,
        key=KEY,
    )


# --- What an answer means: refunds that were made -----------------------------------------------------------


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"status": None},
        {"reference": None},
        {"metadata": None},
        {"metadata": {}},
        {"status": None, "reference": None, "metadata": None, "description": None, "reason": None},
        {"currency": "jpy"},
        {"colour": "blue"},
    ],
)
def test_refund_as_asked_is_executed_whatever_optional_is_absent(
    client: Client, payment: str, sandbox: Sandbox, values: dict[str, Any]
) -> None:
    sandbox.fault("altered", values=values)

    answer = ask(client, payment)

    assert (answer.outcome, answer.refund.payment, answer.refund.amount) == ("EXECUTED", payment, 1000)
    assert answer.refund.status == ("" if "status" in values else "succeeded")


@pytest.mark.parametrize(
    "answer",
    [
        http(made(status=None, reference=None, metadata=None, description=None, reason=None)),
        http(made(payment={"id": PAYMENT, "object": "payment"})),
        http(made(metadata=[])),
        http(made(metadata="x")),
        http(made(), status=201),
        http(made(), Content_Type="Application/JSON; charset=utf-8"),
        http(made(), Content_Type="text/json"),
        http(b"\xef\xbb\xbf" + json.dumps(made()).encode()),
        http(made(), Content_Length=""),
        http(b"%x\r\n%s\r\n0\r\n\r\n" % (len(json.dumps(made())), json.dumps(made()).encode()),
             Content_Length="", Transfer_Encoding="chunked"),
        http(json.dumps(made()).encode().ljust(smartpay.LARGEST_REFUND_ANSWER)),
    ],
    ids=["nulls", "expanded payment", "metadata a list", "metadata a text", "201", "charset", "text/json", "BOM",
         "no length", "chunked", "largest"],
)  # fmt: skip
def test_refund_as_asked_is_executed_however_it_is_written(wire: Any, answer: bytes) -> None:
    seen = ask(client_of(wire(answer).url))

    assert (seen.outcome, seen.refund.id, seen.refund.amount) == ("EXECUTED", made()["id"], 1000)
    assert isinstance(seen.refund.metadata, dict)


@pytest.mark.parametrize("name", ["Idempotency-Replayed", "idempotency-replay", "Idempotency-Repeated"])
@responses.activate
def test_replay_is_told_by_its_header_whose_name_is_half_known(name: str) -> None:
    responses.post("https://api.smartpay.co/v1/refunds", json=made(), headers={name: "true"})

    assert ask(client_of("https://api.smartpay.co/v1")).replayed


@pytest.mark.parametrize(
    "status", [402, 405, 406, 410, 412, 415, 418, 421, 422, 424, 426, 428, 431, 451, 499]
)
@responses.activate
def test_refusal_in_smartpays_shape_under_another_status_leaves_it_open(status: int) -> None:
    no = {"statusCode": status, "errorCode": "amount.insufficient", "message": "no", "details": []}
    responses.post("https://api.smartpay.co/v1/refunds", json=no, status=status)

    with pytest.raises(smartpay.Unclear):
        ask(client_of("https://api.smartpay.co/v1"))


def test_failed_refund_is_told_with_its_id(client: Client, payment: str, sandbox: Sandbox) -> None:
    sandbox.fault("status_failed")

    answer = ask(client, payment)

    assert (answer.outcome, answer.refund.status) == ("FAILED", "failed")
    assert client.get_refund(answer.refund.id) == answer.refund


# --- What an answer means: refunds that were refused, or may have been made ---------------------------------

FIELDS = ("object", "id", "payment", "amount", "currency", "test", "createdAt")
WAYS: list[tuple[str, dict[str, Any], type[smartpay.SmartpayError]]] = [
    # 2xx, and unreadable
    ("garbage", {}, Unclear),
    ("truncated", {}, Unclear),
    ("too_large", {}, Unclear),
    *[("altered", {"values": {name: None}}, Unclear) for name in FIELDS],
    *[("altered", {"values": {"amount": amount}}, Unclear) for amount in ("1000", 1000.0, 999.5, True, [1000])],
    *[("altered", {"values": {"createdAt": moment}}, Unclear) for moment in ("today", 10**17, 10**20, 10**400, [1])],
    ("altered", {"values": {"currency": 392}}, Unclear),
    # 2xx, and a status nobody knows
    ("odd_status", {}, Unclear),
    ("odd_status", {"value": "pending"}, Unclear),
    ("odd_status", {"value": "FAILED"}, Unclear),
    ("altered", {"values": {"status": ""}}, Unclear),
    ("altered", {"values": {"status": False}}, Unclear),
    ("altered", {"values": {"status": ["failed"]}}, Unclear),
    # 2xx, and another refund than the one asked for
    ("wrong_amount", {}, Contradiction),
    ("wrong_payment", {}, Contradiction),
    ("wrong_mode", {}, Contradiction),
    ("altered", {"values": {"amount": -1000}}, Contradiction),
    ("altered", {"values": {"currency": "USD"}}, Contradiction),
    ("altered", {"values": {"test": "true"}}, Contradiction),
    ("altered", {"values": {"object": "payment"}}, Contradiction),
    ("altered", {"values": {"id": "refund_live_0000000000000000000001"}}, Contradiction),
    ("altered", {"values": {"id": "payment_test_0000000000000000000001"}}, Contradiction),
    ("altered", {"values": {"id": "refund_test_x\n"}}, Contradiction),
    ("altered", {"values": {"payment": 17}}, Contradiction),
    ("altered", {"values": {"payment": {"object": "payment"}}}, Contradiction),
    ("altered", {"values": {"reference": "another"}}, Contradiction),
    ("altered", {"values": {"reference": 17}}, Contradiction),
    ("altered", {"values": {"metadata": {"refund_dashboard_id": "another"}}}, Contradiction),
    ("altered", {"values": {"status": "failed", "amount": 1}}, Contradiction),
    # An error, in Smartpay's shape but with none of the codes of its own no
    ("error", {"status": 400}, Unclear),
    ("error", {"status": 422}, Unclear),
    ("error", {"status": 403}, NotAccepted),
    ("error", {"status": 404}, NotAccepted),
    ("unauthorized", {}, Unauthorized),
    ("forbidden", {}, NotAccepted),
    ("conflict", {}, InProgress),
    ("rate_limited", {}, Limited),
    ("error", {"executed": False}, Unclear),
    ("error", {"stored": True}, Unclear),
    # A page of somebody in between
    *[("html", {"status": status}, Unclear) for status in (400, 402, 408, 410, 500, 501, 502, 503, 504, 520)],
    *[("html", {"status": status}, NotAccepted) for status in (403, 404, 405, 415)],
    ("html", {"status": 401}, Unauthorized),
    *[("html", {"status": status}, InProgress) for status in (409, 425)],
    ("html", {"status": 429}, Limited),
    # Elsewhere
    ("redirect", {"status": 307}, Unclear),
    ("redirect", {"status": 308}, Unclear),
    # Nothing
    ("reset", {}, Unclear),
    ("reset", {"executed": False}, Unclear),
    ("close_at_accept", {}, Unclear),
]  # fmt: skip
OUTCOMES = {
    Unclear: "AMBIGUOUS",
    Contradiction: "CONTRADICTION",
    NotAccepted: "NOT_ACCEPTED",
    Unauthorized: "NOT_ACCEPTED",
    InProgress: "IN_PROGRESS",
    Limited: "LIMITED",
    Refused: "REFUSED",
    NotFound: "REFUSED",
    NotSent: "NOT_SENT",
}


@pytest.mark.parametrize(
    ("mode", "options", "kind"), WAYS, ids=[f"{mode}-{kind.__name__}" for mode, _options, kind in WAYS]
)
def test_answer_that_is_not_the_refund_leaves_it_open_and_is_not_asked_again(
    client: Client,
    payment: str,
    sandbox: Sandbox,
    mode: str,
    options: dict[str, Any],
    kind: type[smartpay.SmartpayError],
) -> None:
    sandbox.fault(mode, **options)

    error = asked(client, payment)

    assert (type(error), error.outcome) == (kind, OUTCOMES[kind])
    assert len(sandbox.requests("POST", "/v1/refunds")) == (0 if mode == "close_at_accept" else 1)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        # 2xx, and no refund
        (http(status=204, Content_Type="", Content_Length=""), Unclear),
        (http(b""), Unclear),
        (http([made()]), Unclear),
        (http(b"[" * 100_000), Unclear),
        (http(b'{"amount":' + b"9" * 5000 + b"}"), Unclear),
        (http(json.dumps(made()).encode("utf-16-le").replace(b"{", b"\xff", 1)), Unclear),
        (http(made(), Content_Type="text/html"), Unclear),
        (http(made(), Content_Type=""), Unclear),
        (http(made(createdAt=float("nan"))), Unclear),
        # cut off, though what came is whole JSON
        (http(made(), length=5000), Unclear),
        (http(b"5\r\n{\"id\"", Content_Length="", Transfer_Encoding="chunked"), Unclear),
        (http(b"1000\r\n{}", Content_Length="", Transfer_Encoding="chunked"), Unclear),
        (http(json.dumps(made()).encode().ljust(smartpay.LARGEST_REFUND_ANSWER + 1)), Unclear),
        (http(b"1f4\r\n" + json.dumps(made()).encode().ljust(500) + b"\r\n0\r\n\r\n", length=5,
              Transfer_Encoding="chunked"), Unclear),
        # compressed, which was not asked for
        (http(gzip.compress(json.dumps(made()).encode()), Content_Encoding="gzip"), Unclear),
        # no HTTP
        (b"SSH-2.0-OpenSSH_9.6\r\n", Unclear),
        (b"HTTP/1.1 many OK\r\n\r\n", Unclear),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n{}", Unclear),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n{}", Unclear),
        (b"", Unclear),
        # Smartpay's own no, and what only looks like it
        (http(refusal(400, "request.invalid"), 400), Refused),
        (http(refusal(403, "amount.insufficient"), 403), Refused),
        (http(refusal(404, "payment.not-found"), 404), NotFound),
        (http(refusal(400, "request.invalid"), 400, Content_Type="text/html"), Unclear),
        (http(refusal(403, "amount.insufficient"), 403, Content_Type="text/plain"), NotAccepted),
        (http(refusal(400, "amount.insufficient"), 403), NotAccepted),
        (http(refusal(403, "amount.insufficient"), 400), Unclear),
        (http(refusal(404, "payment.not-found"), 403), NotAccepted),
        (http(refusal(404, "order.not-found"), 404), NotAccepted),
        (http(refusal(400, "request.malformed"), 400), Unclear),
        (http(refusal(403, "amount.insufficient", statusCode=None), 403), NotAccepted),
        (http(refusal(404, "payment.not-found", errorCode=None), 404), NotAccepted),
        (http([refusal(403, "amount.insufficient")], 403), NotAccepted),
        (http(refusal(500, "request.invalid"), 500), Unclear),
        (http({"statusCode": 401, "scheme": "Basic", "realm": "Smartpay"}, 401), Unauthorized),
        # redirects of every kind
        *[(http(status=status, Location="http://127.0.0.1:9/v1/refunds"), Unclear) for status in (301, 302, 303)],
        (http(status=307, Location="http://[broken"), Unclear),
        (b"HTTP/1.1 308 Away\r\nLocation: \xff\xfe\r\nContent-Length: 0\r\n\r\n", Unclear),
        (http(status=300), Unclear),
        (http(status=304), Unclear),
    ],
)  # fmt: skip
def test_what_the_sandbox_cannot_say_has_its_meaning_too(
    wire: Any, answer: bytes, kind: type[smartpay.SmartpayError]
) -> None:
    server = wire(answer)

    error = asked(client_of(server.url))

    assert (type(error), error.outcome) == (kind, OUTCOMES[kind])
    assert len(server.heard) == 1


JSON = strategies.recursive(
    strategies.none()
    | strategies.booleans()
    | strategies.integers()
    | strategies.floats()
    | strategies.text(),
    lambda inner: (
        strategies.lists(inner, max_size=3) | strategies.dictionaries(strategies.text(), inner, max_size=3)
    ),
    max_leaves=5,
)


@cache
def judge() -> Client:
    return client_of("http://127.0.0.1:9")


@given(
    changed=strategies.dictionaries(strategies.sampled_from(sorted(made())), JSON, max_size=3),
    dropped=strategies.sets(strategies.sampled_from(sorted(made())), max_size=2),
)
@settings(max_examples=1000, deadline=None)
def test_no_other_json_is_ever_taken_for_the_refund_asked_for(
    changed: dict[str, Any], dropped: set[str]
) -> None:
    shown = {name: value for name, value in (made() | changed).items() if name not in dropped}
    raw = json.dumps(shown).encode()
    response = smartpay._Response(200, CaseInsensitiveDict({"Content-Type": "application/json"}), raw)

    try:
        answer = judge()._judged(response, payment_id=PAYMENT, amount=1000, currency="JPY", key=KEY)
    except Unclear:
        assert changed or dropped
        return
    assert (type(shown["amount"]), shown["amount"], shown["currency"].upper()) == (int, 1000, "JPY")
    assert (shown["object"], shown["test"]) == ("refund", True)
    assert smartpay.id_kind(shown["id"]) == ("refund", "test")
    assert shown["payment"] == PAYMENT or shown["payment"]["id"] == PAYMENT
    assert shown.get("reference") in (None, KEY)
    assert {"failed": "FAILED", "succeeded": "EXECUTED", None: "EXECUTED"}[
        shown.get("status")
    ] == answer.outcome


@pytest.mark.parametrize(
    ("asked_for", "kind", "status", "code"),
    [
        ({"amount": 10_000_000}, Refused, 403, "amount.insufficient"),
        ({"payment": "payment_test_unknown00000000000"}, NotFound, 404, "payment.not-found"),
        ({"payment": "payment_live_unknown00000000000"}, NotFound, 404, "payment.not-found"),
        ({"reason": "boredom"}, Refused, 400, "request.invalid"),
    ],
)
def test_smartpays_own_no_comes_with_its_words(
    client: Client, payment: str, asked_for: dict[str, Any], kind: type[Refused], status: int, code: str
) -> None:
    error = asked(client, **({"payment": payment} | asked_for))

    assert (type(error), error.http_status, error.error_code) == (kind, status, code)
    assert error.message == str(error) != ""
    assert re.fullmatch("[0-9a-f]{64}", error.sha256)


def test_key_that_was_used_with_another_body_is_in_progress(
    client: Client, payment: str, sandbox: Sandbox
) -> None:
    ask(client, payment, 1000)

    error = asked(client, payment, 999)

    assert (type(error), error.error_code) == (InProgress, "idempotency-key.reused")


def test_words_of_an_error_are_one_line_that_any_database_can_hold(wire: Any) -> None:
    words = "no\0t\r\nnow\u202e\ud800" + "あ" * 600
    answer = http(refusal(403, "amount.insufficient", message=words), 403)

    error = asked(client_of(wire(answer).url))

    assert error.message == ("no t  now  " + "あ" * 600)[:500]
    assert len(asked(client_of(wire(http(refusal(403, "x\0" * 99), 403)).url)).error_code) == 64


def test_words_of_somebody_else_are_not_passed_on(wire: Any) -> None:
    assert asked(client_of(wire(http({"message": "Buy now!"}, 502)).url)).message == ""


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("30", 30.0),
        ("0", 0.0),
        ("86400", 86400.0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", None),
        ("-5", None),
        ("1e3", None),
        ("1.5", None),
        ("999999", None),
        ("soon", None),
        ("", None),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_wish_to_wait_is_told_in_seconds_or_not_at_all(
    wire: Any, status: int, header: str, seconds: float | None
) -> None:
    error = asked(client_of(wire(http({}, status, Retry_After=header)).url))

    assert (type(error), error.retry_after) == (Limited if status == 429 else Unclear, seconds)


def test_wish_to_wait_in_other_digits_is_not_understood() -> None:
    assert [smartpay._retry_after(text) for text in ("９", "²", "٣")] == [None, None, None]


# --- No answer ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["no such host", "refused", "no connection in time"])
def unreachable(request: pytest.FixtureRequest, settings: Any) -> Iterator[str]:
    if request.param == "no such host":
        yield "http://nowhere.invalid/v1"
        return
    with socket.socket() as listener, socket.socket() as first:
        listener.bind(("127.0.0.1", 0))
        if request.param == "no connection in time":
            settings.SMARTPAY_CONNECT_TIMEOUT = 0.1
            listener.listen(0)
            first.connect(listener.getsockname())  # the queue is full: a further one gets no answer
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1"


def test_refund_that_met_nobody_was_not_sent(unreachable: str) -> None:
    error = asked(client_of(unreachable))

    assert (type(error), error.outcome, error.http_status) == (NotSent, "NOT_SENT", None)


def test_read_that_met_nobody_was_not_sent(unreachable: str) -> None:
    with pytest.raises(NotSent):
        client_of(unreachable).get_payment(PAYMENT)


def test_read_that_met_nobody_does_not_pause_to_try_again(
    unreachable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []
    monkeypatch.setattr(Retry, "sleep", lambda retry, response=None: naps.append(retry.get_backoff_time()))
    with pytest.raises(NotSent):
        client_of(unreachable).get_payment(PAYMENT)
    assert sum(naps) == 0


def test_smartpay_that_takes_no_connection_and_comes_back(
    client: Client, payment: str, sandbox: Sandbox
) -> None:
    sandbox.fault("refusing")
    assert type(asked(client, payment)) is NotSent

    sandbox.clear_faults()

    assert ask(client, payment).outcome == "EXECUTED"


@pytest.mark.parametrize("executed", [True, False])
def test_silence_is_unclear_at_the_deadline(payment: str, sandbox: Sandbox, executed: bool) -> None:
    sandbox.go_silent(executed=executed)
    began = time.monotonic()

    error = asked(client_of(sandbox.url, deadline=0.3), payment)

    assert (type(error), time.monotonic() - began < 1) == (Unclear, True)
    assert len(sandbox.requests("POST", "/v1/refunds")) == 1


def test_silence_between_two_bytes_is_unclear_too(payment: str, sandbox: Sandbox, settings: Any) -> None:
    settings.SMARTPAY_READ_TIMEOUT = 0.2
    sandbox.go_silent()

    assert str(asked(client_of(sandbox.url), payment)) == "No answer: ReadTimeout."


def test_dripping_body_is_given_up_at_the_deadline_and_nothing_goes_on(
    payment: str, sandbox: Sandbox
) -> None:
    sandbox.fault("drip", seconds=0.05)  # twenty seconds of it
    began = time.monotonic()

    error = asked(client_of(sandbox.url, deadline=0.3), payment)

    assert (type(error), time.monotonic() - began < 1) == (Unclear, True)
    assert left_alone_ends()


def test_dripping_headers_are_given_up_at_the_deadline(wire: Any) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while True:
            connection.sendall(b"X: y\r\n")
            time.sleep(0.05)

    began = time.monotonic()

    error = asked(client_of(wire(drip).url, deadline=0.3))

    assert (type(error), time.monotonic() - began < 1) == (Unclear, True)


@pytest.mark.parametrize("status", [200, 307])
def test_endless_body_is_given_up_and_nothing_goes_on(wire: Any, status: int) -> None:
    def flood(connection: socket.socket) -> None:
        connection.sendall(http(status=status, Content_Length="", Location="/v1/refunds"))
        while True:
            connection.sendall(b"x" * 65536)

    error = asked(client_of(wire(flood).url))

    assert (type(error), error.http_status, str(error)) == (Unclear, status, "The answer is too large.")
    assert left_alone_ends()


def test_same_client_with_a_shorter_deadline(payment: str, sandbox: Sandbox) -> None:
    patient = client_of(sandbox.url, deadline=30)
    sandbox.go_silent(method="GET", path="")
    began = time.monotonic()

    with pytest.raises(Unclear, match="deadline"):
        patient.within(0.2).get_payment(payment)

    assert time.monotonic() - began < 1
    sandbox.clear_faults()
    assert patient.get_payment(payment).id == payment
    assert left_alone_ends()


# --- Whom it talks to, and over what ------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("way", ["refund", "read"])
def test_redirect_is_never_followed(wire: Any, status: int, way: str) -> None:
    elsewhere = wire(http(made()))
    here = wire(http(status=status, Location=f"{elsewhere.url}/refunds"))

    with pytest.raises(Unclear) as caught:
        ask(client_of(here.url)) if way == "refund" else client_of(here.url).get_refund(made()["id"])

    assert (caught.value.http_status, len(here.heard), elsewhere.heard) == (status, 1, [])


def test_each_refund_has_a_connection_of_its_own_and_reads_share_one(
    client: Client, payment: str, sandbox: Sandbox
) -> None:
    for _time in range(4):
        ask(client, payment, 1, key=str(uuid.uuid4()))
        client.get_payment(payment)

    posts = {each["connection"] for each in sandbox.requests("POST")}
    reads = {each["connection"] for each in sandbox.requests("GET")}
    assert (len(posts), len(reads), posts & reads) == (4, 1, set())


def test_connections_that_smartpay_closes_cost_nothing(
    client: Client, payment: str, sandbox: Sandbox
) -> None:
    sandbox.switch(idle_seconds=0.05)

    for _time in range(6):
        assert ask(client, payment, 1, key=str(uuid.uuid4())).outcome == "EXECUTED"
        assert client.get_payment(payment).id == payment
        time.sleep(0.06)


def test_neither_netrc_nor_proxies_have_a_say(
    client: Client, payment: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login somebody password else\ndefault login somebody password else\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.upper(), "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    assert ask(client, payment).outcome == "EXECUTED"
    assert client.get_payment(payment).id == payment

    assert {each["headers"]["authorization"] for each in sandbox.requests()} == {f"Basic {SECRET_KEY}"}


def test_certificate_that_nobody_vouches_for_gets_no_key(wire: Any, tmp_path: Path, monkeypatch: Any) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.now(tz=UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False
        )
        .sign(private, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pem)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(pem))  # the environment vouches for nobody either
    server = wire(http(made()), tls)

    error = asked(client_of(server.url))

    assert (type(error), str(error)) == (Unclear, "No answer: SSLError.")
    assert soon(lambda: bool(server.refusals))
    assert (server.heard, server.refusals) == ([], ["TLSV1_ALERT_UNKNOWN_CA"])


# --- Reading ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [502, 503, 504])
def test_read_is_repeated_twice_where_a_proxy_answers(
    client: Client, payment: str, sandbox: Sandbox, status: int
) -> None:
    sandbox.fault("html", method="GET", path="", status=status, times=2)
    assert client.get_payment(payment).id == payment
    assert len(sandbox.requests("GET")) == 3

    sandbox.fault("html", method="GET", path="", status=status, times=3)
    with pytest.raises(Unclear):
        client.get_payment(payment)


def test_read_is_repeated_where_the_connection_breaks(client: Client, payment: str, sandbox: Sandbox) -> None:
    sandbox.fault("reset", method="GET", path="", times=2)

    assert client.get_payment(payment).id == payment


@pytest.mark.parametrize("status", [429, 503])
def test_read_that_is_asked_to_wait_says_so_at_once(wire: Any, status: int) -> None:
    server = wire(http({}, status, Retry_After="60"))
    began = time.monotonic()

    with pytest.raises(Limited if status == 429 else Unclear) as caught:
        client_of(server.url).get_payment(PAYMENT)

    assert time.monotonic() - began < 2
    if status == 429:
        assert (caught.value.retry_after, len(server.heard)) == (60.0, 1)


@pytest.mark.parametrize(
    ("read", "code"),
    [
        (lambda client: client.get_order("order_test_unknown000000000000000"), "order.not-found"),
        (lambda client: client.get_payment("payment_live_unknown0000000000"), "payment.not-found"),
        (lambda client: client.get_refund("refund_test_unknown00000000000"), "refund.not-found"),
    ],
)
def test_what_is_not_there_is_not_found(client: Client, read: Callable[[Client], Any], code: str) -> None:
    with pytest.raises(NotFound) as caught:
        read(client)

    assert (caught.value.http_status, caught.value.error_code) == (404, code)


def test_object_of_the_other_mode_is_not_there(payment: str, sandbox: Sandbox) -> None:
    live = client_of(sandbox.url, key="sk_live_Other")

    with pytest.raises(NotFound):
        live.get_payment(payment)
    assert (live.mode, live.list_orders().items) == ("live", ())


def test_id_stays_one_part_of_the_address(client: Client, sandbox: Sandbox) -> None:
    for odd in ("../refunds", "a?expand=no", "a/b#c", "あ"):
        with pytest.raises((NotFound, NotAccepted)):
            client.get_payment(odd)

    assert all(each["query"] == {"expand": "all"} for each in sandbox.requests())
    assert {each["path"].rsplit("/", 1)[0] for each in sandbox.requests()} >= {"/v1/payments"}


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"mode": "garbage"}, Unclear),
        ({"mode": "truncated", "times": 3}, Unclear),
        ({"mode": "html", "status": 500}, Unclear),
        ({"mode": "html", "status": 404}, NotAccepted),
        ({"mode": "unauthorized"}, Unauthorized),
        ({"mode": "wrong_mode"}, Unclear),
        ({"mode": "altered", "values": {"object": "order"}}, Unclear),
        ({"mode": "altered", "values": {"id": "payment_test_another0000000000"}}, Unclear),
        ({"mode": "altered", "values": {"id": None}}, Unclear),
        ({"mode": "altered", "values": {"test": None}}, Unclear),
        ({"mode": "altered", "values": {"test": "true"}}, Unclear),
        ({"mode": "altered", "values": {"amount": 10.5}}, Unclear),
        ({"mode": "altered", "values": {"amount": None}}, Unclear),
        ({"mode": "altered", "values": {"amount": -1}}, Unclear),
        ({"mode": "altered", "values": {"amount": 2**63}}, Unclear),
        ({"mode": "altered", "values": {"currency": 1}}, Unclear),
        ({"mode": "altered", "values": {"order": None}}, Unclear),
        ({"mode": "altered", "values": {"createdAt": 10**20}}, Unclear),
        ({"mode": "altered", "values": {"refunds": {}}}, Unclear),
        ({"mode": "altered", "values": {"refunds": ""}}, Unclear),
    ],
)
def test_payment_that_is_not_the_one_asked_for_is_not_believed(
    client: Client,
    payment: str,
    sandbox: Sandbox,
    options: dict[str, Any],
    kind: type[smartpay.SmartpayError],
) -> None:
    sandbox.fault(options.pop("mode"), method="GET", path="", **options)

    with pytest.raises(smartpay.SmartpayError) as caught:
        client.get_payment(payment)

    assert type(caught.value) is kind


def test_answer_of_a_read_that_is_too_large_is_given_up(
    client: Client, payment: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    sandbox.fault("too_large", method="GET", path="", size=smartpay.LARGEST_READ_ANSWER)

    with pytest.raises(Unclear, match="too large"):
        client.get_payment(payment)


# --- Lists --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["orders", "checkout_sessions", "refunds"])
def test_list_is_read_page_by_page_to_its_end(client: Client, sandbox: Sandbox, kind: str) -> None:
    sandbox.switch(max_results_limit=20)
    read: Callable[[str], smartpay.Page[Any]] = getattr(client, f"list_{kind}")
    seen, token = [], ""

    while True:
        page = read(token)
        seen += [item.id for item in page.items]
        if not (token := page.next_token):
            break

    sandbox.switch(max_results_limit=1000)
    there = sandbox.api("GET", f"/{kind.replace('_', '-')}", params={"maxResults": 1000}).json()["data"]
    assert seen == [each["id"] for each in there]
    assert len(seen) == len(set(seen)) > 20


def test_page_that_is_too_large_is_asked_for_in_the_size_known_to_work(
    client: Client, sandbox: Sandbox
) -> None:
    sandbox.switch(max_results_limit=20)

    client.list_refunds()
    client.list_refunds()

    assert [each["query"]["maxResults"] for each in sandbox.requests()] == ["100", "20", "20"]


def test_page_that_is_too_large_all_the_same_is_refused(client: Client, sandbox: Sandbox) -> None:
    sandbox.switch(max_results_limit=20)
    client.list_refunds()
    sandbox.switch(max_results_limit=10)

    with pytest.raises(Refused) as caught:
        client.list_refunds()

    assert (caught.value.http_status, caught.value.error_code) == (400, "request.invalid")


def test_page_token_that_ran_out_is_refused_and_costs_no_page_size(client: Client, sandbox: Sandbox) -> None:
    with pytest.raises(Refused) as caught:
        client.list_refunds("nonsense")
    client.list_refunds()

    assert caught.value.http_status == 400
    assert [each["query"]["maxResults"] for each in sandbox.requests()] == ["100", "20", "100"]


@pytest.mark.parametrize("status", [404, 410, 422])
def test_page_token_is_refused_whatever_status_smartpay_has_for_it(
    client: Client, sandbox: Sandbox, status: int
) -> None:
    sandbox.fault("error", method="GET", path="/v1/orders", status=status)

    with pytest.raises(Refused) as caught:
        client.list_orders("old")

    assert caught.value.http_status == status


def test_refusal_that_is_about_no_page_is_passed_on(wire: Any) -> None:
    server = wire(http(refusal(404, "request.not-found"), 404))

    with pytest.raises(NotFound):
        client_of(server.url).list_orders()

    assert len(server.heard) == 1


@pytest.mark.parametrize("values", [{"data": None}, {"data": {}}, {"data": "x"}, {"data": [None]}, {"data": ["x"]},
                                    {"data": [{"object": "order"}]}, {"data": [made(test=False)]},
                                    {"nextPageToken": 12345}, {"nextPageToken": {"place": 2}}, {"nextPageToken": True},
                                    {"data": [made(object="order")]}])  # fmt: skip
def test_list_with_something_else_in_it_is_not_believed(
    client: Client, sandbox: Sandbox, values: dict[str, Any]
) -> None:
    sandbox.fault("altered", method="GET", path="/v1/refunds", values=values)

    with pytest.raises(Unclear):
        client.list_refunds()


@pytest.mark.parametrize("odd", [{"amount": 1000.0}, {"currency": None}, {"status": None}, {"status": 7}, {"createdAt": "x"},
                                 {"test": False}, {"payments": [{"id": PAYMENT, "order": "order_test_2"}]}])  # fmt: skip
def test_order_that_cannot_be_read_is_named_and_keeps_no_other_off_its_page(
    client: Client, sandbox: Sandbox, odd: dict[str, Any]
) -> None:
    data = [AN_ORDER, AN_ORDER | {"id": "order_test_2"} | odd, AN_ORDER | {"id": "order_test_3"}]
    sandbox.fault("altered", method="GET", path="/v1/orders", values={"data": data})

    page = client.list_orders()

    assert [order.id for order in page.items] == ["order_test_1", "order_test_3"]
    assert page.unreadable == ("order_test_2",)


def test_checkout_of_an_order_that_cannot_be_read_is_named(client: Client, sandbox: Sandbox) -> None:
    session = {"object": "checkoutSession", "test": True, "id": "checkout_test_1"}
    data = [session | {"order": AN_ORDER | {"status": None}}, session | {"id": "checkout_test_2"}]
    sandbox.fault("altered", method="GET", path="/v1/checkout-sessions", values={"data": data})

    page = client.list_checkout_sessions()

    assert ([each.id for each in page.items], page.unreadable) == (["checkout_test_2"], ("checkout_test_1",))


@pytest.mark.parametrize("foreign", [{"id": "order_live_1", "test": False}, {"id": "payment_test_1", "object": "payment"},
                                     {"id": None}, {"id": 7}, {"id": "田中", "amount": None}])  # fmt: skip
def test_list_with_what_is_no_order_of_ours_in_it_is_not_believed(
    client: Client, sandbox: Sandbox, foreign: dict[str, Any]
) -> None:
    sandbox.fault("altered", method="GET", path="/v1/orders", values={"data": [AN_ORDER, AN_ORDER | foreign]})

    with pytest.raises(Unclear):
        client.list_orders()


# --- Reading fields -----------------------------------------------------------------------------------------

WHEN = datetime(2023, 11, 14, 22, 13, 20, 123000, tzinfo=UTC)
A_PAYMENT = {
    "id": PAYMENT,
    "object": "payment",
    "order": "order_test_1",
    "amount": 5000,
    "currency": "jpy",
    "status": "processed",
    "description": "靴",
    "reference": "p-1",
    "refunds": ["refund_test_1", {"id": "refund_test_2", "object": "refund"}],
    "test": True,
    "createdAt": CREATED,
}
AN_ORDER = {
    "id": "order_test_1",
    "object": "order",
    "amount": 5000,
    "currency": "JPY",
    "status": "succeeded",
    "reference": "shop-1",
    "description": "注文",
    "tokenId": "paytok_test_1",
    "test": True,
    "createdAt": CREATED,
    "expiresAt": CREATED,
    "payments": [A_PAYMENT],
    "lineItems": [{"quantity": 2, "price": {"amount": 2500, "currency": "jpy", "product": {"name": "靴"}}}],
}


def test_every_field_of_a_refund_is_read() -> None:
    assert smartpay.Refund.parse(
        made(currency="jpy", description="返品", payment=A_PAYMENT)
    ) == smartpay.Refund(
        id=made()["id"],
        payment=PAYMENT,
        amount=1000,
        currency="JPY",
        status="succeeded",
        reason="requested_by_customer",
        description="返品",
        reference=KEY,
        metadata={"refund_dashboard_id": KEY},
        test=True,
        created_at=WHEN,
    )


def test_every_field_of_an_order_and_its_payments_is_read() -> None:
    payment = smartpay.Payment(
        id=PAYMENT,
        order="order_test_1",
        amount=5000,
        currency="JPY",
        status="processed",
        description="靴",
        reference="p-1",
        refund_ids=("refund_test_1", "refund_test_2"),
        test=True,
        created_at=WHEN,
    )
    assert smartpay.Order.parse(AN_ORDER) == smartpay.Order(
        id="order_test_1",
        amount=5000,
        currency="JPY",
        status="succeeded",
        reference="shop-1",
        description="注文",
        token_id="paytok_test_1",
        test=True,
        created_at=WHEN,
        expires_at=WHEN,
        payments=(payment,),
        line_items=(smartpay.LineItem(name="靴", quantity=2, amount=2500, currency="JPY", kind="product"),),
    )


@pytest.mark.parametrize(
    ("kind", "full", "optional"),
    [
        (smartpay.Refund, made(), ["status", "reason", "description", "reference", "metadata"]),
        (smartpay.Payment, A_PAYMENT, ["status", "description", "reference", "refunds"]),
        (
            smartpay.Order,
            AN_ORDER,
            ["reference", "description", "tokenId", "expiresAt", "payments", "lineItems", "customerInfo"],
        ),
        (smartpay.CheckoutSession, {"id": "checkout_test_1"}, ["order", "customerInfo", "reference"]),
        (
            smartpay.Customer,
            {},
            ["lastName", "firstName", "lastNameKana", "firstNameKana", "emailAddress", "email"],
        ),
        (
            smartpay.LineItem,
            {},
            ["price", "description", "quantity", "amount", "currency", "kind"],
        ),
    ],
)
def test_absent_and_null_are_the_same_and_nothing_is_made_up(
    kind: Any, full: dict[str, Any], optional: list[str]
) -> None:
    absent = {name: value for name, value in full.items() if name not in optional}

    parsed = kind.parse(absent)

    assert parsed == kind.parse(absent | dict.fromkeys(optional))
    facts = {name: getattr(parsed, name) for name in inspect.signature(kind).parameters}
    unknown = {"": str, (): tuple}
    assert all(
        facts[name] in (*unknown, None, smartpay.Customer()) or facts[name] == {}
        for name in facts
        if name
        not in ("id", "payment", "amount", "currency", "test", "created_at", "order", "quantity", "kind")
        and not (name == "status" and "status" not in optional)
    )


def test_payment_without_a_list_of_refunds_is_not_one_without_refunds() -> None:
    assert smartpay.Payment.parse(A_PAYMENT | {"refunds": None}).refund_ids is None
    assert smartpay.Payment.parse(A_PAYMENT | {"refunds": []}).refund_ids == ()


@pytest.mark.parametrize(
    ("item", "name", "amount"),
    [
        (
            {"price": {"amount": 5, "product": {"name": "靴", "description": "x"}}, "description": "y"},
            "靴",
            5,
        ),
        ({"price": {"amount": 5, "label": "L"}, "description": "説明"}, "説明", 5),
        ({"price": {"amount": 5, "label": "L"}}, "L", 5),
        ({"price": "price_test_1", "amount": 7}, "", 7),
        ({"price": {"amount": 5, "product": "product_test_1"}, "amount": 0}, "", 0),
        ({"kind": "discount", "amount": 500, "description": "割引"}, "割引", 500),
        ({"kind": "discount", "amount": -500, "description": "割引"}, "割引", -500),
    ],
)
def test_line_item_is_named_by_what_there_is(item: dict[str, Any], name: str, amount: int) -> None:
    line = smartpay.LineItem.parse(item)

    assert (line.name, line.amount, line.quantity) == (name, amount, 1)


@pytest.mark.parametrize("odd", [{"amount": 99.5}, {"amount": "5"}, {"price": {"amount": 1000.0}}, {"quantity": 1.5},
                                 {"quantity": "x"}, {"amount": 2**63}])  # fmt: skip
def test_line_item_that_cannot_be_read_is_left_out_and_its_order_is_read(odd: dict[str, Any]) -> None:
    good = {"amount": 500, "description": "靴"}

    order = smartpay.Order.parse(AN_ORDER | {"lineItems": [odd, good, None, "x"]})

    assert order == smartpay.Order.parse(AN_ORDER | {"lineItems": [good]})


def test_customer_comes_from_the_session_and_never_shows_in_a_repr() -> None:
    person = {"lastName": "田中", "firstName": "太郎", "lastNameKana": "タナカ", "firstNameKana": "タロウ"}
    session = smartpay.CheckoutSession.parse(
        {"id": "checkout_test_1", "customerInfo": person | {"email": "t@example.jp"}, "order": AN_ORDER}
    )

    assert session.customer == smartpay.Customer("田中", "太郎", "タナカ", "タロウ", "t@example.jp")
    assert smartpay.Customer.parse({"email": "a@x.jp", "emailAddress": "b@x.jp"}).email == "b@x.jp"
    assert (bool(session.customer), bool(smartpay.Customer())) == (True, False)
    assert smartpay.CheckoutSession.parse({"id": "checkout_test_1", "order": "order_test_1"}).order is None
    assert not re.search("田中|太郎|タナカ|example", repr(session) + str(session.customer))


@pytest.mark.parametrize("amount", [1000.0, "1000", True, None])
@pytest.mark.parametrize("kind", [smartpay.Refund, smartpay.Payment, smartpay.Order])
def test_amount_that_is_not_an_integer_is_none(kind: Any, amount: Any) -> None:
    full = {smartpay.Refund: made(), smartpay.Payment: A_PAYMENT, smartpay.Order: AN_ORDER}[kind]

    with pytest.raises(TypeError):
        kind.parse(full | {"amount": amount})


def test_what_the_sandbox_shows_is_what_is_read(client: Client, sandbox: Sandbox) -> None:
    found = sandbox.find("several_payments")
    raw = sandbox.api("GET", f"/orders/{found['order']}", params={"expand": "all"}).json()

    order = client.get_order(found["order"])

    assert (order.id, order.amount, order.status) == (raw["id"], raw["amount"], raw["status"])
    assert [each.id for each in order.payments] == [each["id"] for each in raw["payments"]]
    assert [client.get_payment(each.id) for each in order.payments] == list(order.payments)
    assert len(order.line_items) == len(raw["lineItems"])
    assert sum(
        (-1 if item.kind == "discount" else 1) * item.amount * item.quantity for item in order.line_items
    ) == (order.amount)


# --- Keys, ids and modes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "mode"), [("sk_test_abc123", "test"), ("sk_live_ABC", "live"), (SECRET_KEY, "test")]
)
def test_key_tells_its_mode(key: str, mode: str) -> None:
    assert smartpay.mode_of(key) == mode


@pytest.mark.parametrize(
    "key",
    [
        "",
        "sk_test_",
        "pk_test_abc",
        "sk_prod_abc",
        "sk_test_abc\n",
        " sk_test_abc",
        "sk_test_あ",
        "sk_test_a-b",
    ],
)
def test_what_is_no_secret_key_is_refused_without_repeating_it(key: str) -> None:
    with pytest.raises(
        ValueError, match=r"^Not a Smartpay secret key: sk_test_… or sk_live_… is expected\.$"
    ):
        Client(base_url="https://api.smartpay.co/v1", secret_key=key)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("order_test_a1B", ("order", "test")),
        ("payment_live_a1B", ("payment", "live")),
        ("refund_test_0", ("refund", "test")),
        ("checkout_live_z", ("checkout", "live")),
        ("order_test_a1B\n", None),
        ("order_test_", None),
        ("order_prod_a1B", None),
        ("ORDER_test_a1B", None),
        ("order_test_a1B order_test_a1B", None),
        ("order_test_１", None),
        ("", None),
    ],
)
def test_id_tells_what_it_names(text: str, kind: tuple[str, str] | None) -> None:
    assert smartpay.id_kind(text) == kind


def test_process_has_one_client_with_its_own_settings(sandbox: Sandbox, settings: Any) -> None:
    settings.SMARTPAY_DEADLINE = 7

    client = smartpay.client()

    assert client is smartpay.client()
    assert (client._deadline, client.mode) == (7, "test")
    assert client.list_orders().items


def test_key_shows_up_nowhere(
    payment: str, sandbox: Sandbox, wire: Any, caplog: Any, capfd: Any, settings: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    logging.getLogger("urllib3").setLevel(logging.DEBUG)
    client = client_of(sandbox.url, deadline=0.5)
    told = [repr(client), str(client), repr(client.within(1))]
    for mode in (
        "unauthorized",
        "forbidden",
        "html",
        "garbage",
        "wrong_amount",
        "reset",
        "silent",
        "redirect",
    ):
        sandbox.fault(mode)
        told += _everything_of(asked(client, payment, key=str(uuid.uuid4())))
    echo = http({"statusCode": 403, "errorCode": "amount.insufficient", "message": "No."}, 403)
    for url in (
        "http://nowhere.invalid/v1",
        "http://127.0.0.1:9/v1",
        wire(echo).url,
        wire(b"rubbish\r\n").url,
    ):
        told += _everything_of(asked(client_of(url)))
    with pytest.raises(smartpay.SmartpayError) as caught:
        client_of("http://127.0.0.1:9/v1").get_payment(payment)
    told += _everything_of(caught.value)

    out, err = capfd.readouterr()
    assert "/v1/refunds" in caplog.text  # so much is logged that a key would be among it
    assert SECRET_KEY.removeprefix("sk_test_") not in "\n".join([*told, caplog.text, out, err])


def _everything_of(error: BaseException) -> list[str]:
    chain = traceback.format_exception(error)
    return [str(error), repr(error), repr(vars(error)), repr(error.args), *chain]
