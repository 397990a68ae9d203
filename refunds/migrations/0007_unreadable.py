"""Mend `unreadable` where 0005 was applied as it first was: a list of ids, which no reading gets past any more.

Elsewhere it changes nothing.
"""

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.utils import timezone


def mend(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for cursor in apps.get_model("refunds", "SyncCursor").objects.all():
        if isinstance(cursor.unreadable, list):
            # As though listed now: until the next whole reading says so, none of them counts as vanished.
            cursor.unreadable = dict.fromkeys(cursor.unreadable, timezone.now().isoformat())
            cursor.save(update_fields=["unreadable"])


class Migration(migrations.Migration):
    during_upgrade = "The table has three rows. The version that runs keeps what it wrote; of a list it could read nothing."
    dependencies = [("refunds", "0006_guards_of_decisions")]

    operations = [
        # The column as it first was, whatever it is, so that the next has a default to change.
        migrations.AlterField(
            "synccursor",
            "unreadable",
            models.JSONField(
                "読み取れないもの",
                blank=True,
                default=list,
                db_default=models.Value([], models.JSONField()),
            ),
        ),
        migrations.AlterField(
            "synccursor",
            "unreadable",
            models.JSONField(
                "読み取れないもの",
                blank=True,
                default=dict,
                db_default=models.Value({}, models.JSONField()),
            ),
        ),
        migrations.RunPython(mend, migrations.RunPython.noop),
    ]
