"""`SQLiteSession` of `openai-agents`: the memory of an agent in an SQLite file."""

from __future__ import annotations

import asyncio
import os
import uuid
from typing import Any

from tests.benchmarks.peers.peer import (
    CONVERSATIONS,
    MESSAGE,
    READ_OF,
    ROTATE,
    WINDOW,
    AsyncCall,
    AsyncPeer,
    read_name,
)


class AgentsSQLite(AsyncPeer):
    """One session object per conversation on one file, as the library's guide shows it."""

    def fill(self) -> None:
        os.environ.setdefault("OPENAI_AGENTS_DISABLE_TRACING", "1")
        from agents import SQLiteSession

        def make(id: str) -> Any:
            return SQLiteSession(id, self.folder / "sessions.db")

        self._make = make
        for number in range(CONVERSATIONS):
            session = self._make(read_name(number))
            asyncio.run(session.add_items([MESSAGE] * READ_OF))
            session.close()

    def writer(self, number: int) -> AsyncCall:
        session: Any = None
        written = ROTATE

        async def append() -> object:
            nonlocal session, written
            if written >= ROTATE:
                if session is not None:
                    session.close()
                session, written = self._make(uuid.uuid4().hex), 0
            written += 1
            return await session.add_items([MESSAGE])

        return append

    def reader(self, number: int) -> AsyncCall:
        session = self._make(read_name(number))

        async def read() -> object:
            return len(await session.get_items(limit=WINDOW))

        return read
