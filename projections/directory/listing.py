"""Lists: the conversations of a tenant, newest activity first, page by page.

All pages of a walk show the order of its first page, whatever happens meanwhile: the cursor holds
how far the ledger had been taken in then, by partition, and the place where the page ended. A
conversation that has moved up since keeps the place that it had, which `activity` knows; one that
has begun since belongs to another walk. So each conversation that was there, and still fits, comes
exactly once, as it is when its page is made. Nothing is kept between pages: a cursor is good for
ever, at any instance, and after the file was built anew.
"""

from __future__ import annotations

import sqlite3
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from heapq import merge
from itertools import islice
from typing import Any, Final, NamedTuple

from eventsourcing.sqlite import SQLiteCursor
from pydantic import TypeAdapter
from pydantic_core import to_json

from .view import DirectoryView, entry_of

BLOCK: Final = 256
"""Rows read at once."""


class BadCursor(ValueError):
    """The text is not a cursor that a list has given out."""


class Place(NamedTuple):
    """Where a conversation stands: places are compared, the newest is the greatest."""

    last_activity: int
    conversation_id: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next page begins: behind `place`, as things were at `positions`."""

    positions: dict[int, int]
    place: Place

    def text(self) -> str:
        """The cursor as callers have it: URL-safe, without a meaning for them."""
        return urlsafe_b64encode(to_json([self.positions, *self.place])).decode().rstrip("=")

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Reads what `text` gave. Raises BadCursor for anything else."""
        try:
            raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            positions, time, id = _CURSOR.validate_json(raw)
        except ValueError as error:
            raise BadCursor("it is not the `next` of an answer to this list") from error
        if not all(0 <= number < 2**63 for number in (*positions, *positions.values())):
            raise BadCursor("its positions are not those of a ledger")
        return cls(positions, Place(time, id))


_CURSOR: Final = TypeAdapter(tuple[dict[int, int], int, str])


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which conversations: of a user, of a status; without one all but deleted and erased ones."""

    user_id: str | None = None
    status: str | None = None

    def condition(self) -> tuple[str, list[Any]]:
        """The same in SQL."""
        parts: list[str] = []
        values: list[Any] = []
        if self.user_id is not None:
            parts.append("user_id = ?")
            values.append(self.user_id)
        if self.status is not None:
            parts.append("status = ?")
            values.append(self.status)
        else:
            parts.append("hidden = 0")
        return " AND ".join(parts), values


class Page(NamedTuple):
    """Conversations as the contract shows them, and where the next page begins, if there is one."""

    conversations: list[dict[str, Any]]
    cursors: list[Cursor]
    """For each conversation the cursor that goes on behind it."""
    more: bool


def page(
    view: DirectoryView,
    tenant_id: str,
    wanted: Wanted,
    limit: int,
    *,
    streams: Mapping[int, str],
    cursor: Cursor | None = None,
) -> Page:
    """Up to `limit` conversations of the tenant; `streams` are the partitions' names."""
    with view.datastore.transaction(commit=False) as reading:
        behind = cursor.place if cursor else None
        positions = cursor.positions if cursor else _positions(reading, streams)
        reading.execute("SELECT number FROM tenants WHERE tenant_id = ?", (tenant_id,))
        tenant = reading.fetchone()
        if tenant is None:
            return Page([], [], more=False)
        walk = _Walk(reading, tenant["number"], wanted, positions, behind)
        found = list(islice(walk.rows(), limit + 1))
    return Page(
        [entry_of(row).shown(row["conversation_id"]) for _, row in found[:limit]],
        [Cursor(positions, place) for place, _ in found[:limit]],
        more=len(found) > limit,
    )


class _Walk:
    """The rest of one walk, in one transaction."""

    def __init__(
        self,
        reading: SQLiteCursor,
        tenant: int,
        wanted: Wanted,
        positions: dict[int, int],
        behind: Place | None,
    ) -> None:
        self._reading = reading
        self._tenant = tenant
        self._wanted, self._values = wanted.condition()
        self._positions = positions
        self._behind = behind

    def rows(self) -> Iterator[tuple[Place, sqlite3.Row]]:
        """What is behind the place, newest first."""
        moved = self._moved() if self._behind is not None else []
        return merge(self._unmoved(), moved, key=lambda each: each[0], reverse=True)

    def _unmoved(self) -> Iterator[tuple[Place, sqlite3.Row]]:
        """Those whose last activity was taken in by then."""
        place = self._behind
        while True:
            before, values = "", []
            if place is not None:
                before = " AND (last_activity, conversation_id) < (?, ?)"
                values = [*place]
            self._reading.execute(
                f"SELECT * FROM conversations WHERE tenant = ? AND {self._wanted}{before} "  # noqa: S608 (our names)
                "ORDER BY last_activity DESC, conversation_id DESC LIMIT ?",
                (self._tenant, *self._values, *values, BLOCK),
            )
            rows = self._reading.fetchall()
            for row in rows:
                place = _place(row)
                if row["last_seq"] <= self._positions.get(row["partition"], 0):
                    yield place, row
            if len(rows) < BLOCK:
                return

    def _moved(self) -> list[tuple[Place, sqlite3.Row]]:
        """Those that have moved since, in the places that they had, newest first."""
        assert self._behind is not None
        found = []
        for partition, position in self._positions.items():
            self._reading.execute(
                "SELECT *, (SELECT time FROM activity WHERE conversation = number AND seq <= ? "  # noqa: S608 (our names)
                "ORDER BY seq DESC LIMIT 1) AS time_then FROM conversations "
                f"WHERE tenant = ? AND partition = ? AND last_seq > ? AND first_seq <= ? "
                f"AND {self._wanted}",
                (position, self._tenant, partition, position, position, *self._values),
            )
            for row in self._reading.fetchall():
                place = Place(row["time_then"], row["conversation_id"])
                if place < self._behind:
                    found.append((place, row))
        return sorted(found, key=lambda each: each[0], reverse=True)


def _place(row: sqlite3.Row) -> Place:
    return Place(row["last_activity"], row["conversation_id"])


def _positions(reading: SQLiteCursor, streams: Mapping[int, str]) -> dict[int, int]:
    found = {}
    for partition, stream in streams.items():
        reading.execute(
            "SELECT max(notification_id) AS last FROM tracking WHERE application_name = ?",
            (stream,),
        )
        found[partition] = reading.fetchone()["last"] or 0
    return found
