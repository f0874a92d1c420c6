"""`import`: earlier messages, behind those of the session or in their place; all or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger


def said(*contents: str) -> list[dict[str, Any]]:
    """Messages with these contents."""
    return [{"role": "assistant", "content": content} for content in contents]


async def test_it_appends_behind_what_is_there(conversation: Conversation) -> None:
    await conversation.append("one", role="assistant")
    reply = await conversation.do("import", messages=said("two", "three"), mode="append")
    assert [event["type"] for event in reply["events"]] == ["MessageAppended"] * 2
    messages = await conversation.messages()
    assert [message["content"] for message in messages] == ["one", "two", "three"]
    assert [message["message_id"] for message in messages[1:]] == reply["message_ids"]


async def test_append_is_what_it_does_when_no_mode_is_given(conversation: Conversation) -> None:
    await conversation.append("one", role="assistant")
    await conversation.do("import", messages=said("two"))
    assert await conversation.contents() == ["one", "two"]


async def test_replace_resets_first(conversation: Conversation) -> None:
    await conversation.append("one", role="assistant")
    await conversation.do("usage", prompt_tokens=5, completion_tokens=5)
    reply = await conversation.do("import", messages=said("two"), mode="replace")
    assert [event["type"] for event in reply["events"]] == ["SessionReset", "MessageAppended"]
    assert await conversation.contents() == ["two"]
    assert (await conversation.usage())[0]["total"] == 0
    assert [message["content"] for message in await conversation.history()] == ["two"]


async def test_nothing_to_import_writes_nothing_but_the_reset(conversation: Conversation) -> None:
    reply = await conversation.do("import", messages=[])
    assert (reply["version"], reply["events"], reply["message_ids"]) == (1, [], [])
    await conversation.append("one", role="assistant")
    reply = await conversation.do("import", messages=[], mode="replace")
    assert [event["type"] for event in reply["events"]] == ["SessionReset"]
    assert await conversation.contents() == []


async def test_messages_keep_their_own_time(conversation: Conversation) -> None:
    await conversation.do(
        "import", messages=[{**said("old")[0], "created_at": "1999-12-31T23:59:59Z"}]
    )
    [message] = await conversation.messages()
    assert message["timestamp"] == "1999-12-31T23:59:59Z"
    assert (await conversation.state())["last_activity"] > "2020"


async def test_five_hundred_go_in_together_and_the_first_user_gives_the_title(
    conversation: Conversation,
) -> None:
    messages = [
        {"role": "user" if number % 2 else "assistant", "content": f"line {number}"}
        for number in range(500)
    ]
    reply = await conversation.do("import", messages=messages)
    assert len(reply["message_ids"]) == 500
    assert reply["version"] == 1 + 500 + 1
    assert (await conversation.state())["title"] == "line 1"
    assert [each["content"] for each in await conversation.history()] == [
        f"line {number}" for number in range(500)
    ]


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, ["messages"]),
        ({"messages": said("x") * 501}, ["messages"]),
        ({"messages": "x"}, ["messages"]),
        ({"messages": said("x"), "mode": "prepend"}, ["mode"]),
        ({"messages": said("x"), "mode": 1}, ["mode"]),
        ({"messages": [*said("x"), {"role": "user", "content": 1}]}, ["messages.1.content"]),
        ({"messages": said("x"), "usage": {}}, ["usage"]),
    ],
)
async def test_rejected_with_every_wrong_field_named(
    conversation: Conversation, body: dict[str, Any], wrong: list[str]
) -> None:
    error = await conversation.refused("invalid_request", "import", body)
    assert [each["field"] for each in error["details"]] == wrong
    assert (await conversation.state())["version"] == 1


async def test_one_refused_message_refuses_them_all_and_the_reset(
    conversation: Conversation,
) -> None:
    await conversation.append("stays", role="assistant", message_id="taken")
    messages = [*said("x"), {**said("y")[0], "message_id": "taken"}]
    await conversation.refused("invalid_state", "import", {"messages": messages, "mode": "replace"})
    assert await conversation.contents() == ["stays"]


async def test_only_init_makes_a_conversation(ledger: Ledger) -> None:
    await ledger.conversation().refused(
        "conversation_not_initialized", "import", {"messages": said("x")}
    )


async def test_repeated_it_answers_the_same_ids(conversation: Conversation) -> None:
    body = {"messages": said("one", "two"), "mode": "replace", "command_id": "k"}
    first = await conversation.do("import", body)
    await conversation.append("three", role="assistant")
    assert await conversation.do("import", body) == {**first, "duplicate": True}
    assert await conversation.contents() == ["one", "two", "three"]


async def test_conflicting_unless_the_conversation_is_at_the_expected_version(
    conversation: Conversation,
) -> None:
    error = await conversation.refused(
        "version_conflict", "import", {"messages": said("x")}, {"Convo-Expected-Version": "2"}
    )
    assert error["details"] == {"expected": 2, "current": 1}
    await conversation.do("import", {"messages": said("x")}, {"Convo-Expected-Version": "1"})
