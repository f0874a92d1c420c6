"""`usage` and `state`: the totals and what is known, now or at an earlier version or time."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.acceptance.client import Conversation
from tests.acceptance.test_commands_init import STATE_KEYS


async def lived(conversation: Conversation) -> list[dict[str, Any]]:
    """Lets a conversation live through everything; returns its state at each version."""
    states = [await conversation.state()]
    for verb, body in (
        ("append", {"role": "system", "content": "Be brief."}),
        ("update", {"title": "Given", "model": "gpt-x", "context": {"a": 1, "b": 2}}),
        ("append", {"role": "user", "content": "Hello"}),
        ("usage", {"prompt_tokens": 10, "completion_tokens": 3}),
        ("update", {"title": None, "user_id": "bob", "context": {"a": None}}),
        ("reset", {"reason": "again"}),
        ("append", {"role": "user", "content": "Once more"}),
        ("usage", {"prompt_tokens": 1, "completion_tokens": 1}),
    ):
        await conversation.do(verb, body)
        states.append(await conversation.state())
    return states


async def test_no_usage_is_zero(conversation: Conversation) -> None:
    nothing = {"prompt": 0, "completion": 0, "total": 0}
    reply = await conversation.get("usage")
    seq = reply["seq"]
    assert reply == {"ok": True, "version": 1, "seq": seq, "usage": nothing, "lifetime": nothing}


async def test_the_state_holds_the_window_the_totals_and_what_is_known(
    conversation: Conversation,
) -> None:
    states = await lived(conversation)
    state = states[-1]
    events = await conversation.events()
    assert state.keys() == STATE_KEYS
    assert state["recent_messages"] == await conversation.messages()
    usage, lifetime = await conversation.usage()
    assert (state["tokens_used"], state["lifetime_tokens"]) == (usage, lifetime)
    assert (usage["total"], lifetime["total"]) == (2, 15)
    assert state["message_count"] == 3
    assert (state["user_id"], state["title"], state["model"]) == ("bob", None, "gpt-x")
    assert state["context"] == {"b": 2}
    assert state["status"] == "active"
    assert state["created_at"] == events[0]["time"]
    assert state["last_activity"] == events[-1]["time"]
    assert (state["version"], state["seq"]) == (9, events[-1]["seq"])


async def test_the_state_at_each_earlier_version_is_what_it_was(
    conversation: Conversation,
) -> None:
    states = await lived(conversation)
    assert [state["version"] for state in states] == list(range(1, 10))
    for state in states:
        reply = await conversation.get("state", at_version=state["version"])
        assert reply["state"] == state
        assert (reply["version"], reply["seq"]) == (state["version"], state["seq"])


async def test_the_state_at_an_earlier_time_is_what_it_was(conversation: Conversation) -> None:
    states = await lived(conversation)
    times = [datetime.fromisoformat(event["time"]) for event in await conversation.events()]
    for state, time, next_time in zip(states, times, [*times[1:], None], strict=True):
        assert await conversation.state(at=time.isoformat()) == state
        moment = timedelta(microseconds=1)
        if next_time is None or next_time - time > moment:
            assert await conversation.state(at=(time + moment).isoformat()) == state
    assert await conversation.state(at="2999-12-31T23:59:59.999999+14:00") == states[-1]
    written = times[3].isoformat().replace("+00:00", "Z")
    assert await conversation.state(at=written) == states[3]


async def test_before_its_beginning_it_was_not_there(conversation: Conversation) -> None:
    for at in ("1970-01-01T00:00:00Z", "0001-01-01T00:00:00Z"):
        await conversation.get_refused("conversation_not_initialized", "state", {"at": at})


@pytest.mark.parametrize(
    ("body", "wrong"),
    [
        ({"at_version": 0}, ["at_version"]),
        ({"at_version": -1}, ["at_version"]),
        ({"at_version": 2}, ["at_version"]),
        ({"at_version": 10**30}, ["at_version"]),
        ({"at_version": "1"}, ["at_version"]),
        ({"at_version": 1.0}, ["at_version"]),
        ({"at_version": True}, ["at_version"]),
        ({"at": "now"}, ["at"]),
        ({"at": 1700000000}, ["at"]),
        ({"at": "1700000000"}, ["at"]),
        ({"at": "2026-01-01"}, ["at"]),
        ({"at": "2026-01-01T00:00:00"}, ["at"]),
        ({"at": "2026-13-01T00:00:00Z"}, ["at"]),
        ({"at": []}, ["at"]),
        ({"version": 1}, ["version"]),
    ],
)
async def test_a_moment_that_cannot_be_is_refused(
    conversation: Conversation, body: dict[str, Any], wrong: list[str]
) -> None:
    error = await conversation.get_refused("invalid_request", "state", body)
    assert [each["field"] for each in error["details"]] == wrong


async def test_a_version_and_a_time_together_are_refused(conversation: Conversation) -> None:
    body = {"at_version": 1, "at": "2999-01-01T00:00:00Z"}
    await conversation.get_refused("invalid_request", "state", body)


async def test_usage_takes_no_fields(conversation: Conversation) -> None:
    await conversation.get_refused("invalid_request", "usage", {"limit": 1})
