"""`close`, `reopen`, `erase`: how a conversation ends, for a while or for good."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger

WRITES: dict[str, dict[str, Any]] = {
    "append": {"role": "user", "content": "x"},
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    "turn": {"messages": [{"role": "user", "content": "x"}]},
    "reset": {},
    "update": {"title": "x"},
    "import": {"messages": [{"role": "user", "content": "x"}]},
    "reply.start": {},
    "reply.chunk": {"message_id": "m-1", "index": 0, "texts": ["x"]},
    "reply.finish": {"message_id": "m-1"},
    "reply.abort": {"message_id": "m-1"},
    "edit": {"message_id": "m-1", "content": "x"},
    "redact": {"message_id": "m-1"},
}
ENDINGS = ["close", "reopen", "erase"]


def types(reply: dict[str, Any]) -> list[str]:
    return [event["type"] for event in reply["events"]]


@pytest.mark.parametrize("status", ["closed", "deleted"])
async def test_a_closed_conversation_takes_nothing_until_it_is_reopened(
    conversation: Conversation, status: str
) -> None:
    await conversation.append("hello", message_id="m-1")
    assert types(await conversation.do("close", reason=status)) == ["ConversationClosed"]
    assert (await conversation.do("close", reason=status))["events"] == []

    for verb, body in WRITES.items():
        error = await conversation.refused("conversation_closed", verb, body)
        assert error["details"]["status"] == status
    state = (await conversation.init())["state"]
    assert state["status"] == (await conversation.state())["status"] == status
    assert await conversation.contents() == ([] if status == "deleted" else ["hello"])
    history = [message["content"] for message in await conversation.history()]
    assert history == ([] if status == "deleted" else ["hello"])

    assert types(await conversation.do("reopen")) == ["ConversationReopened"]
    assert (await conversation.do("reopen", reason="again"))["events"] == []
    await conversation.append("back")
    assert await conversation.contents() == ["hello", "back"]


async def test_an_inactive_conversation_reopens_by_itself_with_an_empty_window(
    conversation: Conversation,
) -> None:
    await conversation.append("before")
    await conversation.do("usage", prompt_tokens=1, completion_tokens=1)
    await conversation.do("close", reason="inactive")
    assert (await conversation.state())["status"] == "inactive"

    reply = await conversation.append("after")

    assert types(reply) == ["ConversationReopened", "SessionReset", "MessageAppended"]
    state = await conversation.state()
    assert (state["status"], state["tokens_used"]["total"]) == ("active", 0)
    assert await conversation.contents() == ["after"]
    history = await conversation.history(include_reset=True)
    assert [message["content"] for message in history] == ["before", "after"]


async def test_an_erased_conversation_answers_empty_with_its_status(
    conversation: Conversation,
) -> None:
    await conversation.append("secret", message_id="m-1")
    await conversation.do("update", context={"home": "secret"}, model="m")
    await conversation.do("usage", prompt_tokens=2, completion_tokens=3)

    reply = await conversation.do("erase", reason="asked for", legal_basis="GDPR Art. 17")

    assert types(reply) == ["ConversationErased"]
    assert reply["shredded"] is False
    for view in ("messages", "history"):
        answer = await conversation.get(view)
        assert (answer["messages"], answer["status"]) == ([], "erased")
    usage = await conversation.get("usage")
    assert (usage["status"], usage["lifetime"]["total"]) == ("erased", 5)
    for moment in ({}, {"at_version": 2}, {"at": "2100-01-01T00:00:00Z"}):
        state = await conversation.state(**moment)
        assert state["status"] == "erased"
        assert (state["recent_messages"], state["context"]) == ([], {})
        assert [state[name] for name in ("user_id", "title", "model")] == [None, None, None]
    assert (await conversation.events())[1]["data"]["content"] == "secret"


async def test_an_erased_conversation_takes_nothing_ever_again(
    conversation: Conversation,
) -> None:
    first = await conversation.do("erase", command_id="k-1")

    for verb, body in {
        **WRITES,
        **{verb: {} for verb in ENDINGS},
        "init": {"user_id": "b"},
    }.items():
        await conversation.refused("conversation_erased", verb, body)
    again = await conversation.do("erase", command_id="k-1")
    assert again == {**first, "duplicate": True}
    assert again["shredded"] is False


async def test_a_repeated_init_tells_nothing_of_what_was_erased(ledger: Ledger) -> None:
    conversation = ledger.conversation()
    await conversation.init(title="secret", command_id="k-1")
    await conversation.do("erase")

    again = await conversation.init(title="secret", command_id="k-1")

    assert again["duplicate"] is True
    assert "secret" not in str(again)


@pytest.mark.parametrize("verb", ENDINGS)
async def test_rejected_repeated_conflicting(
    ledger: Ledger, conversation: Conversation, verb: str
) -> None:
    await ledger.conversation().refused("conversation_not_initialized", verb)
    await conversation.refused("invalid_request", verb, why="x")
    await conversation.refused("version_conflict", verb, {}, {"Convo-Expected-Version": "7"})
    if verb == "reopen":
        await conversation.do("close")
    first = await conversation.do(verb, command_id="k-1")
    assert await conversation.do(verb, command_id="k-1") == {**first, "duplicate": True}
    await conversation.refused("invalid_state", "reset", command_id="k-1")


async def test_closed_by_many_at_once_it_is_closed_once(conversation: Conversation) -> None:
    replies = await asyncio.gather(
        *[conversation.do("close", reason="inactive") for _ in range(20)]
    )

    assert sum(len(reply["events"]) for reply in replies) == 1
    assert len(await conversation.events()) == 2
