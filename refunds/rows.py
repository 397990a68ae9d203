"""Reads and writes a page of a table's rows as dicts by column. The mirror uses this instead of the ORM.

The ORM makes a model of each row and compiles each statement anew, which takes as long as the database needs to execute
it. Here, a page of ids is one parameter, and the text of a statement is always the same.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any

from django.db import connection, models

from refunds.database_values import storable

type Row = dict[str, Any]

# Values of these fields need no conversion for any driver.
AS_IT_IS = (models.CharField, models.TextField, models.IntegerField, models.BooleanField)


class Table:
    """A model's table: all columns but the generated ones. Each column has to have the name of its attribute."""

    def __init__(self, model: type[models.Model]) -> None:
        fields = [field for field in model._meta.concrete_fields if not field.generated]
        self.name = model._meta.db_table
        self.key = model._meta.pk.attname
        self.columns = [field.attname for field in fields]
        self.blank: Row = {field.attname: field.get_default() for field in fields}
        # In characters, of those text columns that have a limit.
        self.lengths = {
            field.attname: field.max_length
            for field in fields
            if isinstance(field, models.CharField) and field.max_length
        }
        self._special = [field for field in fields if not isinstance(field, AS_IT_IS)]

    def held(self, column: str, values: Iterable[Any]) -> set[Any]:
        """Return those of the values that are in the column."""
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {column} FROM {self.name} WHERE {in_list_sql(column)}",  # noqa: S608  (names of ours)
                [list_param(values)],
            )
            return {value for (value,) in cursor.fetchall()}

    def lock(self, column: str, values: Iterable[Any]) -> dict[Any, Row]:
        """Lock the rows with these values in a unique column, in the order of their keys; return them by value."""
        locking = "FOR UPDATE" if connection.features.has_select_for_update else ""
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT {', '.join(self.columns)} FROM {self.name} "  # noqa: S608  (names of ours)
                f"WHERE {in_list_sql(column)} ORDER BY {self.key} {locking}",
                [list_param(values)],
            )
            rows = [dict(zip(self.columns, row, strict=True)) for row in cursor.fetchall()]
        for field in self._special:  # as Django does for its own queries
            name, col = field.attname, field.get_col(self.name)
            for convert in chain(connection.ops.get_db_converters(col), col.get_db_converters(connection)):
                for row in rows:
                    row[name] = convert(row[name], col, connection)
        return {row[column]: row for row in rows}

    def values(self, rows: Iterable[Mapping[str, Any]], *columns: str) -> Iterator[list[Any]]:
        """Yield the rows as lists of values for the driver: of these columns, or of all."""
        names = columns or self.columns
        taken = itemgetter(*names)
        prepare = [(names.index(name), writer) for name, writer in self._writers() if name in names]
        for row in rows:
            one = list(taken(row))
            for place, prepared in prepare:
                one[place] = prepared(one[place])
            yield one

    def insert(self, rows: Iterable[Mapping[str, Any]]) -> None:
        insert(self.name, self.columns, self.values(rows))

    def insert_unless_there(self, row: Mapping[str, Any]) -> bool:
        """Add a row; return False if a unique column of another row kept it out."""
        [facts] = self.values([row])
        marks = ", ".join(["%s"] * len(facts))
        with connection.cursor() as cursor:
            cursor.execute(
                f"INSERT INTO {self.name} ({', '.join(self.columns)}) "  # noqa: S608  (names of ours)
                f"VALUES ({marks}) ON CONFLICT DO NOTHING",
                facts,
            )
            return bool(cursor.rowcount)

    def update(self, rows: Iterable[Mapping[str, Any]], columns: Iterable[str]) -> None:
        """Write these columns of the rows, which exist."""
        names = sorted(columns)
        changes = ", ".join(f"{name} = %s" for name in names)
        with connection.cursor() as cursor:
            cursor.executemany(
                f"UPDATE {self.name} SET {changes} WHERE {self.key} = %s",  # noqa: S608  (names of ours)
                list(self.values(rows, *names, self.key)),
            )

    def touch_read_at(self, keys: Iterable[Any], read_at: Any) -> None:
        """Set `read_at` of the rows with these keys: they were read again, and had not changed."""
        with connection.cursor() as cursor:
            cursor.execute(
                f"UPDATE {self.name} SET read_at = %s WHERE {in_list_sql(self.key)}",  # noqa: S608  (names of ours)
                [connection.ops.adapt_datetimefield_value(read_at), list_param(keys)],
            )

    def assign_changed(self, row: Row, facts: Mapping[str, Any]) -> set[str]:
        """Set those facts on the row that differ, cut to the lengths of their columns; return the names of these."""
        changed = set()
        for name, fact in facts.items():
            if row[name] == fact:
                continue
            value = storable(fact)
            if name in self.lengths:
                value = value[: self.lengths[name]]
            if row[name] != value:
                row[name] = value
                changed.add(name)
        return changed

    def _writers(self) -> Iterator[tuple[str, Callable[[Any], Any]]]:
        for field in self._special:
            if isinstance(
                field, models.DateTimeField
            ):  # what get_db_prep_save() ends in, without the way there: an order has five
                yield field.attname, connection.ops.adapt_datetimefield_value
            else:
                yield field.attname, partial(field.get_db_prep_save, connection=connection)


def in_list_sql(column: str) -> str:
    """Return SQL for "the column is one of the values", with one parameter, made of the values by list_param()."""
    if connection.vendor == "postgresql":
        return f"{column} = ANY(%s)"
    return f"{column} IN (SELECT value FROM json_each(%s))"  # noqa: S608  (a name of ours)


def list_param(values: Iterable[Any]) -> Any:
    """Return texts or whole numbers as the one parameter of in_list_sql()."""
    return list(values) if connection.vendor == "postgresql" else json.dumps(list(values))


def insert(table: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Add rows of values for the driver: by COPY on PostgreSQL, which plans nothing for each row."""
    names = ", ".join(columns)
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with connection.wrap_database_errors, cursor.copy(f"COPY {table} ({names}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join(["%s"] * len(columns))
            cursor.executemany(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(rows))  # noqa: S608  (ours)
