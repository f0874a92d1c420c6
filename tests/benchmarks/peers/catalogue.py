"""The peers by name, each with the module that it is in: imported only in a process of its own."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module

from tests.benchmarks.peers.peer import Peer


@dataclass(frozen=True)
class Entry:
    """A peer's name as the tables say it, and where its class is."""

    name: str
    module: str
    kind: str

    def load(self) -> type[Peer]:
        """Raises ImportError where its packages are not installed."""
        found: type[Peer] = getattr(import_module(f"{__package__}.{self.module}"), self.kind)
        return found


PEERS = {
    entry.name: entry
    for entry in (
        Entry("UmaDB", "umadb", "UmaDB"),
        Entry("eventsourcing on SQLite", "library", "LibrarySQLite"),
        Entry("eventsourcing on PostgreSQL", "library", "LibraryPostgres"),
        Entry("LangChain on PostgreSQL", "langchain", "LangChainPostgres"),
        Entry("LangChain on Redis", "langchain", "LangChainRedis"),
        Entry("openai-agents SQLiteSession", "agents", "AgentsSQLite"),
        Entry("plain SQLite", "sqlite", "PlainSQLite"),
    )
}
