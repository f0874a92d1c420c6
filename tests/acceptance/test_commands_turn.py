"""`turn`: up to a hundred messages and the usage they caused, all or nothing."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger

USER = {"role": "user", "content": "What is the weather?"}
ASSISTANT = {"role": "assistant", "content": "Rain."}
USE = {"prompt_tokens": 9, "completion_tokens": 2}


async def test_it_appends_messages_and_usage_in_one_go(conversation: Conversation) -> None:
    reply = await conversation.do("turn", messages=[USER, ASSISTANT], usage=USE)
    assert [(event["type"], event["version"]) for event in reply["events"]] == [
        ("MessageAppended", 2),
        ("ConversationTitled", 3),
        ("MessageAppended", 4),
        ("UsageRecorded", 5),
    ]
    seqs = [event["seq"] for event in reply["events"]]
    assert seqs == sorted(set(seqs))
    assert (reply["version"], reply["seq"]) == (5, seqs[-1])
    messages = await conversation.messages()
    assert [message["message_id"] for message in messages] == reply["message_ids"]
    assert len(set(reply["message_ids"])) == 2
    assert [message["content"] for message in messages] == ["What is the weather?", "Rain."]
    assert reply["usage"] == {"prompt": 9, "completion": 2, "total": 11}


async def test_usage_may_be_left_out(conversation: Conversation) -> None:
    reply = await conversation.do("turn", messages=[ASSISTANT])
    assert [event["type"] for event in reply["events"]] == ["MessageAppended"]
    assert "usage" not in reply


async def test_all_its_events_have_one_time_and_one_command(conversation: Conversation) -> None:
    await conversation.do(
        "turn", {"messages": [USER, ASSISTANT], "usage": USE}, {"Convo-Actor": "user:ada"}
    )
    events = (await conversation.events())[1:]
    assert len({event["time"] for event in events}) == 1
    assert len({event["command_id"] for event in events}) == 1
    assert {event["actor"] for event in events} == {"user:ada"}


async def test_a_hundred_messages_go_in_together(conversation: Conversation) -> None:
    messages = [{"role": "assistant", "content": f"line {number}"} for number in range(100)]
    reply = await conversation.do("turn", messages=messages)
    assert reply["version"] == 101
    assert await conversation.contents() == [f"line {number}" for number in range(50, 100)]


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({}, ["messages"]),
        ({"messages": []}, ["messages"]),
        ({"messages": {}}, ["messages"]),
        ({"messages": None}, ["messages"]),
        ({"messages": [ASSISTANT] * 101}, ["messages"]),
        ({"messages": ["Rain."]}, ["messages.0"]),
        ({"messages": [USER, {"role": "user"}]}, ["messages.1.content"]),
        ({"messages": [USER, {"role": "x", "content": "y"}]}, ["messages.1.role"]),
        ({"messages": [{**USER, "message_id": "m"}, {**USER, "message_id": "m"}]}, ["messages"]),
        ({"messages": [USER], "usage": {"prompt_tokens": 1}}, ["usage.completion_tokens"]),
        ({"messages": [USER], "usage": []}, ["usage"]),
        ({"messages": [USER], "usage": USE, "mode": "append"}, ["mode"]),
    ],
)
async def test_rejected_with_every_wrong_field_named(
    conversation: Conversation, body: dict[str, Any], wrong: list[str]
) -> None:
    error = await conversation.refused("invalid_request", "turn", body)
    assert [each["field"] for each in error["details"]] == wrong
    assert (await conversation.state())["version"] == 1


async def test_one_refused_message_refuses_them_all(conversation: Conversation) -> None:
    await conversation.append("here already", role="tool", message_id="taken")
    before = await conversation.state()
    taken = {"messages": [USER, {**ASSISTANT, "message_id": "taken"}], "usage": USE}
    await conversation.refused("invalid_state", "turn", taken)
    large = {"messages": [USER, {"role": "assistant", "content": "x" * 262_145}], "usage": USE}
    error = await conversation.refused("message_too_large", "turn", large)
    assert error["details"] == {"index": 1, "size_bytes": 262_145, "limit_bytes": 262_144}
    assert await conversation.state() == before


async def test_only_init_makes_a_conversation(ledger: Ledger) -> None:
    await ledger.conversation().refused(
        "conversation_not_initialized", "turn", {"messages": [USER]}
    )


async def test_repeated_it_answers_the_same_ids_and_totals(conversation: Conversation) -> None:
    body = {"messages": [USER, ASSISTANT], "usage": USE, "command_id": "k"}
    first = await conversation.do("turn", body)
    await conversation.do("turn", {"messages": [ASSISTANT], "usage": USE})
    again = await conversation.do("turn", body)
    assert again == {**first, "duplicate": True}
    assert len(await conversation.messages()) == 3


async def test_one_nearly_as_large_as_a_request_may_be_is_stored_and_repeats(
    conversation: Conversation,
) -> None:
    messages = [
        {"role": "assistant", "content": f"{number:02}" + "x" * 249_998} for number in range(30)
    ]
    first = await conversation.do("turn", messages=messages, command_id="large")
    assert first["version"] == 31
    again = await conversation.do("turn", messages=messages, command_id="large")
    assert again == {**first, "duplicate": True}


async def test_conflicting_unless_the_conversation_is_at_the_expected_version(
    conversation: Conversation,
) -> None:
    error = await conversation.refused(
        "version_conflict", "turn", {"messages": [USER]}, {"Convo-Expected-Version": "2"}
    )
    assert error["details"] == {"expected": 2, "current": 1}
    await conversation.do("turn", {"messages": [USER]}, {"Convo-Expected-Version": "1"})
