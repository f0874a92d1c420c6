"""The conversations of a process, on a real server."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
import pytest_asyncio
from freezegun import freeze_time
from nats.aio.client import Client

from domain.errors import (
    ConversationNotInitialized,
    InvalidState,
    MessageTooLarge,
    RateLimited,
    VersionConflict,
)
from domain.events import ConversationEvent
from domain.identity import ConversationId
from domain.rules import Limits
from infra.jetstream.errors import LedgerDamaged, StoreUnavailable, TooLarge
from infra.jetstream.topology import call
from infra.server import EmbeddedServer
from services.conversations import Conversations
from services.errors import refusal

from .rigs import ADAS, append, contents, init, ledger, process_on, sending


@pytest_asyncio.fixture
async def real(nats_server: EmbeddedServer) -> AsyncIterator[Conversations]:
    """Conversations on a real server."""
    async with process_on(nats_server.url, ledger()) as conversations:
        yield conversations


async def snapshot_of(conversations: Conversations) -> bytes:
    """Adas' snapshot, once it is there."""
    while True:
        body = await conversations.store.snapshots.load(ADAS.key)
        if body is not None:
            return body
        await asyncio.sleep(0.01)


async def test_a_command_is_answered_with_its_events_and_the_view_right_after(
    real: Conversations,
) -> None:
    begun = await init(real)
    assert (begun.events, begun.version) == ([("ConversationStarted", 1)], 1)
    told = await append(real, "hello", role="user")
    assert told.events == [("MessageAppended", 2), ("ConversationTitled", 3)]
    assert (told.version, told.seq, told.seqs) == (3, 3, [2, 3])
    assert told.state["title"] == "hello"
    assert (await real.view(ADAS)).state() == told.state


async def test_commands_in_a_burst_are_decided_one_on_the_other_and_answered_in_order(
    real: Conversations,
) -> None:
    sent = [init(real)] + [append(real, f"message {n}", role="user") for n in range(200)]
    told = await asyncio.gather(*sent)
    versions = [version for each in told for _, version in each.events]
    assert versions == list(range(1, 203))
    assert contents(told[-1].state) == [f"message {n}" for n in range(150, 200)]


async def test_many_conversations_are_committed_together(real: Conversations) -> None:
    ids = [ConversationId.parse("acme", f"c-{n}") for n in range(300)]
    await asyncio.gather(*(init(real, id=id) for id in ids))
    before = real.store.counters[0].batches
    told = await asyncio.gather(*(append(real, id=id) for id in ids))
    assert [each.version for each in told] == [2] * 300
    assert real.store.counters[0].batches - before <= 3


async def test_the_same_command_sent_again_while_it_is_on_its_way_writes_once(
    real: Conversations,
) -> None:
    await init(real)
    first, again, other_verb = (
        append(real, command_id="c1"),
        append(real, command_id="c1"),
        sending(real, "reset", {}, command_id="c1"),
    )
    assert (await first).events == [("MessageAppended", 2)]
    receipt = (await again).receipt
    assert receipt is not None
    assert (receipt.verb, receipt.first_version, receipt.last_version) == ("append", 2, 2)
    with pytest.raises(InvalidState, match="has been used for append"):
        await other_verb
    assert (await real.view(ADAS)).version == 2


async def test_two_processes_on_one_ledger_see_each_others_events(
    nats_server: EmbeddedServer,
) -> None:
    topology = ledger()
    async with (
        process_on(nats_server.url, topology) as here,
        process_on(nats_server.url, topology) as there,
    ):
        # given a conversation that both have in memory
        await init(here)
        assert (await there.view(ADAS)).version == 1
        # when one writes to it, once or several times, then the other one shows it
        await append(here, "one")
        assert contents((await there.view(ADAS)).state()) == ["one"]
        for n in range(5):
            await append(here, f"more {n}")
        assert (await there.view(ADAS)).version == 7
        assert (await there.view(ADAS, strong=True)).version == 7
        # and what is decided on an old state is decided again
        told = await append(there, "from there")
        assert told.events == [("MessageAppended", 8)]
        told = await append(here, "from here")
        assert told.events == [("MessageAppended", 9)]
        assert contents(told.state)[-2:] == ["from there", "from here"]


async def test_a_refusal_on_an_old_state_is_confirmed_first(nats_server: EmbeddedServer) -> None:
    topology = ledger()
    async with (
        process_on(nats_server.url, topology) as here,
        process_on(nats_server.url, topology) as there,
    ):
        # given a process that knows of no conversation
        with pytest.raises(ConversationNotInitialized):
            await append(there)
        # when it begins elsewhere, then it is known here
        await init(here)
        assert (await append(there)).version == 2
        # and an expected version is that of the ledger
        await append(here)
        assert (await append(there, expected=3)).version == 4
        with pytest.raises(VersionConflict, match="at version 4, not at 3"):
            await append(here, expected=3)
        assert (await append(here, expected=4)).version == 5
        # and a repeated command is, wherever it is sent
        await append(here, command_id="c1")
        receipt = (await append(there, command_id="c1")).receipt
        assert receipt is not None
        assert receipt.first_version == 6
        # and what asks for nothing new answers the state as it is there
        told = await sending(there, "init", {"user_id": "somebody else"})
        assert (told.events, told.version, told.state["user_id"]) == ([], 6, "ada")


async def test_writers_on_one_conversation_through_several_processes_all_get_in(
    nats_server: EmbeddedServer,
) -> None:
    topology = ledger()
    async with (
        process_on(nats_server.url, topology) as first,
        process_on(nats_server.url, topology) as second,
        process_on(nats_server.url, topology) as third,
    ):
        await init(first)

        async def write(conversations: Conversations, writer: int) -> list[int]:
            found = []
            for n in range(6):
                told = await append(conversations, f"{writer}-{n}")
                found += [version for _, version in told.events]
            return found

        written = await asyncio.gather(
            *(write([first, second, third][n % 3], n) for n in range(24))
        )
        assert sorted(v for versions in written for v in versions) == list(range(2, 2 + 24 * 6))
        for versions in written:
            assert versions == sorted(versions)
        for conversations in (first, second, third):
            assert (await conversations.view(ADAS, strong=True)).version == 145


async def test_a_cold_process_shows_the_same_with_and_without_a_snapshot(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    topology = ledger()
    async with process_on(nats_server.url, topology, window_size=10) as conversations:
        await init(conversations)
        for n in range(120):
            await append(conversations, f"message {n}")
        expected = (await conversations.view(ADAS)).state()
        async with asyncio.timeout(20):
            await snapshot_of(conversations)
    for _ in range(2):
        async with process_on(nats_server.url, topology, window_size=10) as conversations:
            assert (await conversations.view(ADAS)).state() == expected
            assert contents(expected) == [f"message {n}" for n in range(110, 120)]
        # and when the stream of snapshots is gone, it is still all there
        await call(nats_client, f"STREAM.DELETE.{topology.snapshot_stream}", {})


async def test_a_ledger_without_its_snapshots_is_still_a_ledger(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    topology = ledger()
    async with process_on(nats_server.url, topology) as conversations:
        await init(conversations)
    async with process_on(nats_server.url, topology) as conversations:
        # given a stream of snapshots that got lost
        answer = await call(nats_client, f"STREAM.DELETE.{topology.snapshot_stream}", {})
        assert "error" not in answer
        # when a conversation has to be loaded, then it is
        assert (await conversations.view(ADAS)).version == 1
        assert (await append(conversations)).version == 2


async def test_what_was_stored_up_to_a_time_or_a_version(real: Conversations) -> None:
    start = datetime(2026, 11, 21, 9, tzinfo=UTC)
    with freeze_time(start, real_asyncio=True) as clock:
        await init(real)
        for n in range(5):
            clock.tick(timedelta(minutes=1))
            await sending(
                real,
                "turn",
                {
                    "messages": [{"role": "user", "content": f"question {n}"}],
                    "usage": {"prompt_tokens": 10, "completion_tokens": 1},
                },
            )

    def at(minutes: float) -> Callable[[Any], bool]:
        return lambda event: event.timestamp <= start + timedelta(minutes=minutes)

    assert (await real.replay(ADAS, at(-1))).version == 0
    assert (await real.replay(ADAS, at(0))).version == 1
    assert (await real.replay(ADAS, at(1))).version == 4  # the first one also gives it a title
    view = await real.replay(ADAS, at(2.5))
    assert (view.version, view.usage()["usage"]["prompt"]) == (6, 20)
    assert contents(view.state()) == ["question 0", "question 1"]
    assert (await real.replay(ADAS, at(99))).state() == (await real.view(ADAS)).state()
    for version in range(13):
        view = await real.replay(ADAS, partial(is_up_to, version))
        assert view.version == min(version, 12)


def is_up_to(version: int, event: ConversationEvent) -> bool:
    return event.originator_version <= version


async def test_damage_on_the_stream_is_told_as_a_fault_and_stops_writing(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    topology = ledger()
    async with process_on(nats_server.url, topology) as conversations:
        await init(conversations)
        await append(conversations)
    # given an event that somebody slipped in
    subject = topology.subject(ADAS.key)
    headers = {"Event-Type": "MessageAppended", "Event-Version": "3", "Event-Hash": "ab" * 32}
    await nats_client.request(subject, b"{}", headers=headers, timeout=10)
    async with process_on(nats_server.url, topology) as conversations:
        # when it is read or written to
        for told in (append(conversations), conversations.view(ADAS)):
            with pytest.raises(LedgerDamaged) as damaged:
                await told
            # then that is a fault with an incident, and no event is added
            assert refusal(damaged.value).code == "internal"
        info = await call(nats_client, f"STREAM.INFO.{topology.stream_name(0)}", {})
        assert info["state"]["messages"] == 3


async def test_an_event_that_does_not_fit_the_one_in_memory_is_damage_too(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    topology = ledger()
    async with process_on(nats_server.url, topology) as conversations:
        await init(conversations)
        headers = {"Event-Type": "MessageAppended", "Event-Version": "2", "Event-Hash": "ab" * 32}
        await nats_client.request(topology.subject(ADAS.key), b"{}", headers=headers, timeout=10)
        for told in (conversations.view(ADAS), append(conversations)):
            with pytest.raises(LedgerDamaged):
                await told


async def test_a_store_that_cannot_be_reached_is_said_to_all_who_wait(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    topology = ledger()
    async with process_on(nats_server.url, topology) as conversations:
        await call(nats_client, f"STREAM.DELETE.{topology.stream_name(0)}", {})
        waiting = [init(conversations), append(conversations), conversations.view(ADAS)]
        told = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in told] == [StoreUnavailable] * 3
        assert conversations.cache.weight == 0
        assert not conversations.cache.entries


async def test_an_event_that_is_too_large_is_refused_alone(real: Conversations) -> None:
    await init(real)
    metadata = {"text": "x" * 950_000}
    burst = [
        append(real, "before"),
        sending(real, "append", {"role": "tool", "content": "", "metadata": metadata}),
        append(real, "after"),
        append(real, "elsewhere", id=ConversationId.parse("acme", "nobody's")),
    ]
    told = await asyncio.gather(*burst, return_exceptions=True)
    assert isinstance(told[1], TooLarge)
    assert isinstance(told[3], ConversationNotInitialized)
    assert contents((await real.view(ADAS)).state()) == ["before", "after"]
    assert (await real.view(ADAS)).version == 3


async def test_limits_are_those_it_was_made_with(nats_server: EmbeddedServer) -> None:
    limits = Limits(max_content_bytes=10, messages_per_minute=2)
    async with process_on(nats_server.url, ledger(), limits=limits) as conversations:
        await init(conversations)
        with pytest.raises(MessageTooLarge):
            await append(conversations, "x" * 11)
        await append(conversations)
        await append(conversations)
        with pytest.raises(RateLimited):
            await append(conversations)
