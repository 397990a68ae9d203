"""Errors and alarms are reported to Sentry if SENTRY_DSN is set: their kind, place in the code, and request.

Each report is built anew from the fields that may leave the company. Removing the fields that may not would miss those
that a later version of sentry_sdk adds.
"""

import re
from typing import Any

import sentry_sdk
import structlog
from sentry_sdk.transport import Transport
from sentry_sdk.types import Event, Hint

IDS = ("request_id", "person", "refund", "bulk")


def report_to(dsn: str, transport: type[Transport] | None = None) -> None:
    """Start reporting to this DSN; `transport` replaces HTTP in tests.

    `send_default_pii` keeps its default, False, because naming it is deprecated. composed() decides what leaves.
    """
    sentry_sdk.init(
        dsn,
        transport=transport,
        before_send=composed,
        include_local_variables=False,
        include_source_context=False,
        max_request_body_size="never",
        max_breadcrumbs=0,
        trace_propagation_targets=[],  # otherwise sentry_sdk adds headers to every request to Smartpay
        auto_session_tracking=False,
        send_client_reports=False,
    )


def composed(event: Event, hint: Hint) -> Event:
    """Return the event to send: an exception's class and frames without its message, our event's name, our ids."""
    told: Event = {"level": event.get("level", "error")}
    if "event_id" in event:
        told["event_id"] = event["event_id"]
    if "timestamp" in event:
        told["timestamp"] = event["timestamp"]
    values: list[dict[str, Any]] = (event.get("exception") or {}).get("values", [])
    if values:
        told["exception"] = {"values": [_kind_and_place(each) for each in values]}
    line = getattr(hint.get("log_record"), "msg", None)
    line = line if isinstance(line, dict) else {}
    if re.fullmatch(r"[a-z_.]+", name := str(line.get("event", ""))):
        told["logentry"] = {"message": name}
    ids = structlog.contextvars.get_contextvars() | line
    told["tags"] = {name: str(ids[name]) for name in IDS if ids.get(name) is not None}
    return told


def _kind_and_place(value: dict[str, Any]) -> dict[str, Any]:
    frames = (value.get("stacktrace") or {}).get("frames", [])
    shown = ("filename", "module", "function", "lineno", "in_app")
    return {
        "type": value.get("type"),
        "module": value.get("module"),
        "stacktrace": {"frames": [{name: frame.get(name) for name in shown} for frame in frames]},
    }
