"""CSV for Excel, as a stream: with a byte order mark, by which Excel knows UTF-8, and without formulas."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextvars import copy_context
from datetime import datetime
from typing import Any

from django.http import StreamingHttpResponse
from django.utils import timezone

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # a cell that begins with one of these may be taken for a formula


def download(name: str, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> StreamingHttpResponse:
    """Return the table as a download whose rows are made while it is sent.

    The request is over by then. Its context variables are kept for the rows: the language, and the person, address
    and request id that the audit trail records.
    """
    response = StreamingHttpResponse(
        _in_context_of_now(lines(heading, rows)), content_type="text/csv; charset=utf-8"
    )
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def moment(at: datetime | None) -> str:
    """Format a moment in Japan's time, as Excel reads it; "" for None."""
    return timezone.localtime(at).strftime("%Y/%m/%d %H:%M:%S") if at else ""


def lines(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    """Yield the lines of the file: the byte order mark and the heading, then the rows."""
    writer = csv.writer(_Line())
    yield "\ufeff" + writer.writerow(heading)
    for row in rows:
        yield writer.writerow([cell(value) for value in row])


def _in_context_of_now(made: Iterator[str]) -> Iterator[str]:
    context = copy_context()
    return iter(
        lambda: context.run(next, made, ""), ""
    )  # "" ends the iteration; no line is empty, since each has its line break


def cell(value: Any) -> str:
    """Return the value as text; what a spreadsheet could take for a formula gets an apostrophe before it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


class _Line:
    """A file for csv.writer whose write() returns the text, so that writerow() returns the line."""

    def write(self, text: str) -> str:
        return text
