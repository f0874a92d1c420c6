"""A bare NATS connection: the client protocol and nothing else.

It costs a tenth of a client library per request, which is what makes a load generator that is not
the bottleneck of what it measures. No reconnecting, no TLS, no credentials. Source: the NATS client
protocol, docs.nats.io/reference/reference-protocols/nats-protocol.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Self, cast
from urllib.parse import urlsplit

_HELLO = (
    b'CONNECT {"verbose":false,"pedantic":false,"lang":"python-bare","version":"0","protocol":1,'
    b'"headers":true,"no_responders":true}\r\n'
)
_M, _H, _MINUS = b"MH-"

OnMessage = Callable[[bytes, bytes, bytes, bytes], None]
"""Called with subject, reply subject (empty where there is none), headers as sent, payload."""


class WireError(Exception):
    """The server refused something, or the connection ended."""


class Wire(asyncio.Protocol):
    """One connection. What `send` takes leaves at the end of the present read, or at `flush`."""

    def __init__(self, on_message: OnMessage) -> None:
        self._on_message = on_message
        self._unread = b""
        self._out: list[bytes] = []
        self._transport: asyncio.Transport | None = None
        self._pongs: list[asyncio.Future[None]] = []
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        """Fails with WireError once the connection is of no use any more."""

    @classmethod
    async def connect(cls, url: str, on_message: OnMessage) -> Self:
        """Returns a connection that the server has greeted. OSError when nobody listens."""
        place = urlsplit(url)
        _, wire = await asyncio.get_running_loop().create_connection(
            lambda: cls(on_message), place.hostname or "127.0.0.1", place.port or 4222
        )
        await wire.round_trip()
        return wire

    def send(self, protocol: bytes) -> None:
        """Queues protocol lines."""
        self._out.append(protocol)

    def flush(self) -> None:
        """Writes what is queued."""
        if self._out and self._transport is not None:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    async def round_trip(self) -> None:
        """Returns once the server has taken in everything sent before."""
        pong = asyncio.get_running_loop().create_future()
        self._pongs.append(pong)
        self.send(b"PING\r\n")
        self.flush()
        await asyncio.wait({pong, self.lost}, return_when=asyncio.FIRST_COMPLETED)
        if self.lost.done():
            self.lost.result()

    def close(self) -> None:
        self.lost.cancel()
        if self._transport is not None:
            self._transport.close()

    # -- asyncio.Protocol ----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._transport.write(_HELLO)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_exception(WireError(f"the connection ended: {exc or 'closed'}"))

    def data_received(self, data: bytes) -> None:
        read = self._unread + data if self._unread else data
        at, end_of_read = 0, len(read)
        find, on_message = read.find, self._on_message
        while at < end_of_read:
            end_of_line = find(b"\r\n", at)
            if end_of_line < 0:
                break
            first = read[at]
            body = end_of_line + 2
            if first == _M:  # MSG <subject> <sid> [reply-to] <#bytes>
                words = read[at + 4 : end_of_line].split()
                end = body + int(words[-1])
                if end + 2 > end_of_read:
                    break
                on_message(words[0], words[2] if len(words) == 4 else b"", b"", read[body:end])
                at = end + 2
            elif first == _H:  # HMSG <subject> <sid> [reply-to] <#header bytes> <#total bytes>
                words = read[at + 5 : end_of_line].split()
                headers_end = body + int(words[-2])
                end = body + int(words[-1])
                if end + 2 > end_of_read:
                    break
                reply = words[2] if len(words) == 5 else b""
                on_message(words[0], reply, read[body:headers_end], read[headers_end:end])
                at = end + 2
            else:
                self._control(first, read[at:end_of_line])
                at = body
        self._unread = read[at:]
        self.flush()

    def _control(self, first: int, line: bytes) -> None:
        if line == b"PING":
            self.send(b"PONG\r\n")
        elif line == b"PONG":
            self._pongs.pop(0).set_result(None)
        elif first == _MINUS and not self.lost.done():
            self.lost.set_exception(WireError(f"the server says {line.decode()}"))
