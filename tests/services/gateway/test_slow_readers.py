"""A client that does not read what it is sent is dropped, told why, and catches up."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import websockets
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from infra.settings import Settings
from services.gateway import live, serving, sockets, sse
from tests.acceptance.client import Ledger
from tests.services.gateway.site import GatewayProcess

CHARS, AT_ONCE = 200_000, 10
WITHIN_S = 60


def kernel_bytes() -> int:
    """What the kernel's buffers of a connection hold at most."""
    files = [Path(f"/proc/sys/net/ipv4/tcp_{which}mem") for which in "rw"]
    return sum(int(file.read_text().split()[2]) if file.exists() else 8 << 20 for file in files)


async def ending(socket: websockets.ClientConnection) -> tuple[int, str]:
    """The close code and its reason, once everything before is read."""
    async with asyncio.timeout(WITHIN_S):
        async for _ in unread(socket):
            pass
    assert socket.close_code is not None
    return socket.close_code, socket.close_reason or ""


async def unread(socket: websockets.ClientConnection) -> AsyncIterator[Any]:
    """What it was sent, to its end, whatever that is."""
    with suppress(websockets.ConnectionClosed):
        while True:
            yield await socket.recv()


async def test_a_viewer_that_does_not_read_is_dropped_and_catches_up(
    gateway: GatewayProcess, ledger: Ledger, id: str
) -> None:
    batches = (live.QUEUE_BYTES_MAX + kernel_bytes()) // (CHARS * AT_ONCE) + 4
    conversation = ledger.conversation(id, "default")
    await conversation.init()
    url = f"{gateway.ws}/conversation/{id}"
    async with (
        websockets.connect(url, max_size=None, max_queue=1, ping_interval=None) as slow,
        websockets.connect(url, max_size=None) as quick,
    ):
        await slow.recv()
        await quick.recv()
        for batch in range(batches):  # long before anybody misses an answer to a ping
            said = [f"{batch}.{number} " + "x" * CHARS for number in range(AT_ONCE)]
            messages = [{"role": "assistant", "content": each} for each in said]
            await conversation.do("import", messages=messages, mode="append")
            for each in said:
                assert json.loads(await quick.recv())["content"] == each

        assert await ending(slow) == (1013, "too slow a reader: connect again and catch up")

        async with websockets.connect(url, max_size=None) as back:
            greeting = json.loads(await back.recv())
            assert greeting["metadata"]["messageCount"] == batches * AT_ONCE
            await conversation.append("and on", role="assistant")
            assert json.loads(await back.recv())["content"] == "and on"


@asynccontextmanager
async def flooding(kind: str) -> AsyncIterator[tuple[str, asyncio.Event]]:
    """A server that sends without end; the event says when it has given a client up."""
    given_up = asyncio.Event()

    async def flood(to: sockets.Socket) -> None:
        while True:
            await to.send({"x": "x" * CHARS})

    async def events() -> AsyncGenerator[str, None]:
        while True:
            yield sse.event("x" * CHARS)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if kind == "websocket":
                to = await sockets.accepted(WebSocket(scope, receive, send))
                await sockets.attend(to, flood(to))
            else:
                await sse.EventStream(events(), AsyncExitStack())(scope, receive, send)
        finally:
            given_up.set()

    with serving.listening(Settings(gateway_port=0)) as listener:
        async with serving.serving(app, listener) as url:
            yield url, given_up


async def test_who_reads_on_after_a_while_is_told_why_it_was_dropped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sockets, "SEND_WITHIN_S", 0.2)
    async with (
        flooding("websocket") as (url, given_up),
        websockets.connect(
            url.replace("http", "ws"), max_size=None, max_queue=1, ping_interval=None
        ) as viewer,
    ):
        async with asyncio.timeout(WITHIN_S):
            await given_up.wait()
        assert (await ending(viewer))[0] == 1013


async def test_an_event_stream_that_is_not_read_is_cut_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sse, "SEND_WITHIN_S", 0.2)
    async with flooding("events") as (url, given_up), asyncio.timeout(WITHIN_S):
        place = urlsplit(url)
        reader, writer = await asyncio.open_connection(place.hostname, place.port, limit=1_000)
        writer.write(b"GET / HTTP/1.1\r\nhost: here\r\n\r\n")
        await given_up.wait()
        assert (await everything(reader)).startswith(b"HTTP/1.1 200 OK\r\n")
        writer.close()


async def everything(reader: asyncio.StreamReader) -> bytes:
    """All up to the end, which is none: the last piece of a body has the size 0."""
    whole = await reader.read()
    assert not whole.endswith(b"\r\n0\r\n\r\n")
    return whole


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="the kernel has no such bound")
async def test_a_connection_that_nobody_reads_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "SEND_WITHIN_S", 0.2)
    monkeypatch.setattr(serving, "UNREAD_FOR_S", 1)
    lost: list[Any] = []
    original = serving._WebSocketProtocol.connection_lost

    def connection_lost(self: Any, exc: Exception | None) -> None:
        lost.append(exc)
        original(self, exc)

    monkeypatch.setattr(serving._WebSocketProtocol, "connection_lost", connection_lost)
    async with (
        flooding("websocket") as (url, _),
        websockets.connect(
            url.replace("http", "ws"),
            max_size=None,
            max_queue=1,
            ping_interval=None,
            close_timeout=0,
        ),
        asyncio.timeout(WITHIN_S),
    ):
        while not lost:  # noqa: ASYNC110 - it is the kernel's doing
            await asyncio.sleep(0.05)
