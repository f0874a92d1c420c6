"""How often something may happen: a bucket that fills at a steady rate."""

from __future__ import annotations

import time


class Bucket:
    """Lets `per_s` a second pass in the long run, and `at_once` in one go."""

    __slots__ = ("_at", "_at_once", "_left", "_per_s")

    def __init__(self, per_s: float, at_once: float) -> None:
        self._per_s = per_s
        self._at_once = at_once
        self._left = at_once
        self._at = time.monotonic()

    def take(self) -> float:
        """Takes one: 0 when there was one, else in how many seconds there will be."""
        now = time.monotonic()
        self._left = min(self._at_once, self._left + (now - self._at) * self._per_s)
        self._at = now
        if self._left >= 1:
            self._left -= 1
            return 0.0
        return (1 - self._left) / self._per_s
