"""`append`: one message; and the title that the first words of a user give a conversation."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from tests.acceptance.client import Conversation, Ledger

PARTS = [
    {"type": "text", "text": "What is this?"},
    {"type": "image_url", "image_url": {"url": "https://example.com/loom.png"}},
]
CALLS = [{"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}]


async def test_it_appends_and_tells_the_message_id(conversation: Conversation) -> None:
    reply = await conversation.append("Good morning.", role="assistant")
    seq = reply["seq"]
    assert reply == {
        "ok": True,
        "tenant_id": "acme",
        "conversation_id": conversation.conversation_id,
        "version": 2,
        "seq": seq,
        "partition": reply["partition"],
        "duplicate": False,
        "events": [{"type": "MessageAppended", "version": 2, "seq": seq}],
        "message_id": reply["message_id"],
    }
    assert UUID(reply["message_id"]).version == 7
    [message] = await conversation.messages()
    assert message["message_id"] == reply["message_id"]
    assert (message["role"], message["content"]) == ("assistant", "Good morning.")


async def test_every_field_of_a_message_is_kept(conversation: Conversation) -> None:
    reply = await conversation.append(
        None,
        role="assistant",
        message_id="m-1",
        name="weatherman",
        tool_calls=CALLS,
        created_at="2020-02-29T23:59:59.5+02:00",
        metadata={"deep": {"er": [None, 1.5, "ü"]}},
    )
    assert reply["message_id"] == "m-1"
    await conversation.append("Rain", role="tool", message_id="m-2", tool_call_id="call_1")
    call, result = await conversation.messages()
    assert call == {
        "message_id": "m-1",
        "role": "assistant",
        "content": None,
        "timestamp": "2020-02-29T23:59:59.5+02:00",
        "version": 2,
        "name": "weatherman",
        "tool_calls": CALLS,
        "metadata": {"deep": {"er": [None, 1.5, "ü"]}},
    }
    assert result["tool_call_id"] == "call_1"
    assert result.keys() == {
        "message_id", "role", "content", "timestamp", "version", "tool_call_id", "metadata",
    }  # fmt: skip


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer", "tool"])
async def test_every_role_may_speak(conversation: Conversation, role: str) -> None:
    await conversation.append("I", role=role)
    assert [message["role"] for message in await conversation.messages()] == [role]


@pytest.mark.parametrize(
    "content",
    [
        "",
        " ",
        "\x00\x1f\u007f\u2028",
        "é e\u0301 漢字 العربية 👩\u200d👩\u200d👧 \U0010ffff",
        '{"looks": "like JSON"}',
        "line\r\nline",
        PARTS,
        [{"type": "text"}],
        [{"type": "no such thing", "any": {"thing": [1, 2.5, True, None]}}],
    ],
    ids=repr,
)
async def test_content_comes_back_as_it_was_sent(conversation: Conversation, content: Any) -> None:
    await conversation.append(content)
    assert await conversation.contents() == [content]


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, ["role", "content"]),
        ({"role": "user"}, ["content"]),
        ({"content": "Hello"}, ["role"]),
        ({"role": "narrator", "content": "x"}, ["role"]),
        ({"role": "User", "content": "x"}, ["role"]),
        ({"role": None, "content": "x"}, ["role"]),
        ({"role": "user", "content": None}, ["content"]),
        ({"role": "user", "content": 5}, ["content"]),
        ({"role": "user", "content": {"type": "text"}}, ["content"]),
        ({"role": "user", "content": []}, ["content"]),
        ({"role": "user", "content": ["text"]}, ["content"]),
        ({"role": "user", "content": [{"text": "no type"}]}, ["content"]),
        ({"role": "user", "content": [{"type": 1}]}, ["content"]),
        ({"role": "user", "content": "x", "message_id": ""}, ["message_id"]),
        ({"role": "user", "content": "x", "message_id": "x" * 129}, ["message_id"]),
        ({"role": "user", "content": "x", "message_id": 1}, ["message_id"]),
        ({"role": "user", "content": "x", "name": 1}, ["name"]),
        ({"role": "user", "content": None, "tool_calls": []}, ["tool_calls"]),
        ({"role": "user", "content": None, "tool_calls": ["call"]}, ["tool_calls.0"]),
        ({"role": "user", "content": None, "tool_calls": {}}, ["tool_calls"]),
        ({"role": "user", "content": "x", "tool_call_id": 3}, ["tool_call_id"]),
        ({"role": "user", "content": "x", "created_at": "yesterday"}, ["created_at"]),
        ({"role": "user", "content": "x", "created_at": 1700000000}, ["created_at"]),
        ({"role": "user", "content": "x", "created_at": "2026-01-01T00:00:00"}, ["created_at"]),
        ({"role": "user", "content": "x", "created_at": "2026-02-30T00:00:00Z"}, ["created_at"]),
        ({"role": "user", "content": "x", "metadata": [1]}, ["metadata"]),
        ({"role": "user", "content": "x", "mood": "good"}, ["mood"]),
        ({"role": "user", "content": "x", "version": 1}, ["version"]),
        ({"role": "user", "content": "x", "command_id": 1}, ["command_id"]),
    ],
)
async def test_rejected_with_every_wrong_field_named(
    conversation: Conversation, fields: dict[str, Any], wrong: list[str]
) -> None:
    error = await conversation.refused("invalid_request", "append", fields)
    assert [each["field"] for each in error["details"]] == wrong
    assert await conversation.messages() == []


async def test_ids_may_be_128_characters_of_any_kind(conversation: Conversation) -> None:
    message_id, command_id = "漢" * 128, "👩" * 128
    first = await conversation.append("Hello", message_id=message_id, command_id=command_id)
    assert first["message_id"] == message_id
    assert (await conversation.append("x", command_id=command_id))["duplicate"]


async def test_only_init_makes_a_conversation(ledger: Ledger) -> None:
    conversation = ledger.conversation()
    error = await conversation.refused(
        "conversation_not_initialized", "append", {"role": "user", "content": "Hello"}
    )
    assert "init" in error["message"]
    await conversation.init()
    await conversation.append("Hello")


async def test_a_message_id_is_used_once(conversation: Conversation) -> None:
    await conversation.append("one", message_id="m")
    error = await conversation.refused(
        "invalid_state", "append", {"role": "user", "content": "two", "message_id": "m"}
    )
    assert error["details"] == {"message_id": "m"}
    assert await conversation.contents() == ["one"]


async def test_repeated_it_writes_nothing_and_answers_the_same(conversation: Conversation) -> None:
    first = await conversation.append("Hello", command_id="k")
    await conversation.append("Hello to you", role="assistant")
    again = await conversation.append("Hello", command_id="k")
    assert again == {**first, "duplicate": True}
    assert await conversation.contents() == ["Hello", "Hello to you"]


async def test_repeated_with_other_words_the_first_ones_stand(conversation: Conversation) -> None:
    first = await conversation.append("Hello", command_id="k", message_id="m")
    again = await conversation.append("Good-bye", role="tool", command_id="k", message_id="n")
    assert again == {**first, "duplicate": True}
    assert await conversation.contents() == ["Hello"]


async def test_repeated_comes_before_every_other_check(conversation: Conversation) -> None:
    first = await conversation.append("Hello", headers={"Convo-Command-Id": "k"})
    for again in (
        await conversation.append(
            "Hello", headers={"Convo-Command-Id": "k", "Convo-Expected-Version": "1"}
        ),
        await conversation.append("H" * 300_000, command_id="k"),
        await conversation.append("Hello", command_id="k", message_id=first["message_id"]),
    ):
        assert again == {**first, "duplicate": True}


async def test_the_last_thousand_commands_are_remembered(conversation: Conversation) -> None:
    oldest = await conversation.append("the oldest", role="tool", command_id="oldest")
    second = await conversation.append("the second", role="tool", command_id="second")
    for first in range(0, 999, 333):
        for number in range(first, first + 333):
            await conversation.do("reset", command_id=f"r-{number}")
    again = await conversation.append("the second", role="tool", command_id="second")
    assert again == {**second, "duplicate": True}
    forgotten = await conversation.append("the oldest", role="tool", command_id="oldest")
    assert not forgotten["duplicate"]
    assert forgotten["version"] > oldest["version"]


async def test_conflicting_unless_the_conversation_is_at_the_expected_version(
    conversation: Conversation,
) -> None:
    for expected in ("0", "2", "9007199254740992"):
        error = await conversation.refused(
            "version_conflict",
            "append",
            {"role": "user", "content": "Hello"},
            {"Convo-Expected-Version": expected},
        )
        assert error["details"] == {"expected": int(expected), "current": 1}
    reply = await conversation.append("Hello", headers={"Convo-Expected-Version": "1"})
    assert reply["version"] == 3
    assert await conversation.contents() == ["Hello"]


async def test_an_id_used_for_another_verb_does_not_fit(conversation: Conversation) -> None:
    await conversation.do("reset", command_id="mine")
    error = await conversation.refused(
        "invalid_state", "append", {"role": "user", "content": "x", "command_id": "mine"}
    )
    assert error["details"] == {"command_id": "mine", "verb": "reset"}


# -- titles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("What is an analytical engine?", "What is an analytical engine?"),
        ("x" * 50, "x" * 50),
        ("x" * 51, "x" * 50 + "..."),
        ("  two blanks before", "two blanks before"),
        ("a" * 48 + "  b", "a" * 48 + "..."),
        ("漢" * 60, "漢" * 50 + "..."),
        (PARTS, "What is this?"),
    ],
)
async def test_the_first_user_message_gives_the_title(
    conversation: Conversation, content: Any, title: str
) -> None:
    await conversation.append("You are a help.", role="system")
    reply = await conversation.append(content)
    assert [event["type"] for event in reply["events"]] == [
        "MessageAppended",
        "ConversationTitled",
    ]
    assert [event["version"] for event in reply["events"]] == [3, 4]
    assert reply["version"] == 4
    assert (await conversation.state())["title"] == title
    titled = (await conversation.events())[-1]
    assert titled["data"] == {"title": title, "source": "auto"}


@pytest.mark.parametrize("content", ["", " \n\t", [{"type": "image_url", "image_url": {}}]])
async def test_a_message_without_text_gives_none_but_the_next_does(
    conversation: Conversation, content: Any
) -> None:
    reply = await conversation.append(content)
    assert [event["type"] for event in reply["events"]] == ["MessageAppended"]
    await conversation.append("Now then")
    assert (await conversation.state())["title"] == "Now then"


async def test_once_in_a_life_and_never_over_a_given_one(ledger: Ledger) -> None:
    given = await ledger.begun(title="Given")
    updated = await ledger.begun()
    await updated.do("update", title="Updated")
    of_itself = await ledger.begun()
    await of_itself.append("Of itself")
    await of_itself.do("reset")
    for conversation, title in ((given, "Given"), (updated, "Updated"), (of_itself, "Of itself")):
        reply = await conversation.append("Something else")
        assert [event["type"] for event in reply["events"]] == ["MessageAppended"]
        assert (await conversation.state())["title"] == title
