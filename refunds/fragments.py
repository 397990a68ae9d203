"""An order's names and mail -> the texts by which their middle is found. See Note [Fragments of names] in models.py."""

from collections.abc import Iterable, Mapping
from itertools import batched

from django.db import connection

from refunds.models import Fragment, Order

type Sources = tuple[str, str, str, str, str]


def sources(row: Order) -> Sources:
    """What of an order its fragments are made of."""
    return row.name_folded, row.given_folded, row.kana_folded, row.given_kana_folded, row.email_folded


def of(row: Order) -> set[str]:
    """What follows each place inside the name and its kana, two characters at least, and `@domain` of the mail.

    Not from where the given name begins: what begins with that is found by its own index.
    """
    return _of(*sources(row))


def _of(name: str, given: str, kana: str, given_kana: str, email: str) -> set[str]:
    texts = set()
    for full, second in ((name, given), (kana, given_kana)):
        texts |= {full[at:] for at in range(1, len(full) - 1)} - {second}
    _local, at, domain = email.rpartition("@")
    return texts | {at + domain} if at and domain else texts


def write(rows: Iterable[Order], before: Mapping[int, Sources]) -> None:
    """Make the rows' fragments what `of()` says. `before`: their sources as they were. Rows that exist are locked."""
    new: list[tuple[str, int]] = []
    gone: list[tuple[str, int]] = []
    for row in rows:
        was = before.get(row.key)
        if was == sources(row):
            continue
        had, has = _of(*was) if was else set(), of(row)
        new += [(text, row.key) for text in has - had]
        gone += [(text, row.key) for text in had - has]
    for some in batched(gone, 1000):  # a statement takes 65,535 parameters
        Fragment.objects.filter(pk__in=some).delete()
    if new:
        with (
            connection.cursor() as cursor
        ):  # not bulk_create(), which compiles its statement anew for each page
            cursor.executemany("INSERT INTO refunds_fragment (text, key) VALUES (%s, %s)", new)
