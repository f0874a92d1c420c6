"""LangChain's chat message histories on PostgreSQL and on Redis."""

from __future__ import annotations

import queue
import uuid
import warnings

from tests.benchmarks.peers import servers
from tests.benchmarks.peers.peer import (
    CONTENT,
    CONVERSATIONS,
    READ_OF,
    WINDOW,
    Call,
    Rotor,
    ThreadedPeer,
    read_name,
)

CONNECTIONS = 32


class LangChainPostgres(ThreadedPeer):
    """`PostgresChatMessageHistory`, 32 connections shared by all writers."""

    def fill(self) -> None:
        import psycopg
        from langchain_core.messages import HumanMessage
        from langchain_postgres import PostgresChatMessageHistory

        dsn, pid = servers.postgres(self.up, self.folder)
        self.servers.append(pid)
        self._history = PostgresChatMessageHistory
        self._message = HumanMessage(content=CONTENT)
        self._pool: queue.LifoQueue[psycopg.Connection] = queue.LifoQueue()
        for _ in range(CONNECTIONS):
            connection = psycopg.connect(dsn)
            self.up.callback(connection.close)
            self._pool.put(connection)
        first = self._pool.get()
        self._history.create_tables(first, "chat")
        self._ids = [str(uuid.uuid4()) for _ in range(CONVERSATIONS)]
        for id in self._ids:
            history = self._history("chat", id, sync_connection=first)
            history.add_messages([self._message] * READ_OF)
        first.execute("ANALYZE")
        first.commit()
        self._pool.put(first)

    def writer(self, number: int) -> Call:
        rotor = Rotor(lambda: str(uuid.uuid4()))

        def append() -> object:
            conversation = rotor()
            connection = self._pool.get()
            try:
                history = self._history("chat", conversation, sync_connection=connection)
                return history.add_messages([self._message])
            finally:
                self._pool.put(connection)

        return append

    def reader(self, number: int) -> Call:
        id = self._ids[number % CONVERSATIONS]

        def read() -> object:
            connection = self._pool.get()
            try:
                history = self._history("chat", id, sync_connection=connection)
                return len(history.get_messages()[-WINDOW:])
            finally:
                connection.rollback()
                self._pool.put(connection)

        return read


class LangChainRedis(ThreadedPeer):
    """`RedisChatMessageHistory`, one per writer, on a server with `appendfsync always`."""

    def fill(self) -> None:
        warnings.simplefilter("ignore")
        from langchain_community.chat_message_histories import RedisChatMessageHistory
        from langchain_core.messages import HumanMessage

        self._url, pid = servers.redis(self.up, self.folder)
        self.servers.append(pid)
        self._history = RedisChatMessageHistory
        self._message = HumanMessage(content=CONTENT)
        for number in range(CONVERSATIONS):
            history = self._history(read_name(number), url=self._url)
            history.add_messages([self._message] * READ_OF)

    def writer(self, number: int) -> Call:
        history = self._history("begin", url=self._url)
        rotor = Rotor(lambda: uuid.uuid4().hex)

        def append() -> object:
            history.session_id = rotor()
            return history.add_messages([self._message])

        return append

    def reader(self, number: int) -> Call:
        history = self._history(read_name(number), url=self._url)
        return lambda: len(history.messages[-WINDOW:])
