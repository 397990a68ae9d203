"""How a search speaks to the database: beside the ORM, with statements that are made of our own names.

A statement holds names of columns, names of parameters and our own keys. What somebody typed is always a parameter.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from django.conf import settings
from django.db import connection
from psycopg.pq import TransactionStatus

type Parameters = dict[str, Any]


def fetch(statement: str, parameters: Parameters) -> list[Any]:
    """Return all rows of the statement. Every statement of a search is sent by this function."""
    with connection.cursor() as cursor:
        cursor.execute(statement, parameters)
        return list(cursor.fetchall())


def count(source: str, parameters: Parameters, *, up_to: str) -> int:
    """Return how many rows `FROM source` has, counted up to one more than the parameter named by `up_to`."""
    statement = f"SELECT sum(1) FROM (SELECT 1 FROM {source} LIMIT %({up_to})s + 1) AS counted"
    [(rows,)] = fetch(statement, parameters)
    return int(rows or 0)


def any_exceeds(bound: int, statements: Sequence[str], parameters: Parameters) -> bool:
    """Return whether one of the statements has more rows than the bound; each has to end soon after it by itself."""
    counts = " UNION ALL ".join(
        f"SELECT sum(1) FROM ({statement}) AS counted{number}" for number, statement in enumerate(statements)
    )
    return any((rows or 0) > bound for (rows,) in fetch(counts, parameters))


def either(conditions: Sequence[str]) -> str:
    """Return the condition that one of the conditions holds."""
    return "(" + " OR ".join(f"({condition})" for condition in conditions) + ")"


@contextmanager
def plans_kept() -> Iterator[None]:
    """Have PostgreSQL plan each statement once per connection.

    Planning a statement anew for its values takes longer than everything else in a search. Only a search can do
    without: one plan serves all values of its statements, while other statements have an index for some values only.
    """
    if connection.vendor != "postgresql" or settings.DATABASE_POOLED:
        yield
        return
    with connection.cursor() as cursor:
        driver = cursor.connection
        # Not SET LOCAL, which needs a transaction: BEGIN and COMMIT would be two more round trips.
        cursor.execute("SET plan_cache_mode = force_generic_plan")
        before, driver.prepare_threshold = driver.prepare_threshold, 1  # prepared at the second execution
        try:
            yield
        finally:
            driver.prepare_threshold = before
            # A transaction that failed is rolled back, and this setting with it.
            if driver.info.transaction_status != TransactionStatus.INERROR:
                cursor.execute("SET plan_cache_mode = DEFAULT")
