"""Tables for Excel: CSV as a stream, with the mark that Excel knows UTF-8 by, and no cell that it would calculate."""

import csv
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

FORMULA = tuple("=+-@\t\r\n＝＋－＠")  # what Excel may take for the beginning of a formula


def lines(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    writer = csv.writer(_Line())
    yield "\ufeff" + writer.writerow(heading)
    for row in rows:
        yield writer.writerow([cell(value) for value in row])


def cell(value: Any) -> str:
    """The value as a text that no spreadsheet calculates: what looks like a formula gets an apostrophe before it."""
    text = "" if value is None else str(value)
    return f"'{text}" if text.startswith(FORMULA) else text


class _Line:
    """A file that hands back what is written into it, for csv.writer."""

    def write(self, text: str) -> str:
        return text
