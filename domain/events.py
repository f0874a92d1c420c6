"""What can have happened in a conversation: one class per event type of the contract.

The classes are frozen dataclasses on the `eventsourcing` library. A class's name in the ledger is
its `TOPIC`, registered with the library; the `schema` number of its stored JSON is its
`class_version` (1 where it has none). When the fields of a type change, raise its `class_version`
and add a static method `upcast_v1_v2(state)` that brings an older event's attributes, given as a
dict, to the next schema in place: events already written stay readable for ever.

A field with a default is left out of the stored JSON while it has that default.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Any, ClassVar, Final, Literal, Protocol

from eventsourcing.domain import CanInitAggregate, CanMutateAggregate
from eventsourcing.utils import register_topic

from .messages import Content, JSONObject, Role

CONVERSATION_TOPIC: Final = "Conversation"

ClosedReason = Literal["closed", "inactive", "deleted"]
Status = Literal["active", "closed", "inactive", "deleted", "erased"]


class Absent(Enum):
    """The value of a field that an event does not mention, where null means something else."""

    ABSENT = "absent"

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT


# Every event class by its name in the ledger. The library's registry holds the same names, but
# looks for a name that it does not know among Python's modules, and imports the one it finds.
EVENT_CLASSES: Final[dict[str, type[ConversationEvent]]] = {}


class _Applies(Protocol):
    def apply(self, event: ConversationEvent) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ConversationEvent(CanMutateAggregate[str]):
    """What every event of a conversation says beside its own fields.

    `originator_id` is the key of the ConversationId and `originator_version` the contract's
    `version`; `timestamp` is the library's time of the decision, in UTC, the same for all events of
    one command; `verb` is the command's verb.
    """

    TOPIC: ClassVar[str]
    class_version: ClassVar[int] = 1
    # Whether somebody is there: an end is not what keeps a conversation from being idle.
    is_activity: ClassVar[bool] = True

    originator_id: str
    originator_version: int
    timestamp: datetime
    actor: str | None
    command_id: str
    verb: str

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "TOPIC" in cls.__dict__:
            register_topic(cls.TOPIC, cls)
            EVENT_CLASSES[cls.TOPIC] = cls

    def apply(self, aggregate: _Applies) -> None:
        """Has the conversation take this event in; called by the library's `mutate`."""
        aggregate.apply(self)


@dataclass(frozen=True, kw_only=True)
class ConversationStarted(CanInitAggregate[str], ConversationEvent):
    """The conversation began."""

    TOPIC = "ConversationStarted"

    originator_topic: str = CONVERSATION_TOPIC
    user_id: str
    title: str | None = None
    model: str | None = None
    context: JSONObject
    metadata: JSONObject


@dataclass(frozen=True, kw_only=True)
class MessageAppended(ConversationEvent):
    """Somebody said something. `created_at` (RFC 3339) is the time of an imported message."""

    TOPIC = "MessageAppended"

    message_id: str
    role: Role
    content: Content
    name: str | None = None
    tool_calls: list[JSONObject] | None = None
    tool_call_id: str | None = None
    created_at: str | None = None
    metadata: JSONObject


@dataclass(frozen=True, kw_only=True)
class UsageRecorded(ConversationEvent):
    """Tokens were used. The totals are inclusive as in OpenTelemetry's `gen_ai.usage.*`:

    cached + cache_write ≤ prompt, reasoning ≤ completion. `cost_usd` is a decimal string.
    """

    TOPIC = "UsageRecorded"

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    model: str | None = None
    provider: str | None = None
    message_id: str | None = None
    cost_usd: str | None = None
    metadata: JSONObject


@dataclass(frozen=True, kw_only=True)
class SessionReset(ConversationEvent):
    """A new session began: the recent window and the totals since the reset are empty."""

    TOPIC = "SessionReset"

    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ContextUpdated(ConversationEvent):
    """Facts about the conversation changed. None removes a fact, and so does a null in an object.

    `context` and `metadata` are merged into what was there, key by key at the top level.
    """

    TOPIC = "ContextUpdated"

    title: str | Absent | None = ABSENT
    model: str | Absent | None = ABSENT
    user_id: str | Absent | None = ABSENT
    context: JSONObject
    metadata: JSONObject


@dataclass(frozen=True, kw_only=True)
class ConversationTitled(ConversationEvent):
    """The conversation got its title: of itself (`auto`) or from somebody (`user`)."""

    TOPIC = "ConversationTitled"

    title: str
    source: Literal["auto", "user"]


@dataclass(frozen=True, kw_only=True)
class ReplyStarted(ConversationEvent):
    """Somebody began to say something: a message whose text is still to come, piece by piece."""

    TOPIC = "ReplyStarted"

    message_id: str
    role: Role
    model: str | None = None
    metadata: JSONObject


@dataclass(frozen=True, kw_only=True)
class ReplyChunkAppended(ConversationEvent):
    """A reply went on: `text` is its chunks `first_index` to `last_index`, counted from 0."""

    TOPIC = "ReplyChunkAppended"

    message_id: str
    text: str
    first_index: int
    last_index: int


@dataclass(frozen=True, kw_only=True)
class ReplyCompleted(ConversationEvent):
    """A reply is whole: so many code points, and the SHA-256 (hex) of its text in UTF-8."""

    TOPIC = "ReplyCompleted"

    message_id: str
    finish_reason: str | None = None
    chars: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class ReplyAborted(ConversationEvent):
    """A reply ended before it was whole; what was said of it stays."""

    TOPIC = "ReplyAborted"

    message_id: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class MessageEdited(ConversationEvent):
    """A message has other content from now on."""

    TOPIC = "MessageEdited"

    message_id: str
    content: Content


@dataclass(frozen=True, kw_only=True)
class MessageRedacted(ConversationEvent):
    """A message is not to be shown any more, whatever it says or said."""

    TOPIC = "MessageRedacted"

    message_id: str
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ConversationClosed(ConversationEvent):
    """The conversation takes nothing more until it is reopened; the reason becomes its status."""

    TOPIC = "ConversationClosed"
    is_activity = False

    reason: ClosedReason


@dataclass(frozen=True, kw_only=True)
class ConversationReopened(ConversationEvent):
    """The conversation is active again."""

    TOPIC = "ConversationReopened"

    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class ConversationErased(ConversationEvent):
    """The conversation is gone for good: no view shows anything of it."""

    TOPIC = "ConversationErased"
    is_activity = False

    reason: str | None = None
    legal_basis: str | None = None


def merged(known: JSONObject, changes: JSONObject) -> JSONObject:
    """Returns `known` with the top-level keys of `changes` in their place; null removes a key."""
    return {key: value for key, value in {**known, **changes}.items() if value is not None}
