"""Needles -> branches of SQL -> rows, tier by tier.

    Exact       a column is the needle
    Candidates  a column begins with it, or the order id ends in it
    Within      it stands within the name or its kana, or is the mail's domain; see the note in models/orders.py
    Words       each of several needles is, or begins, a column, or is the mail's domain

A branch is a condition that one index answers. Every such index ends in the order's key (Note [Keys in time order] in
order_keys.py), so the rows of which a column equals something come newest first, however many there are. Rows of which
a column begins with something come in the order of that column: only so many of them are looked at, and the result
says where that left something out.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

from refunds.search import sql
from refunds.search.filters import Conditions
from refunds.search.sql import Parameters, either
from refunds.search.terms import LAST, Branch, Term, index_walks
from refunds.search.typed import Needle, Query

PAGE = 50  # orders
CANDIDATES = 1000  # orders that a branch may bring that does not give them in the order of their keys
WALK = 5000  # fragments looked at, from the newest on, where more than CANDIDATES match
FILTERED = 20_000  # orders of one name looked at for those that a filter leaves
SHORTEST_FRAGMENT = 2  # characters: an index of single ones would find too much

type Row = tuple[Any, ...]  # of an order, its key first


class Wanted(NamedTuple):
    """Which rows a page wants of a tier.

    columns: what to read of each order, its key first; "key" alone for whether there is any.
    conditions: the filters, and where the page begins.
    newest_first: the order of the rows; False where a page of newer orders is read, oldest first.
    limit: how many rows at most.
    """

    columns: str
    conditions: Conditions
    newest_first: bool
    limit: int

    @property
    def direction(self) -> str:
        return "DESC" if self.newest_first else "ASC"

    @property
    def parameters(self) -> Parameters:
        return self.conditions.parameters | {"limit": self.limit}


class Tier(Protocol):
    @property
    def last_resort(self) -> bool:
        """Whether the tier is asked only where those before it find nothing."""
        ...

    def rows(self, wanted: Wanted) -> tuple[list[Row], bool]:
        """Return the wanted rows in their order, and whether a bound left something out."""
        ...


def all_orders(*conditions: str) -> Tier:
    """Return the tier of all orders that meet one of the conditions, each of which an index answers."""
    return _Exact(conditions or ("TRUE",), {})


def tiers_of(query: Query) -> list[Tier]:
    """Return the query's tiers, in the order in which they fill a page; [] where there is nothing to look for."""
    if not query.whole.folded:
        return []
    if query.id_kind in _OWNERS:
        return [_Exact((f"key = ({_OWNERS[query.id_kind]})",), {"id": query.whole.typed})]
    term = Term("whole", query.whole)
    parameters = term.parameters()
    equal = tuple(branch.condition for branch in term.equal())
    starts_column = term.starts_column()
    tiers: list[Tier] = [
        _Exact(equal, parameters, bounded=True),
        _longer_than(term, f"NOT {either(equal)}", starts_column, parameters),
    ]
    if len(query.whole.folded) >= SHORTEST_FRAGMENT:
        tiers.append(_Within(query.whole, f"NOT {starts_column}", parameters))
    if query.words and not all(word.domain for word in query.words):
        tiers.append(_Words(query.words))
    return tiers


# The order of a payment's id, and of a refund's.
_OWNERS = {
    "payment": "SELECT order_id FROM refunds_payment WHERE id = %(id)s",
    "refund": "SELECT order_id FROM refunds_payment WHERE id = "
    "(SELECT payment_id FROM refunds_smartpayrefund WHERE id = %(id)s)",
}


def _longer_than(term: Term, not_equal: str, starts_column: str, parameters: Parameters) -> "_Candidates":
    """Return the tier of orders of which a column begins with the term and none is equal to it."""
    fallback = None
    if apart := term.longer_apart():
        fallback = _Candidates(tuple(apart), f"{starts_column} AND {not_equal}", parameters)
    return _Candidates(tuple(term.longer()), not_equal, parameters, fallback=fallback)


# --- Tiers --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Exact:
    """Branches whose rows an index gives in the order of their keys: no row is left out, however many there are.

    bounded: whether at most FILTERED rows of a branch are looked at where narrow filters are set. A name may be that of
        many people, few of whose orders the filters leave.
    """

    branches: tuple[str, ...]
    parameters: Parameters
    bounded: bool = False
    last_resort: bool = False

    def rows(self, wanted: Wanted) -> tuple[list[Row], bool]:
        if self.bounded and wanted.conditions.narrow:
            return self._filtered_rows(wanted)
        sources = [f"refunds_order WHERE {branch} AND {wanted.conditions}" for branch in self.branches]
        return sql.fetch(self._statement(sources, wanted), self.parameters | wanted.parameters), False

    def _filtered_rows(self, wanted: Wanted) -> tuple[list[Row], bool]:
        """Look at ever more rows of each branch, until the filters leave a page of them or FILTERED are looked at."""
        values = self.parameters | wanted.parameters
        conditions, direction = wanted.conditions, wanted.direction
        sources = [
            f"(SELECT key, status, refund_status FROM refunds_order WHERE {branch} AND {conditions.key} "
            f"ORDER BY key {direction} LIMIT %(walk)s) AS walked WHERE {conditions.others}"
            for branch in self.branches
        ]
        statement = self._statement(sources, wanted)
        walk = WALK // 10
        while True:
            found = sql.fetch(statement, values | {"walk": walk})
            full = len(found) == wanted.limit
            if full and not self._rows_before(found[-1][0], wanted, walk):
                return found, False
            if walk == FILTERED:
                break
            walk = min(_growth(wanted.limit, found) * walk, FILTERED)
        return found, full or self._rows_beyond(conditions.key, FILTERED, values)

    def _rows_before(self, key: int, wanted: Wanted, walk: int) -> bool:
        """Whether a branch has more rows before the one of this key than were walked.

        Those not walked may belong on the page.
        """
        before = f"{wanted.conditions.key} AND key {'>' if wanted.newest_first else '<'} %(last)s"
        return self._rows_beyond(before, walk, self.parameters | wanted.parameters | {"last": key})

    def _rows_beyond(self, key_condition: str, walk: int, values: Parameters) -> bool:
        """Whether a branch has more than `walk` rows that meet the condition."""
        walks = [
            f"SELECT 1 FROM refunds_order WHERE {branch} AND {key_condition} LIMIT %(walk)s + 1"
            for branch in self.branches
        ]
        return sql.any_exceeds(walk, walks, values | {"walk": walk})

    def _statement(self, sources: Sequence[str], wanted: Wanted) -> str:
        direction = wanted.direction
        branches = " UNION ".join(
            f"SELECT key FROM (SELECT key FROM {source} ORDER BY key {direction} LIMIT %(limit)s) AS branch{number}"
            for number, source in enumerate(sources)
        )
        return _in_order(
            f"SELECT key FROM ({branches}) AS found ORDER BY key {direction} LIMIT %(limit)s", wanted
        )


# A row that a branch brings: the number of the branch, the order's key, and whether the order may match as far as its
# key tells. It stays the tuple that the database gives, because there may be thousands.
type _Candidate = tuple[int, int, bool]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Branches of which a bounded number of rows is looked at, those of all branches in the order of their keys.

    condition: what a candidate's order has to meet.
    key_condition: what its key has to meet; no row is read for one that does not.
    fallback: another way to the same orders, asked where the bound left something out and the page is not full.
    """

    branches: tuple[Branch, ...]
    condition: str
    parameters: Parameters
    key_condition: str = "TRUE"
    fallback: "_Candidates | None" = None
    last_resort: bool = False

    def rows(self, wanted: Wanted) -> tuple[list[Row], bool]:
        return self.rows_among(wanted, CANDIDATES)

    def rows_among(self, wanted: Wanted, most: int) -> tuple[list[Row], bool]:
        """As rows(), with at most so many candidates of a branch."""
        found, partial = self._rows_without_fallback(wanted, most)
        if not partial or not self.fallback or len(found) == wanted.limit:
            return found, partial
        others, partial = self.fallback.rows_among(wanted, most)
        if not partial:
            return others, False
        # The rows of both are right. Both are partial, so the next page may begin only after the rows of both. An order
        # that both found may have changed in between: only the key tells that it is the same.
        rows = {row[0]: row for row in (*found, *others)}
        keys = sorted(rows, reverse=wanted.newest_first)[: wanted.limit]
        return [rows[key] for key in keys], True

    def _rows_without_fallback(self, wanted: Wanted, most: int) -> tuple[list[Row], bool]:
        values = self.parameters | wanted.parameters | {"candidates": most}
        candidates: list[_Candidate] = sql.fetch(self._walk(wanted), values)
        found = self._matching_rows(candidates, wanted, values)
        counts = Counter(branch for branch, _key, _may_match in candidates)
        truncated = {branch for branch, rows in counts.items() if rows > most}
        if not truncated or len(found) < wanted.limit or any(self.branches[one].column for one in truncated):
            return found, bool(truncated)
        # Branches in the order of their keys lack nothing on this page if all were walked as far as its last row.
        last = found[-1][0]
        reached = {
            branch
            for branch, key, _may_match in candidates
            if (key <= last if wanted.newest_first else key >= last)
        }
        return found, not truncated <= reached

    def _walk(self, wanted: Wanted) -> str:
        """A statement for the candidates of all branches."""
        key = wanted.conditions.key
        candidates = " UNION ALL ".join(
            f"SELECT * FROM (SELECT {number} AS branch, key FROM refunds_order WHERE {condition} "
            + (
                f"ORDER BY {column} DESC, key DESC"
                if column
                else f"AND {key} ORDER BY key {wanted.direction}"
            )
            + f" LIMIT %(candidates)s + 1) AS branch{number}"
            for number, (condition, column) in enumerate(self.branches)
        )
        return f"SELECT branch, key, {key} AND {self.key_condition} FROM ({candidates}) AS candidate"

    def _matching_rows(
        self, candidates: Sequence[_Candidate], wanted: Wanted, values: Parameters
    ) -> list[Row]:
        """Read the candidates' rows, batch by batch, until those that match fill the page."""
        keys = sorted(
            {key for _branch, key, may_match in candidates if may_match}, reverse=wanted.newest_first
        )
        found: list[Row] = []
        read, batch_size = 0, _first_batch(wanted.limit)
        while keys[read:] and len(found) < wanted.limit:
            batch = keys[read : read + batch_size]
            orders = _orders(wanted.columns, _literals(batch))
            statement = f"{orders} AND {self.condition} AND {wanted.conditions.others}"
            matching = {row[0]: row for row in sql.fetch(statement, values)}
            found += [matching[key] for key in batch if key in matching]
            read += len(batch)
            # At least as many again; more where few have matched, and then a quarter more than that predicts.
            batch_size = max(read, read * (wanted.limit - len(found)) // max(len(found), 1) * 5 // 4)
        return found[: wanted.limit]


@dataclass(frozen=True, slots=True)
class _Words:
    """Orders that match each of several words: one word brings the candidates, and the others filter them."""

    words: tuple[Needle, ...]
    last_resort: bool = True

    def rows(self, wanted: Wanted) -> tuple[list[Row], bool]:
        longest = sorted((word for word in self.words if not word.domain), key=lambda word: -len(word.folded))
        # As a rule, a few candidates of the longest word fill the page or are all that there are. Otherwise it is worth
        # finding a word that has few.
        found, partial = self.candidates(longest[0]).rows_among(
            wanted, min(8 * max(wanted.limit, PAGE), CANDIDATES)
        )
        if not partial:
            return found, False
        rare = next((word for word in longest if self._is_rare(word)), longest[0])
        return self.candidates(rare).rows(wanted)

    def candidates(self, first: Needle) -> _Candidates:
        """The candidates that this word brings, filtered by the others."""
        term = Term("first", first)
        others = [
            Term(f"other{number}", word)
            for number, word in enumerate(word for word in self.words if word is not first)
        ]
        parameters = term.parameters()
        for other in others:
            parameters |= other.parameters()
        condition = " AND ".join(other.matches() for other in others) or "TRUE"
        # One domain rules out most candidates by their keys. Another would cost a look for each candidate as well.
        key_condition = next((other.key_may_match() for other in others if other.needle.domain), "TRUE")
        branches = (*term.equal(), *term.longer())
        whole_ranges = _Candidates(branches, condition, parameters, key_condition)
        if not (apart := term.longer_apart()):
            return whole_ranges
        # Somebody who types several words means parts of names, as a rule: those are tried first.
        return _Candidates(
            (*term.equal(), *apart),
            f"{condition} AND {term.starts_column()}",
            parameters,
            key_condition,
            fallback=whole_ranges,
        )

    def _is_rare(self, word: Needle) -> bool:
        """Whether all candidates of the word would be looked at."""
        term = Term("word", word)
        walks = index_walks([*term.equal(), *term.longer()])
        return not sql.any_exceeds(CANDIDATES, walks, term.parameters() | {"candidates": CANDIDATES})


@dataclass(frozen=True, slots=True)
class _Within:
    """Fragments that begin with the needle: all of them where they are few, else those among the newest fragments.

    without: a condition that keeps out the orders of earlier tiers. It is asked once for each order found, and never
        decides how the database finds them.
    """

    needle: Needle
    without: str
    parameters: Parameters
    last_resort: bool = False

    def rows(self, wanted: Wanted) -> tuple[list[Row], bool]:
        values = self.parameters | wanted.parameters | self._range()
        matching = sql.count(f"refunds_fragment WHERE {_FRAGMENT_MATCHES}", values, up_to="candidates")
        if not matching:
            return [], False
        key, direction = wanted.conditions.key, wanted.direction
        walked = (
            f"(SELECT key, text FROM refunds_fragment WHERE start = %(start)s AND {key} "
            f"ORDER BY key {direction} LIMIT %(walk)s + 1) AS walked"
        )
        if matching <= CANDIDATES:
            source = f"refunds_fragment WHERE {_FRAGMENT_MATCHES} AND {key}"
        else:
            source = f"{walked} WHERE {_FRAGMENT_MATCHES}"
        found, complete = self._widening_rows(self._statement(source, wanted), wanted, values, matching)
        if complete:
            return found, False
        partial = sql.count(walked, values, up_to="walk") > WALK
        return found, partial or (
            sql.count(f"{walked} WHERE {_FRAGMENT_MATCHES}", values, up_to="candidates") > CANDIDATES
        )

    def _range(self) -> Parameters:
        """The range of fragments that begin with the needle, or, of a domain without its sign, are its mails'."""
        domain = self.needle.domain
        text = domain or self.needle.folded
        return {
            "start": text[:2],
            "text": text,
            "text_to": text if domain and text != self.needle.folded else text + LAST,
            "candidates": CANDIDATES,
            "walk": WALK,
        }

    def _widening_rows(
        self, statement: str, wanted: Wanted, values: Parameters, matching: int
    ) -> tuple[list[Row], bool]:
        """Return what ever longer walks find, and whether they end in a full page or with all matching fragments.

        A short walk fills the page, but where a filter, or another text that begins alike, leaves few of it.
        """
        most, walk = min(_first_batch(wanted.limit), CANDIDATES), max(WALK // 10, 1)
        while True:
            found = sql.fetch(statement, values | {"candidates": most, "walk": walk})
            if len(found) == wanted.limit or matching <= most:
                return found, True
            if (most, walk) == (CANDIDATES, WALK):
                return found, False
            growth = _growth(wanted.limit, found)
            most, walk = min(growth * most, CANDIDATES), min(growth * walk, WALK)

    def _statement(self, source: str, wanted: Wanted) -> str:
        direction, others = wanted.direction, wanted.conditions.others
        near = f"SELECT key FROM {source} ORDER BY key {direction} LIMIT %(candidates)s"
        # One look at each order, by its key. For a join, PostgreSQL may walk all orders beside the few.
        fits = f"SELECT TRUE FROM refunds_order WHERE key = near.key AND {others} AND {self.without}"
        return _in_order(
            f"WITH near AS MATERIALIZED ({near}) SELECT DISTINCT key FROM near WHERE ({fits}) "
            f"ORDER BY key {direction} LIMIT %(limit)s",
            wanted,
        )


_FRAGMENT_MATCHES = "text >= %(text)s AND text <= %(text_to)s"


def _first_batch(limit: int) -> int:
    """How many candidates fill a page as a rule: a third more than it holds, since some are unpaid or do not match."""
    return max(limit, PAGE) * 4 // 3


def _growth(limit: int, found: Sequence[Row]) -> int:
    """How many times as much to look at for a full page: at least twice, else a quarter more than `found` predicts."""
    return max(2, 5 * limit // (4 * max(len(found), 1)))


def _orders(columns: str, keys: str) -> str:
    """A statement, open at its end, for the orders of the keys, which are a list or a statement."""
    return f"SELECT {columns} FROM refunds_order WHERE key IN ({keys})"


def _in_order(keys: str, wanted: Wanted) -> str:
    """A statement for the wanted columns of the orders whose keys a statement gives in the wanted order."""
    if wanted.columns == "key":
        return keys
    return f"{_orders(wanted.columns, keys)} ORDER BY key {wanted.direction}"


def _literals(keys: Sequence[int]) -> str:
    """Keys as text for a statement. They are our numbers; as parameters they take longer to pass than to look up."""
    return ", ".join(map(str, keys))
