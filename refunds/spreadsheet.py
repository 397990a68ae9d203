"""Tables for Excel: CSV as a stream, with the mark that Excel knows UTF-8 by, and no cell that it would calculate."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from contextvars import copy_context
from datetime import datetime
from typing import Any

from django.http import StreamingHttpResponse
from django.utils import timezone

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what Excel may take for the beginning of a formula


def download(name: str, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> StreamingHttpResponse:
    """The table as a file, sent as it is made. By then the request is over: its language, and whom the trail names
    with their address and number, are kept for the rows."""
    response = StreamingHttpResponse(_as_now(lines(heading, rows)), content_type="text/csv; charset=utf-8")
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    return response


def moment(at: datetime | None) -> str:
    """As Excel reads it, in Japan's time."""
    return timezone.localtime(at).strftime("%Y/%m/%d %H:%M:%S") if at else ""


def lines(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield "\ufeff" + writer.writerow(heading)
    for row in rows:
        yield writer.writerow([cell(value) for value in row])


def _as_now(made: Iterator[str]) -> Iterator[str]:
    context = copy_context()
    return iter(lambda: context.run(next, made, ""), "")  # no line is empty: each has its end


def cell(value: Any) -> str:
    """The value as a text that no spreadsheet calculates: what looks like a formula gets an apostrophe before it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


class _Line:
    """A file that hands back what is written into it, for csv.writer."""

    def write(self, text: str) -> str:
        return text
