"""Where the chains of many subjects stand, in bounded memory, however many subjects there are.

The ones met lately are held here; the others wait in a temporary file (SQLite), which is gone with
the process.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict
from types import TracebackType
from typing import Self

from infra.jetstream.chain import START, Link

HELD_MAX = 200_000
"""Subjects held in memory; about 300 bytes each."""


class Heads:
    """A Link for each subject, START for one that was not met before."""

    def __init__(self, held_max: int = HELD_MAX) -> None:
        self._held: OrderedDict[str, Link | None] = OrderedDict()
        self._held_max = held_max
        self._file: sqlite3.Connection | None = None
        self.count = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def get(self, subject: str) -> Link | None:
        """Where the subject's chain stands; None when it is broken."""
        if subject in self._held:
            return self._held[subject]
        if self._file is not None:
            found = self._file.execute(
                "SELECT version, digest FROM heads WHERE subject = ?", (subject,)
            ).fetchone()
            if found is not None:
                return None if found[0] < 0 else Link(*found)
        self.count += 1
        return START

    def set(self, subject: str, link: Link | None) -> None:
        """Moves the subject's chain on; None says that it is broken."""
        held = self._held
        held[subject] = link
        held.move_to_end(subject)
        if len(held) > self._held_max:
            self._set_aside()

    def _set_aside(self) -> None:
        """Puts the half that was met longest ago into the file."""
        if self._file is None:
            self._file = sqlite3.connect("")  # a temporary file of SQLite's own
            self._file.execute("PRAGMA journal_mode = OFF")
            self._file.execute(
                "CREATE TABLE heads (subject TEXT PRIMARY KEY, version INT, digest BLOB) "
                "WITHOUT ROWID"
            )
        rows = []
        for _ in range(len(self._held) // 2):
            subject, link = self._held.popitem(last=False)
            rows.append((subject, -1, b"") if link is None else (subject, *link))
        self._file.executemany("INSERT OR REPLACE INTO heads VALUES (?, ?, ?)", rows)
        self._file.commit()
