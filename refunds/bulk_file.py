"""The file of a 一括返金, as Excel and other programs write it: bytes -> lines, or why it can't be read.

What a line means is not decided here: see bulk.py.
"""

import hashlib
import io
import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import astuple, dataclass

from django.utils.translation import gettext as _

from refunds import csv_file
from refunds.csv_file import BadFile

MOST_LINES = 10_000
MOST_BYTES = 5 * 1024 * 1024
# Characters. Looked at before anything is done with a cell: to normalise a long one takes its square in time.
LONGEST = {"order": 255, "reference": 255, "amount": 40, "description": 400, "reason": 40}
# Windows and the others take these characters of Shift_JIS for different ones of Unicode. As NFKC leaves them.
TWINS = str.maketrans("〜−‖—\\", "~-∥―¥")
BEFORE_COMMA, AFTER_COMMA = re.compile(r"\W*\d{1,3}"), re.compile(r"\d{3}(\.\d+)?\s?(円\s?([(（].*|也)?)?\W*")

HEADINGS = {
    "order": ("注文id", "orderid", "order_id", "order id", "order"),
    "reference": ("ショップ注文番号", "参照番号", "shop order number", "reference"),
    "amount": ("返金額", "金額", "refund amount", "amount"),
    "description": ("説明", "description"),
    "reason": ("理由", "reason"),
}
# What was refunded already, as this tool writes it out: a list of that is no request to refund it all again.
WRITTEN_OUT = {"受付番号", "refund number", "返金済み額", "refunded"}


@dataclass(frozen=True, slots=True)
class Written:
    """A line as it is written. `number`: its place in the file, the heading being 1."""

    number: int
    order: str
    reference: str
    amount: str
    description: str
    reason: str


def read(data: bytes) -> list[Written]:
    """The lines that say something, in order. Columns that are not ours are left alone. Raises BadFile."""
    if len(data) > MOST_BYTES:
        raise BadFile(_("ファイルが大きすぎます(5MBまで)。分けて取り込んでください。"))
    written = _lines(csv_file.rows(io.BytesIO(data)))
    if not written:
        raise BadFile(_("返金する行がありません。2行目から1行に1件ずつ入力してください。"))
    return written


def _lines(rows: Iterator[list[str]]) -> list[Written]:
    heading = next(rows, None)
    if not heading:
        raise BadFile(_("ファイルが空です。"))
    places = _places(heading)
    written: list[Written] = []
    for number, row in enumerate(rows, start=2):
        cells = {name: row[place].strip() if place < len(row) else "" for name, place in places.items()}
        beside = "".join(row[places["amount"] + 1 :][:1]).strip()
        # An amount of 1,000 without quotes around it would be 1 yen, and 000 of what follows.
        is_cut = BEFORE_COMMA.fullmatch(cells["amount"]) and AFTER_COMMA.fullmatch(beside)
        if is_cut or any(cell.strip() for cell in row[len(heading) :]):
            raise BadFile(
                _("%(number)s 行目の列がずれているようです。「1,000」は 1000 と書いてください。")
                % {"number": number}
            )
        if too_long := next((name for name, cell in cells.items() if len(cell) > LONGEST[name]), None):
            raise BadFile(
                _("%(number)s 行目の「%(column)s」が長すぎます。")
                % {"number": number, "column": heading[places[too_long]].strip()}
            )
        if any(cells.values()):
            written.append(Written(number, **(dict.fromkeys(HEADINGS, "") | cells)))
        if len(written) > MOST_LINES or number > 2 * MOST_LINES:
            raise BadFile(_("行が多すぎます(10,000行まで)。分けて取り込んでください。"))
    return written


def digest(lines: list[Written]) -> str:
    """SHA-256 of what the lines say, in hex: whatever the encoding, the heading's words and the other columns."""
    said = [[cell if isinstance(cell, int) else _as_read(cell) for cell in astuple(line)] for line in lines]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


def _as_read(cell: str) -> str:
    """What stays of a text, whatever program saves it in whatever encoding."""
    return unicodedata.normalize("NFKC", cell).translate(TWINS)


def _places(heading: list[str]) -> dict[str, int]:
    """Which column is where."""
    found = csv_file.places(heading, HEADINGS)
    if "amount" not in found or not {"order", "reference"} & found.keys():
        raise BadFile(
            _("1行目に列の名前がありません。「注文ID」か「ショップ注文番号」と、「返金額」が必要です。")
        )
    if written_out := next((cell for cell in heading if csv_file.folded(cell) in WRITTEN_OUT), None):
        raise BadFile(
            _(
                "このツールが書き出したファイルのようです(列「%(column)s」)。返金する行だけを、ひな形に書き写してください。"
            )
            % {"column": written_out.strip()}
        )
    return found
