"""When writes are refused for want of room, and when the server is restarted so that it writes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from itertools import pairwise
from pathlib import Path

import pytest

from infra import storage
from infra.jetstream.errors import OutcomeUnknown, StoreUnavailable
from infra.jetstream.store import Store
from infra.server import EmbeddedServer
from infra.storage import Storage, StorageWatch, Storing, room
from tests.faults.disk import MB, Disk, why_not
from tests.infra.jetstream.rigs import connected, events, fresh_topology, opened, tail_of

Until = Callable[[Callable[[], bool]], Awaitable[None]]

NO_SPACE = "JetStream stream 'X' write error: write /x/1.blk: no space left on device"


class StandIn:
    """A server that says what a test has it say."""

    def __init__(self, data_dir: Path) -> None:
        self.data_dir = data_dir
        self.said: str | None = None
        self.restarts = 0

    async def health(self) -> str | None:
        return self.said

    def restart(self) -> None:
        self.restarts += 1


class Watched:
    """A watch over a stand-in, whose disk has `room` reserves free."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = StandIn(folder)
        self.heard: list[Storage] = []
        self.room = 10.0
        self.watch = StorageWatch(self.server, self._hear)
        monkeypatch.setattr(storage, "room", lambda _: int(self.room * self.watch.reserve))

    async def _hear(self, storage: Storage) -> None:
        self.heard.append(storage)

    async def look(self) -> Storing:
        await self.watch.look()
        return self.watch.storage.state


class Clock:
    now = 1_000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What a watch takes for the time."""
    clock = Clock()
    monkeypatch.setattr("infra.storage.time.monotonic", lambda: clock.now)
    return clock


@pytest.fixture
def watched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Watched:
    return Watched(tmp_path, monkeypatch)


async def test_with_room_there_is_nothing_to_tell(watched: Watched) -> None:
    assert await watched.look() is Storing.OK
    assert watched.heard == []


async def test_below_the_reserve_writes_are_refused_until_there_is_comfortable_room(
    watched: Watched,
) -> None:
    states = []
    for watched.room in (1.0, 0.99, 1.1, 1.24, 1.25, 1.1):
        states.append(await watched.look())

    assert states == [
        Storing.OK,
        Storing.READ_ONLY,
        Storing.READ_ONLY,
        Storing.READ_ONLY,
        Storing.OK,
        Storing.OK,
    ]
    assert [each.state for each in watched.heard] == [*states[1:4], Storing.OK]
    assert "make room" in (watched.heard[0].reason or "")
    assert watched.server.restarts == 0


async def test_a_server_that_could_not_write_is_restarted_once_there_is_room(
    watched: Watched,
) -> None:
    watched.server.said = NO_SPACE
    watched.room = 0.5
    assert await watched.look() is Storing.WEDGED
    assert watched.server.restarts == 0

    watched.room = 2.0
    assert await watched.look() is Storing.WEDGED
    assert watched.server.restarts == 1

    watched.server.said = None
    assert await watched.look() is Storing.OK


async def test_restarts_that_do_not_help_come_ever_less_often(
    watched: Watched, clock: Clock
) -> None:
    watched.server.said = NO_SPACE
    at = []
    while clock.now < 1_200:
        before = watched.server.restarts
        await watched.look()
        at += [clock.now] if watched.server.restarts > before else []
        clock.now += 0.5

    pauses = [later - earlier for earlier, later in pairwise(at)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= storage.RESTART_PAUSE_S
    assert pauses[-1] == storage.RESTART_PAUSE_MAX_S


async def test_a_disk_that_is_full_again_and_again_is_no_reason_to_wait(
    watched: Watched, clock: Clock
) -> None:
    for times in range(20):
        watched.server.said, watched.room = NO_SPACE, 0.5
        for _ in range(10):  # however long it is full, nothing is restarted
            await watched.look()
            clock.now += 0.5
        assert watched.server.restarts == times
        watched.room = 2.0
        await watched.look()
        assert watched.server.restarts == times + 1
        watched.server.said = None
        await watched.look()
        clock.now += 0.5


async def test_a_server_that_could_write_for_a_while_is_restarted_at_once_the_next_time(
    watched: Watched, clock: Clock
) -> None:
    for times in range(20):
        watched.server.said = NO_SPACE  # too short a time for its cause to be seen
        await watched.look()
        assert watched.server.restarts == times + 1
        watched.server.said = None
        await watched.look()
        clock.now += storage.HELPED_S + 0.5


async def test_other_complaints_are_not_for_a_restart(watched: Watched) -> None:
    watched.server.said = "JetStream is not current with the meta leader"

    assert await watched.look() is Storing.OK
    assert watched.server.restarts == 0


async def test_a_real_server_says_that_it_is_well_and_nothing_when_it_is_gone(
    tmp_path: Path,
) -> None:
    server = EmbeddedServer(tmp_path)
    await server.start()
    watch = StorageWatch(server, _ignore)
    await watch.look()
    well = watch.storage
    await server.stop()

    assert well == Storage()
    assert await server.health() is None


async def test_a_server_that_could_not_even_say_where_to_ask_it_is_restarted(
    tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with EmbeddedServer(tmp_path) as server:
        heard: list[Storing] = []

        async def hear(storage: Storage) -> None:
            heard.append(storage.state)

        watch = StorageWatch(server, hear)
        [ports] = (tmp_path / "nats").glob("*.ports")
        ports.write_bytes(b"")  # all that a full disk takes of it

        await watch.look()
        await watch.look()
        assert heard == []  # it may be under way
        monkeypatch.setattr("infra.server.MUTE_S", 0.0)
        await watch.look()
        assert heard == [Storing.WEDGED]
        await until(lambda: server.restarts == 1)
        await watch.look()
        assert heard[-1] is Storing.OK


async def stored(store: Store, originator: str, count: int = 1) -> range:
    """Stores events of a kilobyte; their sequences."""
    seqs = await store.append(events(tail_of(store, originator), count, b"x" * 1_000))
    return range(seqs[0], seqs[-1] + 1)


async def fill_up(store: Store, acknowledged: list[int]) -> None:
    """Stores events until that fails."""
    while True:
        acknowledged += await stored(store, f"while-{len(acknowledged)}", 100)


async def _ignore(storage: Storage) -> None:
    del storage


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "no loop mounts")
async def test_a_disk_that_was_full_to_the_last_block_is_written_again_without_a_person(
    tmp_path: Path, until: Until
) -> None:
    topology = fresh_topology()
    async with (
        Disk(tmp_path, 96 * MB) as disk,
        EmbeddedServer(disk.path / "data", disk_share=5.0) as server,
        opened(server.url, topology, deadline=3.0, request_timeout=0.5) as store,
        connected(server.url) as nc,
    ):
        heard: list[Storing] = []

        async def hear(storage: Storage) -> None:
            heard.append(storage.state)
            store.distrust_reading(storage.state is Storing.WEDGED)

        watch = StorageWatch(server, hear)
        acknowledged = list(await stored(store, "before"))
        disk.fill(leave=200_000)
        watching = asyncio.create_task(watch.run())
        with pytest.raises((StoreUnavailable, OutcomeUnknown)):
            await fill_up(store, acknowledged)
        await until(lambda: Storing.WEDGED in heard)
        assert room(disk.path) < watch.reserve

        disk.relieve()
        await until(lambda: heard[-1] is Storing.OK)

        acknowledged += await stored(store, "after")
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        assert server.restarts == 1
        assert len(acknowledged) == len(set(acknowledged))
        for seq in acknowledged:
            body = f'{{"seq": {seq}}}'.encode()
            found = await nc.request(
                f"$JS.API.STREAM.MSG.GET.{topology.stream_name(0)}", body, timeout=10
            )
            assert b'"message"' in found.data
