"""A rolling upgrade migrates while the version before still serves: no migration may lock a table that grows, or take
away what that version reads or writes.

One that has to says why it may, in its own words: `during_upgrade = "…"` in its class.
"""

from collections.abc import Sequence
from typing import Any

import pytest
from django.contrib.postgres.operations import AddIndexConcurrently
from django.db import connection, migrations, models
from django.db.migrations.loader import MigrationLoader
from django.db.migrations.operations.base import Operation

from refunds import scanning, services, smartpay
from refunds.models import SyncCursor
from tests.sandbox import Sandbox

FIRST = {
    ("refunds", "0001_initial"),
    ("refunds", "0002_guards"),
    ("refunds", "0003_statistics"),
    ("dashboard", "0001_initial"),
}
# Of rows, tables or names that nobody has yet, or that PostgreSQL changes in its catalogue alone.
HARMLESS = (
    migrations.CreateModel,
    migrations.AlterModelOptions,
    migrations.AlterModelManagers,
    AddIndexConcurrently,
)


def dangers(operations: Sequence[Operation]) -> list[str]:
    """What of it stops a version that runs, in words."""
    new = {each.name_lower for each in operations if isinstance(each, migrations.CreateModel)}
    found = []
    for each in operations:
        if isinstance(each, HARMLESS) or getattr(each, "model_name_lower", None) in new:
            continue
        if isinstance(each, migrations.AddField):
            field = each.field
            if not field.is_relation and (field.null or field.has_db_default()) and not field.unique:
                continue
        if isinstance(each, migrations.SeparateDatabaseAndState):
            found += dangers(each.database_operations)
            continue
        found.append(each.describe())
    return found


def ours() -> dict[str, Any]:
    loader = MigrationLoader(None, ignore_no_migrations=True)
    return {
        f"{app}.{name}": migration
        for (app, name), migration in loader.disk_migrations.items()
        if app in ("refunds", "dashboard") and (app, name) not in FIRST
    }


def test_no_migration_stops_the_version_that_runs() -> None:
    refused = {
        name: found
        for name, migration in ours().items()
        if not getattr(migration, "during_upgrade", "") and (found := dangers(migration.operations))
    }

    assert refused == {}


@pytest.mark.parametrize(
    "operation",
    [
        migrations.AddField("order", "note", models.TextField()),  # the version that runs does not fill it
        migrations.AddField(
            "order", "note", models.TextField(default="")
        ),  # Python's default is not the table's
        migrations.AddField("order", "code", models.TextField(null=True, unique=True)),  # builds an index
        migrations.RemoveField("order", "description"),
        migrations.RenameField("order", "description", "words"),
        migrations.AlterField("order", "amount", models.TextField()),  # rewrites the table
        migrations.DeleteModel("search"),
        migrations.RenameModel("search", "query"),
        migrations.AddIndex("order", models.Index(fields=["amount"], name="x")),  # keeps writers waiting
        migrations.AddConstraint("order", models.UniqueConstraint(fields=["amount"], name="x")),
        migrations.RunSQL("LOCK TABLE refunds_order"),
        migrations.RunPython(migrations.RunPython.noop),
    ],
    ids=lambda operation: operation.describe(),
)
def test_what_stops_it_is_refused(operation: Operation) -> None:
    assert dangers([operation]) == [operation.describe()]


@pytest.mark.parametrize(
    "operations",
    [
        [migrations.AddField("order", "note", models.TextField(null=True))],
        [migrations.AddField("order", "note", models.TextField(db_default=""))],
        [migrations.CreateModel("day", [("id", models.BigAutoField(primary_key=True))]),
         migrations.AddIndex("day", models.Index(fields=["id"], name="x"))],
        [AddIndexConcurrently("order", models.Index(fields=["amount"], name="x"))],
    ],
)  # fmt: skip
def test_what_does_not_is_taken(operations: list[Operation]) -> None:
    assert dangers(operations) == []


@pytest.mark.django_db(transaction=True)
def test_list_of_what_is_unreadable_is_mended_and_read_on(sandbox: Sandbox, quick: None) -> None:
    """A database on which migration 0005 was applied as it first was."""
    loader = MigrationLoader(connection)
    mending = loader.get_migration("refunds", "0007_unreadable")
    before = loader.project_state(mending.dependencies)
    first = before.clone()
    mending.operations[0].state_forwards("refunds", first)
    with connection.schema_editor() as editor:
        mending.operations[0].database_forwards("refunds", editor, before, first)
    SyncCursor.objects.create(collection=SyncCursor.ORDERS, unreadable=["order_test_1"])
    SyncCursor.objects.create(collection=SyncCursor.REFUNDS, unreadable=[])
    SyncCursor.objects.create(collection=SyncCursor.SESSIONS, unreadable={"order_test_2": "2026-03-09"})

    with connection.schema_editor() as editor:
        mending.apply(before, editor)
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO refunds_synccursor (collection, page_token, seen) VALUES ('later', '', 0)"
        )

    found = dict(SyncCursor.objects.values_list("collection", "unreadable"))
    assert found.pop(SyncCursor.ORDERS).keys() == {"order_test_1"}
    assert found == {"refunds": {}, "checkout-sessions": {"order_test_2": "2026-03-09"}, "later": {}}
    scanning.sync(smartpay.client(), full=True, observe=services.observe_refund)
    assert SyncCursor.objects.get(pk=SyncCursor.ORDERS).last_finished_at
