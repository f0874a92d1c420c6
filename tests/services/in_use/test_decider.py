"""Commands: what is answered when, what an answer rests on, and who has to wait."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from domain.commands import parse_command
from domain.errors import ConversationNotInitialized, VersionConflict
from domain.identity import ConversationId
from domain.rules import CommandContext
from infra.jetstream.errors import Conflict, OutcomeUnknown, StoreUnavailable, TooLarge
from projections.state import ConversationView
from services.conversations import Conversations
from services.errors import NotYetThere, refusal
from services.in_use import attempt as attempt_module
from services.in_use import decider as decider_module
from services.in_use.decider import AHEAD_MAX
from tests.services.fake_store import FakeStore
from tests.services.rigs import (
    ADAS,
    append,
    contents,
    conversations_on,
    hears_everything,
    init,
    turns,
)

from .rigs import by_rival

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
    store.settle_all()
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
    store.settle_all()
    # then the one that was refused on top of it is carried out, and so is the repeated one
    with pytest.raises(StoreUnavailable):
        await written
    assert (await expecting).events == [("MessageAppended", 2)]
    await turns()
    store.settle_all()
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
    store.settle_all()
    await turns()
    store.settle_all()
    # then it is carried out, for the conversation is at version 2
    assert (await refused).events == [("MessageAppended", 3)]
    assert (await written).events == [("MessageAppended", 4)]


async def test_what_is_stored_for_a_conversation_that_was_dropped_is_not_missing_in_the_next(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given an append under way on a conversation that was dropped meanwhile, and read anew
    hears_everything(faked, monkeypatch)
    written = append(faked)
    faked.cache.drop(faked.cache.entries[ADAS.key])
    assert (await faked.view(ADAS)).version == 1
    # when it is stored and answered
    await turns()
    store.settle_all()
    assert (await written).version == 2
    # then whoever asks is shown it
    assert (await faked.view(ADAS)).version == 2


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
    store.settle_all()
    await turns()
    store.settle_all()
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
                store.settle_all()
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
    store.settle_all()
    assert all(each.done() for each in flood)


async def test_what_was_held_behind_a_failed_append_is_decided_again_in_its_order(
    faked: Conversations, store: FakeStore
) -> None:
    in_company(faked)
    flood = [append(faked, f"message {n}") for n in range(AHEAD_MAX * 2)]
    await turns()
    by_rival(store, "from elsewhere")
    while not all(each.done() for each in flood):
        store.settle_all()
        await turns()
    assert [each.result().version for each in flood] == list(range(3, AHEAD_MAX * 2 + 3))


async def test_a_command_that_is_held_for_too_long_is_refused(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_module, "DECIDE_AGAIN_S", -1.0)
    in_company(faked)
    flood = [append(faked, f"message {n}") for n in range(AHEAD_MAX + 5)]
    await turns()
    store.settle_all()
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
        store.settle_all()
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
    store.settle_all()
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
        store.settle_all()
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
    store.settle_all()
    # then everyone is told something, and the next view is right
    async with asyncio.timeout(5):
        told = await asyncio.gather(*sent, return_exceptions=True)
    assert isinstance(told[0], RuntimeError)
    assert isinstance(told[2], VersionConflict)
    view = await faked.view(ADAS)
    assert view.state() == store.view(ADAS.key, 50).state()
