"""Building the analytics tables anew beside the live ones, comparing them, and exchanging the file.

The live tables go on being followed and asked until the new ones have caught up; then both stop at
the same event, are compared table by table, and the new file takes the place of the live one in
one rename. With `verify` it is thrown away instead, and the live tables go on.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict

from infra.jetstream.errors import StoreUnavailable
from projections.analytics.view import AnalyticsView, differences, digests
from services.analytics import AnalyticsService, Tables
from services.projector import State

log = logging.getLogger(__name__)

TOLD_EVERY_S: Final = 0.5
DIFFERENCES_MAX: Final = 20


class RebuildQuery(BaseModel):
    """The body of a request. `verify`: compare only, and keep the live tables."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    verify: bool = False


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
        self._discard()
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
            self._discard()
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
            **await asyncio.to_thread(_compare, live.view, view),
        }

    def _discard(self) -> None:
        for file in (self._file, Path(f"{self._file}.wal")):
            file.unlink(missing_ok=True)


class RebuildFailed(StoreUnavailable):
    """The tables could not be built anew; the message says why."""


def _compare(live: AnalyticsView, rebuilt: AnalyticsView) -> dict[str, Any]:
    one, other = live.datastore.cursor(), rebuilt.datastore.cursor()
    try:
        of_live, of_rebuilt = digests(one), digests(other)
        differing = [table for table in of_live if of_live[table] != of_rebuilt[table]]
        return {
            "same": not differing,
            "tables": {
                table: {"live": of_live[table], "rebuilt": of_rebuilt[table]} for table in of_live
            },
            "differences": {
                table: differences(one, other, table, DIFFERENCES_MAX) for table in differing
            },
        }
    finally:
        one.close()
        other.close()


def _close(view: AnalyticsView) -> None:
    view.close()
    view.datastore.close()
