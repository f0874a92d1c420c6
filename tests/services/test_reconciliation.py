"""Reconciliation: what readers are shown beside the record folded again."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from domain.identity import ConversationId
from infra.jetstream.errors import StoreUnavailable
from infra.server import EmbeddedServer
from services.reconciliation import Difference, Reconciliation, Shown, compare, conversations
from tests.services.auditing import Ledger, ledger_on

JSON = dict[str, Any]


@pytest_asyncio.fixture(scope="module")
async def ledger(nats_server: EmbeddedServer) -> AsyncIterator[Ledger]:
    async with ledger_on(nats_server.url, window_size=5) as ledger:
        yield ledger


def name(conversation: str) -> ConversationId:
    return ConversationId.parse("acme", conversation)


def reconciliation(ledger: Ledger) -> Reconciliation:
    return Reconciliation(ledger.nc, ledger.process.store.topology, window_size=5)


async def snapshot_of(ledger: Ledger, conversation: str) -> JSON:
    """The snapshot, once there is one."""
    async with asyncio.timeout(30):
        while True:
            body = await ledger.process.store.snapshots.load(name(conversation).key)
            if body is not None:
                found: JSON = json.loads(body)
                return found
            await asyncio.sleep(0.05)


async def long(ledger: Ledger, conversation: str) -> JSON:
    """A conversation long enough for a snapshot, which is returned."""
    await ledger.talk(conversation, turns=20)
    return await snapshot_of(ledger, conversation)


async def test_an_honest_ledger_agrees_with_its_record(ledger: Ledger) -> None:
    await long(ledger, "honest")
    await ledger.do("honest", "reset")
    await ledger.do("honest", "append", role="user", content="x" * 200_000)

    assert await reconciliation(ledger).differences(name("honest")) == []


async def test_every_conversation_is_named(ledger: Ledger) -> None:
    await ledger.talk("named-1")
    await ledger.talk("named-2")

    found = [each async for each in conversations(ledger.nc, ledger.process.store.topology)]

    assert {name("named-1"), name("named-2")} <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("part", "field", "value", "shown"),
    [
        ("view", "title", "another", "title"),
        ("view", "message_count", 3, "message_count"),
        ("view", "totals", [0, 0, 0, 0], "totals.0"),
        ("conversation", "status", "closed", "status"),
    ],
)
async def test_a_snapshot_that_differs_is_named_by_its_field(
    ledger: Ledger, part: str, field: str, value: Any, shown: str
) -> None:
    conversation = f"forged-{part}-{field}"
    snapshot = await long(ledger, conversation)
    assert field in snapshot[part]
    snapshot[part][field] = value
    await ledger.process.store.snapshots.save(name(conversation).key, json.dumps(snapshot).encode())

    found = await reconciliation(ledger).differences(name(conversation))

    first = found[0]
    assert first.conversation == f"acme/{conversation}"
    assert first.source == f"snapshot.{part}"
    assert first.version == snapshot["view"]["version"]
    assert first.field == shown


async def test_a_live_view_that_differs_is_named_by_its_field(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker whose memory has gone wrong would show it."""
    await ledger.talk("wrong")
    await ledger.ask("convo.get.acme.wrong.messages")
    view = ledger.process.conversations.cache.entries["acme.wrong"].view
    monkeypatch.setattr(view, "title", "never given")
    view.window.messages()[-1]["content"] = "never said"
    view.window._json = None  # which is made once for all readers

    found = await reconciliation(ledger).differences(name("wrong"))

    version = view.version
    places = {(each.source, each.field): each for each in found}
    assert places["state", "state.title"].found == "never given"
    assert places["messages", "messages.3.content"] == Difference(
        "acme/wrong", "messages", version, "messages.3.content", "Answer 1", "never said"
    )


def test_an_answer_that_was_cut_is_compared_as_far_as_it_goes() -> None:
    messages = [{"message_id": str(number), "content": "x"} for number in range(5)]
    kept = messages[3:]

    shown = Shown("messages", 7, {"ok": True, "truncated": True, "messages": kept})
    assert list(compare("c", shown, {"messages": messages})) == []
    whole = Shown("messages", 7, {"ok": True, "messages": kept})
    assert next(compare("c", whole, {"messages": messages})).field == ("messages.length")
    state = {"title": "t", "recent_messages": kept, "truncated": True}
    expected = {"state": {"title": "t", "recent_messages": messages}}
    assert list(compare("c", Shown("state", 7, {"ok": True, "state": state}), expected)) == []
    other = Shown("state", 7, {"ok": True, "state": {**state, "title": "u"}})
    assert [each.field for each in compare("c", other, expected)] == ["state.title"]


async def test_without_queries_nothing_is_compared(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as other, ledger_on(other.url, "commands") as quiet:
        await quiet.talk("alone")
        with pytest.raises(StoreUnavailable, match="serve queries"):
            await reconciliation(quiet).differences(name("alone"))
