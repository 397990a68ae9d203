"""Tables for Excel: CSV as a stream, with the mark that Excel knows UTF-8 by, and no cell that it would calculate."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from django.http import StreamingHttpResponse
from django.utils import timezone, translation

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what Excel may take for the beginning of a formula


def download(name: str, heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> StreamingHttpResponse:
    """The table as a file, sent as it is made, in the language of the request: by then that is over."""
    spoken = _in_language(translation.get_language(), lines(heading, rows))
    response = StreamingHttpResponse(spoken, content_type="text/csv; charset=utf-8")
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


def _in_language(language: str | None, made: Iterator[str]) -> Iterator[str]:
    while True:
        with translation.override(language):
            line = next(made, None)
        if line is None:
            return
        yield line


def cell(value: Any) -> str:
    """The value as a text that no spreadsheet calculates: what looks like a formula gets an apostrophe before it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


class _Line:
    """A file that hands back what is written into it, for csv.writer."""

    def write(self, text: str) -> str:
        return text
