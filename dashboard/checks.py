"""System checks of the site: settings under which it must not be let near money."""

from collections.abc import Sequence
from typing import Any

from django.apps import AppConfig
from django.conf import settings
from django.core.checks import CheckMessage, Error, register

from dashboard.oidc_provider import issuer_fault


@register
def issuer(app_configs: Sequence[AppConfig] | None, **kwargs: Any) -> list[CheckMessage]:
    fault = issuer_fault(settings.OIDC_ISSUER, https=settings.HTTPS)
    return [Error(fault, id="dashboard.E001")] if fault else []
