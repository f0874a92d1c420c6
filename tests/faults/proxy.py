"""A network of our own between two programs on loopback: slow, dead, half dead, or cut."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from infra.server import HOST

CHUNK_BYTES = 4096


@dataclass(slots=True)
class Line:
    """How one direction behaves; every connection is the same to it."""

    delay_s: float = 0.0
    """For each piece of up to 4,096 bytes, one behind the other: so it bounds the rate as well."""
    silent: bool = False
    """Bytes are taken and never arrive: half of the connection is gone and nobody says so."""


class Proxy:
    """Takes connections at `url` and passes them on to a server, as `up` and `down` allow."""

    def __init__(self, port: int) -> None:
        self.up = Line()
        self.down = Line()
        self.url = ""
        self._port = port
        self._listener: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def heal(self) -> None:
        """Lets everything through; a connection that was silent has lost bytes and is cut."""
        silent = self.up.silent or self.down.silent
        self.up, self.down = Line(), Line()
        if silent:
            self.cut()

    def cut(self) -> None:
        """Ends every connection (RST); new ones may come."""
        for writer in self._writers:
            writer.transport.abort()

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(HOST, self._port)
        except OSError:
            writer.transport.abort()
            return
        pair = {writer, far_writer}
        self._writers |= pair
        both = [
            asyncio.ensure_future(self._pass_on(reader, far_writer, "up")),
            asyncio.ensure_future(self._pass_on(far_reader, writer, "down")),
        ]
        self._tasks.update(both)
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        for each in pair:
            each.transport.abort()
        self._writers -= pair
        await asyncio.wait(both)
        self._tasks.difference_update(both)

    async def _pass_on(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: str
    ) -> None:
        with contextlib.suppress(OSError):
            while piece := await reader.read(CHUNK_BYTES):
                line: Line = getattr(self, way)
                if line.delay_s:
                    await asyncio.sleep(line.delay_s)
                if not line.silent:
                    writer.write(piece)
                    await writer.drain()

    async def __aenter__(self) -> Self:
        self._listener = await asyncio.start_server(self._take, HOST, 0)
        self.url = f"nats://{HOST}:{self._listener.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._listener is not None
        self._listener.close()
        self.cut()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
