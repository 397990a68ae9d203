"""Keyset paging: the first page of a list costs as much as the last, however long the list is. Nothing counts rows."""

import uuid
from datetime import UTC, datetime

from django.db.models import Model, Q, QuerySet
from django.http import QueryDict

PAGE = 50  # rows


def newest_first[Row: Model](
    rows: QuerySet[Row], moment: str, cursor: str, size: int = PAGE
) -> tuple[list[Row], str, str]:
    """Return a page of rows, newest first, and the cursors of the newer and the older page ("" at an end of the list).

    moment: the column of time to order by; rows of one moment are ordered by their UUIDs.
    cursor: `older~2026-01-31T09:00:00+00:00~UUID` or `newer~…`. One that cannot be read counts as the first page.
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
    """Return the query string of this page at another cursor; "" for the cursor ""."""
    return f"?{filters(query, page=cursor)}" if cursor else ""


def filters(query: QueryDict, **other: str) -> str:
    """Return the query string of the list's filters, without its page, and with the other values given."""
    query = query.copy()
    query.pop("page", None)
    query.update(other)
    return query.urlencode()
