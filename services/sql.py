"""`convo.sql`: questions in SQL, each in a thread, watched over from the event loop.

A question that takes longer than its time is interrupted. One that does not obey (DuckDB looks for
an interruption between vectors of rows, not inside a function), and one that takes more memory of
the process than it may, is ended together with the process: every question under way is answered
with a retryable error, the process ends, and its supervisor starts it again. The tables lose
nothing by that, and the projector goes on where it was.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from nats.micro.request import Request
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import to_json

from domain.commands import parse_as
from domain.errors import InvalidRequest
from domain.identity import ConversationId
from projections.analytics.query import (
    Answer,
    DatabaseBroken,
    Query,
    QueryInterrupted,
    Question,
)
from projections.analytics.sandbox import SQL_CHARS_MAX, SQLRefused
from projections.analytics.view import DuckDBDatastore
from services.endpoint import MIN_SEQ, Outbox, header_number
from services.errors import Refusal, Refused
from services.tasks import Tasks, ended

log = logging.getLogger(__name__)

SUBJECT: Final = "convo.sql"
ROW_COUNT: Final = "Convo-Row-Count"
TRUNCATED: Final = "Convo-Truncated"
POSITION: Final = "Convo-Position"

THREADS: Final = 4
WAITING_MAX: Final = 64
GRACE_S: Final = 3.0
"""How long a question may go on after it was interrupted."""

ROOM_BYTES: Final = 2 << 30
"""What the process may take in memory beside what DuckDB keeps to its own limit."""

WATCH_S: Final = 0.1
RESTART_STATUS: Final = 75
"""EX_TEMPFAIL: the supervisor starts the process again."""


class SqlQuery(BaseModel):
    """The body of a request: exactly these fields, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    sql: Annotated[str, Field(min_length=1, max_length=SQL_CHARS_MAX)]
    params: list[Any] | dict[str, Any] | None = None
    format: Literal["json", "arrow", "csv"] = "json"
    max_rows: Annotated[int, Field(ge=1, le=10_000_000)] = 10_000
    timeout_ms: Annotated[int, Field(ge=1, le=3_600_000)] = 30_000
    tenant_id: Annotated[str, Field(min_length=1)] | None = None


class SqlService:
    """Answers questions about one datastore, which may be exchanged (`datastore`).

    `partition_of` gives the partition of an application name; `include` waits until the tables
    have the event of a sequence, and raises NotTakenInYet.
    """

    def __init__(
        self,
        outbox: Outbox,
        *,
        partition_of: Callable[[str], int],
        include: Callable[[int], Awaitable[None]],
        memory_bytes: int,
    ) -> None:
        self.datastore: DuckDBDatastore | None = None
        self._outbox = outbox
        self._partition_of = partition_of
        self._include = include
        self._rss_bytes_max = memory_bytes + ROOM_BYTES
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="sql")
        self._running: dict[Request, Query] = {}
        self._tasks = Tasks()
        self._ending = False
        self._told: set[Request] = set()  # that they are not answered any more
        self._watching = asyncio.get_running_loop().create_task(self._watch())

    async def handle(self, request: Request) -> None:
        """Takes one request; it is answered by a task of its own."""
        self._tasks.start(self._respond(request))

    async def idle(self) -> None:
        """Returns once everything that was taken is answered."""
        await self._tasks.idle()

    async def ended(self, within_s: float) -> None:
        """Returns once no question runs; those that take longer are interrupted."""
        await self._tasks.settle(within_s)
        for query in list(self._running.values()):
            query.interrupt()
        await self.idle()

    async def close(self) -> None:
        """Ends what still runs."""
        await ended(self._watching)
        for query in list(self._running.values()):
            query.interrupt()
        await self.idle()
        self._threads.shutdown(wait=False)

    # -- one question --------------------------------------------------------------------------

    async def _respond(self, request: Request) -> None:
        try:
            query = parse_as(SqlQuery, SUBJECT, request.data)
            min_seq = header_number(request.headers or {}, MIN_SEQ)
            if query.tenant_id is not None:
                ConversationId.parse(query.tenant_id, "any")
            if min_seq is not None:
                await self._include(min_seq)
            answer = await self._answered(request, query)
        except Refused as refused:
            if request not in self._told:
                self._outbox.refuse(request, refused.refusal)
        except Exception as error:  # noqa: BLE001 (no request stays unanswered)
            self._outbox.refuse(request, error)
        else:
            self._send(request, query, answer)

    async def _answered(self, request: Request, query: SqlQuery) -> Answer:
        if self._ending or self.datastore is None:
            raise Refused(RESTARTING)
        if len(self._tasks) > WAITING_MAX:
            raise Refused(
                Refusal(
                    "storage_unavailable",
                    503,
                    "too many questions at once: ask again in a moment",
                    retryable=True,
                )
            )
        question = Question(
            query.sql,
            query.params,
            query.tenant_id,
            query.format,
            query.max_rows,
            self._outbox.reply_bytes_max,
        )
        running = Query(self.datastore, question)
        self._running[request] = running
        work = asyncio.get_running_loop().run_in_executor(self._threads, running.run)
        try:
            return await self._watched(work, running, query.timeout_ms)
        except SQLRefused as error:
            raise InvalidRequest(str(error)) from error
        except QueryInterrupted:
            raise InvalidRequest(
                f"the query took longer than timeout_ms ({query.timeout_ms}) and was interrupted: "
                "ask for less at once, or allow it more time"
            ) from None
        except DatabaseBroken as error:
            log.error("DuckDB has given up: %s", error)
            self._restart("DuckDB has given up")
            raise Refused(RESTARTING) from error
        finally:
            self._running.pop(request, None)

    async def _watched(
        self, work: asyncio.Future[Answer], running: Query, timeout_ms: int
    ) -> Answer:
        """The work's outcome; interrupts it in time, and ends the process when it goes on."""
        done, _ = await asyncio.wait({work}, timeout=timeout_ms / 1000)
        if not done:
            running.interrupt()
            done, _ = await asyncio.wait({work}, timeout=GRACE_S)
        if not done:
            self._restart("a query did not obey its interruption")
            raise Refused(RESTARTING)
        return work.result()

    def _send(self, request: Request, query: SqlQuery, answer: Answer) -> None:
        position = {
            str(self._partition_of(name)): seq for name, seq in sorted(answer.tracking.items())
        }
        if query.format == "json":
            facts = {
                "row_count": answer.row_count,
                "truncated": answer.truncated,
                "elapsed_ms": answer.elapsed_ms,
                "position": position,
            }
            self._outbox.send(
                request,
                b'{"ok":true,"columns":%b,"rows":%b,%b'
                % (to_json(answer.columns), answer.body, to_json(facts)[1:]),
            )
            return
        headers = {
            ROW_COUNT: str(answer.row_count),
            TRUNCATED: "true" if answer.truncated else "false",
            POSITION: to_json(position).decode(),
        }
        self._outbox.send(request, answer.body, headers)

    # -- the process ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Ends the process when its memory has outgrown what DuckDB's limit should keep it to."""
        over = 0
        while True:
            await asyncio.sleep(WATCH_S)
            if not self._running or _rss_bytes() <= self._rss_bytes_max:
                over = 0
                continue
            over += 1
            for query in list(self._running.values()):
                query.interrupt()
            if over >= 3:
                self._restart("queries took too much memory")
                return

    def _restart(self, reason: str) -> None:
        """Answers every question under way, then ends the process."""
        if self._ending:
            return
        self._ending = True
        log.error("the analytics process starts again: %s", reason)
        self._told.update(self._running)
        for request in self._told:
            self._outbox.refuse(request, RESTARTING)
        self._tasks.start(self._end())

    async def _end(self) -> None:
        await asyncio.wait({asyncio.ensure_future(self._outbox.close())}, timeout=1.0)
        _end_process()


RESTARTING: Final = Refusal(
    "storage_unavailable",
    503,
    "the analytics process starts again, after a query that could not be ended otherwise: "
    "ask again in a few seconds",
    retryable=True,
)


def _end_process() -> None:
    """Ends this process without waiting for its threads, one of which does not end."""
    sys.stderr.flush()
    os._exit(RESTART_STATUS)


def _rss_bytes() -> int:
    """What the process takes in memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
