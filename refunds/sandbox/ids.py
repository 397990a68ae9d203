"""Object ids that look random, depend on the seed alone and can be turned back into a number.

A world of a million orders is never stored: an id has to say by itself which object it names, and
an id that Smartpay never gave out has to be recognised as such.
"""

import functools
import hashlib
import string

BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_HALF = 62**11  # one half of an id: 11 characters
_PAIRS = [first + second for first in BASE62 for second in BASE62]
_VALUE = {character: value for value, character in enumerate(BASE62)}


class Ids:
    """The ids of one seed. Length and alphabet are those seen in Smartpay's samples: 22 of [0-9A-Za-z].

    An id is a tag and a masked number, 11 characters each. The tag is a keyed hash of the kind and
    the number; the mask is a keyed hash of the tag. Reading an id back checks its tag, so a
    mistyped or invented one is unknown instead of being somebody else's order.
    """

    def __init__(self, seed: int) -> None:
        self._key = f"smartpay-sandbox-{seed}".encode()

    def make(self, kind: str, number: int) -> str:
        """Return the random part of the id of object `number` (0 or more) of a kind, such as "order_test"."""
        tag = self._hash(b"tag", f"{kind}:{number}".encode())
        masked = (number + self._hash(b"mask", b"%d" % tag)) % _HALF
        return _eleven(tag) + _eleven(masked)

    def read(self, kind: str, text: str) -> int | None:
        """Return the number behind the random part of an id, or None if this seed never made it."""
        if len(text) != 22 or not text.isascii() or not text.isalnum():
            return None
        tag = functools.reduce(_append, text[:11], 0)
        number = (functools.reduce(_append, text[11:], 0) - self._hash(b"mask", b"%d" % tag)) % _HALF
        return number if tag == self._hash(b"tag", f"{kind}:{number}".encode()) else None

    def _hash(self, purpose: bytes, data: bytes) -> int:
        digest = hashlib.blake2b(data, digest_size=16, key=self._key, person=purpose).digest()
        return int.from_bytes(digest) % _HALF


def _eleven(value: int) -> str:
    pairs = []
    for _ in range(5):
        value, pair = divmod(value, 3844)
        pairs.append(_PAIRS[pair])
    return BASE62[value] + "".join(reversed(pairs))


def _append(value: int, character: str) -> int:
    return value * 62 + _VALUE[character]
