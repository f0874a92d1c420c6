"""Backing a ledger up while it is written to, and bringing it back: the same events at the same
sequences, or nothing at all."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from domain.identity import ConversationId
from infra.connection import connect
from infra.jetstream.archive import Archive, ArchiveDamaged, ArchiveOfAnother, ArchiveRefused
from infra.jetstream.envelope import BATCH_ID
from infra.jetstream.errors import StreamMismatch
from infra.jetstream.scan import Stored, scan
from infra.jetstream.topology import Topology, call
from infra.server import EmbeddedServer
from infra.settings import Settings
from projections.analytics.comparison import digests
from projections.analytics.view import AnalyticsView, DuckDBDatastore
from services import backup as making
from services import restore as restoring
from services.analytics import AnalyticsTarget
from services.backup import Copied, back_up
from services.bootstrap import Process, running, topology
from services.ledger_check import check_partition
from services.projector import Following, Projector
from services.restore import restore
from tests.services.rigs import append, sending

PARTITIONS = 2
SETTINGS = {"partitions": PARTITIONS, "checkpoint_events": 20}


def silent(*_: object) -> None:
    """Progress that nobody watches."""


@pytest.fixture
async def ledger(nats_server: EmbeddedServer, store_dir: Path) -> AsyncIterator[Process]:
    """A ledger of two partitions, with its notary."""
    settings = Settings(data_dir=store_dir, **SETTINGS)
    async with running(settings, ("commands", "notary"), url=nats_server.url) as process:
        yield process


@pytest.fixture
async def empty(tmp_path: Path) -> AsyncIterator[Client]:
    """A connection to a server that has no ledger."""
    async with EmbeddedServer(tmp_path / "other") as server:
        client = await connect(server.url, name="test", settings=Settings())
        yield client
        await client.close()


async def write(ledger: Process, count: int, of: str) -> None:
    """Starts a conversation and appends to it, each write acknowledged."""
    await sending(ledger.conversations, "init", {"user_id": "ada"}, id=_id(of))
    for number in range(count):
        await append(ledger.conversations, f"{of} {number}", id=_id(of))


def _id(name: str) -> ConversationId:
    return ConversationId.parse("default", name)


async def backed_up(nc: Client, ledger: Topology, folder: Path) -> dict[str, Copied]:
    archive = Archive.open_or_make(folder)
    try:
        return {each.stream: each for each in await back_up(nc, ledger, archive, silent)}
    finally:
        archive.close()


async def restored(nc: Client, folder: Path) -> Topology:
    archive = Archive.open(folder)
    archive.check()
    ledger = topology(Settings(**SETTINGS))
    await restore(nc, ledger, archive, silent)
    return ledger


async def messages(nc: Client, stream: str, up_to: int = 2**53) -> list[Stored]:
    return [
        each._replace(time_ns=0, headers=_own(each.headers))
        async for block in scan(nc, stream)
        for each in block
        if each.seq <= up_to
    ]


def _own(headers: Any) -> dict[str, str]:
    return {name: value for name, value in headers.items() if not name.startswith("Nats-")}


async def tables(nc: Client, ledger: Topology, until: dict[int, int]) -> dict[str, str]:
    """The digests of the analytics tables, made from the ledger up to these sequences."""
    datastore = DuckDBDatastore(None)
    view = AnalyticsView(datastore)
    changed = asyncio.Event()
    loop = asyncio.get_running_loop()

    def progressed() -> None:
        loop.call_soon_threadsafe(changed.set)

    projector = Projector(
        AnalyticsTarget(view, ledger.originator), ledger, changed=progressed, until=until
    )
    following = Following(nc, projector)
    await following.start()
    async with asyncio.timeout(60):
        while projector.progress.positions != until:
            await changed.wait()
            changed.clear()
    await following.close()
    await asyncio.to_thread(projector.close)
    found = digests(datastore.cursor())
    view.close()
    datastore.close()
    return found


# -- the whole of it -------------------------------------------------------------------------------


async def test_a_backup_taken_under_load_restores_to_the_ledger_as_it_was_at_that_position(
    ledger: Process, nats_client: Client, empty: Client, tmp_path: Path
) -> None:
    stop = asyncio.Event()

    async def writer(number: int) -> None:
        count = 0
        while not stop.is_set():
            await write(ledger, 3, f"load {number} {count}")
            count += 1

    await write(ledger, 40, "before")
    writers = [asyncio.create_task(writer(number)) for number in range(8)]
    streams = ledger.store.topology
    for _ in range(3):
        copied = await backed_up(nats_client, streams, tmp_path / "copy")
        await asyncio.sleep(0)
    stop.set()
    await asyncio.gather(*writers)

    there = await restored(empty, tmp_path / "copy")

    until = {}
    for partition in range(PARTITIONS):
        name = there.stream_name(partition)
        until[partition] = copied[name].last_seq
        found = await check_partition(empty, there, partition)
        assert found.valid, found.faults
        assert found.last_seq == until[partition] > 0
        assert await messages(empty, name) == await messages(nats_client, name, until[partition])
    assert await tables(empty, there, until) == await tables(nats_client, streams, until)


async def test_what_is_restored_is_a_ledger_that_goes_on(
    ledger: Process, nats_client: Client, empty: Client, tmp_path: Path
) -> None:
    await write(ledger, 5, "goes on")
    await backed_up(nats_client, ledger.store.topology, tmp_path / "copy")
    await restored(empty, tmp_path / "copy")
    heard = await empty.subscribe("convo.live.>")

    url = empty.connected_url
    assert url is not None
    settings = Settings(data_dir=tmp_path / "services", **SETTINGS)
    async with running(settings, ("commands",), url=url.geturl()) as process:
        told = await append(process.conversations, "and now", id=_id("goes on"))

    assert told.events == [("MessageAppended", 7)]
    assert (await heard.next_msg(timeout=10)).subject.startswith("convo.live.")


async def test_run_again_it_adds_what_is_new_and_nothing_else(
    ledger: Process, nats_client: Client, tmp_path: Path
) -> None:
    folder, streams = tmp_path / "copy", ledger.store.topology
    await write(ledger, 5, "first")
    await backed_up(nats_client, streams, folder)
    kept = {path: path.read_bytes() for path in folder.glob("*/*.gz")}

    nothing = await backed_up(nats_client, streams, folder)
    await write(ledger, 5, "second")
    something = await backed_up(nats_client, streams, folder)

    assert all(nothing[streams.stream_name(p)].messages == 0 for p in range(PARTITIONS))
    assert sum(something[streams.stream_name(p)].messages for p in range(PARTITIONS)) == 6
    assert {path: path.read_bytes() for path in kept} == kept
    Archive.open(folder).check()


# -- what is refused -------------------------------------------------------------------------------


async def test_an_old_backup_is_not_restored_over_a_newer_ledger(
    ledger: Process, nats_client: Client, tmp_path: Path
) -> None:
    await write(ledger, 2, "old")
    await backed_up(nats_client, ledger.store.topology, tmp_path / "copy")
    await write(ledger, 2, "newer")
    await write(ledger, 2, "newer too")
    before = await messages(nats_client, "CONVO-EVENTS-0")

    with pytest.raises(ArchiveRefused, match=r"never writes over one.*convo restore DIR --data"):
        await restored(nats_client, tmp_path / "copy")

    assert await messages(nats_client, "CONVO-EVENTS-0") == before


async def test_a_backup_of_one_ledger_takes_in_no_other(
    ledger: Process, nats_client: Client, empty: Client, tmp_path: Path
) -> None:
    await write(ledger, 2, "one")
    await backed_up(nats_client, ledger.store.topology, tmp_path / "copy")
    await restored(empty, tmp_path / "copy")
    await write(ledger, 9, "one goes on")
    await write(ledger, 9, "one goes on here too")
    await backed_up(nats_client, ledger.store.topology, tmp_path / "copy")

    with pytest.raises(ArchiveOfAnother, match="went back in time"):
        await backed_up(empty, ledger.store.topology, tmp_path / "copy")


async def test_a_backup_with_a_changed_byte_is_refused(
    ledger: Process, nats_client: Client, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    await write(ledger, 2, "changed")
    await backed_up(nats_client, ledger.store.topology, folder)
    files = [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size]
    assert len(files) >= 2 + PARTITIONS  # the manifest, the partitions, the notary

    for path in files:
        whole = path.read_bytes()
        for place in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
            with pytest.raises(ArchiveRefused):
                Archive.open(folder).check()
        path.write_bytes(whole[:-1])
        with pytest.raises(ArchiveDamaged):
            Archive.open(folder).check()
        path.write_bytes(whole)

    Archive.open(folder).check()


async def test_two_backups_into_one_folder_at_once_are_refused(tmp_path: Path) -> None:
    first = Archive.open_or_make(tmp_path)

    with pytest.raises(ArchiveRefused, match="under way"):
        Archive.open_or_make(tmp_path)

    first.close()


# -- cut short -------------------------------------------------------------------------------------


async def test_a_backup_that_was_cut_short_goes_on(
    ledger: Process, nats_client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(ledger, 30, "cut short")
    folder, streams = tmp_path / "copy", ledger.store.topology

    def interrupted(*_: object) -> None:
        raise asyncio.CancelledError

    archive = Archive.open_or_make(folder)
    with pytest.raises(asyncio.CancelledError):
        await making.back_up(nats_client, streams, archive, interrupted)
    archive.close()
    (folder / "CONVO-EVENTS-0").mkdir(exist_ok=True)
    (folder / "CONVO-EVENTS-0" / "000000000000001.jsonl.new").write_bytes(b"half a file")
    await backed_up(nats_client, streams, folder)

    archive = Archive.open(folder)
    archive.check()
    for partition in range(PARTITIONS):
        name = streams.stream_name(partition)
        kept = [each._replace(headers=_own(each.headers)) for b in archive.read(name) for each in b]
        assert kept == await messages(nats_client, name, kept[-1].seq)


async def test_a_restore_that_was_cut_short_goes_on_and_no_service_starts_on_it_meanwhile(
    ledger: Process,
    nats_client: Client,
    empty: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await write(ledger, 60, "restored in two goes")
    folder, streams = tmp_path / "copy", ledger.store.topology
    copied = await backed_up(nats_client, streams, folder)
    monkeypatch.setattr(restoring, "BATCH_BYTES", 2_000)
    calls = 0

    def interrupted(*_: object) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise asyncio.CancelledError

    archive = Archive.open(folder)
    with pytest.raises(asyncio.CancelledError):
        await restoring.restore(empty, streams, archive, interrupted)

    url = empty.connected_url
    assert url is not None
    settings = Settings(data_dir=tmp_path / "services", **SETTINGS)
    with pytest.raises(StreamMismatch, match="is being restored"):
        async with running(settings, ("commands",), url=url.geturl()):
            pass

    there = await restored(empty, folder)
    for partition in range(PARTITIONS):
        name = there.stream_name(partition)
        found = await check_partition(empty, there, partition)
        assert found.valid, found.faults
        assert found.last_seq == copied[name].last_seq


async def test_nobody_else_gets_in_between(
    ledger: Process,
    nats_client: Client,
    empty: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Somebody writes to a subject of the ledger between two batches of a restore."""
    await write(ledger, 60, "in between")
    folder = tmp_path / "copy"
    await backed_up(nats_client, ledger.store.topology, folder)
    commit = restoring._commit

    async def intruded_upon(nc: Client, stream: str, batch: Any, behind: int) -> None:
        if behind:
            await nc.request(f"convo.evt.{stream[-1]}.default.intruder", b"{}", timeout=5)
        await commit(nc, stream, batch, behind)

    monkeypatch.setattr(restoring, "_commit", intruded_upon)
    monkeypatch.setattr(restoring, "BATCH_BYTES", 2_000)

    with pytest.raises(ArchiveRefused, match="somebody else writes to CONVO-EVENTS-"):
        await restored(empty, folder)
    monkeypatch.undo()
    with pytest.raises(ArchiveRefused, match="holds something else than the backup"):
        await restored(empty, folder)


async def test_batches_of_the_original_are_not_cut(
    ledger: Process, nats_client: Client, empty: Client, tmp_path: Path
) -> None:
    """What was written together is in one batch again, whatever else is."""
    turn = {"messages": [{"role": "user", "content": str(n)} for n in range(30)]}
    await write(ledger, 1, "together")
    await asyncio.gather(
        *(sending(ledger.conversations, "turn", turn, id=_id("together")) for _ in range(60))
    )
    await backed_up(nats_client, ledger.store.topology, tmp_path / "copy")

    there = await restored(empty, tmp_path / "copy")

    name = there.stream_name(there.partition(_id("together").key))
    old = await _batches(nats_client, name)
    new = await _batches(empty, name)
    assert len(set(old.values())) > 2
    for batch in set(old.values()):
        assert len({new[seq] for seq, of in old.items() if of == batch}) == 1


async def _batches(nc: Client, stream: str) -> dict[int, str]:
    """The id of the batch that each message was written in, by sequence; its own when in none."""
    return {
        each.seq: each.headers.get(BATCH_ID, str(each.seq))
        async for block in scan(nc, stream)
        for each in block
    }


async def test_an_empty_stream_made_by_services_is_taken_over(
    ledger: Process, nats_client: Client, empty: Client, tmp_path: Path
) -> None:
    await write(ledger, 2, "taken over")
    await backed_up(nats_client, ledger.store.topology, tmp_path / "copy")
    config = topology(Settings(**SETTINGS)).events_config(0)
    await call(empty, "STREAM.CREATE.CONVO-EVENTS-0", config)

    there = await restored(empty, tmp_path / "copy")

    assert (await check_partition(empty, there, 0)).valid
