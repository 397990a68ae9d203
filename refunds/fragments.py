"""An order's names and mail -> its fragments, by which the middle of a name and the domain of a mail are found.

田中太郎 has the fragment 中太郎; 太郎 is found as a given name. See Note [Fragments of names] in models/orders.py.
"""

from collections.abc import Iterable, Mapping
from itertools import batched
from operator import itemgetter
from typing import Any

from refunds.models import Fragment
from refunds.rows import insert

type Sources = tuple[str, str, str, str, str]

# The columns of an order that its fragments are made of, in the order of _of().
sources = itemgetter("name_folded", "given_folded", "kana_folded", "given_kana_folded", "email_folded")


def of(row: Mapping[str, Any]) -> set[str]:
    """Return the fragments of an order: each ending of its name and of its kana that has two characters or more, and
    `@domain` of its mail.

    The whole name and the given name are none: their own columns are searched by what they begin with.
    """
    return _of(*sources(row))


def _of(name: str, given: str, kana: str, given_kana: str, email: str) -> set[str]:
    texts = {name[at:] for at in range(1, len(name) - 1)}
    texts.discard(given)
    more = {kana[at:] for at in range(1, len(kana) - 1)}
    more.discard(given_kana)
    _local, at, domain = email.rpartition("@")
    if at and domain:
        more.add(at + domain)
    return texts | more


def write(rows: Iterable[Mapping[str, Any]], before: Mapping[int, Sources]) -> None:
    """Make the fragments in the database equal to of() of each row.

    before: by key, the sources as the fragments in the database were made of them; none for a new order. The caller has
        locked the orders that exist already.
    """
    new: list[tuple[str, int]] = []
    gone: list[tuple[str, int]] = []
    for row in rows:
        key: int = row["key"]
        was = before.get(key)
        if was == sources(row):
            continue
        had, has = _of(*was) if was else set(), of(row)
        new += [(text, key) for text in has - had]
        gone += [(text, key) for text in had - has]
    for some in batched(gone, 1000):  # a statement takes 65,535 parameters
        Fragment.objects.filter(pk__in=some).delete()
    if new:
        insert("refunds_fragment", ("text", "key"), new)
