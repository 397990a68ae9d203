"""System checks of the site: settings under which it must not be let near money."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from dashboard.oidc_provider import issuer_fault
from refunds.roles import ROLES

SECRET_LENGTH, SECRET_LETTERS = 50, 5  # at least; the second: different ones. As Django's own check --deploy


@register
def issuer(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    fault = issuer_fault(settings.OIDC_ISSUER, https=settings.HTTPS)
    return [Error(fault, id="dashboard.E001")] if fault else []


@register
def roles(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Of two roles with one value only one would ever be given, and to people who were meant to have the other."""
    values = settings.OIDC_ROLE_VALUES
    if set(values.values()) == set(ROLES) and all(value.strip() for value in values):
        return []
    return [Error("Each OIDC_ROLE_… needs a value of its own.", id="dashboard.E002")]


@register
def secret(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Whoever guesses it signs in as anybody. Django warns of it, and only where it is asked for by `--deploy`."""
    key = settings.SECRET_KEY
    weak = len(key) < SECRET_LENGTH or len(set(key)) < SECRET_LETTERS or key.startswith("django-insecure-")
    if settings.HTTPS and weak:
        return [Error("SECRET_KEY can be guessed: too short, or too few letters.", id="dashboard.E003")]
    return []


@register
def debug(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    if settings.HTTPS and settings.DEBUG:
        return [Error("DEBUG shows settings and data to whoever meets a fault.", id="dashboard.E004")]
    return []


@register(Tags.security, deploy=True)
def proxies(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """HTTPS is ended by a proxy: the address that calls is the proxy's, unless the proxy is believed."""
    if settings.HTTPS and not settings.TRUSTED_PROXIES:
        return [
            Warning(
                "TRUSTED_PROXIES is empty: the trail has the proxy's address, and everybody shares one "
                "sign-in limit.",
                id="dashboard.W001",
            )
        ]
    return []
