"""The rows of 注文一覧, rendered by Jinja2.

Django's engine takes as long for fifty rows as for all the rest of the page.
"""

from typing import Any

from django import template
from django.template import Context, engines
from django.urls import reverse
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import gettext
from jinja2 import Environment

from refunds.models import Order
from refunds.wording import minute, money, short_id

register = template.Library()


def environment(**options: Any) -> Environment:
    """Return the Jinja2 environment, with our filters: see TEMPLATES in the settings."""
    made = Environment(**options)  # noqa: S701  (Django turns autoescape on)
    made.filters |= {"money": money, "minute": minute, "short_id": short_id}
    made.globals["_"] = gettext
    return made


@register.simple_tag(takes_context=True)
def order_rows(context: Context) -> SafeString:
    """Render table rows of the page's `orders`, with what matched if it shows a `search`."""
    rows = engines["jinja2"].get_template("refunds/order_rows.html")
    return mark_safe(  # noqa: S308  (a template with autoescape)
        rows.render(
            {
                "orders": context["orders"],
                "searched": context["search"],
                "sprite": context["sprite"],
                "address": reverse("refunds:order", args=["ID"]).rsplit("ID", 1),
                "statuses": {value: str(label) for value, label in Order.Status.choices},
                "refund_statuses": {value: str(label) for value, label in Order.RefundStatus.choices},
            }
        )
    )
