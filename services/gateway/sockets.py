"""WebSockets: frames of JSON in both directions, bounded in size, in rate and in time.

uvicorn answers pings, sends its own, and closes what does not answer (and what is too large, with
1009). How a connection ends, beside that:

| code | meaning |
|---|---|
| 1008 | the client sends more frames than it may |
| 1011 | the ledger cannot be reached; come back in a while |
| 1012 | this gateway stops; come back at once |
| 1013 | the client did not read fast enough; come back and catch up |
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

from fastapi import WebSocket, WebSocketDisconnect
from pydantic_core import from_json, to_json

from services.gateway.errors import GatewayError, told
from services.gateway.ledger import JSON
from services.gateway.limits import Bucket
from services.gateway.live import Closing, TooSlow
from services.tasks import ended

SEND_WITHIN_S: Final = 10.0
"""How long one frame may wait for a client that does not read."""

FRAMES_PER_S: Final = 50
FRAMES_AT_ONCE: Final = 200


PROTOCOL: Final = "convo"
"""A browser that offers its credentials as a subprotocol wants one taken: it offers this beside."""


async def accepted(websocket: WebSocket) -> Socket:
    """The WebSocket, accepted."""
    await websocket.accept(PROTOCOL if PROTOCOL in websocket.scope["subprotocols"] else None)
    return Socket(websocket)


class BadFrame(Exception):
    """A frame that is no JSON object; the connection stays open. The text says what is wrong."""


class TooManyFrames(Exception):
    """The client sends more than it may."""


class Socket:
    """One accepted WebSocket."""

    def __init__(self, websocket: WebSocket) -> None:
        self._websocket = websocket
        self._bucket = Bucket(FRAMES_PER_S, FRAMES_AT_ONCE)
        self._sending = asyncio.Lock()

    async def send(self, frame: JSON | str) -> None:
        """Sends an object as JSON, or a text that is JSON already. Raises TooSlow."""
        text = frame if isinstance(frame, str) else to_json(frame).decode()
        try:
            async with asyncio.timeout(SEND_WITHIN_S), self._sending:
                await self._websocket.send_text(text)
        except TimeoutError:
            raise TooSlow(f"a frame was not taken within {SEND_WITHIN_S:g} s") from None
        except RuntimeError as error:  # it has been closed meanwhile
            raise WebSocketDisconnect(1006) from error

    async def receive(self) -> JSON:
        """The next frame. Raises BadFrame, TooManyFrames, or WebSocketDisconnect at the end."""
        message = await self._websocket.receive()
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1005))
        if self._bucket.take() > 0:
            raise TooManyFrames
        try:
            frame = from_json(message.get("text") or message.get("bytes") or b"")
        except ValueError:
            raise BadFrame("a frame has to be JSON") from None
        if not isinstance(frame, dict):
            raise BadFrame("a frame has to be a JSON object")
        return frame

    async def close(self, code: int, reason: str) -> None:
        """Closes it; harmless when it is closed already."""
        try:
            async with asyncio.timeout(SEND_WITHIN_S):
                await self._websocket.close(code, reason)
        except (RuntimeError, TimeoutError, WebSocketDisconnect):
            pass  # it is gone


async def attend(socket: Socket, *sides: Coroutine[Any, Any, None]) -> None:
    """Runs the sides of a connection until one of them ends, ends the others, and closes it."""
    tasks = [asyncio.ensure_future(side) for side in sides]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            await ended(task)
    failures = [task.exception() for task in done if not task.cancelled()]
    await socket.close(*_ending(next((each for each in failures if each is not None), None)))


def _ending(failure: BaseException | None) -> tuple[int, str]:
    """The close code and what it says (at most 123 bytes)."""
    match failure:
        case None | WebSocketDisconnect():
            return 1000, ""
        case TooManyFrames():
            return 1008, f"more than {FRAMES_PER_S} frames a second"
        case Closing():
            return 1012, "the gateway stops: connect again"
        case TooSlow():
            return 1013, "too slow a reader: connect again and catch up"
        case GatewayError(retryable=True):
            return 1011, "the ledger cannot be reached: try again"
        case Exception():
            return 1011, told(failure).message.encode()[:120].decode(errors="ignore")
    raise failure
