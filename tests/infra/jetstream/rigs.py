"""What the store tests stand on: a server with settings of their own, stores, writes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

from nats.aio.client import Client
from nats.nuid import NUID

from infra.connection import connect
from infra.jetstream.committer import Write
from infra.jetstream.envelope import Message, Tail, pack
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology, call
from infra.lean import LeanClient
from infra.server import HOST, find_program, free_port
from infra.settings import Settings

GREETING_TIMEOUT_S = 30.0


@contextlib.asynccontextmanager
async def server_with(
    folder: Path, *, settings: str = "", jetstream: str = ""
) -> AsyncIterator[str]:
    """A nats-server with further settings, beside and inside its `jetstream` block; its URL."""
    port = free_port()
    config = folder / f"{port}.conf"
    config.write_text(
        f'listen: "{HOST}:{port}"\nmax_payload: 8MB\n{settings}\n'
        f'jetstream {{ store_dir: "{folder / str(port)}", sync_interval: always\n{jetstream}\n}}\n'
    )
    process = await asyncio.create_subprocess_exec(
        str(find_program()),
        "--config",
        str(config),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        async with asyncio.timeout(GREETING_TIMEOUT_S):
            while not await _greets(port):
                assert process.returncode is None, f"nats-server refuses {config.read_text()}"
        yield f"nats://{HOST}:{port}"
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGKILL)
        await process.wait()


async def _greets(port: int) -> bool:
    try:
        reader, writer = await asyncio.open_connection(HOST, port)
    except OSError:
        await asyncio.sleep(0.01)
        return False
    greeting = await reader.readline()
    writer.close()
    return greeting.startswith(b"INFO ")


@contextlib.asynccontextmanager
async def connected(url: str) -> AsyncIterator[LeanClient]:
    """A connection as the product makes its own."""
    client = await connect(url, name="test", settings=Settings())
    try:
        yield client
    finally:
        await client.close()


def fresh_topology(**fields: Any) -> Topology:
    """Streams and subjects that no other test has."""
    name = NUID().next().decode()
    return Topology(**{"stream": name, "prefix": name, **fields})


@contextlib.asynccontextmanager
async def opened(
    url: str,
    topology: Topology | None = None,
    *,
    deadline: float = 10.0,
    request_timeout: float | None = None,
) -> AsyncIterator[Store]:
    """A store as a process of its own would have it: two connections, streams made or verified."""
    async with connected(url) as writing, connected(url) as reading:
        store = await Store.open(
            topology or fresh_topology(),
            writing=writing,
            reading=reading,
            request_timeout=request_timeout,
            deadline=deadline,
        )
        try:
            yield store
        finally:
            await store.close()


def tail_of(store: Store, originator: str) -> Tail:
    """The end of a subject on which there is nothing yet."""
    return Tail(store.topology.subject(originator))


def events(tail: Tail, number: int = 1, body: bytes = b"{}") -> list[Message]:
    """The next events behind a tail."""
    return [pack(tail, "Happened", tail.version + 1, body) for _ in range(number)]


class Handed:
    """A write that was handed over, and how often its `on_done` was called."""

    def __init__(self, store: Store, messages: Sequence[Message]) -> None:
        self.calls = 0
        self.done = asyncio.get_running_loop().create_future()
        self.write = Write(messages, self._on_done)
        store.submit(self.write)

    def _on_done(self, write: Write) -> None:
        assert write is self.write
        self.calls += 1
        if not self.done.done():
            self.done.set_result(None)

    @property
    def error(self) -> Exception | None:
        return self.write.error

    async def settled(self) -> Write:
        """The write, once its `on_done` was called."""
        await self.done
        return self.write


async def committed(store: Store, writes: Sequence[Sequence[Message]]) -> list[Write]:
    """Hands all writes over in one turn of the loop; returns them when they are done."""
    handed = [Handed(store, messages) for messages in writes]
    return [await each.settled() for each in handed]


async def stored_state(client: Client, store: Store, partition: int = 0) -> dict[str, Any]:
    """The `state` of a stream as its server gives it."""
    answer = await call(client, f"STREAM.INFO.{store.topology.stream_name(partition)}", {})
    state: dict[str, Any] = answer["state"]
    return state
