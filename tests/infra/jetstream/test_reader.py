"""Reading by Direct Get: pages, gaps, bisection, and a server that is not there."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import pairwise
from random import Random
from typing import Any, cast

import pytest
import pytest_asyncio
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from infra.jetstream.envelope import Recorded, Tail
from infra.jetstream.errors import LedgerDamaged, StoreUnavailable
from infra.jetstream.reader import Reader
from infra.jetstream.store import Store
from infra.lean import LeanClient
from infra.server import EmbeddedServer

from .rigs import connected, events, fresh_topology, opened, tail_of

Until = Callable[[Callable[[], bool]], Awaitable[None]]


@dataclass
class Library:
    """A stream that was written once: what is on it, and how to read it."""

    store: Store
    stream: str
    prefix: str
    all: list[Recorded]

    @property
    def reader(self) -> Reader:
        return self.store.reader

    def matching(self, subject: str) -> list[Recorded]:
        return [event for event in self.all if subject in (event.subject, f"{self.prefix}.>")]


SUBJECTS = ("a", "b", "c", "rare", "none")


@pytest_asyncio.fixture(scope="module")
async def library(nats_server: EmbeddedServer) -> AsyncIterator[Library]:
    """2,400 events on four subjects in random turns; one has but three, a fifth none."""
    random = Random(1)
    async with opened(nats_server.url) as store:
        tails = {name: tail_of(store, name) for name in SUBJECTS}
        for n in range(12):
            messages = []
            for _ in range(200):
                tail = tails[random.choice("abc")]
                messages += events(tail, 1, os.urandom(random.choice([0, 10, 300])))
            if n in (2, 3, 9):
                messages[100:100] = events(tails["rare"], 1)
            await store.append(messages)
        stream, prefix = store.topology.stream_name(0), store.topology.prefix
        stored = []
        for seq in range(1, 2_404):  # one by one: the plainest way there is
            event = await store.reader.first_from(stream, f"{prefix}.>", seq, leader=True)
            assert event is not None
            assert event.seq == seq
            stored.append(event)
        yield Library(store, stream, prefix, stored)


def on(library: Library, name: str) -> str:
    return f"{library.prefix}.>" if name == "*" else library.store.topology.subject(name)


# -- one event -----------------------------------------------------------------------------------


@pytest.mark.parametrize("leader", [False, True])
async def test_the_last_event_of_a_subject(library: Library, leader: bool) -> None:
    for name in ("a", "rare", "none"):
        matching = library.matching(on(library, name))
        found = await library.reader.last(library.stream, on(library, name), leader=leader)
        assert found == (matching[-1] if matching else None)


@pytest.mark.parametrize("leader", [False, True])
@pytest.mark.parametrize("name", ["a", "rare", "none", "*"])
async def test_the_first_event_from_a_sequence_on(
    library: Library, name: str, leader: bool
) -> None:
    random = Random(2)
    subject = on(library, name)
    for seq in [-3, 0, 1, 2_403, 2_404, 10**9, *random.sample(range(1, 2_404), 10)]:
        expected = next((e for e in library.matching(subject) if e.seq >= seq), None)
        found = await library.reader.first_from(library.stream, subject, seq, leader=leader)
        assert found == expected


# -- pages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["a", "rare", "none", "*"])
@pytest.mark.parametrize("limit", [1, 2, 7, 1_000, 5_000])
async def test_a_page_holds_what_is_there_and_says_how_much_is_left(
    library: Library, name: str, limit: int
) -> None:
    random = Random(limit)
    subject = on(library, name)
    for seq in [0, 1, 2_403, 2_404, *random.sample(range(1, 2_404), 5)]:
        expected = [event for event in library.matching(subject) if event.seq >= seq]
        found, left = await library.reader.page(
            library.stream, subject, seq, limit=limit, bytes_max=10**8
        )
        assert found == expected[: len(found)]
        assert len(found) == min(limit, len(expected)) or (limit > 1_000 and len(found) >= 1_000)
        assert left == len(expected) - len(found)


@pytest.mark.parametrize("bytes_max", [1, 1_000, 50_000])
async def test_a_page_is_cut_by_bytes_and_never_empty(library: Library, bytes_max: int) -> None:
    subject = on(library, "*")
    seq = 1
    read: list[Recorded] = []
    for _ in range(20):
        found, left = await library.reader.page(
            library.stream, subject, seq, limit=100, bytes_max=bytes_max
        )
        assert found
        assert left == 2_403 - found[-1].seq
        assert sum(len(event.body) for event in found[:-1]) <= bytes_max
        read += found
        seq = found[-1].seq + 1
    assert read == library.all[: len(read)]


@pytest.mark.parametrize("name", ["a", "rare", "none", "*"])
async def test_all_pages_together_are_everything_from_there_on(library: Library, name: str) -> None:
    subject = on(library, name)
    for seq in (1, 2, 1_200, 2_403, 2_404):
        expected = [event for event in library.matching(subject) if event.seq >= seq]
        pages = [page async for page in library.reader.pages(library.stream, subject, seq)]
        assert [event for page in pages for event in page] == expected
        assert all(pages), "no page is empty"


async def test_the_event_before_another_one_is_found_whether_that_names_it_or_not(
    library: Library,
) -> None:
    named = 0
    for name in SUBJECTS:
        written = library.matching(on(library, name))
        for before, event in pairwise([None, *written[:100]]):
            assert event is not None
            assert await library.reader.before(library.stream, event) == before
            named += bool(event.follows)
            assert event.follows in (0, before.seq if before else 0)
    assert named >= 3


async def test_large_events_come_in_several_pages_without_a_gap(
    nats_server: EmbeddedServer,
) -> None:
    async with opened(nats_server.url) as store:
        tail = tail_of(store, "large")
        bodies = [os.urandom(600_000) for _ in range(16)]
        for body in bodies:
            await store.append(events(tail, 1, body))
        pages = [
            page async for page in store.reader.pages(store.topology.stream_name(0), tail.subject)
        ]
        assert len(pages) > 1
        assert [event.body for page in pages for event in page] == bodies


async def test_many_readers_at_once_do_not_mix_up_their_pages(
    nats_server: EmbeddedServer, library: Library
) -> None:
    # given a reader that has read nothing yet
    async with connected(nats_server.url) as nc:
        reader = Reader(nc)
        # when it is asked sixty things at once
        asked = [(name, 1 + 37 * n) for n in range(15) for name in ("a", "b", "rare", "*")]
        answers = await asyncio.gather(
            *(reader.page(library.stream, on(library, name), seq, limit=50) for name, seq in asked)
        )
        # then each answer belongs to its question
        for (name, seq), (found, _) in zip(asked, answers, strict=True):
            matching = [e for e in library.matching(on(library, name)) if e.seq >= seq]
            assert found == matching[:50]
        await reader.close()
        await reader.close()
        # and after it was closed it can be used again
        found, _ = await reader.page(library.stream, on(library, "a"), 1, limit=3)
        assert found == library.matching(on(library, "a"))[:3]


async def test_a_foreign_message_in_a_page_is_damage(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    async with opened(nats_server.url) as store:
        await store.append(events(tail_of(store, "a")))
        await nats_client.request(store.topology.subject("b"), b"hello", timeout=10)
        stream, everything = store.topology.stream_name(0), f"{store.topology.prefix}.>"
        with pytest.raises(LedgerDamaged, match=r"\.b at stream sequence 2"):
            await store.reader.page(stream, everything, 1)
        found, _ = await store.reader.page(stream, store.topology.subject("a"), 1)
        assert [event.seq for event in found] == [1]


# -- what gets lost on the way -------------------------------------------------------------------


class Filtered:
    """A connection on which some messages of pages do not arrive, or arrive too late."""

    def __init__(self, nc: Client) -> None:
        self.nc = nc
        self.pass_on: Callable[[Msg], bool] = lambda _: True
        self.kept: list[tuple[Callable[[Msg], Awaitable[None]], Msg]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.nc, name)

    async def subscribe(
        self, subject: str, cb: Callable[[Msg], Awaitable[None]], **more: Any
    ) -> Subscription:
        async def filtered(message: Msg) -> None:
            if self.pass_on(message):
                await cb(message)
            else:
                self.kept.append((cb, message))

        return await self.nc.subscribe(subject, cb=filtered, **more)


@pytest.mark.parametrize("lost", [0, 1, 5, 9])
async def test_a_message_lost_out_of_a_page_is_noticed_and_the_page_asked_for_again(
    nats_server: EmbeddedServer, library: Library, lost: int
) -> None:
    async with connected(nats_server.url) as nc:
        client = Filtered(nc)
        reader = Reader(cast("Client", client), timeout=10)
        places = iter(range(100))
        client.pass_on = lambda _: next(places) != lost
        found, _ = await reader.page(library.stream, on(library, "a"), 1, limit=10)
        assert found == library.matching(on(library, "a"))[:10]
        assert len(client.kept) == 1


async def test_a_page_whose_end_never_comes_is_unavailable(
    nats_server: EmbeddedServer, library: Library
) -> None:
    async with connected(nats_server.url) as nc:
        client = Filtered(nc)
        reader = Reader(cast("Client", client), timeout=0.1)
        client.pass_on = lambda message: "Status" not in (message.headers or {})
        with pytest.raises(StoreUnavailable, match="check that the NATS server is up"):
            await reader.page(library.stream, on(library, "a"), 1, limit=10)
        # when what was late arrives after all, during another page
        reader._timeout = 10
        client.pass_on = lambda _: True
        asked = asyncio.ensure_future(reader.page(library.stream, on(library, "b"), 1, limit=10))
        for deliver, message in client.kept:
            await deliver(message)
        # then that one is not disturbed
        found, _ = await asked
        assert found == library.matching(on(library, "b"))[:10]
        assert not reader._pages, "nothing is left behind of pages that failed"


# -- bisection -----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
async def test_bisection_finds_what_a_search_from_the_start_finds(
    library: Library, seed: int
) -> None:
    random = Random(seed)
    for _ in range(12):
        subject = on(library, random.choice(["a", "b", "rare", "none"]))
        last_seq = random.choice([2_403, 2_403, random.randint(1, 2_403)])
        version = random.choice([0, 1, 2, 3, 4, random.randint(1, 900), 5_000])
        expected = next(
            (e for e in library.matching(subject) if e.version >= version and e.seq <= last_seq),
            None,
        )
        calls: list[int] = []

        def reaches(event: Recorded, version: int = version, calls: list[int] = calls) -> bool:
            calls.append(event.version)
            return event.version >= version

        found = await library.reader.locate(library.stream, subject, reaches, last_seq=last_seq)
        assert found == expected
        assert len(calls) <= 12, "as many round trips as 2,403 has binary digits"


class Numbers:
    """A reader of a made-up subject: nothing but stream sequences."""

    def __init__(self, seqs: list[int]) -> None:
        self.seqs = seqs

    async def first_from(
        self, stream: str, subject: str, seq: int, *, leader: bool = False
    ) -> Recorded | None:
        found = next((each for each in self.seqs if each >= seq), None)
        return None if found is None else Recorded(found, subject, "T", found, "", "", b"")


@settings(max_examples=300)
@given(
    st.lists(st.integers(1, 200), unique=True).map(sorted), st.integers(0, 210), st.integers(0, 210)
)
def test_bisection_is_right_wherever_the_events_are(
    seqs: list[int], threshold: int, last_seq: int
) -> None:
    expected = next((seq for seq in seqs if seq >= threshold and seq <= last_seq), None)
    found = asyncio.run(
        Reader.locate(
            cast("Reader", Numbers(seqs)),
            "stream",
            "subject",
            lambda event: event.seq >= threshold,
            last_seq=last_seq,
        )
    )
    assert (found.seq if found else None) == expected


# -- nobody there --------------------------------------------------------------------------------


def readings(store: Store) -> list[Callable[[], Awaitable[object]]]:
    """Every way to read."""
    topology = store.topology
    stream, subject = topology.stream_name(0), topology.subject("a")

    async def all_pages() -> object:
        return [page async for page in store.reader.pages(stream, subject)]

    return [
        lambda: store.reader.last(stream, subject),
        lambda: store.reader.last(stream, subject, leader=True),
        lambda: store.reader.first_from(stream, subject, 1),
        lambda: store.reader.first_from(stream, subject, 1, leader=True),
        lambda: store.reader.page(stream, subject, 1),
        all_pages,
        lambda: store.reader.locate(stream, subject, lambda _: True, last_seq=9),
        lambda: store.read("a"),
    ]


async def test_a_stream_that_is_not_there_is_unavailable_and_not_empty(
    nats_server: EmbeddedServer, nats_client: LeanClient
) -> None:
    async with opened(nats_server.url, request_timeout=0.2) as store:
        nowhere = Store(
            fresh_topology(),
            writing=nats_client,
            reading=nats_client,
            streams=store.streams,
            request_timeout=0.2,
            deadline=1,
        )
        for read in readings(nowhere):
            with pytest.raises(StoreUnavailable):
                await read()


async def test_a_server_that_stands_still_makes_reads_fail_and_not_hang(
    nats_server: EmbeddedServer,
) -> None:
    async with (
        opened(nats_server.url) as patient,
        opened(nats_server.url, patient.topology, request_timeout=0.1) as store,
    ):
        await patient.append(events(tail_of(store, "a"), 3))
        pid = nats_server.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        try:
            with contextlib.suppress(StoreUnavailable):
                while True:  # until the last of its threads stands still
                    await store.last("a")
            failed = await asyncio.gather(
                *(read() for read in readings(store)), return_exceptions=True
            )
        finally:
            os.kill(pid, signal.SIGCONT)
        assert [type(error) for error in failed] == [StoreUnavailable] * len(failed)
        # and when it goes on, so do they
        async with asyncio.timeout(20):
            while True:
                try:
                    assert len(await store.read("a")) == 3
                    break
                except StoreUnavailable:
                    await asyncio.sleep(0.05)


async def test_reads_while_disconnected_fail_at_once_and_work_when_it_is_back(
    nats_server: EmbeddedServer, until: Until
) -> None:
    async with connected(nats_server.url) as writing, connected(nats_server.url) as reading:
        topology = fresh_topology()
        store = await Store.open(topology, writing=writing, reading=reading, request_timeout=5)
        tail = Tail(topology.subject("a"))
        await store.append(events(tail, 3))
        await store.read("a")
        # given a server that is gone
        nats_server.kill()
        await until(lambda: not reading.is_connected)
        # when everything is read, then it fails
        failed = await asyncio.gather(*(read() for read in readings(store)), return_exceptions=True)
        assert any(isinstance(error, StoreUnavailable) for error in failed)
        assert all(
            isinstance(each, StoreUnavailable) or not isinstance(each, Exception) for each in failed
        )
        # and when it is back, the same reader goes on
        await until(lambda: reading.is_connected and writing.is_connected)
        for read in readings(store):
            async with asyncio.timeout(20):
                while True:
                    try:
                        assert await read() is not None
                        break
                    except StoreUnavailable:
                        await asyncio.sleep(0.05)
        await store.close()
