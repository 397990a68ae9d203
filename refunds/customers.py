"""Imports the merchant's own records of its customers: reads a CSV file and puts its names and mails on orders."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import batched
from typing import BinaryIO

from django.db import transaction
from django.utils.translation import gettext as _

from refunds import audit, csv_file, smartpay
from refunds.csv_file import BadFile
from refunds.customer_import import ImportedCustomer, ImportOutcome, LineResult, SeenLine, record_customers

LINES_AT_ONCE = 500  # in one transaction
LONGEST = 255  # characters in a cell

HEADINGS = {
    "order": ("注文id", "orderid", "order_id", "order id", "order"),
    "reference": ("ショップ注文番号", "注文番号", "参照番号", "reference", "order_number", "order number"),
    "name": ("お客様名", "氏名", "お名前", "名前", "name"),
    "family": ("姓", "お名前(姓)", "family_name", "last_name"),
    "given": ("名", "お名前(名)", "given_name", "first_name"),
    "kana": ("フリガナ", "ふりがな", "カナ", "お名前(フリガナ)", "kana"),
    "family_kana": (
        *("セイ", "お名前(セイ)", "姓カナ", "姓(カナ)", "姓フリガナ", "姓(フリガナ)", "フリガナ(姓)"),
        *("お名前(フリガナ・姓)", "family_kana", "last_name_kana"),
    ),
    "given_kana": (
        *("メイ", "お名前(メイ)", "名カナ", "名(カナ)", "名フリガナ", "名(フリガナ)", "フリガナ(名)"),
        *("お名前(フリガナ・名)", "given_kana", "first_name_kana"),
    ),
    "email": ("メールアドレス", "メール", "email", "e-mail", "mail"),
}

NOTHING_TO_REPORT = (ImportOutcome.WRITTEN, ImportOutcome.SAME, ImportOutcome.KEPT)

type Report = Callable[[int, str], None]


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the file. `number` counts from the heading, which is 1. `problem`: why it names nobody, else ""."""

    number: int
    imported: ImportedCustomer
    problem: str = ""


def read(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines that are not empty, in order. Columns with other headings are ignored. Raises BadFile."""
    rows = csv_file.rows(file)
    heading = next(rows, None)
    if not heading:
        raise BadFile(_("ファイルが空です。"))
    places = csv_file.places(heading, HEADINGS)
    if not {"order", "reference"} & places.keys() or not {"name", "family", "email"} & places.keys():
        raise BadFile(
            _(
                "1行目に列の名前がありません。「注文ID」か「ショップ注文番号」と、「氏名」か「姓」か「メールアドレス」が必要です。"
            )
        )
    for number, row in enumerate(rows, start=2):
        cells = {
            name: row[places[name]].strip() if name in places and places[name] < len(row) else ""
            for name in HEADINGS
        }
        if any(cells.values()):
            yield _line(number, cells)


def _line(number: int, cells: dict[str, str]) -> Line:
    family, given = (cells["family"], cells["given"]) if cells["family"] else _split(cells["name"])
    family_kana, given_kana = (
        (cells["family_kana"], cells["given_kana"]) if cells["family_kana"] else _split(cells["kana"])
    )
    customer = smartpay.Customer(family, given, family_kana, given_kana, cells["email"])
    order_id = _smartpays(cells["order"])
    problem = ""
    if any(len(cell) > LONGEST for cell in cells.values()):
        problem = "too long"
    elif not order_id and not cells["reference"]:
        problem = "no order"
    elif not customer:
        problem = "no customer"
    return Line(number, ImportedCustomer(order_id, cells["reference"], customer, number), problem)


def _smartpays(cell: str) -> str:
    """Return Smartpay's id of an order, also out of a URL; "" for a shop's own number, as EC-CUBE's 注文ID is."""
    parts = re.split("[^0-9A-Za-z_]", cell)
    return next((part for part in parts if (smartpay.id_kind(part) or ("",))[0] == "order"), "")


def _split(name: str) -> tuple[str, str]:
    """Split a name at its first blank, of any width, into family and given name. Without one it is all family name."""
    family, *given = name.split(maxsplit=1)[:2] or [""]
    return family, " ".join(given)


def import_file(file: BinaryIO, *, dry_run: bool, report: Report) -> Counter[str]:
    """Put the customers of a file on orders; return how many lines had which outcome: an ImportOutcome or a problem.

    If the process dies, what it wrote stays and is on the trail. The same file can be imported again.

    Args:
        report: is called with the number and the outcome of each line that named no order.

    Raises: BadFile. Nothing is written then, unless the file breaks off in the middle.
    """
    digest = hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]  # every BinaryIO has readinto
    outcomes: Counter[str] = Counter()
    seen: dict[int, SeenLine] = {}
    for lines in batched(read(file), LINES_AT_ONCE):
        good = [line for line in lines if not line.problem]
        with transaction.atomic():
            results = record_customers([line.imported for line in good], seen=seen, dry_run=dry_run)
            if not dry_run:
                audit.record(
                    None,
                    "customers.imported",
                    sha256=digest,
                    first_line=lines[0].number,
                    last_line=lines[-1].number,
                    written=results.count(LineResult(ImportOutcome.WRITTEN)),
                )
        outcomes.update(line.problem for line in lines if line.problem)
        outcomes.update(str(result.outcome) for result in results)
        told = {line.number: line.problem for line in lines if line.problem}
        told |= {
            line.number: f"{result.outcome} from line {result.earlier_line}"
            if result.earlier_line
            else str(result.outcome)
            for line, result in zip(good, results, strict=True)
            if result.outcome not in NOTHING_TO_REPORT
        }
        for number, outcome in sorted(told.items()):
            report(number, outcome)
    return outcomes
