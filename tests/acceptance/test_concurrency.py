"""Many writers at once: nothing lost, nothing twice, no gap, and nobody left behind."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client

from tests.acceptance.client import Conversation, Ledger
from tests.acceptance.conftest import connected
from tests.acceptance.deployment import Deployment

CONNECTIONS = 4
WRITERS = 64
APPENDS = 6
"""By each writer."""


class Crowd:
    """Several connections to one ledger."""

    def __init__(self, connections: list[Client]) -> None:
        self.connections = connections

    def ledger(self, number: int = 0) -> Ledger:
        """The ledger over one of the connections, taken in turn."""
        return Ledger(self.connections[number % len(self.connections)])

    def seen_by(self, number: int, conversation: Conversation) -> Conversation:
        """A conversation over one of the connections."""
        return self.ledger(number).conversation(conversation.conversation_id)


@pytest.fixture(scope="module", params=[1, 3], ids=["1-worker", "3-workers"])
def deployed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployment]:
    """A ledger with that many workers."""
    deployment = Deployment(tmp_path_factory.mktemp("crowded"), workers=request.param)
    try:
        deployment.start()
        yield deployment
    finally:
        deployment.stop()


@pytest_asyncio.fixture
async def crowd(deployed: Deployment) -> AsyncIterator[Crowd]:
    """Several connections to it."""
    connections = [await connected(deployed.url) for _ in range(CONNECTIONS)]
    yield Crowd(connections)
    for connection in connections:
        await connection.close()
    assert deployed.complaints() == []


async def test_64_writers_on_one_conversation_all_finish_and_each_append_is_there_once(
    crowd: Crowd,
) -> None:
    conversation = await crowd.ledger().begun(title="Crowded")
    acknowledged: dict[str, dict[str, Any]] = {}

    async def write(writer: int) -> None:
        ours = crowd.seen_by(writer, conversation)
        for number in range(APPENDS):
            content = f"{writer}:{number}"
            acknowledged[content] = await ours.append(content, role="tool")

    await asyncio.gather(*map(write, range(WRITERS)))

    assert len(acknowledged) == WRITERS * APPENDS
    events = await conversation.events()
    assert [event["version"] for event in events] == list(range(1, 2 + WRITERS * APPENDS))
    stored = {event["data"]["content"]: event for event in events[1:]}
    assert len(stored) == len(events) - 1
    for content, reply in acknowledged.items():
        event = stored[content]
        assert (event["version"], event["seq"]) == (reply["version"], reply["seq"])
        assert event["data"]["message_id"] == reply["message_id"]
    for writer in range(WRITERS):  # each writer's own appends are in its order
        versions = [stored[f"{writer}:{number}"]["version"] for number in range(APPENDS)]
        assert versions == sorted(versions)
    assert (await conversation.state())["message_count"] == WRITERS * APPENDS


async def test_whole_turns_never_interleave(crowd: Crowd) -> None:
    conversation = await crowd.ledger().begun(title="Crowded")

    async def write(writer: int) -> None:
        ours = crowd.seen_by(writer, conversation)
        for number in range(3):
            said = [{"role": "tool", "content": f"{writer}:{number}"}] * 3
            use = {"prompt_tokens": 1, "completion_tokens": 1}
            reply = await ours.do("turn", messages=said, usage=use)
            versions = [event["version"] for event in reply["events"]]
            assert versions == list(range(versions[0], versions[0] + 4))

    await asyncio.gather(*map(write, range(16)))
    contents = [message["content"] for message in await conversation.history()]
    triples = [contents[place : place + 3] for place in range(0, len(contents), 3)]
    assert all(len(set(triple)) == 1 for triple in triples)
    assert Counter(contents) == {f"{w}:{n}": 3 for w in range(16) for n in range(3)}
    assert (await conversation.usage())[0] == {"prompt": 48, "completion": 48, "total": 96}


async def test_one_command_sent_many_times_at_once_is_carried_out_once(crowd: Crowd) -> None:
    conversation = await crowd.ledger().begun(title="Crowded")
    for round_ in range(10):
        sent = [
            crowd.seen_by(place, conversation).append(
                f"once {round_}", role="tool", command_id=f"k-{round_}"
            )
            for place in range(12)
        ]
        replies = await asyncio.gather(*sent)
        assert [reply["duplicate"] for reply in replies].count(False) == 1
        assert all(
            {**reply, "duplicate": True} == {**replies[0], "duplicate": True} for reply in replies
        )
    assert await conversation.contents() == [f"once {round_}" for round_ in range(10)]


async def test_one_beginning_sent_many_times_at_once_begins_once(crowd: Crowd) -> None:
    for _ in range(10):
        conversation = crowd.ledger().conversation()
        begun = [
            crowd.seen_by(place, conversation).init(user_id=f"user {place}") for place in range(8)
        ]
        replies = await asyncio.gather(*begun)
        assert sum(len(reply["events"]) for reply in replies) == 1
        assert len({reply["state"]["user_id"] for reply in replies}) == 1
        assert len(await conversation.events()) == 1


async def test_of_writers_that_expect_the_same_version_one_succeeds(crowd: Crowd) -> None:
    conversation = await crowd.ledger().begun(title="Crowded")
    for version in range(1, 11):

        async def write(place: int, at: int = version) -> bool:
            ours = crowd.seen_by(place, conversation)
            subject = f"convo.cmd.{ours.tokens}.append"
            body = b'{"role": "tool", "content": "%d"}' % place
            answer = await ours.nats.request(
                subject, body, timeout=30, headers={"Convo-Expected-Version": str(at)}
            )
            if b'"ok":true' in answer.data:
                return True
            assert b'"version_conflict"' in answer.data, answer.data
            return False

        assert sum(await asyncio.gather(*map(write, range(8)))) == 1
    assert (await conversation.state())["version"] == 11


async def test_neighbours_of_a_crowded_conversation_are_not_refused_anything(
    crowd: Crowd,
) -> None:
    crowded = await crowd.ledger().begun(title="Crowded")
    quiet = [await crowd.ledger().begun(title="Quiet") for _ in range(8)]

    async def crowd_in(writer: int) -> None:
        ours = crowd.seen_by(writer, crowded)
        for number in range(8):
            await ours.append(f"{writer}:{number}", role="tool")

    async def go_on(place: int, conversation: Conversation) -> None:
        ours = crowd.seen_by(place, conversation)
        version = 1
        for number in range(20):  # alone on it: its expectation always holds
            reply = await ours.append(
                f"{number}", role="tool", headers={"Convo-Expected-Version": str(version)}
            )
            version = reply["version"]

    await asyncio.gather(*map(crowd_in, range(32)), *(go_on(*each) for each in enumerate(quiet)))
    for conversation in quiet:
        assert await conversation.contents() == [f"{number}" for number in range(20)]
    assert (await crowded.state())["message_count"] == 32 * 8


async def test_a_burst_of_requests_is_answered_whole(crowd: Crowd) -> None:
    conversations = [await crowd.ledger().begun(title="Burst") for _ in range(50)]
    sent = [
        crowd.seen_by(place, conversations[place % 50]).append(f"{place}", role="tool")
        for place in range(3_000)
    ]
    replies = await asyncio.gather(*sent)
    assert len({reply["seq"] for reply in replies}) == 3_000
    states = await asyncio.gather(*(conversation.state() for conversation in conversations))
    assert [state["version"] for state in states] == [1 + 60] * 50
