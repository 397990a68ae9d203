"""Pages by keyset: a list that grows costs the same on its first page and on its last, and nothing counts it."""

import uuid
from datetime import UTC, datetime

from django.db.models import Model, Q, QuerySet
from django.http import QueryDict

PAGE = 50


def newest_first[Row: Model](
    rows: QuerySet[Row], moment: str, cursor: str, size: int = PAGE
) -> tuple[list[Row], str, str]:
    """One page of rows by this column and their UUID, and the cursors of its neighbours ("" at an end).

    A cursor that can't be read is the first page.
    """
    way, _sep, place = cursor.partition("~")
    since, _sep, key = place.partition("~")
    at: datetime | None = None
    try:
        at, key = _moment(since), str(uuid.UUID(key))
    except (ValueError, OverflowError):
        way = ""
    if way == "older":
        rows = rows.filter(Q((f"{moment}__lt", at)) | Q((moment, at), id__lt=key))
    elif way == "newer":
        rows = rows.filter(Q((f"{moment}__gt", at)) | Q((moment, at), id__gt=key))
    order = (moment, "id") if way == "newer" else (f"-{moment}", "-id")
    found = list(rows.order_by(*order)[: size + 1])
    more, found = len(found) > size, found[:size]
    if way == "newer":
        found.reverse()
    if not found:
        return [], "", ""
    first, last = (f"{getattr(row, moment).isoformat()}~{row.pk}" for row in (found[0], found[-1]))
    has_newer = more if way == "newer" else bool(way)
    has_older = True if way == "newer" else more
    return found, f"newer~{first}" if has_newer else "", f"older~{last}" if has_older else ""


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError("Cursors of ours name their zone.")
    return at.astimezone(UTC)  # here, where a year 0 can be caught, and not in the database's driver


def url(query: QueryDict, cursor: str) -> str:
    """This page's address at another place of the list; "" without one."""
    return f"?{filters(query, page=cursor)}" if cursor else ""


def filters(query: QueryDict, **other: str) -> str:
    """What the list is narrowed by, as it stands in an address."""
    query = query.copy()
    query.pop("page", None)
    query.update(other)
    return query.urlencode()
