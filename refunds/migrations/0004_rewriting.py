"""Let PostgreSQL write an order again at the price of writing it, and not that of its seventeen indexes.

Each reading writes into each row when it was. A row whose new version finds room on its own page needs no new entry in
an index; with pages filled to the brim it never does. And the guards are asked only about columns that they guard.
"""

from importlib import import_module

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

guards = import_module("refunds.migrations.0002_guards")

REWRITTEN = ("refunds_order", "refunds_payment", "refunds_smartpayrefund")


def leave_room(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _alter(schema_editor, "SET (fillfactor = 50)")  # a page of Smartpay's list is written again all at once
    if schema_editor.connection.vendor == "postgresql":
        for statement in guards.triggers_postgresql():
            schema_editor.execute(statement, params=None)


def leave_none(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _alter(schema_editor, "RESET (fillfactor)")


def _alter(schema_editor: BaseDatabaseSchemaEditor, what: str) -> None:
    if schema_editor.connection.vendor == "postgresql":
        for table in REWRITTEN:
            schema_editor.execute(f"ALTER TABLE {table} {what}")


class Migration(migrations.Migration):
    during_upgrade = (
        "No row is touched: fillfactor is for rows to come, and a trigger is replaced in the catalogue."
    )
    dependencies = [("refunds", "0003_statistics")]

    operations = [
        migrations.RunPython(leave_room, leave_none),
    ]
