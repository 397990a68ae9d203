"""A needle in SQL: the columns that are searched, and the conditions on them for one needle.

A term makes two kinds of SQL. Its branches find orders, each by an index: `family_folded = '田中'`. Its conditions
judge an order that other branches have found: whether any of its columns is 田中 or begins with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from refunds.search.sql import Parameters, either
from refunds.search.typed import Needle

NAMES = ("family_folded", "given_folded", "name_folded", "name_turned_folded")
KANA = ("family_kana_folded", "given_kana_folded", "kana_folded", "kana_turned_folded")
FOLDED = (*NAMES, *KANA, "email_folded", "reference_folded")  # columns that hold folded text
PARTS = (*NAMES[:2], *KANA[:2])  # family and given names
# Full names begin with the family name, and turned ones with the given name: these find what PARTS begin with too.
BEGINNING = tuple(column for column in FOLDED if column not in PARTS)
LOOKED_IN = (*FOLDED, "order_id_reversed")
LAST = "\U0010ffff"  # nothing sorts after it: what begins with q lies between q and q + LAST


class Branch(NamedTuple):
    """A condition on orders that one index answers.

    column: the column in whose order the index gives the rows; "" where it gives them in the order of their keys.
    """

    condition: str
    column: str = ""


@dataclass(frozen=True, slots=True)
class Term:
    """A needle in SQL.

    The names of its parameters begin with `name`, so that one statement may hold several terms.
    """

    name: str
    needle: Needle

    def parameters(self) -> Parameters:
        name, needle = self.name, self.needle
        parameters = {
            name: needle.folded,
            f"{name}_to": needle.folded + LAST,
            f"{name}_reference": needle.reference,
            f"{name}_reference_to": needle.reference + LAST,
            f"{name}_typed": needle.typed,
            f"{name}_typed_to": needle.typed + LAST,
            f"{name}_tail": needle.folded[::-1],
            f"{name}_tail_to": needle.folded[::-1] + LAST,
            f"{name}_domain": needle.domain,
        }
        return parameters | {f"{name}_{len(head)}": head for head in needle.heads}

    def equal(self) -> list[Branch]:
        """Branches for the orders of which a column is the needle."""
        return [
            Branch(f"order_id = %({self.name}_typed)s"),
            *(Branch(f"{column} = %({self._parameter(column)})s") for column in FOLDED),
        ]

    def longer(self) -> list[Branch]:
        """Branches for the orders of which a column begins with the needle and is longer."""
        return [*self._ranges(BEGINNING), *self._ids()]

    def longer_apart(self) -> list[Branch]:
        """Other branches for the same orders and a few more; none for a needle that has no heads.

        Of the full names that begin with 田中, nearly all are those of the many 田中, whom equal() finds. They would be
        all the candidates of longer(). The others are found beside them here: a family that begins with 田中 and is
        longer, as 田中丸, and everybody of the family 田, of whom some have a given name that begins with 中.
        """
        heads = self.needle.heads
        if not heads:
            return []
        others = [column for column in BEGINNING if column not in {*NAMES, *KANA}]
        apart = [Branch(f"{part} = %({self.name}_{len(head)})s") for part in PARTS for head in heads]
        return [*self._ranges([*PARTS, *others]), *apart, *self._ids()]

    def starting(self) -> list[Branch]:
        """Fewer branches than equal() and longer() together, for the same orders."""
        return [
            *self._ranges(BEGINNING, ">="),
            *self._ids(),
            Branch(f"order_id = %({self.name}_typed)s"),
        ]

    def starts_column(self) -> str:
        """The condition for an order at hand that a column is the needle, or begins with it."""
        return either([branch.condition for branch in self.starting()])

    def matches(self) -> str:
        """The condition for an order at hand that a column begins with the needle, or the mail is of this domain."""
        conditions = [self.starts_column()]
        if self.needle.domain:
            domain = f"%({self.name}_domain)s"
            conditions.append(f"substr(email_folded, length(email_folded) - length({domain}) + 1) = {domain}")
        return either(conditions)

    def key_may_match(self) -> str:
        """The condition for a `candidate`, of which only the key is at hand, that its order may meet matches().

        Holds for every order of the domain, and for all others as soon as any order at all begins with the needle.
        """
        of_domain = (
            f"SELECT TRUE FROM refunds_fragment WHERE text = %({self.name}_domain)s AND key = candidate.key"
        )
        any_starting = " UNION ALL ".join(index_walks(self.starting()))
        return f"(({of_domain}) OR EXISTS ({any_starting}))"

    def _parameter(self, column: str) -> str:
        """The name of the parameter that the column is compared with."""
        return f"{self.name}_reference" if column == "reference_folded" else self.name

    def _ranges(self, columns: Sequence[str], above: str = ">") -> list[Branch]:
        return [
            Branch(f"{column} {above} %({start})s AND {column} <= %({start}_to)s", column)
            for column, start in ((column, self._parameter(column)) for column in columns)
        ]

    def _ids(self) -> list[Branch]:
        name, branches = self.name, []
        if self.needle.begins_order_id:
            condition = f"order_id > %({name}_typed)s AND order_id <= %({name}_typed_to)s"
            branches.append(Branch(condition, "order_id"))
        if self.needle.is_tail:
            column = "order_id_reversed"
            condition = f"{column} >= %({name}_tail)s AND {column} <= %({name}_tail_to)s"
            branches.append(Branch(condition, column))
        return branches


def index_walks(branches: Sequence[Branch]) -> list[str]:
    """For each branch, a statement that walks its index as far as candidates are looked at, and one row further."""
    return [
        f"SELECT key FROM (SELECT key FROM refunds_order WHERE {condition} "
        f"ORDER BY {column or 'key'} DESC LIMIT %(candidates)s + 1) AS walk{number}"
        for number, (condition, column) in enumerate(branches)
    ]
