"""The audit trail: record() appends who did what to what, in the transaction of the change that it tells of."""

import hashlib
import hmac
import json
import re
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.contrib.auth.signals import user_logged_in, user_logged_out, user_login_failed
from django.core.exceptions import PermissionDenied
from django.db import connection
from django.db.models import Model
from django.dispatch import receiver
from django.http import HttpRequest, HttpResponse

from dashboard.client_address import client_address
from dashboard.models import User
from refunds import clock
from refunds.database_values import storable
from refunds.models import AuditEntry, Order, Payment, Refund

DONE = AuditEntry.Outcome.DONE
OPENED = (AuditEntry.Action.ORDER_VIEWED, AuditEntry.Action.REFUND_REQUESTED)
OTHERS_LOOKED_AT = 50


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a request came from: its id, the address, and a hash that tells sessions apart but can't open one."""

    request_id: str = ""
    ip: str | None = None
    session: str = ""


_origin: ContextVar[Origin] = ContextVar("origin", default=Origin())  # noqa: B039  (frozen)


class RequestContext:
    """Middleware that tells the trail and the log who makes a request, and from where."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        token = _origin.set(
            Origin(
                # RequestLogMiddleware has bound it.
                request_id=structlog.contextvars.get_contextvars().get("request_id", ""),
                ip=str(address) if (address := client_address(request)) else None,
                session=_session_hash(request),
            )
        )
        structlog.contextvars.bind_contextvars(person=request.user.pk)
        try:
            return self.get_response(request)
        finally:
            _origin.reset(token)

    def process_exception(self, request: HttpRequest, exception: Exception) -> None:
        """Record what a signed-in person tried without the permission, wherever it was refused."""
        if isinstance(exception, PermissionDenied) and request.user.is_authenticated:
            record(request.user, "page.refused", refused=True, method=request.method, path=_place(request))


def _place(request: HttpRequest) -> str:
    """Return the path, or its URL pattern if somebody typed into it what no link of ours has, such as a mail."""
    if re.fullmatch(r"[\w./-]*", request.path, re.ASCII) or request.resolver_match is None:
        return request.path[:200]
    return f"/{request.resolver_match.route}"[:200]


def _session_hash(request: HttpRequest) -> str:
    return keyed_hash(request.session.session_key or "")[:16] if request.session.session_key else ""


def keyed_hash(text: str) -> str:
    """Return the HMAC-SHA256 under SECRET_KEY, in hex. It finds equal texts again, but does not reveal them."""
    return keyed_hashes(text)[0]


def keyed_hashes(text: str) -> list[str]:
    """Return the keyed hash under SECRET_KEY, then those under each of SECRET_KEY_FALLBACKS."""
    secrets = [settings.SECRET_KEY, *settings.SECRET_KEY_FALLBACKS]
    return [hmac.new(secret.encode(), text.encode(), hashlib.sha256).hexdigest() for secret in secrets]


def record(
    actor: Any,
    action: str,
    obj: Model | None = None,
    *,
    refused: bool = False,
    order_id: str = "",
    **data: Any,
) -> AuditEntry:
    """Append an entry: `actor` did `action` to `obj`, with `data`.

    Args:
        actor: a User; None or an anonymous user for the machine and for people who are not signed in.
        action: one of AuditEntry.Action: the object's kind, then what happened.
        obj: the object. The order of a payment or of a refund is recorded too.
        refused: whether it was tried and refused.
        data: ids, amounts, states, counts. Never a customer's name, a mail, a key, or what was typed.

    Raises: ValueError for another action.
    """
    person = actor if isinstance(actor, User) else None
    origin = _origin.get()
    at = clock.now()
    object_type, object_id = (obj._meta.model_name or "", str(obj.pk)) if obj is not None else ("", "")
    if isinstance(obj, Order):
        object_id = order_id = obj.order_id
    elif isinstance(obj, Payment):
        order_id = obj.order.order_id
    elif isinstance(obj, Refund):
        order_id = obj.payment.order.order_id
        if obj.moved_from:
            data |= {"state_before": obj.moved_from, "state": obj.state}
            obj.moved_from = ""  # told once
    entry = AuditEntry(
        at=at,
        actor=person,
        actor_name=storable(str(person)) if person else None,
        roles=",".join(person.role_names) if person else "",
        action=AuditEntry.Action(action),
        outcome=AuditEntry.Outcome.REFUSED if refused else AuditEntry.Outcome.DONE,
        object_type=object_type,
        object_id=storable(object_id)[:80],
        order_id=storable(order_id)[:80],
        data=storable(data),
        ip=origin.ip,
        session=origin.session,
        request_id=origin.request_id,
    )
    entry.text = canonical(entry)
    _append(entry)
    return entry


# Without the id, which the application's role may not choose (see grants.py), and without the seals, made later.
APPENDED = [
    field for field in AuditEntry._meta.concrete_fields if field.name not in ("id", "previous_seal", "seal")
]
APPEND = (
    f"INSERT INTO {AuditEntry._meta.db_table} ({', '.join(str(field.column) for field in APPENDED)}) "  # noqa: S608
    f"VALUES ({', '.join(['%s'] * len(APPENDED))}) RETURNING id"
)


def _append(entry: AuditEntry) -> None:
    """Save a new entry by a statement that is compiled once: every page that somebody reads waits for this."""
    values = [field.get_db_prep_save(getattr(entry, field.attname), connection) for field in APPENDED]
    with connection.cursor() as cursor:
        cursor.execute(APPEND, values)
        [entry.pk] = cursor.fetchone()
    entry._state.adding, entry._state.db = False, connection.alias


def other_people_on_order(order: Order, person: User, *, since: timedelta) -> list[AuditEntry]:
    """Return who else opened the order, or asked for a refund of it, within this time.

    The last entry of each person, the latest first. Only the order's newest OTHERS_LOOKED_AT entries are looked at, so
    that an order which is opened all day costs no more than another.
    """
    begin = clock.now() - since
    newest = AuditEntry.objects.filter(order_id=order.order_id).order_by("-id")
    latest: dict[int, AuditEntry] = {}
    for entry in newest.select_related("actor")[:OTHERS_LOOKED_AT]:
        if entry.at < begin:
            break
        if entry.actor_id not in (None, person.pk) and entry.action in OPENED and entry.outcome == DONE:
            latest.setdefault(entry.actor_id, entry)
    return list(latest.values())


def canonical(entry: AuditEntry) -> str:
    """Return the entry as one JSON text, the same on every database. The seal is computed over it."""
    # Entries from before `actor_name` was recorded were sealed without it.
    named = {"actor_name": entry.actor_name} if entry.actor_name else {}
    return json.dumps(
        named
        | {
            "at": entry.at.isoformat(timespec="microseconds"),
            "actor": entry.actor_id,
            "roles": entry.roles,
            "action": str(entry.action),
            "outcome": str(entry.outcome),
            "object_type": entry.object_type,
            "object_id": entry.object_id,
            "order_id": entry.order_id,
            "data": entry.data,
            "ip": entry.ip,
            "session": entry.session,
            "request_id": entry.request_id,
        },
        sort_keys=True,
        ensure_ascii=False,
        separators=(",", ":"),
    )


@receiver(user_logged_in)
def _signed_in(sender: Any, request: HttpRequest, user: User, **kwargs: Any) -> None:
    record(user, "person.signed_in", user)


@receiver(user_logged_out)
def _signed_out(sender: Any, request: HttpRequest, user: User | None, **kwargs: Any) -> None:
    if user is not None:
        record(user, "person.signed_out", user)


@receiver(user_login_failed)
def _sign_in_refused(sender: Any, credentials: dict[str, Any], **kwargs: Any) -> None:
    record(None, "person.signed_in", refused=True, reason=str(credentials.get("reason", ""))[:80])
