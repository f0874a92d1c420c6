"""What a committer must never get wrong when writes meet: whose an event is, and their order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.nuid import NUID

from infra.connection import connect
from infra.jetstream.committer import Write
from infra.jetstream.envelope import Message, Tail, pack
from infra.jetstream.errors import Conflict
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology
from infra.server import EmbeddedServer
from infra.settings import Settings


@pytest_asyncio.fixture
async def stores(nats_server: EmbeddedServer) -> AsyncIterator[tuple[Store, Store]]:
    """Two processes' stores on the same streams, as far as NATS can tell."""
    name = NUID().next().decode()
    topology = Topology(stream=name, prefix=name)
    clients: list[Client] = []
    opened = []
    for _ in range(2):
        pair = [await connect(nats_server.url, name="test", settings=Settings()) for _ in range(2)]
        clients += pair
        opened.append(await Store.open(topology, writing=pair[0], reading=pair[1], deadline=5))
    yield opened[0], opened[1]
    for store in opened:
        await store.close()
    for client in clients:
        await client.close()


def one(tail: Tail) -> list[Message]:
    return [pack(tail, "Happened", tail.version + 1, b"{}")]


async def committed(store: Store, writes: list[list[Message]]) -> list[Write]:
    """Hands all writes over in one turn of the loop; returns them when they are done."""
    loop = asyncio.get_running_loop()
    done: list[asyncio.Future[Write]] = [loop.create_future() for _ in writes]
    for messages, future in zip(writes, done, strict=True):
        store.submit(Write(messages, future.set_result))
    return list(await asyncio.gather(*done))


@pytest.mark.parametrize("neighbours", [0, 1, 40])
async def test_an_equal_event_of_another_writer_is_not_taken_for_ones_own(
    stores: tuple[Store, Store], neighbours: int
) -> None:
    # given an event that somebody else wrote, the same to the last bit
    first, second = stores
    subject = first.topology.subject("contested")
    await first.append(one(Tail(subject)))
    # when it is written once more, on the same expectation, beside others
    beside = [Tail(second.topology.subject(f"beside-{n}")) for n in range(neighbours)]
    done = await committed(second, [one(Tail(subject)), *map(one, beside)])
    # then it is refused, and what shared its batch is really there
    assert isinstance(done[0].error, Conflict)
    assert [write.error for write in done[1:]] == [None] * neighbours
    for tail, write in zip(beside, done[1:], strict=True):
        last = await second.last(second.topology.originator(tail.subject), leader=True)
        assert last is not None
        assert [last.seq] == list(write.seqs)
    assert len(await second.read("contested")) == 1


@pytest.mark.parametrize("sizes", [(1, 2), (1, 1, 2), (2, 1, 1), (1, 2, 1, 3), (2, 2, 1)])
async def test_writes_on_one_subject_are_stored_in_the_order_they_were_handed_over(
    stores: tuple[Store, Store], sizes: tuple[int, ...]
) -> None:
    # given writes of one and of several events, decided one on the other
    store, _ = stores
    tail = Tail(store.topology.subject("ordered"))
    # when they are handed over at once, with a few others
    done = await committed(
        store,
        [[message for _ in range(size) for message in one(tail)] for size in sizes]
        + [one(Tail(store.topology.subject(f"beside-{n}"))) for n in range(4)],
    )
    # then all of them are stored, in that order
    assert [write.error for write in done] == [None] * (len(sizes) + 4)
    assert [event.version for event in await store.read("ordered")] == list(
        range(1, sum(sizes) + 1)
    )


async def test_more_single_events_than_may_go_side_by_side_keep_their_order(
    stores: tuple[Store, Store],
) -> None:
    # given as many publishes under way as there may be
    store, _ = stores
    limit = store._committers[0].costs.break_even()
    busy = [
        asyncio.ensure_future(committed(store, [one(Tail(store.topology.subject(f"busy-{n}")))]))
        for n in range(limit - 1)
    ]
    await asyncio.sleep(0)
    # when one event and then several are written on one subject
    tail = Tail(store.topology.subject("waiting"))
    filler = one(Tail(store.topology.subject("filler")))
    done = await committed(store, [filler, one(tail), one(tail) + one(tail)])
    # then the single one is stored first
    assert [write.error for write in done] == [None] * 3
    assert [event.version for event in await store.read("waiting")] == [1, 2, 3]
    await asyncio.gather(*busy)


Gathering = Callable[[float], Awaitable[Store]]


@pytest_asyncio.fixture
async def gathering(nats_server: EmbeddedServer) -> AsyncIterator[Gathering]:
    """Opens a store whose committer gathers its writers for so many seconds."""
    name = NUID().next().decode()
    clients = [await connect(nats_server.url, name="test", settings=Settings()) for _ in range(2)]

    async def open_store(gather: float) -> Store:
        writing, reading = clients
        topology = Topology(stream=name, prefix=name)
        return await Store.open(topology, writing=writing, reading=reading, gather=gather)

    yield open_store
    for client in clients:
        await client.close()


async def test_writers_that_come_back_one_by_one_share_one_batch_when_they_are_gathered(
    gathering: Gathering,
) -> None:
    # given writers that take a moment, each another one, before they write again
    store = await gathering(30.0)
    rounds, writers = 5, 16

    async def write(number: int) -> None:
        tail = Tail(store.topology.subject(f"writer-{number}"))
        for _ in range(rounds):
            await store.append(one(tail))
            await asyncio.sleep(0.001 * number)

    # when they write side by side
    await asyncio.gather(*map(write, range(writers)))
    # then every batch is one of all of them
    [counters] = store.counters
    assert (counters.batches, counters.batched_events) == (rounds, rounds * writers)
    await store.close()


async def test_who_writes_alone_is_not_held_by_gathering(gathering: Gathering) -> None:
    store = await gathering(600.0)
    tail = Tail(store.topology.subject("alone"))
    async with asyncio.timeout(60):
        for _ in range(10):
            await store.append(one(tail))
            await store.append(one(tail) + one(tail))
        await store.close()


async def test_gathering_ends_when_nobody_comes_back_and_holds_nobody_who_closes(
    gathering: Gathering,
) -> None:
    store = await gathering(0.05)
    tails = [Tail(store.topology.subject(f"once-{n}")) for n in range(16)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(store.append(one(tail)) for tail in tails))
        await store.append(one(tails[0]))  # the only one to come back
        assert (await store.last("once-0", leader=True)) is not None
    patient = await gathering(600.0)
    others = [Tail(patient.topology.subject(f"others-{n}")) for n in range(16)]
    async with asyncio.timeout(60):
        await asyncio.gather(*(patient.append(one(tail)) for tail in others))
        await patient.close()
    await store.close()
