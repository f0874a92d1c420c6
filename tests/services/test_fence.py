"""A ledger that went back in time is refused, by whoever has seen more of it; and by nobody else.

The stores here really go back: nats-server is stopped, its files are exchanged, and it is started.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError, OutboundBufferLimitError
from nats.nuid import NUID

from infra.connection import connect
from infra.jetstream import fence
from infra.jetstream.errors import StreamMismatch
from infra.jetstream.fence import Fence, LedgerWentBack, Witnesses, seen
from infra.jetstream.topology import call
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.bootstrap import FENCE, running, serve

STREAM = "CONVO-EVENTS-0"


class Ground:
    """A server whose store can be exchanged, and services on it with a data directory of theirs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = Settings(data_dir=folder / "services")
        self.server = EmbeddedServer(folder / "server")
        self.store = folder / "server" / "nats" / "jetstream"

    async def restart(self, store: Path | None = None, *, keep: bool = True) -> None:
        """Stops the server and starts it on the same port; with another store, or with none."""
        await self.server.stop()
        if store is not None or not keep:
            shutil.rmtree(self.store)
        if store is not None:
            shutil.copytree(store, self.store)
        self.server = EmbeddedServer(self.folder / "server", port=self.server.port)
        await self.server.start()

    async def copy(self) -> Path:
        """A copy of the store as it is now, as a file system's snapshot would be."""
        into = self.folder / f"copy-{NUID().next().decode()}"
        await self.server.stop()
        shutil.copytree(self.store, into)
        self.server = EmbeddedServer(self.folder / "server", port=self.server.port)
        await self.server.start()
        return into

    async def write(self, count: int, of: str = "c") -> None:
        """Has services started, that many messages stored, and the services ended."""
        async with running(self.settings, ("commands",), url=self.server.url):
            client = await connect(self.server.url, name="test", settings=Settings())
            await ask(client, of, "init", b'{"user_id": "ada"}')
            for _ in range(count):
                assert b'"ok":true' in await say(client, of)
            await client.close()


async def ask(client: Client, conversation: str, verb: str, body: bytes) -> bytes:
    return await answer(client, f"convo.cmd.default.{conversation}.{verb}", body)


async def answer(client: Client, subject: str, body: bytes) -> bytes:
    """The answer, of a server and services that may just be coming back."""
    async with asyncio.timeout(30):
        while True:
            try:
                return (await client.request(subject, body, timeout=20)).data
            except (NoRespondersError, OutboundBufferLimitError):
                await asyncio.sleep(0.02)


async def say(client: Client, conversation: str) -> bytes:
    return await ask(client, conversation, "append", b'{"role": "assistant", "content": "hello"}')


async def last_seq(url: str) -> int:
    client = await connect(url, name="test", settings=Settings())
    info = await call(client, f"STREAM.INFO.{STREAM}", {})
    await client.close()
    return int(info.get("state", {}).get("last_seq", -1))


@pytest.fixture
async def ground(tmp_path: Path) -> AsyncIterator[Ground]:
    ground = Ground(tmp_path)
    await ground.server.start()
    yield ground
    await ground.server.stop()


async def test_a_ledger_that_is_as_it_was_left_is_passed(ground: Ground) -> None:
    await ground.write(3)
    await ground.restart()

    await ground.write(3)

    witness = Witnesses(ground.settings.data_dir / FENCE).get(STREAM)
    assert witness is not None
    assert witness.seq == await last_seq(ground.server.url) == 7


async def test_a_store_brought_back_from_an_old_copy_is_refused(ground: Ground) -> None:
    await ground.write(2)
    old = await ground.copy()
    await ground.write(5)
    await ground.restart(old)

    with pytest.raises(LedgerWentBack, match="ends at sequence 3, and had 8"):
        await ground.write(1)

    assert await last_seq(ground.server.url) == 3


async def test_one_that_was_written_on_since_is_refused_all_the_same(ground: Ground) -> None:
    """Its sequences were issued a second time."""
    await ground.write(2)
    old = await ground.copy()
    await ground.write(5)
    await ground.restart(old)
    elsewhere = ground.settings
    ground.settings = Settings(data_dir=ground.folder / "others")
    await ground.write(20, of="other")
    ground.settings = elsewhere

    with pytest.raises(LedgerWentBack, match="another event at sequence 8"):
        await ground.write(1)


async def test_a_ledger_that_is_gone_is_not_made_anew(ground: Ground) -> None:
    await ground.write(2)
    await ground.restart(keep=False)

    with pytest.raises(LedgerWentBack, match="it is gone, and had 3 events"):
        await ground.write(1)

    assert await last_seq(ground.server.url) == -1


async def test_a_data_directory_that_has_seen_nothing_takes_any_ledger(ground: Ground) -> None:
    await ground.write(2)
    ground.settings = Settings(data_dir=ground.folder / "others")

    await ground.write(2)


async def test_what_goes_back_while_services_run_is_neither_written_nor_shown(
    ground: Ground,
) -> None:
    await ground.write(2)
    old = await ground.copy()
    client = await connect(ground.server.url, name="test", settings=Settings())
    services = ("commands", "queries")
    async with running(ground.settings, services, url=ground.server.url) as process:
        for _ in range(5):
            assert b'"ok":true' in await say(client, "c")
        await process.fence._look()  # a second has passed
        await ground.restart(old)

        written = [await say(client, "c"), await ask(client, "new", "init", b'{"user_id": "b"}')]
        shown = await answer(client, "convo.get.default.c.messages", b"")

        for each in (*written, shown):
            assert b'"code":"storage_unavailable"' in each
            assert b"went back in time" in each
        assert "ends at sequence 3, and had 8" in str(await process.fence.broken)
    await client.close()
    assert await last_seq(ground.server.url) == 3


async def test_what_was_acknowledged_a_moment_ago_counts_as_seen(
    ground: Ground, monkeypatch: pytest.MonkeyPatch
) -> None:
    await ground.write(2)
    old = await ground.copy()
    client = await connect(ground.server.url, name="test", settings=Settings())
    monkeypatch.setattr(fence, "LOOK_S", 3600.0)  # nobody looks at the stream again
    async with running(ground.settings, ("commands",), url=ground.server.url) as process:
        for _ in range(5):
            assert b'"ok":true' in await say(client, "c")
        await ground.restart(old)

        assert b"went back in time" in await say(client, "c")
        assert "ends at sequence 3, and had 8" in str(await process.fence.broken)
    await client.close()
    assert await last_seq(ground.server.url) == 3


async def test_a_server_that_was_away_and_is_as_it_was_is_passed_at_once(ground: Ground) -> None:
    client = await connect(ground.server.url, name="test", settings=Settings())
    async with running(ground.settings, ("commands",), url=ground.server.url) as process:
        await ask(client, "c", "init", b'{"user_id": "ada"}')
        await process.fence._look()
        await ground.restart()

        assert b'"ok":true' in await say(client, "c")
        assert process.fence.is_passed
    await client.close()


async def test_of_several_processes_on_a_folder_one_writes_and_all_compare(
    nats_client: Client, tmp_path: Path, until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    stream = NUID().next().decode()
    await call(nats_client, f"STREAM.CREATE.{stream}", {"name": stream, "subjects": [stream]})
    fences = [Fence(nats_client, tmp_path, {stream: {}}) for _ in range(2)]
    for each in fences:
        await each.start()
    await nats_client.request(stream, b"one", timeout=10)
    await until(lambda: all(stream in each._seen for each in fences))
    await until(lambda: Witnesses(tmp_path).get(stream) is not None)

    witness = Witnesses(tmp_path).get(stream)
    assert witness == await seen(nats_client, stream)
    assert [each._lock is not None for each in fences].count(True) == 1
    for each in fences:
        await each.close()
    await call(nats_client, f"STREAM.PURGE.{stream}", {})
    for each in fences:
        with pytest.raises(LedgerWentBack):
            await each.check()


async def test_a_witness_that_cannot_be_read_stops_nobody(
    nats_client: Client, tmp_path: Path, caplog: Any
) -> None:
    (tmp_path / f"{STREAM}.json").write_text("{")

    await Fence(nats_client, tmp_path, {STREAM: {}}).check()

    assert "nothing is compared with it" in caplog.text


async def test_a_stream_that_is_given_another_configuration_meanwhile_ends_the_services(
    ground: Ground,
) -> None:
    """`max_age` would have every event removed, one after the other."""
    serving = asyncio.ensure_future(serve(ground.settings, ("commands",), url=ground.server.url))
    client = await connect(ground.server.url, name="test", settings=Settings())
    await ask(client, "c", "init", b'{"user_id": "ada"}')
    info = await call(client, f"STREAM.INFO.{STREAM}", {})
    harmless = {**info["config"], "max_bytes": 1_000_000_000}
    assert "error" not in await call(client, f"STREAM.UPDATE.{STREAM}", harmless)
    assert b'"ok":true' in await say(client, "c")

    changed = {**info["config"], "max_age": 3_600_000_000_000}
    assert "error" not in await call(client, f"STREAM.UPDATE.{STREAM}", changed)

    with pytest.raises(StreamMismatch, match="max_age"):
        await asyncio.wait_for(serving, 60)
    await client.close()


async def test_services_end_when_the_ledger_goes_back(ground: Ground) -> None:
    await ground.write(2)
    old = await ground.copy()
    await ground.write(5)
    serving = asyncio.ensure_future(serve(ground.settings, ("commands",), url=ground.server.url))
    client = await connect(ground.server.url, name="test", settings=Settings())
    assert b'"ok":true' in await say(client, "c")
    await client.close()
    await ground.restart(old)

    with pytest.raises(LedgerWentBack, match="ends at sequence 3"):
        await asyncio.wait_for(serving, 60)
