"""Parse the file of a 一括返金, as Excel and other programs write it: bytes -> lines, or BadFile.

bulk.py decides what a line means.
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
# In characters. Checked first: the time to normalise a cell grows with the square of its length.
LONGEST = {"order": 255, "reference": 255, "amount": 40, "description": 400, "reason": 40}
# Characters of Shift_JIS that Windows and other systems map to different ones of Unicode, after NFKC.
TWINS = str.maketrans("〜−‖—\\", "~-∥―¥")
BEFORE_COMMA, AFTER_COMMA = re.compile(r"\W*\d{1,3}"), re.compile(r"\d{3}(\.\d+)?\s?(円\s?([(（].*|也)?)?\W*")

HEADINGS = {
    "order": ("注文id", "orderid", "order_id", "order id", "order"),
    "reference": ("ショップ注文番号", "参照番号", "shop order number", "reference"),
    "amount": ("返金額", "金額", "refund amount", "amount"),
    "description": ("説明", "description"),
    "reason": ("理由", "reason"),
}
# Columns of this tool's exports. An export lists past refunds, and must not be taken for a request to repeat them.
WRITTEN_OUT = {"受付番号", "refund number", "返金済み額", "refunded"}


@dataclass(frozen=True, slots=True)
class Written:
    """A line of the file, its cells trimmed. `number`: its place in the file; the heading is 1."""

    number: int
    order: str
    reference: str
    amount: str
    description: str
    reason: str


def read(data: bytes) -> list[Written]:
    """Return the lines that are not blank, in order; unknown columns are ignored. Raises BadFile."""
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
        # 1,000 without quotes would be an amount of 1 yen, with 000 in the next column.
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
    """Return the SHA-256 of the lines, in hex. Encoding, headings and unknown columns make no difference."""
    cells = [[cell if isinstance(cell, int) else _as_read(cell) for cell in astuple(line)] for line in lines]
    return hashlib.sha256(json.dumps(cells).encode()).hexdigest()


def _as_read(cell: str) -> str:
    """Return the cell without the differences that programs and encodings make."""
    return unicodedata.normalize("NFKC", cell).translate(TWINS)


def _places(heading: list[str]) -> dict[str, int]:
    """Return each column's index. Raises BadFile without the needed ones, or if the file is an export of ours."""
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
