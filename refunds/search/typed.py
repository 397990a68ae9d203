"""What somebody typed -> what to look for: cleaned text, ids, needles and words. Nothing here knows of SQL.

A needle is one text that is looked for in the columns of orders. A query has one for all that was typed, and one for
each word where there are several:

    "田中　太郎"                  whole 田中太郎, words 田中 and 太郎
    "田中たろう"                  whole 田中タロオ, words 田中 and タロオ: kanji beside kana are two words
    "田中 <tanaka@example.jp>"    whole tanaka@example.jp
    "注文ID: order_test_4bC7x2"   whole order_test_4bC7x2

Where nothing is found, the text gets a second reading: 田中様 is then 田中.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from refunds import smartpay
from refunds.folding import fold, fold_reference

LONGEST_TEXT = 200  # characters that are kept of what was typed
SHORTEST_TAIL = 4  # characters of the end of an order id; fewer would match by accident
# Characters after the prefix. Smartpay's ids have 21 or 22; a shorter one may be only the beginning of an id.
SHORTEST_WHOLE_ID = 16
SPLIT_LENGTHS = range(
    2, 7
)  # characters of a needle that is split into a family name and a given name's beginning

_DOMAIN = re.compile(r"@[0-9a-z.-]+|[0-9a-z-]+(?:\.[0-9a-z-]+)+")
_ID = re.compile(r"(?:order|payment|refund)_(?:test|live)_[0-9A-Za-z]++(?!\.\.)", re.IGNORECASE)
_BEGINNING_OF_ORDER_ID = re.compile(r"order_(?:test|live)_[0-9A-Za-z]+")
_TAIL = re.compile(rf"[0-9a-z]{{{SHORTEST_TAIL},}}")
_BRACKETS = "「」『』()<>[]{}【】《》,;、。"
_SURROUNDING = " \t\r\n\"'`“”‘’.?" + _BRACKETS
_SEPARATOR = re.compile(
    rf"[{re.escape(_BRACKETS)}]|\.{{2,}}"
)  # 田中 太郎(タナカ タロウ), order_test_4bC7…r001
_MAIL_OF_PERSON = re.compile(r"<([^\s<>]+@[^\s<>]+)")  # 田中 <tanaka@example.jp>
_LABEL = re.compile(r"^[^:_@]*(?::|(?<![A-Za-z])ID(?![A-Za-z])|番号)\s*")  # 注文番号:, Order ID, mailto:
_HONORIFIC = re.compile(r"\s*(?:様|さま|サマ|さん|サン)(?!\S)")
_KANJI, _KANA = "[々㐀-䶿一-鿿\uf900-\ufaff\U00020000-\U0003ffff]", "[ぁ-ゖァ-ヺー]"
# Where kanji meet kana: 田中|たろう, たろう|田中. Not beside the ノ of 一ノ瀬, nor the ヶ of 龍ヶ崎.
_CHANGE_OF_SCRIPT = re.compile(
    f"(?<={_KANJI})(?={_KANA}(?!{_KANJI}))|(?<={_KANA})(?<!{_KANJI}{_KANA})(?={_KANJI})"
)


def as_typed(text: str) -> str:
    """Return what somebody typed as it is kept: printable characters, at most 200, single blanks between words.

    Every kind of white space is such a blank: an IME's, a tab between two cells, a line's end.
    """
    single_blanks = " ".join(text.split())
    return "".join(character for character in single_blanks if character.isprintable()).strip()[:LONGEST_TEXT]


def cleaned(text: str) -> str:
    """Return the text in standard width and without what surrounds it.

    Of `田中 <tanaka@example.jp>` only the mail is left; of a label or a URL around one id, only the id.
    """
    text = unicodedata.normalize("NFKC", text).strip(_SURROUNDING)
    if mail := _MAIL_OF_PERSON.search(text):
        return mail[1]
    value = _LABEL.sub("", text)
    ids = [] if " " in value else _ID.findall(value)
    ids = [found for found in ids if found.lower().startswith("order_")] or ids
    return str(ids[0]) if len({*ids}) == 1 else text


def order_id_of(text: str) -> str:
    """Return the order id that is all of the text, a label, brackets or a URL around it aside; "" for another text.

    It may be only the beginning of an id, and have lost its case.
    """
    order_id = cleaned(text)
    return order_id if order_id.lower().startswith("order_") and _ID.fullmatch(order_id) else ""


def is_whole_id(order_id: str) -> bool:
    """Return whether the order id is long enough to be whole, and has Smartpay's form."""
    return len(_random_part(order_id)) >= SHORTEST_WHOLE_ID and smartpay.id_kind(order_id) is not None


def has_mixed_case(order_id: str) -> bool:
    """Return whether the order id has small and capital letters: neither Caps Lock nor a spreadsheet changed it."""
    part = _random_part(order_id)
    return part not in {part.lower(), part.upper()}


def _random_part(order_id: str) -> str:
    return order_id.rpartition("_")[2]


@dataclass(frozen=True, slots=True)
class Needle:
    """One text to look for.

    typed: as typed, without blanks; for ids, whose case matters.
    folded: by folding.fold(); for everything else.
    reference: folded as a shop's order number.
    begins_order_id: whether it may be the beginning of an order id.
    is_tail: whether it may be the end of an order id.
    """

    typed: str
    folded: str
    reference: str
    begins_order_id: bool
    is_tail: bool

    @classmethod
    def of(cls, text: str) -> Self:
        typed = "".join(character for character in text if character.isprintable() and character != " ")
        folded = fold(text)
        begins_order_id = _BEGINNING_OF_ORDER_ID.fullmatch(typed) is not None
        is_tail = _TAIL.fullmatch(folded) is not None
        return cls(typed, folded, fold_reference(folded), begins_order_id, is_tail)

    @property
    def domain(self) -> str:
        """`@example.jp` for the domain `example.jp` or `@example.jp`; "" for what is no domain."""
        return "@" + self.folded.removeprefix("@") if _DOMAIN.fullmatch(self.folded) else ""

    @property
    def heads(self) -> list[str]:
        """The family names that the needle may begin with: 田 and 田中 for 田中丸; none for what is hardly a name."""
        if len(self.folded) not in SPLIT_LENGTHS or self.folded.isascii():
            return []
        return [self.folded[:end] for end in range(1, len(self.folded))]


@dataclass(frozen=True, slots=True)
class Query:
    """One reading of what was typed.

    whole: all of it as one needle.
    words: a needle for each word, each once, where there are several words; else ().
    """

    whole: Needle
    words: tuple[Needle, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        parts, halves = text.split(), _CHANGE_OF_SCRIPT.split(text)
        if len(parts) == 1 and len(halves) == 2 and not _HONORIFIC.search(text):
            parts = halves
        words = [needle for needle in map(Needle.of, parts) if needle.folded]
        return cls(Needle.of(text), tuple(dict.fromkeys(words)) if len(words) > 1 else ())

    @property
    def id_kind(self) -> str:
        """`order`, `payment` or `refund` for the whole id of one, else ""."""
        kind = smartpay.id_kind(self.whole.typed)
        return kind[0] if kind else ""


def readings(text: str) -> Iterator[Query]:
    """Yield the text taken at its word, then, where that differs, what else it may mean."""
    text = cleaned(text)
    return map(Query.of, dict.fromkeys((text, _second_reading(text))))


def _second_reading(text: str) -> str:
    """Return the cleaned text without a label and honorifics, and with blanks for brackets.

    It is asked only where the text itself finds nothing: イ・サン is a name, while 田中さん is 田中.
    """
    return _HONORIFIC.sub("", _SEPARATOR.sub(" ", _LABEL.sub("", text))).strip(_SURROUNDING)
