"""Virtual time: an event loop that never waits. Where it would sleep, its clock jumps instead.

Within `run`, whoever reads `time.monotonic`, `time.perf_counter` or the ledger's own clock reads
virtual time, and the random numbers of the process come from the seed: the same seed gives the same
run, to the last turn of the loop. A program in which everybody waits for somebody is found out at
once (`Stuck`), and so is one that goes on for ever.
"""

from __future__ import annotations

import asyncio
import random
import selectors
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar
from unittest.mock import patch

from eventsourcing.domain import CanCreateTimestamp

_T = TypeVar("_T")

STARTED = datetime(2026, 1, 1, tzinfo=UTC)
"""What every run takes for the present time when it begins."""


class Stuck(AssertionError):
    """Nothing will ever happen any more, or it never ends."""


class Clock:
    """Seconds since the run began."""

    def __init__(self, limit_s: float) -> None:
        self.now = 0.0
        self._limit_s = limit_s

    def read(self) -> float:
        """Stands for `time.monotonic`."""
        return self.now

    def present(self) -> datetime:
        """Stands for the ledger's clock."""
        return STARTED + timedelta(seconds=self.now)

    def time_ns(self) -> int:
        """The present time as a server stamps it, in nanoseconds since 1970."""
        return int(STARTED.timestamp()) * 1_000_000_000 + int(self.now * 1e9)

    def allow(self, seconds: float) -> None:
        """Lets the run go on for so long from now."""
        self._limit_s = self.now + seconds

    def jump(self, seconds: float | None) -> None:
        """Lets time pass until the next thing is due."""
        if seconds is None:
            raise Stuck("everybody waits, and nothing is due")
        self.now += seconds
        if self.now > self._limit_s:
            raise Stuck(f"no end after {self._limit_s:g} s of virtual time")


class _JumpingSelector(selectors.SelectSelector):
    """No file is ever ready; waiting for one takes no time."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self._clock = clock

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None or timeout > 0:
            self._clock.jump(timeout)
        return []


def run(
    main: Callable[[Clock], Coroutine[Any, Any, _T]], *, seed: int, limit_s: float = 600.0
) -> _T:
    """Runs a program in virtual time; returns what it returns. Raises Stuck."""
    clock = Clock(limit_s)
    state = random.getstate()
    random.seed(seed)
    with (
        patch.object(time, "monotonic", clock.read),
        patch.object(time, "perf_counter", clock.read),
        patch.object(CanCreateTimestamp, "create_timestamp", clock.present),
    ):
        loop = asyncio.SelectorEventLoop(_JumpingSelector(clock))
        try:
            return loop.run_until_complete(main(clock))
        finally:
            clock.allow(60.0)
            try:
                _cancel_the_rest(loop)
            finally:
                loop.close()
                random.setstate(state)


def _cancel_the_rest(loop: asyncio.AbstractEventLoop) -> None:
    left = asyncio.all_tasks(loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
