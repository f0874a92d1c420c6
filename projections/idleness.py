"""Who has been silent for how long: the active conversations, and the replies being written.

What a sweeper looks at. It holds the conversations that are active and nothing about the others,
so that it is as large as what has happened lately.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple

from domain.events import (
    ConversationClosed,
    ConversationErased,
    ConversationEvent,
    ReplyAborted,
    ReplyChunkAppended,
    ReplyCompleted,
    ReplyStarted,
)


class Silent(NamedTuple):
    """A conversation at the version at which it fell silent; `message_id` where a reply did."""

    key: str
    version: int
    message_id: str | None = None


class Idleness:
    """The last sign of life of conversations and replies, the longest silent first."""

    def __init__(self) -> None:
        self._versions: dict[str, int] = {}
        self._conversations: OrderedDict[str, datetime] = OrderedDict()
        self._replies: OrderedDict[tuple[str, str], datetime] = OrderedDict()

    def apply(self, event: ConversationEvent) -> None:
        """Takes in the next event of a stream, of whatever conversation."""
        key = event.originator_id
        match event:
            case ConversationClosed() | ConversationErased():
                self.forget(key)
                return
            case ReplyStarted() | ReplyChunkAppended():
                self._replies[key, event.message_id] = event.timestamp
                self._replies.move_to_end((key, event.message_id))
            case ReplyCompleted() | ReplyAborted():
                self._replies.pop((key, event.message_id), None)
        self._versions[key] = event.originator_version
        self._conversations[key] = event.timestamp
        self._conversations.move_to_end(key)

    def forget(self, key: str) -> None:
        """Lets go of a conversation until it is heard of again."""
        self._versions.pop(key, None)
        self._conversations.pop(key, None)

    def forget_reply(self, key: str, message_id: str) -> None:
        """Lets go of a reply until it is heard of again."""
        self._replies.pop((key, message_id), None)

    def conversations(self, since: datetime) -> Iterator[Silent]:
        """Yields the active conversations without an event after `since`."""
        for key, time in self._conversations.items():
            if time > since:
                return
            yield Silent(key, self._versions[key])

    def replies(self, since: datetime) -> Iterator[Silent]:
        """Yields the replies that are being written and said nothing after `since`."""
        for (key, message_id), time in self._replies.items():
            if time > since:
                return
            yield Silent(key, self._versions[key], message_id)

    def __len__(self) -> int:
        return len(self._conversations)
