"""A replay: every event of a conversation with the state it led to, in order.

The state is that of `ConversationView.apply`, the fold that live reads use; there is no other.
"""

from __future__ import annotations

from typing import Any

from pydantic_core import from_json

from domain.events import ConversationEvent
from projections.state import ConversationView

from .digest import WindowDigest


class Replay:
    """One conversation on its way through its events; `view` is the state right now."""

    __slots__ = ("_digest", "view")

    def __init__(self, window_size: int) -> None:
        self.view = ConversationView.empty(window_size)
        self._digest = WindowDigest()

    def apply(self, event: ConversationEvent, seq: int) -> None:
        """Takes in the next event, stored at stream sequence `seq`."""
        self.view.apply(event, seq)

    def entry(self, body: bytes, digest: str) -> dict[str, Any]:
        """The entry of the event just taken in: `body` as stored, `digest` its hash in hex."""
        stored = from_json(body)
        return {
            "version": self.view.version,
            "seq": self.view.seq,
            "type": stored["type"],
            "schema": stored["schema"],
            "time": stored["time"],
            "actor": stored["actor"],
            "command_id": stored["command_id"],
            "verb": stored["verb"],
            "data": stored["data"],
            "hash": digest,
            "state": self.state(),
        }

    def state(self) -> dict[str, Any]:
        """The state after the last event, the window by its message ids and its digest."""
        view = self.view
        messages = view.messages()
        return {
            "version": view.version,
            "status": view.status,
            "title": view.title,
            "message_count": view.message_count,
            "tokens_used": view.totals.since_reset(),
            "lifetime_tokens": view.totals.lifetime(),
            "window": [message["message_id"] for message in messages],
            "window_digest": self._digest.of(messages),
        }
