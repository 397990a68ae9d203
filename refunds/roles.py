"""The four roles as Django groups, each with exactly the permissions of this table.

The groups come from the company's claims at each sign-in (dashboard/sso/backend.py). After every `migrate`,
`sync` makes the groups in the database equal to this table.
"""

from typing import Any

from django.core.exceptions import PermissionDenied
from django.utils.translation import gettext_lazy as _

from dashboard.models import User

VIEW_ORDERS = "refunds.view_order"
REQUEST_REFUND = "refunds.request_refund"
APPROVE_REFUND = "refunds.approve_refund"
AUDIT = "refunds.view_auditentry"
RECONCILE = "refunds.view_reconciliation"

ROLES = {
    "viewer": [VIEW_ORDERS, "refunds.view_refund"],
    "operator": [VIEW_ORDERS, "refunds.view_refund", REQUEST_REFUND],
    "approver": [VIEW_ORDERS, "refunds.view_refund", REQUEST_REFUND, APPROVE_REFUND, RECONCILE],
    "auditor": [
        VIEW_ORDERS,
        "refunds.view_refund",
        "refunds.view_payment",
        "refunds.view_smartpayrefund",
        "refunds.view_bulk",
        "refunds.view_bulkline",
        "refunds.view_attempt",
        "refunds.view_evidence",
        "refunds.view_reviewdecision",
        "refunds.view_search",
        "refunds.view_control",
        "refunds.view_synccursor",
        "refunds.view_jobrun",
        RECONCILE,
        "dashboard.view_user",
        AUDIT,
    ],
}
LABELS = {
    "viewer": _("閲覧者"),
    "operator": _("返金担当者"),
    "approver": _("承認者"),
    "auditor": _("監査担当者"),
}
STAFF_ROLES = {"auditor"}  # who may open /admin/


def may(person: User, permission: str) -> bool:
    """Return whether the person is active and has the permission."""
    return person.is_active and person.has_perm(permission)


def require(person: User, permission: str) -> None:
    """Raise PermissionDenied unless the person is active and has the permission."""
    if not may(person, permission):
        raise PermissionDenied


def sync(**kwargs: Any) -> None:
    """Make the groups and their permissions equal to ROLES. Called after every migration."""
    from django.contrib.auth.models import Group, Permission

    permissions = {
        f"{p.content_type.app_label}.{p.codename}": p
        for p in Permission.objects.select_related("content_type")
    }
    for role, names in ROLES.items():
        group, _created = Group.objects.get_or_create(name=role)
        group.permissions.set([permissions[name] for name in names if name in permissions])
