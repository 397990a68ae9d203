"""Fragments of names and mails, by which their middle is found; those of orders that are here already included."""

from django.apps.registry import Apps
from django.db import migrations, models
from django.db.backends.base.schema import BaseDatabaseSchemaEditor
from django.db.models.functions import Substr

ORDERS_AT_A_TIME = 1000


def fill(apps: Apps, schema_editor: BaseDatabaseSchemaEditor) -> None:
    """What fragments.of() said when this was written."""
    order, fragment = apps.get_model("refunds", "Order"), apps.get_model("refunds", "Fragment")
    after = -1
    while rows := list(order.objects.filter(key__gt=after).order_by("key")[:ORDERS_AT_A_TIME]):
        after = rows[-1].key
        texts = {
            (text, row.key)
            for row in rows
            for name, given in (
                (row.name_folded, row.given_folded),
                (row.kana_folded, row.given_kana_folded),
            )
            for text in (name[at:] for at in range(1, len(name) - 1))
            if text != given
        } | {
            ("@" + domain, row.key)
            for row in rows
            for _local, at, domain in [row.email_folded.rpartition("@")]
            if at and domain
        }
        fragment.objects.bulk_create(fragment(text=text, key=key) for text, key in texts)


class Migration(migrations.Migration):
    dependencies = [("refunds", "0002_guards")]

    operations = [
        migrations.CreateModel(
            name="Fragment",
            fields=[
                (
                    "pk",
                    models.CompositePrimaryKey(
                        "text", "key", blank=True, editable=False, primary_key=True, serialize=False
                    ),
                ),
                ("text", models.CharField(db_collation="BINARY", max_length=256)),
                ("key", models.BigIntegerField()),
                (
                    "start",
                    models.GeneratedField(
                        db_persist=True,
                        expression=Substr("text", 1, 2),
                        output_field=models.CharField(db_collation="BINARY", max_length=2),
                    ),
                ),
            ],
            options={"indexes": [models.Index(fields=["start", "key", "text"], name="fragment_start")]},
        ),
        migrations.RunPython(fill, migrations.RunPython.noop, elidable=True),
    ]
