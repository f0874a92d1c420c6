"""One question asked of the tables: run in the sandbox, answered within limits.

A query has a connection of its own, in a thread of the caller's, and reads one consistent snapshot
while the projector goes on writing. Its answer is cut at a number of rows and of bytes; it may be
interrupted from another thread, which most statements obey within milliseconds.
"""

from __future__ import annotations

import contextlib
import csv
import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Literal

import duckdb
import pyarrow as pa
from pydantic_core import from_json, to_json

from . import sandbox
from .sandbox import SQLRefused
from .view import DuckDBDatastore

Format = Literal["json", "arrow", "csv"]

_BATCH_ROWS: Final = 1_024
_SLICE_BYTES: Final = 1_000_000
_ENDING_BYTES: Final = 1_000


class QueryInterrupted(Exception):
    """The query was interrupted before it had its answer."""


class DatabaseBroken(Exception):
    """DuckDB has given the database up: nothing more can be asked before it is opened anew."""


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked. `params` by place or by name; `tenant_id` None asks about all tenants."""

    sql: str
    params: list[Any] | dict[str, Any] | None = None
    tenant_id: str | None = None
    format: Format = "json"
    rows_max: int = 10_000
    bytes_max: int = 1_000_000


@dataclass(slots=True)
class Answer:
    """What came of it: `body` in the format asked for, and the facts about it.

    `columns` are {"name", "type"} with DuckDB's names of types; `tracking` is the position that the
    answer is from; for json `body` is the list of rows alone.
    """

    columns: list[dict[str, str]] = field(default_factory=list)
    body: bytes = b""
    row_count: int = 0
    truncated: bool = False
    tracking: dict[str, int] = field(default_factory=dict)
    elapsed_ms: float = 0.0


class Query:
    """A question on its way to its answer."""

    def __init__(self, datastore: DuckDBDatastore, question: Question) -> None:
        self.question = question
        self._datastore = datastore
        self._connection = datastore.cursor()
        self._interrupted = False

    def interrupt(self) -> None:
        """Asks it to end, from another thread; harmless when it has."""
        self._interrupted = True
        with contextlib.suppress(duckdb.Error):
            self._connection.interrupt()

    def run(self) -> Answer:
        """Returns the answer. Raises SQLRefused, QueryInterrupted or DatabaseBroken."""
        started = time.perf_counter()
        connection = self._connection
        question = self.question
        try:
            sandbox.check(connection, question.sql)
            if question.tenant_id is not None:
                sandbox.scope(connection, question.tenant_id)
            connection.execute("BEGIN TRANSACTION READ ONLY")
            answer = self._answer()
        except duckdb.InterruptException as error:
            raise QueryInterrupted from error
        except duckdb.Error as error:
            if self._interrupted:
                raise QueryInterrupted from error
            if self._is_broken():
                raise DatabaseBroken(str(error)) from error
            raise SQLRefused(_told(error)) from error
        except (pa.ArrowException, MemoryError) as error:
            raise SQLRefused(f"the result cannot be carried: {error}") from error
        finally:
            with contextlib.suppress(duckdb.Error):
                connection.rollback()
            connection.close()
        answer.elapsed_ms = round((time.perf_counter() - started) * 1000, 3)
        return answer

    def _answer(self) -> Answer:
        connection, question = self._connection, self.question
        tracking = dict(
            connection.execute("SELECT application_name, notification_id FROM tracking").fetchall()
        )
        connection.execute(question.sql, question.params)
        answer = Answer(tracking=tracking)
        answer.columns = [
            {"name": name, "type": str(type)} for name, type, *_ in connection.description or ()
        ]
        if not answer.columns:
            raise SQLRefused("the statement has no result")
        reader = connection.to_arrow_reader(_BATCH_ROWS)
        match question.format:
            case "json":
                _write_json(answer, reader, question)
            case "csv":
                _write_csv(answer, reader, question)
            case "arrow":
                _write_arrow(answer, reader, question)
        return answer

    def _is_broken(self) -> bool:
        try:
            with contextlib.closing(self._datastore.cursor()) as other:
                other.execute("SELECT 1").fetchall()
        except Exception:  # noqa: BLE001 (whatever it is, nothing can be asked any more)
            return True
        return False


def _told(error: duckdb.Error) -> str:
    if isinstance(error, duckdb.OutOfMemoryException):
        first = str(error).partition("\n")[0]  # the rest is advice for whoever has the settings
        return f"the query needs more memory than it may have; ask for less at once. {first}"
    return str(error)


# -- within limits -------------------------------------------------------------------------------


def _slices(
    answer: Answer, reader: pa.RecordBatchReader, rows_max: int
) -> Iterator[pa.RecordBatch]:
    """The result in pieces of about a megabyte at most, up to `rows_max` rows in all."""
    for batch in reader:
        rows = max(1, int(batch.num_rows * _SLICE_BYTES / max(batch.nbytes, 1)))
        for start in range(0, batch.num_rows, rows):
            left = rows_max - answer.row_count
            if left <= 0:
                answer.truncated = True
                return
            piece = batch.slice(start, min(rows, left))
            yield piece
            if answer.truncated:
                return
            if start + piece.num_rows < min(start + rows, batch.num_rows):
                answer.truncated = True
                return


def _too_large(columns: Sequence[Any], bytes_max: int) -> SQLRefused:
    return SQLRefused(
        f"the first row alone is more than an answer may carry ({bytes_max} bytes): "
        f"ask for parts of its {len(columns)} column(s), with left() for instance"
    )


def _write_json(answer: Answer, reader: pa.RecordBatchReader, question: Question) -> None:
    pieces: list[bytes] = []
    left = question.bytes_max - _ENDING_BYTES - len(to_json(answer.columns))
    for batch in _slices(answer, reader, question.rows_max):
        for row in _rows(batch, answer.columns):
            text = to_json(row, inf_nan_mode="strings", bytes_mode="base64", fallback=str)
            left -= len(text) + 1
            if left < 0:
                answer.truncated = True
                if not answer.row_count:
                    raise _too_large(answer.columns, question.bytes_max)
                break
            pieces.append(text)
            answer.row_count += 1
    answer.body = b"[" + b",".join(pieces) + b"]"


def _write_csv(answer: Answer, reader: pa.RecordBatchReader, question: Question) -> None:
    pieces = [_csv_line([column["name"] for column in answer.columns])]
    left = question.bytes_max - _ENDING_BYTES - len(pieces[0])
    for batch in _slices(answer, reader, question.rows_max):
        for row in _rows(batch, answer.columns):
            line = _csv_line(["" if value is None else _csv_text(value) for value in row])
            left -= len(line)
            if left < 0:
                answer.truncated = True
                if not answer.row_count:
                    raise _too_large(answer.columns, question.bytes_max)
                break
            pieces.append(line)
            answer.row_count += 1
    answer.body = b"".join(pieces)


def _csv_line(values: Sequence[str]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(values)
    return text.getvalue().encode()


def _csv_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    plain = to_json(value, inf_nan_mode="strings", bytes_mode="base64", fallback=str).decode()
    return str(from_json(plain)) if plain.startswith('"') else plain


def _write_arrow(answer: Answer, reader: pa.RecordBatchReader, question: Question) -> None:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, reader.schema) as stream:
        for batch in _slices(answer, reader, question.rows_max):
            piece = batch
            while sink.tell() + _ipc_bytes(piece) > question.bytes_max - _ENDING_BYTES:
                answer.truncated = True
                piece = piece.slice(0, piece.num_rows // 2)
                if not piece.num_rows:
                    break
            if not piece.num_rows:
                if not answer.row_count:
                    raise _too_large(answer.columns, question.bytes_max)
                break
            stream.write_batch(piece)
            answer.row_count += piece.num_rows
    answer.body = sink.getvalue().to_pybytes()


def _ipc_bytes(batch: pa.RecordBatch) -> int:
    return int(pa.ipc.get_record_batch_size(batch))


# -- values --------------------------------------------------------------------------------------


def _rows(batch: pa.RecordBatch, columns: Sequence[dict[str, str]]) -> Iterator[tuple[Any, ...]]:
    values = [
        _values(column, described["type"])
        for column, described in zip(batch.columns, columns, strict=True)
    ]
    return zip(*values, strict=True)


def _values(column: pa.Array, type: str) -> list[Any]:
    """A column's values as Python's; times of this ledger are UTC and say so."""
    if pa.types.is_timestamp(column.type):
        return [_time_text(value) for value in _plain(column.cast(_micros(column), safe=False))]
    if type in {"HUGEINT", "UHUGEINT"}:
        return [None if value is None else int(value) for value in _plain(column)]
    return _plain(column)


def _micros(column: pa.Array) -> pa.DataType:
    return pa.timestamp("us", column.type.tz)


def _time_text(value: Any) -> str | None:
    if isinstance(value, datetime):
        return value.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"
    return None if value is None else str(value)


def _plain(column: pa.Array) -> list[Any]:
    try:
        found: list[Any] = column.to_pylist()
    except (ValueError, OverflowError):  # a time that Python cannot hold
        found = column.cast(pa.string()).to_pylist()
    return found
