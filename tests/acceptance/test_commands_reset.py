"""`reset`: a new session. What was said stays in the ledger and leaves the window."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger


async def test_the_window_and_the_totals_are_empty_after_it(conversation: Conversation) -> None:
    await conversation.append("before")
    await conversation.do("usage", prompt_tokens=1, completion_tokens=1)
    reply = await conversation.do("reset", reason="new topic")
    seq = reply["seq"]
    assert reply == {
        "ok": True,
        "tenant_id": "acme",
        "conversation_id": conversation.conversation_id,
        "version": 5,
        "seq": seq,
        "partition": reply["partition"],
        "duplicate": False,
        "events": [{"type": "SessionReset", "version": 5, "seq": seq}],
    }
    state = await conversation.state()
    assert state["recent_messages"] == []
    assert state["tokens_used"]["total"] == 0
    assert state["lifetime_tokens"]["total"] == 2
    assert state["message_count"] == 1
    assert state["title"] == "before"
    await conversation.append("after")
    assert await conversation.contents() == ["after"]


@pytest.mark.parametrize("body", [b"", b"{}", b'{"reason": null}', b' { "reason" : "why" } '])
async def test_a_reason_may_be_given(conversation: Conversation, body: bytes) -> None:
    await conversation.do("reset", body)
    assert (await conversation.events())[-1]["data"] == (
        {"reason": "why"} if b"why" in body else {}
    )


@pytest.mark.parametrize(
    ("body", "wrong"),
    [({"reason": 1}, ["reason"]), ({"why": "x"}, ["why"]), ({"reason": []}, ["reason"])],
)
async def test_rejected_with_every_wrong_field_named(
    conversation: Conversation, body: dict[str, Any], wrong: list[str]
) -> None:
    error = await conversation.refused("invalid_request", "reset", body)
    assert [each["field"] for each in error["details"]] == wrong


async def test_only_init_makes_a_conversation(ledger: Ledger) -> None:
    await ledger.conversation().refused("conversation_not_initialized", "reset")


async def test_repeated_it_does_not_reset_again(conversation: Conversation) -> None:
    first = await conversation.do("reset", command_id="k")
    await conversation.append("after")
    assert await conversation.do("reset", command_id="k") == {**first, "duplicate": True}
    assert await conversation.contents() == ["after"]


async def test_conflicting_unless_the_conversation_is_at_the_expected_version(
    conversation: Conversation,
) -> None:
    error = await conversation.refused(
        "version_conflict", "reset", {}, {"Convo-Expected-Version": "0"}
    )
    assert error["details"] == {"expected": 0, "current": 1}
    await conversation.do("reset", {}, {"Convo-Expected-Version": "1"})
