"""System checks of the site: they refuse settings under which it must not handle money."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register

from dashboard.oidc_provider import issuer_fault
from refunds.roles import ROLES

SECRET_LENGTH, SECRET_LETTERS = (
    50,
    5,
)  # minimum length and number of different characters, as in Django's check --deploy


@register
def issuer(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    fault = issuer_fault(settings.OIDC_ISSUER, https=settings.HTTPS)
    return [Error(fault, id="dashboard.E001")] if fault else []


@register
def roles(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse two roles with one claim value: people meant to have one of them would be given the other."""
    values = settings.OIDC_ROLE_VALUES
    if set(values.values()) == set(ROLES) and all(value.strip() for value in values):
        return []
    return [Error("Each OIDC_ROLE_… needs a value of its own.", id="dashboard.E002")]


@register
def secret(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    """Refuse a weak SECRET_KEY: whoever guesses it can sign in as anybody. Django only warns, under `--deploy`."""
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
    """Warn where a proxy ends HTTPS but is not trusted: every request then seems to come from the proxy's address."""
    if settings.HTTPS and not settings.TRUSTED_PROXIES:
        return [
            Warning(
                "TRUSTED_PROXIES is empty: the trail has the proxy's address, and everybody shares one "
                "sign-in limit.",
                id="dashboard.W001",
            )
        ]
    return []
