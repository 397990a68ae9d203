"""Chance that can be repeated: the same seed, purpose and number always draw the same."""

import hashlib
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate


class Weighted[T]:
    """Things with whole-number weights; the heavier, the oftener drawn."""

    def __init__(self, rows: Iterable[tuple[T, int]]) -> None:
        rows = list(rows)
        self.items = [item for item, _ in rows]
        self.bounds = list(accumulate(weight for _, weight in rows))


class Draws:
    """512 bits of a keyed hash, used up a few at a time: plenty for the 40 or so draws of one object."""

    def __init__(self, seed: int, purpose: bytes, number: int) -> None:
        digest = hashlib.blake2b(b"%d" % number, key=b"%d" % seed, person=purpose).digest()
        self._left = int.from_bytes(digest)

    def below(self, limit: int) -> int:
        """A whole number from 0 to limit − 1, each as likely."""
        self._left, drawn = divmod(self._left, limit)
        return drawn

    def chance(self, thousandths: int) -> bool:
        """True in so many of a thousand cases."""
        return self.below(1000) < thousandths

    def pick[T](self, items: Sequence[T]) -> T:
        return items[self.below(len(items))]

    def weighted[T](self, choice: Weighted[T]) -> T:
        return choice.items[bisect_right(choice.bounds, self.below(choice.bounds[-1]))]
