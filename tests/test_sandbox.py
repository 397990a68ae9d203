"""The sandbox keeps Smartpay's contract, and misbehaves as told."""

import http.server
import json
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import requests

from refunds.sandbox.webhooks import new_signing_secret, sign
from refunds.sandbox.world import DAY_MS, World
from tests.sandbox import ROOT, Sandbox

EPOCH = 1_790_000_000_000
PLAIN = {"amount": 500, "currency": "JPY", "reason": "requested_by_customer"}


@pytest.fixture
def payment(sandbox: Sandbox) -> str:
    """A payment of ¥2,000 or more that was never refunded."""
    found: str = sandbox.find("refundable", min_amount=2000)["payments"][0]["id"]
    return found


def every_page(sandbox: Sandbox, path: str, size: int = 100) -> Iterator[dict[str, Any]]:
    params: dict[str, Any] = {"maxResults": size}
    while True:
        page = sandbox.api("GET", path, params=params).json()
        yield from page["data"]
        if "nextPageToken" not in page:
            return
        params["pageToken"] = page["nextPageToken"]


# The seeded world


def test_a_seed_is_a_world_whose_ids_and_contents_outlive_a_restart() -> None:
    one, later = World(seed=1, orders=50, epoch=EPOCH), World(seed=1, orders=50, epoch=EPOCH + 9 * DAY_MS)
    other = World(seed=2, orders=50, epoch=EPOCH)
    timeless = {"createdAt": 0, "updatedAt": 0, "expiresAt": 0}

    assert [one.order(i) | timeless for i in range(50)] == [later.order(i) | timeless for i in range(50)]
    assert [one.customer(i) for i in range(50)] == [later.customer(i) for i in range(50)]
    assert not {one.id("order", i) for i in range(50)} & {other.id("order", i) for i in range(50)}


@pytest.mark.parametrize("kind", ["order", "checkoutSession", "payment", "refund", "token"])
def test_every_seeded_id_is_found_again_and_no_other_is(kind: str) -> None:
    world = World(seed=1, orders=300, epoch=EPOCH)
    fresh = World(seed=1, orders=300, epoch=EPOCH)  # one that has not made these ids itself
    numbers = list(world.walk(kind, 0, newest_first=True))

    for number in numbers:
        id = world.make(kind, number)["id"]
        assert re.fullmatch(r"[a-z]+_test_[0-9A-Za-z]{22}", id)
        assert fresh.number(kind, id) == number
        assert fresh.number(kind, id[:-1] + ("a" if id[-1] != "a" else "b")) is None
    assert list(world.walk(kind, 10**12, newest_first=False)) == numbers[::-1]


def test_orders_get_strictly_older_over_two_years_and_follow_the_japanese_day() -> None:
    world = World(seed=1, orders=4000, epoch=EPOCH)
    times = [world.created_at(number) for number in range(4000)]
    hours = Counter((at // 3_600_000 + 9) % 24 for at in times)

    assert all(newer > older for newer, older in pairwise([EPOCH, *times]))
    assert EPOCH - times[0] < DAY_MS
    assert 700 * DAY_MS < EPOCH - times[-1] <= 731 * DAY_MS
    assert hours[21] > 10 * hours[4] > 0


def test_sums_add_up_and_nothing_lies_in_the_future() -> None:
    world = World(seed=3, orders=3000, epoch=EPOCH)
    for order in range(3000):
        cart, fate = world.cart(order), world.fate(order)
        signs = {"product": 1, "tax": 1, "discount": -1}
        paid = world.payment_amounts(order)
        assert cart.amount == sum(signs[item.kind] * item.amount * item.quantity for item in cart.items) > 0
        if fate.status == "succeeded":
            assert sum(paid) == cart.amount
        for nth, amount in enumerate(paid):
            refunds = world.refund_amounts(order * 8 + nth)
            whole = sum(refunds) == amount
            assert all(refund > 0 for refund in refunds)
            assert sum(refunds) <= amount
            assert whole == (fate.refunded == "wholly")
            assert world.paid_at(order * 8 + nth) <= EPOCH
            assert all(world.refunded_at((order * 8 + nth) * 4 + r) <= EPOCH for r in range(len(refunds)))


def test_the_trade_is_believable() -> None:
    world = World(seed=1, orders=20_000, epoch=EPOCH)
    fates = [world.fate(order) for order in range(20_000)]
    statuses = Counter(fate.status for fate in fates)
    customers = [customer for order in range(20_000) if (customer := world.customer(order))]
    tanaka = sum("田中" in (one.get("lastName"), one.get("firstName")) for one in customers)

    def share(count: int) -> float:
        return round(count / 20_000, 2)

    assert share(statuses["succeeded"]) == 0.79
    assert share(statuses["requires_authorization"]) == 0.12
    assert share(sum(fate.refunded == "partly" for fate in fates)) == 0.06
    assert share(sum(fate.refunded == "wholly" for fate in fates)) == 0.05
    assert share(sum(fate.payments > 1 for fate in fates)) == 0.03
    assert share(sum(fate.by_token for fate in fates)) == 0.05
    assert 0.010 < tanaka / len(customers) < 0.016
    assert {"髙橋", "渡邊", "齋藤", "濵田", "山﨑"} <= {one.get("lastName") for one in customers}
    assert all(re.search(r"@(.+\.)?example\.", str(one).lower()) for one in customers)


def test_the_first_pages_show_every_kind_of_order(sandbox: Sandbox) -> None:
    amounts = [order["amount"] for order in every_page(sandbox, "/orders")]
    newest = {
        order["id"] for order in sandbox.api("GET", "/orders", params={"maxResults": 100}).json()["data"]
    }
    kinds = [
        "uncaptured",
        "partly_captured",
        "several_payments",
        "token",
        "partly_refunded",
        "wholly_refunded",
    ]
    kinds += ["never_paid", "rejected", "canceled", "no_name", "failed_refund"]

    assert (len(amounts), min(amounts), max(amounts)) == (300, 1, 990_000)
    assert all(sandbox.find(kind)["order"] in newest for kind in kinds)
    found = sandbox.find_all("refundable", name="田中", min_amount=2000)
    assert len([order for order in found if order["order"] in newest]) >= 3


def test_a_million_orders_start_at_once_in_little_memory() -> None:
    started = time.monotonic()
    with Sandbox(orders=1_000_000) as sandbox:
        last = sandbox.api("GET", "/orders", params={"maxResults": 1}).json()["data"][0]
        took = time.monotonic() - started
        assert sandbox.api("GET", f"/orders/{last['id']}").json() == last
        memory = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{sandbox.pid}/status").read_text())
    assert took < 3
    assert memory is None or int(memory[1]) < 500_000


# Reading


@pytest.mark.parametrize("newest_first", [True, False])
@pytest.mark.parametrize(
    "path", ["/orders", "/payments", "/refunds", "/checkout-sessions", "/tokens", "/coupons"]
)
def test_paging_meets_every_object_once(
    sandbox: Sandbox, payment: str, path: str, newest_first: bool
) -> None:
    for number in range(3):
        sandbox.refund(payment, 1, idempotency_key=f"page-{number}")
    sandbox.switch(newest_first=newest_first)
    ids = [item["id"] for item in every_page(sandbox, path, size=7)]
    times = [item["createdAt"] for item in every_page(sandbox, path)]

    assert len(ids) == len(set(ids)) == len(times)
    if path == "/orders":
        assert times == sorted(times, reverse=newest_first)


def test_a_refund_made_while_paging_neither_repeats_nor_hides_another(sandbox: Sandbox, payment: str) -> None:
    before = [refund["id"] for refund in every_page(sandbox, "/refunds")]
    seen = []
    for refund in every_page(sandbox, "/refunds", size=10):
        seen.append(refund["id"])
        sandbox.refund(payment, 1, idempotency_key=refund["id"])
    assert seen == before


def test_names_and_mails_are_on_checkout_sessions_only(sandbox: Sandbox) -> None:
    for path in ("/orders", "/payments", "/refunds"):
        text = sandbox.api("GET", path, params={"expand": "all", "maxResults": 100}).text
        assert not re.search(r"customerInfo|[kK]ana|[fF]irstName|@", text)
    sessions = sandbox.api("GET", "/checkout-sessions", params={"expand": "all", "maxResults": 100}).json()[
        "data"
    ]
    assert sum("customerInfo" in session for session in sessions) > 80
    assert all(session["order"]["object"] == "order" for session in sessions)
    assert not any("tokenId" in session["order"] for session in sessions)


def test_expansion_puts_objects_in_place_of_ids(sandbox: Sandbox) -> None:
    found = sandbox.find("partly_refunded")
    plain = sandbox.api("GET", f"/orders/{found['order']}", params={"expand": "no"}).json()
    whole = sandbox.api("GET", f"/orders/{found['order']}", params={"expand": "all"}).json()
    payment = sandbox.api("GET", f"/payments/{plain['payments'][0]}", params={"expand": "all"}).json()

    assert sandbox.api("GET", f"/orders/{found['order']}", params={"expand": ""}).json() == plain
    assert [one["id"] for one in whole["payments"]] == plain["payments"]
    assert payment["order"] == plain["id"]
    assert all(isinstance(id, str) for id in payment["refunds"])
    assert {item["object"] for item in payment["lineItems"]} == {"lineItem"}


@pytest.mark.parametrize(
    "params",
    [
        {"expand": "some"},
        {"maxResults": 0},
        {"maxResults": 101},
        {"maxResults": "ten"},
        {"pageToken": "nonsense"},
    ],
)
def test_odd_list_parameters_are_refused_and_unknown_ones_tolerated(
    sandbox: Sandbox, params: dict[str, Any]
) -> None:
    refused = sandbox.api("GET", "/orders", params=params)
    tolerated = sandbox.api("GET", "/orders", params={"dev-lang": "python", "sdk-version": "0.8.1"})

    assert (refused.status_code, refused.json()["errorCode"]) == (400, "request.invalid")
    assert (tolerated.status_code, tolerated.json()["maxResults"], tolerated.json()["results"]) == (
        200,
        20,
        20,
    )


@pytest.mark.parametrize(
    "header", ["", "Basic pk_test_abc", "Bearer sk_test_abc", "Basic sk_test_", "Basic c2s6"]
)
def test_a_wrong_key_is_answered_401_without_an_error_code(sandbox: Sandbox, header: str) -> None:
    answer = sandbox.api("GET", "/orders", headers={"Authorization": header})
    assert (answer.status_code, set(answer.json())) == (401, {"statusCode", "scheme", "realm"})


def test_the_modes_are_walls(sandbox: Sandbox, payment: str) -> None:
    live = "sk_live_1"
    refund = sandbox.api("POST", "/refunds", key=live, json=PLAIN | {"payment": payment})

    assert sandbox.api("GET", "/orders", key=live).json()["results"] == 0
    assert sandbox.api("GET", f"/payments/{payment}", key=live).status_code == 404
    assert (refund.status_code, refund.json()["errorCode"]) == (404, "payment.not-found")
    assert '"errorCode":"payment.not-found"' in refund.text  # compact


# Refunds


def test_a_refund_is_answered_as_sent_and_used_up_to_the_last_yen(sandbox: Sandbox) -> None:
    found = sandbox.find("refundable", min_amount=2000)
    id, amount = found["payments"][0]["id"], found["amount"]
    order = sandbox.api("GET", f"/orders/{found['order']}").json()
    notes: dict[str, Any] = {"reference": "r" * 40, "description": "返" * 80, "metadata": {"key": "value"}}

    first = sandbox.refund(id, 1500, idempotency_key="1", currency="jpy", **notes)
    between = sandbox.api("GET", f"/payments/{id}").json()
    too_much = sandbox.refund(id, amount - 1499, idempotency_key="2")
    rest = sandbox.refund(
        id, None, idempotency_key="3", reference=None, description=None, metadata=None, lineItems=[]
    )
    nothing_left = sandbox.refund(id, 1, idempotency_key="4")

    shown = {
        "object": "refund",
        "amount": 1500,
        "currency": "JPY",
        "payment": id,
        "status": "succeeded",
        "test": True,
    }
    assert first.json() == first.json() | shown | notes | {"reason": "requested_by_customer"}
    assert sandbox.api("GET", f"/refunds/{first.json()['id']}").json() == first.json()
    assert (between["status"], between["refunds"]) == ("processed", [first.json()["id"]])
    assert (too_much.status_code, too_much.json()["errorCode"]) == (403, "amount.insufficient")
    assert (rest.json()["amount"], "reference" in rest.json()) == (amount - 1500, False)
    assert (nothing_left.status_code, nothing_left.json()["errorCode"]) == (403, "amount.insufficient")
    assert sandbox.api("GET", f"/payments/{id}").json()["status"] == "refunded"
    assert sandbox.api("GET", f"/orders/{found['order']}").json() == order


@pytest.mark.parametrize(
    "wrong",
    [
        {"amount": 0}, {"amount": -1}, {"amount": 1.5}, {"amount": "500"}, {"amount": True}, {"currency": "USD"},
        {"currency": None}, {"reason": None}, {"reason": "other"}, {"payment": None}, {"payment": 7},
        {"reference": ""}, {"reference": "r" * 41}, {"description": ""}, {"description": "返" * 81},
        {"metadata": {str(n): "" for n in range(21)}}, {"metadata": []}, {"lineItems": ["li_test_another"]},
    ],
)  # fmt: skip
def test_an_invalid_refund_is_refused_whole(sandbox: Sandbox, payment: str, wrong: dict[str, Any]) -> None:
    answer = sandbox.api("POST", "/refunds", json=PLAIN | {"payment": payment} | wrong)

    assert (answer.status_code, answer.json()["statusCode"], answer.json()["errorCode"]) == (
        400,
        400,
        "request.invalid",
    )
    assert sandbox.api("GET", f"/payments/{payment}").json()["refunds"] == []


@pytest.mark.parametrize("body", [b"{", b'{"amount": NaN}', b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_is_malformed(sandbox: Sandbox, body: bytes) -> None:
    answer = sandbox.api("POST", "/refunds", data=body)
    assert (answer.status_code, answer.json()["errorCode"]) == (400, "request.malformed")


def test_a_key_makes_a_request_happen_once_in_six_hours(sandbox: Sandbox, payment: str) -> None:
    first = sandbox.refund(payment, 100, idempotency_key="same")
    sandbox.advance(6 * 3600 - 60)
    again = sandbox.refund(payment, 100, idempotency_key="same")
    other_body = sandbox.refund(payment, 101, idempotency_key="same")
    body = {"payment": payment} | PLAIN | {"amount": 100}
    other_secret_key = sandbox.api("POST", "/refunds", key="sk_test_2", json=body, idempotency_key="same")
    sandbox.advance(120)
    too_late = sandbox.refund(payment, 100, idempotency_key="same")

    assert (again.text, again.headers["Idempotency-Replayed"]) == (first.text, "true")
    assert "Idempotency-Replayed" not in first.headers
    assert other_body.status_code == 409
    assert len({answer.json()["id"] for answer in (first, other_secret_key, too_late)}) == 3


def test_a_refusal_is_replayed_and_a_server_error_only_if_it_was_stored(
    sandbox: Sandbox, payment: str
) -> None:
    refused = [sandbox.refund(payment, 10**7, idempotency_key="high") for _ in range(2)]
    sandbox.fault("error", executed=False)
    not_stored = [sandbox.refund(payment, 1, idempotency_key="lost").status_code for _ in range(2)]
    sandbox.fault("error", stored=True)
    stored = [sandbox.refund(payment, 2, idempotency_key="kept").status_code for _ in range(2)]

    assert refused[0].text == refused[1].text
    assert (not_stored, stored) == ([500, 200], [500, 500])
    assert len(sandbox.api("GET", f"/payments/{payment}").json()["refunds"]) == 2


def test_a_key_whose_first_request_still_runs_is_a_conflict(sandbox: Sandbox, payment: str) -> None:
    sandbox.fault("slow", seconds=0.5)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(sandbox.refund, payment, 100, idempotency_key="busy")
        while not sandbox.requests("POST"):
            time.sleep(0.01)
        with requests.Session() as another:
            headers = {"Authorization": f"Basic {sandbox.secret_key}", "Idempotency-Key": "busy"}
            body = {"payment": payment} | PLAIN | {"amount": 100}
            second = another.post(sandbox.url + "/refunds", json=body, headers=headers, timeout=5)
    assert (first.result().status_code, second.status_code) == (200, 409)


def test_refunds_at_once_never_exceed_the_payment(sandbox: Sandbox, payment: str) -> None:
    amount = sandbox.api("GET", f"/payments/{payment}").json()["amount"]
    part = amount // 3

    def send(number: int) -> int:
        with Sandbox(control=sandbox.control) as another:
            return another.refund(payment, part, idempotency_key=f"rush-{number}").status_code

    with ThreadPoolExecutor(10) as pool:
        statuses = Counter(pool.map(send, range(10)))
    assert statuses == {200: 3, 403: 7}


def test_a_refund_can_be_annotated_but_not_changed(sandbox: Sandbox, payment: str) -> None:
    refund = sandbox.refund(payment, 100, idempotency_key="1").json()
    patch = {"reference": "new", "description": None, "amount": 1, "idempotencyKey": "tolerated"}
    patched = sandbox.api("PATCH", f"/refunds/{refund['id']}", json=patch).json()

    assert patched == refund | {"reference": "new", "updatedAt": patched["updatedAt"]}
    assert sandbox.api("PATCH", "/refunds/refund_test_x", json={}).json()["errorCode"] == "refund.not-found"


# Captures, cancellations, sessions, tokens


def test_an_order_is_captured_in_parts_and_its_rest_cancelled(sandbox: Sandbox) -> None:
    found = sandbox.find("uncaptured")

    def capture(amount: int, **more: str) -> requests.Response:
        return sandbox.api(
            "POST", "/payments", json={"order": found["order"], "amount": amount, "currency": "JPY"} | more
        )

    part = capture(10, cancelRemainder="manual")
    refunded = sandbox.refund(part.json()["id"], 5, idempotency_key="while open")
    too_much = capture(found["amount"] - 9)
    open_order = sandbox.api("GET", f"/orders/{found['order']}").json()
    canceled = sandbox.api("PUT", f"/orders/{found['order']}/cancellation").json()
    late = capture(1)

    assert (part.status_code, part.json()["status"], refunded.status_code) == (200, "processed", 200)
    assert (too_much.status_code, too_much.json()["errorCode"]) == (409, "payment.excessive-amount")
    assert (open_order["status"], open_order["payments"]) == ("requires_capture", [part.json()["id"]])
    assert canceled["status"] == "succeeded"
    assert (late.status_code, late.json()["errorCode"]) == (409, "order.cannot-capture")
    answer = sandbox.api("PUT", f"/orders/{found['order']}/cancellation")
    assert (answer.status_code, answer.json()["errorCode"]) == (409, "order.cannot-cancel")


def test_an_uncaptured_order_is_cancelled_after_seven_days_and_once_more_by_hand(sandbox: Sandbox) -> None:
    uncaptured, partly = sandbox.find("uncaptured"), sandbox.find("partly_captured")
    sandbox.advance(7 * 86_400)

    assert sandbox.api("GET", f"/orders/{uncaptured['order']}").json()["status"] == "canceled"
    assert sandbox.api("GET", f"/orders/{partly['order']}").json()["status"] == "succeeded"
    assert sandbox.api("PUT", f"/orders/{uncaptured['order']}/cancellation").status_code == 200


def shopper(sandbox: Sandbox, method: str, path: str, **body: str) -> dict[str, Any]:
    base = sandbox.url.removesuffix("/v1")
    login = requests.post(
        base + "/consumers/auth/login", json={"emailAddress": "a@b", "password": "c"}, timeout=5
    )
    headers = {"Authorization": f"Bearer {login.json()['accessToken']}"}
    answer = requests.request(method, base + path, json=body, headers=headers, timeout=5)
    shown: dict[str, Any] = answer.json()
    return shown


CHECKOUT = {
    "amount": 1200, "currency": "jpy", "customerInfo": {"email": "taro@example.jp", "lastName": "田中"},
    "items": [{"name": "Tシャツ", "amount": 600, "currency": "JPY", "quantity": 2}],
    "successUrl": "https://shop.example.jp/ok", "cancelUrl": "https://shop.example.jp/no", "reference": "A-1",
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "method", "statuses", "payments"),
    [
        ({}, "pm_test_visaApproved", ["requires_authorization", "succeeded"], 1),
        (
            {"captureMethod": "manual"},
            "pm_test_visaApproved",
            ["requires_authorization", "requires_capture"],
            0,
        ),
        ({}, "pm_test_visaDeclined", ["requires_authorization", "rejected"], 0),
    ],
)
def test_a_checkout_makes_an_order_that_its_shopper_authorizes(
    sandbox: Sandbox, more: dict[str, str], method: str, statuses: list[str], payments: int
) -> None:
    session = sandbox.api("POST", "/checkout-sessions", json=CHECKOUT | more).json()
    path = f"/orders/{session['order']['id']}/authorizations"
    order = shopper(sandbox, "POST", path, paymentMethod=method, paymentPlan="pay_in_three")

    assert [session["order"]["status"], order["status"]] == statuses
    assert len(order["payments"]) == payments
    assert session["order"]["lineItems"][0]["price"]["product"]["name"] == "Tシャツ"
    stored = sandbox.api("GET", f"/checkout-sessions/{session['id']}").json()
    assert (stored["order"], stored["customerInfo"]) == (order["id"], CHECKOUT["customerInfo"])


def test_a_token_pays_for_orders_until_it_is_disabled_or_deleted(sandbox: Sandbox) -> None:
    session = sandbox.api("POST", "/checkout-sessions", json=CHECKOUT | {"mode": "token"}).json()
    token = session["token"]["id"]

    def order() -> requests.Response:
        return sandbox.api("POST", "/orders", json=CHECKOUT | {"token": token})

    early = order()
    shopper(sandbox, "PUT", f"/tokens/{token}/approve")
    paid = order().json()
    disabled = sandbox.api("PUT", f"/tokens/{token}/disable")
    refused = order()
    deleted = sandbox.api("DELETE", f"/tokens/{token}")
    gone = order()

    assert (early.status_code, early.json()["errorCode"]) == (400, "token.invalid")
    assert (paid["status"], paid["tokenId"], len(paid["payments"])) == ("succeeded", token, 1)
    assert "customerInfo" not in paid
    assert (disabled.status_code, disabled.text, refused.json()["errorCode"]) == (200, "", "token.invalid")
    assert (deleted.status_code, gone.status_code, gone.json()["errorCode"]) == (204, 404, "token.not-found")
    listed = sandbox.api("GET", "/checkout-sessions", params={"expand": "all", "maxResults": 1}).json()[
        "data"
    ][0]
    assert listed["token"] == token  # nothing left to expand


def test_coupons_and_promotion_codes_are_made_and_ended(sandbox: Sandbox) -> None:
    wish = {"name": "春", "discountType": "amount", "discountAmount": 100, "currency": "JPY"}
    coupon = sandbox.api("POST", "/coupons", json=wish).json()
    code = {"code": "HARU", "coupon": coupon["id"]}
    made, twice = (sandbox.api("POST", "/promotion-codes", json=code) for _ in range(2))
    ended = sandbox.api("PATCH", f"/coupons/{coupon['id']}", json={"active": False}).json()

    assert (made.status_code, twice.json()["errorCode"]) == (200, "promotion-code.exists")
    assert (coupon["active"], ended["active"]) == (True, False)
    missing = sandbox.api("POST", "/promotion-codes", json={"code": "X", "coupon": "coupon_test_x"})
    assert missing.json()["errorCode"] == "coupon.not-found"


# Webhooks


class Receiver:
    """A merchant's address: keeps what it gets, answers the statuses it was given, then 200."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.statuses: list[int] = []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append(({name.lower(): value for name, value in self.headers.items()}, body))
                self.send_response(receiver.statuses.pop(0) if receiver.statuses else 200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/hook"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def wait(self, count: int) -> list[tuple[dict[str, str], bytes]]:
        until = time.monotonic() + 5
        while len(self.got) < count and time.monotonic() < until:
            time.sleep(0.01)
        return self.got


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def test_signatures_are_those_of_the_official_vector() -> None:
    # From the official PHP SDK's own tests.
    expected = "ae82b27dd6dafd0dbfc65faff07160833776cf60915782ef991557e51e4d1782"
    assert sign("MOCKSECRETKEY", b"test data") == expected


def test_signing_secrets_are_40_characters_of_30_bytes_whose_first_is_not_zero() -> None:
    drawn = iter([bytes(30), b"\xff" * 30, b"\x00" + b"\xff" * 29, b"\x20" + bytes(29)])
    secret = new_signing_secret(lambda size: next(drawn))
    assert len(secret) == 40
    assert next(drawn, None) is None  # the first three were thrown away


def test_a_delivery_is_repeated_until_taken_and_signed_anew_each_time(
    sandbox: Sandbox, receiver: Receiver
) -> None:
    receiver.statuses = [500, 302]
    sandbox.switch(webhook_waits=[0.05, 0.05, 0.05])
    wish = {"url": receiver.url, "eventSubscriptions": ["refund.created"]}
    endpoint = sandbox.api("POST", "/webhook-endpoints", json=wish).json()
    payment = sandbox.find("refundable", min_amount=2000)["payments"][0]["id"]
    refund = sandbox.refund_elsewhere(payment, 100)
    deliveries = receiver.wait(3)
    headers, body = deliveries[-1]
    event = json.loads(body)

    assert [attempt["status"] for attempt in wait_for(sandbox.deliveries, 3)] == [500, 302, 200]
    assert len({head["smartpay-event-id"] for head, _ in deliveries}) == 1
    assert len({head["smartpay-signature-timestamp"] for head, _ in deliveries}) == 3
    for head, text in deliveries:
        message = head["smartpay-signature-timestamp"].encode() + b"." + text
        assert head["smartpay-signature"] == sign(endpoint["signingSecret"], message)
    assert (headers["smartpay-subscription-id"], headers["smartpay-event-id"]) == (
        endpoint["id"],
        event["id"],
    )
    assert (event["eventData"]["type"], event["eventData"]["data"]) == ("refund.created", refund)


def test_events_go_only_where_they_are_wanted_and_as_often_as_told(
    sandbox: Sandbox, receiver: Receiver
) -> None:
    everything = sandbox.api("POST", "/webhook-endpoints", json={"url": receiver.url}).json()
    sandbox.api(
        "POST", "/webhook-endpoints", json={"url": receiver.url, "eventSubscriptions": ["token.used"]}
    )
    sandbox.switch(webhook_copies=3, webhook_shuffled=True)
    found = sandbox.find("uncaptured")
    sandbox.api("PUT", f"/orders/{found['order']}/cancellation")
    got = receiver.wait(3)
    sandbox.api("PATCH", f"/webhook-endpoints/{everything['id']}", json={"active": False})
    sandbox.refund_elsewhere(sandbox.find("refundable")["payments"][0]["id"], 1)
    sandbox.api("DELETE", f"/webhook-endpoints/{everything['id']}")
    sandbox.refund_elsewhere(sandbox.find("refundable")["payments"][0]["id"], 1)
    time.sleep(0.1)

    assert [head["smartpay-subscription-id"] for head, _ in got] == [everything["id"]] * 3
    assert json.loads(got[0][1])["eventData"]["type"] == "order.canceled"


def wait_for(ask: Callable[[], list[Any]], count: int) -> list[Any]:
    until = time.monotonic() + 5
    while len(found := ask()) < count and time.monotonic() < until:
        time.sleep(0.01)
    return found


# Misbehaviour


def send(sandbox: Sandbox, payment: str, timeout: float = 0.3) -> requests.Response | str:
    """A refund of one yen: the answer, or the name of what happened instead."""
    try:
        return sandbox.refund(payment, 1, idempotency_key="fault", timeout=timeout)
    except requests.RequestException as error:
        return type(error).__name__


@pytest.mark.parametrize("executed", [True, False])
@pytest.mark.parametrize(
    ("mode", "seen"),
    [
        ("silent", "ReadTimeout"),
        ("reset", "ConnectionError"),
        ("garbage", 200),
        ("html", 502),
        ("error", 500),
    ],
)
def test_a_request_lost_on_its_way_and_an_answer_lost_look_alike(
    *, sandbox: Sandbox, payment: str, mode: str, seen: str | int, executed: bool
) -> None:
    sandbox.fault(mode, executed=executed)
    answer = send(sandbox, payment)
    refunds = sandbox.api("GET", f"/payments/{payment}").json()["refunds"]
    again = send(sandbox, payment)

    assert (answer if isinstance(answer, str) else answer.status_code) == seen
    assert len(refunds) == executed
    assert isinstance(again, requests.Response)
    assert again.status_code == 200  # repeated under its key, it is done exactly once
    assert again.headers.get("Idempotency-Replayed") == ("true" if executed else None)
    assert len(sandbox.api("GET", f"/payments/{payment}").json()["refunds"]) == 1


@pytest.mark.parametrize(
    ("mode", "options", "field", "shown"),
    [
        ("wrong_amount", {}, "amount", 2),
        ("wrong_payment", {}, "payment", "payment_test_00000000000000000000xx"),
        ("wrong_mode", {}, "test", False),
        ("odd_status", {}, "status", "processing"),
        ("altered", {"values": {"reference": None, "currency": "USD"}}, "currency", "USD"),
    ],
)
def test_an_answer_can_contradict_what_was_done(
    *, sandbox: Sandbox, payment: str, mode: str, options: dict[str, Any], field: str, shown: Any
) -> None:
    sandbox.fault(mode, **options)
    answer = sandbox.refund(payment, 1, idempotency_key="1").json()
    stored = sandbox.api("GET", f"/refunds/{answer['id']}").json()

    assert answer[field] == shown
    assert stored == answer | {field: stored[field]}
    assert stored[field] != shown


def test_a_failed_refund_gives_nothing_back(sandbox: Sandbox, payment: str) -> None:
    sandbox.fault("status_failed")
    amount = sandbox.api("GET", f"/payments/{payment}").json()["amount"]
    failed = sandbox.refund(payment, amount, idempotency_key="1")

    assert (failed.status_code, failed.json()["status"]) == (200, "failed")
    assert sandbox.api("GET", f"/refunds/{failed.json()['id']}").json() == failed.json()
    assert sandbox.refund(payment, amount, idempotency_key="2").json()["status"] == "succeeded"


@pytest.mark.parametrize(
    ("mode", "options", "status", "header"),
    [
        ("rate_limited", {"seconds": 7}, 429, ("Retry-After", "7")),
        ("conflict", {}, 409, ("Content-Type", "application/json; charset=utf-8")),
        ("unauthorized", {}, 401, ("Content-Type", "application/json; charset=utf-8")),
        ("forbidden", {}, 403, ("Content-Type", "text/html")),
        ("redirect", {"status": 308}, 308, ("Location", "/v1/refunds")),
    ],
)
def test_a_request_can_be_turned_away(
    *,
    sandbox: Sandbox,
    payment: str,
    mode: str,
    options: dict[str, Any],
    status: int,
    header: tuple[str, str],
) -> None:
    sandbox.fault(mode, **options)
    answer = sandbox.refund(payment, 1, idempotency_key="1")

    assert (answer.status_code, answer.headers[header[0]]) == (status, header[1])
    assert sandbox.api("GET", f"/payments/{payment}").json()["refunds"] == []


def test_an_answer_can_break_off_drip_or_be_too_large(sandbox: Sandbox, payment: str) -> None:
    sandbox.fault("truncated")
    assert send(sandbox, payment) in ("ChunkedEncodingError", "ConnectionError")
    sandbox.fault("drip", seconds=0.002)
    started = time.monotonic()
    dripped = send(sandbox, payment)
    assert isinstance(dripped, requests.Response)
    assert time.monotonic() - started > 0.002 * len(dripped.content)
    sandbox.fault("too_large", size=3 << 20)
    assert len(sandbox.refund(payment, 1, idempotency_key="2").content) > 3 << 20


def test_a_proxy_can_hold_a_request_back_or_deliver_it_twice(sandbox: Sandbox, payment: str) -> None:
    sandbox.fault("held")
    lost = send(sandbox, payment)
    before = sandbox.api("GET", f"/payments/{payment}").json()["refunds"]
    arrived = sandbox.release()
    sandbox.fault("doubled")
    sandbox.refund(payment, 2, idempotency_key="doubled")

    assert (lost, before, arrived) == ("ConnectionError", [], [200])
    assert len(sandbox.api("GET", f"/payments/{payment}").json()["refunds"]) == 2


def test_faults_meet_only_their_own_requests_and_only_so_often(sandbox: Sandbox, payment: str) -> None:
    sandbox.fault("error", method="GET", path="/v1/payments/*", times=2, skip=1)
    payments = [sandbox.api("GET", f"/payments/{payment}").status_code for _ in range(4)]
    sandbox.fault("error", method=None, path="", times=None)
    all_of_them = [sandbox.api("GET", path).status_code for path in ("/orders", "/refunds", "/tokens")]
    sandbox.clear_faults()

    assert (payments, all_of_them) == ([200, 500, 500, 200], [500, 500, 500])
    assert sandbox.api("GET", "/orders").status_code == 200
    with pytest.raises(ValueError, match="mode is one of"):
        sandbox.fault("unheard of")


def test_a_refusing_sandbox_listens_to_its_control_door_alone(sandbox: Sandbox) -> None:
    host, port = sandbox.url.split("/")[2].split(":")
    sandbox.api("GET", "/orders")
    sandbox.fault("refusing")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((host, int(port)), timeout=1).close()
    with pytest.raises(requests.ConnectionError):  # nor are open connections kept
        sandbox.api("GET", "/orders")
    sandbox.clear_faults()
    assert sandbox.api("GET", "/orders").status_code == 200
    sandbox.fault("refusing", seconds=0.2)
    time.sleep(0.4)
    assert sandbox.api("GET", "/orders").status_code == 200


def test_connections_can_be_closed_at_accept_and_when_idle(sandbox: Sandbox) -> None:
    sandbox.fault("close_at_accept", times=None)
    for _ in range(2):
        with pytest.raises(requests.ConnectionError):
            requests.get(sandbox.url, timeout=1)
    sandbox.clear_faults()
    assert requests.get(sandbox.url, timeout=1).status_code == 401

    sandbox.switch(idle_seconds=0.1)
    host, port = sandbox.url.split("/")[2].split(":")
    with socket.create_connection((host, int(port)), timeout=2) as connection:
        assert connection.recv(1) == b""


def test_requests_are_recorded_with_their_key_body_and_connection(sandbox: Sandbox, payment: str) -> None:
    sandbox.forget_requests()
    sandbox.refund(payment, 7, idempotency_key="recorded")
    sandbox.api("GET", "/orders", params={"maxResults": 1})
    first, second = sandbox.requests()
    requests.get(sandbox.url + "/orders", timeout=1)

    assert (first["method"], first["path"], first["headers"]["idempotency-key"]) == (
        "POST",
        "/v1/refunds",
        "recorded",
    )
    assert json.loads(first["body"])["amount"] == 7
    assert second["query"] == {"maxResults": "1"}
    assert first["connection"] == second["connection"] != sandbox.requests()[-1]["connection"]
    assert len(sandbox.requests("GET", "/v1/orders")) == 2


def test_reads_can_lag_behind_refunds(sandbox: Sandbox) -> None:
    found = sandbox.find("refundable")
    id = found["payments"][0]["id"]
    sandbox.switch(read_lag_seconds=60)
    refund = sandbox.refund(id, None, idempotency_key="1").json()

    def seen() -> tuple[int, list[str], str, bool]:
        payment = sandbox.api("GET", f"/payments/{id}").json()
        newest = sandbox.api("GET", "/refunds", params={"maxResults": 1}).json()["data"][0]["id"]
        alone = sandbox.api("GET", f"/refunds/{refund['id']}").status_code
        return alone, payment["refunds"], payment["status"], newest == refund["id"]

    assert seen() == (404, [], "processed", False)
    assert sandbox.refund(id, None, idempotency_key="1").json() == refund
    sandbox.advance(61)
    assert seen() == (200, [refund["id"]], "refunded", True)


def test_payments_can_keep_their_refunds_to_themselves(sandbox: Sandbox, payment: str) -> None:
    sandbox.switch(payments_list_refunds=False)
    assert "refunds" not in sandbox.api("GET", f"/payments/{payment}").json()
    with pytest.raises(ValueError, match="no such switch"):
        sandbox.switch(payment_lists_refunds=False)


def test_an_object_can_be_put_into_a_state_that_nothing_brings_about(sandbox: Sandbox) -> None:
    order = sandbox.find("never_paid")["order"]
    sandbox.set(order, status="pending")
    assert sandbox.api("GET", f"/orders/{order}").json()["status"] == "pending"


# Starting again


def test_a_reset_restores_everything_and_gives_no_id_twice(sandbox: Sandbox, payment: str) -> None:
    before = sandbox.api("GET", f"/payments/{payment}").json()
    first = sandbox.refund(payment, 1, idempotency_key="1").json()
    sandbox.advance(3600)
    sandbox.fault("error", times=None)
    sandbox.switch(max_results_limit=20)
    sandbox.reset()

    assert sandbox.api("GET", f"/payments/{payment}").json() == before
    assert sandbox.api("GET", "/orders", params={"maxResults": 100}).status_code == 200
    assert abs(sandbox.now() / 1000 - time.time()) < 5
    assert sandbox.refund(payment, 1, idempotency_key="1").json()["id"] != first["id"]


def test_a_state_file_brings_back_what_a_killed_sandbox_had_answered(tmp_path: Path) -> None:
    state = tmp_path / "sandbox.jsonl"
    command = ["--state", str(state), "--webhook", "http://127.0.0.1:9/", "--webhook-secret", "s" * 40]
    with Sandbox(*command, orders=40) as sandbox:
        id = sandbox.find("refundable")["payments"][0]["id"]
        refund = sandbox.refund(id, 5, idempotency_key="kept").json()
        sandbox.advance(3600)
        payment = sandbox.api("GET", f"/payments/{id}").json()
        orders = sandbox.api("GET", "/orders", params={"expand": "all", "maxResults": 40}).json()["data"]
    with state.open("a") as file:
        file.write('{"objects":[["test","refund"')  # killed while writing

    with Sandbox(*command, orders=40) as sandbox:
        assert (
            sandbox.api("GET", "/orders", params={"expand": "all", "maxResults": 40}).json()["data"] == orders
        )
        assert sandbox.api("GET", f"/payments/{id}").json() == payment
        assert sandbox.refund(id, 5, idempotency_key="kept").json() == refund
        assert sandbox.api("GET", "/refunds").json()["data"][0] == refund
        assert sandbox.refund(id, 6, idempotency_key="new").json()["id"] != refund["id"]
        assert sandbox.api("GET", "/webhook-endpoints").json()["results"] == 1
        assert sandbox.now() / 1000 - time.time() > 3500

    other = subprocess.run(
        [sys.executable, "-m", "refunds.sandbox", "--port", "0", "--seed", "2", "--state", state],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=10,
    )  # fmt: skip
    assert other.returncode != 0
    assert "belongs to --seed 1 --orders 40" in other.stderr


def test_the_management_command_starts_the_same_sandbox() -> None:
    command = [sys.executable, "manage.py", "run_sandbox", "--port", "0", "--orders", "7"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        announcement = process.stdout.readline()
        process.kill()
    assert re.match(
        r"Smartpay sandbox url=http://127\.0\.0\.1:\d+/v1 control=.* orders=7 seed=1\n", announcement
    )
