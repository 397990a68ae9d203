"""Refuse a decision that is written later, and what is settled being told anew: more guards, as in 0002_guards.py.

Without them an approval could be added to a refund that was paid long ago, and its note written again at will.
"""

from importlib import import_module

from django.apps.registry import Apps
from django.db import migrations
from django.db.backends.base.schema import BaseDatabaseSchemaEditor

guards = import_module("refunds.migrations.0002_guards")

# name: (condition that is refused, words)
GUARDS = {
    "refunds_refund_guard_decision": (
        "NOT (OLD.state = 'awaiting_approval' AND NEW.state IN ('queued', 'cancelled')) AND ("
        + guards.changed("decided_by_id", "decided_at", "decision_note")
        + ")",
        "a decision is written as it is made",
    ),
    "refunds_refund_guard_settled": (
        f"OLD.state = NEW.state AND OLD.state NOT IN {guards.RESERVING} AND ("
        + guards.changed(
            "last_sent_at",
            "absent_since",
            "smartpay_id",
            "cancelled_because",
            "error_code",
            "error_message",
            "settled_at",
        )
        + ")",
        "how a refund ended changes with its state alone",
    ),
}


def refuse(
    schema_editor: BaseDatabaseSchemaEditor, name: str, table: str, condition: str, words: str
) -> None:
    """Have the database refuse changes of the table's rows on this condition, with these words."""
    trigger = f"CREATE TRIGGER {name} BEFORE UPDATE ON {table} FOR EACH ROW WHEN ({condition})"
    if schema_editor.connection.vendor != "postgresql":
        schema_editor.execute(f"{trigger} BEGIN SELECT RAISE(ABORT, '{words}'); END", params=None)
        return
    with schema_editor.connection.cursor() as cursor:
        cursor.execute("SELECT quote_ident(current_schema())")
        [schema] = cursor.fetchone()
    for statement in (
        # See Note [What a function of the database finds] in 0002_guards.py.
        f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql SET search_path = {schema}, pg_temp AS $$ "
        f"BEGIN RAISE EXCEPTION '{words}' USING ERRCODE = 'check_violation'; END $$",
        f"{trigger} EXECUTE FUNCTION {name}()",
        f"REVOKE ALL ON FUNCTION {name}() FROM PUBLIC",
    ):
        schema_editor.execute(statement, params=None)


def take_back(schema_editor: BaseDatabaseSchemaEditor, name: str) -> None:
    """Drop a guard that refuse() made."""
    is_function = schema_editor.connection.vendor == "postgresql"
    schema_editor.execute(
        f"DROP FUNCTION {name}() CASCADE" if is_function else f"DROP TRIGGER {name}", params=None
    )


def install(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for name, (condition, words) in GUARDS.items():
        refuse(schema_editor, name, guards.REFUND, condition, words)


def remove(apps: Apps | None, schema_editor: BaseDatabaseSchemaEditor) -> None:
    for name in GUARDS:
        take_back(schema_editor, name)


class Migration(migrations.Migration):
    during_upgrade = (
        "No row is touched; a trigger waits for the writers of refunds_refund, whose transactions are short. "
        "The version that runs writes nothing that is refused."
    )
    dependencies = [("refunds", "0005_sweeps")]

    operations = [
        migrations.RunPython(install, remove),
    ]
