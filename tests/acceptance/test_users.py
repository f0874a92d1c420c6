"""`Convo-User`: who asks for one user alone finds no other's conversations, whatever they do."""

from __future__ import annotations

from typing import Any

import pytest

from tests.acceptance.client import Conversation, token

BODIES: dict[str, dict[str, Any]] = {
    "init": {"user_id": "bob"},
    "append": {"role": "user", "content": "hi"},
    "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    "turn": {"messages": [{"role": "user", "content": "hi"}]},
    "reset": {},
    "update": {"user_id": "bob"},
    "import": {"messages": []},
    "reply.start": {},
    "reply.chunk": {"message_id": "m", "index": 0, "texts": ["hi"]},
    "reply.finish": {"message_id": "m"},
    "reply.abort": {"message_id": "m"},
    "edit": {"message_id": "m", "content": "hi"},
    "redact": {"message_id": "m"},
    "close": {},
    "reopen": {},
    "erase": {},
}
VIEWS = ["messages", "usage", "state", "history", "events"]
UNKNOWN = "conversation_not_initialized"


def user(name: str) -> dict[str, str]:
    return {"Convo-User": token(name)}


@pytest.mark.parametrize("verb", BODIES)
async def test_another_users_conversation_takes_no_command(
    conversation: Conversation, verb: str
) -> None:
    await conversation.refused(UNKNOWN, verb, BODIES[verb], user("bob"))
    assert len(await conversation.events()) == 1


@pytest.mark.parametrize("view", VIEWS)
async def test_another_users_conversation_is_not_seen(
    conversation: Conversation, view: str
) -> None:
    await conversation.get_refused(UNKNOWN, view, None, user("bob"))
    assert await conversation.get(view, None, user("ada"))


async def test_a_repeated_command_tells_another_user_nothing(conversation: Conversation) -> None:
    once = {**user("ada"), "Convo-Command-Id": "once"}
    await conversation.append("secret", headers=once)
    await conversation.refused(
        UNKNOWN, "append", BODIES["append"], {**user("bob"), "Convo-Command-Id": "once"}
    )
    assert (await conversation.append("secret", headers=once))["duplicate"] is True


async def test_a_conversation_that_changes_hands_is_the_new_users(
    conversation: Conversation,
) -> None:
    await conversation.do("update", {"user_id": "bob the \n second"}, user("ada"))
    await conversation.append("mine", headers=user("bob the \n second"))
    await conversation.refused(UNKNOWN, "append", BODIES["append"], user("ada"))
    await conversation.get_refused(UNKNOWN, "messages", None, user("ada"))


async def test_an_erased_conversation_is_nobodys(conversation: Conversation) -> None:
    await conversation.do("erase", None, user("ada"))
    await conversation.get_refused(UNKNOWN, "messages", None, user("ada"))
    await conversation.refused(UNKNOWN, "append", BODIES["append"], user("ada"))
    await conversation.refused("conversation_erased", "append", BODIES["append"])


async def test_a_user_that_is_no_token_is_refused(conversation: Conversation) -> None:
    for name in ("a.b", "%2", "%61"):
        await conversation.get_refused("invalid_request", "messages", None, {"Convo-User": name})
        await conversation.refused("invalid_request", "reset", None, {"Convo-User": name})
