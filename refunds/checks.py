"""Refuses to start the site with settings that would break the refund engine's promises."""

from typing import Any
from urllib.parse import urlsplit

from django.conf import settings
from django.core.checks import Error, Tags, register
from django.db import connection

from refunds import smartpay, webhooks

SHORTEST_RETENTION = 30  # days; a mistyped number must not remove all customers
LONGEST_LEASE = 600  # seconds; see docs/decisions/0011


@register(Tags.security)
def money(app_configs: Any, **kwargs: Any) -> list[Error]:
    """Check that keys have the form of keys, that test and live are not mixed, and that a lease outlasts its call."""
    errors = []
    address = urlsplit(settings.SMARTPAY_API_URL)
    on_this_machine = address.hostname in {"127.0.0.1", "::1", "localhost"}
    loopback = address.scheme == "http" and on_this_machine
    try:
        mode = smartpay.mode_of(settings.SMARTPAY_SECRET_KEY)
    except ValueError as error:
        return [Error(str(error), hint="SMARTPAY_SECRET_KEY", id="refunds.E001")]
    if on_this_machine and mode == "live":
        errors.append(Error("A live key is set for a sandbox.", hint="SMARTPAY_API_URL", id="refunds.E002"))
    if not loopback and address.scheme != "https":
        errors.append(
            Error("Smartpay is only reached over HTTPS.", hint="SMARTPAY_API_URL", id="refunds.E003")
        )
    if settings.REFUND_LEASE_SECONDS <= 2 * settings.SMARTPAY_DEADLINE:
        errors.append(
            Error(
                "A lease must outlast two calls.",
                hint="REFUND_LEASE_SECONDS, SMARTPAY_DEADLINE",
                id="refunds.E004",
            )
        )
    if settings.REFUND_LEASE_SECONDS > LONGEST_LEASE:
        errors.append(
            Error(
                "A lease must be short: a sender may be half of it late, and the last hour of a key has to hold that.",
                hint="REFUND_LEASE_SECONDS",
                id="refunds.E006",
            )
        )
    if settings.RETENTION_DAYS is not None and settings.RETENTION_DAYS < SHORTEST_RETENTION:
        errors.append(
            Error(
                f"Names and mails are kept for {SHORTEST_RETENTION} days at least: they are removed for good.",
                hint="RETENTION_DAYS; empty keeps them for ever",
                id="refunds.E007",
            )
        )
    digits, zero = set(webhooks.BASE62), webhooks.BASE62[0]
    # An empty key, or one of zeros only, could be guessed.
    if any(set(secret) - digits or not secret.strip(zero) for secret in settings.SMARTPAY_WEBHOOK_SECRETS):
        errors.append(
            Error(
                "A signing secret is letters and digits.", hint="SMARTPAY_WEBHOOK_SECRETS", id="refunds.E005"
            )
        )
    return errors


@register(Tags.security)
def durability(app_configs: Any, **kwargs: Any) -> list[Error]:
    """Check that a commit is on the disk when it returns. settings.py asks for that, but a pool may not pass it on."""
    if connection.vendor != "postgresql":
        return []
    with connection.cursor() as cursor:
        cursor.execute("SHOW synchronous_commit")
        [how] = cursor.fetchone()
    if how != "off":
        return []
    return [
        Error(
            "The database calls committed what is not on its disk yet.",
            hint="ALTER ROLE refunds_app SET synchronous_commit = on",
            id="refunds.E008",
        )
    ]


@register(Tags.security)
def pooled(app_configs: Any, **kwargs: Any) -> list[Error]:
    """Check that a pool is declared, because prepared statements do not outlive a transaction through one."""
    if connection.vendor != "postgresql" or settings.DATABASE_POOLED:
        return []
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        [answering] = cursor.fetchone()
        if cursor.connection.info.backend_pid == answering:
            return []
    return [
        Error(
            "Something stands between the site and PostgreSQL that shares connections.",
            hint="DATABASE_POOLED=True",
            id="refunds.E009",
        )
    ]
