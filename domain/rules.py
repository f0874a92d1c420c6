"""The rules of a conversation: which commands it carries out, and which it refuses.

`decide` is all that the outside needs: a conversation and a command give the events to write. What
happens where the rules allow it is the conversation's own (`domain.conversation`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import takewhile
from math import ceil
from typing import Final, NoReturn, cast

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
    UpdateConversation,
)
from .conversation import MESSAGE_IDS_MAX, Conversation, Receipt, Said, merged_facts
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
from .events import ConversationEvent, Status
from .identity import ConversationId, new_id
from .messages import Content, content_bytes
from .replies import OpenReply

FACTS_BYTES_MAX: Final = 900_000
"""Context and metadata together, as JSON: as much as one event can tell, so that every answer and
every snapshot can hold them."""
OPEN_REPLIES_MAX: Final = 8
_MINUTE: Final = timedelta(minutes=1)

_ENDED: Final[dict[Status, int]] = {"active": 0, "inactive": 1, "closed": 2, "deleted": 3}
"""How far from active a conversation is: closing it leads further away, or nowhere."""


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


def _check_facts(conversation: Conversation, command: UpdateConversation) -> None:
    size = sum(merged_facts(conversation.fact_bytes, command).values())
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
