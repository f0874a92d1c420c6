"""The family `sessions`: /sessions/{id}, for front ends of a chat-history table or key-value store.

A session begins with its first update. Times are in seconds.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query
from pydantic import Field

from services.gateway.bodies import (
    JSON,
    Body,
    CommandId,
    Done,
    Message,
    MinSeq,
    done,
    moment,
    seconds,
)
from services.gateway.errors import NOT_INITIALIZED, GatewayError
from services.gateway.gateway import Ours
from services.gateway.identity import Deleter, Reader, Writer

router = APIRouter(prefix="/sessions/{id}", tags=["sessions"])

SessionId = Annotated[str, Path(min_length=1, max_length=200)]

HISTORY_MAX = 1_000


class SessionMessage(Message):
    """A message; `timestamp` in seconds since 1970 is kept as its original time."""

    timestamp: float | None = Field(default=None, ge=0, le=253_402_300_799)

    def command(self) -> JSON:
        """The message as the ledger's commands take it."""
        body = super().command()
        if self.timestamp is not None:
            body["created_at"] = moment(self.timestamp * 1000)
        return body


class Append(Body):
    """Adds one message."""

    operation: Literal["append_message"]
    message: SessionMessage


class SetHistory(Body):
    """Puts other messages in the place of all that were there; all or nothing."""

    operation: Literal["set_history"]
    messages: list[SessionMessage] = Field(max_length=500)


class UpdateMetadata(Body):
    """Merges metadata; null removes a key."""

    operation: Literal["update_metadata"]
    metadata: JSON


Update = Annotated[Append | SetHistory | UpdateMetadata, Field(discriminator="operation")]


class Shown(Body):
    """A message as a session shows it."""

    role: str
    content: str | list[JSON] | None
    timestamp: float


class History(Body):
    """The messages since the session was cleared, oldest first; `more`: there are older ones."""

    success: bool = True
    data: list[Shown]
    metadata: JSON
    more: bool = False


class Cleared(Body):
    """Nothing is shown any more."""

    success: bool = True


@router.get("/history")
async def history(
    id: SessionId,
    caller: Reader,
    ours: Ours,
    limit: Annotated[int, Query(ge=1, le=HISTORY_MAX)] = HISTORY_MAX,
    min_seq: MinSeq = None,
) -> History:
    """What was said; empty for a session that nobody has begun."""
    conversation = caller.conversation(id)
    try:
        state = (await ours.ledger.query(caller, conversation, "state", min_seq=min_seq))["state"]
        found = await ours.ledger.messages_newest(caller, conversation, limit, min_seq=min_seq)
    except GatewayError as error:
        if error.code != NOT_INITIALIZED:
            raise
        return History(data=[], metadata={})
    return History.model_construct(
        data=[_shown(each) for each in found["messages"]],
        metadata=state["metadata"],
        more=found["more"],
    )


@router.post("/update")
async def update(
    id: SessionId, body: Update, caller: Writer, ours: Ours, command_id: CommandId = None
) -> Done:
    """Changes the session; begins it where there is none."""
    verb, command = _command(body)
    reply = await ours.ledger.begin(
        caller, caller.conversation(id), verb, command, command_id=command_id
    )
    return done(reply)


@router.delete("/clear")
async def clear(id: SessionId, caller: Deleter, ours: Ours) -> Cleared:
    """Hides all messages and metadata; what was said is kept in the ledger."""
    conversation = caller.conversation(id)
    try:
        state = (await ours.ledger.query(caller, conversation, "state", strong=True))["state"]
        if state["metadata"]:
            nothing = {"metadata": dict.fromkeys(state["metadata"])}
            await ours.ledger.command(caller, conversation, "update", nothing)
        await ours.ledger.command(caller, conversation, "reset", {"reason": "cleared"})
    except GatewayError as error:
        if error.code != NOT_INITIALIZED:
            raise
    return Cleared()


def _command(body: Update) -> tuple[str, JSON]:
    match body:
        case Append():
            return "append", body.message.command()
        case SetHistory():
            messages = [each.command() for each in body.messages]
            return "import", {"messages": messages, "mode": "replace"}
        case UpdateMetadata():
            return "update", {"metadata": body.metadata}


def _shown(message: dict[str, Any]) -> Shown:
    return Shown.model_construct(
        role=message["role"],
        content=message["content"],
        timestamp=seconds(message["timestamp"]),
    )
