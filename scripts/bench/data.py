"""Data sets of the bench: `python -m scripts.bench.data COUNT` fills the database of DATABASE_URL, where it is empty.

Orders of three years, drawn alike for every database, with names as the sandbox has them. Rows go in by the driver's
own bulk statement, without guards and search indexes; both stand again before anything is measured.
"""

import random
import sys
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import import_module
from typing import Any

import django
from django.apps import apps
from django.core.management import call_command
from django.db import connection, transaction
from django.db.models import Model

BEGIN = datetime(2023, 11, 1, tzinfo=UTC)
SPAN = timedelta(days=3 * 365)
AT_ONCE = 20_000  # rows
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
STATUSES = (
    ["succeeded"] * 80 + ["rejected"] * 6 + ["requires_authorization"] * 6 + ["canceled"] * 4 + ["failed"] * 4
)


def orders(count: int) -> Iterator[Any]:
    """Orders as the mirror would hold them, oldest first."""
    from refunds import customer_fields, order_keys
    from refunds.models import Order
    from refunds.sandbox import names
    from refunds.sandbox.draws import Draws

    draw = random.Random(count)  # noqa: S311
    for number in range(count):
        draws = Draws(1, b"bench", number)
        created_at = BEGIN + SPAN / count * number
        order_id = "order_test_" + "".join(draw.choices(ALPHABET, k=22))
        row = Order(
            key=order_keys.first_key(created_at) | draw.getrandbits(20),
            order_id=order_id,
            order_id_reversed=order_id.casefold()[::-1],
            reference=f"EC-{number:08d}" if draw.random() < 0.9 else "",
            amount=draw.randrange(5, 900) * 100,
            currency="JPY",
            status=draw.choice(STATUSES),
            test=True,
            line_items=[],
            created_at=created_at,
            read_at=BEGIN + SPAN,
        )
        if draw.random() < 0.95:
            family, given = names.person(draws)
            row.customer_source = Order.CustomerSource.SESSION
            row.family_name, row.given_name = family.written, given.written
            if draw.random() < 0.88:
                row.family_kana, row.given_kana = family.kana, given.kana
            row.email = names.mail(family, given, draws)
        for column, text in customer_fields.folded(vars(row)).items():
            setattr(row, column, text)
        if row.status == "succeeded":
            row.captured = row.amount
            row.refunded = draw.choice([0] * 18 + [100, row.amount])
        yield row


def fill(count: int) -> None:
    from refunds import fragments
    from refunds.models import Fragment, Order, Payment
    from refunds.rows import Table

    guards = import_module("refunds.migrations.0002_guards")
    indexes = [(model, index) for model in (Order, Fragment) for index in model._meta.indexes]
    with connection.schema_editor() as editor:
        guards.remove(None, editor)
        for model, index in indexes:
            editor.remove_index(model, index)
    batch: list[Any] = []

    def write() -> None:
        put(Order, Table(Order).values(map(vars, batch)))
        put(Fragment, ((text, row.key) for row in batch for text in sorted(fragments.of(vars(row)))))
        payments = [
            Payment(
                id=row.order_id.replace("order", "payment"),
                order_id=row.key,
                currency="JPY",
                captured=row.captured,
                external=row.refunded,
                created_at=row.created_at,
                read_at=row.read_at,
            )
            for row in batch
            if row.captured
        ]
        put(Payment, Table(Payment).values(map(vars, payments)))
        batch.clear()

    for row in orders(count):
        batch.append(row)
        if len(batch) == AT_ONCE:
            write()
    write()
    with connection.schema_editor() as editor:
        for model, index in indexes:
            editor.add_index(model, index)
        guards.install(None, editor)
    with connection.cursor() as cursor:
        cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")
        if connection.vendor == "postgresql":
            cursor.execute("CHECKPOINT")


def put(model: type[Model], rows: Iterable[Iterable[Any]]) -> None:
    """COPY or executemany, all columns."""
    columns = [str(field.column) for field in model._meta.concrete_fields if not field.generated]
    with transaction.atomic(), connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            with cursor.cursor.copy(f"COPY {model._meta.db_table} ({', '.join(columns)}) FROM STDIN") as copy:
                for row in rows:
                    copy.write_row(row)
        else:
            marks = ", ".join("?" * len(columns))
            statement = f"INSERT INTO {model._meta.db_table} ({', '.join(columns)}) VALUES ({marks})"  # noqa: S608
            cursor.cursor.connection.executemany(statement, rows)


def main() -> None:
    django.setup()
    call_command("migrate", "-v", "0")
    if not apps.get_model("refunds", "Order").objects.exists():
        fill(int(sys.argv[1]))


if __name__ == "__main__":
    main()
