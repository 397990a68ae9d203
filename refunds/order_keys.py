"""The primary key of an order, which sorts by the order's time."""

import hashlib
from collections.abc import Callable, Collection
from datetime import UTC, datetime, timedelta

from refunds import smartpay

# Note [Keys in time order]
# An order's key is its `createdAt` in milliseconds, shifted left by KEY_BITS, with bits of a hash of its id below.
# The order of the primary key is therefore the order of time, on both databases: a page is `key < cursor`, a span of
# days is a range of keys, and every search index ends in the key. No page needs a COUNT or an OFFSET.
KEY_BITS = 20  # the key fits into 63 bits until the year 2248

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def first_key(moment: datetime) -> int:
    """Return the lowest key that an order created at this moment can have."""
    return (moment - EPOCH) // timedelta(milliseconds=1) << KEY_BITS


def moment_of(key: int) -> datetime:
    """Return when the order with this key was created, to the millisecond."""
    return EPOCH + timedelta(milliseconds=key >> KEY_BITS)


def key_of(order: smartpay.Order, attempt: int) -> int:
    """Return the key that this attempt proposes for the order; always the same for the same order and attempt."""
    digest = hashlib.sha256(f"{order.id}#{attempt}".encode()).digest()
    return first_key(order.created_at) | (int.from_bytes(digest[:8]) & ((1 << KEY_BITS) - 1))


def mint_keys(
    orders: Collection[smartpay.Order], used_among: Callable[[Collection[int]], set[int]]
) -> dict[str, int]:
    """Return a free key for each order, by the order's id.

    Two orders of one millisecond may propose the same key; one of them then makes another attempt.

    Args:
        used_among: returns which of some keys are in use already.
    """
    keys: dict[str, int] = {}
    attempt = 0
    while len(keys) < len(orders):
        wanted = {order.id: key_of(order, attempt) for order in orders if order.id not in keys}
        used = used_among(wanted.values()) | set(keys.values())
        for order_id, key in wanted.items():
            if key not in used:
                keys[order_id] = key
                used.add(key)
        attempt += 1
    return keys
