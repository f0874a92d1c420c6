"""A conversation: what it remembers, and what happens to it.

What may happen is said by the rules (`domain.rules`): `decide` takes a conversation and a command
and returns the events to write, or refuses. `evolve` takes a conversation and an event that has
happened and returns the conversation after it. A conversation remembers only what a rule asks for:
what is said and shown is in its events, and the views are folds of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Self, cast

from eventsourcing.domain import BaseAggregate
from pydantic_core import to_json

from . import clock
from .commands import (
    EditMessage,
    EraseConversation,
    FinishReply,
    InitConversation,
    NewMessage,
    StartReply,
    TokenUse,
    UpdateConversation,
)
from .events import (
    ABSENT,
    CONVERSATION_TOPIC,
    ClosedReason,
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
    ReplyAborted,
    ReplyChunkAppended,
    ReplyCompleted,
    ReplyStarted,
    SessionReset,
    Status,
    UsageRecorded,
)
from .identity import ConversationId, new_id
from .messages import title_of
from .replies import OpenReply
from .usage import TokenTotals

RECEIPTS_MAX: Final = 1_000
MESSAGE_IDS_MAX: Final = 1_000

Said = dict[str, Any]
"""Who says it, by which command, and when: the fields that all events of a command have alike."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a command has written: its events, and the token totals after them if it used any."""

    verb: str
    first_version: int
    last_version: int
    usage: TokenTotals | None


class Conversation(BaseAggregate[str]):
    """One conversation, as far as its rules need it.

    `receipts` are of its last 1,000 commands, `message_times` of its last 1,000 messages and
    `redacted` of its last 1,000 redactions, the oldest first. `replies` are those that have begun
    and not ended. `size_bytes` is roughly what it takes in memory.
    """

    TOPIC = CONVERSATION_TOPIC

    def __init__(self) -> None:
        self.status: Status = "active"
        self.user_id: str | None = None
        self.titled = False
        self.totals = TokenTotals()
        self.receipts: dict[str, Receipt] = {}
        self.message_times: dict[str, datetime] = {}
        self.replies: dict[str, OpenReply] = {}
        self.redacted: dict[str, None] = {}
        self.fact_bytes: dict[str, int] = {}  # of each key of context and metadata
        self.size_bytes = _BASE_BYTES

    # Commands: what happens when the rules allow it.

    @classmethod
    def start(cls, id: ConversationId, command: InitConversation, said: Said) -> Self:
        return cls._create(
            ConversationStarted,
            id=id.key,
            user_id=command.user_id,
            title=command.title,
            model=command.model,
            context=command.context,
            metadata=command.metadata,
            **said,
        )

    def wake(self, said: Said) -> None:
        """Begins a new session where the conversation was closed as inactive."""
        if self.status == "inactive":
            self.reset("inactive", said)

    def append(self, messages: Iterable[NewMessage], said: Said) -> None:
        for message in messages:
            self.trigger_event(
                MessageAppended,
                message_id=message.message_id or new_id(said["timestamp"]),
                role=message.role,
                content=message.content,
                name=message.name,
                tool_calls=message.tool_calls,
                tool_call_id=message.tool_call_id,
                created_at=message.created_at,
                metadata=message.metadata,
                **said,
            )
            if not self.titled and message.role == "user":
                title = title_of(message.content)
                if title is not None:
                    self.trigger_event(ConversationTitled, title=title, source="auto", **said)

    def record_usage(self, use: TokenUse, said: Said, *, of: str | None = None) -> None:
        """`of`: the message that the tokens are for, unless the use itself names one."""
        self.trigger_event(
            UsageRecorded,
            prompt_tokens=use.prompt_tokens,
            completion_tokens=use.completion_tokens,
            cached_tokens=use.cached_tokens,
            cache_write_tokens=use.cache_write_tokens,
            reasoning_tokens=use.reasoning_tokens,
            model=use.model,
            provider=use.provider,
            message_id=use.message_id or of,
            cost_usd=use.cost_usd,
            metadata=use.metadata,
            **said,
        )

    def reset(self, reason: str | None, said: Said) -> None:
        if self.status == "inactive":
            self.reopen("active again", said)
        self._abort_replies("reset", said)
        self.trigger_event(SessionReset, reason=reason, **said)

    def update(self, command: UpdateConversation, said: Said) -> None:
        given = command.model_fields_set
        self.trigger_event(
            ContextUpdated,
            title=command.title if "title" in given else ABSENT,
            model=command.model if "model" in given else ABSENT,
            user_id=command.user_id if "user_id" in given else ABSENT,
            context=command.context,
            metadata=command.metadata,
            **said,
        )

    def start_reply(self, command: StartReply, said: Said) -> None:
        self.trigger_event(
            ReplyStarted,
            message_id=command.message_id or new_id(said["timestamp"]),
            role=command.role or "assistant",
            model=command.model,
            metadata=command.metadata,
            **said,
        )

    def append_chunks(self, message_id: str, texts: Sequence[str], said: Said) -> None:
        first = self.replies[message_id].next_index
        self.trigger_event(
            ReplyChunkAppended,
            message_id=message_id,
            text="".join(texts),
            first_index=first,
            last_index=first + len(texts) - 1,
            **said,
        )

    def finish_reply(self, command: FinishReply, said: Said) -> None:
        reply = self.replies[command.message_id]
        self.trigger_event(
            ReplyCompleted,
            message_id=command.message_id,
            finish_reason=command.finish_reason,
            chars=reply.chars,
            sha256=reply.sha256,
            **said,
        )
        if command.usage is not None:
            self.record_usage(command.usage, said, of=command.message_id)

    def abort_reply(self, message_id: str, reason: str, said: Said) -> None:
        self.trigger_event(ReplyAborted, message_id=message_id, reason=reason, **said)

    def _abort_replies(self, reason: str, said: Said) -> None:
        for message_id in list(self.replies):
            self.abort_reply(message_id, reason, said)

    def edit(self, command: EditMessage, said: Said) -> None:
        self.trigger_event(
            MessageEdited, message_id=command.message_id, content=command.content, **said
        )

    def redact(self, message_id: str, reason: str | None, said: Said) -> None:
        if message_id in self.replies:
            self.abort_reply(message_id, "redacted", said)
        self.trigger_event(MessageRedacted, message_id=message_id, reason=reason, **said)

    def close(self, reason: ClosedReason, said: Said) -> None:
        self._abort_replies(reason, said)
        self.trigger_event(ConversationClosed, reason=reason, **said)

    def reopen(self, reason: str | None, said: Said) -> None:
        self.trigger_event(ConversationReopened, reason=reason, **said)

    def erase(self, command: EraseConversation, said: Said) -> None:
        self._abort_replies("erased", said)
        self.trigger_event(
            ConversationErased, reason=command.reason, legal_basis=command.legal_basis, **said
        )

    # Events: what they change. Nothing here fails or checks.

    def apply(self, event: ConversationEvent) -> None:
        """Takes in what has happened; an event that no rule asks about leaves only its receipt."""
        usage = None
        match event:
            case MessageAppended():
                self._remember_message(event.message_id, event.timestamp)
            case UsageRecorded():
                usage = self.totals.plus(event.prompt_tokens, event.completion_tokens)
                self.totals = usage
            case SessionReset():
                self.totals = self.totals.reset()
            case ConversationStarted() | ContextUpdated():
                self._note_facts(event)
            case ConversationTitled():
                self.titled = True
            case ReplyStarted() | ReplyChunkAppended() | ReplyCompleted() | ReplyAborted():
                self._follow_reply(event)
            case MessageRedacted():
                self._remember_redaction(event.message_id)
            case ConversationClosed():
                self.status = event.reason
            case ConversationReopened():
                self.status = "active"
            case ConversationErased():
                self.status = "erased"
                self.user_id = None
        self._remember_command(event, usage)

    def _note_facts(self, event: ConversationStarted | ContextUpdated) -> None:
        self.titled = self.titled or isinstance(event.title, str)
        if event.user_id is not ABSENT:
            self.user_id = event.user_id
        self.fact_bytes = merged_facts(self.fact_bytes, event)

    def _follow_reply(
        self, event: ReplyStarted | ReplyChunkAppended | ReplyCompleted | ReplyAborted
    ) -> None:
        reply = self.replies.pop(event.message_id, None)
        if reply is not None:
            self.size_bytes -= _REPLY_BYTES + reply.size_bytes
        match event:
            case ReplyStarted():
                self._remember_message(event.message_id, event.timestamp)
                self._hold_reply(event.message_id, OpenReply())
            case ReplyChunkAppended() if reply is not None:
                self._hold_reply(event.message_id, reply.plus(event.text, event.last_index))

    def _hold_reply(self, message_id: str, reply: OpenReply) -> None:
        self.replies[message_id] = reply
        self.size_bytes += _REPLY_BYTES + reply.size_bytes

    def _remember_redaction(self, message_id: str) -> None:
        if message_id not in self.redacted:
            self.redacted[message_id] = None
            self.size_bytes += _REDACTION_BYTES + len(message_id)
        if len(self.redacted) > MESSAGE_IDS_MAX:
            oldest = next(iter(self.redacted))
            del self.redacted[oldest]
            self.size_bytes -= _REDACTION_BYTES + len(oldest)

    def _remember_message(self, message_id: str, time: datetime) -> None:
        self.message_times[message_id] = time
        self.size_bytes += _MESSAGE_BYTES + len(message_id)
        if len(self.message_times) > MESSAGE_IDS_MAX:
            oldest = next(iter(self.message_times))
            del self.message_times[oldest]
            self.size_bytes -= _MESSAGE_BYTES + len(oldest)

    def _remember_command(self, event: ConversationEvent, usage: TokenTotals | None) -> None:
        version = event.originator_version
        first = self.receipts.get(event.command_id)
        if first is not None:
            self.receipts[event.command_id] = Receipt(
                first.verb, first.first_version, version, usage or first.usage
            )
            return
        self.receipts[event.command_id] = Receipt(event.verb, version, version, usage)
        self.size_bytes += _RECEIPT_BYTES + len(event.command_id)
        if len(self.receipts) > RECEIPTS_MAX:
            oldest = next(iter(self.receipts))
            del self.receipts[oldest]
            self.size_bytes -= _RECEIPT_BYTES + len(oldest)

    # Snapshots.

    def to_state(self) -> dict[str, Any]:
        """Returns all of it as plain JSON, for `from_state`."""
        return {
            "format": _FORMAT,
            "id": self.id,
            "version": self.version,
            "created_on": clock.to_text(self.created_on),
            "modified_on": clock.to_text(self.modified_on),
            "status": self.status,
            "user_id": self.user_id,
            "titled": self.titled,
            "fact_bytes": self.fact_bytes,
            "totals": list(self.totals),
            "receipts": [
                [
                    command_id,
                    receipt.verb,
                    receipt.first_version,
                    receipt.last_version,
                    receipt.usage and list(receipt.usage),
                ]
                for command_id, receipt in self.receipts.items()
            ],
            "messages": [
                [message_id, clock.to_text(time)] for message_id, time in self.message_times.items()
            ],
            "replies": [
                [message_id, reply.text, reply.next_index]
                for message_id, reply in self.replies.items()
            ],
            "redacted": list(self.redacted),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Returns the conversation that `to_state` gave, without a look at its events.

        Raises ValueError for a state that is not one, or of a format that is not known here.
        """
        if state.get("format") != _FORMAT:
            raise ValueError(f"conversation state of unknown format {state.get('format')!r}")
        try:
            return cls._from_known_state(state)
        except (KeyError, TypeError) as error:
            raise ValueError(f"conversation state that cannot be read: {error!r}") from error

    @classmethod
    def _from_known_state(cls, state: dict[str, Any]) -> Self:
        self = object.__new__(cls)
        self.__base_init__(state["id"], state["version"], clock.from_text(state["created_on"]))
        self.__init__()  # type: ignore[misc]  # as the library does it in CanInitAggregate.mutate
        self.modified_on = clock.from_text(state["modified_on"])
        self.status = state["status"]
        self.user_id = state["user_id"]
        self.titled = state["titled"]
        self.fact_bytes = state["fact_bytes"]
        self.totals = TokenTotals(*state["totals"])
        for command_id, verb, first_version, last_version, usage in state["receipts"]:
            self.receipts[command_id] = Receipt(
                verb, first_version, last_version, usage and TokenTotals(*usage)
            )
            self.size_bytes += _RECEIPT_BYTES + len(command_id)
        for message_id, time in state["messages"]:
            self._remember_message(message_id, clock.from_text(time))
        for message_id, text, next_index in state["replies"]:
            self._hold_reply(message_id, OpenReply().plus(text, next_index - 1))
        for message_id in state["redacted"]:
            self._remember_redaction(message_id)
        return self


_FORMAT: Final = 4

# Roughly what the parts of a conversation take in memory, in CPython on 64 bits.
_BASE_BYTES: Final = 1_600
_RECEIPT_BYTES: Final = 220
_MESSAGE_BYTES: Final = 150
_REPLY_BYTES: Final = 250
_REDACTION_BYTES: Final = 100


def evolve(conversation: Conversation | None, event: ConversationEvent) -> Conversation:
    """Returns the conversation after an event that has happened; no rule is asked.

    The given conversation is changed. Raises the library's OriginatorIDError or
    OriginatorVersionError for an event that is not the next of this conversation.
    """
    return cast("Conversation", event.mutate(conversation))


def merged_facts(
    known: dict[str, int], told: UpdateConversation | ContextUpdated | ConversationStarted
) -> dict[str, int]:
    """Returns the bytes that each fact takes once those told are merged; null removes one."""
    facts = dict(known)
    for kind, values in (("context", told.context), ("metadata", told.metadata)):
        for key, value in values.items():
            if value is None:
                facts.pop(f"{kind}.{key}", None)
            else:
                facts[f"{kind}.{key}"] = len(key.encode()) + len(to_json(value))
    return facts
