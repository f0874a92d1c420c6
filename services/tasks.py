"""Background tasks: keeping them, waiting for them, and ending them for sure."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


class Tasks:
    """Tasks that nobody waits for while they run; asyncio itself would forget them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Has the work done in a task of its own."""
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def idle(self) -> None:
        """Returns once nothing runs; what is started meanwhile is waited for too."""
        while self._running:
            await asyncio.gather(*self._running, return_exceptions=True)

    async def settle(self, within_s: float) -> None:
        """Waits so long for what runs now, and leaves it alone."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=within_s)


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancels a task and returns once it has ended.

    More than one cancellation may be needed: `asyncio.wait_for` (3.11) swallows one that comes in
    the turn in which what it waits for is done, and nats-py one that comes while it flushes.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
