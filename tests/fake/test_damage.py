"""A ledger that lost something, or went back in time, is told from one that is slow."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Literal

import pytest

from infra.jetstream.envelope import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE, Recorded, Tail, pack
from infra.jetstream.errors import LedgerDamaged, StoreUnavailable
from infra.jetstream.feed import Feed
from infra.jetstream.scan import scan
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology

from .client import FakeClient
from .clock import Clock, run
from .server import Server
from .stream import Sent, Stream
from .weather import Weather


class Ground:
    """A store on one fake server, and its stream."""

    def __init__(self, server: Server, store: Store, client: FakeClient) -> None:
        self.server = server
        self.store = store
        self.client = client

    @property
    def stream(self) -> Stream:
        return self.server.streams["S-0"]

    async def append(self, name: str, number: int = 1) -> None:
        last = await self.store.last(name)
        tail = self.store.tail(name, last)
        await self.store.append([pack(tail, "T", tail.version + 1, b"{}") for _ in range(number)])

    def lay(self, name: str, id: str = "", place: int = 0, *, commit: bool = False) -> None:
        """Lays an event into the stream past everything that a server does."""
        last = self.stream.last(f"e.0.{name}", len(self.stream.log))
        version = int(last.headers["Event-Version"]) if last else 0
        digest = bytes.fromhex(last.headers["Event-Hash"]) if last else bytes(32)
        tail = Tail(f"e.0.{name}", version=version, digest=digest)
        message = pack(tail, "T", version + 1, b"{}")
        headers = message.headers()
        if id:
            headers |= {BATCH_ID: id, BATCH_SEQUENCE: str(place)}
        if commit:
            headers[BATCH_COMMIT] = "1"
        self.stream.write([Sent(f"e.0.{name}", headers, b"{}")], self.server.clock.time_ns())

    async def scanned(self) -> list[int]:
        """The sequences that a scan reads."""
        blocks = scan(self.client.as_client, "S-0")
        return [stored.seq async for block in blocks for stored in block]


class Taker:
    """Takes what a feed hands over."""

    has_room = True

    def __init__(self) -> None:
        self.seqs: list[int] = []
        self.stopped = False

    def is_stopped(self) -> bool:
        return self.stopped

    def hand_over(self, events: Sequence[Recorded]) -> None:
        self.seqs += [event.seq for event in events]


def on_a_fake(play: Callable[[Ground], Awaitable[None]], *, replicas: Literal[1, 3] = 1) -> None:
    """Plays on a server on which nothing goes wrong by itself."""

    async def main(clock: Clock) -> None:
        server = Server(clock, Weather(Random(1)), replicas=replicas)
        client = FakeClient(server, "c")
        topology = Topology(stream="S", prefix="e", replicas=replicas)
        store = await Store.open(topology, writing=client.as_client, reading=client.as_client)
        await play(Ground(server, store, client))
        await store.close()

    run(main, seed=1)


async def followed(ground: Ground, taker: Taker, seconds: float = 10.0) -> None:
    """Follows the stream for a while. Raises what ends the feed before."""
    feed = Feed(taker, "S-0", 0)
    following = asyncio.ensure_future(feed.run(ground.client.as_client))
    await asyncio.wait([following], timeout=seconds)
    taker.stopped = True
    feed.wake()
    await following


def test_a_batch_is_there_once_its_commit_is() -> None:
    async def play(ground: Ground) -> None:
        await ground.append("a", 3)
        await ground.append("b")
        # given a batch of which two messages lie there (a disk that is wedged)
        ground.lay("a", "open", 1)
        ground.lay("a", "open", 2)
        # then nobody is shown them
        store, subject = ground.store, "e.0.a"
        assert await ground.scanned() == [1, 2, 3, 4]
        last = await store.last("a")
        assert last is not None
        assert last.seq == 3
        assert [event.seq for event in await store.read("a")] == [1, 2, 3]
        assert await store.reader.first_from("S-0", subject, 4) is None
        page, left = await store.read_page("a", 2, 10)
        assert ([event.seq for event in page], left) == ([2, 3], 0)
        with pytest.raises(StoreUnavailable):
            await store.last("a", leader=True)
        taker = Taker()
        await followed(ground, taker)
        assert taker.seqs == [1, 2, 3, 4]
        # and when the rest is there, everybody is
        ground.lay("b", "open", 3, commit=True)
        ground.stream.commit()
        assert await ground.scanned() == [1, 2, 3, 4, 5, 6, 7]
        assert [event.seq for event in await store.read("a")] == [1, 2, 3, 5, 6]
        last = await store.last("a", leader=True)
        assert last is not None
        assert last.seq == 6
        taker = Taker()
        await followed(ground, taker)
        assert taker.seqs == [1, 2, 3, 4, 5, 6, 7]

    on_a_fake(play)


def test_an_open_batch_of_a_new_conversation_is_nothing_yet() -> None:
    async def play(ground: Ground) -> None:
        ground.lay("a", "open", 1)
        assert await ground.store.last("a") is None
        assert await ground.store.read("a") == []
        assert await ground.scanned() == []

    on_a_fake(play)


@pytest.mark.parametrize("follows", ["a message of no batch", "another batch"])
def test_a_batch_that_is_followed_by_anything_else_stops_the_feed(follows: str) -> None:
    async def play(ground: Ground) -> None:
        await ground.append("a")
        ground.lay("a", "torn", 1)
        ground.lay("b", "" if follows == "a message of no batch" else "other", 1)
        ground.stream.commit()
        taker = Taker()
        with pytest.raises(LedgerDamaged, match="the batch before sequence 3 has no commit"):
            await followed(ground, taker)
        assert taker.seqs == [1]

    on_a_fake(play)


@pytest.mark.parametrize("reissued", [0, 1, 5])
def test_a_stream_that_went_back_in_time_stops_the_feed(reissued: int) -> None:
    async def play(ground: Ground) -> None:
        await ground.append("a", 3)
        taker = Taker()
        following = asyncio.ensure_future(followed(ground, taker, 60.0))
        await asyncio.sleep(5)
        assert taker.seqs == [1, 2, 3]
        # when it forgets acknowledged events, and issues their sequences again
        ground.server.kill(0.5, forget=2)
        await asyncio.sleep(0.5)
        for _ in range(reissued):
            ground.lay("b")
            ground.stream.commit()
        with pytest.raises(LedgerDamaged, match="it went back in time"):
            await following
        assert taker.seqs == [1, 2, 3]

    on_a_fake(play)


# -- one copy of three ---------------------------------------------------------------------------

FOLLOWERS = 10
"""Each with a consumer on a copy chosen by chance."""


def test_an_event_that_the_leading_copy_has_lost_is_had_from_another() -> None:
    async def play(ground: Ground) -> None:
        await ground.append("a", 6)
        await asyncio.sleep(1)  # every copy has them
        ground.server.copies.holes.add((0, 3))
        for _ in range(FOLLOWERS):
            taker = Taker()
            await followed(ground, taker, 20.0)
            assert taker.seqs == [1, 2, 3, 4, 5, 6]

    on_a_fake(play, replicas=3)


def test_an_event_that_no_copy_has_stops_the_feed() -> None:
    async def play(ground: Ground) -> None:
        await ground.append("a", 2)
        await ground.append("a", 4)
        await asyncio.sleep(1)
        ground.server.copies.holes |= {(replica, 3) for replica in range(3)}
        taker = Taker()
        with pytest.raises(LedgerDamaged, match="none with sequence 3"):
            await followed(ground, taker, 60.0)
        assert taker.seqs == [1, 2]

    on_a_fake(play, replicas=3)


@pytest.mark.parametrize("replica", [0, 1, 2])
def test_what_one_copy_has_lost_is_read_from_another(replica: int) -> None:
    async def play(ground: Ground) -> None:
        await ground.append("a", 6)
        await asyncio.sleep(1)
        ground.server.copies.holes.add((replica, 3))
        store = ground.store
        for _ in range(FOLLOWERS):
            page, left = await store.read_page("a", 1, 10)
            assert ([event.seq for event in page], left) == ([1, 2, 3, 4, 5, 6], 0)
            events = await store.from_any_copy(lambda: store.read("a"))
            assert [event.seq for event in events] == [1, 2, 3, 4, 5, 6]

    on_a_fake(play, replicas=3)


def test_what_no_copy_has_is_told_as_damage() -> None:
    async def play(ground: Ground) -> None:
        await ground.append("a", 6)
        await asyncio.sleep(1)
        ground.server.copies.holes |= {(replica, 3) for replica in range(3)}
        store = ground.store
        with pytest.raises(LedgerDamaged, match="an event is missing"):
            await store.read_page("a", 1, 10)
        with pytest.raises(LedgerDamaged, match="an event is missing"):
            await store.from_any_copy(lambda: store.read("a"))

    on_a_fake(play, replicas=3)


@pytest.mark.parametrize("replica", [0, 1, 2])
def test_a_consumer_on_a_copy_that_cannot_be_read_is_given_up(replica: int) -> None:
    async def play(ground: Ground) -> None:
        await ground.append("a", 2)
        # given a copy whose consumers send heartbeats and nothing else
        ground.server.copies.unreadable[replica] = 3
        for number in range(FOLLOWERS):
            taker = Taker()
            following = asyncio.ensure_future(followed(ground, taker, 55.0))
            await asyncio.sleep(5)
            await ground.append("a")
            await following
            assert taker.seqs == list(range(1, 4 + number))

    on_a_fake(play, replicas=3)
