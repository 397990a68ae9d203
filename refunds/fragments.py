"""An order's names and mail -> the texts by which their middle is found. See Note [Fragments of names] in models.py."""

from collections.abc import Iterable, Mapping
from itertools import batched
from operator import itemgetter
from typing import Any

from refunds.models import Fragment
from refunds.rows import insert

type Sources = tuple[str, str, str, str, str]

# What of an order its fragments are made of.
sources = itemgetter("name_folded", "given_folded", "kana_folded", "given_kana_folded", "email_folded")


def of(row: Mapping[str, Any]) -> set[str]:
    """What follows each place inside the name and its kana, two characters at least, and `@domain` of the mail.

    Not from where the given name begins: what begins with that is found by its own index.
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
    """Make the rows' fragments what `of()` says. `before`: their sources as they were. Rows that exist are locked."""
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
