"""Events to rows: what one event adds to the tables, and what it makes of its conversation's row.

Pure: the same events give the same rows, wherever they come from. What must be known about a
conversation before its next event can be folded is its row in `conversations`, and nothing else:
a projector that starts again reads those rows back.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from pydantic_core import to_json

from domain.events import (
    ABSENT,
    ContextUpdated,
    ConversationClosed,
    ConversationErased,
    ConversationEvent,
    ConversationReopened,
    ConversationStarted,
    ConversationTitled,
    MessageEdited,
    MessageRedacted,
    ReplyAborted,
    ReplyChunkAppended,
    ReplyCompleted,
    ReplyStarted,
    SessionReset,
    merged,
)
from domain.identity import ConversationId
from domain.messages import Content, JSONObject, texts_of

from .pricing import cost_of
from .reading import Received, Said, Used


@dataclass(slots=True)
class ConversationRow:
    """One row of `conversations`. Mutable: each event of the conversation is folded into it."""

    tenant_id: str
    conversation_id: str
    user_id: str | None = None
    title: str | None = None
    status: str = "active"
    model: str | None = None
    created_at: datetime | None = None
    last_activity: datetime | None = None
    version: int = 0
    message_count: int = 0
    sessions: int = 1
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    cost_usd: Decimal | None = None
    context: JSONObject = field(default_factory=dict)
    metadata: JSONObject = field(default_factory=dict)
    title_from: str | None = None
    """The message that the title was taken from; "" where that is not known, None for no message.
    Not a column: it is kept in a table of its own, `titles`."""
    last_message_id: str = ""
    """Of the batch at hand."""

    def values(self) -> tuple[Any, ...]:
        """The row in the order of `CONVERSATIONS`."""
        return (
            self.tenant_id,
            self.conversation_id,
            self.user_id,
            self.title,
            self.status,
            self.model,
            self.created_at,
            self.last_activity,
            self.version,
            self.message_count,
            self.sessions,
            self.prompt_tokens,
            self.completion_tokens,
            self.total_tokens,
            self.cost_usd,
            json_text(self.context),
            json_text(self.metadata),
        )


EVENTS = (
    "tenant_id",
    "conversation_id",
    "partition",
    "seq",
    "version",
    "type",
    "time",
    "actor",
    "command_id",
    "data",
    "hash",
)
MESSAGES = (
    "tenant_id",
    "conversation_id",
    "message_id",
    "version",
    "seq",
    "role",
    "content",
    "chars",
    "name",
    "created_at",
    "session",
    "edited_at",
    "redacted_at",
    "streaming",
    "tool_calls",
    "metadata",
)
USAGE = (
    "tenant_id",
    "conversation_id",
    "seq",
    "version",
    "time",
    "session",
    "model",
    "provider",
    "message_id",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "uncached_tokens",
    "cached_tokens",
    "cache_write_tokens",
    "reasoning_tokens",
    "cost_usd",
    "cost_source",
    "price_version",
)
CONVERSATIONS = (
    "tenant_id",
    "conversation_id",
    "user_id",
    "title",
    "status",
    "model",
    "created_at",
    "last_activity",
    "version",
    "message_count",
    "sessions",
    "prompt_tokens",
    "completion_tokens",
    "total_tokens",
    "cost_usd",
    "context",
    "metadata",
)

Row = tuple[Any, ...]


@dataclass(slots=True)
class MessageChange:
    """What the events of a batch make of one message, which may be of an earlier batch.

    `replaced`: `content` takes the place of what was there; else `appended` goes behind it.
    """

    before_version: int
    replaced: bool = False
    content: str | None = None
    chars: int = 0
    appended: str = ""
    ended: bool = False
    edited_at: datetime | None = None
    redacted_at: datetime | None = None

    def take(self, event: ReplyChunkAppended | MessageEdited | MessageRedacted) -> None:
        """Takes in the next event about the message; a redacted one stays as it is."""
        if self.redacted_at is not None:
            return
        match event:
            case ReplyChunkAppended():
                self.appended += event.text
            case MessageEdited():
                self.replaced, self.appended = True, ""
                self.content, self.chars = content_text(event.content), chars_of(event.content)
                self.edited_at = event.timestamp
            case MessageRedacted():
                self.replaced, self.appended, self.ended = True, "", True
                self.content, self.chars = None, 0
                self.redacted_at = event.timestamp


CHANGES = (
    "tenant_id",
    "conversation_id",
    "message_id",
    "before_version",
    "replaced",
    "content",
    "chars",
    "appended",
    "ended",
    "edited_at",
    "redacted_at",
)


@dataclass(slots=True)
class Rows:
    """What a batch of events adds: new rows by table, oldest first, in the order of the columns
    above. Of `conversations` it holds the rows that the batch changed, as they are after it."""

    events: list[Row] = field(default_factory=list)
    messages: list[Row] = field(default_factory=list)
    usage: list[Row] = field(default_factory=list)
    conversations: dict[str, ConversationRow] = field(default_factory=dict)
    changes: dict[tuple[str, str, str], MessageChange] = field(default_factory=dict)
    """By tenant, conversation and message, of messages of this batch and of those before."""
    erased: dict[tuple[str, str], datetime] = field(default_factory=dict)
    """The conversations whose every text is to be forgotten, and since when."""
    titles: dict[str, Row] = field(default_factory=dict)
    """Rows of `titles` that the batch changed: which message a title was taken from."""

    @property
    def added(self) -> dict[str, list[Row]]:
        """The new rows, by table."""
        return {"events": self.events, "messages": self.messages, "usage": self.usage}

    def fold(self, received: Received, conversation: ConversationRow) -> None:
        """Takes in the next event of `conversation`, which it changes. The one fold.

        Checks nothing. An event of a type that shows in no other table still is a row of `events`.
        """
        self.events.append(
            (
                conversation.tenant_id,
                conversation.conversation_id,
                received.partition,
                received.seq,
                received.version,
                received.type,
                received.time,
                received.actor,
                received.command_id,
                received.data,
                received.digest,
            )
        )
        event = received.event
        conversation.version = received.version
        self.conversations[received.key] = conversation
        if isinstance(event, Said):  # the two that nearly all are
            conversation.last_activity = received.time
            self._say(event, received, conversation)
        elif isinstance(event, Used):
            conversation.last_activity = received.time
            self._use(event, received, conversation)
        else:
            if event.is_activity:
                conversation.last_activity = received.time
            self._take(event, received.seq, conversation)

    def _take(self, event: ConversationEvent, seq: int, conversation: ConversationRow) -> None:
        title_from = conversation.title_from
        match event:
            case ReplyStarted():
                self._begin_reply(event, seq, conversation)
            case ReplyChunkAppended() | MessageEdited() | MessageRedacted():
                self._change(event, conversation)
            case ReplyCompleted() | ReplyAborted():
                self._of(event, event.message_id, conversation).ended = True
            case SessionReset():
                conversation.sessions += 1
            case ConversationErased():
                self._erase(event, conversation)
            case _:
                _update(conversation, event)
        if conversation.title_from != title_from:
            self.titles[event.originator_id] = (
                conversation.tenant_id,
                conversation.conversation_id,
                conversation.title_from,
            )

    def _say(self, event: Said, received: Received, conversation: ConversationRow) -> None:
        conversation.message_count += 1
        conversation.last_message_id = event.message_id
        self.messages.append(
            (
                conversation.tenant_id,
                conversation.conversation_id,
                event.message_id,
                received.version,
                received.seq,
                event.role,
                content_text(event.content),
                chars_of(event.content),
                event.name,
                received.time
                if event.created_at is None
                else time_of(event.created_at, received.time),
                conversation.sessions,
                None,
                None,
                False,
                None if event.tool_calls is None else json_text(event.tool_calls),
                json_text(event.metadata),
            )
        )

    def _begin_reply(self, event: ReplyStarted, seq: int, conversation: ConversationRow) -> None:
        conversation.message_count += 1
        conversation.last_message_id = event.message_id
        self.messages.append(
            (
                conversation.tenant_id,
                conversation.conversation_id,
                event.message_id,
                event.originator_version,
                seq,
                event.role,
                "",
                0,
                None,
                event.timestamp,
                conversation.sessions,
                None,
                None,
                True,
                None,
                json_text(event.metadata),
            )
        )

    def _of(
        self, event: ConversationEvent, message_id: str, conversation: ConversationRow
    ) -> MessageChange:
        """What this batch makes of the message so far."""
        key = (conversation.tenant_id, conversation.conversation_id, message_id)
        change = self.changes.get(key)
        if change is None:
            change = self.changes[key] = MessageChange(event.originator_version)
        return change

    def _change(
        self,
        event: ReplyChunkAppended | MessageEdited | MessageRedacted,
        conversation: ConversationRow,
    ) -> None:
        self._of(event, event.message_id, conversation).take(event)
        if isinstance(event, MessageRedacted) and conversation.title_from in ("", event.message_id):
            conversation.title = conversation.title_from = None

    def _erase(self, event: ConversationErased, conversation: ConversationRow) -> None:
        self.erased[conversation.tenant_id, conversation.conversation_id] = event.timestamp
        conversation.status = "erased"
        conversation.user_id = conversation.title = conversation.model = None
        conversation.title_from = None
        conversation.context, conversation.metadata = {}, {}

    def _use(self, event: Used, received: Received, conversation: ConversationRow) -> None:
        cost = cost_of(event, received.time)
        prompt, completion = event.prompt_tokens, event.completion_tokens
        cached, written = event.cached_tokens or 0, event.cache_write_tokens or 0
        conversation.prompt_tokens += prompt
        conversation.completion_tokens += completion
        conversation.total_tokens += prompt + completion
        if cost.usd is not None:
            conversation.cost_usd = (conversation.cost_usd or Decimal(0)) + cost.usd
        self.usage.append(
            (
                conversation.tenant_id,
                conversation.conversation_id,
                received.seq,
                received.version,
                received.time,
                conversation.sessions,
                event.model,
                event.provider,
                event.message_id,
                prompt,
                completion,
                prompt + completion,
                prompt - cached - written,
                event.cached_tokens,
                event.cache_write_tokens,
                event.reasoning_tokens,
                cost.usd,
                cost.source,
                cost.price_version,
            )
        )


def new_conversation(key: str) -> ConversationRow:
    """The row of a conversation before its first event; `key` is that of its ConversationId."""
    return ConversationRow(*ConversationId.from_key(key))


def _update(row: ConversationRow, event: ConversationEvent) -> None:
    match event:
        case ConversationStarted():
            _begin(row, event)
        case ContextUpdated():
            _merge(row, event)
        case ConversationTitled():
            row.title = event.title
            row.title_from = row.last_message_id if event.source == "auto" else None
        case ConversationClosed():
            row.status = event.reason
        case ConversationReopened():
            row.status = "active"


def _begin(row: ConversationRow, event: ConversationStarted) -> None:
    row.created_at = event.timestamp
    row.user_id = event.user_id
    row.title = event.title
    row.model = event.model
    row.context = merged({}, event.context)
    row.metadata = merged({}, event.metadata)


def _merge(row: ConversationRow, event: ContextUpdated) -> None:
    if event.user_id is not ABSENT:
        row.user_id = event.user_id
    if event.title is not ABSENT:
        row.title = event.title
        row.title_from = None
    if event.model is not ABSENT:
        row.model = event.model
    row.context = merged(row.context, event.context)
    row.metadata = merged(row.metadata, event.metadata)


# The values of columns.


def json_text(value: object) -> str:
    """The value as compact JSON."""
    return to_json(value).decode() if value else ("[]" if isinstance(value, list) else "{}")


def content_text(content: Content) -> str | None:
    """What the column `content` holds: the text itself, or the parts as JSON; None for null."""
    return json_text(content) if isinstance(content, list) else content


def chars_of(content: Content) -> int:
    """The code points of the text in the content, over its text parts; 0 for null."""
    if isinstance(content, str):
        return len(content)
    return sum(map(len, texts_of(content)))


def time_of(created_at: str, time: datetime) -> datetime:
    """When it was said: `created_at` where a table can hold it, else the event's time."""
    try:
        return datetime.fromisoformat(created_at).astimezone(UTC)
    except (ValueError, OverflowError):
        return time
