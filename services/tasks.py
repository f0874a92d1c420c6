"""Ending background tasks for sure."""

from __future__ import annotations

import asyncio
from typing import Any


async def ended(task: asyncio.Task[Any]) -> None:
    """Cancels a task and returns once it has ended.

    More than one cancellation may be needed: `asyncio.wait_for` (3.11) swallows one that comes in
    the turn in which what it waits for is done, and nats-py one that comes while it flushes.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait({task}, timeout=0.1)
