"""The `eventsourcing` library's own stores, SQLite and PostgreSQL, under the aggregate that its
tutorial would lead to: load, decide, save."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

from tests.benchmarks.peers import servers
from tests.benchmarks.peers.peer import (
    CONVERSATIONS,
    MESSAGE,
    READ_OF,
    WINDOW,
    Call,
    Rotor,
    ThreadedPeer,
)


class Chat(Aggregate):
    """A conversation with its recent window."""

    @event("Started")
    def __init__(self) -> None:
        self.window: list[dict[str, str]] = []

    @event("MessageAppended")
    def append(self, role: str, content: str, id: str) -> None:
        self.window.append({"role": role, "content": content, "id": id})
        del self.window[:-WINDOW]


class Chats(Application[UUID]):
    """Chats, with a cache of aggregates: without it every append loads all of one."""

    def begin(self, messages: int = 0) -> str:
        chat = Chat()
        for _ in range(messages):
            chat.append(**MESSAGE)
        self.save(chat)
        return str(chat.id)

    def append(self, id: str) -> None:
        chat: Any = self.repository.get(UUID(id))
        chat.append(**MESSAGE)
        self.save(chat)

    def recent(self, id: str) -> int:
        chat: Any = self.repository.get(UUID(id))
        return len(chat.window[-WINDOW:])


class Library(ThreadedPeer):
    """An application on one of the library's stores."""

    def environment(self) -> dict[str, str]:
        """The store's settings."""
        raise NotImplementedError

    def fill(self) -> None:
        self._app = Chats(env={**self.environment(), "AGGREGATE_CACHE_MAXSIZE": "10000"})
        self.up.callback(self._app.close)
        self._read = [self._app.begin(READ_OF) for _ in range(CONVERSATIONS)]

    def writer(self, number: int) -> Call:
        rotor = Rotor(self._app.begin)
        return lambda: self._app.append(rotor())

    def reader(self, number: int) -> Call:
        id = self._read[number % CONVERSATIONS]
        return lambda: self._app.recent(id)


class LibrarySQLite(Library):
    """Its SQLite store in a file; the connection's own pragmas are WAL and synchronous=FULL."""

    def environment(self) -> dict[str, str]:
        return {
            "PERSISTENCE_MODULE": "eventsourcing.sqlite",
            "SQLITE_DBNAME": str(self.folder / "library.db"),
            "SQLITE_LOCK_TIMEOUT": "30",
        }


class LibraryPostgres(Library):
    """Its PostgreSQL store."""

    def environment(self) -> dict[str, str]:
        import psycopg  # noqa: F401 (the library needs it; where it is missing, this says so)

        dsn, pid = servers.postgres(self.up, self.folder)
        self.servers.append(pid)
        port = dict(part.split("=") for part in dsn.split())["port"]
        return {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": "postgres",
            "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PORT": port,
            "POSTGRES_USER": "bench",
            "POSTGRES_PASSWORD": "not asked for",
            "POSTGRES_POOL_SIZE": "16",
            "POSTGRES_MAX_OVERFLOW": "16",
            "POSTGRES_MAX_WAITING": "1000",
            "POSTGRES_CONNECT_TIMEOUT": "60",
        }
