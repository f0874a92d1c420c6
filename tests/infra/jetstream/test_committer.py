"""Group commit on a real server: order, groups, conflicts, limits, and outcomes nobody answered."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from pathlib import Path
from random import Random
from typing import cast

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import OutboundBufferLimitError
from nats.errors import TimeoutError as NoAnswer

from infra.jetstream import committer as committer_module
from infra.jetstream.committer import Counters
from infra.jetstream.envelope import (
    GENESIS,
    HEADER_BYTES_MAX,
    Message,
    Recorded,
    Tail,
    verify_chain,
)
from infra.jetstream.errors import (
    Conflict,
    OutcomeUnknown,
    StoreReadOnly,
    StoreUnavailable,
    TooLarge,
)
from infra.jetstream.store import Store
from infra.jetstream.topology import BATCH_MESSAGES_MAX, EVENT_BYTES_MAX, Topology, call
from infra.lean import LeanClient
from infra.server import EmbeddedServer

from .faulty_client import Call, FaultyClient, Weather, lose, lose_answer
from .rigs import (
    Handed,
    committed,
    connected,
    events,
    fresh_topology,
    opened,
    server_with,
    tail_of,
)

Until = Callable[[Callable[[], bool]], Awaitable[None]]

NOTHING_WRITTEN = (Conflict, StoreUnavailable, TooLarge)  # StoreReadOnly is a StoreUnavailable


@pytest_asyncio.fixture
async def store(nats_server: EmbeddedServer) -> AsyncIterator[Store]:
    async with opened(nats_server.url) as store:
        yield store


@pytest_asyncio.fixture
async def rival(nats_server: EmbeddedServer, store: Store) -> AsyncIterator[Store]:
    """Another process on the same streams."""
    async with opened(nats_server.url, store.topology) as rival:
        yield rival


@contextlib.asynccontextmanager
async def faulty(
    url: str, topology: Topology | None = None, *, deadline: float = 5.0, timeout: float = 1.0
) -> AsyncIterator[tuple[Store, FaultyClient]]:
    """A store that writes over a connection to which things can happen."""
    async with connected(url) as writing, connected(url) as reading:
        client = FaultyClient(writing)
        store = await Store.open(
            topology or fresh_topology(),
            writing=cast("LeanClient", client),
            reading=reading,
            request_timeout=timeout,
            deadline=deadline,
        )
        try:
            yield store, client
        finally:
            await store.close()


async def everything(store: Store) -> list[Recorded]:
    """Every event of a store with one partition, in the order of the stream."""
    store.reader._timeout = 10.0  # how hasty the store was before is no concern of who looks
    stream, subject = store.topology.stream_name(0), f"{store.topology.prefix}.>"
    return [event async for page in store.reader.pages(stream, subject) for event in page]


async def check_stored(store: Store, handed: Sequence[Handed]) -> Counter[str]:
    """The stream holds what was reported, and nothing else; returns how often what was reported.

    Takes for granted that the bodies of all events ever handed over are different.
    """
    stream = await everything(store)
    place = {event.body: event for event in stream}
    assert len(place) == len(stream), "an event is there twice"
    reported: Counter[str] = Counter()
    accounted = 0
    for each in handed:
        write = each.write
        assert each.calls == 1, "on_done is called exactly once"
        there = [place.get(message.body) for message in write.messages]
        found = [event for event in there if event is not None]
        reported[type(write.error).__name__] += 1
        accounted += len(found)
        if write.error is None or (found and isinstance(write.error, OutcomeUnknown)):
            assert len(found) == len(write.messages), "a write is stored as a whole"
            seqs = [event.seq for event in found]
            assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
            for event, message in zip(found, write.messages, strict=True):
                assert event.subject == message.tail.subject
                assert (event.version, event.digest) == (message.version, message.digest.hex())
        if write.error is None:
            assert [event.seq for event in found] == list(write.seqs)
        elif not isinstance(write.error, OutcomeUnknown):
            assert isinstance(write.error, NOTHING_WRITTEN)
            assert not found, f"stored, but reported as {write.error!r}"
    assert accounted == len(stream), "an event of nobody's"
    subjects: dict[str, list[Recorded]] = {}
    for event in stream:
        subjects.setdefault(event.subject, []).append(event)
    for on_subject in subjects.values():
        assert [event.version for event in on_subject] == list(range(1, len(on_subject) + 1))
        verify_chain(GENESIS, on_subject)
    return reported


numbers = count()


def different(tail: Tail, number: int = 1) -> list[Message]:
    """The next events behind a tail, with bodies that no other event has."""
    return [message for _ in range(number) for message in events(tail, 1, b"%d" % next(numbers))]


# -- what goes together --------------------------------------------------------------------------


async def test_a_lone_event_is_a_plain_publish(store: Store) -> None:
    [write] = await committed(store, [events(tail_of(store, "alone"))])
    assert write.error is None
    assert list(write.seqs) == [1]
    [counters] = store.counters
    assert (counters.plain, counters.batches) == (1, 0)


async def test_a_few_single_events_go_side_by_side(store: Store) -> None:
    writes = await committed(store, [events(tail_of(store, f"few-{n}")) for n in range(3)])
    assert sorted(seq for write in writes for seq in write.seqs) == [1, 2, 3]
    [counters] = store.counters
    assert (counters.plain, counters.batches) == (3, 0)


async def test_several_events_of_one_write_are_one_batch(store: Store) -> None:
    [write] = await committed(store, [events(tail_of(store, "several"), 3)])
    assert list(write.seqs) == [1, 2, 3]
    [counters] = store.counters
    assert (counters.plain, counters.batches, counters.batched_events) == (0, 1, 3)


async def test_many_waiting_events_go_in_as_few_batches_as_the_server_allows(store: Store) -> None:
    writes = await committed(store, [events(tail_of(store, f"many-{n}")) for n in range(2_500)])
    assert [write.error for write in writes] == [None] * 2_500
    assert [list(write.seqs) for write in writes] == [[n] for n in range(1, 2_501)]
    [counters] = store.counters
    assert (counters.plain, counters.batches, counters.batched_events) == (0, 3, 2_500)


async def test_what_arrives_while_a_batch_is_on_its_way_is_the_next_batch(
    nats_server: EmbeddedServer,
) -> None:
    async with faulty(nats_server.url) as (store, client):
        # given a batch that is not answered yet
        answered = asyncio.Event()

        async def hold(commit: Call) -> Msg:
            await answered.wait()
            return await commit.send()

        client.on_commit = hold
        first = [Handed(store, different(tail_of(store, f"first-{n}"))) for n in range(100)]
        await client.committing.wait()
        # when more writes trickle in, one a turn
        later = []
        for n in range(50):
            later.append(Handed(store, different(tail_of(store, f"later-{n}"))))
            await asyncio.sleep(0)
        answered.set()
        for each in [*first, *later]:
            await each.settled()
        # then they went together
        [counters] = store.counters
        assert (counters.plain, counters.batches, counters.batched_events) == (0, 2, 150)
        assert await check_stored(store, [*first, *later]) == {"NoneType": 150}


async def test_a_batch_takes_no_more_bytes_than_it_may(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(committer_module, "BATCH_BYTES_MAX", 200_000)
    large = b"x" * 2_000
    writes = await committed(
        store, [events(tail_of(store, f"large-{n}"), 1, large) for n in range(1_000)]
    )
    assert [write.error for write in writes] == [None] * 1_000
    [counters] = store.counters
    assert counters.batches == 10


async def test_ten_thousand_writes_may_wait(store: Store) -> None:
    tails = [tail_of(store, f"crowd-{n}") for n in range(1_000)]
    handed = [Handed(store, different(tails[n % 1_000])) for n in range(10_000)]
    for each in handed:
        await each.settled()
    assert store.counters[0].batches == 10
    assert await check_stored(store, handed) == {"NoneType": 10_000}


async def test_more_than_may_wait_is_refused_at_once_and_written_nowhere(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given room for 50
    monkeypatch.setattr(committer_module, "WAITING_MAX", 50)
    tails = [tail_of(store, f"room-{n}") for n in range(60)]
    handed = [Handed(store, different(tail)) for tail in tails]
    # when 60 come at once, and another one behind each that found no room
    for each in handed[50:]:
        assert each.calls == 0, "never from within the call"
    for each in handed:
        await each.settled()
    handed += [Handed(store, different(tail)) for tail in tails[50:]]
    for each in handed:
        await each.settled()
    # then those 10 are refused, and what was decided on top of them is void
    errors = [type(each.error) for each in handed]
    assert errors == [type(None)] * 50 + [StoreUnavailable] * 10 + [Conflict] * 10
    await check_stored(store, handed)


# -- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
async def test_writes_on_a_tail_are_stored_in_the_order_they_were_handed_over(
    store: Store, seed: int
) -> None:
    # given writes of any size on a few subjects, handed over in bursts
    random = Random(seed)
    tails = [tail_of(store, f"ordered-{n}") for n in range(6)]
    handed = []
    for _ in range(60):
        for _ in range(random.choice([1, 1, 2, 5, 20])):
            messages = different(random.choice(tails), random.choice([1, 1, 2, 4]))
            handed.append(Handed(store, messages))
        for _ in range(random.choice([0, 1, 1, 30])):
            await asyncio.sleep(0)
    for each in handed:
        await each.settled()
    # then they are all there, in that order on each subject (the bodies count up)
    assert await check_stored(store, handed) == {"NoneType": len(handed)}
    for tail in tails:
        bodies = [
            int(event.body) for event in await everything(store) if event.subject == tail.subject
        ]
        assert bodies == sorted(bodies)


async def test_a_write_may_be_handed_over_from_the_on_done_of_another(store: Store) -> None:
    tail = tail_of(store, "chained")
    handed: list[Handed] = []
    finished = asyncio.get_running_loop().create_future()

    def next_one() -> None:
        each = Handed(store, different(tail))
        handed.append(each)
        each.done.add_done_callback(
            lambda _: next_one() if len(handed) < 50 else finished.set_result(0)
        )

    next_one()
    await finished
    assert await check_stored(store, handed) == {"NoneType": 50}


# -- all or nothing ------------------------------------------------------------------------------


async def test_one_write_may_reach_several_subjects_and_is_atomic(
    store: Store, rival: Store
) -> None:
    # given two subjects, one of which a rival has written to since
    free, taken = tail_of(store, "free"), tail_of(store, "taken")
    await rival.append(different(tail_of(rival, "taken")))
    # when one write reaches both
    handed = Handed(store, different(free) + different(taken))
    await handed.settled()
    # then it is a conflict on the one, and nothing is on the other
    assert isinstance(handed.error, Conflict)
    assert handed.error.subject == taken.subject
    assert handed.error.expected_seq == 0
    assert await store.read("free") == []
    # and when it is decided again on what is there
    taken = store.tail("taken", await store.last("taken", leader=True))
    again = Handed(store, different(tail_of(store, "free")) + different(taken, 2))
    await again.settled()
    # then both are written together
    assert again.error is None
    assert [len(await store.read(each)) for each in ("free", "taken")] == [1, 3]


async def test_a_conflict_harms_no_neighbour_in_the_batch(store: Store, rival: Store) -> None:
    # given forty conversations, of which seven were written to by somebody else
    stale = {3, 4, 11, 20, 21, 22, 39}
    tails = [tail_of(store, f"shared-{n}") for n in range(40)]
    theirs = [Handed(rival, different(tail_of(rival, f"shared-{n}"))) for n in stale]
    for each in theirs:
        await each.settled()
    # when all forty are written at once
    ours = [Handed(store, different(tail, 1 + n % 2)) for n, tail in enumerate(tails)]
    for each in ours:
        await each.settled()
    # then exactly the seven are conflicts
    failed = {n for n, each in enumerate(ours) if each.error is not None}
    assert failed == stale
    assert all(isinstance(ours[n].error, Conflict) for n in stale)
    assert store.counters[0].conflicts == 1, "one batch, and one without the seven"
    await check_stored(store, ours + theirs)


@pytest.mark.parametrize("neighbours", [0, 30])
async def test_what_was_decided_on_top_of_a_conflict_is_a_conflict(
    store: Store, rival: Store, neighbours: int
) -> None:
    # given a subject that moved on, and writes decided one on top of the other
    tail = tail_of(store, "moved")
    theirs = Handed(rival, different(tail_of(rival, "moved"), 2))
    await theirs.settled()
    on_top = [Handed(store, different(tail, size)) for size in (1, 2, 1)]
    beside = [Handed(store, different(tail_of(store, f"b-{n}"))) for n in range(neighbours)]
    for each in on_top:
        await each.settled()
    # when one more is handed over after the failure
    on_top.append(Handed(store, different(tail)))
    for each in [*on_top, *beside]:
        await each.settled()
    # then none of them is written
    assert all(isinstance(each.error, Conflict) for each in on_top)
    assert await check_stored(store, [theirs, *on_top, *beside]) == {
        "NoneType": 1 + neighbours,
        "Conflict": 4,
    }


async def test_a_strangers_message_is_a_conflict_whatever_its_headers_are(
    store: Store, nats_client: Client
) -> None:
    # given messages that no committer made, one with headers that are no text
    await nats_client.request(store.topology.subject("strange-0"), b"hello", timeout=10)
    raw = b"NATS/1.0\r\nX-Name: \xff\xfe\r\n\r\n"
    subject = store.topology.subject("strange-1").encode()
    await nats_client._send_command(
        b"HPUB %s %d %d\r\n%shello\r\n" % (subject, len(raw), len(raw) + 5, raw)
    )
    await nats_client.flush()
    # when those subjects are written to, as if empty, beside others
    strange = [Handed(store, different(tail_of(store, f"strange-{n}"))) for n in range(2)]
    beside = [Handed(store, different(tail_of(store, f"beside-{n}"))) for n in range(30)]
    for each in [*strange, *beside]:
        await each.settled()
    # then that is a conflict, and nobody else's business
    assert [type(each.error) for each in strange] == [Conflict, Conflict]
    assert [each.error for each in beside] == [None] * 30


async def test_two_writers_of_one_subject_meet_in_one_batch(store: Store) -> None:
    # given two tails of one subject, as two threads of an application have them
    handed = [Handed(store, different(tail_of(store, "met"), 2)) for _ in range(2)]
    beside = [Handed(store, different(tail_of(store, f"beside-{n}"))) for n in range(20)]
    # when both write at once
    for each in [*handed, *beside]:
        await each.settled()
    # then the first one wins, the other one has to decide again, and nobody else is harmed
    assert handed[0].error is None
    assert isinstance(handed[1].error, Conflict)
    assert await check_stored(store, handed + beside) == {"NoneType": 21, "Conflict": 1}


# -- too large -----------------------------------------------------------------------------------


@pytest.mark.parametrize("neighbours", [0, 30])
async def test_an_event_up_to_the_limit_is_stored_and_one_over_it_never_sent(
    store: Store, neighbours: int
) -> None:
    largest = EVENT_BYTES_MAX - HEADER_BYTES_MAX
    beside = [events(tail_of(store, f"beside-{n}")) for n in range(neighbours)]
    done = await committed(
        store,
        [
            events(tail_of(store, "fits"), 1, os.urandom(largest)),
            events(tail_of(store, "over"), 1, os.urandom(largest + 1)),
            *beside,
        ],
    )
    assert done[0].error is None
    assert isinstance(done[1].error, TooLarge)
    assert str(EVENT_BYTES_MAX + 1) in str(done[1].error)
    assert [write.error for write in done[2:]] == [None] * neighbours
    assert await store.last("over") is None


async def test_the_payload_limit_of_the_server_counts_too(tmp_path: Path) -> None:
    async with server_with(tmp_path, settings="max_payload: 100000") as url, opened(url) as store:
        done = await committed(
            store,
            [
                events(tail_of(store, "fits"), 1, b"x" * (100_000 - HEADER_BYTES_MAX)),
                events(tail_of(store, "over"), 1, b"x" * (100_001 - HEADER_BYTES_MAX)),
            ],
        )
        assert done[0].error is None
        assert isinstance(done[1].error, TooLarge)


async def test_as_many_events_as_a_batch_holds_are_one_write_and_one_more_is_refused(
    store: Store,
) -> None:
    whole = Handed(store, different(tail_of(store, "whole"), BATCH_MESSAGES_MAX))
    over = Handed(store, different(tail_of(store, "over"), BATCH_MESSAGES_MAX + 1))
    beside = Handed(store, different(tail_of(store, "beside")))
    for each in (whole, over, beside):
        await each.settled()
    assert whole.error is None
    assert len(whole.write.seqs) == BATCH_MESSAGES_MAX
    assert isinstance(over.error, TooLarge)
    assert beside.error is None
    await check_stored(store, [whole, over, beside])


@pytest.mark.parametrize("neighbours", [0, 30])
async def test_what_is_packed_behind_a_write_that_is_too_large_is_a_conflict_and_harms_nobody(
    store: Store, neighbours: int
) -> None:
    # given a turn of the loop in which a pump is due already
    beside = [
        Handed(store, different(tail_of(store, f"beside-{n}"))) for n in range(neighbours + 1)
    ]
    # when an event that is too large is handed over, and another one behind it
    tail = tail_of(store, "over")
    over = Handed(store, events(tail, 1, b"x" * 1_000_000))
    behind = [Handed(store, different(tail)), Handed(store, different(tail, 2))]
    for each in [*beside, over, *behind]:
        await each.settled()
    # then what is behind it was decided on something that never was
    assert isinstance(over.error, TooLarge)
    assert [type(each.error) for each in behind] == [Conflict, Conflict]
    assert [each.error for each in beside] == [None] * (neighbours + 1)
    await check_stored(store, [*beside, over, *behind])


async def test_idle_waits_for_what_was_refused_too(store: Store) -> None:
    over = Handed(store, events(tail_of(store, "over"), 1, b"x" * 1_000_000))
    await store.close()
    assert over.calls == 1


async def test_a_servers_lower_limit_for_batches_costs_time_and_nothing_else(
    tmp_path: Path,
) -> None:
    fifty = "limits { batch { max_msgs: 50 } }"
    async with server_with(tmp_path, jetstream=fifty) as url, opened(url) as store:
        # given single writes, more than that in one batch, and one write that is too many
        handed = [Handed(store, different(tail_of(store, f"c-{n}"))) for n in range(200)]
        fits = Handed(store, different(tail_of(store, "fits"), 49))
        over = Handed(store, different(tail_of(store, "over"), 60))
        # when they are done
        for each in [*handed, fits, over]:
            await each.settled()
        # then they are all stored but the one that can never be
        assert isinstance(over.error, TooLarge)
        assert await check_stored(store, [*handed, fits, over]) == {"NoneType": 201, "TooLarge": 1}


async def test_a_stream_that_takes_less_than_when_it_was_opened_refuses_the_culprit_alone(
    store: Store, nats_client: Client
) -> None:
    # given an operator who lowers the limit
    name = store.topology.stream_name(0)
    config = {**store.streams[0]["config"], "max_msg_size": 2_000}
    assert "error" not in await call(nats_client, f"STREAM.UPDATE.{name}", config)
    # when one event in the middle of a batch is over it, and one is written on top of that
    tail = tail_of(store, "over")
    first = [Handed(store, different(tail_of(store, f"first-{n}"))) for n in range(20)]
    over = Handed(store, events(tail, 1, b"x" * 3_000))
    on_top = Handed(store, different(tail))
    last = [Handed(store, different(tail_of(store, f"last-{n}"))) for n in range(20)]
    for each in [*first, over, on_top, *last]:
        await each.settled()
    # then that one is too large, and the others are stored
    assert isinstance(over.error, TooLarge)
    assert isinstance(on_top.error, Conflict)
    assert [each.error for each in first + last] == [None] * 40


# -- no room -------------------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 30])
async def test_a_full_stream_is_read_only_until_there_is_room(
    nats_server: EmbeddedServer, nats_client: Client, together: int
) -> None:
    topology = fresh_topology()
    config = {**topology.events_config(0), "max_bytes": 20_000, "compression": "none"}
    name = topology.stream_name(0)
    assert "error" not in await call(nats_client, f"STREAM.CREATE.{name}", config)
    async with opened(nats_server.url, topology) as store:
        # given a stream that is filled up
        handed: list[Handed] = []
        while not handed or handed[-1].error is None:
            handed += [
                Handed(store, events(tail_of(store, f"{len(handed)}-{n}"), 1, os.urandom(200)))
                for n in range(together)
            ]
            for each in handed:
                await each.settled()
        # when there is no room, then nothing was written and it says so, without waiting
        full = [each for each in handed if each.error is not None]
        assert all(isinstance(each.error, StoreReadOnly) for each in full)
        await check_stored(store, handed)
        # and when there is room again
        answer = await call(nats_client, f"STREAM.UPDATE.{name}", {**config, "max_bytes": 10**7})
        assert "error" not in answer
        # then writes go on
        handed += [Handed(store, different(tail_of(store, f"new-{n}"))) for n in range(together)]
        for each in handed[-together:]:
            assert (await each.settled()).error is None
        await check_stored(store, handed)


@pytest.mark.parametrize("together", [1, 30])
async def test_a_full_account_is_read_only_too(tmp_path: Path, together: int) -> None:
    account = (
        "accounts { A { jetstream { max_file: 20000 }, users [{ user: a, password: a }] } }\n"
        "no_auth_user: a"
    )
    async with server_with(tmp_path, settings=account) as url, opened(url, deadline=3) as store:

        def large(name: str) -> Handed:
            return Handed(store, events(tail_of(store, name), 1, os.urandom(3_000)))

        # given an account whose share of the disk is used up
        filling = [large("filling-0")]
        while (await filling[-1].settled()).error is None:
            filling.append(large(f"filling-{len(filling)}"))
        # when more is written, alone or together, then it says so at once
        handed = [large(f"c-{n}") for n in range(together)]
        for each in handed:
            assert isinstance((await each.settled()).error, StoreReadOnly)
        await check_stored(store, filling + handed)


# -- nobody answered -----------------------------------------------------------------------------


@pytest.mark.parametrize("together", [1, 30])
@pytest.mark.parametrize("fault", [lose_answer, lose])
async def test_an_answer_that_is_lost_is_looked_up(
    nats_server: EmbeddedServer, fault: Callable[[Call], Awaitable[Msg]], together: int
) -> None:
    async with faulty(nats_server.url) as (store, client):
        # given an answer that is lost, with or without what it answers
        async def once(commit: Call) -> Msg:
            client.on_commit = Call.send
            return await fault(commit)

        client.on_commit = once
        # when events are written
        tails = [tail_of(store, f"c-{n}") for n in range(together)]
        handed = [Handed(store, different(tail)) for tail in tails]
        for each in handed:
            await each.settled()
        # then they are there, once, where they are said to be
        assert await check_stored(store, handed) == {"NoneType": together}
        assert store.counters[0].unknown == 1
        # and the tails go on from there
        again = [Handed(store, different(tail)) for tail in tails]
        for each in again:
            await each.settled()
        assert await check_stored(store, handed + again) == {"NoneType": 2 * together}


@pytest.mark.parametrize("together", [1, 30])
async def test_a_late_copy_and_a_repeated_one_never_both_win(
    nats_server: EmbeddedServer, together: int
) -> None:
    async with faulty(nats_server.url) as (store, client):
        late: list[Call] = []

        async def first_is_late(commit: Call) -> Msg:
            late.append(commit)
            if len(late) == 1:
                raise NoAnswer
            await late[0].send_late()  # overtakes its copy
            return await commit.send()

        client.on_commit = first_is_late
        handed = [Handed(store, different(tail_of(store, f"c-{n}"))) for n in range(together)]
        for each in handed:
            await each.settled()
        assert await check_stored(store, handed) == {"NoneType": together}


async def test_a_copy_that_arrives_while_its_subjects_are_read_back_is_no_conflict(
    nats_server: EmbeddedServer,
) -> None:
    async with faulty(nats_server.url) as (store, client):
        # given a batch that is late, and arrives after the first of its subjects was read
        late: list[Call] = []
        reads = count(1)

        async def first_is_late(commit: Call) -> Msg:
            late.append(commit)
            if len(late) == 1:
                raise NoAnswer
            return await commit.send()

        async def arrives_in_between(api: Call) -> Msg:
            if "MSG.GET" in api.subject and next(reads) == 2:
                await late[0].send()
            return await api.send()

        client.on_commit = first_is_late
        client.on_api = arrives_in_between
        # when its writes are settled
        handed = [Handed(store, different(tail_of(store, f"c-{n}"), 1 + n % 3)) for n in range(20)]
        for each in handed:
            await each.settled()
        # then all are told that they are stored, none that it was somebody else
        assert await check_stored(store, handed) == {"NoneType": 20}


@pytest.mark.parametrize("together", [1, 30])
async def test_a_store_that_is_full_after_no_answer_came_is_looked_up_first(
    nats_server: EmbeddedServer, together: int
) -> None:
    async with faulty(nats_server.url) as (store, client):
        # given events that took the last room, whose answer is lost; the server looks for room
        # before it looks at the sequence (an account's limit, or three replicas)
        async def once(commit: Call) -> Msg:
            client.on_commit = full
            return await lose_answer(commit)

        async def full(commit: Call) -> Msg:
            return commit.answer(
                {"code": 503, "err_code": 10023, "description": "insufficient resources"}
            )

        async def unreadable_once(api: Call) -> Msg:
            client.on_api = Call.send
            raise NoAnswer

        client.on_commit = once
        client.on_api = unreadable_once
        handed = [Handed(store, different(tail_of(store, f"c-{n}"))) for n in range(together)]
        for each in handed:
            await each.settled()
        # then nobody is told that nothing was written
        await check_stored(store, handed)
        assert not any(isinstance(each.error, StoreReadOnly) for each in handed)


@pytest.mark.parametrize("together", [1, 30])
async def test_the_outcome_is_unknown_only_at_the_deadline(
    nats_server: EmbeddedServer, together: int
) -> None:
    async with faulty(nats_server.url, deadline=2.5, timeout=0.2) as (store, client):
        client.on_commit = lose
        handed = [Handed(store, different(tail_of(store, f"c-{n}"))) for n in range(together)]
        for each in handed:
            write = await each.settled()
            assert isinstance(write.error, OutcomeUnknown)
            assert time.monotonic() > write.deadline - 0.6, "one pause before it at most"
        assert (
            len(
                {
                    commit.headers and commit.headers.get("Nats-Batch-Id", n)
                    for n, commit in enumerate(client.commits)
                }
            )
            >= 2
        ), "it was tried more than once"
        await check_stored(store, handed)


@pytest.mark.parametrize("together", [1, 30])
async def test_what_never_left_is_unavailable_and_not_unknown(
    nats_server: EmbeddedServer, together: int
) -> None:
    async with faulty(nats_server.url, deadline=1.5) as (store, client):

        async def no_leader(commit: Call) -> Msg:
            return commit.answer({"code": 503, "err_code": 10008, "description": "no leader"})

        client.on_commit = no_leader
        handed = [Handed(store, different(tail_of(store, f"c-{n}"))) for n in range(together)]
        for each in handed:
            assert isinstance((await each.settled()).error, StoreUnavailable)
            assert "no leader" in str(each.error)
        await check_stored(store, handed)


async def test_a_reply_that_is_no_json_object_proves_nothing(nats_server: EmbeddedServer) -> None:
    for reply in (b"", b"hello", b"[]", b"7", b'"stored"', b'{"seq": "1"}'):
        async with faulty(nats_server.url) as (store, client):

            async def once(
                commit: Call, reply: bytes = reply, client: FaultyClient = client
            ) -> Msg:
                client.on_commit = Call.send
                await commit.send()
                return Msg(commit.client, data=reply)

            client.on_commit = once
            handed = Handed(store, different(tail_of(store, "c")))
            assert (await handed.settled()).error is None, reply
            await check_stored(store, [handed])


async def test_an_old_write_takes_no_younger_one_along(nats_server: EmbeddedServer) -> None:
    async with faulty(nats_server.url, deadline=1.5, timeout=0.1) as (store, client):
        # given writes that wait behind a batch that does not get away
        async def not_sent(_: Call) -> Msg:
            raise OutboundBufferLimitError

        client.on_commit = not_sent
        first = [Handed(store, different(tail_of(store, f"first-{n}"))) for n in range(20)]
        await client.committing.wait()
        await asyncio.sleep(0.1)
        old = [Handed(store, different(tail_of(store, f"old-{n}"))) for n in range(20)]
        await asyncio.sleep(1.0)
        young = [Handed(store, different(tail_of(store, f"young-{n}"))) for n in range(20)]
        # when they reach their deadlines
        for each in first:
            await each.settled()
        # then nobody is told before his own
        for each in [*old, *young]:
            write = await each.settled()
            assert time.monotonic() > write.deadline - 0.6
        await check_stored(store, first + old + young)


async def test_an_on_done_that_fails_harms_nobody(
    store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("a fault in the caller")

    tail = tail_of(store, "c")
    store.submit(committer_module.Write(different(tail), fails))
    others = [Handed(store, different(tail_of(store, f"o-{n}"))) for n in range(30)]
    behind = Handed(store, different(tail))
    for each in [*others, behind]:
        assert (await each.settled()).error is None
    assert "the callback of a write failed" in caplog.text


# -- all of it, at random ------------------------------------------------------------------------


class Process:
    """A process that appends to a few originators at random and loads again what it lost."""

    def __init__(self, store: Store, names: Sequence[str], random: Random) -> None:
        self.handed: list[Handed] = []
        self._store = store
        self._names = names
        self._random = random
        self._tails: dict[str, Tail] = {}

    async def work(self, turns: int) -> None:
        random = self._random
        for _ in range(turns):
            for _ in range(random.choice([1, 1, 2, 8, 40])):
                self._hand_over([await self._tail(random.choice(self._names))])
            if random.random() < 0.2:
                chosen = random.sample(self._names, 2)
                self._hand_over([await self._tail(each) for each in chosen])
            match random.randrange(3):
                case 0:
                    await self.handed[-1].settled()
                case 1:
                    await asyncio.sleep(0)
                case _:
                    await asyncio.sleep(random.random() * 0.01)
        for each in self.handed:
            await each.settled()

    def _hand_over(self, tails: Sequence[Tail]) -> None:
        messages = [
            message for tail in tails for message in different(tail, self._random.choice([1, 1, 3]))
        ]
        self.handed.append(Handed(self._store, messages))

    async def _tail(self, name: str) -> Tail:
        tail = self._tails.get(name)
        if tail is None or tail.broken:
            last = await self._last(name)
            tail = self._tails[name] = self._store.tail(name, last)
        return tail

    async def _last(self, name: str) -> Recorded | None:
        while True:
            with contextlib.suppress(StoreUnavailable):
                return await self._store.last(name, leader=True)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("seed", range(3))
async def test_whatever_happens_what_is_reported_is_what_is_stored(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    monkeypatch.setattr(committer_module, "_PAUSE_MAX_S", 0.05)
    names = [f"c-{n}" for n in range(12)]
    async with (
        faulty(nats_server.url, deadline=3, timeout=0.5) as (store, client),
        faulty(nats_server.url, store.topology, deadline=3, timeout=0.5) as (other, other_client),
    ):
        # given two processes on the same conversations, over bad connections
        weather = Weather(client, Random(seed), badness=0.3)
        elsewhere = Weather(other_client, Random(-seed), badness=0.1)
        processes = [
            Process(store, names, Random(10 + seed)),
            Process(store, names, Random(20 + seed)),
            Process(other, names, Random(30 + seed)),
        ]
        # when they write all at once
        await asyncio.gather(*(process.work(12) for process in processes))
        await weather.clear()
        await elsewhere.clear()
        # then the stream holds what they were told
        handed = [each for process in processes for each in process.handed]
        reported = await check_stored(store, handed)
        assert reported["NoneType"] > 10
        assert reported["Conflict"] > 0


async def test_a_server_that_stands_still_for_a_while_costs_time_and_nothing_else(
    nats_server: EmbeddedServer,
) -> None:
    async with opened(nats_server.url, request_timeout=0.3) as store:
        tails = [tail_of(store, f"c-{n}") for n in range(60)]
        handed = [Handed(store, different(tail)) for tail in tails]
        pid = nats_server.pid
        assert pid is not None
        for _ in range(2):
            # given a server that stops in the middle of a batch, for longer than a request may take
            await asyncio.sleep(0)
            os.kill(pid, signal.SIGSTOP)
            try:
                handed += [Handed(store, different(tail)) for tail in tails]
                await asyncio.sleep(0.5)
            finally:
                os.kill(pid, signal.SIGCONT)
            for each in handed:
                await each.settled()
        # then everything was stored once, in order
        assert await check_stored(store, handed) == {"NoneType": len(handed)}


def _more_than(counters: Counters, events: int) -> bool:
    return counters.batched_events > events


async def test_a_server_that_is_killed_under_load_loses_and_doubles_nothing(
    nats_server: EmbeddedServer, until: Until
) -> None:
    async with opened(nats_server.url, request_timeout=0.5, deadline=20) as store:
        process = Process(store, [f"c-{n}" for n in range(30)], Random(7))
        for _ in range(2):
            # given a server that dies in the middle of it
            stored = partial(_more_than, store.counters[0], store.counters[0].batched_events)
            work = asyncio.ensure_future(process.work(25))
            await until(stored)
            nats_server.kill()
            await work
        # then what was reported is what came back with it
        reported = await check_stored(store, process.handed)
        assert reported["NoneType"] == len(process.handed)
