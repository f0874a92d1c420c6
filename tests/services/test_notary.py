"""The notary: what it signs and when, and what it does after a restart; the check of a ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_asyncio

from infra.notary.checkpoint import Checkpoint
from infra.notary.keys import KEY_FILE, KeyFolder
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.ledger_check import PartitionCheck, check_partition
from services.notary import FOLDER, FRONTIER, Notary, checkpoints_subject, key_history
from services.notary import records as notary_records
from tests.services.auditing import Ledger, ledger_on
from tests.services.forging import Copy, read_copy, write_copy

Eventually = Callable[[Callable[[], Awaitable[bool]]], Awaitable[None]]


@pytest_asyncio.fixture
async def server(tmp_path: Path) -> AsyncIterator[EmbeddedServer]:
    """A server of the test's own: the notary's stream is one for each server."""
    async with EmbeddedServer(tmp_path / "server") as server:
        yield server


@pytest_asyncio.fixture
async def ledger(server: EmbeddedServer) -> AsyncIterator[Ledger]:
    async with ledger_on(server.url) as ledger:
        yield ledger


def settings(tmp_path: Path, **fields: Any) -> Settings:
    return Settings(
        data_dir=tmp_path, **{"checkpoint_events": 10, "checkpoint_every": "1h", **fields}
    )


async def checkpoints(ledger: Ledger) -> list[Checkpoint]:
    """Those of partition 0, whoever signed them."""
    return [
        Checkpoint.read(record.body.decode(), None)
        async for record in notary_records(ledger.nc, checkpoints_subject(0))
    ]


async def checked(ledger: Ledger, **options: Any) -> PartitionCheck:
    return await check_partition(ledger.nc, ledger.process.store.topology, 0, **options)


class Notarised:
    """A notary that runs within the block, and a way to wait for what it signs."""

    def __init__(self, ledger: Ledger, in_force: Settings) -> None:
        self._ledger = ledger
        self._notary = Notary(ledger.process.store.topology, ledger.nc, in_force)

    async def __aenter__(self) -> Self:
        await self._notary.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._notary.close()

    async def covers(self, size: int, until_async: Eventually) -> list[Checkpoint]:
        """The checkpoints, once the last one counts at least so many events."""

        async def holds() -> bool:
            found = await checkpoints(self._ledger)
            return bool(found) and found[-1].size >= size

        await until_async(holds)
        return await checkpoints(self._ledger)

    async def stopped(self, until_async: Eventually) -> None:
        """Returns once the notary has given up."""

        async def holds() -> bool:
            task = self._notary._task
            return task is not None and task.done()

        await until_async(holds)


@pytest.fixture
def until_async() -> Eventually:
    """Waits until something asked of the server holds; fails when it does not within 30 s."""

    async def wait(holds: Callable[[], Awaitable[bool]]) -> None:
        async with asyncio.timeout(30):
            while not await holds():  # noqa: ASYNC110 - what is waited for is outside this program
                await asyncio.sleep(0.05)

    return wait


async def test_a_checkpoint_is_signed_with_every_so_many_events(
    ledger: Ledger, tmp_path: Path, until_async: Eventually
) -> None:
    async with Notarised(ledger, settings(tmp_path)) as notary:
        await ledger.talk("c-1", turns=10)  # 32 events
        found = await notary.covers(20, until_async)

    assert [each.number for each in found] == list(range(1, len(found) + 1))
    assert all(after.size - before.size >= 10 for before, after in pairwise(found))
    assert found[0].origin.startswith("conversation-ledger/CONVO-EVENTS-0/")
    report = await checked(ledger)
    assert report.valid, report.faults
    assert (report.events, report.conversations) == (32, 1)
    assert (report.checkpoints, report.covered) == (len(found), found[-1].size)


async def test_and_after_a_while_where_any_event_has_come(
    ledger: Ledger, tmp_path: Path, until_async: Eventually
) -> None:
    async with Notarised(ledger, settings(tmp_path, checkpoint_every="1s")) as notary:
        await ledger.do("c-1", "init", user_id="ada")
        [only] = await notary.covers(1, until_async)

    assert only.size == 1
    assert (await checked(ledger)).covered == 1


async def test_a_notary_goes_on_where_the_last_one_stopped(
    ledger: Ledger, tmp_path: Path, until_async: Eventually
) -> None:
    async with Notarised(ledger, settings(tmp_path)) as notary:
        await ledger.talk("c-1", turns=4)
        await notary.covers(10, until_async)
    await ledger.talk("c-2", turns=6)
    async with Notarised(ledger, settings(tmp_path)) as notary:
        found = await notary.covers(30, until_async)

    report = await checked(ledger)
    assert report.valid, report.faults
    assert report.checkpoints == len(found) >= 2
    assert len(report.keys) == 1


async def test_a_notary_goes_on_without_the_frontier_beside_a_checkpoint(
    ledger: Ledger, tmp_path: Path, until_async: Eventually
) -> None:
    """It is no part of what is signed: a wrong one costs a second reading of the stream."""
    async with Notarised(ledger, settings(tmp_path)) as notary:
        await ledger.talk("c-1", turns=4)
        await notary.covers(10, until_async)
    copy = await read_copy(ledger.nc)
    forged = [each.with_header(FRONTIER, "00" * 32) for each in copy.records]
    await write_copy(ledger.nc, ledger.process.store.topology, Copy(copy.events, forged))

    async with Notarised(ledger, settings(tmp_path)) as notary:
        await ledger.talk("c-2", turns=4)
        found = await notary.covers(20, until_async)

    report = await checked(ledger)
    assert report.valid, report.faults
    assert report.checkpoints == len(found) >= 2


async def test_a_notary_signs_nothing_behind_a_stream_that_was_cut(
    ledger: Ledger, tmp_path: Path, until_async: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    async with Notarised(ledger, settings(tmp_path)) as notary:
        await ledger.talk("c-1", turns=4)
        before = await notary.covers(10, until_async)
    copy = await read_copy(ledger.nc)
    await write_copy(ledger.nc, ledger.process.store.topology, Copy(copy.events[:5], copy.records))

    async with Notarised(ledger, settings(tmp_path)) as notary:
        await notary.stopped(until_async)

    assert "signs no more" in caplog.text
    assert await checkpoints(ledger) == before


async def test_a_rotated_key_is_vouched_for_by_the_one_before(
    ledger: Ledger, tmp_path: Path, until_async: Eventually
) -> None:
    folder = KeyFolder(tmp_path / FOLDER)
    async with Notarised(ledger, settings(tmp_path)) as notary:
        await ledger.talk("c-1", turns=4)
        await notary.covers(10, until_async)
        first = folder.load_or_make().public

        second = folder.ask_for_rotation()

        async def is_taken() -> bool:
            return (await key_history(ledger.nc)).current == second

        await until_async(is_taken)
        await ledger.talk("c-2", turns=4)
        await notary.covers(20, until_async)

    for pinned in (None, first, second):
        report = await checked(ledger, pinned=pinned)
        assert report.valid, report.faults
        assert report.keys == [first.line, second.line]
    assert folder.load_or_make().public == second


async def test_a_notary_whose_key_is_not_the_ledgers_signs_nothing(
    ledger: Ledger, tmp_path: Path, until_async: Eventually, caplog: pytest.LogCaptureFixture
) -> None:
    async with Notarised(ledger, settings(tmp_path)) as notary:
        await ledger.talk("c-1", turns=4)
        before = await notary.covers(10, until_async)
    (tmp_path / FOLDER / KEY_FILE).unlink()

    async with Notarised(ledger, settings(tmp_path)) as notary:
        await notary.stopped(until_async)

    assert "put that one back" in caplog.text
    assert await checkpoints(ledger) == before


async def test_a_ledger_is_checked_while_it_is_written_and_signed(
    ledger: Ledger, tmp_path: Path, until_async: Eventually
) -> None:
    """What is signed behind the end that a check has read is no fault."""
    busy = True

    async def write(conversation: str) -> None:
        await ledger.do(conversation, "init", user_id="ada")
        while busy:
            await ledger.do(conversation, "append", role="user", content="more")

    async with Notarised(ledger, settings(tmp_path, checkpoint_events=1)) as notary:
        writers = [asyncio.ensure_future(write(f"c-{number}")) for number in range(5)]
        await notary.covers(20, until_async)
        for _ in range(10):
            report = await checked(ledger)
            assert report.valid, report.faults
            assert report.covered > 0
        busy = False
        await asyncio.gather(*writers)


async def test_a_ledger_without_a_notary_is_checked_all_the_same(ledger: Ledger) -> None:
    await ledger.talk("c-1", turns=1)

    report = await checked(ledger)

    assert report.valid
    assert (report.checkpoints, report.covered, report.keys) == (0, 0, [])
