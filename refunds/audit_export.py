"""The trail as a stream for auditors: JSON lines to verify it with other tools, CSV to read it in Excel."""

import json
from collections.abc import Callable, Iterator
from typing import Any

from django.contrib.admin.utils import label_for_field
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext as _

from refunds import sealing, spreadsheet
from refunds.models import AuditEntry

COLUMNS = (
    "id",
    "at",
    "actor",
    "actor_name",
    "roles",
    "action",
    "outcome",
    "object_type",
    "object_id",
    "order_id",
    "data",
    "ip",
    "session",
    "request_id",
    "previous_seal",
    "seal",
)


def json_lines(entries: QuerySet[AuditEntry]) -> Iterator[str]:
    """Yield a JSON object a line. `seal` is the SHA-256 of `previous_seal` and `text`, so anybody can verify it."""
    for entry in sealing.in_order(entries):
        row = {name: getattr(entry, name) for name in COLUMNS} | {
            "at": entry.at.isoformat(timespec="microseconds"),
            "actor": entry.actor_id,
            "person": entry.person,
            "text": entry.text,
        }
        yield json.dumps(row, ensure_ascii=False) + "\n"


def csv_lines(entries: QuerySet[AuditEntry]) -> Iterator[str]:
    """Return the lines of a table with a heading, in the language of the request."""
    # Translated here and not while the stream is sent, because the request's language is not active then.
    words = {"id": _("番号"), "actor": _("利用者の番号"), "actor_name": _("利用者")}
    heading = [words.get(name) or str(label_for_field(name, AuditEntry)) for name in COLUMNS]
    codes = {value: str(label) for value, label in (*AuditEntry.Action.choices, *AuditEntry.Outcome.choices)}
    return spreadsheet.lines(heading, _rows(entries, codes))


def _rows(entries: QuerySet[AuditEntry], codes: dict[str, str]) -> Iterator[list[Any]]:
    for entry in sealing.in_order(entries):
        row = {name: getattr(entry, name) for name in COLUMNS} | {
            "at": timezone.localtime(entry.at).isoformat(sep=" ", timespec="microseconds"),
            "actor": entry.actor_id,
            "actor_name": entry.person,
            "action": codes.get(entry.action, entry.action),
            "outcome": codes.get(entry.outcome, entry.outcome),
            "data": json.dumps(entry.data, ensure_ascii=False),
        }
        yield list(row.values())


KINDS: dict[str, tuple[str, Callable[[QuerySet[AuditEntry]], Iterator[str]]]] = {
    "csv": ("text/csv; charset=utf-8", csv_lines),
    "jsonl": ("application/x-ndjson; charset=utf-8", json_lines),
}
