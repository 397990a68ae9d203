"""Events on their way to the merchant: signed anew for each delivery, repeated until they are taken."""

import hashlib
import hmac
import http.client
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from typing import Any, Final
from urllib.parse import urlsplit

from .model import Event, Smartpay
from .world import Resource

# The alphabet of signing secrets is not the one of ids: letters come first.
_ALPHABET: Final = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_SECRET_BYTES: Final = 30
_WORKERS: Final = 4  # a receiver that does not answer must not hold up the others
_TIMEOUT_SECONDS: Final = 10


def new_signing_secret(random_bytes: Callable[[int], bytes]) -> str:
    """40 characters of base62 for 30 bytes, the first of them not zero.

    The official decoders disagree about leading zeros, and 30 bytes may need a 41st character:
    secrets of either sort are thrown away.
    """
    while True:
        raw = random_bytes(_SECRET_BYTES)
        secret, value = "", int.from_bytes(raw)
        while value:
            value, digit = divmod(value, 62)
            secret = _ALPHABET[digit] + secret
        if raw[0] and len(secret) == 40:
            return secret


def sign(secret: str, message: bytes) -> str:
    """Lower-case hex of HMAC-SHA256; the key is the decoded secret.

    The message of a delivery is its timestamp header, a full stop and its body.
    """
    value = 0
    for character in secret:
        value = value * 62 + _ALPHABET.index(character)
    key = value.to_bytes((value.bit_length() + 7) // 8)
    return hmac.new(key, message, hashlib.sha256).hexdigest()


@dataclass(order=True)
class _Due:
    at: float  # monotonic seconds
    turn: int  # first come, first served
    mode: str = field(compare=False)
    endpoint: str = field(compare=False)
    event: Resource = field(compare=False)
    body: bytes = field(compare=False)
    attempt: int = field(compare=False, default=1)


class Deliveries:
    """Takes events from Smartpay and brings them to every active endpoint that subscribed to them."""

    def __init__(self, smartpay: Smartpay, compact: Callable[[Any], bytes]) -> None:
        self._smartpay, self._compact = smartpay, compact
        self._due: list[_Due] = []
        self._turn = 0
        self._wake = threading.Condition()
        self.log: deque[dict[str, Any]] = deque(maxlen=1000)
        smartpay.on_event = self.add
        for _ in range(_WORKERS):
            threading.Thread(target=self._work, daemon=True).start()

    def add(self, event: Event) -> None:
        """Have an event delivered; one that nobody subscribed to is dropped."""
        body, switches = self._compact(event.body), self._smartpay.switches
        account = self._smartpay.accounts[event.mode]
        with self._smartpay.lock:
            endpoints = [
                endpoint for _, endpoint in account.walk("webhookEndpoint", None, newest_first=False)
            ]
        for endpoint in endpoints:
            if endpoint["active"] and event.body["eventData"]["type"] in endpoint["eventSubscriptions"]:
                for _ in range(switches.webhook_copies):
                    wait = random.uniform(0, 0.3) if switches.webhook_shuffled else 0  # noqa: S311
                    self._put(_Due(time.monotonic() + wait, 0, event.mode, endpoint["id"], event.body, body))

    def drop(self) -> None:
        """Forget what is still to be delivered, and what was."""
        with self._wake:
            self._due.clear()
            self.log.clear()

    def _put(self, due: _Due) -> None:
        with self._wake:
            self._turn += 1
            due.turn = self._turn
            heappush(self._due, due)
            self._wake.notify()

    def _work(self) -> None:
        while True:
            with self._wake:
                while not self._due or self._due[0].at > time.monotonic():
                    self._wake.wait(self._due[0].at - time.monotonic() if self._due else None)
                due = heappop(self._due)
            self._deliver(due)

    def _deliver(self, due: _Due) -> None:
        endpoint = self._smartpay.accounts[due.mode].find("webhookEndpoint", due.endpoint)
        if endpoint is None or not endpoint["active"]:
            return
        timestamp = str(self._smartpay.clock.now())  # of this delivery, not of the event
        status = _post(
            endpoint["url"],
            due.body,
            {
                "Content-Type": "application/json",
                "Smartpay-Event-Id": due.event["id"],
                "Smartpay-Signature": sign(endpoint["signingSecret"], timestamp.encode() + b"." + due.body),
                "Smartpay-Signature-Timestamp": timestamp,
                "Smartpay-Subscription-Id": endpoint["id"],
            },
        )
        self.log.append(
            {
                "endpoint": endpoint["id"],
                "event": due.event["id"],
                "type": due.event["eventData"]["type"],
                "attempt": due.attempt,
                "status": status,
                "at": int(timestamp),
            }
        )
        waits = self._smartpay.switches.webhook_waits
        if not 200 <= status < 300 and due.attempt <= len(waits):
            due.at, due.attempt = time.monotonic() + waits[due.attempt - 1], due.attempt + 1
            self._put(due)


def _post(url: str, body: bytes, headers: dict[str, str]) -> int:
    """The status of the receiver's answer; 0 if there was none."""
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    try:
        connection = kind(parts.netloc, timeout=_TIMEOUT_SECONDS)
        try:
            target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
            connection.request("POST", target, body, headers)
            return connection.getresponse().status
        finally:
            connection.close()
    except (OSError, ValueError, http.client.HTTPException):
        return 0
