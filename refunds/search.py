"""What was typed -> folded -> orders, newest first, by a bounded number of queries whatever the rows.

Rows are found in tiers, each newest first. Tier 1: a column is exactly what was typed. Tier 2: a column begins with
it, or the order id ends in it. Tier 3: two characters or more stand within the name or its kana, or are the mail's
domain: Note [Fragments of names] in models.py. Tier 4, where none of these found any of several words: each word is, or
begins, a column of its own, or is the mail's domain. A page is filled from the first tier on, and a tier is asked only
where those before it do not fill the page; its cursor names the tier in which it ended. Nothing counts rows or skips
them, and every branch of a tier is a range of an index that ends in the order's key (Note [Keys in time order] in
order_keys.py).
Where a bound on the work left something out, the result says that it is partial.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime, timedelta
from operator import attrgetter, itemgetter
from typing import Any, ClassVar, NamedTuple, Protocol, Self

from django.conf import settings
from django.db import connection
from django.utils import timezone
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy
from psycopg.pq import TransactionStatus

from dashboard.models import User
from refunds import audit, smartpay
from refunds.folding import fold, fold_reference
from refunds.models import Order, SavedSearch, Search, SyncCursor
from refunds.order_keys import first_key, moment_of

PAGE = 50  # orders
CANDIDATES = 1000  # orders that a branch of tiers 2 to 4 may bring in another order than ours
WALK = 5000  # fragments looked at, from the newest on, where more than those candidates would match
FILTERED = 20_000  # orders of a name looked at for those that a filter leaves
SHORTEST_FRAGMENT = 2  # characters: an index of single ones would find too much
RECENT = 5  # searches
KEPT = timedelta(days=30)  # what was typed
SHORTEST_TAIL = 4  # characters of the end of an order id; fewer would match by accident
SHORTEST_WHOLE_ID = (
    16  # characters after the prefix; Smartpay's have 21 or 22, and a shorter one may be a beginning
)

NAMES = ("family_folded", "given_folded", "name_folded", "name_turned_folded")
KANA = ("family_kana_folded", "given_kana_folded", "kana_folded", "kana_turned_folded")
WHOLE = (*NAMES, *KANA, "email_folded", "reference_folded")
# Full names begin as family names do, and turned ones as given names: those need no branch of their own.
PARTS = (*NAMES[:2], *KANA[:2])
BEGINNING = tuple(column for column in WHOLE if column not in PARTS)
SPLIT = range(2, 7)  # characters of a word that is looked for as a part and a beginning of the other
LOOKED_IN = (*WHOLE, "order_id_reversed")
LABELS: tuple[tuple[Any, Callable[[Any], Sequence[str]]], ...] = (  # what of an order matched
    (gettext_lazy("お客様名"), attrgetter(*NAMES)),
    (gettext_lazy("フリガナ"), attrgetter(*KANA)),
    (gettext_lazy("メールアドレス"), lambda order: (order.email_folded,)),
)
LAST = "\U0010ffff"  # nothing sorts after it: what begins with q lies between q and q + LAST

ANY_STATUS = "any"
IN_PROGRESS = "in_progress"  # the two statuses that are both 手続き中
STATUSES = {IN_PROGRESS: (Order.Status.REQUIRES_AUTHORIZATION, Order.Status.PENDING)}


@dataclass(frozen=True, slots=True)
class Filters:
    """What narrows a list.

    status: one of Order.Status, IN_PROGRESS, ANY_STATUS, or "": all but those that were never paid.
    refund_status: one of Order.RefundStatus, or "": all.
    period_from, period_to: from this moment on; up to, not including, that one.
    """

    status: str = ""
    refund_status: str = ""
    period_from: datetime | None = None
    period_to: datetime | None = None


@dataclass(slots=True)
class Found:
    """An order as lists and files show it, with what tells why a search found it; the rest stays unread.

    Not an Order: fifty of them with the columns that they lack cost as much as a page's searching.
    """

    key: int
    order_id: str
    reference: str
    amount: int
    currency: str
    status: str
    refund_status: str
    family_name: str
    given_name: str
    email: str
    refunded: int
    # LOOKED_IN, for a search
    family_folded: str = ""
    given_folded: str = ""
    name_folded: str = ""
    name_turned_folded: str = ""
    family_kana_folded: str = ""
    given_kana_folded: str = ""
    kana_folded: str = ""
    kana_turned_folded: str = ""
    email_folded: str = ""
    reference_folded: str = ""
    order_id_reversed: str = ""
    matched: list[str] = field(default_factory=list)  # what of it a search matched, in words

    # In the words of an order.
    Status: ClassVar[Any] = Order.Status
    RefundStatus: ClassVar[Any] = Order.RefundStatus
    customer_name: ClassVar[Any] = Order.customer_name
    get_status_display: ClassVar[Any] = Order.get_status_display
    get_refund_status_display: ClassVar[Any] = Order.get_refund_status_display

    @property
    def created_at(self) -> datetime:
        return moment_of(self.key)


COLUMNS = tuple(column.name for column in fields(Found) if column.name != "matched")
SEARCHED = ", ".join(COLUMNS)
LISTED = ", ".join(column for column in COLUMNS if column not in LOOKED_IN)


@dataclass(frozen=True, slots=True)
class Result:
    """One page, newest first within each tier; the `matched` of a found order says in words what of it matched.

    newer, older: cursors for the URL, "" where there is no such page.
    partial: there were more candidates than were looked at.
    hidden_by_filters: nothing is shown; without the filters, the hiding of the never paid included, something is.
    """

    orders: list[Found]
    newer: str = ""
    older: str = ""
    partial: bool = False
    hidden_by_filters: bool = False


NOTHING = Result([])  # with no filter either, and nothing was left out


def list_orders(filters: Filters, cursor: str = "", *, limit: int = PAGE) -> Result:
    """Return a page of the orders that the filters leave. A cursor that we did not make counts as the first page."""
    # One branch a status: an index on (status, key) gives each in order, but not two of them together.
    statuses = STATUSES.get(filters.status, ("",))
    tier = _Exact(tuple(f"status = '{status}'" if status else "TRUE" for status in statuses), {})
    return _page([tier], filters, cursor, limit, unfiltered=[_Exact(("TRUE",), {})])


def find(text: str, *, filters: Filters = Filters(), cursor: str = "", limit: int = PAGE) -> Result:
    """Return a page of the orders that may be meant by what was typed.

    That may be a name (either part first, with or without a blank), kana, a mail, an order id or its last characters,
    the shop's reference, or the whole id of a payment or of a refund; of several words all have to match. Only where
    nothing is found, 様 and さん are taken for a courtesy, a word before a colon for a label, and brackets part words.
    A cursor that we did not make counts as the first page.
    """
    with _plans_kept():
        for query in _readings(text):
            tiers = query.tiers()
            result = _page(tiers, filters, cursor, limit, unfiltered=tiers, columns=SEARCHED)
            if result != NOTHING:
                break
    query.label(result.orders)
    return result


class Saved(NamedTuple):
    """保存した検索, as pages offer it: its name, the search that it narrows ("" for none) and the filters."""

    name: str
    search_id: str
    filters: str


class Remembered(NamedTuple):
    """What a list shows beside its orders.

    asked: the search of the id given, whoever's it is, with its text and its person alone; None for an id that is not
        ours.
    recent: what the person looked for last, each once, as (id, text); not what was typed on the way to it.
    saved: what the person keeps, by name.
    read_at: when a page of orders was last read; None before the first.
    """

    asked: Search | None
    recent: list[tuple[str, str]]
    saved: list[Saved]
    read_at: datetime | None


REMEMBERED = f"""
SELECT 'asked', id, text, '', person_id, created_at FROM refunds_search WHERE id = %(asked)s
UNION ALL
SELECT 'recent', id, text, '', person_id, created_at FROM (
    SELECT id, text, person_id, created_at FROM refunds_search
    WHERE person_id = %(person)s AND created_at > %(since)s ORDER BY created_at DESC LIMIT {10 * RECENT}
) AS recent
UNION ALL
SELECT 'saved', coalesce(search_id, ''), name, filters, person_id, NULL FROM (
    SELECT search_id, name, filters, person_id FROM refunds_savedsearch
    WHERE person_id = %(person)s ORDER BY name LIMIT {SavedSearch.MOST}
) AS saved
UNION ALL
SELECT 'read', collection, '', '', 0, last_read_at FROM refunds_synccursor WHERE collection = '{SyncCursor.ORDERS}'
"""  # noqa: S608  (numbers of ours)


def remembered(person: User, search_id: str = "") -> Remembered:
    """By one statement, made once: each list asks for it."""
    values = {
        "asked": search_id if search_id.isprintable() else "",
        "person": person.pk,
        "since": connection.ops.adapt_datetimefield_value(timezone.now() - KEPT),
    }
    rows: dict[str, list[Any]] = {"asked": [], "recent": [], "saved": [], "read": []}
    for what, *row in _rows(REMEMBERED, values):
        rows[what].append(row)
    asked = [Search(id=pk, person_id=owner, text=text) for pk, text, _filters, owner, _at in rows["asked"]]
    recent: list[tuple[str, str]] = []
    for pk, text, _filters, _owner, _at in sorted(rows["recent"], key=itemgetter(-1), reverse=True):
        if len(recent) < RECENT and not any(later.startswith(text) for _pk, later in recent):
            recent.append((pk, text))
    saved = sorted(Saved(name, pk, filters) for pk, name, filters, _owner, _at in rows["saved"])
    read_at: datetime | None = rows["read"][0][-1] if rows["read"] else None
    if read_at and read_at.tzinfo is None:  # SQLite's, which are in UTC
        read_at = read_at.replace(tzinfo=UTC)
    return Remembered(asked[0] if asked else None, recent, saved, read_at)


def words(kept: Search | None) -> str:
    """What the trail says of a search: by it an equal one is found again, and what was typed is not guessed."""
    return audit.keyed_hash(fold(kept.text)) if kept else ""


def hashes(text: str) -> list[str]:
    """What words() said of a search for this text, under the site's secret of now and those before; [] for nothing."""
    return audit.keyed_hashes(folded) if (folded := fold(as_typed(text))) else []


def as_typed(text: str) -> str:
    """What somebody typed, as it is kept: printable characters, 200 at most, words by one blank; "" for nothing.

    An IME's blank, a tab between two cells and a line's end part words as well.
    """
    return "".join(character for character in " ".join(text.split()) if character.isprintable()).strip()[:200]


def whole_order_id(text: str) -> str | None:
    """Return the order id that the text is, without a label, brackets or a URL around it; else None.

    Of one that is short, or that Caps Lock or a spreadsheet may have changed, the orders here tell which it is.
    """
    order_id = _cleaned(text)
    if not order_id.lower().startswith("order_") or not _ID.fullmatch(order_id):
        return None
    tail = order_id.rpartition("_")[2]
    whole = len(tail) >= SHORTEST_WHOLE_ID and smartpay.id_kind(order_id) is not None
    if whole and tail not in {tail.lower(), tail.upper()}:
        return order_id
    alike = Order.objects.filter(order_id_reversed=fold(order_id)[::-1])
    known = set(alike.values_list("order_id", flat=True))
    if order_id in known or (whole and not known):
        return order_id
    return known.pop() if len(known) == 1 else None


# --- What was typed -----------------------------------------------------------------------------------------

# A condition, and the column whose index answers it, in the order of that column; "" where the rows that meet it lie in
# one place of an index, by their keys.
type _Branch = tuple[str, str]
type _Row = tuple[Any, ...]  # of an order, its key first
type _Parameters = dict[str, Any]
type _Labels = Sequence[tuple[str, Callable[[Found], Sequence[str]]]]

_DOMAIN = re.compile(r"@[0-9a-z.-]+|[0-9a-z-]+(?:\.[0-9a-z-]+)+")
_ID = re.compile(r"(?:order|payment|refund)_(?:test|live)_[0-9A-Za-z]++(?!\.\.)", re.IGNORECASE)
_ORDER_ID_BEGUN = re.compile(r"order_(?:test|live)_[0-9A-Za-z]+")
_TAIL = re.compile(rf"[0-9a-z]{{{SHORTEST_TAIL},}}")
_BRACKETS = "「」『』()<>[]{}【】《》,;、。"
_AROUND = " \t\r\n\"'`“”‘’.?" + _BRACKETS
_PARTING = re.compile(rf"[{re.escape(_BRACKETS)}]|\.{{2,}}")  # 田中 太郎(タナカ タロウ), order_test_4bC7…r001
_ADDRESSEE = re.compile(r"<([^\s<>]+@[^\s<>]+)")  # 田中 <tanaka@example.jp>
_LABEL = re.compile(r"^[^:_@]*(?::|(?<![A-Za-z])ID(?![A-Za-z])|番号)\s*")  # 注文番号:, Order ID, mailto:
_COURTESY = re.compile(r"\s*(?:様|さま|サマ|さん|サン)(?!\S)")
_KANJI, _KANA = "[々㐀-䶿一-鿿\uf900-\ufaff\U00020000-\U0003ffff]", "[ぁ-ゖァ-ヺー]"
# Not beside the ノ of 一ノ瀬, nor the ヶ of 龍ヶ崎.
_BORDER = re.compile(f"(?<={_KANJI})(?={_KANA}(?!{_KANJI}))|(?<={_KANA})(?<!{_KANJI}{_KANA})(?={_KANJI})")


def _cleaned(text: str) -> str:
    """The text without what surrounds it: of a person and a mail the mail, of a label or a URL with one id the id."""
    text = unicodedata.normalize("NFKC", text).strip(_AROUND)
    if addressee := _ADDRESSEE.search(text):
        return addressee[1]
    word = _LABEL.sub("", text)
    ids = [] if " " in word else _ID.findall(word)
    ids = [one for one in ids if one.lower().startswith("order_")] or ids
    return str(ids[0]) if len({*ids}) == 1 else text


def _bare(text: str) -> str:
    """What may be meant by a cleaned text that finds nothing: イ・サン is a name, 田中さん is 田中."""
    return _COURTESY.sub("", _PARTING.sub(" ", _LABEL.sub("", text))).strip(_AROUND)


@dataclass(frozen=True, slots=True)
class _Needle:
    """One thing to look for: as typed but for blanks, for ids, whose case matters; and folded, for everything else."""

    typed: str
    folded: str
    reference: str  # folded as a shop's order number
    begins_order_id: bool
    is_tail: bool  # what an order id may end in

    @classmethod
    def of(cls, text: str) -> Self:
        typed = "".join(character for character in text if character.isprintable() and character != " ")
        folded = fold(text)
        begins_order_id = _ORDER_ID_BEGUN.fullmatch(typed) is not None
        is_tail = _TAIL.fullmatch(folded) is not None
        return cls(typed, folded, fold_reference(folded), begins_order_id, is_tail)

    @property
    def domain(self) -> str:
        """`@example.jp` where this is a domain with or without its sign, else ""."""
        return "@" + self.folded.removeprefix("@") if _DOMAIN.fullmatch(self.folded) else ""

    @property
    def is_split(self) -> bool:
        return len(self.folded) in SPLIT and not self.folded.isascii()

    def parameters(self, name: str) -> dict[str, str]:
        found = {
            name: self.folded,
            f"{name}_to": self.folded + LAST,
            f"{name}_reference": self.reference,
            f"{name}_reference_to": self.reference + LAST,
            f"{name}_typed": self.typed,
            f"{name}_typed_to": self.typed + LAST,
            f"{name}_tail": self.folded[::-1],
            f"{name}_tail_to": self.folded[::-1] + LAST,
            f"{name}_domain": self.domain,
        }
        if self.is_split:
            found |= {f"{name}_{end}": self.folded[:end] for end in range(1, len(self.folded))}
        return found

    def whole(self, name: str) -> list[_Branch]:
        """What finds all rows of which a column is this."""
        rules = [
            f"order_id = %({name}_typed)s",
            *(f"{column} = %({_value(name, column)})s" for column in WHOLE),
        ]
        return [(rule, "") for rule in rules]

    def begins(self, name: str) -> list[_Branch]:
        """What finds all rows of which a column begins with this, without being it."""
        return [*self._ranges(name, BEGINNING), *self._ids(name)]

    def begins_apart(self, name: str) -> list[_Branch]:
        """The same rows and a few more, by other branches; none where these would be many.

        A full name that begins with 田中 is that of a 田中丸, or of somebody 田 whose given name begins with 中, or of
        one of the many 田中, who are found as such. In the range of all of them the others would not be seen.
        """
        if not self.is_split:
            return []
        others = [column for column in BEGINNING if column not in {*NAMES, *KANA}]
        apart = [(f"{part} = %({name}_{end})s", "") for part in PARTS for end in range(1, len(self.folded))]
        return [*self._ranges(name, [*PARTS, *others]), *apart, *self._ids(name)]

    def _ranges(self, name: str, columns: Sequence[str], above: str = ">") -> list[_Branch]:
        values = [(column, _value(name, column)) for column in columns]
        return [
            (f"{column} {above} %({value})s AND {column} <= %({value}_to)s", column)
            for column, value in values
        ]

    def _ids(self, name: str) -> list[_Branch]:
        ranges = []
        if self.begins_order_id:
            ranges.append((f"order_id > %({name}_typed)s AND order_id <= %({name}_typed_to)s", "order_id"))
        if self.is_tail:
            column = "order_id_reversed"
            ranges.append((f"{column} >= %({name}_tail)s AND {column} <= %({name}_tail_to)s", column))
        return ranges

    def at_start(self, name: str) -> str:
        """A condition for rows at hand: a column is this, or begins with it."""
        return _either([rule for rule, _column in self.starts(name)])

    def starts(self, name: str) -> list[_Branch]:
        """What finds all rows of which a column is this, or begins with it, by few branches."""
        ranges = self._ranges(name, BEGINNING, ">=")
        return [*ranges, *self._ids(name), (f"order_id = %({name}_typed)s", "")]

    def fits(self, name: str) -> str:
        """A condition for rows at hand: as above, or the mail is of this domain."""
        rules = [self.at_start(name)]
        if self.domain:
            start = f"length(email_folded) - length(%({name}_domain)s) + 1"
            rules.append(f"substr(email_folded, {start}) = %({name}_domain)s")
        return _either(rules)

    def near(self, name: str) -> str:
        """What the key of a `candidate` tells of that: of another domain, unless anything at all begins with this."""
        of_domain = (
            f"SELECT TRUE FROM refunds_fragment WHERE text = %({name}_domain)s AND key = candidate.key"  # noqa: S608
        )
        begun = " UNION ALL ".join(_walks(self.starts(name)))
        return f"(({of_domain}) OR EXISTS ({begun}))"

    def labels(self, order: Found, labels: _Labels) -> list[str]:
        """In words, what of the order is this, begins with it or, failing those, holds it."""
        folded = self.folded
        begun, held = [], []
        for label, texts in labels:
            holding = [text for text in texts(order) if folded in text]
            if holding:
                held.append(label)
                if any([text.startswith(folded) for text in holding]):  # noqa: C419  (two or three; a generator is slower)
                    begun.append(label)
        if order.reference_folded.startswith(self.reference):
            begun.append(_("ショップ注文番号"))
        if (
            order.order_id == self.typed
            or (self.begins_order_id and order.order_id.startswith(self.typed))
            or (self.is_tail and order.order_id_reversed.startswith(folded[::-1]))
        ):
            begun.append(_("注文ID"))
        return begun or held


def _value(name: str, column: str) -> str:
    """The parameter that the column is held against."""
    return f"{name}_reference" if column == "reference_folded" else name


@dataclass(frozen=True, slots=True)
class _Query:
    """What was typed as a whole, and word by word where there are several, 田中たろう being two."""

    whole: _Needle
    words: tuple[_Needle, ...]

    @classmethod
    def of(cls, text: str) -> Self:
        parts, halves = text.split(), _BORDER.split(text)
        if len(parts) == 1 and len(halves) == 2 and not _COURTESY.search(text):
            parts = halves
        words = [needle for needle in map(_Needle.of, parts) if needle.folded]
        return cls(_Needle.of(text), tuple(dict.fromkeys(words)) if len(words) > 1 else ())

    def tiers(self) -> list["_Tier"]:
        if not self.whole.folded:
            return []
        match smartpay.id_kind(self.whole.typed):
            case ("payment", _mode):
                owner = "SELECT order_id FROM refunds_payment WHERE id = %(id)s"
                return [_Exact((f"key = ({owner})",), {"id": self.whole.typed})]
            case ("refund", _mode):
                payment = "SELECT payment_id FROM refunds_smartpayrefund WHERE id = %(id)s"
                owner = f"SELECT order_id FROM refunds_payment WHERE id = ({payment})"  # noqa: S608
                return [_Exact((f"key = ({owner})",), {"id": self.whole.typed})]
        parameters = self.whole.parameters("whole")
        whole = [rule for rule, _column in self.whole.whole("whole")]
        beyond = f"NOT {_either(whole)}"
        apart = self.whole.begins_apart("whole")
        tiers: list[_Tier] = [
            _Exact(tuple(whole), parameters, walked=True),
            _Candidates(
                tuple(self.whole.begins("whole")),
                beyond,
                parameters,
                otherwise=_Candidates(
                    tuple(apart), f"{self.whole.at_start('whole')} AND {beyond}", parameters
                )
                if apart
                else None,
            ),
        ]
        if len(self.whole.folded) >= SHORTEST_FRAGMENT:
            tiers.append(_Within(self.whole, f"NOT {self.whole.at_start('whole')}", parameters))
        if self.words and not all(word.domain for word in self.words):
            tiers.append(_Words(self.words))
        return tiers

    def label(self, page: Sequence[Found]) -> None:
        """Say of each order of a page what of it matched."""
        match smartpay.id_kind(self.whole.typed):
            case ("payment" | "refund" as kind, _mode):
                for order in page:
                    order.matched = [_("支払いID") if kind == "payment" else _("返金ID")]
                return
        labels = [(str(label), texts) for label, texts in LABELS]  # translated once a page
        for order in page:
            order.matched = self.whole.labels(order, labels) or list(
                dict.fromkeys(label for word in self.words for label in word.labels(order, labels))
            )


def _readings(text: str) -> Iterator[_Query]:
    """What was typed, then what else may be meant by it."""
    text = _cleaned(text)
    return map(_Query.of, dict.fromkeys((text, _bare(text))))


def _either(conditions: Sequence[str]) -> str:
    return "(" + " OR ".join(f"({condition})" for condition in conditions) + ")"


def _walks(branches: Sequence[_Branch]) -> list[str]:
    """A statement for each branch that walks its index as far as candidates are looked at, and one row more."""
    return [
        f"SELECT key FROM (SELECT key FROM refunds_order WHERE {condition} "  # noqa: S608
        f"ORDER BY {column or 'key'} DESC LIMIT %(candidates)s + 1) AS walk{number}"
        for number, (condition, column) in enumerate(branches)
    ]


# --- Tiers: what to look for -> rows ------------------------------------------------------------------------


class _Rules(NamedTuple):
    """The filters as conditions: on the key alone, and on the order's other columns.

    narrow: whether they may leave few of many orders.
    """

    key: str
    rest: str
    narrow: bool

    def __str__(self) -> str:
        return f"{self.key} AND {self.rest}"


class _Tier(Protocol):
    @property
    def last_resort(self) -> bool:
        """Only asked where the tiers before it have nothing."""
        ...

    def rows(
        self, columns: str, rules: _Rules, order: str, parameters: _Parameters
    ) -> tuple[list[_Row], bool]:
        """Return the first `%(limit)s` in that order among the orders that meet the rules, and whether partial."""
        ...


@dataclass(frozen=True, slots=True)
class _Exact:
    """Branches whose rows an index gives in the order of their keys: exact, however many rows there are.

    walked: of a name that many have, only so much is looked at for what narrow filters leave.
    """

    branches: tuple[str, ...]
    parameters: _Parameters
    walked: bool = False
    last_resort: bool = False

    def rows(
        self, columns: str, rules: _Rules, order: str, parameters: _Parameters
    ) -> tuple[list[_Row], bool]:
        values = self.parameters | parameters
        if not (self.walked and rules.narrow):
            sources = [f"refunds_order WHERE {branch} AND {rules}" for branch in self.branches]
            return _rows(_in_order(columns, self.keys(sources, order), order), values), False
        sources = [
            f"(SELECT key, status, refund_status FROM refunds_order WHERE {branch} AND {rules.key} "  # noqa: S608
            f"ORDER BY key {order} LIMIT %(walk)s) AS walked WHERE {rules.rest}"
            for branch in self.branches
        ]
        sql = _in_order(columns, self.keys(sources, order), order)
        walk = WALK // 10
        while True:
            found = _rows(sql, values | {"walk": walk})
            full = len(found) == values["limit"]
            # A branch that is walked no further than here may hold some that come before the last of these.
            if full and not self._holds_before(found[-1][0], rules, order, values | {"walk": walk}):
                return found, False
            if walk == FILTERED:
                break
            walk = min(_times(values["limit"], found) * walk, FILTERED)
        if full:
            return found, True
        walks = [
            f"SELECT 1 FROM refunds_order WHERE {branch} AND {rules.key} LIMIT %(walk)s + 1"  # noqa: S608
            for branch in self.branches
        ]
        return found, _any_exceeds(FILTERED, walks, values | {"walk": FILTERED})

    def _holds_before(self, last: int, rules: _Rules, order: str, values: _Parameters) -> bool:
        """Whether what follows the walked rows of a branch comes before the row of this key."""
        before = f"key {'>' if order == 'DESC' else '<'} %(last)s"
        walks = [
            f"SELECT 1 FROM refunds_order WHERE {branch} AND {rules.key} AND {before} LIMIT %(walk)s + 1"  # noqa: S608
            for branch in self.branches
        ]
        return _any_exceeds(values["walk"], walks, values | {"last": last})

    def keys(self, sources: Sequence[str], order: str) -> str:
        branches = " UNION ".join(
            f"SELECT key FROM (SELECT key FROM {source} ORDER BY key {order} LIMIT %(limit)s) AS branch{number}"  # noqa: S608
            for number, source in enumerate(sources)
        )
        return f"SELECT key FROM ({branches}) AS found ORDER BY key {order} LIMIT %(limit)s"  # noqa: S608


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Branches of which a bounded number of rows is looked at, together and in the order of their keys.

    fits: what a candidate has to meet.
    near: what is told of that by the key of the candidate; of those that do not meet it no row is read.
    otherwise: what tells more, where these leave something out and do not fill the page.
    """

    branches: tuple[_Branch, ...]
    fits: str
    parameters: _Parameters
    near: str = "TRUE"
    otherwise: "_Candidates | None" = None
    last_resort: bool = False

    def rows(
        self, columns: str, rules: _Rules, order: str, parameters: _Parameters
    ) -> tuple[list[_Row], bool]:
        found, cut = self._looked_at(columns, rules, order, parameters)
        if cut and self.otherwise and len(found) < parameters["limit"]:
            others, cut = self.otherwise.rows(columns, rules, order, parameters)
            # What either found is right; where both were cut, neither alone tells where the next page begins. A row may
            # have changed between the two.
            both = {row[0]: row for row in (*found, *others)}
            keys = sorted(both, reverse=order == "DESC")[: parameters["limit"]]
            found = [both[key] for key in keys] if cut else others
        return found, cut

    def _looked_at(
        self, columns: str, rules: _Rules, order: str, parameters: _Parameters
    ) -> tuple[list[_Row], bool]:
        values = {"candidates": CANDIDATES} | self.parameters | parameters
        limit, newest_first = values["limit"], order == "DESC"
        walked = _rows(self.walk(rules, order), values)
        counts = Counter(branch for branch, _key, _near in walked)
        cut = {branch for branch, many in counts.items() if many > values["candidates"]}
        candidates = sorted({key for _branch, key, near in walked if near}, reverse=newest_first)
        found: list[_Row] = []
        few, judged = _few(limit), 0
        while candidates[judged:] and len(found) < limit:
            some = candidates[judged : judged + few]
            fitting = {row[0]: row for row in self._fitting(columns, some, rules, values)}
            found += [fitting[key] for key in some if key in fitting]
            judged += len(some)
            few = max(judged, judged * (limit - len(found)) // max(len(found), 1) * 5 // 4)
        if not cut or len(found) < limit or any(self.branches[branch][1] for branch in cut):
            return found[:limit], bool(cut)
        # Branches in the order of keys are whole as far as they were walked.
        last = found[limit - 1][0]
        reached = {branch for branch, key, _near in walked if (key <= last if newest_first else key >= last)}
        return found[:limit], not cut <= reached

    def walk(self, rules: _Rules, order: str) -> str:
        """A statement for the candidates as (branch, key, whether their rows are to be read)."""
        candidates = " UNION ALL ".join(
            f"SELECT * FROM (SELECT {number} AS branch, key FROM refunds_order WHERE {condition} "  # noqa: S608
            + (f"ORDER BY {column} DESC, key DESC" if column else f"AND {rules.key} ORDER BY key {order}")
            + f" LIMIT %(candidates)s + 1) AS branch{number}"
            for number, (condition, column) in enumerate(self.branches)
        )
        return f"SELECT branch, key, {rules.key} AND {self.near} FROM ({candidates}) AS candidate"  # noqa: S608

    def _fitting(self, columns: str, keys: Sequence[int], rules: _Rules, values: _Parameters) -> list[_Row]:
        return _rows(f"{_orders(columns, _listed(keys))} AND {self.fits} AND {rules.rest}", values)


def _few(limit: int) -> int:
    """How many candidates fill a page, as a rule: a third more, for the never paid and for what does not fit."""
    return max(limit, PAGE) * 4 // 3


def _orders(columns: str, keys: str) -> str:
    """A statement, open at its end, for the orders of the keys, which are a list or a statement."""
    return f"SELECT {columns} FROM refunds_order WHERE key IN ({keys})"  # noqa: S608


def _in_order(columns: str, keys: str, order: str) -> str:
    """A statement for the orders of the keys that a statement gives in this order."""
    return keys if columns == "key" else f"{_orders(columns, keys)} ORDER BY key {order}"


def _listed(keys: Sequence[int]) -> str:
    """Ours, and whole numbers; as parameters they take longer than to be looked at."""
    return ", ".join(map(str, keys))


@dataclass(frozen=True, slots=True)
class _Words:
    """Orders that fit each of several words: the candidates come from one of them, and the others filter those."""

    words: tuple[_Needle, ...]
    last_resort: bool = True

    def rows(
        self, columns: str, rules: _Rules, order: str, parameters: _Parameters
    ) -> tuple[list[_Row], bool]:
        longest = sorted((word for word in self.words if not word.domain), key=lambda word: -len(word.folded))
        # Few of any word's fill the page, as a rule, or are all there are: the others need no look.
        first_few = parameters | {"candidates": min(8 * max(parameters["limit"], PAGE), CANDIDATES)}
        found, cut = self.candidates(longest[0]).rows(columns, rules, order, first_few)
        if not cut:
            return found, False
        rare = next((word for word in longest if self._is_rare(word)), longest[0])
        return self.candidates(rare).rows(columns, rules, order, parameters)

    def candidates(self, first: _Needle) -> _Candidates:
        parameters = first.parameters("first")
        others = [word for word in self.words if word is not first]
        for number, word in enumerate(others):
            parameters |= word.parameters(f"other{number}")
        fits = " AND ".join(word.fits(f"other{number}") for number, word in enumerate(others)) or "TRUE"
        # One domain rules out the most of them; another would be looked up for each candidate as well.
        domains = (word.near(f"other{number}") for number, word in enumerate(others) if word.domain)
        near = next(domains, "TRUE")
        whole = first.whole("first")
        ranges = _Candidates((*whole, *first.begins("first")), fits, parameters, near)
        if not (apart := first.begins_apart("first")):
            return ranges
        # Who types several words means parts of names, as a rule: first as such.
        fits += f" AND {first.at_start('first')}"
        return _Candidates((*whole, *apart), fits, parameters, near, otherwise=ranges)

    def _is_rare(self, word: _Needle) -> bool:
        """Whether all its candidates would be looked at."""
        walks = _walks([*word.whole("word"), *word.begins("word")])
        return not _any_exceeds(CANDIDATES, walks, word.parameters("word") | {"candidates": CANDIDATES})


@dataclass(frozen=True, slots=True)
class _Within:
    """Fragments that begin with the needle: all of them where they are few, else the newest of those walked past.

    without: what else an order has to meet; it is asked once an order, and never chooses the way.
    """

    needle: _Needle
    without: str
    parameters: _Parameters
    last_resort: bool = False

    def rows(
        self, columns: str, rules: _Rules, order: str, parameters: _Parameters
    ) -> tuple[list[_Row], bool]:
        domain = self.needle.domain
        text = domain or self.needle.folded
        values = self.parameters | parameters
        values |= {
            "start": text[:2],
            "text": text,
            "text_to": text if domain and text != self.needle.folded else text + LAST,
            "candidates": CANDIDATES,
            "walk": WALK,
        }
        matches = "text >= %(text)s AND text <= %(text_to)s"
        many = _count("candidates", f"refunds_fragment WHERE {matches}", values)
        if not many:
            return [], False
        rare = many <= CANDIDATES
        newest = (
            f"SELECT key, text FROM refunds_fragment WHERE start = %(start)s AND {rules.key} "  # noqa: S608
            f"ORDER BY key {order} LIMIT %(walk)s + 1"
        )
        walked = f"({newest}) AS walked"
        source = f"refunds_fragment WHERE {matches} AND {rules.key}" if rare else f"{walked} WHERE {matches}"
        near = f"SELECT key FROM {source} ORDER BY key {order} LIMIT %(candidates)s"  # noqa: S608
        sql = _in_order(columns, self.keys(near, rules, order), order)
        limit = values["limit"]
        most, walk = min(_few(limit), CANDIDATES), max(WALK // 10, 1)
        # The first few of a short walk fill the page, but where a filter, or what begins alike, leaves few of them.
        while True:
            found = _rows(sql, values | {"candidates": most, "walk": walk})
            if len(found) == limit or many <= most:
                return found, False
            if (most, walk) == (CANDIDATES, WALK):
                break
            times = _times(limit, found)
            most, walk = min(times * most, CANDIDATES), min(times * walk, WALK)
        cut = _count("walk", walked, values) > WALK
        return found, cut or _count("candidates", f"{walked} WHERE {matches}", values) > CANDIDATES

    def keys(self, near: str, rules: _Rules, order: str) -> str:
        # One look at each order, by its key. As a join, PostgreSQL may walk all orders beside the few.
        fits = f"SELECT TRUE FROM refunds_order WHERE key = near.key AND {rules.rest} AND {self.without}"  # noqa: S608
        return (
            f"WITH near AS MATERIALIZED ({near}) SELECT DISTINCT key FROM near WHERE ({fits}) "  # noqa: S608
            f"ORDER BY key {order} LIMIT %(limit)s"
        )


def _times(limit: int, found: Sequence[_Row]) -> int:
    """How many times as much has to be looked at to fill a page: as it seems, and somewhat more."""
    return max(2, 5 * limit // (4 * max(len(found), 1)))


def _any_exceeds(bound: int, walks: Sequence[str], values: _Parameters) -> bool:
    """Whether one of the statements, which end soon after the bound, gives more rows than that."""
    counts = " UNION ALL ".join(
        f"SELECT sum(1) FROM ({walk}) AS counted{number}"  # noqa: S608
        for number, walk in enumerate(walks)
    )
    return any((many or 0) > bound for (many,) in _rows(counts, values))


def _count(bound: str, rows: str, values: _Parameters) -> int:
    """How many there are, counted up to one more than the bound."""
    sql = f"SELECT sum(1) FROM (SELECT 1 FROM {rows} LIMIT %({bound})s + 1) AS counted"  # noqa: S608
    [(many,)] = _rows(sql, values)
    return int(many or 0)


def _rows(sql: str, parameters: _Parameters) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall())


@contextmanager
def _plans_kept() -> Iterator[None]:
    """Have PostgreSQL plan a statement once a connection. For each value anew takes it longer than all the rest.

    For a search alone, whose statements are planned alike for every value. Others have an index for some values.
    """
    if connection.vendor != "postgresql" or settings.DATABASE_POOLED:
        yield
        return
    with connection.cursor() as cursor:
        driver = cursor.connection
        # Not LOCAL: BEGIN and COMMIT would be two ways to the database more.
        cursor.execute("SET plan_cache_mode = force_generic_plan")
        before, driver.prepare_threshold = driver.prepare_threshold, 1  # at their second time
        try:
            yield
        finally:
            driver.prepare_threshold = before
            # One that failed takes it back itself, with all else that it did.
            if driver.info.transaction_status != TransactionStatus.INERROR:
                cursor.execute("SET plan_cache_mode = DEFAULT")


def _rules(filters: Filters) -> tuple[_Rules, _Parameters]:
    rules: list[str] = []
    keys: list[str] = []
    parameters: _Parameters = {}
    if filters.status != ANY_STATUS:
        statuses = STATUSES.get(filters.status, (filters.status,)) if filters.status else Order.UNPAID
        names = [f"status{number}" for number in range(len(statuses))]
        parameters |= dict(zip(names, map(str, statuses), strict=True))
        word = "IN" if filters.status else "NOT IN"
        rules.append(f"status {word} ({', '.join(f'%({name})s' for name in names)})")
    if filters.refund_status:
        rules.append("refund_status = %(refund_status)s")
        parameters["refund_status"] = filters.refund_status
    if filters.period_from:
        keys.append("key >= %(period_from)s")
        parameters["period_from"] = first_key(filters.period_from)
    if filters.period_to:
        keys.append("key < %(period_to)s")
        parameters["period_to"] = first_key(filters.period_to)
    narrow = bool(filters.refund_status) or filters.status not in ("", ANY_STATUS)
    return _Rules(" AND ".join(keys) or "TRUE", " AND ".join(rules) or "TRUE", narrow), parameters


# --- Pages --------------------------------------------------------------------------------------------------


class _Place(NamedTuple):
    """Where a page begins: beside the order of this tier and key, towards newer ones or older ones."""

    newer: bool
    tier: int
    key: int

    @classmethod
    def beside(cls, one: tuple[int, _Row], *, newer: bool) -> Self:
        tier, row = one
        return cls(newer, tier, row[0])

    def __str__(self) -> str:
        return f"{'n' if self.newer else 'o'}{self.tier}.{self.key:x}"


_CURSOR = re.compile(r"([no])([0-3])\.([0-7]?[0-9a-f]{1,15})")
START = _Place(newer=False, tier=0, key=2**63 - 1)


def _place(cursor: str) -> _Place:
    match = _CURSOR.fullmatch(cursor)
    return _Place(match[1] == "n", int(match[2]), int(match[3], 16)) if match else START


def _page(
    tiers: Sequence[_Tier],
    filters: Filters,
    cursor: str,
    limit: int,
    *,
    unfiltered: Sequence[_Tier],
    columns: str = LISTED,
) -> Result:
    place = _place(cursor)
    found, partial = _from(place, columns, tiers, filters, limit + 1)
    if place != START and len(found) <= (limit if place.newer else 0):
        # Nothing is left to turn to on that side: this is the first page, and it is to be a full one.
        place = START
        found, partial = _from(place, columns, tiers, filters, limit + 1)
    shown = found[limit - 1 :: -1] if place.newer else found[:limit]
    hidden = False
    if not found:
        beyond, cut = _from(START, "key", unfiltered, Filters(status=ANY_STATUS), 1)
        hidden, partial = bool(beyond), partial or (cut and not beyond)
    return Result(
        orders=[Found(*row) for _tier, row in shown],
        newer=str(_Place.beside(shown[0], newer=True)) if place != START else "",
        older=str(_Place.beside(shown[-1], newer=False)) if len(found) > limit else "",
        partial=partial,
        hidden_by_filters=hidden,
    )


def _from(
    place: _Place, columns: str, tiers: Sequence[_Tier], filters: Filters, limit: int
) -> tuple[list[tuple[int, _Row]], bool]:
    """Return up to `limit` orders from the place on, as (tier, row) in the order of going, and whether partial."""
    rules, parameters = _rules(filters)
    found: list[tuple[int, _Row]] = []
    partial = False
    for number in range(place.tier, -1, -1) if place.newer else range(place.tier, len(tiers)):
        if number >= len(tiers) or len(found) == limit or (tiers[number].last_resort and found):
            continue
        beside = f"{rules.key} AND key {'>' if place.newer else '<'} %(place)s"
        bounded = rules._replace(key=beside) if number == place.tier else rules
        rows, cut = tiers[number].rows(
            columns,
            bounded,
            "ASC" if place.newer else "DESC",
            parameters | {"place": place.key, "limit": limit - len(found)},
        )
        partial = partial or cut
        found += [(number, row) for row in rows]
    return found, partial
