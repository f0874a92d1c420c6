"""Answers of the responder, as the families that stream them see one: watched, and stopped."""

from __future__ import annotations

from typing import Final

from domain.identity import ConversationId
from services.gateway.errors import GatewayError
from services.gateway.gateway import Gateway
from services.gateway.identity import Identity
from services.gateway.ledger import JSON

BEGIN: Final = "ReplyStarted"
CHUNK: Final = "ReplyChunkAppended"
FINISH: Final = "ReplyCompleted"
ABORT: Final = "ReplyAborted"

WANTED: Final = frozenset(
    {"stopped", "reset", "redacted", "closed", "inactive", "deleted", "erased"}
)
"""Reasons of ReplyAborted that somebody wanted."""

_ENDED: Final = frozenset({"invalid_state", "message_not_found"})


async def stop(ours: Gateway, caller: Identity, id: ConversationId, message_id: str) -> bool:
    """Ends an answer as it is; says whether it was still on its way."""
    try:
        await ours.ledger.command(caller, id, "reply.abort", {"message_id": message_id})
    except GatewayError as refused:
        if refused.code in _ENDED:
            return False
        raise
    return True


def failure(aborted: str | None) -> str | None:
    """What to tell as a failure of the reasons why an answer was aborted; None: nothing failed."""
    return None if aborted in WANTED else aborted


def on_their_way(state: JSON) -> list[str]:
    """The ids of the answers that are being written, oldest first."""
    return [each["message_id"] for each in state["recent_messages"] if "streaming" in each]


def found(state: JSON, message_id: str) -> JSON | None:
    """A message of the window; None where it is not there."""
    for message in reversed(state["recent_messages"]):
        if message["message_id"] == message_id:
            seen: JSON = message
            return seen
    return None
