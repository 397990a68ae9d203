"""Keep on the trail what a person was called when they did something.

Entries never change, so that those from before stay without a name. On SQLite, too, a column that may be null is added
without building the table anew: the guards of 0002 stay as they are.
"""

from importlib import import_module

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

guards = import_module("refunds.migrations.0002_guards")

GUARD = f"{guards.AUDIT}_name_guard"  # beside that of 0002, which is written before there is such a column
CONDITION = guards.changed("actor_name")
WORDS = "an entry is sealed once and never changes"
CALLED = f"CREATE TRIGGER {GUARD} BEFORE UPDATE ON {guards.AUDIT} FOR EACH ROW WHEN ({CONDITION})"


def install(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    if schema_editor.connection.vendor != "postgresql":
        schema_editor.execute(f"{CALLED} BEGIN SELECT RAISE(ABORT, '{WORDS}'); END", params=None)
        return
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_schema())")
        [schema] = cursor.fetchone()
    for statement in (
        # See Note [What a function of the database finds] in 0002_guards.py.
        f"CREATE FUNCTION {GUARD}() RETURNS trigger LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS "
        f"$$ BEGIN RAISE EXCEPTION '{WORDS}' USING ERRCODE = 'check_violation'; END $$",
        f"{CALLED} EXECUTE FUNCTION {GUARD}()",
        f"REVOKE ALL ON FUNCTION {GUARD}() FROM PUBLIC",
    ):
        schema_editor.execute(statement, params=None)


def remove(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    drop = (
        f"DROP FUNCTION {GUARD}() CASCADE"
        if schema_editor.connection.vendor == "postgresql"
        else f"DROP TRIGGER {GUARD}"
    )
    schema_editor.execute(drop, params=None)


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
