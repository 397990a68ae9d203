"""The columns of an order that hold its customer, and the folded columns that are searched.

Checkout sessions (mirror.py) and the merchant's own records (customer_import.py) both name customers. How two namings
of one customer are compared and combined is decided here, for both.
"""

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from django.conf import settings

from refunds import smartpay
from refunds.folding import fold, fold_reference

CUSTOMER = ("family_name", "given_name", "family_kana", "given_kana", "email")
FOLDED = (
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


def kept_since(now: datetime) -> datetime | None:
    """Return the moment before which orders have no customer here; None where RETENTION_DAYS keeps all."""
    return None if settings.RETENTION_DAYS is None else now - timedelta(days=settings.RETENTION_DAYS)


def customer_of(row: Mapping[str, Any]) -> smartpay.Customer:
    """Return the customer that an order's row holds."""
    return smartpay.Customer(**{column: row[column] for column in CUSTOMER})


def same_name(one: smartpay.Customer, other: smartpay.Customer) -> bool:
    """Return whether both have the same name, however it is written, or neither has one. Kana do not count."""
    names = (fold_name(each.family_name, each.given_name)[2] for each in (one, other))
    return next(names) == next(names)


def completed(customer: smartpay.Customer, other: smartpay.Customer) -> smartpay.Customer:
    """Return the customer, with the kana and the mail of the other where it has none itself."""
    kana = customer if customer.family_kana or customer.given_kana else other
    return replace(
        customer,
        family_kana=kana.family_kana,
        given_kana=kana.given_kana,
        email=customer.email or other.email,
    )


def folded(row: Mapping[str, Any]) -> dict[str, str]:
    """Return the folded columns of an order's row.

    They are computed anew even where the row did not change, because the rules of folding may have.
    """
    texts = (
        *fold_name(row["family_name"], row["given_name"]),
        *fold_name(row["family_kana"], row["given_kana"]),
        fold(row["email"]),
        fold_reference(row["reference"]),
    )
    return dict(zip(FOLDED, texts, strict=True))


@lru_cache(2**13)  # many people share a name
def fold_name(family: str, given: str) -> tuple[str, str, str, str]:
    """Return the family name, the given name, family before given, and given before family, all folded."""
    return fold(family), fold(given), fold(f"{family} {given}"), fold(f"{given} {family}")
