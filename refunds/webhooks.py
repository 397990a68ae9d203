"""Receive Smartpay's events: check the signature, then read the object that the event names.

An event is a hint, never a fact: nothing in it is believed but that name.
"""

import hashlib
import hmac
import json
import string
from datetime import timedelta

import structlog
from django.conf import settings
from django.contrib.auth.decorators import login_not_required
from django.db.models import Q
from django.http import HttpRequest, HttpResponse, HttpResponseBadRequest
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_POST
from prometheus_client import Histogram

from refunds import clock, services, smartpay
from refunds.models import WebhookEvent

log = structlog.get_logger(__name__)

LAG_SECONDS = Histogram(
    "dashboard_webhook_lag_seconds",
    "From an event at Smartpay until we had caught up with it.",
    buckets=(1, 5, 15, 60, 300, 900, 3600, 21600),
)

HINT_SECONDS = 3.0  # the deadline of each read while Smartpay waits for our answer
FOLLOWED_FOR = timedelta(days=1)
AT_ONCE = 100  # events in one call of follow()
LARGEST_BODY = 64 * 1024  # bytes
SECRET_BYTES = 30
FOLLOWED = {  # the events that we follow, and the field of their object with the id that is read
    "refund.created": "id",
    "payment.created": "order",
    "order.authorized": "id",
    "order.rejected": "id",
    "order.canceled": "id",
}
BASE62 = string.ascii_uppercase + string.ascii_lowercase + string.digits


def decode_secret(secret: str) -> list[bytes]:
    """Return the keys that a signing secret may stand for: base62, read as one big-endian number.

    The official decoders disagree about secrets that begin with a zero digit. The 30-byte form comes first.
    """
    number = 0
    for character in secret:
        number = number * 62 + BASE62.index(character)
    shortest = number.to_bytes((number.bit_length() + 7) // 8 or 1, "big")
    return [shortest.rjust(SECRET_BYTES, b"\0"), shortest]


def is_signed(body: bytes, *, timestamp: str, signature: str) -> bool:
    """Return whether one of our secrets signed "timestamp.body". The comparison takes constant time."""
    message = timestamp.encode() + b"." + body
    keys = [key for secret in settings.SMARTPAY_WEBHOOK_SECRETS for key in decode_secret(secret)]
    signatures = [hmac.new(key, message, hashlib.sha256).hexdigest() for key in keys]
    return any(hmac.compare_digest(own.encode(), signature.encode()) for own in signatures)


@csrf_exempt
@login_not_required
@require_POST
def receive(request: HttpRequest) -> HttpResponse:
    """Check an event, record it, and read what it names. Answer 400 to an event that Smartpay did not sign.

    Each read takes HINT_SECONDS at most. If Smartpay is slow, deliveries would otherwise hold all of our threads, which
    people need. A read that takes longer is left to follow().
    """
    declared = request.headers.get("Content-Length") or "0"  # without one, Django reads no body
    if not (declared.isascii() and declared.isdigit()):
        return HttpResponseBadRequest()
    if int(declared) > LARGEST_BODY:
        return HttpResponse(status=413)
    timestamp = request.headers.get("Smartpay-Signature-Timestamp", "")
    signature = request.headers.get("Smartpay-Signature", "")
    if not is_signed(request.body, timestamp=timestamp, signature=signature):
        log.warning("webhook.refused")
        return HttpResponseBadRequest()
    try:
        event = json.loads(request.body)
        event_id, kind, data = event["id"], event["eventData"]["type"], event["eventData"]["data"]
        names = data[FOLLOWED[kind]] if kind in FOLLOWED else ""
        if not all(isinstance(each, str) for each in (event_id, kind, names)):
            raise TypeError("An event has an id and a type, and names an object.")
    except (ValueError, KeyError, TypeError, RecursionError):
        return HttpResponseBadRequest()
    delivered, _is_new = WebhookEvent.objects.get_or_create(
        pk=event_id[:80],
        defaults={
            "kind": kind[:64],
            "names": names[:80],
            "subscription_id": request.headers.get("Smartpay-Subscription-Id", "")[:80],
            "received_at": clock.now(),
            "body_sha256": hashlib.sha256(request.body).hexdigest(),
        },
    )
    if delivered.caught_up_at is None:
        try:
            _catch_up(delivered, client=smartpay.client().within(HINT_SECONDS))
        except smartpay.SmartpayError as error:
            log.info("webhook.waits", event_id=delivered.pk, kind=kind, outcome=error.outcome)
        else:
            if isinstance(at := event.get("createdAt"), int):
                LAG_SECONDS.observe(max(0.0, clock.now().timestamp() - at / 1000))
    log.info("webhook.received", event_id=delivered.pk, kind=kind)
    return HttpResponse(status=200)


def follow(client: smartpay.Client) -> None:
    """Read what events named whose delivery could not wait for it, the oldest first. Called by workers.

    An object that Smartpay does not show yet is read again for FOLLOWED_FOR; by then the sweeps have read everything.
    Raises: smartpay.SmartpayError if Smartpay can't be read; the other events wait for the next call.
    """
    waiting = WebhookEvent.objects.filter(caught_up_at=None)
    given_up = Q(received_at__lt=clock.now() - FOLLOWED_FOR)
    # A version without this column reads what an event names before it writes the event's row, which names nothing.
    waiting.filter(given_up | Q(names="")).update(caught_up_at=clock.now())
    for event in waiting.order_by("received_at")[:AT_ONCE]:
        try:
            _catch_up(event, client=client)
        except smartpay.NotFound:
            log.info("webhook.waits", event_id=event.pk, kind=event.kind, outcome="REFUSED")


def _catch_up(event: WebhookEvent, *, client: smartpay.Client) -> None:
    _read(event, client)
    event.caught_up_at = clock.now()
    event.save(update_fields=["caught_up_at"])


def _read(event: WebhookEvent, client: smartpay.Client) -> None:
    """Read the refund or the order that the event names. Raises: smartpay.SmartpayError."""
    if event.kind == "refund.created":
        read_at = clock.now()
        shown = client.get_refund(event.names)
        services.observe_refund(shown, read_at=read_at)
        services.read_payment(shown.payment, client=client)
    elif event.kind in FOLLOWED:
        services.read_order(event.names, client=client)
