"""Two versions of the tables compared: the live ones, and those made from the ledger again.

Table by table: by a digest over all rows, and where that differs, bucket by bucket of rows down to
the fields, in memory that does not grow with the tables.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import duckdb

from domain.identity import ConversationId

from .view import translated

KEYS: Final = {
    "events": ("tenant_id", "conversation_id", "version"),
    "messages": ("tenant_id", "conversation_id", "version"),
    "usage": ("tenant_id", "conversation_id", "version"),
    "usage_days": ("tenant_id", "day"),
    "conversations": ("tenant_id", "conversation_id"),
    "titles": ("tenant_id", "conversation_id"),
    "tracking": ("application_name",),
}
"""The tables that the ledger must give again, and what tells their rows apart."""

OF_A_CONVERSATION: Final = tuple(table for table, keys in KEYS.items() if "conversation_id" in keys)

BUCKETS: Final = 1_024
"""Rows are compared in so many parts: what one holds of a table is in memory at a time."""

_PLACES: Final = ("conversation_id", "day", "application_name")
"""What tells where a row belongs, within its tenant."""

MISSING: Final = "no such row"
PRESENT: Final = "a row"


class Difference(NamedTuple):
    """One field of one row that differs; `field` is empty where there is no such row, or more than
    one. `version` is 0 in a table whose rows have none."""

    tenant_id: str
    conversation_id: str
    version: int
    field: str
    live: str | None
    rebuilt: str | None


def digests(
    connection: duckdb.DuckDBPyConnection, only: ConversationId | None = None
) -> dict[str, str]:
    """A digest of each table's rows, whatever their order: `<rows>:<hash>`.

    `only`: of the rows of that conversation, in the tables that have any.
    """
    found = {}
    with translated():
        for table in KEYS if only is None else OF_A_CONVERSATION:
            where, values = _condition(only)
            row = connection.execute(
                f"SELECT count(*), coalesce(sum(hash({table})::HUGEINT), 0), "  # noqa: S608 (our names)
                f"coalesce(bit_xor(hash({table})), 0) FROM {table} WHERE {where}",
                values,
            ).fetchone()
            assert row is not None
            found[table] = f"{row[0]}:{row[1]:x}-{row[2]:x}"
    return found


def differences(
    live: duckdb.DuckDBPyConnection,
    rebuilt: duckdb.DuckDBPyConnection,
    table: str,
    limit: int,
    only: ConversationId | None = None,
) -> list[Difference]:
    """Where two versions of a table differ, up to `limit` fields."""
    found: list[Difference] = []
    with translated():
        for key in _differing_rows(live, rebuilt, table, only):
            for each in _fields(live, rebuilt, table, key):
                found.append(each)
                if len(found) == limit:
                    return found
    return found


def _differing_rows(
    live: duckdb.DuckDBPyConnection,
    rebuilt: duckdb.DuckDBPyConnection,
    table: str,
    only: ConversationId | None,
) -> Iterator[tuple[Any, ...]]:
    """The keys of rows that are not the same in both."""
    keys = ", ".join(KEYS[table])
    where, values = _condition(only)
    of_a_bucket = (
        f"SELECT hash({keys}) % {BUCKETS} AS bucket, count(*), sum(hash({table})::HUGEINT), "  # noqa: S608 (our names)
        f"bit_xor(hash({table})) FROM {table} WHERE {where} GROUP BY bucket"
    )
    in_live, in_rebuilt = (
        {bucket: digest for bucket, *digest in each.execute(of_a_bucket, values).fetchall()}
        for each in (live, rebuilt)
    )
    of_a_row = (
        f"SELECT {keys}, hash({table}) FROM {table} "  # noqa: S608 (our names)
        f"WHERE {where} AND hash({keys}) % {BUCKETS} = ?"
    )
    for bucket in sorted(in_live.keys() | in_rebuilt.keys()):
        if in_live.get(bucket) == in_rebuilt.get(bucket):
            continue
        left, right = (
            _by_key(each.execute(of_a_row, [*values, bucket]).fetchall())
            for each in (live, rebuilt)
        )
        for key in sorted(left.keys() | right.keys()):
            if sorted(left.get(key, ())) != sorted(right.get(key, ())):
                yield key


def _by_key(rows: list[tuple[Any, ...]]) -> dict[tuple[Any, ...], list[int]]:
    found = defaultdict(list)
    for *key, digest in rows:
        found[tuple(key)].append(digest)
    return found


def _fields(
    live: duckdb.DuckDBPyConnection,
    rebuilt: duckdb.DuckDBPyConnection,
    table: str,
    key: tuple[Any, ...],
) -> Iterator[Difference]:
    """What is not the same in the rows that both have under that key."""
    columns = [each[0] for each in live.execute(f"SELECT * FROM {table} LIMIT 0").description or ()]  # noqa: S608 (our names)
    texts = ", ".join(f"{name}::VARCHAR" for name in columns)
    wanted = " AND ".join(f"{name} = ?" for name in KEYS[table])
    row = f"SELECT {texts} FROM {table} WHERE {wanted} LIMIT 2"  # noqa: S608 (our names)
    left, right = (each.execute(row, list(key)).fetchall() for each in (live, rebuilt))
    of_left, of_right = (
        dict(zip(columns, rows[0], strict=True)) if rows else {} for rows in (left, right)
    )
    known = of_left or of_right
    place = (
        known.get("tenant_id", ""),
        next((known[name] for name in _PLACES if name in known), ""),
        int(known.get("version") or 0),
    )
    if len(left) != 1 or len(right) != 1:
        yield Difference(*place, "", _rows(left), _rows(right))
        return
    for name in columns:
        if of_left[name] != of_right[name]:
            yield Difference(*place, name, of_left[name], of_right[name])


def _rows(found: list[Any]) -> str:
    return (MISSING, PRESENT, "the row twice")[len(found)]


def _condition(only: ConversationId | None) -> tuple[str, list[Any]]:
    return ("true", []) if only is None else ("tenant_id = ? AND conversation_id = ?", [*only])
