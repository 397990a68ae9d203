"""Events from outside: only what Smartpay signed is heard, what it names is read, and a repeat does nothing twice."""

import hashlib
import hmac
import io
import json
import time
from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIRequest
from django.test import Client, RequestFactory
from hypothesis import given, settings, strategies

from dashboard.models import User
from refunds import clock, services, smartpay, webhooks
from refunds.models import Order, Payment, Refund, SmartpayRefund, WebhookEvent
from refunds.services import sending
from refunds.services.states import NO_LEASE
from tests.conftest import Clock
from tests.sandbox import Sandbox

ADDRESS = "/webhooks/smartpay/"
SECRET = "nRbTxYkG6vPq3sWm9ZcLd2HfJ8aQe5UiKo7NyB4z"  # 40 characters, 30 bytes
ROTATED = "pQ5vYw8KxN2bTz7RcMd3GfHj9LaSe6UiWo4XyC1k"


@pytest.fixture(autouse=True)
def _secrets(settings: Any) -> None:
    settings.SMARTPAY_WEBHOOK_SECRETS = [SECRET]


@pytest.fixture
def payment(db: None, sandbox: Sandbox) -> Payment:
    found = sandbox.find("refundable", min_amount=2000)
    services.read_order(found["order"], client=smartpay.client())
    sandbox.forget_requests()
    return Payment.objects.select_related("order").get(order__order_id=found["order"])


def event(kind: str = "token.created", data: Any = None, **other: Any) -> bytes:
    told = {"id": "evt_test_0001", "object": "event", "createdAt": 1_700_000_000_000, "test": True}
    return json.dumps(
        told | {"eventData": {"type": kind, "version": "2022-02-18", "data": data or {}}} | other
    ).encode()


def sign(body: bytes, secret: str = SECRET, timestamp: str = "1700000000123") -> dict[str, str]:
    """The headers of a delivery, signed as Smartpay's contract says; written here anew, on purpose."""
    digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
    key = sum(digits.index(digit) * 62**place for place, digit in enumerate(reversed(secret))).to_bytes(30)
    return {
        "Smartpay-Signature": hmac.new(key, timestamp.encode() + b"." + body, hashlib.sha256).hexdigest(),
        "Smartpay-Signature-Timestamp": timestamp,
        "Smartpay-Subscription-Id": "webhookendpoint_test_1",
        "Smartpay-Event-Id": "evt_test_0001",
    }


def deliver(body: bytes, headers: dict[str, str] | None = None) -> int:
    client = Client(raise_request_exception=False)
    headers = sign(body) if headers is None else headers
    return client.post(ADDRESS, body, content_type="application/json", headers=headers).status_code


# --- Signatures ---------------------------------------------------------------------------------------------


def test_signature_is_that_of_the_official_sdks() -> None:
    """The short vector of Smartpay's own tests: what is signed there is "test data", whole."""
    expected = "ae82b27dd6dafd0dbfc65faff07160833776cf60915782ef991557e51e4d1782"

    signatures = [
        hmac.new(key, b"test data", hashlib.sha256).hexdigest()
        for key in webhooks.decode_secret("MOCKSECRETKEY")
    ]

    assert expected in signatures


def test_signing_secret_is_one_big_number_of_thirty_bytes_or_as_short_as_can_be() -> None:
    assert webhooks.decode_secret("B") == [b"\0" * 29 + b"\1", b"\1"]
    assert webhooks.decode_secret("AAB") == [b"\0" * 29 + b"\1", b"\1"]
    assert webhooks.decode_secret("BA") == [b"\0" * 29 + b"\x3e", b"\x3e"]
    [whole, same] = webhooks.decode_secret(SECRET)
    assert (len(whole), whole) == (30, same)


@given(strategies.binary(min_size=30, max_size=30))
@settings(max_examples=200, deadline=None)
def test_every_key_of_thirty_bytes_survives_its_secret(key: bytes) -> None:
    number, secret = int.from_bytes(key), ""
    while number:
        number, digit = divmod(number, 62)
        secret = webhooks.BASE62[digit] + secret

    assert webhooks.decode_secret(secret)[0] == key


def test_signed_event_is_taken(db: None) -> None:
    assert deliver(event()) == 200

    kept = WebhookEvent.objects.get()
    assert (kept.pk, kept.kind, kept.subscription_id) == (
        "evt_test_0001",
        "token.created",
        "webhookendpoint_test_1",
    )
    assert kept.body_sha256 == hashlib.sha256(event()).hexdigest()


@pytest.mark.parametrize("secret", [SECRET, ROTATED])
def test_secret_can_be_rotated_while_both_are_known(db: None, settings: Any, secret: str) -> None:
    settings.SMARTPAY_WEBHOOK_SECRETS = [ROTATED, SECRET]

    assert deliver(event(), sign(event(), secret)) == 200


def test_secret_that_was_taken_away_signs_nothing(db: None, settings: Any) -> None:
    settings.SMARTPAY_WEBHOOK_SECRETS = [ROTATED]

    assert deliver(event()) == 400


GOOD = sign(event())
FORGERIES = {
    "nothing": {},
    "no signature": GOOD | {"Smartpay-Signature": ""},
    "no timestamp": {name: value for name, value in GOOD.items() if "Timestamp" not in name},
    "another timestamp": GOOD | {"Smartpay-Signature-Timestamp": "1700000000124"},
    "a timestamp with a blank": GOOD | {"Smartpay-Signature-Timestamp": "1700000000123 "},
    "another body's": sign(event(kind="token.used")),
    "another secret's": sign(event(), ROTATED),
    "cut": GOOD | {"Smartpay-Signature": GOOD["Smartpay-Signature"][:-1]},
    "longer": GOOD | {"Smartpay-Signature": GOOD["Smartpay-Signature"] + "0"},
    "not ASCII": GOOD | {"Smartpay-Signature": "é" * 64},
    "full-width": GOOD | {"Smartpay-Signature": "ａ" * 64},
    "not ASCII in the timestamp": GOOD | {"Smartpay-Signature-Timestamp": "１７００"},
    "a plain hash": GOOD | {"Smartpay-Signature": hashlib.sha256(event()).hexdigest()},
    "the dot moved": sign(event(), timestamp="170000000012")
    | {"Smartpay-Signature-Timestamp": "1700000000123"},
    "the secret undecoded": GOOD
    | {
        "Smartpay-Signature": hmac.new(
            SECRET.encode(), b"1700000000123." + event(), hashlib.sha256
        ).hexdigest()
    },
}


@pytest.mark.parametrize("forgery", FORGERIES)
def test_what_smartpay_did_not_sign_is_turned_away(db: None, forgery: str) -> None:
    assert deliver(event(), FORGERIES[forgery]) == 400

    assert not WebhookEvent.objects.exists()


def test_body_that_was_changed_on_its_way_is_turned_away(db: None) -> None:
    body = event()

    assert [deliver(changed, sign(body)) for changed in (body + b" ", body[:-1], body.swapcase(), b"")] == [
        400
    ] * 4


def test_without_a_secret_nothing_is_taken(db: None, settings: Any) -> None:
    settings.SMARTPAY_WEBHOOK_SECRETS = []

    assert deliver(event()) == 400
    assert deliver(event(), sign(event(), "A")) == 400


@pytest.mark.parametrize("method", ["get", "put", "patch", "delete", "head", "options"])
def test_only_posts_are_heard(db: None, method: str) -> None:
    assert getattr(Client(), method)(ADDRESS, headers=GOOD).status_code == 405


def test_event_needs_no_sign_in_no_token_and_leaves_no_session(db: None) -> None:
    client = Client(enforce_csrf_checks=True)

    response = client.post(ADDRESS, event(), content_type="application/json", headers=GOOD)

    assert (response.status_code, response.content, response.cookies) == (200, b"", {})


# --- Bodies -------------------------------------------------------------------------------------------------


def padded(size: int) -> bytes:
    return event().ljust(size)


def test_body_of_64_kib_is_taken_and_a_byte_more_is_not(db: None) -> None:
    assert deliver(padded(64 * 1024)) == 200
    assert deliver(padded(64 * 1024 + 1)) == 413


def raw(body: bytes, length: str | None) -> WSGIRequest:
    """A request as a careless server would hand it over, whatever Content-Length says."""
    headers = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in sign(body).items()}
    request = RequestFactory().post(ADDRESS, b"", content_type="application/json", **headers)  # type: ignore[arg-type]
    told = {} if length is None else {"CONTENT_LENGTH": length}
    return WSGIRequest(request.environ | {"wsgi.input": io.BytesIO(body)} | told)


@pytest.mark.parametrize(
    ("length", "status"),
    [
        (None, 400),
        ("", 400),
        ("0", 400),
        ("100", 400),
        ("-1", 400),
        ("1e2", 400),
        ("１", 400),
        ("99999999", 413),
    ],
)
def test_length_that_lies_or_is_missing_lets_no_large_body_in(
    db: None, length: str | None, status: int
) -> None:
    request = raw(padded(200_000), length)

    assert webhooks.receive(request).status_code == status
    assert request.environ["wsgi.input"].tell() <= 64 * 1024


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"null",
        b"[]",
        b'"evt"',
        b"17",
        b"[" * 60_000,
        b"9" * 5_000,
        b"{}",
        b'{"id":"evt_1"}',
        b'{"id":"evt_1","eventData":null}',
        b'{"id":"evt_1","eventData":[]}',
        b'{"id":"evt_1","eventData":{"type":"order.authorized"}}',
        event(id=None),
        event(id=["evt_1"]),
        event(id={"a": 1}),
        event(id=17),
        event(kind=None),  # type: ignore[arg-type]
        event(kind=["order.authorized"]),  # type: ignore[arg-type]
        event("order.authorized", data="order_test_1"),
        event("payment.created", {"id": "payment_test_unknown00000000000"}),
        event("refund.created", {"id": 17}),
        event("refund.created", {}),
        event("refund.created", data=["refund_test_1"]),
    ],
    ids=lambda body: body[:40].decode(errors="replace"),
)
def test_signed_nonsense_is_turned_away_for_good(db: None, body: bytes) -> None:
    assert deliver(body) == 400

    assert not WebhookEvent.objects.exists()


def test_of_two_equal_names_the_last_is_read_and_kept(payment: Payment, sandbox: Sandbox) -> None:
    order = payment.order.order_id
    body = (
        '{"id":"evt_one","id":"evt_two","eventData":{"type":"token.used","type":"order.authorized",'
        f'"data":{{"id":"order_test_unknown","id":"{order}"}}}}}}'
    ).encode()

    assert deliver(body) == 200

    assert list(WebhookEvent.objects.values_list("pk", "kind")) == [("evt_two", "order.authorized")]
    assert {each["path"] for each in sandbox.requests()} == {f"/v1/orders/{order}"}


def test_long_names_are_cut_to_what_the_table_holds(db: None) -> None:
    body = event(kind="k" * 200)

    assert deliver(body, sign(body) | {"Smartpay-Subscription-Id": "s" * 200}) == 200

    kept = WebhookEvent.objects.get()
    assert (kept.kind, kept.subscription_id) == ("k" * 64, "s" * 80)


# --- Catching up --------------------------------------------------------------------------------------------


def refund_event(refund: dict[str, Any], **other: Any) -> bytes:
    return event("refund.created", refund, **other)


def test_refund_made_elsewhere_is_read_and_lowers_what_is_left(payment: Payment, sandbox: Sandbox) -> None:
    left = payment.refundable()
    made = sandbox.refund_elsewhere(payment.pk, 300)

    assert deliver(refund_event(made)) == 200

    payment.refresh_from_db()
    assert (payment.external, payment.refundable()) == (300, left - 300)
    assert SmartpayRefund.objects.get(pk=made["id"]).ours is None


def test_contents_of_an_event_are_never_believed(payment: Payment, sandbox: Sandbox) -> None:
    another = sandbox.find("refundable", skip=1)["payments"][0]["id"]
    made = sandbox.refund_elsewhere(payment.pk, 300)
    lie = made | {"amount": 1, "status": "failed", "payment": another, "reference": str(made["id"])}

    assert deliver(refund_event(lie)) == 200

    payment.refresh_from_db()
    seen = SmartpayRefund.objects.get(pk=made["id"])
    assert (seen.amount, seen.status, seen.payment_id, payment.external) == (
        300,
        "succeeded",
        payment.pk,
        300,
    )
    assert not Payment.objects.filter(pk=another).exists()


def test_repeat_is_taken_and_nothing_is_done_twice(payment: Payment, sandbox: Sandbox) -> None:
    body = refund_event(sandbox.refund_elsewhere(payment.pk, 300))
    assert deliver(body) == 200
    sandbox.forget_requests()

    statuses = {deliver(body, sign(body, timestamp=str(1_700_000_000_000 + number))) for number in range(50)}

    payment.refresh_from_db()
    assert (statuses, sandbox.requests(), payment.external) == ({200}, [], 300)
    assert WebhookEvent.objects.count() == SmartpayRefund.objects.filter(payment=payment).count() == 1


def test_event_tells_of_our_own_refund_before_its_answer_is_booked(
    payment: Payment, operator: User, sandbox: Sandbox
) -> None:
    asked = services.RefundRequest(
        request_id=Refund._meta.pk.get_default(), payment_id=payment.pk, amount=500, reason="fraudulent"
    )
    made = services.request_refund(asked, refundable=payment.refundable(), by=operator)
    attempt = sending.begin_attempt(made.pk, owner=NO_LEASE)
    assert attempt is not None
    answer = sending.send(attempt, client=smartpay.client())
    assert isinstance(answer, smartpay.Answer)

    assert deliver(refund_event({"id": answer.refund.id, "payment": payment.pk})) == 200
    sending.book(attempt, answer)

    made.refresh_from_db()
    payment.refresh_from_db()
    assert (made.state, made.smartpay_id) == (Refund.State.SUCCEEDED, answer.refund.id)
    assert (payment.refunded, payment.external, payment.reserved) == (500, 0, 0)


@pytest.mark.parametrize("kind", ["order.authorized", "order.rejected", "order.canceled"])
def test_order_event_has_the_order_read(payment: Payment, sandbox: Sandbox, kind: str) -> None:
    order = sandbox.find("refundable", skip=1)["order"]

    assert deliver(event(kind, {"id": order, "status": "rejected"})) == 200

    assert Order.objects.get(order_id=order).status == "succeeded"


def test_payment_event_has_its_order_read(db: None, sandbox: Sandbox) -> None:
    found = sandbox.find("several_payments")
    payments = [each["id"] for each in found["payments"]]

    assert deliver(event("payment.created", {"id": payments[0], "order": found["order"]})) == 200

    assert set(Payment.objects.values_list("pk", flat=True)) == set(payments)


@pytest.mark.parametrize(
    "kind", ["token.used", "payout.paid", "coupon.created", "merchant_user.created", "new.kind"]
)
def test_event_of_no_concern_is_taken_and_nothing_is_read(db: None, sandbox: Sandbox, kind: str) -> None:
    assert deliver(event(kind, {"id": "x"})) == 200

    assert (WebhookEvent.objects.count(), sandbox.requests()) == (1, [])


# --- What a delivery does not wait for ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "told",
    [
        ("refund.created", {"id": "refund_test_unknown0000000000000"}),
        ("refund.created", {"id": "refund_live_unknown0000000000000"}),
        ("order.authorized", {"id": "order_test_unknown0000000000000"}),
        ("payment.created", {"id": "payment_test_unknown00000000000", "order": "order_test_unknown0000"}),
    ],
)
def test_event_that_names_what_is_not_there_is_looked_for_for_a_day(
    db: None, sandbox: Sandbox, at: Clock, told: tuple[str, dict[str, Any]]
) -> None:
    assert deliver(event(*told)) == 200

    webhooks.follow(smartpay.client())
    assert waiting() == 1

    at.advance(days=1, seconds=1)
    sandbox.forget_requests()
    webhooks.follow(smartpay.client())
    assert (waiting(), sandbox.requests("GET", "")) == (0, [])


def test_refund_that_reads_do_not_show_yet_is_taken_when_they_do(payment: Payment, sandbox: Sandbox) -> None:
    sandbox.switch(read_lag_seconds=600)
    assert deliver(refund_event(sandbox.refund_elsewhere(payment.pk, 300))) == 200
    sandbox.switch(read_lag_seconds=0)

    webhooks.follow(smartpay.client())

    payment.refresh_from_db()
    assert (payment.external, waiting()) == (300, 0)


@pytest.mark.parametrize("mode", ["html", "garbage", "unauthorized", "wrong_mode", "refusing"])
def test_event_is_followed_later_where_smartpay_could_not_be_read(
    payment: Payment, sandbox: Sandbox, quick: None, mode: str
) -> None:
    body = refund_event(sandbox.refund_elsewhere(payment.pk, 300))
    sandbox.fault(mode, method="GET", path="", times=None)
    assert deliver(body) == 200
    assert waiting() == 1

    sandbox.clear_faults()
    webhooks.follow(smartpay.client())

    payment.refresh_from_db()
    assert (payment.external, waiting()) == (300, 0)


def test_delivery_is_answered_soon_however_slow_smartpay_is(
    payment: Payment, sandbox: Sandbox, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webhooks, "HINT_SECONDS", 0.5)
    body = refund_event(sandbox.refund_elsewhere(payment.pk, 300))
    sandbox.fault("silent", method="GET", path="", times=1)
    began = time.monotonic()

    assert deliver(body) == 200

    assert time.monotonic() - began < settings.SMARTPAY_READ_TIMEOUT / 2
    webhooks.follow(smartpay.client())
    payment.refresh_from_db()
    assert payment.external == 300


def test_event_that_comes_again_is_followed_at_once(
    payment: Payment, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = refund_event(sandbox.refund_elsewhere(payment.pk, 300))
    with monkeypatch.context() as broken:
        broken.setattr(services, "observe_refund", lambda *args, **kwargs: 1 / 0)
        assert deliver(body) == 500

    assert deliver(body) == 200
    assert (SmartpayRefund.objects.filter(payment=payment).count(), waiting()) == (1, 0)


def test_event_of_a_version_before_is_not_read_again(db: None, sandbox: Sandbox) -> None:
    WebhookEvent.objects.create(event_id="evt_test_old", kind="refund.created", received_at=clock.now())

    webhooks.follow(smartpay.client())

    assert (waiting(), sandbox.requests("GET", "")) == (0, [])


def waiting() -> int:
    return WebhookEvent.objects.filter(caught_up_at=None).count()


# --- From end to end ----------------------------------------------------------------------------------------


def registered(sandbox: Sandbox, url: str, settings: Any) -> None:
    endpoint = sandbox.api("POST", "/webhook-endpoints", json={"url": url}).json()
    settings.SMARTPAY_WEBHOOK_SECRETS = [endpoint["signingSecret"]]


@pytest.mark.parametrize(
    "copies",
    # SQLite in memory is one connection, which several requests at once would share.
    [pytest.param(1, id="once"), pytest.param(3, id="three times at once", marks=pytest.mark.postgresql)],
)
@pytest.mark.django_db(transaction=True)
def test_refund_made_elsewhere_arrives_by_itself(
    sandbox: Sandbox, live_server: Any, settings: Any, copies: int
) -> None:
    """Smartpay signs and sends; nobody here asks for anything."""
    found = sandbox.find("refundable", min_amount=2000)
    services.read_order(found["order"], client=smartpay.client())
    registered(sandbox, f"{live_server.url}{ADDRESS}", settings)
    sandbox.switch(webhook_copies=copies)

    made = sandbox.refund_elsewhere(found["payments"][0]["id"], 300)

    until = time.monotonic() + 10
    while len(sandbox.deliveries()) < copies and time.monotonic() < until:
        time.sleep(0.05)
    assert [each["status"] for each in sandbox.deliveries()] == [200] * copies
    payment = Payment.objects.get(order__order_id=found["order"])
    assert (payment.external, payment.captured - payment.refundable()) == (300, 300)
    assert SmartpayRefund.objects.filter(payment=payment).values_list("pk", "amount").get() == (
        made["id"],
        300,
    )
    assert WebhookEvent.objects.count() == 1
