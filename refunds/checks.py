"""What must hold before the site may start: settings that would make the refund engine's promises false."""

from typing import Any

from django.conf import settings
from django.core.checks import Error, Tags, register

from refunds import smartpay

SEND_WINDOW_HOURS = 5


@register(Tags.security)
def money(app_configs: Any, **kwargs: Any) -> list[Error]:
    """The key is one, test and live are not mixed, and a lease outlasts the call that it covers."""
    errors = []
    loopback = settings.SMARTPAY_API_URL.startswith(("http://127.0.0.1:", "http://localhost:"))
    try:
        mode = smartpay.mode_of(settings.SMARTPAY_SECRET_KEY)
    except ValueError as error:
        return [Error(str(error), hint="SMARTPAY_SECRET_KEY", id="refunds.E001")]
    if loopback and mode == "live":
        errors.append(Error("A live key is set for a sandbox.", hint="SMARTPAY_API_URL", id="refunds.E002"))
    if not loopback and not settings.SMARTPAY_API_URL.startswith("https://"):
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
    return errors
