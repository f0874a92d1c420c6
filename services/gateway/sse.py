"""Server-sent events: an answer over HTTP that goes on while something happens.

A stream that has to end early (the gateway stops, the client does not read) is cut off in the
middle of its body, so that no client takes it for whole; coming back is for the client.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import AsyncExitStack, aclosing
from typing import Final

from fastapi.responses import StreamingResponse
from pydantic_core import to_json
from starlette.types import Message, Receive, Scope, Send

from services.gateway.ledger import JSON
from services.gateway.live import Closing, TooSlow

SEND_WITHIN_S: Final = 10.0
"""How long one event may wait for a client that does not read."""

KEEP_ALIVE_S: Final = 15.0
KEEP_ALIVE: Final = ": keep-alive\n\n"
"""Sent when nothing happens, so that nothing on the way takes the connection for dead."""

HEADERS: Final = {"Cache-Control": "no-cache, no-transform", "X-Accel-Buffering": "no"}


def _is_news(record: logging.LogRecord) -> bool:
    """uvicorn says this of every stream that is cut off, which is meant here."""
    return record.msg != "ASGI callable returned without completing response."


logging.getLogger("uvicorn.error").addFilter(_is_news)


def event(body: JSON | str, *, id: str | None = None) -> str:
    """One event with a JSON object, or a bare word, as its data."""
    data = body if isinstance(body, str) else to_json(body).decode()
    return f"id: {id}\ndata: {data}\n\n" if id else f"data: {data}\n\n"


class EventStream(StreamingResponse):
    """Sends what `events` yields; `holding` (what the events need) is let go of at the end."""

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[str, None],
        holding: AsyncExitStack,
        headers: Mapping[str, str] | None = None,
        status_code: int = 200,
    ) -> None:
        super().__init__(events, status_code, headers={**HEADERS, **(headers or {})})
        self._events = events
        self._holding = holding

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._holding, aclosing(self._events):
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        async def in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(SEND_WITHIN_S):
                    await send(message)
            except TimeoutError:
                raise TooSlow(f"an event was not taken within {SEND_WITHIN_S:g} s") from None

        try:
            await super().stream_response(in_time)
        except* (TooSlow, Closing):
            pass  # without its last piece the body is incomplete, and the connection is closed
