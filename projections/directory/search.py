"""Search: the messages of a tenant that say what was asked for, the best first."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from typing import Any, Final

from eventsourcing.sqlite import SQLiteCursor

from .query import expression, parse
from .schema import TENANT_BITS
from .snippet import snippet
from .view import DirectoryView, conversation_facet, role_facet, user_facet

CANDIDATES_MAX: Final = 2_000
"""Of so many messages, the newest that fit, the best are found: a word that is in every message
costs no more than one that is in these."""


_TIME_MIN: Final = -(2**63)
_TIME_MAX: Final = 2**63 - 1

_BEST: Final = """
SELECT best.score, messages.*, conversations.conversation_id
FROM (
    SELECT id, score
    FROM (
        SELECT rowid AS id, bm25(found, 0.0, 1.0) AS score
        FROM found
        WHERE found MATCH :match AND rowid >= :first AND rowid < :end
            AND (:any_time OR (SELECT time FROM messages WHERE id = found.rowid)
                 BETWEEN :since AND :until)
        ORDER BY rowid DESC
        LIMIT :candidates
    )
    ORDER BY score, id DESC
    LIMIT :limit
) AS best
JOIN messages USING (id)
JOIN conversations ON conversations.number = messages.conversation
ORDER BY best.score, messages.id DESC
"""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Where to look; `since` and `until` are in microseconds since 1970, both included."""

    user_id: str | None = None
    role: str | None = None
    conversation_id: str | None = None
    since: int | None = None
    until: int | None = None


def search(
    view: DirectoryView, tenant_id: str, query: str, wanted: Wanted, limit: int
) -> list[dict[str, Any]]:
    """Up to `limit` hits as the contract shows them, the best first; newer ones first among equals.

    Empty where nothing in the query can be looked for.
    """
    phrases = parse(query)
    if not phrases:
        return []
    with view.datastore.transaction(commit=False) as reading:
        reading.execute("SELECT number FROM tenants WHERE tenant_id = ?", (tenant_id,))
        tenant = reading.fetchone()
        if tenant is None:
            return []
        rows = _best(reading, tenant["number"], f"terms : ({expression(phrases)})", wanted, limit)
    return [
        {
            "conversation_id": row["conversation_id"],
            "message_id": row["message_id"],
            "version": row["version"],
            "role": row["role"],
            "timestamp": row["timestamp"],
            "snippet": snippet(row["text"], phrases),
            "score": round(-row["score"], 6),
        }
        for row in rows
    ]


def _best(
    reading: SQLiteCursor, tenant: int, match: str, wanted: Wanted, limit: int
) -> list[sqlite3.Row]:
    facets = []
    if wanted.conversation_id is not None:
        reading.execute(
            "SELECT number FROM conversations WHERE tenant = ? AND conversation_id = ?",
            (tenant, wanted.conversation_id),
        )
        conversation = reading.fetchone()
        if conversation is None:
            return []
        facets.append(conversation_facet(conversation["number"]))
    if wanted.user_id is not None:
        facets.append(user_facet(wanted.user_id))
    if wanted.role is not None:
        facets.append(role_facet(wanted.role))
    if facets:
        match = f"facets : ({' AND '.join(facets)}) AND {match}"
    first = tenant << TENANT_BITS
    reading.execute(
        _BEST,
        {
            "match": match,
            "first": first,
            "end": first + (1 << TENANT_BITS),
            "any_time": wanted.since is None and wanted.until is None,
            "since": _TIME_MIN if wanted.since is None else wanted.since,
            "until": _TIME_MAX if wanted.until is None else wanted.until,
            "candidates": CANDIDATES_MAX,
            "limit": limit,
        },
    )
    found: list[sqlite3.Row] = reading.fetchall()
    return found
