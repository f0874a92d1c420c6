"""The stored form of an event: the contract's JSON, written and read in one place.

The library's `Mapper` port for conversations. `StoredEvent.state` is one compact JSON object,
readable with nothing but a NATS client; keys in this order:

    {"type", "schema", "tenant_id", "conversation_id", "version", "time", "actor", "command_id",
     "verb", "data": {…}}

`data` holds the event's own fields in the order of the contract, without those that are absent.
Reading upcasts older schemas and ignores keys it does not know; the identity is that of the record
(`originator_id`, `originator_version`), not what the JSON repeats of it.
"""

from __future__ import annotations

from dataclasses import MISSING, fields
from datetime import UTC
from functools import cache
from typing import Any, NamedTuple, cast

from eventsourcing.domain import DomainEventProtocol, EventSourcingError
from eventsourcing.persistence import (
    Mapper,
    MapperDeserialisationError,
    StoredEvent,
    Transcoder,
)
from pydantic_core import from_json, to_json

from . import clock
from .events import EVENT_CLASSES, ConversationEvent
from .identity import ConversationId


class UnknownEvent(EventSourcingError):
    """A stored event is of a type, or of a schema of its type, that this program does not know."""

    def __init__(self, stored: StoredEvent, what: str) -> None:
        super().__init__(
            f"{what}: event {stored.originator_version} of {stored.originator_id}. "
            "It was written by a newer release: upgrade this process"
        )
        self.topic = stored.topic
        self.originator_id = stored.originator_id
        self.originator_version = stored.originator_version


class JSONTranscoder(Transcoder):
    """JSON as pydantic writes it: compact UTF-8, no NaN; reads in the same bounds."""

    def encode(self, obj: Any) -> bytes:
        return to_json(obj)

    def decode(self, data: bytes) -> Any:
        return from_json(data, allow_inf_nan=False)


class _Form(NamedTuple):
    """How one event type is stored: its fields of `data`, and the attributes with a default."""

    event_class: type[ConversationEvent]
    schema: int
    data: tuple[tuple[str, Any], ...]  # (field, the value that is left out), in stored order
    defaults: dict[str, Any]
    known: frozenset[str]


_COMMON = frozenset(
    {"originator_id", "originator_version", "timestamp", "actor", "command_id", "verb"}
)
_NOT_STORED = frozenset({"originator_topic"})


@cache
def _form_of(topic: str) -> _Form:
    """Returns the stored form of the event type; raises KeyError for one that is not known."""
    event_class = EVENT_CLASSES[topic]
    own = [each for each in fields(event_class) if each.name not in _COMMON]
    stored = [each for each in own if each.name not in _NOT_STORED]
    return _Form(
        event_class=event_class,
        schema=event_class.class_version,
        data=tuple((each.name, each.default) for each in stored),
        defaults={each.name: each.default for each in own if each.default is not MISSING},
        known=frozenset(each.name for each in own) | _COMMON,
    )


_SPEAKS_OF_ANOTHER = "its body speaks of another event than what stands around it"


def _is_of(stored: dict[str, Any], id: str, version: int, topic: str) -> bool:
    """Whether a body says of itself what it is taken for; the hash chain covers bodies alone."""
    if stored["version"] != version or stored["type"] != topic:
        return False
    tenant_id, conversation_id = stored["tenant_id"], stored["conversation_id"]
    if "%" not in id:  # the ids are their own tokens, as most are
        return f"{tenant_id}.{conversation_id}" == id
    return ConversationId(tenant_id, conversation_id).key == id


class ConversationMapper(Mapper[str]):
    """Maps conversation events to the contract's JSON and back."""

    def __init__(self) -> None:
        super().__init__(transcoder=JSONTranscoder())

    def to_stored_event(self, domain_event: DomainEventProtocol[str]) -> StoredEvent:
        """Returns the event as stored: its topic is the contract's type name."""
        event = cast("ConversationEvent", domain_event)
        attributes = vars(event)
        form = _form_of(event.TOPIC)
        id = ConversationId.from_key(event.originator_id)
        time = event.timestamp
        state = self.transcoder.encode(
            {
                "type": event.TOPIC,
                "schema": form.schema,
                "tenant_id": id.tenant_id,
                "conversation_id": id.conversation_id,
                "version": event.originator_version,
                # The encoder writes a time faster, but without microseconds where they are 0.
                "time": time if time.microsecond and time.tzinfo is UTC else clock.to_text(time),
                "actor": event.actor,
                "command_id": event.command_id,
                "verb": event.verb,
                "data": {
                    name: value
                    for name, left_out in form.data
                    if (value := attributes[name]) is not left_out
                },
            }
        )
        return StoredEvent(
            originator_id=event.originator_id,
            originator_version=event.originator_version,
            topic=event.TOPIC,
            state=state,
        )

    def to_domain_event(self, stored_event: StoredEvent) -> ConversationEvent:
        """Returns the event of a stored one, at the present schema of its class.

        Raises UnknownEvent for a type or a schema that is not known here, and the library's
        MapperDeserialisationError for a state that is not the contract's JSON.
        """
        return self.event_of(
            cast("str", stored_event.originator_id),
            stored_event.originator_version,
            stored_event.topic,
            stored_event.state,
        )

    def event_of(self, id: str, version: int, topic: str, state: bytes) -> ConversationEvent:
        """The same, of what a stored event consists of; raises the same."""
        try:
            form = _form_of(topic)
        except KeyError:
            what = f"event type {topic!r} is not known"
            raise UnknownEvent(StoredEvent(id, version, topic, state), what) from None
        try:
            stored: dict[str, Any] = self.transcoder.decode(state)
            if not _is_of(stored, id, version, topic):
                raise ValueError(_SPEAKS_OF_ANOTHER)
            envelope = {
                "originator_id": id,
                "originator_version": version,
                "timestamp": clock.from_text(stored["time"]),
                "actor": stored["actor"],
                "command_id": stored["command_id"],
                "verb": stored["verb"],
            }
            data: dict[str, Any] = stored["data"]
            schema: int = stored["schema"]
            if schema != form.schema:
                if schema > form.schema:
                    what = f"schema {schema} of event type {topic!r} is not known"
                    raise UnknownEvent(StoredEvent(id, version, topic, state), what)
                data = {**data, **envelope}
                for older in range(schema, form.schema):
                    getattr(form.event_class, f"upcast_v{older}_v{older + 1}")(data)
                envelope = {}
            attributes = {**form.defaults, **data, **envelope}
            if attributes.keys() != form.known:
                attributes = {name: attributes[name] for name in form.known}
        except (ValueError, TypeError, KeyError) as error:
            raise MapperDeserialisationError(
                f"event {version} of {id} ({topic}) is not the ledger's JSON: {error!r}"
            ) from error
        event = object.__new__(form.event_class)
        object.__setattr__(event, "__dict__", attributes)
        return event
