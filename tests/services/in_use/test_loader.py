"""How conversations get into memory, from snapshots too, and what is saved of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from domain.conversation import Conversation
from domain.identity import ConversationId
from infra.jetstream.errors import StoreUnavailable
from projections.state import ConversationView
from services import snapshots as snapshots_module
from services.conversations import Conversations
from services.in_use.loader import LOADS_MAX
from services.snapshots import Snapshot
from tests.services.fake_store import FakeStore
from tests.services.rigs import ADAS, append, contents, conversations_on, init, turns

from .rigs import by_rival, grown, in_parts, snapshot_at


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
        store.settle_all()
        assert (await begun).version == 1


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


async def loaded(store: FakeStore, window_size: int = 5) -> ConversationView:
    async with conversations_on(store.as_store, window_size=window_size) as conversations:
        await conversations.view(ADAS)
        told = append(conversations, "after")
        for _ in range(2):  # decided again where the snapshot is of no use
            await turns()
            store.settle_all()
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
    grown(store, 20)
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
    grown(store, 20)
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
    grown(store, 20)
    store.saved[ADAS.key] = json.dumps(USELESS[kind](snapshot_at(store, 15))).encode()
    assert (await loaded(store)).version == 21


@pytest.mark.parametrize("kind", [kind for kind in USELESS if kind.startswith(("of", "with "))])
async def test_a_snapshot_in_parts_that_is_of_no_use_is_ignored(
    store: FakeStore, kind: str
) -> None:
    grown(store, 20)
    store.saved[ADAS.key] = in_parts(USELESS[kind](snapshot_at(store, 15)))
    assert (await loaded(store)).version == 21


@pytest.mark.usefixtures("unhurried_snapshots")
async def test_an_aggregate_that_cannot_be_woken_is_read_from_the_ledger_and_saved_anew(
    store: FakeStore,
) -> None:
    # given a snapshot of which only the view is of use
    grown(store, 60)
    state = snapshot_at(store, 60)
    store.saved[ADAS.key] = in_parts({**state, "conversation": {"format": 99}})
    async with conversations_on(store.as_store, window_size=5) as conversations:
        # then it is read
        assert (await conversations.view(ADAS)).state() == store.view(ADAS.key, 5).state()
        # and written to
        told = [append(conversations, "after"), append(conversations, "and after")]
        for _ in range(5):
            await turns()
            store.settle_all()
        assert [(await each).version for each in told] == [61, 62]
        await turns()
        snapshot = Snapshot.decode(store.saved[ADAS.key], window_size=5)
        assert snapshot is not None
        assert snapshot.conversation.version >= 60


@pytest.mark.parametrize("body", [b"", b"no json", b"\xff\xfe", b"{", b"{}", b"[" * 1_000])
async def test_a_snapshot_that_is_no_json_is_ignored(store: FakeStore, body: bytes) -> None:
    grown(store, 20)
    store.saved[ADAS.key] = body
    assert (await loaded(store)).version == 21


async def test_a_snapshot_of_an_older_ledger_is_ignored(store: FakeStore) -> None:
    # given a snapshot of a ledger that was restored to an earlier time, and went on differently
    grown(store, 20)
    store.saved[ADAS.key] = json.dumps(snapshot_at(store, 20)).encode()
    del store.log[ADAS.key][17:]
    store.seq = 17
    by_rival(store, "another future")
    view = await loaded(store)
    assert contents(view.state())[-2:] == ["another future", "after"]


async def test_snapshots_that_cannot_be_loaded_cost_time_only(
    store: FakeStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    grown(store, 20)

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
        store.settle_all()
        await told
    await turns()
    assert not store.saved
    told = append(faked, "the fiftieth")
    await turns()
    store.settle_all()
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
    store.settle_all()
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

    grown(store, 60)
    swallowing = SimpleNamespace(save=save, load=store.snapshots.load)
    monkeypatch.setattr(FakeStore, "snapshots", swallowing)
    async with conversations_on(store.as_store) as conversations:
        await conversations.view(ADAS)
        await saving.wait()
        async with asyncio.timeout(5):
            await conversations.close()
