"""How fresh an answer is: what was acknowledged to whom, and through which worker."""

from __future__ import annotations

import asyncio
import json

from tests.acceptance.client import Conversation, Ledger, refused, request
from tests.acceptance.conftest import Deploy, connected

STRONG = {"Convo-Consistency": "strong"}


async def test_strong_reads_include_every_acknowledged_event_whichever_worker_answers(
    deploy: Deploy,
) -> None:
    deployed = deploy(workers=3)
    writing, reading = await connected(deployed.url), await connected(deployed.url)
    conversation = await Ledger(writing).begun()
    reader = Conversation(reading, "acme", conversation.conversation_id)
    for number in range(60):
        reply = await conversation.append(f"{number}", role="tool")
        state, usage, messages, events = await asyncio.gather(
            reader.get("state", headers=STRONG),
            reader.get("usage", headers=STRONG),
            reader.get("messages", headers=STRONG),
            reader.get("events", {"after_version": reply["version"] - 1}, STRONG),
        )
        assert state["version"] == usage["version"] == messages["version"] == reply["version"]
        assert messages["messages"][-1]["content"] == f"{number}"
        assert [event["seq"] for event in events["events"]] == [reply["seq"]]
    assert deployed.complaints() == []
    await writing.close()
    await reading.close()


async def test_a_read_from_a_sequence_includes_it_whichever_worker_answers(
    deploy: Deploy,
) -> None:
    deployed = deploy(workers=3, partitions=3)
    writing, reading = await connected(deployed.url), await connected(deployed.url)
    conversation = await Ledger(writing).begun()
    reader = Conversation(reading, "acme", conversation.conversation_id)
    for number in range(60):
        reply = await conversation.append(f"{number}", role="tool")
        least = {"Convo-Min-Seq": str(reply["seq"])}
        for view in ("messages", "usage", "state", "history", "events"):
            answer = await reader.get(view, headers=least)
            assert answer["seq"] >= reply["seq"]
        history = await reader.get("history", headers=least)
        assert history["messages"][-1]["content"] == f"{number}"
    assert deployed.complaints() == []
    await writing.close()
    await reading.close()


async def test_what_one_worker_wrote_another_one_decides_on(deploy: Deploy) -> None:
    """One connection, so that the requests go in order; any worker may answer each."""
    deployed = deploy(workers=3)
    nats = await connected(deployed.url)
    conversation = await Ledger(nats).begun()
    version = 1
    for number in range(60):
        reply = await conversation.append(
            f"{number}",
            role="tool",
            message_id=f"m-{number}",
            command_id=f"k-{number}",
            headers={"Convo-Expected-Version": str(version)},
        )
        version = reply["version"]
        again = await conversation.append("again", role="tool", command_id=f"k-{number}")
        assert again == {**reply, "duplicate": True}
        taken = {"role": "tool", "content": "taken", "message_id": f"m-{number}"}
        await conversation.refused("invalid_state", "append", taken)
        await conversation.refused(
            "version_conflict", "append", taken, {"Convo-Expected-Version": str(version - 1)}
        )
    assert version == 61
    assert [event["version"] for event in await conversation.events()] == list(range(1, 62))
    assert deployed.complaints() == []
    await nats.close()


async def test_a_sequence_that_never_comes_is_an_error_after_a_bounded_wait(
    ledger: Ledger,
) -> None:
    conversation, unknown = await ledger.begun(), ledger.conversation()
    least = {"Convo-Min-Seq": "9007199254740992"}
    views = ("messages", "usage", "state", "history", "events")
    asked = request(ledger.nats, f"convo.get.{unknown.tokens}.state", b"", least)
    of_unknown = asyncio.ensure_future(asked)
    errors = await asyncio.gather(
        *(conversation.get_refused("storage_unavailable", view, {}, least) for view in views)
    )
    reply, _ = await of_unknown
    assert reply["error"]["code"] in {"storage_unavailable", "conversation_not_initialized"}
    assert all(error["retryable"] is True for error in errors)


async def test_eventual_is_a_consistency_too(conversation: Conversation) -> None:
    await conversation.append("Hello", role="tool")
    reply = await conversation.get("messages", headers={"Convo-Consistency": "eventual"})
    assert [message["content"] for message in reply["messages"]] == ["Hello"]


async def test_both_guarantees_may_be_asked_for_together(conversation: Conversation) -> None:
    reply = await conversation.append("Hello", role="tool")
    both = {**STRONG, "Convo-Min-Seq": str(reply["seq"])}
    assert (await conversation.get("state", headers=both))["seq"] == reply["seq"]


async def test_a_reader_never_sees_an_older_state_than_before(conversation: Conversation) -> None:
    done = asyncio.Event()

    async def write() -> None:
        for number in range(200):
            await conversation.append(f"{number}", role="tool")
        done.set()

    async def read() -> None:
        version = 0
        while not done.is_set():
            answer = await conversation.get("messages")
            assert answer["version"] >= version
            version = answer["version"]
            newest = answer["messages"][-1]["version"] if answer["messages"] else 1
            assert newest == version, "every event of this conversation is a message"

    await asyncio.gather(write(), read(), read(), read())


async def test_a_page_never_claims_a_version_that_it_could_have_but_does_not_include(
    conversation: Conversation,
) -> None:
    """Who pages to the end and goes on from `version` must not miss anything."""
    done = asyncio.Event()

    async def write() -> None:
        for number in range(300):
            await conversation.append(f"{number}", role="tool")
        done.set()

    async def read(view: str, items: str) -> None:
        while not done.is_set():
            answer = await conversation.get(view, limit=1_000)
            if answer[items]:
                assert answer[items][-1]["version"] >= answer["version"]

    await asyncio.gather(
        write(), read("history", "messages"), read("events", "events"), read("history", "messages")
    )


async def test_a_consistency_nobody_knows_is_refused(conversation: Conversation) -> None:
    error = await refused(
        conversation.nats,
        "invalid_request",
        f"convo.get.{conversation.tokens}.state",
        json.dumps({}).encode(),
        {"Convo-Consistency": "perfect"},
    )
    assert "strong" in error["message"]
