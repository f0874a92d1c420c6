"""A crash right after nats-server has begun a new block of a stream.

The new block is there and empty, and the one before it is the last one again: what is acknowledged
from then on goes there. In a compressed stream that is the end of it, see `topology.UNCOMPRESSED`.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from infra.connection import connect
from infra.jetstream import topology as topology_module
from infra.jetstream.envelope import pack
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology
from infra.server import EmbeddedServer
from infra.settings import Settings

LEDGER = Topology(stream="S", prefix="e")
EVENT_BYTES = 200_000
BLOCK_EVENTS_MAX = 60
"""More than one block holds."""


class Machine:
    """A server on one folder that crashes now and then."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def blocks(self) -> list[Path]:
        """The files of the stream, oldest first."""
        found = self.folder.glob("nats/jetstream/**/S-0/msgs/*.blk")
        return sorted(found, key=lambda path: int(path.stem))

    async def run_until_it_crashes(self, blocks: int, *, at_least: int = 1) -> list[int]:
        """Appends until there are so many blocks, and then is killed; what was acknowledged."""
        acknowledged: list[int] = []
        server = EmbeddedServer(self.folder)
        await server.start()
        nc = await connect(server.url, name="test", settings=Settings())
        store = await Store.open(LEDGER, writing=nc, reading=nc)
        tail = store.tail("a", await store.last("a", leader=True))
        body = b'"%s"' % os.urandom(EVENT_BYTES // 2).hex().encode()
        while len(acknowledged) < at_least or len(self.blocks) < blocks:
            [seq] = await store.append([pack(tail, "T", tail.version + 1, body)])
            acknowledged.append(seq)
            assert len(acknowledged) < BLOCK_EVENTS_MAX
        while topology_module.UNCOMPRESSED != "none" and not self._has_compressed():  # noqa: ASYNC110 (files tell nobody)
            await asyncio.sleep(0.01)
        await nc.close()
        server.kill()
        await server.stop()
        return acknowledged

    def _has_compressed(self) -> bool:
        return self.blocks[0].read_bytes().startswith(b"cmp")

    def forget_the_last_block(self) -> None:
        """Leaves the last block as it is when a crash comes right after it was begun."""
        os.truncate(self.blocks[-1], 0)

    async def read(self) -> list[int]:
        """The sequences of what is there after one more start."""
        async with EmbeddedServer(self.folder) as server:
            nc = await connect(server.url, name="test", settings=Settings())
            store = await Store.open(LEDGER, writing=nc, reading=nc)
            events = await store.read("a")
            await nc.close()
            return [event.seq for event in events]


async def crashed_twice(folder: Path) -> tuple[list[int], list[int]]:
    """What was acknowledged around a crash at the beginning of a block, and what is there then."""
    machine = Machine(folder)
    *before, _lost_with_its_block = await machine.run_until_it_crashes(2)
    machine.forget_the_last_block()
    after = await machine.run_until_it_crashes(1, at_least=2)
    return before + after, await machine.read()


async def test_what_is_acknowledged_after_it_is_there_and_all_before_it(tmp_path: Path) -> None:
    acknowledged, found = await crashed_twice(tmp_path)
    assert found == acknowledged == list(range(1, len(found) + 1))


async def test_a_compressed_stream_loses_everything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control. Should it fail, nats-server has been mended, and streams may be compressed."""
    monkeypatch.setattr(topology_module, "UNCOMPRESSED", "s2")
    acknowledged, found = await crashed_twice(tmp_path)
    assert len(acknowledged) > 30
    assert found == []
