"""`messages`: the recent window, the last fifty since the last reset, oldest first."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger
from tests.acceptance.conftest import Deploy, connected

MESSAGE_KEYS = {"message_id", "role", "content", "timestamp", "version", "metadata"}


async def say(conversation: Conversation, first: int, last: int) -> None:
    """Appends messages that say these numbers."""
    messages = [{"role": "tool", "content": f"{number}"} for number in range(first, last + 1)]
    await conversation.do("import", messages=messages)


async def test_a_conversation_that_does_not_exist_has_none(ledger: Ledger) -> None:
    for view in ("messages", "usage", "state", "history", "events"):
        error = await ledger.conversation().get_refused("conversation_not_initialized", view)
        assert "init" in error["message"]


async def test_none_were_said_yet(conversation: Conversation) -> None:
    reply = await conversation.get("messages")
    assert reply == {"ok": True, "version": 1, "seq": reply["seq"], "messages": []}


async def test_oldest_first_each_with_its_version_and_time(conversation: Conversation) -> None:
    await conversation.append("one", role="system")
    await conversation.append("two")  # and a title
    await conversation.append("three", role="assistant")
    reply = await conversation.get("messages")
    assert reply.keys() == {"ok", "version", "seq", "messages"}
    assert (reply["version"], reply["seq"]) == (5, (await conversation.events())[-1]["seq"])
    messages = reply["messages"]
    assert [message["version"] for message in messages] == [2, 3, 5]
    assert [message["content"] for message in messages] == ["one", "two", "three"]
    assert all(message.keys() == MESSAGE_KEYS for message in messages)
    times = [event["time"] for event in await conversation.events()]
    assert [message["timestamp"] for message in messages] == [times[1], times[2], times[4]]


async def test_the_last_fifty(conversation: Conversation) -> None:
    await say(conversation, 1, 50)
    assert await conversation.contents() == [f"{number}" for number in range(1, 51)]
    await say(conversation, 51, 51)
    assert await conversation.contents() == [f"{number}" for number in range(2, 52)]
    await say(conversation, 52, 300)
    assert await conversation.contents() == [f"{number}" for number in range(251, 301)]


async def test_none_from_before_the_last_reset(conversation: Conversation) -> None:
    await say(conversation, 1, 60)
    await conversation.do("reset")
    assert await conversation.contents() == []
    await say(conversation, 61, 63)
    assert await conversation.contents() == ["61", "62", "63"]


@pytest.mark.parametrize("limit", [1, 2, 49, 50])
async def test_a_limit_takes_the_newest(conversation: Conversation, limit: int) -> None:
    await say(conversation, 1, 60)
    messages = await conversation.messages(limit=limit)
    assert [message["content"] for message in messages] == [
        f"{number}" for number in range(61 - limit, 61)
    ]


@pytest.mark.parametrize("limit", [0, -1, 51, 10**30, 1.5, "10", True, [1]])
async def test_a_limit_is_1_to_the_window_s_size(conversation: Conversation, limit: Any) -> None:
    error = await conversation.get_refused("invalid_request", "messages", {"limit": limit})
    assert [each["field"] for each in error["details"]] == ["limit"]


async def test_a_field_that_does_not_belong_here_is_named(conversation: Conversation) -> None:
    error = await conversation.get_refused("invalid_request", "messages", {"after_version": 1})
    assert [each["field"] for each in error["details"]] == ["after_version"]


async def test_the_window_s_size_is_the_operator_s(deploy: Deploy) -> None:
    deployed = deploy(window_size=3)
    nats = await connected(deployed.url)
    conversation = await Ledger(nats).begun()
    await say(conversation, 1, 5)
    assert await conversation.contents() == ["3", "4", "5"]
    await conversation.get_refused("invalid_request", "messages", {"limit": 4})
    await nats.close()


async def test_a_window_over_the_payload_limit_is_cut_at_its_oldest_end_and_says_so(
    conversation: Conversation,
) -> None:
    for first in range(0, 60, 20):
        messages = [
            {"role": "tool", "content": f"{number:02}" + "x" * 249_998}
            for number in range(first, first + 20)
        ]
        await conversation.do("turn", messages=messages)
    reply = await conversation.get("messages")
    assert reply["truncated"] is True
    numbers = [int(message["content"][:2]) for message in reply["messages"]]
    assert numbers == list(range(60 - len(numbers), 60))
    assert 30 <= len(numbers) < 50
    few = await conversation.get("messages", limit=20)
    assert "truncated" not in few
    assert len(few["messages"]) == 20

    state = await conversation.state()
    assert state["truncated"] is True
    assert state["message_count"] == 60
    numbers = [int(message["content"][:2]) for message in state["recent_messages"]]
    assert numbers == list(range(60 - len(numbers), 60))
    assert 30 <= len(numbers) < 50
    assert (await conversation.init())["state"] == state


async def test_what_reads_like_json_or_html_is_text(conversation: Conversation) -> None:
    for content in ('{"a": 1}', "<b>&amp;</b>", "\\u0041", "\u2028\u2029", "\ufeff"):
        await conversation.append(content, role="tool")
        assert (await conversation.messages(limit=1))[0]["content"] == content
