"""One message as every view shows it: how it begins, and what later events make of it."""

from __future__ import annotations

from typing import Any

from domain import clock
from domain.events import (
    MessageAppended,
    MessageEdited,
    MessageRedacted,
    ReplyAborted,
    ReplyChunkAppended,
    ReplyCompleted,
    ReplyStarted,
)

Message = dict[str, Any]

# What begins a message, and what changes one that has begun.
Beginning = MessageAppended | ReplyStarted
Change = ReplyChunkAppended | ReplyCompleted | ReplyAborted | MessageEdited | MessageRedacted


def message_view(event: Beginning) -> Message:
    """Returns the message as it began; what it does not have is left out.

    `timestamp` is the message's own `created_at` where it has one, else the event's time. A reply
    begins empty and `streaming`; once it has ended it has its `finish_reason`, where one was given,
    or the reason why it was `aborted`.
    """
    if isinstance(event, ReplyStarted):
        return {
            "message_id": event.message_id,
            "role": event.role,
            "content": "",
            "timestamp": clock.to_text(event.timestamp),
            "version": event.originator_version,
            "metadata": event.metadata,
            "streaming": True,
        }
    view: Message = {
        "message_id": event.message_id,
        "role": event.role,
        "content": event.content,
        "timestamp": event.created_at or clock.to_text(event.timestamp),
        "version": event.originator_version,
    }
    if event.name is not None:
        view["name"] = event.name
    if event.tool_calls is not None:
        view["tool_calls"] = event.tool_calls
    if event.tool_call_id is not None:
        view["tool_call_id"] = event.tool_call_id
    view["metadata"] = event.metadata
    return view


def changed(message: Message, event: Change) -> Message:
    """Returns the message after an event about it, as another object where anything changed.

    A redacted message stays as it is, whatever comes.
    """
    if "redacted" in message:
        return message
    match event:
        case ReplyChunkAppended():
            if "streaming" not in message:
                return message
            return {**message, "content": message["content"] + event.text}
        case ReplyCompleted(finish_reason=None):
            return _without(message, "streaming")
        case ReplyCompleted():
            return {**_without(message, "streaming"), "finish_reason": event.finish_reason}
        case ReplyAborted():
            return {**_without(message, "streaming"), "aborted": event.reason}
        case MessageEdited():
            return {**message, "content": event.content, "edited": True}
        case MessageRedacted():
            return redacted(message)


def redacted(message: Message) -> Message:
    """Returns the message without what it said: who spoke and when stays, in its place.

    Content, tool calls and metadata are what may hold the text. How it came about is of no use
    without it.
    """
    kept = _without(message, "tool_calls", "streaming", "finish_reason", "aborted", "edited")
    return {**kept, "content": None, "metadata": {}, "redacted": True}


def _without(message: Message, *names: str) -> Message:
    return {name: value for name, value in message.items() if name not in names}
