"""Read CSV as Excel and others write it: bytes -> rows of cells, or BadFile. Takes constant memory."""

import codecs
import csv
import io
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import BinaryIO

from django.utils.translation import gettext as _

ENCODINGS = ("utf-8-sig", "cp932")  # cp932: what Excel on a Japanese Windows calls CSV
LONGEST_HEADING = 100
CHUNK = 1024 * 1024  # bytes


class BadFile(Exception):
    """The file can't be read, and nothing of it was kept. str(error) tells the person why."""


def rows(file: BinaryIO) -> Iterator[list[str]]:
    """Yield the rows of a seekable file, the heading first. Raises BadFile before the first or between them."""
    encoding = _encoding(file)
    file.seek(0)
    text = io.TextIOWrapper(file, encoding=encoding, newline="")
    try:
        first_line = text.readline(CHUNK)
        separator = "\t" if "\t" in first_line and "," not in first_line else ","
        text.seek(0)
        yield from csv.reader(text, delimiter=separator, strict=True)
    except csv.Error as error:
        raise BadFile(_('CSV ファイルとして読み取れません。引用符(")の数を確かめてください。')) from error
    finally:
        if not file.closed:
            text.detach()  # so that the caller closes the file


def places(heading: Sequence[str], headings: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Return the index of each of our columns that is there. `headings`: column -> its possible headings, folded.

    Raises BadFile if a heading is too long or a column is there twice.
    """
    ours = {word: name for name, words in headings.items() for word in words}
    found: dict[str, int] = {}
    for place, cell in enumerate(heading):
        if len(cell) > LONGEST_HEADING:
            raise BadFile(_("1行目の列の名前が長すぎます。"))
        name = ours.get(folded(cell))
        if name in found:
            raise BadFile(_("1行目に同じ列が二つあります: %(column)s") % {"column": cell})
        if name:
            found[name] = place
    return found


def folded(heading: str) -> str:
    """Return the heading without differences of width, case and blanks around it."""
    return unicodedata.normalize("NFKC", heading).strip().casefold()


def _encoding(file: BinaryIO) -> str:
    for encoding in ENCODINGS:
        file.seek(0)
        decoder = codecs.getincrementaldecoder(encoding)()
        try:
            while chunk := file.read(CHUNK):
                if "\x00" in decoder.decode(chunk):
                    raise BadFile(
                        _("CSV ファイルとして読み取れません。Excel の場合は「CSV UTF-8」で保存してください。")
                    )
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            continue
        return encoding
    raise BadFile(_("文字コードを読み取れません。UTF-8 か Shift_JIS で保存してください。"))
