"""`update`: facts about the conversation, merged; null removes one."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger


async def test_it_merges_what_is_given_into_what_is_known(ledger: Ledger) -> None:
    conversation = await ledger.begun(
        title="T", model="m", context={"a": 1, "b": {"x": 1}}, metadata={"k": "v"}
    )
    reply = await conversation.do(
        "update", model="n", context={"b": {"y": 2}, "c": [3]}, metadata={"k": None, "l": None}
    )
    assert [event["type"] for event in reply["events"]] == ["ContextUpdated"]
    state = await conversation.state()
    assert (state["user_id"], state["title"], state["model"]) == ("ada", "T", "n")
    assert state["context"] == {"a": 1, "b": {"y": 2}, "c": [3]}
    assert state["metadata"] == {}


async def test_null_removes_a_fact(ledger: Ledger) -> None:
    conversation = await ledger.begun(title="T", model="m")
    await conversation.do("update", title=None, model=None, user_id=None)
    state = await conversation.state()
    assert (state["title"], state["model"], state["user_id"]) == (None, None, None)


async def test_the_event_says_what_was_given_and_no_more(conversation: Conversation) -> None:
    await conversation.do("update", title=None, context={"a": None})
    [_, updated] = await conversation.events()
    assert updated["type"] == "ContextUpdated"
    assert updated["data"]["title"] is None
    assert updated["data"]["context"] == {"a": None}
    assert "model" not in updated["data"]
    assert "user_id" not in updated["data"]


async def test_an_update_of_nothing_writes_nothing(conversation: Conversation) -> None:
    nothing: list[dict[str, Any]] = [{}, {"context": {}}, {"metadata": {}}]
    for body in nothing:
        reply = await conversation.do("update", body)
        assert (reply["version"], reply["events"]) == (1, [])


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"title": 1}, ["title"]),
        ({"model": []}, ["model"]),
        ({"user_id": ""}, ["user_id"]),
        ({"context": "x"}, ["context"]),
        ({"metadata": 1}, ["metadata"]),
        ({"status": "closed"}, ["status"]),
    ],
)
async def test_rejected_with_every_wrong_field_named(
    conversation: Conversation, body: dict[str, Any], wrong: list[str]
) -> None:
    error = await conversation.refused("invalid_request", "update", body)
    assert [each["field"] for each in error["details"]] == wrong


async def test_only_init_makes_a_conversation(ledger: Ledger) -> None:
    await ledger.conversation().refused("conversation_not_initialized", "update", {"title": "x"})


async def test_repeated_it_does_not_update_again(conversation: Conversation) -> None:
    first = await conversation.do("update", title="one", command_id="k")
    await conversation.do("update", title="two")
    again = await conversation.do("update", title="one", command_id="k")
    assert again == {**first, "duplicate": True}
    assert (await conversation.state())["title"] == "two"


async def test_conflicting_unless_the_conversation_is_at_the_expected_version(
    conversation: Conversation,
) -> None:
    error = await conversation.refused(
        "version_conflict", "update", {"title": "x"}, {"Convo-Expected-Version": "3"}
    )
    assert error["details"] == {"expected": 3, "current": 1}
    await conversation.do("update", {"title": "x"}, {"Convo-Expected-Version": "1"})


async def test_facts_may_grow_only_as_far_as_a_state_can_be_answered(
    conversation: Conversation,
) -> None:
    """Each update is within every limit; the state that they add up to would not be."""
    for number in range(12):
        subject = f"convo.cmd.{conversation.tokens}.update"
        body = b'{"context": {"key-%d": "%b"}}' % (number, b"x" * 800_000)
        answer = await conversation.nats.request(subject, body, timeout=30)
        if b'"ok":false' in answer.data:
            assert b"message_too_large" in answer.data
            break
    assert len((await conversation.state())["context"]) >= 1
