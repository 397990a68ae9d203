"""Tiers -> pages of orders, newest first within each tier, with cursors to the pages beside them."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from datetime import datetime
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, Self

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from refunds.folding import fold
from refunds.models import Order
from refunds.order_keys import moment_of
from refunds.search import typed
from refunds.search.filters import ANY_STATUS, DEFAULT_FILTERS, STATUSES, Conditions, Filters
from refunds.search.sql import plans_kept
from refunds.search.terms import KANA, LOOKED_IN, NAMES
from refunds.search.tiers import PAGE, Row, Tier, Wanted, all_orders, tiers_of
from refunds.search.typed import Needle, Query


@dataclass(slots=True)
class Found:
    """An order as lists and files show it, with the columns that tell why a search found it.

    Not an Order: fifty models with the columns that they lack cost as much as searching for the page does.
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
    # LOOKED_IN; only a search reads them.
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
    matched: list[str] = field(default_factory=list)  # labels of what a search matched: お客様名, 注文ID

    # What templates ask of an order, in its own words.
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
    """One page of orders, newest first within each tier.

    newer, older: cursors for the URL, "" where there is no such page.
    partial: whether there were more candidates than were looked at.
    hidden_by_filters: whether the page is empty, but would not be with all statuses, refunds and days let through.
    """

    orders: list[Found]
    newer: str = ""
    older: str = ""
    partial: bool = False
    hidden_by_filters: bool = False


NOTHING = Result([])  # nothing is hidden by a filter either, and nothing was left out


def list_orders(filters: Filters, cursor: str = "", *, limit: int = PAGE) -> Result:
    """Return a page of the orders that the filters leave. A cursor that is not ours counts as the first page."""
    # One branch for each status: an index on (status, key) gives one of them in the order of the key, but not two.
    statuses = STATUSES.get(filters.status, ())
    tier = all_orders(*(f"status = '{status}'" for status in statuses))
    return _page([tier], filters, cursor, limit, unfiltered=[all_orders()])


def find(text: str, *, filters: Filters = DEFAULT_FILTERS, cursor: str = "", limit: int = PAGE) -> Result:
    """Return a page of the orders that the typed text may mean.

    The text may be a name (either part first, with or without a blank), kana, a mail, an order id or its last
    characters, the shop's reference, or the whole id of a payment or of a refund. Of several words all have to match.
    Where that finds nothing, the text is read a second time: 様 and さん are then honorifics, a word before a colon is
    a label, and brackets separate words. A cursor that is not ours counts as the first page.
    """
    with plans_kept():
        for query in typed.readings(text):
            tiers = tiers_of(query)
            result = _page(tiers, filters, cursor, limit, unfiltered=tiers, columns=SEARCHED)
            if result != NOTHING:
                break
    _label(result.orders, query)
    return result


def whole_order_id(text: str) -> str | None:
    """Return the order id that the text is, without a label, brackets or a URL around it; else None.

    The order does not have to be known here. But for an id that is short, or that Caps Lock or a spreadsheet may have
    changed to one case, the orders that are known tell which one is meant; None where none or several may be.
    """
    if not (order_id := typed.order_id_of(text)):
        return None
    whole = typed.is_whole_id(order_id)
    if whole and typed.has_mixed_case(order_id):
        return order_id
    alike = Order.objects.filter(order_id_reversed=fold(order_id)[::-1])
    known = set(alike.values_list("order_id", flat=True))
    if order_id in known or (whole and not known):
        return order_id
    return known.pop() if len(known) == 1 else None


# --- Pages --------------------------------------------------------------------------------------------------


class _Position(NamedTuple):
    """Where a page begins: beside the order of this key in this tier, towards newer orders or older ones.

    Its text is the cursor of the page: `o1.18f3c…`.
    """

    newer: bool
    tier: int
    key: int

    @classmethod
    def of(cls, cursor: str) -> "_Position":
        """Return what the cursor tells; the first page for one that is not ours."""
        match = _CURSOR.fullmatch(cursor)
        return cls(match[1] == "n", int(match[2]), int(match[3], 16)) if match else FIRST_PAGE

    @classmethod
    def beside(cls, found: "_FoundRow", *, newer: bool) -> Self:
        tier, row = found
        return cls(newer, tier, row[0])

    def __str__(self) -> str:
        return f"{'n' if self.newer else 'o'}{self.tier}.{self.key:x}"


_CURSOR = re.compile(r"([no])([0-3])\.([0-7]?[0-9a-f]{1,15})")
FIRST_PAGE = _Position(newer=False, tier=0, key=2**63 - 1)


type _FoundRow = tuple[int, Row]  # the number of the tier that found it, and the row


def _page(
    tiers: Sequence[Tier],
    filters: Filters,
    cursor: str,
    limit: int,
    *,
    unfiltered: Sequence[Tier],
    columns: str = LISTED,
) -> Result:
    """Return the page of the tiers' orders at the cursor.

    unfiltered: the tiers that tell, without the filters, whether an empty page is so because of these.
    """
    position = _Position.of(cursor)
    # One row more than the page holds: it tells that there is another page.
    found, partial = _read(position, columns, tiers, filters, limit + 1)
    if position != FIRST_PAGE and len(found) <= (limit if position.newer else 0):
        # There is no page further on that side. So this is the first page, which is to be a full one.
        position = FIRST_PAGE
        found, partial = _read(position, columns, tiers, filters, limit + 1)
    shown = found[limit - 1 :: -1] if position.newer else found[:limit]
    hidden = False
    if not found:
        some, some_left_out = _read(FIRST_PAGE, "key", unfiltered, Filters(status=ANY_STATUS), 1)
        hidden, partial = bool(some), partial or (some_left_out and not some)
    return Result(
        orders=[Found(*row) for _tier, row in shown],
        newer=str(_Position.beside(shown[0], newer=True)) if position != FIRST_PAGE else "",
        older=str(_Position.beside(shown[-1], newer=False)) if len(found) > limit else "",
        partial=partial,
        hidden_by_filters=hidden,
    )


def _read(
    position: _Position, columns: str, tiers: Sequence[Tier], filters: Filters, limit: int
) -> tuple[list[_FoundRow], bool]:
    """Return up to `limit` rows from the position on, in the direction of reading, and whether they are partial."""
    conditions = Conditions.of(filters)
    found: list[_FoundRow] = []
    partial = False
    for number in range(position.tier, -1, -1) if position.newer else range(position.tier, len(tiers)):
        if number >= len(tiers) or len(found) == limit or (tiers[number].last_resort and found):
            continue
        at_hand = conditions
        if number == position.tier:
            at_hand = conditions.beside(position.key, newer=position.newer)
        rows, left_out = tiers[number].rows(Wanted(columns, at_hand, not position.newer, limit - len(found)))
        partial = partial or left_out
        found += [(number, row) for row in rows]
    return found, partial


# --- What of an order a search matched ----------------------------------------------------------------------

type _Labels = Sequence[tuple[str, Callable[[Found], Sequence[str]]]]

LABELS: tuple[tuple[Any, Callable[[Any], Sequence[str]]], ...] = (
    (gettext_lazy("お客様名"), attrgetter(*NAMES)),
    (gettext_lazy("フリガナ"), attrgetter(*KANA)),
    (gettext_lazy("メールアドレス"), lambda order: (order.email_folded,)),
)


def _label(orders: Sequence[Found], query: Query) -> None:
    """Set `matched` of each order to the labels of what the query matched in it."""
    if query.id_kind in {"payment", "refund"}:
        for order in orders:
            order.matched = [_("支払いID") if query.id_kind == "payment" else _("返金ID")]
        return
    labels = [(str(label), texts) for label, texts in LABELS]  # translated once a page
    for order in orders:
        order.matched = _matched(order, query.whole, labels) or list(
            dict.fromkeys(label for word in query.words for label in _matched(order, word, labels))
        )


def _matched(order: Found, needle: Needle, labels: _Labels) -> list[str]:
    """Return the labels of what begins with the needle, or is it; where nothing does, of what holds it."""
    folded = needle.folded
    begins, holds = [], []
    for label, texts in labels:
        holding = [text for text in texts(order) if folded in text]
        if holding:
            holds.append(label)
            if any([text.startswith(folded) for text in holding]):  # noqa: C419  (two or three; a generator is slower)
                begins.append(label)
    if order.reference_folded.startswith(needle.reference):
        begins.append(_("ショップ注文番号"))
    if (
        order.order_id == needle.typed
        or (needle.begins_order_id and order.order_id.startswith(needle.typed))
        or (needle.is_tail and order.order_id_reversed.startswith(folded[::-1]))
    ):
        begins.append(_("注文ID"))
    return begins or holds
