"""The tables in DuckDB: the library's tracking-recorder port, and the rows that commit with it.

One file, one writing process (DuckDB locks it). Everything that is written goes through one
transaction together with its tracking: `application_name` is the name of the events stream and
`notification_id` the stream sequence, so that a batch is in the tables once or not at all.

A datastore is locked down when it opens: its connections reach no file but the datastore's own, no
network and no extension, and no setting can be changed any more. Reading goes on beside the writer,
each cursor in a thread and a transaction of its own, on a consistent snapshot.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Final

import duckdb
from eventsourcing.persistence import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    NotSupportedError,
    OperationalError,
    PersistenceError,
    ProgrammingError,
    Tracking,
    TrackingRecorder,
)
from pydantic_core import from_json

from domain.identity import ConversationId

from . import sandbox
from .columns import Packed, arrow
from .rows import CHANGES, CONVERSATIONS, ConversationRow, Rows
from .schema import ADD_DAYS, MIGRATIONS, VIEWS

log = logging.getLogger(__name__)

MEMORY_BYTES: Final = 1 << 30
THREADS: Final = 2

WAL_BYTES: Final = 128 << 20
WAL_SHARE: Final = 4
"""The log may grow to so much, or to this part of the memory, before it is put into the file. What
is in the log is in memory too, half as large again; and each time, the last rows of every table are
packed anew."""

SHORT_WAL_BYTES: Final = 32 << 20
"""What `shorten_log` leaves. Nothing can be written while the log is put into the file, for half a
second with 128 MB on a quiet machine, more than one on a busy one."""

_MAY_READ: Final = "convo_quack_may_read"


class NewerSchema(OperationalError):
    """The file was written by a newer release."""


class RebuildNeeded(OperationalError):
    """The file's schema cannot be brought up to date in place."""


_ERRORS: Final[tuple[tuple[type[Exception], type[PersistenceError]], ...]] = (
    (duckdb.IntegrityError, IntegrityError),
    (duckdb.DataError, DataError),
    (duckdb.OperationalError, OperationalError),
    (duckdb.InternalError, InternalError),
    (duckdb.NotSupportedError, NotSupportedError),
    (duckdb.ProgrammingError, ProgrammingError),
    (duckdb.DatabaseError, DatabaseError),
    (duckdb.Error, InterfaceError),
)


@contextlib.contextmanager
def translated() -> Iterator[None]:
    """Raises DuckDB's errors as those of the library (PEP 249 names), the driver's as cause."""
    try:
        yield
    except duckdb.Error as error:
        for ours, theirs in _ERRORS:
            if isinstance(error, ours):
                raise theirs(str(error)) from error
        raise


@dataclass(frozen=True, slots=True)
class Quack:
    """Where a datastore is served by DuckDB's own client/server protocol, and to whom.

    `extensions` are the files of the extensions that it takes, in the order of loading.
    """

    host: str
    port: int
    token: str
    extensions: tuple[Path, ...]

    @property
    def uri(self) -> str:
        """What a client attaches."""
        return f"quack:{self.host}:{self.port}"


class DuckDBDatastore:
    """One DuckDB file, open for writing and locked down. `path` None: in memory.

    With `quack` any DuckDB client that has the token can attach it, and read.

    Raises OperationalError where the file cannot be opened, another process has it, say.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        memory_bytes: int = MEMORY_BYTES,
        threads: int = THREADS,
        quack: Quack | None = None,
    ) -> None:
        self.path = path
        self._quack = quack
        with translated():
            self._root = duckdb.connect(
                ":memory:" if path is None else str(path),
                config={
                    "memory_limit": f"{memory_bytes}B",
                    "threads": threads,
                    "temp_directory": "",  # a query that outgrows its memory ends
                    "preserve_insertion_order": "false",
                    "checkpoint_threshold": f"{min(WAL_BYTES, memory_bytes // WAL_SHARE)}B",
                    "python_enable_replacements": "false",
                    "autoinstall_known_extensions": "false",
                    "autoload_known_extensions": "false",
                },
            )
            if quack is not None:
                self._serve(quack)
            self._root.execute("SET GLOBAL TimeZone = 'UTC'")
            self._root.execute("SET enable_external_access = false")
            self._root.execute("SET lock_configuration = true")

    def _serve(self, quack: Quack) -> None:
        for extension in quack.extensions:
            self._root.load_extension(str(extension))
        self._root.execute(sandbox.readers_only(self._root, _MAY_READ))
        self._root.execute(f"SET GLOBAL quack_authorization_function = '{_MAY_READ}'")
        self._root.execute(
            "CALL quack_serve($1, token := $2, allow_other_hostname := $3, disable_ssl := true)",
            [quack.uri, quack.token, not quack.host.startswith("127.")],
        )

    def cursor(self) -> duckdb.DuckDBPyConnection:
        """A connection of its own to the same data; for one thread at a time."""
        with translated():
            return self._root.cursor()

    def shorten_log(self) -> None:
        """Puts the log into the file where it is longer than `SHORT_WAL_BYTES`."""
        if self.path is None:
            return
        try:
            size = Path(f"{self.path}.wal").stat().st_size
        except FileNotFoundError:
            return
        if size > SHORT_WAL_BYTES:
            with contextlib.suppress(duckdb.Error), self.cursor() as connection:
                connection.execute("CHECKPOINT")  # what does not work now will the next time

    def close(self) -> None:
        """Writes what is in the log into the file, and lets go of it."""
        with contextlib.suppress(duckdb.Error):
            if self._quack is not None:
                self._root.execute("CALL quack_stop($1)", [self._quack.uri])
        with contextlib.suppress(duckdb.Error):
            self._root.execute("CHECKPOINT")
        self._root.close()


class DuckDBTrackingRecorder(TrackingRecorder):
    """Tracking in DuckDB: for each application the highest notification id, nothing else."""

    def __init__(self, datastore: DuckDBDatastore) -> None:
        self.datastore = datastore
        self._connection = datastore.cursor()
        self._lock = threading.RLock()

    def create_table(self) -> None:
        """Creates the table `tracking` where it is missing."""
        with self.transaction() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS tracking ("
                "application_name VARCHAR PRIMARY KEY, notification_id BIGINT NOT NULL)"
            )

    @contextlib.contextmanager
    def transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """The recorder's connection in a transaction: committed at the end of the block, rolled
        back when it raises."""
        with self._lock, translated():
            self._connection.begin()
            try:
                yield self._connection
                self._connection.commit()
            except BaseException:
                with contextlib.suppress(duckdb.Error):
                    self._connection.rollback()
                raise

    def insert_tracking(self, tracking: Tracking) -> None:
        """Records a tracking object; IntegrityError unless it is behind those recorded."""
        with self.transaction():
            self._insert_tracking(tracking)

    def _insert_tracking(self, tracking: Tracking) -> None:
        moved = self._connection.execute(
            "INSERT INTO tracking VALUES ($1, $2) ON CONFLICT (application_name) DO UPDATE "
            "SET notification_id = excluded.notification_id "
            "WHERE tracking.notification_id < excluded.notification_id RETURNING notification_id",
            [tracking.application_name, tracking.notification_id],
        ).fetchall()
        if not moved:
            raise IntegrityError(
                f"notification {tracking.notification_id} of {tracking.application_name} "
                "was processed before"
            )

    def max_tracking_id(self, application_name: str) -> int | None:
        """The highest notification id recorded for the application; None without any."""
        return self.positions().get(application_name)

    def positions(self) -> dict[str, int]:
        """The highest notification id of every application that has one."""
        with self._lock, translated():
            return dict(
                self._connection.execute(
                    "SELECT application_name, notification_id FROM tracking"
                ).fetchall()
            )

    def close(self) -> None:
        """Gives the connection back; the datastore stays open."""
        self._connection.close()


_CHANGE: Final = """
    UPDATE messages SET
        content = CASE WHEN b.replaced THEN b.content || b.appended
            WHEN b.appended = '' THEN messages.content
            ELSE messages.content || b.appended END,
        chars = CASE WHEN b.replaced THEN b.chars ELSE messages.chars END + length(b.appended),
        edited_at = CASE WHEN b.redacted_at IS NULL
            THEN coalesce(b.edited_at, messages.edited_at) END,
        redacted_at = b.redacted_at,
        streaming = messages.streaming AND NOT b.ended,
        tool_calls = CASE WHEN b.redacted_at IS NULL THEN messages.tool_calls END,
        metadata = CASE WHEN b.redacted_at IS NULL THEN messages.metadata ELSE '{}' END
    FROM batch b
    WHERE messages.tenant_id = b.tenant_id AND messages.conversation_id = b.conversation_id
        AND messages.message_id = b.message_id AND messages.version < b.before_version
        AND messages.redacted_at IS NULL"""

# What is left of the data of events whose text is not to be shown any more.
_REDACT: Final = (
    """UPDATE events SET data = json_object('message_id', b.message_id, 'redacted', true)
    FROM batch b
    WHERE b.redacted_at IS NOT NULL AND events.tenant_id = b.tenant_id
        AND events.conversation_id = b.conversation_id
        AND events.type IN
            ('MessageAppended', 'MessageEdited', 'ReplyStarted', 'ReplyChunkAppended')
        AND (events.data->>'$.message_id') = b.message_id""",
    """UPDATE events SET data = json_object('redacted', true)
    FROM batch b
    JOIN messages m USING (tenant_id, conversation_id, message_id)
    WHERE b.redacted_at IS NOT NULL AND events.tenant_id = b.tenant_id
        AND events.conversation_id = b.conversation_id AND events.type = 'ConversationTitled'
        AND (events.data->>'$.source') = 'auto' AND events.version > m.version""",
)
_ERASE: Final = (
    """UPDATE messages SET content = NULL, name = NULL, tool_calls = NULL, metadata = '{}',
        edited_at = NULL, streaming = false, redacted_at = coalesce(redacted_at, $3)
    WHERE tenant_id = $1 AND conversation_id = $2""",
    """UPDATE events SET data = '{}', actor = NULL
    WHERE tenant_id = $1 AND conversation_id = $2 AND $3 IS NOT NULL
        AND type <> 'ConversationErased'""",
)


class AnalyticsView(DuckDBTrackingRecorder):
    """The tables of the contract: written in batches, each with its tracking in one transaction."""

    def __init__(self, datastore: DuckDBDatastore) -> None:
        super().__init__(datastore)
        self.create_table()
        self.migrate()

    def migrate(self) -> None:
        """Brings the file's schema up to date, one migration per transaction.

        Raises NewerSchema, or RebuildNeeded at a migration that cannot be made in place.
        """
        with self.transaction() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS schema_migrations (number INTEGER PRIMARY KEY)"
            )
        with self._lock, translated():
            found = self._connection.execute("SELECT max(number) FROM schema_migrations").fetchone()
        version = (found and found[0]) or 0
        if version > MIGRATIONS[-1].number:
            raise NewerSchema(
                f"{self.datastore.path} has schema {version}, this release knows "
                f"{MIGRATIONS[-1].number}: upgrade this process, or remove the file and have it "
                "built anew"
            )
        for migration in MIGRATIONS:
            if migration.number <= version:
                continue
            if migration.statements is None and version:
                raise RebuildNeeded(
                    f"{self.datastore.path} has schema {version}; schema {migration.number} "
                    "needs the file to be built anew"
                )
            with self.transaction() as connection:
                for statement in migration.statements or ():
                    connection.execute(statement)
                connection.execute("INSERT INTO schema_migrations VALUES (?)", [migration.number])
            log.info("analytics schema %d", migration.number)
        with self.transaction() as connection:
            for name, query in VIEWS.items():
                connection.execute(f"CREATE OR REPLACE VIEW {name} AS {query}")

    def write(self, rows: Rows, tracking: Tracking, packed: Packed | None = None) -> None:
        """Adds a batch of rows with its tracking, all or nothing; `packed` has the beginning of it.

        Raises IntegrityError when the batch, or one behind it, was written before.
        """
        packed = packed or Packed()
        changed = [row.values() for row in rows.conversations.values()]
        with self.transaction() as connection:
            self._insert_tracking(tracking)
            for table, batch in (
                *((name, packed.table(name, added)) for name, added in rows.added.items()),
                ("conversations", arrow("conversations", changed)),
                ("titles", arrow("titles", list(rows.titles.values()))),
            ):
                if batch is not None:
                    connection.register("batch", batch)
                    either = "OR REPLACE " if table in {"conversations", "titles"} else ""
                    connection.execute(f"INSERT {either}INTO {table} SELECT * FROM batch")  # noqa: S608 (our names)
                    if table == "usage":
                        connection.execute(ADD_DAYS)
                    connection.unregister("batch")
            if rows.changes:
                self._change_messages(connection, rows)
            for (tenant_id, conversation_id), time in rows.erased.items():
                for statement in _ERASE:
                    connection.execute(statement, [tenant_id, conversation_id, time])

    def _change_messages(self, connection: duckdb.DuckDBPyConnection, rows: Rows) -> None:
        changes = [
            (*key, *(getattr(change, name) for name in CHANGES[len(key) :]))
            for key, change in rows.changes.items()
        ]
        connection.register("batch", arrow("changes", changes))
        connection.execute(_CHANGE)
        if any(change.redacted_at is not None for change in rows.changes.values()):
            for statement in _REDACT:
                connection.execute(statement)
        connection.unregister("batch")

    def hash_at(self, partition: int, seq: int) -> str | None:
        """The chain hash of the event at that place in the ledger; None where there is none."""
        with self._lock, translated():
            found = self._connection.execute(
                "SELECT hash FROM events WHERE partition = ? AND seq = ?", [partition, seq]
            ).fetchone()
        return found[0] if found else None

    def conversations(self, ids: Iterable[ConversationId]) -> dict[str, ConversationRow]:
        """The rows of those conversations that have one, by the key of their ids."""
        wanted = list(ids)
        if not wanted:
            return {}
        with self.transaction() as connection:
            connection.register("batch", arrow("keys", wanted))
            found = connection.execute(
                f"SELECT {', '.join(CONVERSATIONS)}, message_id FROM conversations "  # noqa: S608 (our names)
                "SEMI JOIN batch USING (tenant_id, conversation_id) "
                "LEFT JOIN titles USING (tenant_id, conversation_id)"
            ).fetchall()
            connection.unregister("batch")
        rows = [_conversation(values) for values in found]
        return {ConversationId(row.tenant_id, row.conversation_id).key: row for row in rows}


def _conversation(values: tuple[Any, ...]) -> ConversationRow:
    row = ConversationRow(*values)
    row.created_at = row.created_at and row.created_at.replace(tzinfo=UTC)
    row.last_activity = row.last_activity and row.last_activity.replace(tzinfo=UTC)
    row.context = from_json(row.context)  # type: ignore[arg-type]  # JSON text so far
    row.metadata = from_json(row.metadata)  # type: ignore[arg-type]  # the same
    return row
