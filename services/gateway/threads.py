"""The family `threads`: /v1/threads/{threadId}, for front ends of one Durable Object per thread.

A thread begins with `init`; before it, everything is 404. Times are ISO 8601.
"""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request, Response
from pydantic import ConfigDict, Field
from pydantic_core import to_json

from services.gateway.bodies import (
    JSON,
    Body,
    CommandId,
    Done,
    Message,
    MinSeq,
    body_of,
    command_id_of,
    documented,
    done,
    owner,
)
from services.gateway.direct import Shortcut
from services.gateway.errors import Forbidden
from services.gateway.gateway import Gateway, Ours
from services.gateway.identity import DEFAULT_TENANT, Identity, Reader, Writer, writing

router = APIRouter(prefix="/v1/threads/{threadId}", tags=["threads"])

ThreadId = Annotated[str, Path(alias="threadId", min_length=1, max_length=200)]

TENANT = "tenantId"
"""In the conversation's metadata: the tenant that a thread without credentials says it is of."""


class Init(Body):
    """Begins a thread."""

    user_id: str = Field(min_length=1)
    tenant_id: str | None = Field(default=None, min_length=1)
    title: str | None = None
    model: str | None = None
    context: JSON = Field(default_factory=dict)
    metadata: JSON = Field(default_factory=dict)


class Usage(Body):
    """Tokens of one call; totals are inclusive (cached and cacheWrite within prompt)."""

    prompt_tokens: int = Field(ge=0, le=2**53)
    completion_tokens: int = Field(ge=0, le=2**53)
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    model: str | None = None
    provider: str | None = None
    message_id: str | None = None
    cost_usd: str | None = None
    metadata: JSON | None = None


class Totals(Body):
    """Tokens since the last reset."""

    prompt: int
    completion: int
    total: int


class Shown(Body):
    """A message as a thread shows it."""

    model_config = ConfigDict(extra="allow")

    role: str
    content: str | list[JSON] | None
    timestamp: str


class State(Body):
    """What is known of a thread."""

    thread_id: str
    user_id: str | None
    tenant_id: str
    recent_messages: list[Shown]
    tokens_used: Totals
    last_activity: str
    created_at: str


class Begun(Body):
    """The answer to `init`."""

    success: bool = True
    state: State


class Written(Done):
    """The answer to `message`."""

    message_id: str


class Messages(Body):
    """The recent messages, oldest first."""

    messages: list[Shown]


class UsageNow(Body):
    """The token totals."""

    usage: Totals


class Recorded(Done):
    """The answer to `usage`."""

    usage: Totals


class StateNow(Body):
    """The state."""

    state: State


@router.post("/init")
async def init(
    thread_id: ThreadId, body: Init, caller: Writer, ours: Ours, command_id: CommandId = None
) -> Begun:
    """Begins the thread; repeating it is harmless and answers the present state."""
    command = body.model_dump(exclude_defaults=True, exclude={"tenant_id"})
    command["user_id"] = owner(caller, body.user_id)
    if body.tenant_id is not None and body.tenant_id != caller.tenant_id:
        command["metadata"] = {**body.metadata, TENANT: _tenant(caller, body.tenant_id)}
    reply = await ours.ledger.command(
        caller, caller.conversation(thread_id), "init", command, command_id=command_id
    )
    return Begun.model_construct(state=_state(reply["state"]))


@router.post("/message", response_model=Written, openapi_extra=documented(Message))
async def message(request: Request, thread_id: ThreadId) -> Response:
    """Appends one message; it is on disk when this answers."""
    ours: Gateway = request.app.state.gateway
    caller = await writing(request)
    body = await body_of(request, Message)
    reply = await ours.ledger.command(
        caller,
        caller.conversation(thread_id),
        "append",
        body.command(),
        command_id=command_id_of(request),
    )
    answer = {
        "success": True,
        "messageId": reply["message_id"],
        "version": reply["version"],
        "seq": reply["seq"],
    }
    return Response(to_json(answer), media_type="application/json")


SHORTCUTS = (Shortcut("POST", re.compile(r"/v1/threads/([^/]+)/message"), message),)


@router.get("/messages")
async def messages(
    thread_id: ThreadId,
    caller: Reader,
    ours: Ours,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 20,
    min_seq: MinSeq = None,
) -> Messages:
    """The recent messages since the last reset, oldest first."""
    reply = await ours.ledger.query(
        caller,
        caller.conversation(thread_id),
        "messages",
        {"limit": min(limit, ours.settings.window_size)},
        min_seq=min_seq,
    )
    return Messages.model_construct(messages=[_shown(each) for each in reply["messages"]])


@router.post("/usage")
async def record_usage(
    thread_id: ThreadId, body: Usage, caller: Writer, ours: Ours, command_id: CommandId = None
) -> Recorded:
    """Adds the tokens of one call."""
    reply = await ours.ledger.command(
        caller,
        caller.conversation(thread_id),
        "usage",
        body.model_dump(exclude_none=True),
        command_id=command_id,
    )
    totals = Totals(**reply["usage"])
    return Recorded(version=reply["version"], seq=reply["seq"], usage=totals)


@router.get("/usage")
async def usage(
    thread_id: ThreadId, caller: Reader, ours: Ours, min_seq: MinSeq = None
) -> UsageNow:
    """The tokens since the last reset."""
    reply = await ours.ledger.query(
        caller, caller.conversation(thread_id), "usage", min_seq=min_seq
    )
    return UsageNow(usage=Totals(**reply["usage"]))


@router.get("/state")
async def state(
    thread_id: ThreadId, caller: Reader, ours: Ours, min_seq: MinSeq = None
) -> StateNow:
    """What is known of the thread."""
    reply = await ours.ledger.query(
        caller, caller.conversation(thread_id), "state", min_seq=min_seq
    )
    return StateNow.model_construct(state=_state(reply["state"]))


@router.post("/reset")
async def reset(
    thread_id: ThreadId, caller: Writer, ours: Ours, command_id: CommandId = None
) -> Done:
    """Begins anew: no messages, no tokens. What was is kept in the ledger."""
    reply = await ours.ledger.command(
        caller, caller.conversation(thread_id), "reset", command_id=command_id
    )
    return done(reply)


def _tenant(caller: Identity, named: str) -> str:
    if caller.name is not None or caller.tenant_id != DEFAULT_TENANT:
        raise Forbidden(f"these credentials are of tenant {caller.tenant_id!r}, not of {named!r}")
    return named


def _state(found: dict[str, Any]) -> State:
    return State.model_construct(
        thread_id=found["conversation_id"],
        user_id=found["user_id"],
        tenant_id=found["metadata"].get(TENANT, found["tenant_id"]),
        recent_messages=[_shown(each) for each in found["recent_messages"]],
        tokens_used=Totals(**found["tokens_used"]),
        last_activity=found["last_activity"],
        created_at=found["created_at"],
    )


def _shown(message: dict[str, Any]) -> Shown:
    return Shown.model_construct(
        role=message["role"], content=message["content"], timestamp=message["timestamp"]
    )
