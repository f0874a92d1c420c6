"""Virtual time: an event loop that never waits. Where it would sleep, its clock jumps instead.

Within `run`, whoever reads `time.monotonic`, `time.perf_counter` or the ledger's own clock reads
virtual time, and the random numbers of the process come from the seed: the same seed gives the same
run, to the last turn of the loop. A program in which everybody waits for somebody is found out at
once (`Stuck`), and so is one that goes on for ever.
"""

from __future__ import annotations

import asyncio
import random
import time
from asyncio import events
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextvars import Context, copy_context
from datetime import UTC, datetime, timedelta
from functools import partial
from heapq import heappop, heappush
from itertools import count
from typing import Any, TypeVar, cast
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

    def jump(self, to: float | None) -> None:
        """Lets time pass until the next thing is due."""
        if to is None:
            raise Stuck("everybody waits, and nothing is due")
        self.now = to
        if self.now > self._limit_s:
            raise Stuck(f"no end after {self._limit_s:g} s of virtual time")


class _Due:
    """A callback until it is cancelled; does what `asyncio.TimerHandle` is asked for."""

    __slots__ = ("_at", "call")

    def __init__(self, call: Callable[[], object] | None, at: float) -> None:
        self.call = call
        self._at = at

    def when(self) -> float:
        return self._at

    def cancel(self) -> None:
        self.call = None

    def cancelled(self) -> bool:
        return self.call is None


class _JumpingLoop:
    """As much of an event loop as does without files and threads, and as plain as can be: its turns
    are a good part of what a run costs. Where nothing is ready it lets time pass; what a callback
    raises ends the run."""

    def __init__(self, clock: Clock) -> None:
        self.as_loop = cast("asyncio.AbstractEventLoop", self)
        self._clock = clock
        self._ready: deque[_Due] = deque()
        self._later: list[tuple[float, int, _Due]] = []
        self._numbers = count()

    def run_until_complete(self, future: Awaitable[_T]) -> _T:
        """Returns what it returns. Raises Stuck."""
        events._set_running_loop(self.as_loop)  # it is there for those who write loops
        try:
            main = asyncio.ensure_future(future, loop=self.as_loop)
            while not main.done():
                self._turn()
            return main.result()
        finally:
            events._set_running_loop(None)

    def _turn(self) -> None:
        ready, later = self._ready, self._later
        while later and later[0][2].call is None:
            heappop(later)
        if not ready:
            self._clock.jump(max(self._clock.now, later[0][0]) if later else None)
        while later and later[0][0] <= self._clock.now:
            ready.append(heappop(later)[2])
        for _ in range(len(ready)):
            call = ready.popleft().call
            if call is not None:
                call()

    # -- what asyncio asks of a loop ---------------------------------------------------------------

    def time(self) -> float:
        return self._clock.now

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self.as_loop)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self.as_loop, **options)

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: Context | None = None
    ) -> Any:
        due = _Due(partial((context or copy_context()).run, callback, *args), self._clock.now)
        self._ready.append(due)
        return due

    def call_at(
        self,
        when: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Any:
        due = _Due(partial((context or copy_context()).run, callback, *args), when)
        heappush(self._later, (when, next(self._numbers), due))
        return due

    def call_later(
        self,
        delay: float,
        callback: Callable[..., object],
        *args: Any,
        context: Context | None = None,
    ) -> Any:
        return self.call_at(self._clock.now + delay, callback, *args, context=context)

    def run_in_executor(
        self, _executor: None, work: Callable[..., _T], *args: Any
    ) -> asyncio.Future[_T]:
        done = self.create_future()
        try:
            done.set_result(work(*args))
        except Exception as error:  # noqa: BLE001 (the future's, as a thread's would be)
            done.set_exception(error)
        return done

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """Told what a task has raised that nobody waited for, whenever that is noticed."""


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
        loop = _JumpingLoop(clock)
        try:
            return loop.run_until_complete(main(clock))
        finally:
            clock.allow(60.0)
            try:
                _cancel_the_rest(loop)
            finally:
                random.setstate(state)


def _cancel_the_rest(loop: _JumpingLoop) -> None:
    left = asyncio.all_tasks(loop.as_loop)
    for task in left:
        task.cancel()
    if left:
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
