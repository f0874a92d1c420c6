"""`convo tail`: what is stored, as it is stored; of one conversation without gap or repeat."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
import pytest_asyncio
from nats.aio.client import Client

from domain.identity import ConversationId
from services.cli.follower import LimitReached, Shown, follow_conversation, follow_many
from services.cli.requests import Patience
from tests.services.cli.conftest import Convo

PATIENCE = Patience(timeout_s=5.0)


class Seen(Shown):
    """Keeps what would be printed."""

    def __init__(self, limit: int) -> None:
        super().__init__(as_json=True, limit=limit)
        self.versions: list[tuple[str, int]] = []
        self.notes: list[str] = []
        self.following = asyncio.Event()
        self.first = asyncio.Event()

    def event(self, event: dict[str, Any]) -> None:
        self.versions.append((event["conversation_id"], event["version"]))
        self.first.set()
        super().event(event)

    def note(self, line: str) -> None:
        self.notes.append(line)
        self.following.set()


@pytest.fixture
def name() -> ConversationId:
    return ConversationId.parse(f"t-{uuid4()}", "a/b c")


@pytest_asyncio.fixture
async def client(ledger: str, nats_client: Client) -> AsyncIterator[Client]:
    yield nats_client


async def send(client: Client, id: ConversationId, verb: str, **body: Any) -> int:
    """Sends one command; returns the version after it."""
    message = await client.request(
        f"convo.cmd.{id.key}.{verb}", json.dumps(body).encode(), timeout=10
    )
    reply = json.loads(message.data)
    assert reply["ok"], reply
    return int(reply["version"])


async def append(client: Client, id: ConversationId, count: int) -> None:
    for n in range(count):
        await send(client, id, "append", role="user", content=f"text {n}")


async def until_enough(following: asyncio.Future[None]) -> None:
    async with asyncio.timeout(30):
        with pytest.raises(LimitReached):
            await following


async def test_history_and_what_comes_are_joined_without_gap_or_repeat(
    client: Client, name: ConversationId
) -> None:
    await send(client, name, "init", user_id="ada", title="T")
    await append(client, name, 5)
    seen = Seen(limit=3 + 40)
    writing = asyncio.ensure_future(append(client, name, 40))
    await send(client, name, "reset")  # some are written before, some while the history is read

    following = asyncio.ensure_future(
        follow_conversation(client, name, seen, PATIENCE, history=None, from_version=5)
    )
    await writing
    await until_enough(following)

    assert [version for _, version in seen.versions] == list(range(5, 5 + 43))


async def test_history_shows_the_last_events_first(client: Client, name: ConversationId) -> None:
    await send(client, name, "init", user_id="ada", title="T")
    await append(client, name, 5)
    seen = Seen(limit=3)

    following = asyncio.ensure_future(
        follow_conversation(client, name, seen, PATIENCE, history=2, from_version=None)
    )
    await seen.following.wait()
    await append(client, name, 1)
    await until_enough(following)

    assert [version for _, version in seen.versions] == [5, 6, 7]
    assert f"{name.tenant_id}/a/b c after version 4" in seen.notes[0]


async def test_a_conversation_that_does_not_exist_yet_is_waited_for(
    client: Client, name: ConversationId
) -> None:
    seen = Seen(limit=2)
    following = asyncio.ensure_future(
        follow_conversation(client, name, seen, PATIENCE, history=10, from_version=None)
    )
    await seen.following.wait()

    await send(client, name, "init", user_id="ada", title="T")
    await append(client, name, 1)
    await until_enough(following)

    assert [version for _, version in seen.versions] == [1, 2]


async def test_what_the_live_subject_lost_is_read_from_the_ledger(
    client: Client, name: ConversationId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every second live message is dropped, the last one too."""
    await send(client, name, "init", user_id="ada", title="T")
    seen = Seen(limit=10)
    subscribe = client.subscribe

    async def lossy(subject: str, **options: Any) -> Any:
        subscription = await subscribe(subject, **options)
        take = subscription.next_msg

        async def every_second(timeout: float | None = 1.0) -> Any:
            await take(timeout)
            return await take(timeout)

        monkeypatch.setattr(subscription, "next_msg", every_second)
        return subscription

    monkeypatch.setattr(client, "subscribe", lossy)
    following = asyncio.ensure_future(
        follow_conversation(client, name, seen, PATIENCE, history=0, from_version=None)
    )
    await seen.following.wait()
    await append(client, name, 11)
    await until_enough(following)

    assert [version for _, version in seen.versions] == list(range(2, 12))


async def test_a_tenant_is_followed_and_no_other(client: Client) -> None:
    tenant, other = f"t-{uuid4()}", f"t-{uuid4()}"
    seen = Seen(limit=4)
    following = asyncio.ensure_future(follow_many(client, f"convo.live.*.{tenant}.*", seen))
    await seen.following.wait()

    for id in (
        ConversationId.parse(tenant, "a"),
        ConversationId.parse(other, "x"),
        ConversationId.parse(tenant, "b"),
    ):
        await send(client, id, "init", user_id="ada", title="T")
        await append(client, id, 1)
    await until_enough(following)

    assert seen.versions == [("a", 1), ("a", 2), ("b", 1), ("b", 2)]
    assert len(seen.notes) == 1


async def test_a_gap_among_many_is_told(client: Client) -> None:
    seen = Seen(limit=3)
    following = asyncio.ensure_future(follow_many(client, "live.test.>", seen))
    await seen.following.wait()

    for version in (1, 2, 5):
        event = {"tenant_id": "t", "conversation_id": "c", "version": version, "type": "X"}
        body = json.dumps(event).encode()
        await client.publish("live.test.c", body, headers={"Nats-Sequence": "1"})
        await client.publish("live.test.c", b"foreign")
    await until_enough(following)

    assert seen.notes[1:] == ["missed here: `convo events t/c --after-version 2` has it"]


def test_the_command_prints_lines_and_ends_at_its_limit(convo: Convo, ledger: str) -> None:
    name = f"t-{uuid4()}/c"
    convo("init", name, "ada", "--title", "T")
    convo("append", name, "user", "Hi")

    lines = convo("tail", name, "--history", "5", "--limit", "2")
    as_json = convo("tail", name, "--from-version", "2", "--limit", "1", "--json")

    assert lines.exit_code == 0
    assert [line.split()[2:4] for line in lines.stdout.splitlines()] == [
        ["1", "ConversationStarted"],
        ["2", "MessageAppended"],
    ]
    event = json.loads(as_json.stdout)
    assert event["data"]["content"] == "Hi"
    assert event["seq"] > 0
    assert len(event["hash"]) == 64
