"""A refund that the ledger lost is written anew also where it is a line of a file, whatever became of the file.

A database that was restored may hold the file and not the line's refund. The guard of 0002 refused to take that back in
while the file was not running; no reading of all refunds came to its end then, and sending could not be resumed.
"""

from importlib import import_module

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

guards = import_module("refunds.migrations.0002_guards")

[(NAME, (TABLE, EVENT, CONDITION, WORDS))] = [
    (name, guard)
    for name, guard in zip(guards.names(guards.GUARDS, "guard"), guards.GUARDS, strict=True)
    if guard[2].startswith(guards.OF_A_FILE)
]


def install(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _replace(schema_editor, among="NOT NEW.recovered")


def remove(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _replace(schema_editor, among="TRUE")


def _replace(schema_editor: BaseDatabaseSchemaEditor, *, among: str) -> None:
    """Have the guard look at these new rows only; its function on PostgreSQL stays as it is."""
    if schema_editor.connection.vendor == "postgresql":
        statements = (
            f"DROP TRIGGER {NAME} ON {TABLE}",
            f"CREATE TRIGGER {NAME} BEFORE {EVENT} ON {TABLE} FOR EACH ROW WHEN ({among}) EXECUTE FUNCTION {NAME}()",
        )
    else:
        statements = (
            f"DROP TRIGGER {NAME}",
            f"CREATE TRIGGER {NAME} BEFORE {EVENT} ON {TABLE} FOR EACH ROW "
            f"WHEN {among} AND {CONDITION} BEGIN SELECT RAISE(ABORT, '{WORDS}'); END",
        )
    for statement in statements:
        schema_editor.execute(statement, params=None)


class Migration(migrations.Migration):
    dependencies = [("refunds", "0002_guards")]

    operations = [
        migrations.RunPython(install, remove),
    ]
