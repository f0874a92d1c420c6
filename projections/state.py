"""The state of a conversation: the window, the totals, and what is known about it.

One fold, `ConversationView.apply`, makes it from the events. Live reads, cold loads and replays
all call it, so that the same events give the same view wherever they come from.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from pydantic_core import to_json

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
    MessageEdited,
    MessageRedacted,
    ReplyStarted,
    SessionReset,
    Status,
    UsageRecorded,
    merged,
)
from domain.identity import ConversationId
from domain.messages import JSONObject
from domain.usage import TokenTotals

from .messages import Change, message_view
from .totals import Totals
from .window import Window

__all__ = ["ConversationView", "message_view"]

_FORMAT: Final = 3

# Roughly what a view takes in memory beside its window and the facts it was told.
_BASE_BYTES: Final = 2_000
_BYTES_PER_JSON_BYTE: Final = 4
_CHANGED_BYTES: Final = 150


class ConversationView:
    """What readers see of one conversation at one version.

    `version` and `seq` (the stream sequence) are those of the last event taken in, 0 before the
    first; `reset_version` is that of the last reset, 0 where there was none. `size_bytes` is
    roughly what the view takes in memory. The objects it returns are its own: not to be changed.

    `redactions` (message_id → version of the event) and `edits` (message_id → stream sequence of
    the last one) are of the whole life: who reads a page of the history finds there what became of
    its messages behind the page.
    """

    __slots__ = (
        "_changed_bytes",
        "_fact_bytes",
        "context",
        "created_at",
        "edits",
        "id",
        "last_activity",
        "message_count",
        "metadata",
        "model",
        "redactions",
        "reset_version",
        "seq",
        "status",
        "title",
        "title_from",
        "totals",
        "user_id",
        "version",
        "window",
    )

    def __init__(self, window_size: int) -> None:
        self.id: ConversationId | None = None
        self.version = 0
        self.seq = 0
        self.reset_version = 0
        self.status: Status = "active"
        self.user_id: str | None = None
        self.title: str | None = None
        self.title_from: str | None = None  # the message that it was taken from by itself
        self.model: str | None = None
        self.context: JSONObject = {}
        self.metadata: JSONObject = {}
        self.message_count = 0
        self.created_at: datetime | None = None
        self.last_activity: datetime | None = None
        self.window = Window(window_size)
        self.totals = Totals()
        self.redactions: dict[str, int] = {}
        self.edits: dict[str, int] = {}
        self._fact_bytes = 0
        self._changed_bytes = 0

    @classmethod
    def empty(cls, window_size: int) -> ConversationView:
        """Returns the view of a conversation before its first event."""
        return cls(window_size)

    @property
    def exists(self) -> bool:
        """Whether any event has been taken in."""
        return self.version > 0

    @property
    def window_size(self) -> int:
        """How many messages the window holds at most."""
        return self.window.size

    @property
    def size_bytes(self) -> int:
        """Roughly what the view takes in memory."""
        return _BASE_BYTES + self._fact_bytes + self._changed_bytes + self.window.size_bytes

    # The fold.

    def apply(self, event: ConversationEvent, seq: int) -> None:
        """Takes in the next event, stored at stream sequence `seq`.

        Checks nothing. An event of a type that shows nowhere here still counts as seen.
        """
        match event:
            case MessageAppended() | ReplyStarted():
                self.message_count += 1
                self.window.apply(event)
            case UsageRecorded():
                self.totals.apply(event)
            case SessionReset():
                self.reset_version = event.originator_version
                self.window.apply(event)
                self.totals.apply(event)
            case ConversationStarted():
                self._begin(event)
            case ContextUpdated():
                self._merge(event)
            case ConversationTitled():
                self.title = event.title
                self.title_from = self.window.last_message_id if event.source == "auto" else None
            case ConversationClosed():
                self.status = event.reason
            case ConversationReopened():
                self.status = "active"
            case ConversationErased():
                self._forget()
            case _ if isinstance(event, Change):
                self._change(event, seq)
        self.version = event.originator_version
        self.seq = seq
        if event.is_activity:
            self.last_activity = event.timestamp

    def _change(self, event: Change, seq: int) -> None:
        self.window.apply(event)
        if isinstance(event, MessageRedacted):
            self._note_change(self.redactions, event.message_id, event.originator_version)
            if event.message_id == self.title_from:
                self.title = None
        elif isinstance(event, MessageEdited):
            self._note_change(self.edits, event.message_id, seq)

    def _note_change(self, changes: dict[str, int], message_id: str, place: int) -> None:
        if message_id not in changes:
            self._changed_bytes += _CHANGED_BYTES + len(message_id)
        changes[message_id] = place

    def _forget(self) -> None:
        """Keeps nothing of what was said and by whom; the numbers stay."""
        self.status = "erased"
        self.user_id = self.title = self.title_from = self.model = None
        self.context, self.metadata = {}, {}
        self.redactions, self.edits = {}, {}
        self._fact_bytes = self._changed_bytes = 0
        self.window.clear()

    def _begin(self, event: ConversationStarted) -> None:
        self.id = ConversationId.from_key(event.originator_id)
        self.created_at = event.timestamp
        self.user_id = event.user_id
        self.title = event.title
        self.model = event.model
        self.context = merged({}, event.context)
        self.metadata = merged({}, event.metadata)
        self._weigh_facts()

    def _merge(self, event: ContextUpdated) -> None:
        if event.user_id is not ABSENT:
            self.user_id = event.user_id
        if event.title is not ABSENT:
            self.title = event.title
            self.title_from = None
        if event.model is not ABSENT:
            self.model = event.model
        self.context = merged(self.context, event.context)
        self.metadata = merged(self.metadata, event.metadata)
        self._weigh_facts()

    def _weigh_facts(self) -> None:
        if self.context or self.metadata:
            size = len(to_json(self.context)) + len(to_json(self.metadata))
            self._fact_bytes = _BYTES_PER_JSON_BYTE * size
        else:
            self._fact_bytes = 0

    def hide(self, now: ConversationView) -> None:
        """Hides in a view of an earlier version what the conversation hides at present.

        What is redacted or erased is so in its past as well; edits are seen when they happened.
        """
        if now.status == "erased":
            self._forget()
        elif now.status == "deleted":
            self.window.clear()
        self.window.hide(now.redactions)
        if self.title_from in now.redactions:
            self.title = None

    # What readers see.

    @property
    def shows_messages(self) -> bool:
        """Whether the messages are for readers: not those of a deleted or erased conversation."""
        return self.status not in {"deleted", "erased"}

    def messages(self, limit: int | None = None) -> list[dict[str, Any]]:
        """Returns the window's messages, oldest first: the last `limit`, or all for None."""
        return self.window.messages(limit) if self.shows_messages else []

    def messages_json(self) -> bytes:
        """Returns all of the window's messages as a JSON array."""
        return self.window.to_json() if self.shows_messages else b"[]"

    def usage(self) -> dict[str, Any]:
        """Returns {"usage", "lifetime"}, each {prompt, completion, total}."""
        return {"usage": self.totals.since_reset(), "lifetime": self.totals.lifetime()}

    def state(self) -> dict[str, Any]:
        """Returns the contract's state object; null where nothing is known."""
        return {
            "conversation_id": self.id and self.id.conversation_id,
            "tenant_id": self.id and self.id.tenant_id,
            "user_id": self.user_id,
            "title": self.title,
            "status": self.status,
            "model": self.model,
            "context": self.context,
            "metadata": self.metadata,
            "recent_messages": self.messages(),
            "tokens_used": self.totals.since_reset(),
            "lifetime_tokens": self.totals.lifetime(),
            "message_count": self.message_count,
            "created_at": self.created_at and clock.to_text(self.created_at),
            "last_activity": self.last_activity and clock.to_text(self.last_activity),
            "version": self.version,
            "seq": self.seq,
        }

    # Snapshots.

    def to_state(self) -> dict[str, Any]:
        """Returns all of it as plain JSON, for `from_state`."""
        return {
            "format": _FORMAT,
            "window_size": self.window_size,
            "id": self.id and list(self.id),
            "version": self.version,
            "seq": self.seq,
            "reset_version": self.reset_version,
            "status": self.status,
            "user_id": self.user_id,
            "title": self.title,
            "title_from": self.title_from,
            "model": self.model,
            "context": self.context,
            "metadata": self.metadata,
            "message_count": self.message_count,
            "created_at": self.created_at and clock.to_text(self.created_at),
            "last_activity": self.last_activity and clock.to_text(self.last_activity),
            "totals": list(self.totals.tokens),
            "messages": self.window.to_state(),
            "redactions": self.redactions,
            "edits": self.edits,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> ConversationView:
        """Returns the view that `to_state` gave, without a look at the events.

        Raises ValueError for a state that is not one, or of a format that is not known here.
        """
        if state.get("format") != _FORMAT:
            raise ValueError(f"view state of unknown format {state.get('format')!r}")
        try:
            return cls._from_known_state(state)
        except (KeyError, TypeError) as error:
            raise ValueError(f"view state that cannot be read: {error!r}") from error

    @classmethod
    def _from_known_state(cls, state: dict[str, Any]) -> ConversationView:
        view = cls(state["window_size"])
        view.id = state["id"] and ConversationId(*state["id"])
        view.version = state["version"]
        view.seq = state["seq"]
        view.reset_version = state["reset_version"]
        view.status = state["status"]
        view.user_id = state["user_id"]
        view.title = state["title"]
        view.title_from = state["title_from"]
        view.model = state["model"]
        view.context = state["context"]
        view.metadata = state["metadata"]
        view.message_count = state["message_count"]
        view.created_at = state["created_at"] and clock.from_text(state["created_at"])
        view.last_activity = state["last_activity"] and clock.from_text(state["last_activity"])
        view.totals = Totals(TokenTotals(*state["totals"]))
        view.window = Window.from_state(state["window_size"], state["messages"])
        for message_id, version in state["redactions"].items():
            view._note_change(view.redactions, message_id, version)
        for message_id, seq in state["edits"].items():
            view._note_change(view.edits, message_id, seq)
        view._weigh_facts()
        return view
