"""A bound on how fast something is read, so that others keep the disk and the processor."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Self

_UNITS = {"": 0, "kb": 1_000, "mb": 1_000_000, "gb": 1_000_000_000}
_RATE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmg]b)?(?:/s)?", re.IGNORECASE)


class Pace:
    """At most so many events, or so many bytes, in a second; 0 is no bound."""

    def __init__(self, *, events_per_s: float = 0.0, bytes_per_s: float = 0.0) -> None:
        self.events_per_s = events_per_s
        self.bytes_per_s = bytes_per_s
        self._began = time.monotonic()
        self._events = 0
        self._bytes = 0

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads `5000` (events a second), `2MB` (bytes a second), or `max`. Raises ValueError."""
        if text.strip().lower() == "max":
            return cls()
        found = _RATE.fullmatch(text.strip())
        if found is None or float(found[1]) <= 0:
            raise ValueError("write it as 5000 (events a second), 2MB (bytes a second) or max")
        unit = _UNITS[(found[2] or "").lower()]
        number = float(found[1])
        return cls(bytes_per_s=number * unit) if unit else cls(events_per_s=number)

    async def took(self, events: int, bytes_: int) -> None:
        """Counts what was read, and waits until it was time for that."""
        self._events += events
        self._bytes += bytes_
        due = max(
            self._events / self.events_per_s if self.events_per_s else 0.0,
            self._bytes / self.bytes_per_s if self.bytes_per_s else 0.0,
        )
        ahead = due - (time.monotonic() - self._began)
        if ahead > 0:
            await asyncio.sleep(ahead)
