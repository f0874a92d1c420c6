"""A conversation: what it remembers, what it decides, and the rules it decides by.

Two functions are all that the outside needs. `decide` takes a conversation and a command and
returns the events to write, or refuses; `evolve` takes a conversation and an event that has
happened and returns the conversation after it. A conversation remembers only what a rule asks for:
what is said and shown is in its events, and the views are folds of those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from math import ceil
from typing import Any, Final, NoReturn, Self, cast

from eventsourcing.domain import BaseAggregate
from pydantic_core import to_json

from . import clock
from .commands import (
    AbortReply,
    AppendChunks,
    AppendMessage,
    AppendTurn,
    CloseConversation,
    Command,
    EditMessage,
    EraseConversation,
    FinishReply,
    ImportMessages,
    InitConversation,
    NewMessage,
    RecordUsage,
    RedactMessage,
    ReopenConversation,
    ResetSession,
    StartReply,
    TokenUse,
    UpdateConversation,
)
from .errors import (
    ConversationIsClosed,
    ConversationIsErased,
    ConversationNotInitialized,
    InvalidState,
    MessageNotFound,
    MessageTooLarge,
    RateLimited,
    VersionConflict,
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
from .messages import Content, content_bytes, title_of
from .replies import OpenReply
from .usage import TokenTotals

RECEIPTS_MAX: Final = 1_000
MESSAGE_IDS_MAX: Final = 1_000
FACTS_BYTES_MAX: Final = 900_000
"""Context and metadata together, as JSON: as much as one event can tell, so that every answer and
every snapshot can hold them."""
OPEN_REPLIES_MAX: Final = 8
_MINUTE: Final = timedelta(minutes=1)


# -- values -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """What this ledger takes; `messages_per_minute` is 1 to 1,000, or None for no limit."""

    max_content_bytes: int = 262_144
    messages_per_minute: int | None = None


@dataclass(frozen=True, slots=True)
class CommandContext:
    """What came along with a command; a `command_id` is made up where there is none.

    With a `user_id` only that user's conversation is there; any other is refused as unknown.
    """

    command_id: str | None
    actor: str | None = None
    expected_version: int | None = None
    user_id: str | None = None


@dataclass(frozen=True, slots=True)
class Receipt:
    """What a command has written: its events, and the token totals after them if it used any."""

    verb: str
    first_version: int
    last_version: int
    usage: TokenTotals | None


@dataclass(frozen=True, slots=True)
class Decision:
    """The events to write, and the conversation after them.

    Neither events nor a duplicate: the command asks for nothing that is not so already. A
    `duplicate` is the receipt of the same command's first time.
    """

    conversation: Conversation | None
    events: tuple[ConversationEvent, ...]
    duplicate: Receipt | None = None


@dataclass(frozen=True, slots=True)
class PastMessage:
    """What the ledger says about a message that a conversation no longer remembers."""

    exists: bool
    redacted: bool = False


class Forgotten(Exception):
    """The answer depends on a message that is none of the last 1,000.

    No refusal: whoever has the ledger looks the message up and asks again with what it found.
    """

    def __init__(self, message_id: str) -> None:
        super().__init__(f"message {message_id!r} has to be looked up in the ledger")
        self.message_id = message_id


# -- the aggregate ------------------------------------------------------------------------------


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

    # Commands: what happens when the rules allow it. `said` is who, which command, and when.

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
        self.fact_bytes = _merged_facts(self.fact_bytes, event)

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


Said = dict[str, Any]

_FORMAT: Final = 4

# Roughly what the parts of a conversation take in memory, in CPython on 64 bits.
_BASE_BYTES: Final = 1_600
_RECEIPT_BYTES: Final = 220
_MESSAGE_BYTES: Final = 150
_REPLY_BYTES: Final = 250
_REDACTION_BYTES: Final = 100

_ENDED: Final[dict[Status, int]] = {"active": 0, "inactive": 1, "closed": 2, "deleted": 3}
"""How far from active a conversation is: closing it leads further away, or nowhere."""


def evolve(conversation: Conversation | None, event: ConversationEvent) -> Conversation:
    """Returns the conversation after an event that has happened; no rule is asked.

    The given conversation is changed. Raises the library's OriginatorIDError or
    OriginatorVersionError for an event that is not the next of this conversation.
    """
    return cast("Conversation", event.mutate(conversation))


# -- the rules ----------------------------------------------------------------------------------


def decide(
    conversation: Conversation | None,
    id: ConversationId,
    command: Command,
    context: CommandContext,
    limits: Limits,
    *,
    past: PastMessage | None = None,
) -> Decision:
    """Returns what the command writes, or what it wrote when it came before.

    `past` is what the ledger says about the message that the command names, once that was asked
    for (`Forgotten`). It may lag: a message never stops being there, and the redactions since are
    remembered here.

    Everything is checked before anything happens: a refused command leaves the conversation as it
    was. An accepted one has changed it already, ahead of the commit, so that a conversation whose
    events could not be stored must be thrown away.

    Raises, in this order: ConversationNotInitialized for another user's; InvalidState for a command
    id that another verb has used; ConversationNotInitialized; VersionConflict;
    ConversationIsErased, ConversationIsClosed; MessageTooLarge and RateLimited; then
    MessageNotFound and InvalidState where the command does not fit.
    (The size of a reply is known only once the reply is.)
    """
    if conversation is not None and context.user_id not in (None, conversation.user_id):
        raise ConversationNotInitialized.named(id.tenant_id, id.conversation_id)
    command_id = context.command_id or command.command_id
    if conversation is not None and command_id is not None:
        receipt = conversation.receipts.get(command_id)
        if receipt is not None:
            _check_same_verb(receipt, command, command_id)
            return Decision(conversation, (), duplicate=receipt)
    time = clock.now()
    said: Said = {
        "timestamp": time,
        "actor": context.actor,
        "command_id": command_id or new_id(time),
        "verb": command.verb,
    }
    if isinstance(command, InitConversation):
        _check_version(conversation.version if conversation else 0, context.expected_version)
        if conversation is None:
            conversation = Conversation.start(id, command, said)
        elif conversation.status == "erased":
            raise ConversationIsErased.named(id.conversation_id)
    elif conversation is None:
        raise ConversationNotInitialized.named(id.tenant_id, id.conversation_id)
    else:
        _check_version(conversation.version, context.expected_version)
        _check_status(conversation.status, id, command)
        _carry_out(conversation, command, said, limits, past)
    events = cast("Sequence[ConversationEvent]", conversation.collect_events())
    return Decision(conversation, tuple(events))


def _carry_out(
    conversation: Conversation,
    command: Command,
    said: Said,
    limits: Limits,
    past: PastMessage | None,
) -> None:
    """Checks the rules of one command on a conversation that is there, then lets it happen."""
    match command:
        case AppendMessage() | AppendTurn() | ImportMessages():
            _carry_out_messages(conversation, command, said, limits)
        case RecordUsage():
            conversation.wake(said)
            conversation.record_usage(command, said)
        case ResetSession():
            conversation.reset(command.reason, said)
        case UpdateConversation():
            if command.changes_something:
                _check_facts(conversation, command)
                conversation.update(command, said)
        case StartReply():
            _carry_out_start(conversation, command, said, limits)
        case AppendChunks() | FinishReply() | AbortReply():
            _carry_out_reply(conversation, command, said, limits, past)
        case EditMessage() | RedactMessage():
            _carry_out_change(conversation, command, said, limits, past)
        case CloseConversation() | ReopenConversation() | EraseConversation():
            _carry_out_end(conversation, command, said)
        case _:
            _unreachable(command)


def _carry_out_messages(
    conversation: Conversation,
    command: AppendMessage | AppendTurn | ImportMessages,
    said: Said,
    limits: Limits,
) -> None:
    messages = (command,) if isinstance(command, AppendMessage) else command.messages
    _check_messages(conversation, messages, said["timestamp"], limits)
    if isinstance(command, ImportMessages) and command.mode == "replace":
        conversation.reset(None, said)
    elif messages:
        conversation.wake(said)
    conversation.append(messages, said)
    if isinstance(command, AppendTurn) and command.usage is not None:
        conversation.record_usage(command.usage, said)


def _carry_out_end(
    conversation: Conversation,
    command: CloseConversation | ReopenConversation | EraseConversation,
    said: Said,
) -> None:
    match command:
        case CloseConversation():
            reason = command.reason or "closed"
            if _ENDED[reason] > _ENDED[conversation.status]:
                conversation.close(reason, said)
        case ReopenConversation():
            if conversation.status != "active":
                conversation.reopen(command.reason, said)
        case EraseConversation():
            conversation.erase(command, said)


def _carry_out_start(
    conversation: Conversation, command: StartReply, said: Said, limits: Limits
) -> None:
    if limits.messages_per_minute is not None:
        _check_rate(conversation, 1, said["timestamp"], limits.messages_per_minute)
    _check_id_is_free(conversation, command.message_id)
    if len(conversation.replies) >= OPEN_REPLIES_MAX:
        raise InvalidState(
            f"{OPEN_REPLIES_MAX} replies are being written at once: finish or abort one first",
            {"message_ids": list(conversation.replies)},
        )
    conversation.wake(said)
    conversation.start_reply(command, said)


def _carry_out_reply(
    conversation: Conversation,
    command: AppendChunks | FinishReply | AbortReply,
    said: Said,
    limits: Limits,
    past: PastMessage | None,
) -> None:
    message_id = command.message_id
    reply = conversation.replies.get(message_id)
    if reply is None:
        _check_exists(conversation, message_id, past)
        raise InvalidState(
            f"message {message_id!r} is not being written: it is no reply, or it has been finished "
            "or aborted; begin another one with reply.start",
            {"message_id": message_id},
        )
    match command:
        case AppendChunks():
            texts = _new_chunks(reply, command)
            size = reply.size_bytes + sum(map(content_bytes, texts))
            if size > limits.max_content_bytes:
                raise MessageTooLarge.content(
                    index=0, size_bytes=size, limit_bytes=limits.max_content_bytes
                )
            if texts:
                conversation.append_chunks(message_id, texts, said)
        case FinishReply():
            conversation.finish_reply(command, said)
        case AbortReply():
            conversation.abort_reply(message_id, command.reason or "stopped", said)


def _new_chunks(reply: OpenReply, command: AppendChunks) -> tuple[str, ...]:
    """Returns those chunks that are not written yet; raises InvalidState where some are missing."""
    if command.index > reply.next_index:
        raise InvalidState(
            f"the next chunk of message {command.message_id!r} is {reply.next_index}, "
            f"not {command.index}: send those between first",
            {
                "message_id": command.message_id,
                "expected_index": reply.next_index,
                "index": command.index,
            },
        )
    return command.texts[reply.next_index - command.index :]


def _carry_out_change(
    conversation: Conversation,
    command: EditMessage | RedactMessage,
    said: Said,
    limits: Limits,
    past: PastMessage | None,
) -> None:
    message_id = command.message_id
    if isinstance(command, EditMessage):
        _check_size(command.content, limits)
    _check_exists(conversation, message_id, past)
    redacted = message_id in conversation.redacted or (past is not None and past.redacted)
    if isinstance(command, RedactMessage):
        if not redacted:
            conversation.redact(message_id, command.reason, said)
        return
    if redacted:
        raise InvalidState(
            f"message {message_id!r} has been redacted and stays so: append another one",
            {"message_id": message_id},
        )
    if message_id in conversation.replies:
        raise InvalidState(
            f"message {message_id!r} is still being written: finish or abort it first",
            {"message_id": message_id},
        )
    conversation.edit(command, said)


def _check_same_verb(receipt: Receipt, command: Command, command_id: str) -> None:
    if receipt.verb != command.verb:
        raise InvalidState(
            f"command_id {command_id!r} has been used for {receipt.verb}: "
            f"send this {command.verb} under an id of its own",
            {"command_id": command_id, "verb": receipt.verb},
        )


def _merged_facts(
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


def _check_facts(conversation: Conversation, command: UpdateConversation) -> None:
    size = sum(_merged_facts(conversation.fact_bytes, command).values())
    if size > FACTS_BYTES_MAX and size > sum(conversation.fact_bytes.values()):
        raise MessageTooLarge.facts(size_bytes=size, limit_bytes=FACTS_BYTES_MAX)


def _check_version(current: int, expected: int | None) -> None:
    if expected is not None and expected != current:
        raise VersionConflict.between(expected=expected, current=current)


def _check_status(status: Status, id: ConversationId, command: Command) -> None:
    if status == "erased":
        raise ConversationIsErased.named(id.conversation_id)
    if status in {"closed", "deleted"} and not isinstance(
        command, CloseConversation | ReopenConversation | EraseConversation
    ):
        raise ConversationIsClosed.named(id.conversation_id, status)


def _check_exists(conversation: Conversation, message_id: str, past: PastMessage | None) -> None:
    """Raises MessageNotFound, or Forgotten where only the ledger knows."""
    if message_id in conversation.message_times or message_id in conversation.replies:
        return
    if past is None and len(conversation.message_times) >= MESSAGE_IDS_MAX:
        raise Forgotten(message_id)
    if past is None or not past.exists:
        raise MessageNotFound.named(message_id)


def _check_messages(
    conversation: Conversation, messages: Sequence[NewMessage], time: datetime, limits: Limits
) -> None:
    for index, message in enumerate(messages):
        _check_size(message.content, limits, index)
    if limits.messages_per_minute is not None:
        _check_rate(conversation, len(messages), time, limits.messages_per_minute)
    for message in messages:
        _check_id_is_free(conversation, message.message_id)


def _check_size(content: Content, limits: Limits, index: int = 0) -> None:
    size = content_bytes(content)
    if size > limits.max_content_bytes:
        raise MessageTooLarge.content(
            index=index, size_bytes=size, limit_bytes=limits.max_content_bytes
        )


def _check_id_is_free(conversation: Conversation, message_id: str | None) -> None:
    if message_id in conversation.message_times or message_id in conversation.replies:
        raise InvalidState(
            f"message_id {message_id!r} is taken in this conversation: "
            "send the message under an id of its own, or without one",
            {"message_id": message_id},
        )


def _check_rate(conversation: Conversation, count: int, time: datetime, limit: int) -> None:
    """Refuses messages that would make it more than `limit` in the minute that ends at `time`.

    More messages than that in one command are taken when the minute before had none, so that every
    command can be carried out at some time.
    """
    minute_ago = time - _MINUTE
    newest_first = reversed(conversation.message_times.values())
    recent = list(takewhile(lambda each: each > minute_ago, newest_first))
    room_from = limit - min(count, limit)
    if count and len(recent) > room_from:
        wait = recent[room_from] - minute_ago
        raise RateLimited.until(
            messages_per_minute=limit,
            retry_after_ms=max(1, ceil(wait / timedelta(milliseconds=1))),
        )


def _unreachable(command: Command) -> NoReturn:
    raise AssertionError(f"no rule for {type(command).__name__}")
