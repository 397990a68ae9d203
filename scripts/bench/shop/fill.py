"""The shop's orders, where it has none: `python -m scripts.bench.shop.fill FILE`, FILE one of our SQLite data sets.

Each order as the shop's own checkout leaves it: with its customer, an account of the shop, the two addresses that the
dashboard's list shows, and a line. Prints a session of somebody of the staff.
"""

import itertools
import sqlite3
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import django

from scripts.bench.data import AT_ONCE, put

FOUND = "SELECT order_id, amount, status, created_at, family_name, given_name, email FROM refunds_order ORDER BY key"
NOW = datetime.now(tz=UTC)


def main() -> None:
    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client
    from oscar.core.loading import get_model

    call_command("migrate", "-v", "0")
    order = get_model("order", "Order")
    if not order.objects.exists():
        get_model("address", "Country").objects.create(
            iso_3166_1_a2="JP",
            iso_3166_1_a3="JPN",
            iso_3166_1_numeric="392",
            printable_name="日本",
            name="JAPAN",
        )
        tables = {
            User: customers,
            get_model("order", "ShippingAddress"): addresses,
            get_model("order", "BillingAddress"): addresses,
            order: orders,
            get_model("order", "Line"): lines,
        }
        with sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True) as ours:
            numbered = enumerate(ours.execute(FOUND), 1)
            while batch := list(itertools.islice(numbered, AT_ONCE)):
                for model, made in tables.items():
                    put(model, rows(model, made(batch)))
        with connection.cursor() as cursor:
            if connection.vendor == "postgresql":
                for model in tables:
                    table = model._meta.db_table
                    sequence = f"pg_get_serial_sequence('{table}', 'id')"
                    cursor.execute(f"SELECT setval({sequence}, max(id)) FROM {table}")  # noqa: S608
            cursor.execute("VACUUM ANALYZE" if connection.vendor == "postgresql" else "ANALYZE")
    staff, _new = User.objects.get_or_create(username="staff", is_staff=True, is_superuser=True)
    client = Client()
    client.force_login(staff)
    print(client.cookies["sessionid"].value)


def customers(batch: list[Any]) -> Iterator[dict[str, Any]]:
    for number, (_order_id, _amount, _status, _created_at, family, given, email) in batch:
        yield {
            "id": number, "username": f"customer-{number}", "password": "!", "first_name": given,
            "last_name": family, "email": email, "is_active": True, "is_staff": False, "is_superuser": False,
            "date_joined": NOW,
        }  # fmt: skip


def orders(batch: list[Any]) -> Iterator[dict[str, Any]]:
    for number, (order_id, amount, status, created_at, _family, _given, _email) in batch:
        yield {
            "id": number, "number": order_id, "user_id": number, "billing_address_id": number,
            "shipping_address_id": number, "currency": "JPY", "total_incl_tax": amount,
            "total_excl_tax": amount, "shipping_incl_tax": 0, "shipping_excl_tax": 0, "status": status,
            "date_placed": datetime.fromisoformat(created_at).replace(tzinfo=UTC), "analytics_tracked": True,
        }  # fmt: skip


def addresses(batch: list[Any]) -> Iterator[dict[str, Any]]:
    for number, (_order_id, _amount, _status, _created_at, family, given, _email) in batch:
        place = {
            "line1": f"本町{number % 97 + 1}丁目",
            "line4": "千代田区",
            "state": "東京都",
            "postcode": "100-0001",
        }
        shown = " ".join(filter(None, (given, family, *place.values())))
        yield place | {
            "id": number, "first_name": given, "last_name": family, "country_id": "JP", "search_text": shown,
        }  # fmt: skip


def lines(batch: list[Any]) -> Iterator[dict[str, Any]]:
    for number, (_order_id, amount, *_rest) in batch:
        prices = dict.fromkeys(
            (
                f"line_price_{which}{tax}_tax"
                for which in ("", "before_discounts_")
                for tax in ("incl", "excl")
            ),
            amount,
        )
        yield prices | {
            "id": number, "order_id": number, "title": "スニーカー 25cm", "quantity": 1, "num_allocated": 0,
            "allocation_cancelled": False,
        }  # fmt: skip


def rows(model: Any, values: Iterator[dict[str, Any]]) -> Iterator[list[Any]]:
    """As the table has its columns: "" in a text that is not given, else NULL."""
    columns = [(field.column, None if field.null else "") for field in model._meta.concrete_fields]
    return ([each.get(column, empty) for column, empty in columns] for each in values)


if __name__ == "__main__":
    main()
