"""Building the analytics tables anew beside the live ones, comparing them, and exchanging the file.

The live tables go on being followed and asked until the new ones have caught up; then both stop at
the same event, are compared table by table, and the new file takes the place of the live one in
one rename. With `verify` it is thrown away instead, and the live tables go on.

Of one conversation alone the rows are made again from its own events, up to the version that the
live tables have of it, and compared with those; nothing has to stop for that.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Annotated, Any, Final

import duckdb
from eventsourcing.persistence import Tracking
from pydantic import BaseModel, ConfigDict, Field

from domain.errors import InvalidRequest
from domain.identity import ConversationId
from infra.jetstream.envelope import EVENT_HASH, EVENT_TYPE, EVENT_VERSION
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.scan import Stored, scan
from projections.analytics.comparison import differences, digests
from projections.analytics.reading import received
from projections.analytics.rows import Rows, new_conversation
from projections.analytics.view import AnalyticsView
from services.analytics import AnalyticsService, Tables
from services.projector import State

log = logging.getLogger(__name__)

TOLD_EVERY_S: Final = 0.5
DIFFERENCES_MAX: Final = 20
CATCH_UP_S: Final = 5.0

Name = Annotated[str, Field(min_length=1, max_length=200)]


class RebuildQuery(BaseModel):
    """The body of a request. `verify`: compare only, and keep the live tables.

    With `tenant_id` and `conversation_id` that conversation alone is compared.
    """

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    verify: bool = False
    tenant_id: Name | None = None
    conversation_id: Name | None = None

    @property
    def only(self) -> ConversationId | None:
        """The conversation to compare. Raises InvalidRequest where that cannot be."""
        if self.conversation_id is None and self.tenant_id is None:
            return None
        if self.conversation_id is None or self.tenant_id is None or not self.verify:
            raise InvalidRequest(
                "one conversation can be compared, not built anew: give tenant_id, conversation_id "
                "and verify"
            )
        return ConversationId.parse(self.tenant_id, self.conversation_id)


class Rebuild:
    """One rebuild. `tell` gets the progress: {"ok", "progress": {…}}."""

    def __init__(self, service: AnalyticsService, tell: Callable[[dict[str, Any]], None]) -> None:
        self._service = service
        self._tell = tell
        self._file = service.path.with_name("rebuild.duckdb")
        self._started = time.monotonic()
        self._told_at = 0.0

    async def run(self, *, verify: bool) -> dict[str, Any]:
        """Returns the result: {"ok", "same", "tables", "differences", "exchanged", …}.

        `same` is None where the live tables could not be brought to the same event. Raises
        RebuildFailed, with the live tables as they were.
        """
        service = self._service
        _discard(self._file)
        view = await asyncio.to_thread(service.open, self._file)
        try:
            target = await service.heads()
            await self._fill(view, target)
            assert service.tables is not None
            live = service.tables
            await live.pause()
            exchanged = False
            try:
                result = await self._compared(live, view, target)
                await asyncio.to_thread(_close, view)
                if not verify:
                    await service.exchange(self._file)
                    exchanged = True
            finally:
                if not exchanged:
                    await service.resume()
        finally:
            with contextlib.suppress(Exception):
                _close(view)
            _discard(self._file)
        seconds = time.monotonic() - self._started
        return {"ok": True, **result, "exchanged": exchanged, "seconds": round(seconds, 3)}

    async def _fill(self, view: AnalyticsView, target: dict[int, int]) -> None:
        """Projects the ledger into the view, up to these sequences."""
        tables: Tables = await self._service.follow(view, until=target)
        progress = tables.projector.progress
        before = sum(progress.positions.values())
        started = time.monotonic()
        try:
            while any(progress.positions[partition] < seq for partition, seq in target.items()):
                if progress.state is State.STOPPED:
                    raise RebuildFailed(str(progress.reason))
                self._say(sum(progress.positions.values()), before, sum(target.values()), started)
                await self._service.progressed()
        finally:
            await tables.pause()

    def _say(self, done: int, before: int, total: int, started: float) -> None:
        now = time.monotonic()
        if now - self._told_at < TOLD_EVERY_S:
            return
        self._told_at = now
        rate = (done - before) / max(now - started, 1e-9)
        left = (total - done) / rate if rate else None
        self._tell(
            {
                "ok": True,
                "progress": {
                    "done": done,
                    "total": total,
                    "events_per_second": round(rate),
                    "seconds_left": None if left is None else round(left, 1),
                },
            }
        )

    async def _compared(
        self, live: Tables, view: AnalyticsView, target: dict[int, int]
    ) -> dict[str, Any]:
        """Brings the new tables to the event of the live ones, and compares."""
        progress = live.projector.progress
        events = sum(target.values())
        if progress.state is State.STOPPED or any(
            progress.positions[partition] < seq for partition, seq in target.items()
        ):
            return {"events": events, "same": None, "tables": {}, "differences": {}}
        await self._fill(view, dict(progress.positions))
        return {
            "events": sum(progress.positions.values()),
            **await asyncio.to_thread(
                _compare, live.view.datastore.cursor(), view.datastore.cursor()
            ),
        }


class RebuildFailed(StoreUnavailable):
    """The tables could not be built anew; the message says why."""


class Comparison:
    """The live rows of one conversation beside those that its events give."""

    def __init__(self, service: AnalyticsService, id: ConversationId) -> None:
        self._service = service
        self._id = id
        self._file = service.path.with_name("comparison.duckdb")
        self._partition = service.topology.partition(id.key)
        self._stream = service.topology.stream_name(self._partition)
        self._conversation = new_conversation(id.key)
        self._events = 0

    async def run(self) -> dict[str, Any]:
        """Returns the result, as that of a rebuild with `verify`. Raises StoreUnavailable."""
        service = self._service
        started = time.monotonic()
        await service.reached((await service.heads())[self._partition], CATCH_UP_S)
        assert service.tables is not None
        live = service.tables.view.datastore.cursor()
        _discard(self._file)
        view = await asyncio.to_thread(service.open, self._file)
        try:
            live.execute("BEGIN TRANSACTION READ ONLY")
            version = await asyncio.to_thread(self._version_in, live)
            await self._fill(view, version)
            result = await asyncio.to_thread(_compare, live, view.datastore.cursor(), self._id)
        finally:
            live.close()
            with contextlib.suppress(Exception):
                _close(view)
            _discard(self._file)
        seconds = round(time.monotonic() - started, 3)
        return {
            "ok": True,
            "events": self._events,
            **result,
            "exchanged": False,
            "seconds": seconds,
        }

    def _version_in(self, live: duckdb.DuckDBPyConnection) -> int | None:
        found = live.execute(
            "SELECT version FROM conversations WHERE tenant_id = ? AND conversation_id = ?",
            [*self._id],
        ).fetchone()
        return None if found is None else int(found[0])

    async def _fill(self, view: AnalyticsView, version: int | None) -> None:
        """Folds the conversation's events up to that version; all of them where it is None."""
        subject = self._service.topology.subject(self._id.key)
        async with aclosing(scan(self._service.reading, self._stream, subject=subject)) as blocks:
            async for block in blocks:
                wanted = [
                    each
                    for each in block
                    if version is None or int(each.headers[EVENT_VERSION]) <= version
                ]
                if wanted:
                    await asyncio.to_thread(self._write, view, wanted)
                if len(wanted) < len(block):
                    return

    def _write(self, view: AnalyticsView, block: Sequence[Stored]) -> None:
        rows = Rows()
        for each in block:
            headers = each.headers
            event = received(
                self._id.key,
                int(headers[EVENT_VERSION]),
                headers[EVENT_TYPE],
                each.body,
                partition=self._partition,
                seq=each.seq,
                digest=headers[EVENT_HASH],
            )
            rows.fold(event, self._conversation)
        view.write(rows, Tracking(self._stream, block[-1].seq))
        self._events += len(block)


def _compare(
    live: duckdb.DuckDBPyConnection,
    rebuilt: duckdb.DuckDBPyConnection,
    only: ConversationId | None = None,
) -> dict[str, Any]:
    """Both are closed."""
    try:
        of_live, of_rebuilt = digests(live, only), digests(rebuilt, only)
        differing = [table for table in of_live if of_live[table] != of_rebuilt[table]]
        return {
            "same": not differing,
            "tables": {
                table: {"live": of_live[table], "rebuilt": of_rebuilt[table]} for table in of_live
            },
            "differences": {
                table: [
                    each._asdict()
                    for each in differences(live, rebuilt, table, DIFFERENCES_MAX, only)
                ]
                for table in differing
            },
        }
    finally:
        live.close()
        rebuilt.close()


def _close(view: AnalyticsView) -> None:
    view.close()
    view.datastore.close()


def _discard(file: Path) -> None:
    for each in (file, Path(f"{file}.wal")):
        each.unlink(missing_ok=True)
