"""`init`: the first command of a conversation, and harmless ever after."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger

STATE_KEYS = {
    "conversation_id", "tenant_id", "user_id", "title", "status", "model", "context", "metadata",
    "recent_messages", "tokens_used", "lifetime_tokens", "message_count", "created_at",
    "last_activity", "version", "seq",
}  # fmt: skip


async def test_it_begins_the_conversation_and_answers_its_state(ledger: Ledger) -> None:
    conversation = ledger.conversation()
    reply = await conversation.init(
        user_id="ada", title="Engines", model="gpt-x", context={"lang": "en"}, metadata={"k": [1]}
    )
    state = reply.pop("state")
    seq = reply["seq"]
    assert reply == {
        "ok": True,
        "tenant_id": "acme",
        "conversation_id": conversation.conversation_id,
        "version": 1,
        "seq": seq,
        "partition": reply["partition"],
        "duplicate": False,
        "events": [{"type": "ConversationStarted", "version": 1, "seq": seq}],
    }
    assert state.keys() == STATE_KEYS
    assert state["created_at"] == state["last_activity"]
    assert state == {
        "conversation_id": conversation.conversation_id,
        "tenant_id": "acme",
        "user_id": "ada",
        "title": "Engines",
        "status": "active",
        "model": "gpt-x",
        "context": {"lang": "en"},
        "metadata": {"k": [1]},
        "recent_messages": [],
        "tokens_used": {"prompt": 0, "completion": 0, "total": 0},
        "lifetime_tokens": {"prompt": 0, "completion": 0, "total": 0},
        "message_count": 0,
        "created_at": state["created_at"],
        "last_activity": state["last_activity"],
        "version": 1,
        "seq": seq,
    }
    assert await conversation.state() == state


async def test_what_is_not_given_is_null_or_empty(ledger: Ledger) -> None:
    state = (await ledger.conversation().init())["state"]
    assert (state["title"], state["model"]) == (None, None)
    assert (state["context"], state["metadata"]) == ({}, {})


async def test_done_again_it_writes_nothing_and_answers_the_present_state(
    conversation: Conversation,
) -> None:
    await conversation.append("Hello", role="assistant")
    reply = await conversation.init(user_id="bob", title="Another")
    assert reply["events"] == []
    assert (reply["version"], reply["duplicate"]) == (2, False)
    assert reply["state"] == await conversation.state()
    assert (reply["state"]["user_id"], reply["state"]["title"]) == ("ada", None)
    assert len(await conversation.events()) == 1 + 1


async def test_repeated_it_answers_what_it_answered_first(ledger: Ledger) -> None:
    conversation = ledger.conversation()
    first = await conversation.init(command_id="begin", title="Engines")
    await conversation.append("Hello")
    await conversation.do("update", title="Looms")
    again = await conversation.init(command_id="begin", title="Engines")
    assert again == {**first, "duplicate": True}
    assert again["state"]["title"] == "Engines"


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, ["user_id"]),
        ({"user_id": ""}, ["user_id"]),
        ({"user_id": None}, ["user_id"]),
        ({"user_id": 7}, ["user_id"]),
        ({"user_id": ["ada"]}, ["user_id"]),
        ({"user_id": "ada", "title": 1}, ["title"]),
        ({"user_id": "ada", "model": {}}, ["model"]),
        ({"user_id": "ada", "context": []}, ["context"]),
        ({"user_id": "ada", "metadata": "no"}, ["metadata"]),
        ({"user_id": "ada", "colour": "red"}, ["colour"]),
        ({"user_id": "ada", "command_id": ""}, ["command_id"]),
        ({"user_id": "ada", "command_id": "x" * 129}, ["command_id"]),
        ({"user_id": 1, "title": 2, "model": 3}, ["user_id", "title", "model"]),
    ],
)
async def test_rejected_with_every_wrong_field_named(
    ledger: Ledger, body: dict[str, Any], fields: list[str]
) -> None:
    conversation = ledger.conversation()
    error = await conversation.refused("invalid_request", "init", body)
    assert [each["field"] for each in error["details"]] == fields
    assert all(each["problem"] for each in error["details"])
    await conversation.get_refused("conversation_not_initialized", "state")


async def test_conflicting_unless_the_conversation_is_at_the_expected_version(
    ledger: Ledger,
) -> None:
    conversation = ledger.conversation()
    error = await conversation.refused(
        "version_conflict", "init", {"user_id": "ada"}, {"Convo-Expected-Version": "1"}
    )
    assert error["details"] == {"expected": 1, "current": 0}
    await conversation.do("init", {"user_id": "ada"}, {"Convo-Expected-Version": "0"})
    error = await conversation.refused(
        "version_conflict", "init", {"user_id": "ada"}, {"Convo-Expected-Version": "0"}
    )
    assert error["details"] == {"expected": 0, "current": 1}


async def test_an_id_used_for_another_verb_does_not_fit(conversation: Conversation) -> None:
    await conversation.append("Hello", command_id="mine")
    await conversation.refused("invalid_state", "init", {"user_id": "ada", "command_id": "mine"})
