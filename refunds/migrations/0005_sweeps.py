from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("refunds", "0004_rewriting")]

    operations = [
        migrations.AddField(
            "synccursor",
            "sweep_to",
            models.DateTimeField("次に読み直す範囲の始まり", blank=True, null=True),
        ),
        migrations.AddField(
            "synccursor",
            "unreadable",
            models.JSONField(
                "読み取れないもの",
                blank=True,
                default=dict,
                db_default=models.Value({}, models.JSONField()),
            ),
        ),
    ]
