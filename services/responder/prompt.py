"""What the model is told: the system prompt, and the last messages up to the one it answers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from domain.messages import texts_of

SYSTEM_PROMPT: Final = ("system_prompt", "systemPrompt")
"""The keys of a conversation's context that may hold it; the first of them that does counts."""

_PARTS: Final = frozenset({"text", "image_url", "input_audio", "file", "refusal"})
"""The types of content parts that the chat completions API knows."""

ChatMessage = dict[str, Any]


def prompt(
    state: Mapping[str, Any], message_id: str, messages_max: int
) -> list[ChatMessage] | None:
    """Returns the messages for the model, oldest first; None when the message is not in the window.

    Left out: what came after the message, what says nothing (a redacted message, a reply that has
    just begun), and results of tools whose call is not there any more.
    """
    recent: Sequence[Mapping[str, Any]] = state["recent_messages"]
    index = next(
        (index for index, each in enumerate(recent) if each["message_id"] == message_id), None
    )
    if index is None:
        return None
    said = [_told(each) for each in recent[: index + 1] if _says_something(each)]
    said = said[-messages_max:]
    while said and said[0]["role"] == "tool":
        said.pop(0)
    system = next(
        (text for key in SYSTEM_PROMPT if isinstance(text := state["context"].get(key), str)), None
    )
    return [{"role": "system", "content": system}, *said] if system else said


def last_question(state: Mapping[str, Any]) -> str | None:
    """Returns the id of the newest message by a user, None where the window has none."""
    for message in reversed(state["recent_messages"]):
        if message["role"] == "user":
            found: str = message["message_id"]
            return found
    return None


def _says_something(message: Mapping[str, Any]) -> bool:
    return bool(message["content"] or message.get("tool_calls"))


def _told(message: Mapping[str, Any]) -> ChatMessage:
    content = message["content"]
    if isinstance(content, list):
        content = [known for part in content if (known := _part(part)) is not None]
        if message["role"] != "user":
            content = "".join(texts_of(content))
    told: ChatMessage = {"role": message["role"], "content": content}
    for name in ("name", "tool_calls", "tool_call_id"):
        if name in message:
            told[name] = message[name]
    return told


def _part(part: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns a part as the API takes it; the AI SDK's pictures are files with a URL. None for one
    that it does not know."""
    if part.get("type") == "file" and "file" not in part:
        if not str(part.get("mediaType", "")).startswith("image/"):
            return None
        return {"type": "image_url", "image_url": {"url": part.get("url")}}
    return dict(part) if part.get("type") in _PARTS else None
