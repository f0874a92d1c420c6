"""The recent window: the last N messages since the last reset, as the contract shows them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final

from pydantic_core import to_json

from domain import clock
from domain.events import ConversationEvent, MessageAppended, SessionReset

# Roughly what a message takes in memory beside its texts, in CPython on 64 bits, and what a value
# read from JSON takes for each byte of it.
_MESSAGE_BYTES: Final = 700
_BYTES_PER_JSON_BYTE: Final = 4


def message_view(event: MessageAppended) -> dict[str, Any]:
    """Returns the message as every view shows it; what it does not have is left out.

    `timestamp` is the message's own `created_at` where it has one, else the event's time.
    """
    view: dict[str, Any] = {
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


def _weight(message: dict[str, Any]) -> int:
    """Returns roughly the bytes of memory that the message takes."""
    weight = _MESSAGE_BYTES
    content = message["content"]
    if isinstance(content, str):
        weight += len(content) if content.isascii() else 2 * len(content)
    elif content is not None:
        weight += _BYTES_PER_JSON_BYTE * len(to_json(content))
    if message["metadata"]:
        weight += _BYTES_PER_JSON_BYTE * len(to_json(message["metadata"]))
    if "tool_calls" in message:
        weight += _BYTES_PER_JSON_BYTE * len(to_json(message["tool_calls"]))
    return weight


class Window:
    """The last `size` messages since the last reset, the oldest first.

    `size_bytes` is roughly what they take in memory, kept with every event.
    """

    __slots__ = ("_messages", "_weights", "size", "size_bytes")

    def __init__(self, size: int) -> None:
        self.size = size
        self.size_bytes = 0
        self._messages: deque[dict[str, Any]] = deque()
        self._weights: deque[int] = deque()

    def apply(self, event: ConversationEvent) -> None:
        """Takes the event in; one that is no message and no reset changes nothing."""
        if isinstance(event, MessageAppended):
            self._push(message_view(event))
        elif isinstance(event, SessionReset):
            self._messages.clear()
            self._weights.clear()
            self.size_bytes = 0

    def _push(self, message: dict[str, Any]) -> None:
        weight = _weight(message)
        self._messages.append(message)
        self._weights.append(weight)
        self.size_bytes += weight
        if len(self._messages) > self.size:
            self._messages.popleft()
            self.size_bytes -= self._weights.popleft()

    def messages(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Returns the last `limit` messages, all of them for None; not to be changed."""
        if limit is None or limit >= len(self._messages):
            return list(self._messages)
        return list(islice(self._messages, len(self._messages) - limit, None))

    def to_state(self) -> list[dict[str, Any]]:
        """Returns the messages, for `from_state`."""
        return list(self._messages)

    @classmethod
    def from_state(cls, size: int, messages: Iterable[dict[str, Any]]) -> Window:
        """Returns the window that `to_state` gave."""
        window = cls(size)
        for message in messages:
            window._push(message)
        return window
