"""`history` and `events`: all that was ever said, and all that ever happened, page by page."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.acceptance.client import Conversation, Ledger

LINES = 1_150
"""Messages of the long conversation, in three sessions, with other events in between."""


async def long_conversation(ledger: Ledger) -> Conversation:
    """A conversation with more events than a page may have; its messages say their numbers."""
    conversation = await ledger.begun(title="Long")
    for first, last in ((0, 400), (400, 800), (800, LINES)):
        messages = [{"role": "tool", "content": f"{number}"} for number in range(first, last)]
        await conversation.do("import", messages=messages)
        await conversation.do("usage", prompt_tokens=1, completion_tokens=1)
        if last < LINES:
            await conversation.do("reset")
        await conversation.do("update", context={"at": last})
    return conversation


async def backwards(conversation: Conversation, **fields: Any) -> list[dict[str, Any]]:
    """Every page of the history from the newest on, put together oldest first."""
    found: list[dict[str, Any]] = []
    before = 2**53
    while True:
        page = await conversation.get("history", before_version=before, **fields)
        assert page["messages"] or "next" not in page
        assert len(page["messages"]) <= fields.get("limit", 100)
        found = page["messages"] + found
        if "next" not in page:
            return found
        before = page["next"]
        assert isinstance(before, int)


def numbers(messages: list[dict[str, Any]]) -> list[int]:
    """What these messages say."""
    return [int(message["content"]) for message in messages]


@pytest.mark.parametrize("limit", [1_000, 100, 97])
async def test_pages_in_both_directions_make_the_whole(ledger: Ledger, limit: int) -> None:
    conversation = await long_conversation(ledger)
    for include_reset, first in ((True, 0), (False, 800)):
        forwards = await conversation.history(limit=limit, include_reset=include_reset)
        assert numbers(forwards) == list(range(first, LINES))
        assert forwards == await backwards(conversation, limit=limit, include_reset=include_reset)


async def test_a_page_begins_behind_or_ends_before_a_version(conversation: Conversation) -> None:
    messages = [{"role": "tool", "content": f"{number}"} for number in range(2, 12)]
    await conversation.do("import", messages=messages)  # each says its version
    for fields, said in (
        ({"limit": 3}, [2, 3, 4]),
        ({"after_version": 0, "limit": 3}, [2, 3, 4]),
        ({"after_version": 4, "limit": 3}, [5, 6, 7]),
        ({"after_version": 9}, [10, 11]),
        ({"after_version": 11}, []),
        ({"after_version": 10**9}, []),
        ({"before_version": 12, "limit": 3}, [9, 10, 11]),
        ({"before_version": 10**9, "limit": 3}, [9, 10, 11]),
        ({"before_version": 5}, [2, 3, 4]),
        ({"before_version": 2}, []),
        ({"before_version": 0}, []),
    ):
        page = await conversation.get("history", fields)
        assert numbers(page["messages"]) == said, fields
    assert "next" not in await conversation.get("history", limit=10)
    assert "next" in await conversation.get("history", limit=9)
    assert "next" not in await conversation.get("history", before_version=12, limit=10)
    assert "next" in await conversation.get("history", before_version=12, limit=9)


async def test_the_history_shows_messages_as_the_window_does(conversation: Conversation) -> None:
    await conversation.append("Hello", name="ada", metadata={"k": 1})
    await conversation.append([{"type": "text", "text": "Hi"}], role="assistant")
    assert await conversation.history() == await conversation.messages()


async def test_a_page_is_cut_by_bytes_too(conversation: Conversation) -> None:
    for first in range(0, 60, 20):
        messages = [
            {"role": "tool", "content": f"{number:02}" + "x" * 249_998}
            for number in range(first, first + 20)
        ]
        await conversation.do("turn", messages=messages)
    page = await conversation.get("history", limit=60)
    assert 0 < len(page["messages"]) < 60
    forwards = [message["content"][:2] for message in await conversation.history(limit=60)]
    assert forwards == [f"{number:02}" for number in range(60)]

    newest = await conversation.get("history", before_version=10**9, limit=60)
    assert newest["messages"][-1]["content"][:2] == "59"
    pages = [message["content"][:2] for message in await backwards(conversation, limit=60)]
    assert pages == forwards

    events = await conversation.events()
    assert [event["version"] for event in events] == list(range(1, 62))


@pytest.mark.parametrize(
    ("view", "body", "wrong"),
    [
        ("history", {"limit": 0}, ["limit"]),
        ("history", {"limit": 1_001}, ["limit"]),
        ("history", {"limit": "10"}, ["limit"]),
        ("history", {"after_version": -1}, ["after_version"]),
        ("history", {"before_version": "x"}, ["before_version"]),
        ("history", {"include_reset": 1}, ["include_reset"]),
        ("history", {"page": 2}, ["page"]),
        ("events", {"limit": 0}, ["limit"]),
        ("events", {"limit": 1_001}, ["limit"]),
        ("events", {"after_version": None}, ["after_version"]),
        ("events", {"before_version": 1}, ["before_version"]),
    ],
)
async def test_rejected_with_the_wrong_field_named(
    conversation: Conversation, view: str, body: dict[str, Any], wrong: list[str]
) -> None:
    error = await conversation.get_refused("invalid_request", view, body)
    assert [each["field"] for each in error["details"]] == wrong


async def test_both_directions_at_once_are_refused(conversation: Conversation) -> None:
    body = {"after_version": 1, "before_version": 9}
    await conversation.get_refused("invalid_request", "history", body)


async def test_events_come_as_they_are_stored(conversation: Conversation) -> None:
    await conversation.do(
        "turn",
        {
            "messages": [{"role": "user", "content": "Hello", "message_id": "m-1"}],
            "usage": {"prompt_tokens": 1, "completion_tokens": 2},
            "command_id": "k",
        },
        {"Convo-Actor": "user:ada"},
    )
    events = await conversation.events()
    started, appended, titled, used = events
    assert [event["version"] for event in events] == [1, 2, 3, 4]
    assert started["type"] == "ConversationStarted"
    assert started["data"] == {"user_id": "ada", "context": {}, "metadata": {}}
    assert started["actor"] is None
    seq, digest, time = appended["seq"], appended["hash"], appended["time"]
    assert appended == {
        "type": "MessageAppended",
        "schema": 1,
        "tenant_id": "acme",
        "conversation_id": conversation.conversation_id,
        "version": 2,
        "time": time,
        "actor": "user:ada",
        "command_id": "k",
        "verb": "turn",
        "data": {"message_id": "m-1", "role": "user", "content": "Hello", "metadata": {}},
        "seq": seq,
        "hash": digest,
    }
    assert titled["data"] == {"title": "Hello", "source": "auto"}
    assert used["data"] == {"prompt_tokens": 1, "completion_tokens": 2, "metadata": {}}


async def test_pages_of_events_make_the_whole(ledger: Ledger) -> None:
    conversation = await long_conversation(ledger)
    version = (await conversation.state())["version"]
    whole = await conversation.events()
    assert [event["version"] for event in whole] == list(range(1, version + 1))
    seqs = [event["seq"] for event in whole]
    assert seqs == sorted(set(seqs))
    assert await conversation.pages("events", "events", limit=333) == whole
    first = await conversation.get("events", limit=5)
    assert [event["version"] for event in first["events"]] == [1, 2, 3, 4, 5]
    assert first["next"] == 5
    last = await conversation.get("events", after_version=version - 2)
    assert [event["version"] for event in last["events"]] == [version - 1, version]
    assert "next" not in last
    assert (await conversation.get("events", after_version=version))["events"] == []


async def test_an_actor_of_any_letters_is_kept_in_every_event(conversation: Conversation) -> None:
    actor = "агент:Ада 漢字 👩"
    await conversation.do(
        "import", {"messages": [{"role": "tool", "content": "x"}] * 3}, {"Convo-Actor": actor}
    )
    events = await conversation.events()
    assert [event["actor"] for event in events] == [None, actor, actor, actor]
    assert json.loads(json.dumps(events)) == events
