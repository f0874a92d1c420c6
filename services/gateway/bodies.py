"""What the families' request and answer bodies have in common: camelCase, times, messages.

A field of a message that has no place of its own is kept in its metadata: front ends send what they
have, and nothing of it is lost.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from fastapi import Header, Query, Request
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from domain import clock
from domain.messages import Role
from services.endpoint import NAME_MAX
from services.gateway.errors import Forbidden, invalid, not_called_json, unreadable
from services.gateway.identity import Identity

JSON = dict[str, Any]

CommandId = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=NAME_MAX,
        pattern=r"^[!-~](?:[ -~]*[!-~])?$",
        description="Sent again with the same key, it is not written again.",
    ),
]
MinSeq = Annotated[
    int | None,
    Query(
        alias="minSeq",
        ge=0,
        le=2**53,
        description="The `seq` of a write's answer: the answer includes it.",
    ),
]


class Body(BaseModel):
    """A JSON object in camelCase."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class Message(Body):
    """A message as front ends send it; what it has besides goes to its metadata."""

    model_config = ConfigDict(extra="allow")

    role: Role
    content: str | list[JSON] | None = None
    message_id: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    name: str | None = None
    tool_calls: list[JSON] | None = None
    tool_call_id: str | None = None
    metadata: JSON = Field(default_factory=dict)

    def command(self) -> JSON:
        """The message as the ledger's commands take it."""
        body: JSON = {"role": self.role, "content": self.content}
        for name in ("message_id", "name", "tool_calls", "tool_call_id"):
            if (value := getattr(self, name)) is not None:
                body[name] = value
        if metadata := {**(self.model_extra or {}), **self.metadata}:
            body["metadata"] = metadata
        return body


class Done(Body):
    """Something was written: `version` of the conversation, `seq` to read it with (`minSeq`)."""

    success: bool = True
    version: int
    seq: int


COMMAND_ID: Final = re.compile(r"[!-~](?:[ -~]{0,126}[!-~])?", re.ASCII)
T = TypeVar("T", bound=Body)


def documented(body: type[Body]) -> JSON:
    """What the OpenAPI document says of a route that reads its request by itself, which costs half
    of what the framework's reading costs."""
    schema = body.model_json_schema(by_alias=True)
    return {
        "requestBody": {"required": True, "content": {"application/json": {"schema": schema}}},
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": False,
                "schema": {"type": "string", "minLength": 1, "maxLength": NAME_MAX},
                "description": "Sent again with the same key, it is not written again.",
            }
        ],
    }


async def body_of(request: Request, model: type[T]) -> T:
    """The request's JSON body. Raises GatewayError, naming each wrong field."""
    if not request.headers.get("content-type", "").startswith("application/json"):
        raise not_called_json()
    first = await request.receive()
    if first["type"] == "http.request" and not first.get("more_body"):
        raw = first.get("body", b"")
    else:  # it comes in several
        raw = first.get("body", b"") + await request.body()
    try:
        return model.model_validate_json(raw)
    except ValidationError as error:
        raise unreadable(error) from None


def command_id_of(request: Request) -> str | None:
    """The request's `Idempotency-Key`, None without one. Raises GatewayError."""
    text = request.headers.get("idempotency-key")
    if text is not None and not COMMAND_ID.fullmatch(text):
        raise invalid("Idempotency-Key has to be 1 to 128 printable characters", "Idempotency-Key")
    return text


def done(reply: Mapping[str, Any]) -> Done:
    """The answer to a write, of the service's reply."""
    return Done(version=reply["version"], seq=reply["seq"])


def owner(caller: Identity, named: str | None) -> str:
    """Whose conversation it becomes. Raises Forbidden when it would be another user's."""
    if named is not None and caller.user_id not in (None, named):
        raise Forbidden(f"these credentials are of user {caller.user_id!r}, not of {named!r}")
    return named or caller.user


def milliseconds(time: str) -> int:
    """Milliseconds since 1970 of a time as the ledger writes it."""
    return int(clock.from_text(time).timestamp() * 1000)


def seconds(time: str) -> float:
    """Seconds since 1970 of a time as the ledger writes it."""
    return clock.from_text(time).timestamp()


def moment(ms: float) -> str:
    """The RFC 3339 time that so many milliseconds since 1970 are."""
    return clock.to_text(datetime.fromtimestamp(ms / 1000, UTC))
