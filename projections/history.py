"""The history: the messages of a conversation beyond its window, one page of events at a time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from domain.events import ConversationEvent, MessageAppended

from .window import message_view


def messages_of(events: Iterable[ConversationEvent]) -> list[dict[str, Any]]:
    """Returns the messages that a page of events appended, in the order of the events.

    Where a reader must not see behind the last reset, begin the page after
    `ConversationView.reset_version`.
    """
    return [message_view(event) for event in events if isinstance(event, MessageAppended)]
