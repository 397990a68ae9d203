"""Logs: what may appear in them, and what is redacted."""

import io
import json
import logging
import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from ipaddress import ip_network
from typing import Any

import pytest
import sentry_sdk
import structlog
from django.conf import settings
from django.db import IntegrityError, connection
from django.test import Client
from sentry_sdk.envelope import Envelope
from sentry_sdk.transport import Transport

from dashboard import faults
from dashboard.logs import Redaction, place_and_kind
from dashboard.models import User
from refunds.models import Payment
from tests.conftest import make_order, sign_in
from tests.sandbox import ROOT, Sandbox
from tests.test_services import refund


def site_handler(stream: io.StringIO) -> logging.Handler:
    config: Any = settings.LOGGING
    formatter = config["formatters"]["json"]
    options = {name: value for name, value in formatter.items() if name != "()"}
    handler = logging.StreamHandler(stream)
    handler.setFormatter(formatter["()"](**options))
    return handler


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    """The log as the site writes it, at every level."""
    stream = io.StringIO()
    handler = site_handler(stream)
    loggers = [
        logging.getLogger(name) for name in ("", "django", "django.request", "urllib3", "mozilla_django_oidc")
    ]
    before = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
    for each in loggers[:2]:
        each.addHandler(handler)
    yield stream
    for each, level in zip(loggers, before, strict=True):
        each.removeHandler(handler)
        each.setLevel(level)


def lines(log: io.StringIO, event: str = "") -> list[dict[str, Any]]:
    found = [json.loads(line) for line in log.getvalue().splitlines()]
    return [line for line in found if event in ("", line["event"])]


def logged(error: Exception) -> dict[str, Any]:
    """Log an exception with the site's handler; return its line."""
    stream = io.StringIO()
    handler = site_handler(stream)
    logger = logging.Logger("django.request")  # noqa: LOG001  (one of its own, with no other handler)
    logger.addHandler(handler)
    try:
        raise error
    except Exception:
        logger.exception("Internal Server Error: %s", "/orders/")
    [line] = stream.getvalue().splitlines()
    told: dict[str, Any] = json.loads(line)
    return told


def test_fault_tells_its_place_and_kind_and_not_its_words() -> None:
    told = logged(ValueError("田中 太郎 tanaka@example.jp\x1b[31m\r\n"))

    assert "田中" not in json.dumps(told, ensure_ascii=False)
    assert told["exception"].startswith("builtins.ValueError\n")
    assert "test_logs.py" in told["exception"]
    assert (told["event"], told["level"]) == ("Internal Server Error", "error")


@pytest.mark.django_db
def test_row_that_the_database_refused_is_not_repeated() -> None:
    with pytest.raises(IntegrityError) as refused, connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO refunds_search (id, person_id, text, created_at) VALUES ('x', NULL, '田中 太郎', NULL)"
        )

    words = place_and_kind((type(refused.value), refused.value, refused.tb))

    assert "田中" not in words
    assert words.startswith("django.db.utils.IntegrityError\n")
    assert "caused by" in words


def test_errors_that_name_each_other_end() -> None:
    one, two = ValueError(), KeyError()
    one.__cause__, two.__cause__ = two, one

    assert place_and_kind((ValueError, one, None)) == "builtins.ValueError\ncaused by builtins.KeyError"


# --- Requests -----------------------------------------------------------------------------------------------
def test_request_is_one_line_without_its_address(viewer: User, log: io.StringIO) -> None:
    page = sign_in(viewer).get(
        "/orders/?q=tanaka%40example.jp", headers={"Referer": "http://testserver/?q=tanaka"}
    )

    [line] = lines(log, "request.done")
    assert {name: line[name] for name in ("request_id", "person", "method", "view", "status")} == {
        "request_id": page["X-Request-Id"],
        "person": viewer.pk,
        "method": "GET",
        "view": "refunds:order_list",
        "status": 302,
    }
    assert 0 <= line["seconds"] < 60
    assert "tanaka" not in log.getvalue()


def test_lines_of_a_refund_carry_its_id(viewer: User, log: io.StringIO) -> None:
    refund_id = uuid.uuid4()

    sign_in(viewer).get(f"/refunds/{refund_id}/")

    assert [line["refund"] for line in lines(log, "request.done")] == [str(refund_id)]


@pytest.mark.parametrize(
    ("proxies", "given", "kept"),
    [
        ("127.0.0.0/8", "0123456789abcdef0123456789abcdef", True),
        ("10.0.0.0/8", "0123456789abcdef0123456789abcdef", False),  # who calls is no proxy of ours
        ("127.0.0.0/8", "tanaka@example.jp", False),
        ("127.0.0.0/8", "x" * 37, False),  # the trail's column holds 36
    ],
)
def test_id_of_a_request_is_believed_from_our_proxy_alone(
    client: Client, settings: Any, log: io.StringIO, proxies: str, given: str, kept: bool
) -> None:
    settings.TRUSTED_PROXIES = [ip_network(proxies)]

    answer = client.get("/healthz", headers={"X-Request-Id": given})

    assert (answer["X-Request-Id"] == given) is kept
    assert [line["request_id"] for line in lines(log)] == [answer["X-Request-Id"]]


def test_nothing_of_one_request_is_told_of_the_next(viewer: User, client: Client, log: io.StringIO) -> None:
    sign_in(viewer).get("/")
    client.get("/healthz")

    assert [line["person"] for line in lines(log, "request.done")] == [viewer.pk, None]
    assert structlog.contextvars.get_contextvars() == {}


# --- The last look ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("said", "written"),
    [
        ("Forbidden (CSRF): /orders/tanaka@example.jp/", "Forbidden (CSRF): /orders/[redacted]/"),
        ("/orders/?q=tanaka%40example.jp&page=2", "/orders/?q=[redacted]&page=2"),
        ("/orders/%E7%94%B0%E4%B8%AD/", "/orders/[redacted]/"),
        ("Not Found: /orders/田中 太郎/", "Not Found: /orders/[redacted] [redacted]/"),
        ("Authorization: Basic sk_live_abcDEF123", "Authorization: Basic [redacted]"),
        ("key sk_test_abcDEF123 refused", "key [redacted] refused"),
        ("token eyJhbGciOi.eyJzdWIi.c2ln was refused", "token [redacted] was refused"),
        ("postgres://refunds:hunter2@db.internal/refunds", "postgres://[redacted]/refunds"),
        ("the hidden-key, not a secret", "the [redacted], not a secret"),
        ("order_test_0123456789 3.14 refund.review", "order_test_0123456789 3.14 refund.review"),
    ],
)
def test_what_gives_somebody_away_is_blacked_out(said: str, written: str) -> None:
    redact = Redaction(["hidden-key", ""])
    logger = logging.getLogger()

    assert redact(logger, "", {"event": said, "more": {"deep": [said]}, "number": 3}) == {
        "event": written,
        "more": {"deep": [written]},
        "number": 3,
    }


# --- A fault is told elsewhere too, if that is wanted -----------------------------------------------------------
class Kept(Transport):
    envelopes: list[str] = []

    def capture_envelope(self, envelope: Envelope) -> None:
        self.envelopes.append(envelope.serialize().decode())


@pytest.fixture
def reported() -> Iterator[list[str]]:
    """The envelopes that Sentry would have been sent."""
    Kept.envelopes = []
    faults.report_to("http://public@127.0.0.1:9/1", transport=Kept)
    yield Kept.envelopes
    sentry_sdk.get_client().close()
    sentry_sdk.get_global_scope().set_client(None)


def test_fault_is_reported_by_kind_and_place_alone(
    operator: User, payment: Payment, reported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        customer = "田中 太郎 tanaka@example.jp"
        raise ValueError(customer)

    monkeypatch.setattr("refunds.services.read_order", broken)
    client = sign_in(operator)
    client.raise_request_exception = False

    page = client.get(f"/orders/{payment.order.order_id}/?tanaka")

    assert page.status_code == 500
    told = [json.loads(line) for envelope in reported for line in envelope.splitlines()]
    [event] = [each for each in told if "exception" in each]
    assert event["exception"]["values"][-1]["type"] == "ValueError"
    assert event["exception"]["values"][-1]["stacktrace"]["frames"][-1]["function"] == "broken"
    assert event["tags"] == {"request_id": page["X-Request-Id"], "person": str(operator.pk)}
    for secret in (
        "田中",
        "\\u7530",
        "tanaka",
        operator.name,
        client.cookies["session"].value,
        settings.SECRET_KEY,
    ):
        assert secret not in "".join(reported)


def test_alarm_is_reported_by_its_name(reported: list[str]) -> None:
    structlog.get_logger("refunds").error(
        "refund.review", alarm=True, refund="r-1", why="田中 tanaka@example.jp"
    )

    assert '"message":"refund.review"' in "".join(reported)
    assert '"refund":"r-1"' in "".join(reported)
    assert "tanaka" not in "".join(reported)


def test_password_of_the_mail_server_is_never_written() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import django; django.setup(); import logging; logging.error('535 of-the-mail-server refused')"],
        env=os.environ | {"EMAIL_URL": "smtp://app:of-the-mail-server@127.0.0.1", "EMAIL_FROM": "a@example.jp",
                          "SITE_URL": "https://example.jp", "DJANGO_SETTINGS_MODULE": "dashboard.settings"},
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip

    written = done.stdout + done.stderr
    assert ("[redacted] refused" in written, "of-the-mail-server" in written) == (True, False)


# --- The whole scan -------------------------------------------------------------------------------------------
def test_no_name_mail_or_key_stands_in_the_logs_or_the_metrics_of_a_day(
    operator: User, approver: User, auditor: User, sandbox: Sandbox, settings: Any, log: io.StringIO
) -> None:
    settings.METRICS_TOKEN = "the-token-of-prometheus"
    order = make_order(5000, name="髙橋 さくら", email="sakura.takahashi@example.jp")
    typed = ["髙橋", "たかはし", "takahashi", "sakura.takahashi@example.jp"]
    people, clients = [operator, approver, auditor], [sign_in(each) for each in (operator, approver, auditor)]
    for client in clients:
        client.raise_request_exception = False
        for text in typed:
            found = client.post("/orders/search/", {"q": text}, follow=True)
            assert found.status_code == 200
            client.get("/orders/", {"q": text})
            client.get(f"/orders/{text}/")
            client.get("/admin/refunds/order/", {"q": text})
            client.post(f"/orders/{text}/refund/", {"description": text, "memo": text, "amount": text})
        client.get(f"/orders/{order.order_id}/")
        client.get(f"/orders/{order.order_id}/refund/")
    Client(enforce_csrf_checks=True).post("/orders/search/takahashi%40example.jp", {"q": typed[0]})
    Client().get("/oidc/callback/", {"code": "code-of-a-sign-in", "state": "state-of-a-sign-in"})
    sandbox.fault("unauthorized")
    refund(order.payments.get(), operator, amount=1000, memo="髙橋様より電話", description="髙橋様")
    metrics = Client().get("/metrics", headers={"Authorization": f"Bearer {settings.METRICS_TOKEN}"})

    written = log.getvalue() + metrics.content.decode()
    assert metrics.status_code == 200
    assert len(lines(log, "request.done")) > 40
    secrets = [*typed, "さくら", "takahashi%40", "of-a-sign-in", settings.SMARTPAY_SECRET_KEY, settings.METRICS_TOKEN,
               settings.OIDC_RP_CLIENT_SECRET, *(each.name for each in people),
               *(client.cookies["session"].value for client in clients)]  # fmt: skip
    assert [line for line in written.splitlines() if any(secret in line for secret in secrets)] == []
    assert not any("\\u" in line for line in written.splitlines())  # all our own words are ASCII
