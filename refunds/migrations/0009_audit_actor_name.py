"""Keep on the trail what a person was called when they did something.

Entries never change, so that those from before stay without a name. On SQLite, too, a column that may be null is added
without building the table anew: the guards of 0002 stay as they are.
"""

from importlib import import_module

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

guards = import_module("refunds.migrations.0002_guards")
decisions = import_module("refunds.migrations.0006_guards_of_decisions")

GUARD = f"{guards.AUDIT}_name_guard"  # beside that of 0002, which is written before there is such a column
CONDITION = guards.changed("actor_name")
WORDS = "an entry is sealed once and never changes"


def install(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    decisions.refuse(schema_editor, GUARD, guards.AUDIT, CONDITION, WORDS)


def remove(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    decisions.take_back(schema_editor, GUARD)


class Migration(migrations.Migration):
    during_upgrade = (
        "The column may be null, which the version that runs leaves it; no row is touched. The trigger is made in the "
        "catalogue, and asks only about a column that this version does not know."
    )
    dependencies = [("refunds", "0008_more_problems")]

    operations = [
        migrations.AddField(
            "auditentry",
            "actor_name",
            models.CharField("当時の氏名", blank=True, editable=False, max_length=150, null=True),
        ),
        migrations.RunPython(install, remove),
    ]
