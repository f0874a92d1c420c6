"""`edit` and `redact`: what was said, in other words or in none; the record keeps it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger

BODIES: dict[str, dict[str, Any]] = {"edit": {"content": "new"}, "redact": {}}

either = pytest.mark.parametrize("verb", BODIES)


async def many(conversation: Conversation, count: int) -> None:
    for _ in range(count // 500):
        said = [{"role": "assistant", "content": str(number)} for number in range(500)]
        await conversation.do("import", messages=said)


async def test_an_edited_message_shows_its_new_words_everywhere(
    conversation: Conversation,
) -> None:
    message_id = (await conversation.append("Helo"))["message_id"]
    await conversation.append("more", "assistant")

    reply = await conversation.do("edit", message_id=message_id, content="Hello")

    assert [event["type"] for event in reply["events"]] == ["MessageEdited"]
    for shown in (
        (await conversation.messages())[0],
        (await conversation.history())[0],
        (await conversation.state())["recent_messages"][0],
    ):
        assert (shown["content"], shown["edited"], shown["version"]) == ("Hello", True, 2)
    state = await conversation.state()
    assert (state["title"], state["message_count"]) == ("Helo", 2)
    then = await conversation.state(at_version=4)
    assert then["recent_messages"][0]["content"] == "Helo"
    assert (await conversation.events())[1]["data"]["content"] == "Helo"


async def test_a_redacted_message_is_hidden_everywhere_but_in_the_record(
    conversation: Conversation,
) -> None:
    message_id = (await conversation.append("my card is 1234", metadata={"raw": "1234"}))[
        "message_id"
    ]
    await conversation.append("thanks", "assistant")

    reply = await conversation.do("redact", message_id=message_id, reason="a card number")

    assert [event["type"] for event in reply["events"]] == ["MessageRedacted"]
    then = await conversation.state(at_version=3)
    when = await conversation.state(at="2100-01-01T00:00:00Z")
    for shown in (
        (await conversation.messages())[0],
        (await conversation.history())[0],
        (await conversation.history(limit=1))[0],
        (await conversation.get("history", before_version=3))["messages"][0],
        (await conversation.state())["recent_messages"][0],
        then["recent_messages"][0],
        when["recent_messages"][0],
    ):
        assert (shown["content"], shown["redacted"], shown["metadata"]) == (None, True, {})
        assert shown["message_id"] == message_id
    assert (await conversation.state())["title"] is then["title"] is when["title"] is None
    assert (await conversation.events())[1]["data"]["content"] == "my card is 1234"
    again = await conversation.do("redact", message_id=message_id)
    assert again["events"] == []
    await conversation.refused("invalid_state", "edit", message_id=message_id, content="x")


async def test_a_message_of_long_ago_is_changed_as_well(conversation: Conversation) -> None:
    await conversation.append("first", message_id="m-1")
    await conversation.append("second", message_id="m-2")
    await many(conversation, 1_500)

    await conversation.do("edit", message_id="m-1", content="First!")
    await conversation.do("redact", message_id="m-2")
    assert (await conversation.do("redact", message_id="m-2"))["events"] == []
    await conversation.refused("invalid_state", "edit", message_id="m-2", content="x")
    await conversation.refused("invalid_state", "reply.finish", message_id="m-1")
    await conversation.refused("message_not_found", "redact", message_id="m-3")

    page = (await conversation.get("history", limit=2))["messages"]
    assert [(m["content"], m.get("edited"), m.get("redacted")) for m in page] == [
        ("First!", True, None),
        (None, None, True),
    ]


@either
async def test_rejected(ledger: Ledger, conversation: Conversation, verb: str) -> None:
    body = BODIES[verb]
    error = await conversation.refused("message_not_found", verb, body, message_id="nobody")
    assert error["details"] == {"message_id": "nobody"}
    await conversation.refused("invalid_request", verb, body)
    await conversation.refused("invalid_request", verb, body, message_id=3)
    await ledger.conversation().refused(
        "conversation_not_initialized", verb, body, message_id="nobody"
    )


async def test_content_is_limited(conversation: Conversation) -> None:
    message_id = (await conversation.append("x"))["message_id"]

    error = await conversation.refused(
        "message_too_large", "edit", message_id=message_id, content="x" * 262_145
    )

    assert error["details"]["size_bytes"] == 262_145
    await conversation.refused("invalid_request", "edit", message_id=message_id, content=None)


@either
async def test_repeated_it_is_written_once(conversation: Conversation, verb: str) -> None:
    message_id = (await conversation.append("x"))["message_id"]
    body = {**BODIES[verb], "message_id": message_id, "command_id": "k-1"}
    first = await conversation.do(verb, body)

    assert await conversation.do(verb, body) == {**first, "duplicate": True}
    await conversation.refused("invalid_state", "reset", command_id="k-1")


@either
async def test_conflicting(conversation: Conversation, verb: str) -> None:
    message_id = (await conversation.append("x"))["message_id"]

    error = await conversation.refused(
        "version_conflict",
        verb,
        {**BODIES[verb], "message_id": message_id},
        {"Convo-Expected-Version": "1"},
    )

    assert error["details"] == {"expected": 1, "current": 3}
