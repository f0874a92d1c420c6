"""The recent window: the last N messages since the last reset, as the contract shows them."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from itertools import islice
from typing import Final

from pydantic_core import to_json

from domain.events import ConversationEvent, SessionReset

from .messages import Beginning, Change, Message, changed, message_view, redacted

__all__ = ["Window", "message_view"]

# Roughly what a message takes in memory beside its texts, in CPython on 64 bits, and what a value
# read from JSON takes for each byte of it. Once somebody has read it, its JSON is there as well.
_MESSAGE_BYTES: Final = 900
_BYTES_PER_JSON_BYTE: Final = 4


def _weight(message: Message) -> int:
    """Returns roughly the bytes of memory that the message takes."""
    weight = _MESSAGE_BYTES
    content = message["content"]
    if isinstance(content, str):
        weight += 2 * len(content) if content.isascii() else 4 * len(content)
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

    __slots__ = ("_json", "_messages", "_weights", "size", "size_bytes")

    def __init__(self, size: int) -> None:
        self.size = size
        self.size_bytes = 0
        self._messages: deque[Message] = deque()
        self._weights: deque[int] = deque()
        self._json: bytes | None = None  # of the messages, from one reading to the next change

    def apply(self, event: ConversationEvent) -> None:
        """Takes the event in; one that is about no message and no reset changes nothing."""
        if isinstance(event, Beginning):
            self._push(message_view(event))
        elif isinstance(event, SessionReset):
            self.clear()
        elif isinstance(event, Change):
            self._change(event)

    def clear(self) -> None:
        """Empties the window."""
        self._messages.clear()
        self._weights.clear()
        self.size_bytes = 0
        self._json = None

    def hide(self, redactions: Mapping[str, int]) -> None:
        """Redacts the messages that are redacted at a version (message_id → version) behind."""
        for index, message in enumerate(self._messages):
            if redactions.get(message["message_id"], 0) > message["version"]:
                self._replace(index, redacted(message))

    @property
    def last_message_id(self) -> str | None:
        """The id of the newest message, None where there is none."""
        return self._messages[-1]["message_id"] if self._messages else None

    def _change(self, event: Change) -> None:
        """Changes a message in its place; one that is not in the window any more is left alone."""
        for index in range(len(self._messages) - 1, -1, -1):
            if self._messages[index]["message_id"] == event.message_id:
                self._replace(index, changed(self._messages[index], event))
                return

    def _replace(self, index: int, message: Message) -> None:
        # Never the object that a reader may have: another one takes its place.
        weight = _weight(message)
        self.size_bytes += weight - self._weights[index]
        self._messages[index] = message
        self._weights[index] = weight
        self._json = None

    def _push(self, message: Message) -> None:
        weight = _weight(message)
        self._messages.append(message)
        self._weights.append(weight)
        self.size_bytes += weight
        if len(self._messages) > self.size:
            self._messages.popleft()
            self.size_bytes -= self._weights.popleft()
        self._json = None

    def messages(self, limit: int | None = None) -> list[Message]:
        """Returns the last `limit` messages, all of them for None; not to be changed."""
        if limit is None or limit >= len(self._messages):
            return list(self._messages)
        return list(islice(self._messages, len(self._messages) - limit, None))

    def to_json(self) -> bytes:
        """Returns all messages as a JSON array; made once for any number of readers."""
        if self._json is None:
            self._json = to_json(list(self._messages))
        return self._json

    def to_state(self) -> list[Message]:
        """Returns the messages, for `from_state`."""
        return list(self._messages)

    @classmethod
    def from_state(cls, size: int, messages: Iterable[Message]) -> Window:
        """Returns the window that `to_state` gave."""
        window = cls(size)
        for message in messages:
            window._push(message)
        return window
