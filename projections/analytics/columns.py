"""Rows as Arrow columns, in which DuckDB takes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import pyarrow as pa

from .rows import CHANGES, CONVERSATIONS, EVENTS, MESSAGES, USAGE, Row, Rows

PACKED_AT_ONCE: Final = 2_000
"""Rows that are turned into columns together. So few are still in the processor's cache then: with
20,000 it takes twice as long."""

_TEXT = pa.string()
_TIME = pa.timestamp("us")
_INT = pa.int64()
_SUM = pa.decimal128(38, 0)

_TYPES: Final[dict[str, pa.DataType]] = {
    "partition": pa.int32(),
    "seq": _INT,
    "version": _INT,
    "time": _TIME,
    "created_at": _TIME,
    "last_activity": _TIME,
    "edited_at": _TIME,
    "redacted_at": _TIME,
    "streaming": pa.bool_(),
    "chars": _INT,
    "session": _INT,
    "sessions": _INT,
    "message_count": _INT,
    "prompt_tokens": _INT,
    "completion_tokens": _INT,
    "total_tokens": _INT,
    "uncached_tokens": _INT,
    "cached_tokens": _INT,
    "cache_write_tokens": _INT,
    "reasoning_tokens": _INT,
    "cost_usd": pa.decimal128(18, 9),
}


def _arrow_schema(columns: Sequence[str], **others: pa.DataType) -> pa.Schema:
    return pa.schema([(name, {**_TYPES, **others}.get(name, _TEXT)) for name in columns])


_SCHEMAS: Final = {
    "events": _arrow_schema(EVENTS),
    "messages": _arrow_schema(MESSAGES),
    "usage": _arrow_schema(USAGE),
    "conversations": _arrow_schema(
        CONVERSATIONS,
        prompt_tokens=_SUM,
        completion_tokens=_SUM,
        total_tokens=_SUM,
        cost_usd=pa.decimal128(38, 9),
    ),
    "titles": _arrow_schema(("tenant_id", "conversation_id", "message_id")),
    "changes": _arrow_schema(CHANGES, before_version=_INT, replaced=pa.bool_(), ended=pa.bool_()),
    "keys": _arrow_schema(("tenant_id", "conversation_id")),
}


def arrow(table: str, rows: Sequence[Row]) -> pa.Table | None:
    """The rows of a table, or of what is asked or changed there; None for none."""
    return pa.Table.from_batches([_columns(table, rows)]) if rows else None


def _columns(table: str, rows: Sequence[Row]) -> pa.RecordBatch:
    schema = _SCHEMAS[table]
    columns = zip(*rows, strict=True)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, type=field.type) for column, field in zip(columns, schema, strict=True)],
        schema=schema,
    )


class Packed:
    """The new rows of a batch as columns, packed a part at a time."""

    def __init__(self) -> None:
        self._parts: dict[str, list[pa.RecordBatch]] = {}

    def take(self, rows: Rows) -> None:
        """Moves the new rows out of `rows` and packs them; what changes older rows stays there."""
        for table, added in rows.added.items():
            if added:
                self._parts.setdefault(table, []).append(_columns(table, added))
                added.clear()

    def table(self, name: str, rest: Sequence[Row]) -> pa.Table | None:
        """All that was taken for a table, and the rest behind it; None where that is nothing."""
        parts = self._parts.get(name, [])
        if rest:
            parts = [*parts, _columns(name, rest)]
        return pa.Table.from_batches(parts) if parts else None
