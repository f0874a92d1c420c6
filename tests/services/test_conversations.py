"""Conversations in use: what is answered when, what is shown, what is kept, what is forgotten."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from freezegun import freeze_time
from nats.aio.client import Client
from pydantic_core import to_json

from domain.commands import parse_command
from domain.conversation import CommandContext, Conversation, Limits
from domain.errors import (
    ConversationNotInitialized,
    InvalidState,
    MessageTooLarge,
    RateLimited,
    VersionConflict,
)
from domain.events import ConversationEvent
from domain.identity import ConversationId
from infra.jetstream.envelope import Recorded
from infra.jetstream.errors import (
    Conflict,
    LedgerDamaged,
    OutcomeUnknown,
    StoreUnavailable,
    TooLarge,
)
from infra.jetstream.topology import call
from infra.server import EmbeddedServer
from projections.state import ConversationView
from services import snapshots as snapshots_module
from services.conversations import Conversations
from services.errors import NotYetThere, refusal
from services.in_use import attempt as attempt_module
from services.in_use import decider as decider_module
from services.in_use import views as views_module
from services.in_use.decider import AHEAD_MAX
from services.in_use.loader import LOADS_MAX
from services.in_use.views import MISSED_MAX
from services.snapshots import Sleeping, Snapshot

from .fake_store import FakeStore
from .rigs import (
    ADAS,
    append,
    contents,
    conversations_on,
    hears_everything,
    init,
    ledger,
    process_on,
    sending,
    turns,
)


@pytest_asyncio.fixture
async def real(nats_server: EmbeddedServer) -> AsyncIterator[Conversations]:
    """Conversations on a real server."""
    async with process_on(nats_server.url, ledger()) as conversations:
        yield conversations


@pytest.fixture
def store() -> FakeStore:
    """A store that a test settles by hand; its reads answer at once."""
    return FakeStore(Random(1), patient=False)


@pytest_asyncio.fixture
async def faked(store: FakeStore) -> AsyncIterator[Conversations]:
    """Conversations on the store that is settled by hand, with one that has begun."""
    async with conversations_on(store.as_store) as conversations:
        begun = init(conversations)
        await turns()
        settle_all(store)
        await begun
        yield conversations
        while store.handed:
            settle_all(store)
            await turns()


def as_heard(event: Recorded) -> tuple[bytes, bytes]:
    """The live copy of a stored event: header block and body."""
    headers = {
        "Nats-Sequence": str(event.seq),
        "Nats-Subject": event.subject,
        "Nats-Time-Stamp": event.time,
        "Event-Type": event.topic,
        "Event-Version": str(event.version),
        "Event-Hash": event.digest,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode(), event.body


def settle_all(store: FakeStore) -> None:
    while ready := store.may_settle():
        store.settle(ready[0])


def by_rival(store: FakeStore, content: str = "from elsewhere", id: ConversationId = ADAS) -> None:
    body = json.dumps({"role": "assistant", "content": content}).encode()
    store.rival(id, parse_command("append", body), CommandContext(None))


async def snapshot_of(conversations: Conversations) -> bytes:
    """Adas' snapshot, once it is there."""
    while True:
        body = await conversations.store.snapshots.load(ADAS.key)
        if body is not None:
            return body
        await asyncio.sleep(0.01)


# -- on a real server ----------------------------------------------------------------------------


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
    await nats_client.request(subject, b"{}", headers=headers)
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
        await nats_client.request(topology.subject(ADAS.key), b"{}", headers=headers)
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


# -- what an answer rests on ---------------------------------------------------------------------


async def test_a_refusal_decided_on_what_is_not_stored_yet_waits_for_it(
    faked: Conversations, store: FakeStore
) -> None:
    # given an append under way, and a command that is refused because of it
    written = append(faked)
    refused = append(faked, expected=1)
    nothing_new = init(faked)
    await turns()
    assert not refused.done()
    assert not nothing_new.done()
    # when it is stored, then they are answered
    settle_all(store)
    with pytest.raises(VersionConflict, match="at version 2, not at 1"):
        await refused
    assert (await written).version == (await nothing_new).version == 2


async def test_a_refusal_that_rested_on_what_failed_is_decided_again(
    faked: Conversations, store: FakeStore
) -> None:
    written = append(faked, command_id="c1")
    expecting = append(faked, expected=1)
    repeated = append(faked, command_id="c1")
    await turns()
    # when the append fails
    store.settle(store.handed[0], "unavailable")
    await turns()
    settle_all(store)
    # then the one that was refused on top of it is carried out, and so is the repeated one
    with pytest.raises(StoreUnavailable):
        await written
    assert (await expecting).events == [("MessageAppended", 2)]
    await turns()
    settle_all(store)
    assert (await repeated).events == [("MessageAppended", 3)]


async def test_a_refusal_is_confirmed_at_the_version_it_was_decided_on(
    faked: Conversations, store: FakeStore
) -> None:
    # given a command that is refused on a state that is out of date
    by_rival(store)
    refused = append(faked, expected=2)
    # when another one, decided right after it, will be of the same version as the rival's
    written = append(faked)
    await turns()
    settle_all(store)
    await turns()
    settle_all(store)
    # then it is carried out, for the conversation is at version 2
    assert (await refused).events == [("MessageAppended", 3)]
    assert (await written).events == [("MessageAppended", 4)]


async def test_what_is_heard_while_an_append_is_under_way_is_looked_up(store: FakeStore) -> None:
    # given a conversation that is known to be up to date, and an append of ours under way
    conversations = Conversations(
        store.as_store, limits=Limits(), window_size=50, cache_bytes=10**8, epoch=lambda: 1
    )
    begun = init(conversations)
    await turns()
    settle_all(store)
    await begun
    assert (await conversations.view(ADAS)).version == 1
    written = append(conversations)
    # when another worker's event is stored at the version that ours was to have, and heard of
    by_rival(store)
    rival = store.log[ADAS.key][-1]
    conversations.heard(ADAS.key, *as_heard(rival))
    looking = asyncio.ensure_future(conversations.view(ADAS))
    await turns()
    settle_all(store)
    await turns()
    # then it is shown, although it came while ours was not settled yet
    assert (await looking).version >= 2
    settle_all(store)
    assert (await written).version == 3
    await conversations.close()


async def test_what_is_stored_for_a_conversation_that_was_dropped_is_not_missing_in_the_next(
    store: FakeStore,
) -> None:
    # given an append under way on a conversation that was dropped meanwhile, and read anew
    conversations = Conversations(
        store.as_store, limits=Limits(), window_size=50, cache_bytes=10**8, epoch=lambda: 1
    )
    begun = init(conversations)
    await turns()
    settle_all(store)
    await begun
    written = append(conversations)
    conversations.cache.drop(conversations.cache.entries[ADAS.key])
    assert (await conversations.view(ADAS)).version == 1
    # when it is stored and answered
    await turns()
    settle_all(store)
    assert (await written).version == 2
    # then whoever asks is shown it
    assert (await conversations.view(ADAS)).version == 2
    await conversations.close()


async def test_a_refusal_is_answered_although_nothing_stays_in_memory(store: FakeStore) -> None:
    async with conversations_on(store.as_store, cache_bytes=1) as conversations:
        refused = append(conversations)
        async with asyncio.timeout(5):
            with pytest.raises(ConversationNotInitialized):
                await refused


async def test_a_refusal_is_answered_although_a_replica_never_catches_up(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a replica that stands still while its leader goes on
    monkeypatch.setattr(attempt_module, "DECIDE_AGAIN_S", 0.1)
    by_rival(store)
    everything = store._seen

    def stands_still(key: str, *, leader: bool = False) -> Any:
        return everything(key, leader=True)[: None if leader else 1]

    monkeypatch.setattr(store, "_seen", stands_still)
    # when a command is refused on what it says
    refused = append(faked, expected=7)
    # then the caller is told something, at some time
    async with asyncio.timeout(5):
        with pytest.raises((StoreUnavailable, VersionConflict, Conflict, NotYetThere)):
            await refused


async def test_what_was_on_its_way_behind_a_failure_is_decided_again_in_order(
    faked: Conversations, store: FakeStore
) -> None:
    sent = [append(faked, f"message {n}") for n in range(5)]
    await turns()
    store.settle(store.handed[0], "too large")
    settle_all(store)
    await turns()
    settle_all(store)
    with pytest.raises(TooLarge):
        await sent[0]
    told = await asyncio.gather(*sent[1:])
    assert [each.events for each in told] == [[("MessageAppended", v)] for v in (2, 3, 4, 5)]
    assert contents(told[-1].state) == [f"message {n}" for n in range(1, 5)]


async def test_a_command_of_unknown_outcome_is_told_so_and_found_when_it_comes_again(
    faked: Conversations, store: FakeStore
) -> None:
    first = append(faked, command_id="c1")
    await turns()
    store.settle(store.handed[0], "unknown, stored")
    with pytest.raises(OutcomeUnknown):
        await first
    receipt = (await append(faked, command_id="c1")).receipt
    assert receipt is not None
    assert receipt.first_version == 2


async def test_after_conflicts_for_long_enough_the_caller_is_told(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a rival who always gets in first
    monkeypatch.setattr(attempt_module, "DECIDE_AGAIN_S", 0.05)
    losing = append(faked)
    async with asyncio.timeout(5):
        while not losing.done():
            if store.handed:
                by_rival(store)
                settle_all(store)
            await asyncio.sleep(0.001)
    with pytest.raises(Conflict) as told:
        await losing
    assert refusal(told.value).code == "version_conflict"
    assert refusal(told.value).retryable


# -- a flood on one conversation -------------------------------------------------------------------

OTHER = ConversationId.parse("acme", "a neighbour")


def in_company(conversations: Conversations) -> None:
    """Somebody else has sent something a moment ago."""
    conversations.decider._last_key = OTHER.key


async def test_a_flood_on_one_conversation_leaves_its_neighbours_their_place(
    faked: Conversations, store: FakeStore
) -> None:
    neighbour = init(faked, id=OTHER)
    flood = [append(faked, f"message {n}") for n in range(AHEAD_MAX * 3)]
    await turns()
    # given so many of the flood's commands decided, and the neighbour's as if it were alone
    assert len(store.handed) == AHEAD_MAX + 1
    subject = store.topology.subject(OTHER.key)
    [its_write] = [each for each in store.handed if each.messages[0].tail.subject == subject]
    store.settle(its_write)
    assert (await neighbour).version == 1
    # when those are stored, then the next ones go, in their order
    while store.handed:
        assert len(store.handed) <= AHEAD_MAX
        store.settle(store.handed[0])
    told = [each.result().events for each in flood]
    assert told == [[("MessageAppended", n + 2)] for n in range(AHEAD_MAX * 3)]


async def test_a_conversation_that_is_alone_may_take_more(
    faked: Conversations, store: FakeStore
) -> None:
    flood = [append(faked, f"message {n}") for n in range(AHEAD_MAX * 3)]
    await turns()
    assert len(store.handed) == AHEAD_MAX * 3
    settle_all(store)
    assert all(each.done() for each in flood)


async def test_what_was_held_behind_a_failed_append_is_decided_again_in_its_order(
    faked: Conversations, store: FakeStore
) -> None:
    in_company(faked)
    flood = [append(faked, f"message {n}") for n in range(AHEAD_MAX * 2)]
    await turns()
    by_rival(store, "from elsewhere")
    while not all(each.done() for each in flood):
        settle_all(store)
        await turns()
    assert [each.result().version for each in flood] == list(range(3, AHEAD_MAX * 2 + 3))


async def test_a_command_that_is_held_for_too_long_is_refused(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "DECIDE_AGAIN_S", -1.0)
    in_company(faked)
    flood = [append(faked, f"message {n}") for n in range(AHEAD_MAX + 5)]
    await turns()
    settle_all(store)
    assert [each.result().version for each in flood[:AHEAD_MAX]] == list(range(2, AHEAD_MAX + 2))
    for held in flood[AHEAD_MAX:]:
        assert refusal(held.exception()).retryable  # type: ignore[arg-type]  # there is one
    assert store.handed == []


async def test_more_commands_than_may_wait_are_refused_at_once(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decider_module, "HELD_MAX", 3)
    in_company(faked)
    flood = [append(faked, f"message {n}") for n in range(AHEAD_MAX + 4)]
    await turns()
    assert refusal(flood[-1].exception()).retryable  # type: ignore[arg-type]  # there is one
    while store.handed:
        settle_all(store)
    assert [each.result().version for each in flood[:-1]] == list(range(2, AHEAD_MAX + 5))


# -- faults of ours ------------------------------------------------------------------------------


async def test_a_reply_that_cannot_be_made_harms_nobody_else(
    faked: Conversations, store: FakeStore, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(_: object) -> None:
        raise RuntimeError("a fault of ours")

    command = parse_command("append", b'{"role": "user", "content": "x"}')
    before = append(faked)
    faked.execute(ADAS, command, CommandContext(None), fails)
    faked.execute(ADAS, command, CommandContext(None, None, 99), fails)
    after = append(faked)
    await turns()
    settle_all(store)
    assert (await before).version == 2
    assert (await after).events[-1][1] == (await faked.view(ADAS)).version
    assert "a reply could not be made" in caplog.text


@pytest.mark.parametrize("where", ["decide", "to_stored_event"])
async def test_a_fault_in_deciding_is_answered_and_the_conversation_loaded_again(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def broken(*_: object, **__: object) -> Any:
        raise RuntimeError("a fault of ours")

    before = append(faked, "before")
    with monkeypatch.context() as patch:
        if where == "decide":
            patch.setattr(decider_module, "decide", broken)
        else:
            patch.setattr(faked.decider._mapper, "to_stored_event", broken)
        failed = append(faked, "failed")
        with pytest.raises(RuntimeError):
            await failed
    after = append(faked, "after")
    for _ in range(10):
        await turns()
        settle_all(store)
    assert {version for each in (before, after) for _, version in (await each).events} == {2, 3}
    assert sorted(contents((await faked.view(ADAS)).state())) == ["after", "before"]


async def test_a_fault_in_folding_is_answered_and_nobody_waits_for_ever(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a fold that fails once on an event that is stored
    sent = [append(faked, "one"), append(faked, "two"), append(faked, expected=99)]
    await turns()
    apply, calls = ConversationView.apply, iter([True])

    def fails_once(self: ConversationView, event: Any, seq: int) -> None:
        if next(calls, False):
            raise RuntimeError("a fault of ours")
        apply(self, event, seq)

    monkeypatch.setattr(ConversationView, "apply", fails_once)
    settle_all(store)
    # then everyone is told something, and the next view is right
    async with asyncio.timeout(5):
        told = await asyncio.gather(*sent, return_exceptions=True)
    assert isinstance(told[0], RuntimeError)
    assert isinstance(told[2], VersionConflict)
    view = await faked.view(ADAS)
    assert view.state() == store.view(ADAS.key, 50).state()


# -- views ---------------------------------------------------------------------------------------


async def test_a_view_shows_nothing_that_is_not_stored(
    faked: Conversations, store: FakeStore
) -> None:
    written = append(faked)
    await turns()
    assert (await faked.view(ADAS)).version == 1
    settle_all(store)
    await written
    assert (await faked.view(ADAS)).version == 2


async def test_a_view_waits_for_what_is_stored_and_not_for_what_comes_after(
    faked: Conversations, store: FakeStore
) -> None:
    # given an append that is stored, of which we have not heard yet
    stored = append(faked, "stored")
    await turns()
    [write] = store.handed
    store.store_untold(write)
    asked = asyncio.ensure_future(faked.view(ADAS))
    await turns()
    assert not asked.done()
    # and another one behind it, as there always is on a busy conversation
    behind = append(faked, "behind")
    await turns()
    # when we hear of the first, then it is shown
    store.tell(write)
    await turns()
    assert asked.done(), "a view of a busy conversation must not wait until it is at rest"
    assert contents((await asked).state()) == ["stored"]
    settle_all(store)
    await asyncio.gather(stored, behind)


async def test_a_view_is_shown_although_somebody_writes_all_the_time(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given another process that writes twice between any two looks of ours
    last = store.last

    async def busy(key: str, *, leader: bool = False) -> Any:
        by_rival(store)
        by_rival(store)
        return await last(key, leader=leader)

    monkeypatch.setattr(store, "last", busy)
    monkeypatch.setattr(views_module, "MIN_SEQ_WAIT_S", 0.2)
    # when it is shown, then with all that was there when it was asked for
    for _ in range(5):
        stored = len(store.log[ADAS.key])
        async with asyncio.timeout(5):
            assert (await faked.view(ADAS)).version > stored


async def test_one_event_of_another_process_is_taken_in_without_loading(
    faked: Conversations, store: FakeStore
) -> None:
    by_rival(store)
    await faked.view(ADAS)
    reads = store.reads
    by_rival(store, "again")
    assert contents((await faked.view(ADAS)).state()) == ["from elsewhere", "again"]
    assert store.reads == reads + 1
    # and the next command goes behind it
    told = append(faked)
    await turns()
    settle_all(store)
    assert (await told).events == [("MessageAppended", 4)]


async def test_an_event_that_was_seen_is_included_or_it_is_an_error(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(views_module, "MIN_SEQ_WAIT_S", 0.05)
    by_rival(store)
    seq = store.log[ADAS.key][-1].seq
    assert (await faked.view(ADAS, min_seq=seq)).seq == seq
    reads = store.reads
    assert (await faked.view(ADAS, min_seq=seq)).seq == seq
    assert store.reads == reads, "what is known is not asked for"
    with pytest.raises(NotYetThere, match=f"at seq {seq} here, not at {seq + 1}"):
        await faked.view(ADAS, min_seq=seq + 1)


async def test_an_event_that_was_seen_is_waited_for(faked: Conversations, store: FakeStore) -> None:
    seq = store.log[ADAS.key][-1].seq + 1
    asked = asyncio.ensure_future(faked.view(ADAS, min_seq=seq))
    await asyncio.sleep(0.01)
    assert not asked.done()
    by_rival(store)
    assert (await asked).seq == seq


async def test_a_strong_view_asks_the_leader_even_for_what_is_known(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given replicas that know nothing of the last event
    by_rival(store)
    everything = store._seen

    def lags(key: str, *, leader: bool = False) -> Any:
        seen = everything(key, leader=True)
        return seen if leader else seen[:1]

    monkeypatch.setattr(store, "_seen", lags)
    assert (await faked.view(ADAS)).version == 1
    assert (await faked.view(ADAS, strong=True)).version == 2
    assert (await faked.view(ADAS, min_seq=1, strong=True)).version == 2


async def test_a_failed_load_is_told_to_all_and_forgotten(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with conversations_on(store.as_store) as conversations:
        with monkeypatch.context() as patch:
            patch.setattr(store, "failing", 1.0)
            waiting = [init(conversations), append(conversations), conversations.view(ADAS)]
            told = await asyncio.gather(*waiting, return_exceptions=True)
        assert [type(each) for each in told] == [StoreUnavailable] * 3
        assert conversations.cache.weight == 0
        begun = init(conversations)
        await turns()
        settle_all(store)
        assert (await begun).version == 1


@pytest.mark.parametrize("events", [1, 3])
async def test_a_strangers_event_in_the_place_of_ours_is_shown_at_once(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch, events: int
) -> None:
    # given a conversation that is up to date as long as everything is heard of
    hears_everything(faked, monkeypatch)
    assert (await faked.view(ADAS)).version == 1
    ours = [append(faked, f"ours {n}") for n in range(events)]
    await turns()
    # when another worker's event gets there before ours
    by_rival(store, "from elsewhere")
    theirs = store.log[ADAS.key][-1]
    faked.heard(ADAS.key, *as_heard(theirs))
    # then the next read shows it, and ours go behind it
    assert contents((await faked.view(ADAS)).state()) == ["from elsewhere"]
    while not all(each.done() for each in ours):
        settle_all(store)
        await turns()
    assert [each.result().version for each in ours] == list(range(3, 3 + events))


# -- memory --------------------------------------------------------------------------------------


def weight_of(conversations: Conversations) -> int:
    return sum(
        entry.view.size_bytes + (entry.conversation.size_bytes if entry.conversation else 0)
        for entry in conversations.cache.entries.values()
    )


async def test_the_cache_stays_within_its_bytes_and_forgets_the_least_recently_used(
    store: FakeStore,
) -> None:
    async with conversations_on(store.as_store, cache_bytes=200_000) as conversations:
        ids = [ConversationId.parse("acme", f"c-{n}") for n in range(100)]
        for id in ids:
            begun = init(conversations, id=id)
            await turns()
            settle_all(store)
            await begun
            await conversations.view(ids[0])
            assert conversations.cache.weight <= 200_000
            assert weight_of(conversations) <= conversations.cache.weight
        assert 10 < len(conversations.cache.entries) < 100
        assert ids[0].key in conversations.cache.entries, "used all the time"
        assert ids[-1].key in conversations.cache.entries
        assert ids[1].key not in conversations.cache.entries


async def test_what_other_processes_write_counts_too(store: FakeStore) -> None:
    """A process that only reads must stay within its bytes as well."""
    async with conversations_on(store.as_store, cache_bytes=1_000_000) as conversations:
        begun = init(conversations)
        await turns()
        settle_all(store)
        await begun
        for _ in range(45):
            by_rival(store, "x" * 100_000)
            await conversations.view(ADAS)
            assert weight_of(conversations) <= conversations.cache.weight <= 1_200_000


async def test_a_conversation_that_is_waited_for_is_not_forgotten(store: FakeStore) -> None:
    async with conversations_on(store.as_store, cache_bytes=1) as conversations:
        sent = [init(conversations)] + [append(conversations) for _ in range(5)]
        await turns()
        assert len(conversations.cache.entries) == 1
        settle_all(store)
        assert [(await each).version for each in sent] == [1, 2, 3, 4, 5, 6]
        await turns()
        assert not conversations.cache.entries
        assert conversations.cache.weight == 0


async def test_only_so_many_conversations_are_read_from_the_ledger_at_once() -> None:
    store = FakeStore(Random(1), patient=True)
    async with conversations_on(store.as_store) as conversations:
        ids = [ConversationId.parse("acme", f"c-{n}") for n in range(3 * LOADS_MAX)]
        views = asyncio.gather(*(conversations.view(id) for id in ids))
        most = 0
        while not views.done():
            await turns()
            most = max(most, len(store.waiting))
            store.let_go()
        assert len(await views) == len(ids)
        assert most == 2 * LOADS_MAX, "a snapshot and a last event each"


async def test_conversations_that_do_not_exist_are_forgotten_like_others(store: FakeStore) -> None:
    async with conversations_on(store.as_store, cache_bytes=50_000) as conversations:
        for n in range(200):
            view = await conversations.view(ConversationId.parse("acme", f"nobody-{n}"))
            assert not view.exists
        assert conversations.cache.weight <= 50_000


# -- snapshots -----------------------------------------------------------------------------------


async def grown(store: FakeStore, events: int, window_size: int = 5) -> None:
    """A conversation of that many events, written elsewhere."""
    init_command = parse_command("init", b'{"user_id": "ada"}')
    store.rival(ADAS, init_command, CommandContext("begin"))
    for n in range(events - 1):
        by_rival(store, f"message {n}")


def snapshot_at(store: FakeStore, version: int, window_size: int = 5) -> dict[str, Any]:
    """What is saved of a conversation at a version."""
    conversation = store.conversation(ADAS.key, version)
    assert conversation is not None
    view = store.view(ADAS.key, window_size, version)
    digest = store.log[ADAS.key][version - 1].digest
    state: dict[str, Any] = json.loads(Snapshot(conversation, view, digest).encode())
    return state


async def loaded(store: FakeStore, window_size: int = 5) -> ConversationView:
    async with conversations_on(store.as_store, window_size=window_size) as conversations:
        await conversations.view(ADAS)
        told = append(conversations, "after")
        for _ in range(2):  # decided again where the snapshot is of no use
            await turns()
            settle_all(store)
        await told
        view = await conversations.view(ADAS)
        assert view.state() == store.view(ADAS.key, window_size).state()
        entry = conversations.cache.entries[ADAS.key]
        assert isinstance(entry.conversation, Conversation)
        expected = store.conversation(ADAS.key)
        assert expected is not None
        assert entry.conversation.to_state() == expected.to_state()
        return view


async def test_a_load_reads_on_from_the_snapshot(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grown(store, 20)
    store.saved[ADAS.key] = json.dumps(snapshot_at(store, 15)).encode()
    asked: list[int] = []
    read = store.read

    async def spied(key: str, *, from_seq: int = 1, through: int = 0) -> Any:
        asked.append(from_seq)
        return await read(key, from_seq=from_seq, through=through)

    monkeypatch.setattr(store, "read", spied)
    view = await loaded(store)
    assert asked == [15]
    assert view.version == 21


async def test_a_snapshot_at_the_last_event_is_all_there_is_to_it(store: FakeStore) -> None:
    await grown(store, 20)
    store.saved[ADAS.key] = json.dumps(snapshot_at(store, 20)).encode()
    assert (await loaded(store)).version == 21


USELESS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "of another window size": lambda s: {**s, "view": {**s["view"], "window_size": 7}},
    "of an unknown view format": lambda s: {**s, "view": {**s["view"], "format": 99}},
    "of an unknown conversation format": lambda s: {
        **s,
        "conversation": {**s["conversation"], "format": 99},
    },
    "with the hash of another event": lambda s: {**s, "digest": "ab" * 32},
    "with a sequence where another event is": lambda s: {**s, "view": {**s["view"], "seq": 3}},
    "with a sequence beyond the end": lambda s: {**s, "view": {**s["view"], "seq": 10_000}},
    "with a sequence of nothing": lambda s: {**s, "view": {**s["view"], "seq": 0}},
    "with another version than its event": lambda s: {
        **s,
        "view": {**s["view"], "version": 17},
        "conversation": {**s["conversation"], "version": 17},
    },
    "with sides of different versions": lambda s: {**s, "view": {**s["view"], "version": 14}},
    "without a hash": lambda s: {k: v for k, v in s.items() if k != "digest"},
    "without a view": lambda s: {k: v for k, v in s.items() if k != "view"},
    "with a view that is a list": lambda s: {**s, "view": []},
    "with a view that is null": lambda s: {**s, "view": None},
    "with a conversation that is a text": lambda s: {**s, "conversation": "?"},
    "with messages that are none": lambda s: {**s, "view": {**s["view"], "messages": [1, None]}},
    "that is a list": lambda s: [s],
    "that is a number": lambda s: 7,
}


@pytest.mark.parametrize("kind", USELESS)
async def test_a_snapshot_that_is_of_no_use_is_ignored(store: FakeStore, kind: str) -> None:
    await grown(store, 20)
    store.saved[ADAS.key] = json.dumps(USELESS[kind](snapshot_at(store, 15))).encode()
    assert (await loaded(store)).version == 21


def in_parts(state: dict[str, Any]) -> bytes:
    """As it is saved, whatever is in it."""
    view = to_json(state["view"])
    return b'{"view_bytes":%d,"digest":%b,"view":%b,"conversation":%b}' % (
        len(view), to_json(state["digest"]), view, to_json(state["conversation"]),
    )  # fmt: skip


@pytest.mark.parametrize("kind", [kind for kind in USELESS if kind.startswith(("of", "with "))])
async def test_a_snapshot_in_parts_that_is_of_no_use_is_ignored(
    store: FakeStore, kind: str
) -> None:
    await grown(store, 20)
    store.saved[ADAS.key] = in_parts(USELESS[kind](snapshot_at(store, 15)))
    assert (await loaded(store)).version == 21


@pytest.mark.usefixtures("unhurried_snapshots")
async def test_an_aggregate_that_cannot_be_woken_is_read_from_the_ledger_and_saved_anew(
    store: FakeStore,
) -> None:
    # given a snapshot of which only the view is of use
    await grown(store, 60)
    state = snapshot_at(store, 60)
    store.saved[ADAS.key] = in_parts({**state, "conversation": {"format": 99}})
    async with conversations_on(store.as_store, window_size=5) as conversations:
        # then it is read
        assert (await conversations.view(ADAS)).state() == store.view(ADAS.key, 5).state()
        # and written to
        told = [append(conversations, "after"), append(conversations, "and after")]
        for _ in range(5):
            await turns()
            settle_all(store)
        assert [(await each).version for each in told] == [61, 62]
        await turns()
        snapshot = Snapshot.decode(store.saved[ADAS.key], window_size=5)
        assert snapshot is not None
        assert snapshot.conversation.version >= 60


async def test_a_conversation_that_is_only_read_sleeps_for_so_many_events_of_others(
    store: FakeStore,
) -> None:
    await grown(store, 20)
    store.saved[ADAS.key] = in_parts(snapshot_at(store, 20))
    async with conversations_on(store.as_store, window_size=5) as conversations:
        await conversations.view(ADAS)
        entry = conversations.cache.entries[ADAS.key]
        for n in range(MISSED_MAX + 1):
            assert isinstance(entry.conversation, Sleeping)
            by_rival(store, f"of another worker {n}")
            conversations.heard(ADAS.key, *as_heard(store.log[ADAS.key][-1]))
        assert isinstance(entry.conversation, Conversation)
        expected = store.conversation(ADAS.key)
        assert expected is not None
        assert entry.conversation.to_state() == expected.to_state()
        assert conversations.cache.weight == entry.weight


@pytest.mark.parametrize("body", [b"", b"no json", b"\xff\xfe", b"{", b"{}", b"[" * 1_000])
async def test_a_snapshot_that_is_no_json_is_ignored(store: FakeStore, body: bytes) -> None:
    await grown(store, 20)
    store.saved[ADAS.key] = body
    assert (await loaded(store)).version == 21


async def test_a_snapshot_of_an_older_ledger_is_ignored(store: FakeStore) -> None:
    # given a snapshot of a ledger that was restored to an earlier time, and went on differently
    await grown(store, 20)
    store.saved[ADAS.key] = json.dumps(snapshot_at(store, 20)).encode()
    del store.log[ADAS.key][17:]
    store.seq = 17
    by_rival(store, "another future")
    view = await loaded(store)
    assert contents(view.state())[-2:] == ["another future", "after"]


async def test_snapshots_that_cannot_be_loaded_cost_time_only(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await grown(store, 20)

    async def unavailable(key: str) -> bytes | None:
        raise StoreUnavailable("the snapshot store did not answer")

    monkeypatch.setattr(FakeStore, "snapshots", SimpleNamespace(load=unavailable))
    assert (await loaded(store)).version == 21


@pytest.fixture
def unhurried_snapshots(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "DUTY", 1e9)


@pytest.mark.usefixtures("unhurried_snapshots")
async def test_a_snapshot_is_written_every_fifty_events_and_reads_back_the_same(
    faked: Conversations, store: FakeStore
) -> None:
    for n in range(48):
        told = append(faked, f"message {n}")
        await turns()
        settle_all(store)
        await told
    await turns()
    assert not store.saved
    told = append(faked, "the fiftieth")
    await turns()
    settle_all(store)
    await told
    await turns()
    snapshot = Snapshot.decode(store.saved[ADAS.key], window_size=50)
    assert snapshot is not None
    assert snapshot.view.version == snapshot.conversation.version == 50
    assert snapshot.view.state() == store.view(ADAS.key, 50).state()
    assert snapshot.digest == store.log[ADAS.key][-1].digest


@pytest.mark.usefixtures("unhurried_snapshots")
async def test_a_snapshot_of_a_busy_conversation_holds_only_what_is_stored(
    faked: Conversations, store: FakeStore
) -> None:
    # given a conversation that is due, with an append always under way
    sent = [append(faked, f"message {n}") for n in range(60)]
    await turns()
    while len(store.handed) > 1:
        store.settle(store.may_settle()[0])
        await turns()
    # then its snapshot is of what is stored
    snapshot = Snapshot.decode(store.saved[ADAS.key], window_size=50)
    assert snapshot is not None
    version = snapshot.view.version
    assert 50 <= version <= 60
    assert snapshot.view.state() == store.view(ADAS.key, 50, version).state()
    expected = store.conversation(ADAS.key, version)
    assert expected is not None
    assert snapshot.conversation.to_state() == expected.to_state()
    settle_all(store)
    await asyncio.gather(*sent)


@pytest.mark.usefixtures("unhurried_snapshots")
async def test_closing_does_not_hang_on_a_snapshot_that_is_just_being_saved(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request that is answered as it is cancelled swallows that (`asyncio.wait_for`, 3.11)."""
    saving = asyncio.Event()

    async def save(key: str, body: bytes) -> bool:
        saving.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return True

    await grown(store, 60)
    swallowing = SimpleNamespace(save=save, load=store.snapshots.load)
    monkeypatch.setattr(FakeStore, "snapshots", swallowing)
    async with conversations_on(store.as_store) as conversations:
        await conversations.view(ADAS)
        await saving.wait()
        async with asyncio.timeout(5):
            await conversations.close()
