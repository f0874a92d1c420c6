"""`usage`: the tokens of one model call, and the totals they add up to."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger


async def test_it_records_and_answers_the_totals(conversation: Conversation) -> None:
    reply = await conversation.do("usage", prompt_tokens=100, completion_tokens=20)
    seq = reply["seq"]
    assert reply == {
        "ok": True,
        "tenant_id": "acme",
        "conversation_id": conversation.conversation_id,
        "version": 2,
        "seq": seq,
        "partition": reply["partition"],
        "duplicate": False,
        "events": [{"type": "UsageRecorded", "version": 2, "seq": seq}],
        "usage": {"prompt": 100, "completion": 20, "total": 120},
        "lifetime": {"prompt": 100, "completion": 20, "total": 120},
    }
    reply = await conversation.do("usage", prompt_tokens=1, completion_tokens=0)
    assert reply["usage"] == {"prompt": 101, "completion": 20, "total": 121}


async def test_every_field_is_kept(conversation: Conversation) -> None:
    use = {
        "prompt_tokens": 1_000,
        "completion_tokens": 300,
        "cached_tokens": 600,
        "cache_write_tokens": 400,
        "reasoning_tokens": 300,
        "model": "gpt-x",
        "provider": "openai",
        "message_id": "m-1",
        "cost_usd": "0.000000001",
        "metadata": {"region": "eu"},
    }
    await conversation.do("usage", use)
    assert (await conversation.events())[-1]["data"] == use


async def test_a_reset_empties_the_totals_but_not_those_of_the_whole_life(
    conversation: Conversation,
) -> None:
    await conversation.do("usage", prompt_tokens=10, completion_tokens=5)
    await conversation.do("reset")
    assert await conversation.usage() == (
        {"prompt": 0, "completion": 0, "total": 0},
        {"prompt": 10, "completion": 5, "total": 15},
    )
    reply = await conversation.do("usage", prompt_tokens=3, completion_tokens=0)
    assert reply["usage"] == {"prompt": 3, "completion": 0, "total": 3}
    assert reply["lifetime"] == {"prompt": 13, "completion": 5, "total": 18}


async def test_totals_beyond_what_a_double_holds_are_exact(conversation: Conversation) -> None:
    for _ in range(3):
        await conversation.do("usage", prompt_tokens=2**53, completion_tokens=2**53)
    usage, _ = await conversation.usage()
    assert usage == {"prompt": 3 * 2**53, "completion": 3 * 2**53, "total": 6 * 2**53}


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({}, ["prompt_tokens", "completion_tokens"]),
        ({"prompt_tokens": 1}, ["completion_tokens"]),
        ({"prompt_tokens": -1, "completion_tokens": 0}, ["prompt_tokens"]),
        ({"prompt_tokens": "1", "completion_tokens": 0}, ["prompt_tokens"]),
        ({"prompt_tokens": 1.5, "completion_tokens": 0}, ["prompt_tokens"]),
        ({"prompt_tokens": True, "completion_tokens": 0}, ["prompt_tokens"]),
        ({"prompt_tokens": None, "completion_tokens": 0}, ["prompt_tokens"]),
        ({"prompt_tokens": 2**53 + 1, "completion_tokens": 0}, ["prompt_tokens"]),
        ({"prompt_tokens": 10**40, "completion_tokens": 0}, ["prompt_tokens"]),
        ({"prompt_tokens": 5, "completion_tokens": 5, "cached_tokens": 6}, ["cached_tokens"]),
        (
            {
                "prompt_tokens": 5,
                "completion_tokens": 5,
                "cached_tokens": 3,
                "cache_write_tokens": 3,
            },
            ["cached_tokens"],
        ),
        ({"prompt_tokens": 5, "completion_tokens": 5, "reasoning_tokens": 6}, ["reasoning_tokens"]),
        ({"prompt_tokens": 0, "completion_tokens": 0, "cost_usd": 0.1}, ["cost_usd"]),
        ({"prompt_tokens": 0, "completion_tokens": 0, "cost_usd": "-1"}, ["cost_usd"]),
        ({"prompt_tokens": 0, "completion_tokens": 0, "cost_usd": "NaN"}, ["cost_usd"]),
        ({"prompt_tokens": 0, "completion_tokens": 0, "cost_usd": "1e3"}, ["cost_usd"]),
        ({"prompt_tokens": 0, "completion_tokens": 0, "cost_usd": "0.0000000001"}, ["cost_usd"]),
        ({"prompt_tokens": 0, "completion_tokens": 0, "message_id": ""}, ["message_id"]),
        ({"prompt_tokens": 0, "completion_tokens": 0, "tokens": 1}, ["tokens"]),
    ],
)
async def test_rejected_with_every_wrong_field_named(
    conversation: Conversation, fields: dict[str, Any], wrong: list[str]
) -> None:
    error = await conversation.refused("invalid_request", "usage", fields)
    assert [each["field"] for each in error["details"]] == wrong
    assert (await conversation.state())["version"] == 1


async def test_only_init_makes_a_conversation(ledger: Ledger) -> None:
    await ledger.conversation().refused(
        "conversation_not_initialized", "usage", {"prompt_tokens": 1, "completion_tokens": 1}
    )


async def test_repeated_it_answers_the_totals_of_then(conversation: Conversation) -> None:
    await conversation.do("usage", prompt_tokens=1, completion_tokens=1)
    first = await conversation.do("usage", prompt_tokens=2, completion_tokens=2, command_id="k")
    await conversation.do("usage", prompt_tokens=4, completion_tokens=4)
    await conversation.do("reset")
    again = await conversation.do("usage", prompt_tokens=2, completion_tokens=2, command_id="k")
    assert again == {**first, "duplicate": True}
    assert again["usage"] == {"prompt": 3, "completion": 3, "total": 6}
    assert (await conversation.usage())[1] == {"prompt": 7, "completion": 7, "total": 14}


async def test_conflicting_unless_the_conversation_is_at_the_expected_version(
    conversation: Conversation,
) -> None:
    use = {"prompt_tokens": 1, "completion_tokens": 1}
    error = await conversation.refused(
        "version_conflict", "usage", use, {"Convo-Expected-Version": "7"}
    )
    assert error["details"] == {"expected": 7, "current": 1}
    await conversation.do("usage", use, {"Convo-Expected-Version": "1"})
