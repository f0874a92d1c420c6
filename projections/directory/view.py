"""The directory in SQLite: the library's tracking-recorder port, and the rows that commit with it.

What is written goes through one transaction together with its tracking: `application_name` is the
name of the events stream and `notification_id` the stream sequence, so that a batch is in the
tables once or not at all. The file is a fold of the ledger: it is not fsynced at every commit, what
a power cut takes is taken in again, and it may be deleted at any time.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final, NamedTuple

from eventsourcing.persistence import DatabaseError, OperationalError, Tracking
from eventsourcing.sqlite import (
    SQLiteConnection,
    SQLiteConnectionPool,
    SQLiteCursor,
    SQLiteDatastore,
    SQLiteTrackingRecorder,
)

from domain import clock
from domain.events import (
    ConversationErased,
    ConversationEvent,
    MessageAppended,
    MessageEdited,
    MessageRedacted,
    ReplyAborted,
    ReplyChunkAppended,
    ReplyCompleted,
    ReplyStarted,
)
from domain.identity import ConversationId
from domain.messages import texts_of
from domain.usage import TokenTotals
from projections.totals import Totals

from .entry import Entry, microseconds
from .schema import STATEMENTS, TENANT_BITS, USER_VERSION
from .terms import index_text

CACHE_KIB: Final = 32_768
READERS: Final = 8


class OtherFormat(OperationalError):
    """The file was made by another release: remove it, and it is built anew."""


class Arrived(NamedTuple):
    """One event as the directory takes it in."""

    id: ConversationId
    event: ConversationEvent
    seq: int


class _Pool(SQLiteConnectionPool):
    def _create_connection(self) -> SQLiteConnection:
        try:
            connection = super()._create_connection()
            cursor = connection.cursor()
            for pragma in (
                "synchronous = NORMAL",
                f"cache_size = -{CACHE_KIB}",
                "secure_delete = ON",
                "temp_store = MEMORY",
            ):
                cursor.execute(f"PRAGMA {pragma}")
        except sqlite3.Error as error:
            raise DatabaseError(error) from error
        return connection


class DirectoryDatastore(SQLiteDatastore):
    """The directory's file, open for one writing process; many may read."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), originator_id_type="text")
        self.pool.close()
        self.pool = _Pool(db_name=path.absolute().as_uri(), pool_size=READERS)


class DirectoryView(SQLiteTrackingRecorder):
    """The tables of `schema`, written in batches, each with its tracking in one transaction."""

    def __init__(self, datastore: SQLiteDatastore) -> None:
        super().__init__(datastore)
        self._refuse_another_format()
        self.create_table()

    def construct_create_table_statements(self) -> list[str]:
        """The library's table `tracking`, and ours."""
        return [
            *super().construct_create_table_statements(),
            *STATEMENTS,
            f"PRAGMA user_version = {USER_VERSION}",
        ]

    def _refuse_another_format(self) -> None:
        """Raises OtherFormat for a file that another release has made."""
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute("PRAGMA user_version")
            found = cursor.fetchone()[0]
            cursor.execute("SELECT count(*) FROM sqlite_schema")
            empty = cursor.fetchone()[0] == 0
        if not empty and found != USER_VERSION:
            raise OtherFormat(f"the directory's file has format {found}, not {USER_VERSION}")

    def hash_at(self, partition: int, seq: int) -> str | None:
        """The chain hash of the last event taken in of a partition."""
        del seq  # only the last one is known, and it is the one that is asked for
        with self.datastore.transaction(commit=False) as cursor:
            cursor.execute("SELECT hash FROM heads WHERE partition = ?", (partition,))
            found = cursor.fetchone()
        return found["hash"] if found else None

    def write(
        self, partition: int, events: Sequence[Arrived], tracking: Tracking, *, digest: str
    ) -> None:
        """Takes in a batch with its tracking, all or nothing; `digest` is the last event's hash.

        Raises IntegrityError when the batch, or one behind it, was written before.
        """
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute("INSERT OR REPLACE INTO heads VALUES (?, ?)", (partition, digest))
            batch = _Batch(cursor, partition)
            for each in events:
                batch.take(each)
            batch.flush()

    def positions(self, streams: Mapping[int, str]) -> dict[int, int]:
        """The last sequence taken in of each partition, given the names of their streams."""
        return {
            partition: self.max_tracking_id(stream) or 0 for partition, stream in streams.items()
        }


# -- one batch ----------------------------------------------------------------------------------


@dataclass(slots=True)
class _Conversation:
    """A conversation in use by a batch, with what the index has of it (None: nothing)."""

    number: int
    tenant: int
    id: ConversationId
    entry: Entry
    first_seq: int
    last_seq: int
    indexed_user: str | None = None
    indexed: bool = True
    is_new: bool = False


@dataclass(frozen=True, slots=True)
class _Message:
    """A row of `messages`."""

    id: int
    conversation: int
    message_id: str
    version: int
    role: str
    timestamp: str
    time: int
    state: str
    text: str

    @property
    def can_be_found(self) -> bool:
        return self.state == "" and self.text != ""


_STREAMING: Final = "streaming"
_REDACTED: Final = "redacted"
_MESSAGE: Final = "id, conversation, message_id, version, role, timestamp, time, state, text"


class _Batch:
    """Folds events into rows in memory, and writes each row that has changed once."""

    def __init__(self, cursor: SQLiteCursor, partition: int) -> None:
        self._cursor = cursor
        self._partition = partition
        self._tenants: dict[str, list[int]] = {}  # number, filed
        self._conversations: dict[ConversationId, _Conversation] = {}
        self._activity: list[tuple[int, int, int]] = []
        self._before: dict[int, _Message | None] = {}  # as in the tables, of those that changed
        self._messages: dict[int, _Message | None] = {}  # None: to be removed
        self._ids: dict[tuple[int, str], int] = {}
        self._next_number = 0

    def take(self, arrived: Arrived) -> None:
        """Folds one event."""
        id, event, seq = arrived
        conversation = self._conversation(id, seq)
        entry = conversation.entry
        before = entry.last_activity
        entry.apply(event)
        if event.is_activity:
            conversation.last_seq = seq
            if entry.last_activity != before:
                assert entry.last_activity is not None
                self._activity.append((conversation.number, seq, entry.last_activity))
        self._take_text(conversation, event)

    def _take_text(self, conversation: _Conversation, event: ConversationEvent) -> None:
        match event:
            case MessageAppended():
                timestamp = event.created_at or clock.to_text(event.timestamp)
                text = "\n".join(texts_of(event.content))
                self._file(conversation, event, timestamp=timestamp, text=text)
            case ReplyStarted():
                timestamp = clock.to_text(event.timestamp)
                self._file(conversation, event, timestamp=timestamp, state=_STREAMING)
            case ReplyChunkAppended():
                self._change(conversation, event.message_id, more=event.text)
            case ReplyCompleted() | ReplyAborted():
                self._change(conversation, event.message_id, state="")
            case MessageEdited():
                text = "\n".join(texts_of(event.content))
                self._change(conversation, event.message_id, text=text)
            case MessageRedacted():
                self._change(conversation, event.message_id, state=_REDACTED, text="")
            case ConversationErased():
                for each in self._all_messages(conversation):
                    self._messages[each.id] = None

    def _file(
        self,
        conversation: _Conversation,
        event: MessageAppended | ReplyStarted,
        *,
        timestamp: str,
        state: str = "",
        text: str = "",
    ) -> None:
        tenant = self._tenants[conversation.id.tenant_id]
        tenant[1] += 1
        id = (conversation.tenant << TENANT_BITS) + tenant[1]
        self._before[id] = None
        self._messages[id] = _Message(
            id=id,
            conversation=conversation.number,
            message_id=event.message_id,
            version=event.originator_version,
            role=event.role,
            timestamp=timestamp,
            time=_time_of(timestamp, event.timestamp),
            state=state,
            text=text,
        )
        self._ids[conversation.number, event.message_id] = id

    def _change(
        self,
        conversation: _Conversation,
        message_id: str,
        *,
        state: str | None = None,
        text: str | None = None,
        more: str = "",
    ) -> None:
        """Changes the last message of that id; none of it where there is none."""
        message = self._message(conversation.number, message_id)
        if message is None or (message.state == _REDACTED):
            return
        self._messages[message.id] = replace(
            message,
            state=message.state if state is None else state,
            text=(message.text if text is None else text) + more,
        )

    # -- what is in the tables -----------------------------------------------------------------

    def _conversation(self, id: ConversationId, seq: int) -> _Conversation:
        known = self._conversations.get(id)
        if known is not None:
            return known
        tenant = self._tenant(id.tenant_id)[0]
        self._cursor.execute(
            "SELECT * FROM conversations WHERE tenant = ? AND conversation_id = ?",
            (tenant, id.conversation_id),
        )
        row = self._cursor.fetchone()
        if row is None:
            known = _Conversation(self._new_number(), tenant, id, Entry(), seq, seq, is_new=True)
        else:
            known = _Conversation(
                number=row["number"],
                tenant=tenant,
                id=id,
                entry=entry_of(row),
                first_seq=row["first_seq"],
                last_seq=row["last_seq"],
                indexed_user=row["user_id"],
                indexed=not row["hidden"],
            )
        self._conversations[id] = known
        return known

    def _new_number(self) -> int:
        if not self._next_number:
            self._cursor.execute("SELECT coalesce(max(number), 0) AS last FROM conversations")
            self._next_number = self._cursor.fetchone()["last"]
        self._next_number += 1
        return self._next_number

    def _tenant(self, tenant_id: str) -> list[int]:
        if tenant_id not in self._tenants:
            self._cursor.execute(
                "INSERT INTO tenants (tenant_id, filed) VALUES (?, 0) ON CONFLICT DO NOTHING",
                (tenant_id,),
            )
            self._cursor.execute(
                "SELECT number, filed FROM tenants WHERE tenant_id = ?", (tenant_id,)
            )
            row = self._cursor.fetchone()
            self._tenants[tenant_id] = [row["number"], row["filed"]]
        return self._tenants[tenant_id]

    def _message(self, conversation: int, message_id: str) -> _Message | None:
        id = self._ids.get((conversation, message_id))
        if id is not None:
            return self._messages[id]
        self._cursor.execute(
            f"SELECT {_MESSAGE} FROM messages "  # noqa: S608 (our names)
            "WHERE conversation = ? AND message_id = ? ORDER BY id DESC LIMIT 1",
            (conversation, message_id),
        )
        row = self._cursor.fetchone()
        return None if row is None else self._known(_Message(*row))

    def _known(self, message: _Message) -> _Message | None:
        """The message as it is by now, given what is in the tables."""
        if message.id not in self._messages:
            self._before[message.id] = self._messages[message.id] = message
            self._ids.setdefault((message.conversation, message.message_id), message.id)
        return self._messages[message.id]

    def _all_messages(self, conversation: _Conversation) -> list[_Message]:
        """Every message of the conversation that is not to be removed."""
        self._cursor.execute(
            f"SELECT {_MESSAGE} FROM messages WHERE conversation = ?",  # noqa: S608 (our names)
            (conversation.number,),
        )
        for row in self._cursor.fetchall():
            self._known(_Message(*row))
        return [
            message
            for message in self._messages.values()
            if message is not None and message.conversation == conversation.number
        ]

    # -- writing -------------------------------------------------------------------------------

    def flush(self) -> None:
        """Writes the rows."""
        of_number: dict[int, _Conversation] = {}
        for conversation in self._conversations.values():
            of_number[conversation.number] = conversation
            entry = conversation.entry
            moved = conversation.indexed_user != entry.user_id and not entry.is_hidden
            if not conversation.is_new and (moved or conversation.indexed == entry.is_hidden):
                self._all_messages(conversation)  # their facets changed, or all go or come back
        self._write_messages(of_number)
        self._cursor.executemany(
            "INSERT OR REPLACE INTO conversations "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [self._row(conversation) for conversation in of_number.values()],
        )
        self._cursor.executemany("INSERT INTO activity VALUES (?, ?, ?)", self._activity)
        self._cursor.executemany(
            "UPDATE tenants SET filed = ? WHERE number = ?",
            [(filed, number) for number, filed in self._tenants.values()],
        )

    def _write_messages(self, of_number: Mapping[int, _Conversation]) -> None:
        out: list[tuple[int, str, str]] = []
        into: list[tuple[int, str, str]] = []
        rows: list[tuple[Any, ...]] = []
        removed: list[tuple[int]] = []
        for id, message in self._messages.items():
            before = self._before[id]
            was = _indexed(before, of_number, now=False)
            is_now = _indexed(message, of_number, now=True)
            if was != is_now:
                if was is not None:
                    out.append((id, *was))
                if is_now is not None:
                    into.append((id, *is_now))
            if message is None:
                removed.append((id,))
            elif message != before:
                rows.append(
                    (
                        message.id,
                        message.conversation,
                        message.message_id,
                        message.version,
                        message.role,
                        message.timestamp,
                        message.time,
                        message.state,
                        message.text,
                    )
                )
        run = self._cursor.executemany
        run("INSERT INTO found (found, rowid, facets, terms) VALUES ('delete', ?, ?, ?)", out)
        run("INSERT INTO found (rowid, facets, terms) VALUES (?, ?, ?)", into)
        run("INSERT OR REPLACE INTO messages VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", rows)
        run("DELETE FROM messages WHERE id = ?", removed)

    def _row(self, conversation: _Conversation) -> tuple[Any, ...]:
        entry = conversation.entry
        tokens = entry.totals.tokens
        return (
            conversation.number,
            conversation.tenant,
            conversation.id.conversation_id,
            entry.user_id,
            entry.title,
            entry.status,
            entry.model,
            entry.created_at,
            entry.last_activity,
            entry.version,
            entry.message_count,
            str(tokens.prompt),
            str(tokens.completion),
            int(entry.is_hidden),
            self._partition,
            conversation.first_seq,
            conversation.last_seq,
        )


def entry_of(row: sqlite3.Row) -> Entry:
    """The entry that a row of `conversations` holds."""
    return Entry(
        user_id=row["user_id"],
        title=row["title"],
        status=row["status"],
        model=row["model"],
        created_at=row["created_at"],
        last_activity=row["last_activity"],
        version=row["version"],
        message_count=row["message_count"],
        totals=Totals(TokenTotals(int(row["prompt_tokens"]), int(row["completion_tokens"]))),
    )


def _indexed(
    message: _Message | None, of_number: Mapping[int, _Conversation], *, now: bool
) -> tuple[str, str] | None:
    """What the index has of a message, before the batch or now; None where it has nothing."""
    if message is None or not message.can_be_found:
        return None
    conversation = of_number[message.conversation]
    entry = conversation.entry
    if entry.is_hidden if now else not conversation.indexed:
        return None
    user = entry.user_id if now else conversation.indexed_user
    facets = [conversation_facet(message.conversation), role_facet(message.role)]
    if user is not None:
        facets.append(user_facet(user))
    return " ".join(facets), index_text(message.text)


def conversation_facet(number: int) -> str:
    """The term that the messages of a conversation have."""
    return f"c{number}"


def user_facet(user_id: str) -> str:
    """The term that the messages of a user's conversations have."""
    return f"u{blake2b(user_id.encode(), digest_size=12).hexdigest()}"


def role_facet(role: str) -> str:
    """The term that the messages of a role have."""
    return f"r{role}"


def _time_of(timestamp: str, otherwise: datetime) -> int:
    with suppress(ValueError, OverflowError):
        time = datetime.fromisoformat(timestamp)
        if time.tzinfo is not None:
            return microseconds(time)
    return microseconds(otherwise)
