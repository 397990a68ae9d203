"""What the templates of every page are given: settings.TEMPLATES names the function."""

from functools import partial
from typing import Any

from django.conf import settings
from django.http import HttpRequest

from dashboard.models import User
from refunds import roles, smartpay, waiting
from refunds.models import Control


def every_page(request: HttpRequest) -> dict[str, Any]:
    """Return the key's mode (test or live); for a signed-in person also the navigation and the switch of sending."""
    context: dict[str, Any] = {"mode": smartpay.mode_of(settings.SMARTPAY_SECRET_KEY)}
    person = request.user
    if isinstance(person, User):
        context["nav"] = {
            "can_request": person.has_perm(roles.REQUEST_REFUND),
            "can_approve": person.has_perm(roles.APPROVE_REFUND),
            "to_decide": partial(waiting.count, person),  # queried only by pages that show it
            "can_compare": person.has_perm(roles.RECONCILE),
            "can_audit": person.has_perm(roles.AUDIT),
            "roles": [roles.LABELS[role] for role in person.role_names],
        }
        context["sends"] = Control.current()
    return context
