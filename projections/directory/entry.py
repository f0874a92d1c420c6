"""A conversation as lists show it, and the fold that makes it."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from domain import clock
from domain.events import (
    ABSENT,
    ContextUpdated,
    ConversationClosed,
    ConversationErased,
    ConversationEvent,
    ConversationReopened,
    ConversationStarted,
    ConversationTitled,
    MessageAppended,
    ReplyStarted,
    SessionReset,
    UsageRecorded,
)
from projections.totals import Totals

HIDDEN: Final = frozenset({"deleted", "erased"})
"""The statuses that lists leave out unless they are asked for, and search always."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND: Final = timedelta(microseconds=1)


@dataclass(slots=True)
class Entry:
    """One conversation of the directory. `last_activity` is in microseconds since 1970."""

    user_id: str | None = None
    title: str | None = None
    status: str = "active"
    model: str | None = None
    created_at: int | None = None
    last_activity: int | None = None
    version: int = 0
    message_count: int = 0
    totals: Totals = field(default_factory=Totals)

    @property
    def is_hidden(self) -> bool:
        """Whether it has been deleted or erased."""
        return self.status in HIDDEN

    def apply(self, event: ConversationEvent) -> None:
        """Takes in the next event. Checks nothing; one that changes nothing here still counts."""
        match event:
            case MessageAppended() | ReplyStarted():
                self.message_count += 1
            case UsageRecorded() | SessionReset():
                self.totals.apply(event)
            case ConversationStarted():
                self.created_at = microseconds(event.timestamp)
                self.user_id = event.user_id
                self.title = event.title
                self.model = event.model
            case ContextUpdated():
                self._merge(event)
            case ConversationTitled():
                self.title = event.title
            case ConversationClosed():
                self.status = event.reason
            case ConversationReopened():
                self.status = "active"
            case ConversationErased():
                self.status = "erased"
                self.user_id = self.title = self.model = None
        self.version = event.originator_version
        if event.is_activity:
            self.last_activity = microseconds(event.timestamp)

    def _merge(self, event: ContextUpdated) -> None:
        if event.user_id is not ABSENT:
            self.user_id = event.user_id
        if event.title is not ABSENT:
            self.title = event.title
        if event.model is not ABSENT:
            self.model = event.model

    def shown(self, conversation_id: str) -> dict[str, Any]:
        """The contract's list item."""
        return {
            "conversation_id": conversation_id,
            "user_id": self.user_id,
            "title": self.title,
            "status": self.status,
            "model": self.model,
            "created_at": _text(self.created_at),
            "last_activity": _text(self.last_activity),
            "version": self.version,
            "message_count": self.message_count,
            "tokens_used": self.totals.since_reset(),
        }


def microseconds(time: datetime) -> int:
    """The time in microseconds since 1970."""
    return (time - _EPOCH) // _MICROSECOND


def _text(time: int | None) -> str | None:
    return None if time is None else clock.to_text(_EPOCH + time * _MICROSECOND)
