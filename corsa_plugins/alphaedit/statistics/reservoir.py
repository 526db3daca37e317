"""A uniform sample of a stream of unknown length; by hand, as no dependency has one that can be taken up again."""

from __future__ import annotations

import random
from math import exp, floor, log, log1p

__all__ = ["Reservoir"]


class Reservoir:
    """Which items of a stream to keep, such that at any time every item so far is kept with the same probability.

    Algorithm L (K.-H. Li, "Reservoir-Sampling Algorithms of Time Complexity O(n(1 + log(N/n)))", 1994): it draws how
    many items to skip, so a stream of N items takes O(size log(N / size)) random numbers. What is kept depends on the
    seed and the items' numbers alone, not on how the stream is cut into batches.

    Args:
        size: How many items to keep.
        seed: Of the choice.
    """

    def __init__(self, size: int, seed: int = 0) -> None:
        self.size = size
        self._random = random.Random(seed)
        self._at = 0  # items seen
        self._next = size  # the next item that replaces another
        self._weight = 1.0
        self._draw()

    def take(self, n: int) -> dict[int, int]:
        """See the next ``n`` items.

        Returns:
            The slot in the reservoir (from 0) and the number among these ``n`` of each item to put into it.
        """
        start, stop = self._at, self._at + n
        chosen = {item: item - start for item in range(start, min(stop, self.size))}
        while self.size and self._next < stop:
            chosen[self._random.randrange(self.size)] = self._next - start
            self._next += 1
            self._draw()
        self._at = stop
        return chosen

    def _draw(self) -> None:
        """How many items to pass over before the next one that is kept."""
        if not self.size:
            return
        self._weight *= exp(log(1 - self._random.random()) / self.size)
        if self._weight < 1:
            self._next += floor(log(1 - self._random.random()) / log1p(-self._weight))
