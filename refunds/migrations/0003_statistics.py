"""Tell PostgreSQL that what is searched differs from order to order, whatever the orders so far say.

A search is planned once for all values (search.py). Of a column that most orders share, such as kana where a shop asks
for none, PostgreSQL would expect that any value is on most orders, and walk them all to find fifty with it. What a
column is told here comes into force with the next ANALYZE; until the first, it expects two hundred values.
"""

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

SEARCHED = (
    "family_folded",
    "given_folded",
    "name_folded",
    "name_turned_folded",
    "family_kana_folded",
    "given_kana_folded",
    "kana_folded",
    "kana_turned_folded",
    "email_folded",
    "reference_folded",
)


def tell(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _alter(schema_editor, "SET (n_distinct = -0.5)")


def forget(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    _alter(schema_editor, "RESET (n_distinct)")


def _alter(schema_editor: BaseDatabaseSchemaEditor, what: str) -> None:
    if schema_editor.connection.vendor == "postgresql":
        for column in SEARCHED:
            schema_editor.execute(f"ALTER TABLE refunds_order ALTER COLUMN {column} {what}")


class Migration(migrations.Migration):
    dependencies = [("refunds", "0002_guards")]

    operations = [
        migrations.RunPython(tell, forget),
    ]
