"""What is remembered of searches: for the person who typed them, and, as keyed hashes, for the audit trail."""

from datetime import UTC, datetime, timedelta
from operator import itemgetter
from typing import Any, NamedTuple

from django.db import connection
from django.utils import timezone

from dashboard.models import User
from refunds import audit
from refunds.folding import fold
from refunds.models import SavedSearch, Search, SyncCursor
from refunds.search import sql
from refunds.search.typed import as_typed

RECENT = 5  # searches
KEPT = timedelta(days=30)  # how long what was typed is kept


class Saved(NamedTuple):
    """保存した検索, as pages offer it: its name, the search that it narrows ("" for none) and its filters."""

    name: str
    search_id: str
    filters: str


class Remembered(NamedTuple):
    """What a list shows beside its orders.

    asked: the search of the given id, whoever typed it, with only its id, text and person; None for an unknown id.
    recent: the person's last searches as (id, text), newest first, each text once and without its own beginnings,
        which were sent while it was typed.
    saved: the searches that the person keeps, by name.
    read_at: when a page of orders was last read from Smartpay; None before the first.
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
"""


def remembered(person: User, search_id: str = "") -> Remembered:
    """Return what a list shows beside its orders. One statement asks for all of it, since every list needs it."""
    values = {
        "asked": search_id if search_id.isprintable() else "",
        "person": person.pk,
        "since": connection.ops.adapt_datetimefield_value(timezone.now() - KEPT),
    }
    rows: dict[str, list[Any]] = {"asked": [], "recent": [], "saved": [], "read": []}
    for kind, *row in sql.fetch(REMEMBERED, values):
        rows[kind].append(row)
    asked = [Search(id=pk, person_id=owner, text=text) for pk, text, _filters, owner, _at in rows["asked"]]
    saved = sorted(Saved(name, pk, filters) for pk, name, filters, _owner, _at in rows["saved"])
    read_at: datetime | None = rows["read"][0][-1] if rows["read"] else None
    if read_at and read_at.tzinfo is None:  # SQLite's moments are in UTC without saying so
        read_at = read_at.replace(tzinfo=UTC)
    return Remembered(asked[0] if asked else None, _recent(rows["recent"]), saved, read_at)


def _recent(rows: list[Any]) -> list[tuple[str, str]]:
    recent: list[tuple[str, str]] = []
    for pk, text, _filters, _owner, _at in sorted(rows, key=itemgetter(-1), reverse=True):
        if len(recent) < RECENT and not any(later.startswith(text) for _pk, later in recent):
            recent.append((pk, text))
    return recent


def words(search: Search | None) -> str:
    """Return the keyed hash that the trail holds of a search, "" for none.

    Equal searches have equal hashes, and nobody without the site's secret can guess what was typed.
    """
    return audit.keyed_hash(fold(search.text)) if search else ""


def hashes(text: str) -> list[str]:
    """Return what words() says of a search for this text, under the site's present secret and each former one.

    Returns [] for a text in which there is nothing to look for.
    """
    return audit.keyed_hashes(folded) if (folded := fold(as_typed(text))) else []
