"""Stored events as the tables need them: read straight from their JSON.

Nearly all events of a ledger are messages and usage. `msgspec` reads those into what their rows
are made of, in a fifth of the time that it takes to make events of the domain of them
(docs/analytics.md has the figures). Whatever does not look as usual goes through the mapper, which
knows what to make of it (an older schema, say), or says why it cannot be understood.
"""

from __future__ import annotations

from datetime import datetime
from typing import Final, cast

from msgspec import MsgspecError, Raw, Struct
from msgspec.json import Decoder
from pydantic_core import from_json, to_json

from domain import clock
from domain.events import ConversationEvent, MessageAppended, UsageRecorded
from domain.mapper import ConversationMapper
from domain.messages import JSONObject


class Said(Struct, gc=False):
    """What a MessageAppended says; the same fields."""

    message_id: str
    role: str
    content: str | list[JSONObject] | None
    metadata: JSONObject
    name: str | None = None
    tool_calls: list[JSONObject] | None = None
    tool_call_id: str | None = None
    created_at: str | None = None


class Used(Struct, gc=False):
    """What a UsageRecorded says; the same fields."""

    prompt_tokens: int
    completion_tokens: int
    metadata: JSONObject
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    model: str | None = None
    provider: str | None = None
    message_id: str | None = None
    cost_usd: str | None = None


class _Body(Struct, gc=False):
    """The stored form, as `domain.mapper` has it."""

    type: str
    schema: int
    tenant_id: str
    conversation_id: str
    version: int
    time: str
    actor: str | None
    command_id: str
    verb: str
    data: Raw


class Received(Struct, gc=False):
    """One event with its place in the ledger: `data` is its JSON as stored, `digest` its hash."""

    key: str
    """Of the conversation's id."""
    version: int
    type: str
    time: datetime
    actor: str | None
    command_id: str
    data: str
    event: Said | Used | ConversationEvent
    partition: int
    seq: int
    digest: str


_USUAL: Final[dict[str, tuple[int, Decoder[Said | Used]]]] = {
    said.TOPIC: (said.class_version, cast("Decoder[Said | Used]", Decoder(what)))
    for said, what in ((MessageAppended, Said), (UsageRecorded, Used))
}
"""By type: the schema that is read here, and by what."""

_body_of = Decoder(_Body).decode
_mapper = ConversationMapper()


def received(
    key: str, version: int, topic: str, body: bytes, *, partition: int, seq: int, digest: str
) -> Received:
    """Reads a stored event. Raises what the mapper raises for one that cannot be understood."""
    usual = _USUAL.get(topic)
    if usual is not None:
        try:
            found = _body_of(body)
            if (
                found.type == topic
                and found.version == version
                and found.schema == usual[0]
                and f"{found.tenant_id}.{found.conversation_id}" == key
                and "%" not in key  # the ids are their own tokens, as most are
            ):
                return Received(
                    key,
                    version,
                    topic,
                    clock.from_text(found.time),
                    found.actor,
                    found.command_id,
                    str(found.data, "utf-8"),
                    usual[1].decode(found.data),
                    partition,
                    seq,
                    digest,
                )
        except (MsgspecError, ValueError):
            pass  # whatever it is, the mapper knows, or says so
    event = _mapper.event_of(key, version, topic, body)
    return Received(
        key,
        version,
        topic,
        event.timestamp,
        event.actor,
        event.command_id,
        data_of(body),
        _as_usual(event),
        partition,
        seq,
        digest,
    )


def _as_usual(event: ConversationEvent) -> Said | Used | ConversationEvent:
    match event:
        case MessageAppended():
            usual: type[Said | Used] = Said
        case UsageRecorded():
            usual = Used
        case _:
            return event
    return usual(*(getattr(event, name) for name in usual.__struct_fields__))


_DATA = b',"data":'


def data_of(body: bytes) -> str:
    """The event's `data` as JSON text, as it is stored.

    The mapper writes it last, behind values without braces, and then it is cut out. A body that
    another program wrote in another order is parsed.
    """
    start = body.find(_DATA)
    if start > 0 and body.endswith(b"}}") and body.count(b"{", 0, start) == 1:
        return body[start + len(_DATA) : -1].decode()
    return to_json(from_json(body)["data"]).decode()
