"""What readers are shown: all that is stored, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from domain.conversation import Conversation
from services.conversations import Conversations
from services.errors import NotYetThere
from services.in_use import views as views_module
from services.in_use.views import MISSED_MAX
from services.snapshots import Sleeping
from tests.services.fake_store import FakeStore
from tests.services.rigs import (
    ADAS,
    append,
    contents,
    conversations_on,
    hears_everything,
    turns,
)

from .rigs import as_heard, by_rival, grown, in_parts, snapshot_at


async def test_what_is_heard_while_an_append_is_under_way_is_looked_up(
    faked: Conversations, store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # given a conversation that is known to be up to date, and an append of ours under way
    hears_everything(faked, monkeypatch)
    assert (await faked.view(ADAS)).version == 1
    written = append(faked)
    # when another worker's event is stored at the version that ours was to have, and heard of
    by_rival(store)
    rival = store.log[ADAS.key][-1]
    faked.heard(ADAS.key, *as_heard(rival))
    looking = asyncio.ensure_future(faked.view(ADAS))
    await turns()
    store.settle_all()
    await turns()
    # then it is shown, although it came while ours was not settled yet
    assert (await looking).version >= 2
    store.settle_all()
    assert (await written).version == 3


async def test_a_view_shows_nothing_that_is_not_stored(
    faked: Conversations, store: FakeStore
) -> None:
    written = append(faked)
    await turns()
    assert (await faked.view(ADAS)).version == 1
    store.settle_all()
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
    store.settle_all()
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
    store.settle_all()
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
        store.settle_all()
        await turns()
    assert [each.result().version for each in ours] == list(range(3, 3 + events))


async def test_a_conversation_that_is_only_read_sleeps_for_so_many_events_of_others(
    store: FakeStore,
) -> None:
    grown(store, 20)
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
