"""The rules of refunds/search/ once more, without a database: all texts of all orders in one string, looked through."""

import random
import re
from bisect import bisect_right
from collections.abc import Callable, Sequence

from refunds import search
from refunds.folding import fold, fold_reference
from refunds.models import Order

# One word: kanji, perhaps with single kana between them (一ノ瀬), and then kana, or the other way round.
KANJI, KANA = "[々㐀-鿿\uf900-\ufaff]", "[ぁ-んァ-ー]"
KANJI_NAME = f"({KANJI}+(?:{KANA}{KANJI}+)*)"
HALVES = re.compile(f"^(?!.*(?:様|さん)$)(?:{KANJI_NAME}({KANA}+)|({KANA}+){KANJI_NAME})$")


class Texts:
    """Texts of rows, one row after the other. `spread`: the texts of a row; folded ones hold no control characters."""

    def __init__(self, rows: Sequence[Order], spread: Callable[[Order], Sequence[str]]) -> None:
        self.starts, pieces, length = [], [], 0
        for row in rows:
            piece = "".join(f"\x01{text}\x02" for text in spread(row))
            self.starts.append(length)
            pieces.append(piece)
            length += len(piece)
        self.starts.append(length)
        self.all = "".join(pieces)

    def rows_with(self, what: str) -> set[int]:
        found, at = set(), self.all.find(what)
        while at >= 0:
            row = bisect_right(self.starts, at) - 1
            found.add(row)
            at = self.all.find(what, max(at + 1, self.starts[row + 1]))
        return found


class Plain:
    """Orders, newest first."""

    def __init__(self, rows: Sequence[Order]) -> None:
        self.ids = [row.order_id for row in rows]
        self.typed = Texts(rows, lambda row: [row.order_id])
        self.ends = Texts(rows, lambda row: [fold(row.order_id)])
        self.columns = Texts(
            rows,
            lambda row: (
                [
                    fold(text)
                    for one, two in ((row.family_name, row.given_name), (row.family_kana, row.given_kana))
                    for text in (one, two, f"{one} {two}", f"{two} {one}")
                ]
                + [fold(row.email)]
            ),
        )
        self.references = Texts(rows, lambda row: [fold_reference(row.reference)])
        self.names = Texts(
            rows,
            lambda row: [
                fold(f"{row.family_name} {row.given_name}"),
                fold(f"{row.family_kana} {row.given_kana}"),
            ],
        )
        self.domains = Texts(rows, lambda row: ["@" + fold(row.email).rpartition("@")[2]])

    def whole(self, text: str) -> set[int]:
        typed = "".join(text.split())
        return (
            self.columns.rows_with(f"\x01{fold(text)}\x02")
            | self.references.rows_with(f"\x01{fold_reference(text)}\x02")
            | self.typed.rows_with(f"\x01{typed}\x02")
        )

    def begins(self, text: str) -> set[int]:
        found = self.columns.rows_with(f"\x01{fold(text)}")
        found |= self.references.rows_with(f"\x01{fold_reference(text)}")
        if re.fullmatch(r"order_test_[0-9A-Za-z]+", typed := "".join(text.split())):
            found |= self.typed.rows_with(f"\x01{typed}")
        if re.fullmatch(r"[0-9a-z]{4,}", fold(text)):
            found |= self.ends.rows_with(f"{fold(text)}\x02")
        return found

    def within(self, text: str) -> set[int]:
        text = fold(text)
        if len(text) < 2:
            return set()
        if text.startswith("@"):
            return self.domains.rows_with(f"\x01{text}") | self.names.rows_with(text)
        return self.of_domain(text) if self.is_domain(text) else self.names.rows_with(text)

    def is_domain(self, text: str) -> bool:
        return re.fullmatch(r"@[0-9a-z.-]+|[0-9a-z-]+(\.[0-9a-z-]+)+", fold(text)) is not None

    def of_domain(self, text: str) -> set[int]:
        if not self.is_domain(text):
            return set()
        return self.domains.rows_with(f"\x01@{fold(text).removeprefix('@')}\x02")

    def tiers(self, text: str) -> list[set[int]]:
        """The rows that a search has to find, tier by tier."""
        tiers = [self.whole(text), self.begins(text), self.within(text)]
        words = HALVES.sub(r"\1\3 \2\4", text).split()
        if len(words) > 1 and not any(tiers) and not all(self.is_domain(word) for word in words):
            tiers.append(set.intersection(*(self.begins(word) | self.of_domain(word) for word in words)))
        for later in range(1, len(tiers)):
            tiers[later] = tiers[later] - set().union(*tiers[:later])
        return tiers

    def found(self, text: str) -> list[str]:
        """The ids that a search has to show, in order."""
        text = text.strip(".")  # a sentence's end
        bare = " ".join(re.sub("(様|さん)$", "", word) for word in text.split()).strip()
        for reading in (text, bare):
            if fold(reading) and any(tiers := self.tiers(reading)):
                return [self.ids[row] for tier in tiers for row in sorted(tier)]
        return []


def is_right(plain: Plain, text: str, limit: int) -> tuple[bool, bool]:
    """Whether the first two pages are as they have to be, and whether one says that it is partial."""
    first = search.find(text, limit=limit)
    second = search.find(text, limit=limit, cursor=first.older) if first.older else search.Result([])
    got = [order.order_id for order in (*first.orders, *second.orders)]
    expected = plain.found(text)
    partial = first.partial or second.partial
    right = (
        set(got) <= set(expected) and len(got) == len(set(got)) if partial else got == expected[: 2 * limit]
    )
    return right and all(order.matched for order in first.orders), partial


def draw_query(draw: random.Random, rows: Sequence[Order]) -> str:
    """What an operator may type, mostly of one of the orders: whole, begun, the middle of it, words of several."""
    row = draw.choice(rows)
    texts = [
        row.family_name, row.given_name, row.customer_name, f"{row.given_name}{row.family_name}", row.family_kana,
        row.customer_kana, row.family_name + row.given_kana, row.email, row.reference,
        row.reference.replace("-", draw.choice(["", " ", "/"])), row.order_id, row.order_id[-draw.randrange(3, 9):],
        row.order_id[: draw.randrange(11, 33)], "鈴木", "田中 タナカ", "たなか", row.email.partition("@")[2],
        "@" + row.email.partition("@")[2], _middle(draw, row.family_name + row.given_name),
        _middle(draw, row.family_kana + row.given_kana), _middle(draw, row.customer_kana),
    ]  # fmt: skip
    words = [text for text in draw.sample(texts, draw.choice([1, 1, 1, 2, 3])) if text]
    words = [word[: draw.randrange(1, len(word) + 1)] if draw.random() < 0.3 else word for word in words]
    return draw.choice([" ", "　"]).join(words).strip() + draw.choice([*[""] * 8, "様", " さん"])


def _middle(draw: random.Random, text: str) -> str:
    start = draw.randrange(len(text) or 1)
    return text[start : start + draw.choice([2, 2, 3, 4])]
