"""Snapshots of conversations: what they hold, and when they are written."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from pydantic_core import from_json, to_json

from domain.commands import parse_command
from domain.conversation import Conversation
from domain.errors import ConversationError
from domain.rules import CommandContext, Limits, decide
from infra.jetstream.store import Store
from projections.state import ConversationView
from services import snapshots as snapshots_module
from services.snapshots import EVERY_EVENTS, Sleeping, Snapshot, Snapshotter
from tests.domain.model import lives
from tests.domain.specification import ADAS, Request, folded, through_storage
from tests.domain.specification import given as given_life


def lived(life: list[Request], window_size: int) -> tuple[Conversation | None, ConversationView]:
    conversation: Conversation | None = None
    view = ConversationView.empty(window_size)
    for number, request in enumerate(life):
        command = parse_command(request.verb, to_json(request.body))
        context = CommandContext(request.command_id, None, request.expected_version)
        try:
            decision = decide(conversation, ADAS, command, context, Limits())
        except ConversationError:
            continue
        conversation = decision.conversation
        for event in through_storage(decision.events):
            view.apply(event, 10 * number + event.originator_version)
    return conversation, view


@settings(max_examples=60)
@given(lives)
def test_a_snapshot_gives_back_the_conversation_and_its_view(life: list[Request]) -> None:
    conversation, view = lived(life, window_size=3)
    assert conversation is not None
    snapshot = Snapshot.decode(Snapshot(conversation, view, "ab" * 32).encode(), window_size=3)
    assert snapshot is not None
    assert snapshot.conversation.to_state() == conversation.to_state()
    assert snapshot.conversation.size_bytes == conversation.size_bytes
    assert snapshot.view.state() == view.state()
    assert snapshot.view.to_state() == view.to_state()
    assert snapshot.view.size_bytes == view.size_bytes
    assert snapshot.digest == "ab" * 32
    # and it is only for windows of that size
    encoded = Snapshot(conversation, view, "ab" * 32).encode()
    assert Snapshot.decode(encoded, window_size=4) is None


def test_a_snapshot_says_at_which_event_it_stands() -> None:
    conversation, view = lived([Request("init", {"user_id": "ada"})], window_size=3)
    assert conversation is not None
    state = from_json(Snapshot(conversation, view, "ab" * 32).encode())
    assert state["digest"] == "ab" * 32
    assert (state["view"]["seq"], state["view"]["version"]) == (view.seq, 1)
    assert state["conversation"]["version"] == 1


def test_the_aggregate_sleeps_until_somebody_decides_on_it() -> None:
    life = [
        Request("init", {"user_id": "ada", "context": {"conversation": {"view": [","]}}}),
        Request("append", {"role": "user", "content": ',"conversation":{"view":}'}),
        Request("append", {"role": "user", "content": "behind"}),
    ]
    *earlier, behind = through_storage(given_life(*life).events)
    conversation, later = folded(earlier), folded([*earlier, behind])
    view = ConversationView.empty(3)
    for event in earlier:
        view.apply(event, event.originator_version)
    assert conversation is not None
    assert later is not None
    snapshot = Snapshot.decode(Snapshot(conversation, view, "ab" * 32).encode(), window_size=3)
    assert snapshot is not None
    sleeping = snapshot.aggregate
    assert isinstance(sleeping, Sleeping)
    assert sleeping.version == view.version
    # when it has missed an event, it takes that in as it wakes
    sleeping.miss(behind)
    assert (sleeping.version, sleeping.missed) == (view.version + 1, 1)
    assert sleeping.awake().to_state() == later.to_state()


@pytest.mark.parametrize(
    "body",
    [
        b'{"view_bytes":2,"digest":"%b","view":{},"conversation":{}}' % (b"ab" * 32),
        b'{"view_bytes":9,"digest":"%b","view":{},"conversation":{}}' % (b"ab" * 32),
        b'{"view_bytes":2,"digest":"%b","view":{}' % (b"ab" * 32),
        b'{"view_bytes":2,"digest":"%b","view":' % (b"ab" * 32),
    ],
)
def test_parts_that_are_none_are_of_no_use(body: bytes) -> None:
    assert Snapshot.decode(body, window_size=3) is None


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"null",
        b"7",
        b"[]",
        b"{}",
        b"{",
        b"\xff",
        b'{"view": [], "conversation": {}, "digest": ""}',
        b'{"view": {}, "conversation": {}, "digest": ""}',
        b'{"view": {"format": 1}, "conversation": {"format": 1}, "digest": ""}',
    ],
)
def test_whatever_else_was_saved_is_of_no_use_and_no_error(body: bytes) -> None:
    assert Snapshot.decode(body, window_size=3) is None


# -- when they are written -----------------------------------------------------------------------


class Made:
    """A snapshot of which only the encoded form is of interest."""

    def __init__(self, key: str) -> None:
        self.key = key

    def encode(self) -> bytes:
        return self.key.encode()


class Kept:
    """A store of which only the snapshots are of interest."""

    def __init__(self) -> None:
        self.snapshots = self
        self.saved: list[tuple[str, bytes]] = []
        self.saving = 0
        self.gate: asyncio.Event | None = None
        self.fails = False

    async def save(self, key: str, body: bytes) -> bool:
        self.saving += 1
        assert self.saving == 1, "one after the other"
        if self.gate is not None:
            await self.gate.wait()
        self.saving -= 1
        if self.fails:
            raise RuntimeError("a fault of ours")
        self.saved.append((key, body))
        return True


def snapshotter(kept: Kept, take: Callable[[str], Awaitable[Any]] | None = None) -> Snapshotter:
    async def made(key: str) -> Any:
        return Made(key)

    return Snapshotter(cast("Store", kept), take or made)


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots_module, "DUTY", float("inf"))


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():  # noqa: ASYNC110 - the snapshotter tells nobody
            await asyncio.sleep(0)


async def test_a_conversation_is_due_after_fifty_events_and_not_before() -> None:
    kept = Kept()
    writing = snapshotter(kept)
    writing.grown("a", EVERY_EVENTS - 1)
    writing.grown("b", EVERY_EVENTS)
    writing.grown("c", 10 * EVERY_EVENTS)
    await until(lambda: len(kept.saved) == 2)
    for _ in range(20):
        await asyncio.sleep(0)
    assert kept.saved == [("b", b"b"), ("c", b"c")]
    await writing.close()


async def test_one_that_is_due_already_is_written_once() -> None:
    kept = Kept()
    kept.gate = asyncio.Event()
    writing = snapshotter(kept)
    writing.grown("a", EVERY_EVENTS)
    await until(lambda: kept.saving == 1)
    for _ in range(5):
        writing.grown("b", EVERY_EVENTS)
        writing.grown("c", EVERY_EVENTS)
    kept.gate.set()
    await until(lambda: len(kept.saved) == 3)
    assert [key for key, _ in kept.saved] == ["a", "b", "c"]
    # and later again
    writing.grown("a", EVERY_EVENTS)
    await until(lambda: len(kept.saved) == 4)
    await writing.close()


async def test_one_that_fails_or_is_not_there_keeps_no_other_from_being_written(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept = Kept()

    async def take(key: str) -> Any:
        if key == "broken":
            raise RuntimeError("a fault of ours")
        return None if key == "gone" else Made(key)

    writing = snapshotter(kept, take)
    for key in ("broken", "gone", "a"):
        writing.grown(key, EVERY_EVENTS)
    await until(lambda: len(kept.saved) == 1)
    assert "a snapshot could not be written" in caplog.text
    kept.fails = True
    writing.grown("b", EVERY_EVENTS)
    await until(lambda: caplog.text.count("could not be written") == 2)
    kept.fails = False
    writing.grown("c", EVERY_EVENTS)
    await until(lambda: len(kept.saved) == 2)
    assert [key for key, _ in kept.saved] == ["a", "c"]
    await writing.close()


async def test_writing_takes_no_more_than_its_part_of_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # given a clock by which each snapshot takes 10 ms
    now = iter(n * 0.010 for n in range(1_000))
    pauses: list[float] = []
    sleep = asyncio.sleep

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        await sleep(0)

    monkeypatch.setattr(snapshots_module, "DUTY", 0.05)
    clock = SimpleNamespace(perf_counter=lambda: next(now))
    monkeypatch.setattr(snapshots_module, "time", clock)
    monkeypatch.setattr(
        snapshots_module, "asyncio", SimpleNamespace(**{**vars(asyncio), "sleep": pause})
    )
    kept = Kept()
    writing = snapshotter(kept)
    for key in "abc":
        writing.grown(key, EVERY_EVENTS)
    async with asyncio.timeout(5):
        while len([each for each in pauses if each]) < 3:
            await sleep(0)
    await writing.close()
    # then it pauses 200 ms after each
    assert [each for each in pauses if each][:3] == pytest.approx([0.2] * 3)


async def test_closing_stops_it_at_once_whatever_is_due() -> None:
    kept = Kept()
    kept.gate = asyncio.Event()
    writing = snapshotter(kept)
    for key in "abc":
        writing.grown(key, EVERY_EVENTS)
    await until(lambda: kept.saving == 1)
    async with asyncio.timeout(5):
        await writing.close()
        await writing.close()
    assert kept.saved == []


async def test_a_snapshot_is_encoded_in_the_turn_in_which_it_was_taken() -> None:
    """The conversation goes on changing: a turn later it would be another one."""
    kept = Kept()
    order: list[str] = []

    class Live:
        def encode(self) -> bytes:
            order.append("encoded")
            return b"live"

    async def take(key: str) -> Any:
        asyncio.get_running_loop().call_soon(order.append, "next turn")
        return Live()

    writing = snapshotter(kept, take)
    writing.grown("a", EVERY_EVENTS)
    await until(lambda: len(order) == 2)
    assert order == ["encoded", "next turn"]
    await writing.close()
