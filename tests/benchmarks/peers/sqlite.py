"""A table of one's own in SQLite: what a message costs when nothing is decided about it."""

from __future__ import annotations

import json
import sqlite3
import threading
import uuid

from tests.benchmarks.peers.peer import (
    CONVERSATIONS,
    MESSAGE,
    READ_OF,
    WINDOW,
    Call,
    Rotor,
    ThreadedPeer,
    read_name,
)

_TABLE = (
    "CREATE TABLE IF NOT EXISTS m"
    "(conversation TEXT, n INTEGER, body TEXT, PRIMARY KEY(conversation, n)) WITHOUT ROWID"
)
_INSERT = "INSERT INTO m VALUES (?, ?, ?)"
_LAST = "SELECT body FROM m WHERE conversation = ? ORDER BY n DESC LIMIT ?"


class PlainSQLite(ThreadedPeer):
    """WAL, synchronous=FULL, one connection that all writers share behind a lock."""

    def fill(self) -> None:
        self._lock = threading.Lock()
        self._db = self._connect()
        self._db.execute(_TABLE)
        self._db.execute("BEGIN")
        for number in range(CONVERSATIONS):
            rows = [(read_name(number), n, json.dumps(MESSAGE)) for n in range(READ_OF)]
            self._db.executemany(_INSERT, rows)
        self._db.execute("COMMIT")

    def writer(self, number: int) -> Call:
        rotor = Rotor(lambda: uuid.uuid4().hex)

        def append() -> object:
            conversation = rotor()
            with self._lock:
                row = (conversation, rotor.number, json.dumps(MESSAGE))
                return self._db.execute(_INSERT, row)

        return append

    def reader(self, number: int) -> Call:
        db = self._connect()
        conversation = read_name(number)

        def read() -> object:
            rows = db.execute(_LAST, (conversation, WINDOW)).fetchall()
            return len([json.loads(body) for (body,) in reversed(rows)])

        return read

    def _connect(self) -> sqlite3.Connection:
        path = self.folder / "plain.db"
        db = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=30)
        self.up.callback(db.close)
        db.execute("PRAGMA journal_mode=WAL")
        db.execute("PRAGMA synchronous=FULL")
        return db
