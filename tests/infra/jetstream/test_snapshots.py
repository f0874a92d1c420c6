"""The latest snapshot of each originator: replaced, bounded, and never worth a failure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from nats.aio.client import Client

from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology, call
from infra.server import EmbeddedServer

from .rigs import connected, fresh_topology, opened

Until = Callable[[Callable[[], bool]], Awaitable[None]]


def with_snapshots(**fields: int) -> Topology:
    made = fresh_topology()
    return fresh_topology(
        stream=made.stream,
        prefix=made.prefix,
        snapshot_stream=f"{made.stream}-S",
        snapshot_prefix=f"{made.prefix}-s",
        **fields,
    )


@pytest_asyncio.fixture
async def store(nats_server: EmbeddedServer) -> AsyncIterator[Store]:
    async with opened(nats_server.url, with_snapshots(), request_timeout=10) as store:
        yield store


async def test_there_is_none_at_first(store: Store) -> None:
    assert await store.snapshots.load("ada") is None


async def test_the_newer_replaces_the_older_of_the_same_originator(
    store: Store, nats_client: Client
) -> None:
    assert await store.snapshots.save("ada", b"first")
    assert await store.snapshots.save("bob", b"another")
    assert await store.snapshots.save("ada", b"second \x00\xff")
    assert await store.snapshots.load("ada") == b"second \x00\xff"
    assert await store.snapshots.load("bob") == b"another"
    info = await call(nats_client, f"STREAM.INFO.{store.topology.snapshot_stream}", {})
    assert info["state"]["messages"] == 2


async def test_one_that_is_too_large_is_not_saved_and_the_older_stays(
    nats_server: EmbeddedServer,
) -> None:
    async with opened(nats_server.url, with_snapshots(snapshot_bytes_max=10_000)) as store:
        assert store.snapshots.bytes_max < 10_000
        assert await store.snapshots.save("ada", b"x" * store.snapshots.bytes_max)
        assert not await store.snapshots.save("ada", b"y" * (store.snapshots.bytes_max + 1))
        assert await store.snapshots.load("ada") == b"x" * store.snapshots.bytes_max


async def test_one_that_the_server_refuses_is_not_saved_and_says_so(
    store: Store, nats_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    # given an operator who lowers the limit of the stream
    caplog.set_level("INFO")
    name = store.topology.snapshot_stream
    config = {**store.topology.snapshots_config(), "max_msg_size": 100}
    assert "error" not in await call(nats_client, f"STREAM.UPDATE.{name}", config)
    # when a larger one is saved, then it was not
    assert not await store.snapshots.save("ada", b"x" * 1_000)
    assert "snapshot of ada not saved" in caplog.text


async def test_without_the_stream_saving_is_false_and_loading_unavailable(
    store: Store, nats_client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await call(nats_client, f"STREAM.DELETE.{store.topology.snapshot_stream}", {})
    assert not await store.snapshots.save("ada", b"x")
    assert "snapshot of ada not saved" in caplog.text
    with pytest.raises(StoreUnavailable):
        await store.snapshots.load("ada")


async def test_while_disconnected_neither_hangs(tmp_path: Path, until: Until) -> None:
    server = EmbeddedServer(tmp_path)
    await server.start()
    async with connected(server.url) as writing, connected(server.url) as reading:
        store = await Store.open(with_snapshots(), writing=writing, reading=reading)
        assert await store.snapshots.save("ada", b"x")
        await server.stop()
        await until(lambda: not (writing.is_connected or reading.is_connected))
        assert not await store.snapshots.save("ada", b"y")
        with pytest.raises(StoreUnavailable, match="did not answer"):
            await store.snapshots.load("ada")
        async with EmbeddedServer(tmp_path, port=server.port):
            await until(lambda: writing.is_connected and reading.is_connected)
            await store.close()
