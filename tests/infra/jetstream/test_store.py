"""The store as its callers see it: append, read, locate; partitions; damage told."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from functools import partial
from random import Random
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client

from infra.jetstream import store as store_module
from infra.jetstream.envelope import Recorded, Tail
from infra.jetstream.errors import Conflict, LedgerDamaged, TooLarge
from infra.jetstream.store import Store, check_contiguous
from infra.jetstream.topology import EVENT_BYTES_MAX, call
from infra.server import EmbeddedServer

from .rigs import events, fresh_topology, opened, stored_state, tail_of


@pytest_asyncio.fixture
async def store(nats_server: EmbeddedServer) -> AsyncIterator[Store]:
    async with opened(nats_server.url) as store:
        yield store


async def test_what_is_appended_is_read_in_order(store: Store) -> None:
    tail = tail_of(store, "ada")
    assert list(await store.append(events(tail, 1, b"first"))) == [1]
    assert list(await store.append(events(tail_of(store, "bob")))) == [2]
    assert list(await store.append(events(tail, 3, b"more"))) == [3, 4, 5]
    read = await store.read("ada")
    assert [(event.seq, event.version) for event in read] == [(1, 1), (3, 2), (4, 3), (5, 4)]
    assert [event.body for event in read] == [b"first", b"more", b"more", b"more"]
    assert await store.read("ada", from_seq=4) == read[2:]
    assert await store.last("ada") == read[-1]
    assert await store.last("ada", leader=True) == read[-1]
    assert await store.last("nobody") is None
    assert await store.read("nobody") == []


async def test_a_tail_behind_the_last_event_is_appended_to(store: Store) -> None:
    await store.append(events(tail_of(store, "ada"), 2))
    tail = store.tail("ada", await store.last("ada"))
    assert (tail.seq, tail.version, tail.stored) == (2, 2, tail.digest)
    await store.append(events(tail, 2))
    assert [event.version for event in await store.read("ada")] == [1, 2, 3, 4]
    empty = store.tail("nobody", None)
    assert vars_of(empty) == vars_of(Tail(store.topology.subject("nobody")))


def vars_of(tail: Tail) -> tuple[object, ...]:
    return (tail.subject, tail.seq, tail.version, tail.digest, tail.stored, tail.broken)


async def test_a_conflict_is_raised_with_its_facts(store: Store) -> None:
    await store.append(events(tail_of(store, "ada")))
    with pytest.raises(Conflict, match="read it again and decide again") as conflict:
        await store.append(events(tail_of(store, "ada")))
    assert conflict.value.subject == store.topology.subject("ada")
    assert conflict.value.expected_seq == 0


async def test_an_append_that_is_cancelled_harms_nobody(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    tail = tail_of(store, "ada")
    given_up = asyncio.ensure_future(store.append(events(tail)))
    await asyncio.sleep(0)
    given_up.cancel()
    await store.append(events(tail))
    assert [event.version for event in await store.read("ada")] == [1, 2]
    assert not caplog.records


async def test_pages_of_an_originator(store: Store) -> None:
    tail = tail_of(store, "ada")
    await store.append(events(tail, 10))
    everything = await store.read("ada")
    assert await store.read_page("ada", 1, 4) == (everything[:4], 6)
    assert await store.read_page("ada", 5, 100) == (everything[4:], 0)
    assert await store.read_page("ada", 11, 4) == ([], 0)
    assert await store.read_page("nobody", 1, 4) == ([], 0)


async def test_a_version_is_located_like_by_reading_it_all(store: Store) -> None:
    random = Random(3)
    tails = [tail_of(store, f"c-{n}") for n in range(4)]
    for _ in range(20):
        await store.append(
            [message for _ in range(9) for message in events(random.choice(tails), 1)]
        )
    for n in range(4):
        read = await store.read(f"c-{n}")
        last = read[-1]
        for version in [
            -1,
            0,
            1,
            2,
            len(read) - 1,
            len(read),
            len(read) + 1,
            random.randint(1, 40),
        ]:
            expected = next((event for event in read if event.version >= version), None)
            assert await store.locate_version(f"c-{n}", version, last=last) == expected


# -- partitions ----------------------------------------------------------------------------------


@pytest.mark.parametrize("near", [0, 1_000_000])
async def test_events_behind_a_version_are_the_same_asked_for_one_by_one_or_looked_for(
    store: Store, monkeypatch: pytest.MonkeyPatch, near: int
) -> None:
    # given events stored alone, several of one originator in a row and apart in one batch
    random = Random(2)
    tails = [tail_of(store, name) for name in ("ada", "bob", "eve")]
    for _ in range(12):
        together = [events(random.choice(tails), random.choice([1, 1, 3])) for _ in range(4)]
        await store.append([message for each in together for message in each])
        await store.append(events(random.choice(tails), 1))
    searched = 0
    pages = store.reader.pages

    def spied(*given: Any, **more: Any) -> Any:
        nonlocal searched
        searched += 1
        return pages(*given, **more)

    monkeypatch.setattr(store_module, "NEAR", near)
    every = {name: await store.read(name) for name in ("ada", "bob", "eve")}
    monkeypatch.setattr(store.reader, "pages", spied)
    for name, written in every.items():
        last = written[-1]
        for event in [*written[-40:-1], last]:
            # when they are read from a version on, the same come out
            version, seq = event.version, event.seq
            found = await store.read_up_to(name, last, version=version, seq=seq)
            assert found == written[version - 1 :]
        behind = await store.read_up_to(name, last, version=last.version + 1, seq=last.seq)
        assert behind == [last]
    asked = sum(min(40, len(written)) + 1 for written in every.values())
    assert searched == (asked if near else 6), "a single event, and one too many, is searched for"


async def test_each_originator_lives_in_its_partition(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    async with opened(nats_server.url, fresh_topology(partitions=3)) as store:
        names = [f"c-{n}" for n in range(30)]
        await asyncio.gather(*(store.append(events(tail_of(store, name), 2)) for name in names))
        for name in names:
            assert [event.version for event in await store.read(name)] == [1, 2]
        expected = [0, 0, 0]
        for name in names:
            expected[store.topology.partition(name)] += 2
        found = [(await stored_state(nats_client, store, p))["messages"] for p in range(3)]
        assert found == expected
        assert all(expected)
        assert [counters.batched_events + counters.plain for counters in store.counters] == expected


async def test_events_of_different_partitions_cannot_be_one_write(
    nats_server: EmbeddedServer,
) -> None:
    async with opened(nats_server.url, fresh_topology(partitions=2)) as store:
        names = [f"c-{n}" for n in range(9)]
        here = next(name for name in names if store.topology.partition(name) == 0)
        there = next(name for name in names if store.topology.partition(name) == 1)
        with pytest.raises(TooLarge, match="one originator at a time"):
            await store.append(events(tail_of(store, here)) + events(tail_of(store, there)))
        assert await store.read(here) == []
        assert await store.read(there) == []


async def test_the_largest_event_is_what_every_partition_takes(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    topology = fresh_topology(partitions=2)
    larger = {**topology.events_config(1), "max_msg_size": 2_000_000}
    assert "error" not in await call(nats_client, f"STREAM.CREATE.{larger['name']}", larger)
    async with opened(nats_server.url, topology) as store:
        assert store.event_bytes_max == EVENT_BYTES_MAX
        there = next(f"c-{n}" for n in range(9) if topology.partition(f"c-{n}") == 1)
        await store.append(events(tail_of(store, there), 1, b"x" * 1_500_000))


# -- damage --------------------------------------------------------------------------------------


async def crafted(nc: Client, subject: str, version: int, previous: bytes) -> bytes:
    """Stores an event as no committer would; returns its hash."""
    digest = hashlib.sha256(previous + b"{}").digest()
    headers = {"Event-Type": "T", "Event-Version": str(version), "Event-Hash": digest.hex()}
    await nc.request(subject, b"{}", headers=headers, timeout=10)
    return digest


async def test_a_missing_version_is_damage_however_the_pages_fall(
    store: Store, nats_client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    subject = store.topology.subject("ada")
    digest = bytes(32)
    for version in (1, 2, 3, 5, 6):
        digest = await crafted(nats_client, subject, version, digest)
    whole_page = store.reader.page
    for size in (1_000, 3, 2, 1):
        with monkeypatch.context() as patch:
            patch.setattr(store.reader, "page", partial(whole_page, limit=size))
            with pytest.raises(LedgerDamaged, match=r"version 5 .* follows version 3"):
                await store.read("ada")
    with pytest.raises(LedgerDamaged, match="an event is missing"):
        await store.read_page("ada", 1, 10)
    assert len((await store.read_page("ada", 1, 3))[0]) == 3


def test_versions_are_contiguous_or_it_is_damage() -> None:
    def recorded(*versions: int) -> list[Recorded]:
        return [Recorded(10 * v, "s", "T", v, "", "", b"") for v in versions]

    check_contiguous([])
    check_contiguous(recorded(7))
    check_contiguous(recorded(1, 2, 3))
    for wrong in ((1, 3), (2, 1), (1, 1)):
        with pytest.raises(
            LedgerDamaged, match=f"version {wrong[1]} .* follows version {wrong[0]}"
        ):
            check_contiguous(recorded(*wrong))


async def test_closing_waits_for_what_was_handed_over(nats_server: EmbeddedServer) -> None:
    async with opened(nats_server.url) as store:
        appends = [
            asyncio.ensure_future(store.append(events(tail_of(store, f"c-{n}"), 2)))
            for n in range(50)
        ]
        await asyncio.sleep(0)
        await store.close()
        await asyncio.sleep(0)
        assert all(each.done() for each in appends)
        assert [each.exception() for each in appends] == [None] * 50
