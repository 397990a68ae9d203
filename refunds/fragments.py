"""An order's names and mail -> the texts by which their middle is found. See Note [Fragments of names] in models.py."""

from collections.abc import Iterable, Mapping

from refunds.models import Fragment, Order


def of(row: Order) -> frozenset[str]:
    """What follows each place inside the name and its kana, two characters at least, and `@domain` of the mail.

    Not from where the given name begins: what begins with that is found by its own index.
    """
    texts = set()
    for name, given in (
        (row.name_folded, row.given_folded),
        (row.kana_folded, row.given_kana_folded),
    ):
        texts |= {name[at:] for at in range(1, len(name) - 1)} - {given}
    _local, at, domain = row.email_folded.rpartition("@")
    return frozenset(texts | {at + domain} if at and domain else texts)


def write(rows: Iterable[Order], before: Mapping[int, frozenset[str]]) -> None:
    """Make the rows' fragments what `of()` says. `before`: what they were, by key. Rows that exist are locked."""
    new: list[Fragment] = []
    gone: list[tuple[str, int]] = []
    for row in rows:
        had, has = before.get(row.key, frozenset()), of(row)
        new += [Fragment(text=text, key=row.key) for text in has - had]
        gone += [(text, row.key) for text in had - has]
    if gone:
        Fragment.objects.filter(pk__in=gone).delete()
    Fragment.objects.bulk_create(new)
