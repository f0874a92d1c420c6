"""The event loop of the product's programs: uvloop's, where that is built for the platform."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


def run(work: Coroutine[Any, Any, Result]) -> Result:
    """Does what `asyncio.run` does."""
    try:
        import uvloop  # noqa: PLC0415 (there is none on Windows)
    except ImportError:
        return asyncio.run(work)
    return uvloop.run(work)


def new_loop() -> asyncio.AbstractEventLoop:
    """A new loop, for a thread of its own."""
    try:
        import uvloop  # noqa: PLC0415 (as above)
    except ImportError:
        return asyncio.new_event_loop()
    return uvloop.new_event_loop()
