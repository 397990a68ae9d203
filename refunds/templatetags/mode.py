"""Test or live, for pages that are drawn without a context."""

from django import template
from django.conf import settings

from refunds import smartpay

register = template.Library()


@register.simple_tag
def is_test() -> bool:
    """Whether no real money moves. Asks the settings only, whatever else is broken."""
    return smartpay.mode_of(settings.SMARTPAY_SECRET_KEY) == "test"
