"""`reply.start`, `reply.chunk`, `reply.finish`, `reply.abort`: an answer while it is being made."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger


async def begun(conversation: Conversation, *texts: str, **fields: Any) -> str:
    """Starts a reply and says these chunks; returns its message id."""
    message_id: str = (await conversation.do("reply.start", **fields))["message_id"]
    for index, text in enumerate(texts):
        await conversation.do("reply.chunk", message_id=message_id, index=index, texts=[text])
    return message_id


async def test_a_partial_answer_is_in_the_window_while_it_grows(
    conversation: Conversation,
) -> None:
    await conversation.append("Tell me")
    message_id = await begun(conversation, "Once", model="gpt-4o", metadata={"trace": 1})
    await conversation.append("meanwhile")
    await conversation.do("reply.chunk", message_id=message_id, index=1, texts=[" upon", " a"])

    _, reply, other = await conversation.messages()
    assert other["content"] == "meanwhile"
    assert reply.keys() == {
        *("message_id", "role", "content", "timestamp", "version", "metadata", "streaming")
    }
    assert (reply["content"], reply["role"], reply["streaming"]) == (
        "Once upon a",
        "assistant",
        True,
    )
    assert (await conversation.state())["recent_messages"][1] == reply

    finished = await conversation.do(
        "reply.finish",
        message_id=message_id,
        finish_reason="stop",
        usage={"prompt_tokens": 7, "completion_tokens": 3},
    )
    assert [event["type"] for event in finished["events"]] == ["ReplyCompleted", "UsageRecorded"]
    assert finished["usage"] == {"prompt": 7, "completion": 3, "total": 10}
    del reply["streaming"]
    reply["finish_reason"] = "stop"
    assert (await conversation.messages())[1] == reply
    assert (await conversation.history())[1] == reply
    events = [event["data"] for event in await conversation.events()]
    assert events[-2] == {
        "message_id": message_id,
        "finish_reason": "stop",
        "chars": 11,
        "sha256": hashlib.sha256(b"Once upon a").hexdigest(),
    }
    assert events[-1]["message_id"] == message_id


async def test_a_stop_keeps_what_was_said(conversation: Conversation) -> None:
    message_id = await begun(conversation, "Half a")

    reply = await conversation.do("reply.abort", message_id=message_id, reason="user")

    assert [event["type"] for event in reply["events"]] == ["ReplyAborted"]
    (message,) = await conversation.messages()
    assert (message["content"], "streaming" in message) == ("Half a", False)
    assert message["aborted"] == "user"


async def test_a_thousand_chunks_are_as_many_events_as_commands(
    conversation: Conversation,
) -> None:
    message_id = await begun(conversation)
    for first in range(0, 1_000, 5):
        texts = [f"{number} " for number in range(first, first + 5)]
        await conversation.do("reply.chunk", message_id=message_id, index=first, texts=texts)
    finished = await conversation.do("reply.finish", message_id=message_id)

    assert finished["version"] == 1 + 1 + 200 + 1
    (message,) = await conversation.messages()
    assert message["content"] == "".join(f"{number} " for number in range(1_000))


async def test_what_is_sent_again_is_written_once(conversation: Conversation) -> None:
    message_id = await begun(conversation, "a", "b")

    again = await conversation.do("reply.chunk", message_id=message_id, index=0, texts=["a", "b"])
    assert (again["events"], again["duplicate"]) == ([], False)
    more = await conversation.do(
        "reply.chunk", message_id=message_id, index=1, texts=["b", "c"], command_id="k-1"
    )
    assert len(more["events"]) == 1
    repeated = await conversation.do(
        "reply.chunk", message_id=message_id, index=1, texts=["b", "c"], command_id="k-1"
    )
    assert repeated == {**more, "duplicate": True}
    assert await conversation.contents() == ["abc"]


async def test_a_repeated_start_answers_the_same_message(conversation: Conversation) -> None:
    first = await conversation.do("reply.start", command_id="k-1")
    await conversation.append("more")

    assert await conversation.do("reply.start", command_id="k-1") == {**first, "duplicate": True}


async def test_a_repeated_finish_answers_the_totals_of_then(conversation: Conversation) -> None:
    message_id = await begun(conversation)
    body = {"message_id": message_id, "usage": {"prompt_tokens": 1, "completion_tokens": 2}}
    first = await conversation.do("reply.finish", body, command_id="k-1")
    await conversation.do("usage", prompt_tokens=5, completion_tokens=5)

    again = await conversation.do("reply.finish", body, command_id="k-1")

    assert again == {**first, "duplicate": True}


async def test_a_gap_is_refused_with_the_index_that_comes_next(
    conversation: Conversation,
) -> None:
    message_id = await begun(conversation, "a")

    error = await conversation.refused(
        "invalid_state", "reply.chunk", message_id=message_id, index=2, texts=["c"]
    )

    assert error["details"] == {"message_id": message_id, "expected_index": 1, "index": 2}


@pytest.mark.parametrize("verb", ["reply.chunk", "reply.finish", "reply.abort"])
async def test_on_what_is_no_reply_any_more_or_never_was(
    ledger: Ledger, conversation: Conversation, verb: str
) -> None:
    body = {"index": 0, "texts": ["x"]} if verb == "reply.chunk" else {}
    finished, aborted = await begun(conversation), await begun(conversation)
    await conversation.do("reply.finish", message_id=finished)
    await conversation.do("reply.abort", message_id=aborted)
    said = (await conversation.append("hello"))["message_id"]

    for message_id in (finished, aborted, said):
        await conversation.refused("invalid_state", verb, body, message_id=message_id)
    error = await conversation.refused("message_not_found", verb, body, message_id="nobody")
    assert error["details"] == {"message_id": "nobody"}
    await conversation.refused("invalid_request", verb, body)
    await ledger.conversation().refused(
        "conversation_not_initialized", verb, body, message_id="nobody"
    )


async def test_it_may_expect_a_version(conversation: Conversation) -> None:
    headers = {"Convo-Expected-Version": "1"}
    await conversation.do("reply.start", {"message_id": "r-1"}, headers)

    for verb in ("reply.start", "reply.finish", "reply.abort"):
        await conversation.refused("version_conflict", verb, {"message_id": "r-1"}, headers)


async def test_the_whole_text_is_limited(conversation: Conversation) -> None:
    message_id = await begun(conversation, "x" * 262_144)

    error = await conversation.refused(
        "message_too_large", "reply.chunk", message_id=message_id, index=1, texts=["x"]
    )

    assert error["details"]["limit_bytes"] == 262_144
    await conversation.do("reply.finish", message_id=message_id)


async def test_a_reset_ends_what_is_being_said(conversation: Conversation) -> None:
    message_id = await begun(conversation, "Half a")

    reply = await conversation.do("reset")

    assert [event["type"] for event in reply["events"]] == ["ReplyAborted", "SessionReset"]
    assert await conversation.contents() == []
    await conversation.refused(
        "invalid_state", "reply.chunk", message_id=message_id, index=1, texts=["x"]
    )
    (message,) = await conversation.history(include_reset=True)
    assert (message["content"], "streaming" in message) == ("Half a", False)


async def test_a_page_of_the_history_has_its_replies_whole(conversation: Conversation) -> None:
    long = await begun(conversation)
    for index in range(600):  # more events than one look at the ledger reads
        await conversation.do("reply.chunk", message_id=long, index=index, texts=[f"{index} "])
    await conversation.append("behind it")
    open_ = await begun(conversation, "not yet")
    whole = "".join(f"{index} " for index in range(600))

    first = await conversation.get("history", limit=1)
    assert (first["messages"][0]["content"], first["messages"][0]["streaming"]) == (whole, True)
    await conversation.do("reply.finish", message_id=long)
    (page,) = (await conversation.get("history", limit=1))["messages"]
    assert (page["content"], "streaming" in page) == (whole, False)
    before = await conversation.get("history", before_version=page["version"] + 1)
    assert before["messages"] == [page]
    last = await conversation.get("history", before_version=10_000, limit=2)
    assert [message["content"] for message in last["messages"]] == ["behind it", "not yet"]
    assert last["messages"][-1]["message_id"] == open_
    assert [m["content"] for m in await conversation.history()] == [whole, "behind it", "not yet"]
