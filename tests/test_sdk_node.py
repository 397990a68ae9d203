"""Smartpay's published Node SDK, unchanged, works with the sandbox: it is no invention of ours."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.npm import NODE, installed
from tests.sandbox import Sandbox

HERE = Path(__file__).resolve().parent / "sdk_node"
pytestmark = pytest.mark.sdk


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """What the SDK got back, call by call: see sdk_node/run.mjs."""
    installed(HERE)
    with Sandbox() as sandbox:
        payment = sandbox.find(min_amount=2000)["payments"][0]["id"]
        command = [NODE, "run.mjs", sandbox.url, sandbox.secret_key, payment]
        done = subprocess.run(command, cwd=HERE, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    answers: dict[str, Any] = json.loads(done.stdout)
    return answers | {"payment": payment}


def test_the_sdk_lists_orders_page_by_page(seen: dict[str, Any]) -> None:
    first, second = seen["first"], seen["second"]

    assert (first["object"], first["maxResults"], first["results"], len(first["data"])) == (
        "collection",
        5,
        5,
        5,
    )
    assert second["pageToken"] == first["nextPageToken"]
    assert len({order["id"] for order in first["data"] + second["data"]}) == 10


def test_the_sdk_gets_an_order_plain_and_expanded(seen: dict[str, Any]) -> None:
    plain, expanded = seen["plain"], seen["expanded"]

    assert plain == seen["first"]["data"][0]
    assert [item["id"] for item in expanded["lineItems"]] == plain["lineItems"]
    assert [payment["id"] for payment in expanded["payments"]] == plain["payments"]
    assert expanded["lineItems"][0]["price"]["product"]["object"] == "product"


def test_the_sdk_refunds_once_for_one_key_and_reads_the_refund_back(seen: dict[str, Any]) -> None:
    refund = seen["refund"]

    assert (refund["payment"], refund["amount"], refund["status"]) == (seen["payment"], 100, "succeeded")
    assert (seen["replayed"], seen["read"], seen["refunds"]["data"][0]) == (refund, refund, refund)
    assert seen["patched"] == refund | {"reference": "sdk-2", "updatedAt": seen["patched"]["updatedAt"]}


def test_the_sdk_raises_smartpays_own_errors(seen: dict[str, Any]) -> None:
    assert seen["tooMuch"] == {"statusCode": 403, "errorCode": "amount.insufficient"}
    assert seen["wrongKey"] == {"statusCode": 404, "errorCode": "order.not-found"}


def test_the_sdk_verifies_the_signature_of_a_delivery(seen: dict[str, Any]) -> None:
    assert (seen["verified"], seen["verifiedWhenForged"]) == (True, False)
    assert seen["subscription"] == seen["endpoint"]["id"]
    assert seen["event"]["eventData"] == seen["event"]["eventData"] | {
        "type": "refund.created",
        "data": seen["refund"],
    }
