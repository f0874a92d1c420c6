"""The analytics service: one process that writes the DuckDB tables and answers questions in SQL.

DuckDB lets one process have a file, so that the projector and `convo.sql` live together. The file
is `analytics/ledger.duckdb` in the data directory; it is a fold of the ledger, and can be thrown
away at any time.
"""

from __future__ import annotations

import asyncio
import importlib.resources
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

from eventsourcing.persistence import OperationalError, PersistenceError, Tracking
from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import Service

from domain.commands import parse_as
from domain.identity import ConversationId
from infra.jetstream.envelope import Recorded
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.topology import Topology
from infra.settings import Settings
from projections.analytics.columns import PACKED_AT_ONCE, Packed
from projections.analytics.reading import received
from projections.analytics.rows import ConversationRow, Rows, new_conversation
from projections.analytics.view import AnalyticsView, DuckDBDatastore, Quack, RebuildNeeded
from services import sql
from services.endpoint import Outbox, start_service
from services.errors import Refusal
from services.freshness import Freshness, NotTakenInYet
from services.projector import Following, Projector, heads
from services.tasks import ended

log = logging.getLogger(__name__)

FILE: Final = Path("analytics/ledger.duckdb")
"""Within the data directory."""

REBUILD: Final = "convo.analytics.rebuild"
EXCHANGE_WITHIN_S: Final = 5.0

OPEN_WITHIN_S: Final = 20.0
"""How long a predecessor may take to let go of the file."""

CONVERSATIONS_CACHED: Final = 30_000
"""In each of two generations."""


class AnalyticsUnavailable(StoreUnavailable):
    """The tables cannot be opened; the message says what to do."""


def _extension(name: str) -> Path:
    """The file of a DuckDB extension, out of the wheel that brings it."""
    package = importlib.resources.files(f"duckdb_extension_{name}")
    return next(Path(str(package)).rglob(f"{name}.duckdb_extension"))


class AnalyticsTarget:
    """The analytics tables as a projector fills them; keeps the rows of conversations in use."""

    name = "analytics"
    remedy = "run `convo rebuild analytics`"

    def __init__(self, view: AnalyticsView, originator: Callable[[str], str]) -> None:
        self._view = view
        self._originator = originator
        self._recent: dict[str, ConversationRow] = {}
        self._before: dict[str, ConversationRow] = {}

    def positions(self) -> dict[str, int]:
        """The sequence of the last event in the tables, by stream."""
        return self._view.positions()

    def hash_at(self, partition: int, seq: int) -> str | None:
        """The chain hash of the event at that place, as the tables have it."""
        return self._view.hash_at(partition, seq)

    def fold(self, partition: int, events: Sequence[Recorded]) -> Callable[[Tracking], None]:
        """Makes rows of the events; returns what writes them."""
        keys = [self._originator(each.subject) for each in events]
        conversations = self._known(set(keys))
        rows = Rows()
        packed = Packed()
        for key, each in zip(keys, events, strict=True):
            event = received(
                key,
                each.version,
                each.topic,
                each.body,
                partition=partition,
                seq=each.seq,
                digest=each.digest,
            )
            rows.fold(event, conversations[key])
            if len(rows.events) == PACKED_AT_ONCE:
                packed.take(rows)
        return lambda tracking: self._view.write(rows, tracking, packed)

    def forget(self) -> None:
        """Drops the rows in memory."""
        self._recent, self._before = {}, {}

    def rest(self) -> None:
        """Puts the log into the file before that takes long."""
        self._view.datastore.shorten_log()

    def _known(self, keys: set[str]) -> dict[str, ConversationRow]:
        """The rows of these conversations: from memory, else from the tables, else new ones.

        What was not asked for lately goes: rows are kept in two generations, and the older one is
        dropped when the younger is full.
        """
        if len(self._recent) > CONVERSATIONS_CACHED:
            self._recent, self._before = {}, self._recent
        recent, before = self._recent, self._before
        missing = keys - recent.keys()
        for key in missing & before.keys():
            recent[key] = before.pop(key)
        unknown = missing - recent.keys()
        found = self._view.conversations(map(ConversationId.from_key, unknown))
        for key in unknown:
            recent[key] = found.get(key) or new_conversation(key)
        return recent


class Tables:
    """The open file with its projector, following the ledger."""

    def __init__(self, view: AnalyticsView, projector: Projector, following: Following) -> None:
        self.view = view
        self.projector = projector
        self.following = following

    async def pause(self) -> None:
        """Stops following and finishes the batch at hand; the file stays open."""
        await self.following.close()
        await asyncio.to_thread(self.projector.close)

    async def close(self) -> None:
        """Stops following, finishes the batch at hand, and lets go of the file."""
        await self.pause()
        self.view.close()
        await asyncio.to_thread(self.view.datastore.close)


class AnalyticsService:
    """Follows the ledger into the tables, and answers `convo.sql` from them."""

    def __init__(self, settings: Settings, topology: Topology, outbox: Outbox) -> None:
        self.settings = settings
        self.topology = topology
        self.path = settings.data_dir / FILE
        self.tables: Tables | None = None
        self._outbox = outbox
        self._nc: Client | None = None
        self._loop = asyncio.get_running_loop()
        self._freshness: Freshness | None = None
        self._rebuilding: asyncio.Task[None] | None = None
        self._sql = sql.SqlService(
            outbox,
            partition_of=self._partition_of,
            include=self._include,
            memory_bytes=int(settings.analytics_memory),
        )

    async def start(self, serving: Client, following: Client) -> Service:
        """Opens the tables, follows the ledger over `following`, and listens on `serving`.

        Raises AnalyticsUnavailable when another process has the file, or it cannot be used.
        """
        self._nc = following
        self._freshness = Freshness("the tables", following, self.topology, self._positions)
        try:
            self.tables = await self.follow(await self._opened())
        except BaseException:
            await self._sql.close()
            raise
        self._sql.datastore = self.tables.view.datastore
        return await start_service(
            serving,
            name="convo-analytics",
            description="The ledger as SQL tables, and questions about them",
            endpoints={
                "sql": (sql.SUBJECT, self._sql.handle),
                "rebuild": (REBUILD, self._handle_rebuild),
            },
            says=self._says,
        )

    async def close(self) -> None:
        """Answers what was taken, then lets go of the tables."""
        if self._rebuilding is not None:
            await ended(self._rebuilding)
        await self._sql.close()
        if self.tables is not None:
            await self.tables.close()

    async def follow(self, view: AnalyticsView, until: dict[int, int] | None = None) -> Tables:
        """Has a projector of its own follow the ledger into these tables."""
        assert self._nc is not None, "start() comes first"
        woken: list[Following] = []
        projector = Projector(
            AnalyticsTarget(view, self.topology.originator),
            self.topology,
            changed=lambda: self._changed(woken),
            until=until,
        )
        following = Following(self._nc, projector)
        woken.append(following)
        await following.start()
        return Tables(view, projector, following)

    async def reached(self, seq: int, within_s: float) -> bool:
        """Waits until the tables have the event `seq`, whatever its partition; whether they do."""
        try:
            await self._fresh.include(seq, within_s)
        except NotTakenInYet:
            return False
        return True

    async def _include(self, seq: int) -> None:
        await self._fresh.include(seq)

    @property
    def _fresh(self) -> Freshness:
        assert self._freshness is not None, "start() comes first"
        return self._freshness

    def _positions(self) -> dict[int, int]:
        return {} if self.tables is None else self.tables.projector.progress.positions

    # -- building anew -------------------------------------------------------------------------

    async def progressed(self) -> None:
        """Returns at the next progress of any projector here, or after a quarter of a second."""
        await self._fresh.change(0.25)

    async def resume(self) -> None:
        """Follows the ledger again into the tables that were paused."""
        assert self.tables is not None, "start() comes first"
        self.tables = await self.follow(self.tables.view)

    async def exchange(self, file: Path) -> None:
        """Puts a file of tables in the place of the present one, which must be paused.

        Questions meanwhile are told to come again; those under way are waited for a while.
        """
        assert self.tables is not None, "start() comes first"
        self._sql.datastore = None
        await self._sql.ended(EXCHANGE_WITHIN_S)
        self.tables.view.close()
        await asyncio.to_thread(self.tables.view.datastore.close)
        Path(f"{self.path}.wal").unlink(missing_ok=True)  # of the file that goes
        file.replace(self.path)
        self.tables = await self.follow(await self._opened())
        self._sql.datastore = self.tables.view.datastore

    async def _handle_rebuild(self, request: Request) -> None:
        if self._rebuilding is not None and not self._rebuilding.done():
            self._outbox.refuse(
                request,
                Refusal("invalid_state", 409, "a rebuild is under way: wait for it", True),
            )
            return
        self._rebuilding = self._loop.create_task(self._rebuild(request))

    async def _rebuild(self, request: Request) -> None:
        from services.rebuilding import Comparison, Rebuild, RebuildQuery  # noqa: PLC0415 (it needs this)

        try:
            query = parse_as(RebuildQuery, REBUILD, request.data)
            if query.only is not None:
                result = await Comparison(self, query.only).run()
            else:
                rebuild = Rebuild(self, lambda said: self._outbox.reply(request, said))
                result = await rebuild.run(verify=query.verify)
        except Exception as error:  # noqa: BLE001 (no request stays unanswered)
            self._outbox.refuse(request, error)
        else:
            self._outbox.reply(request, result)

    @property
    def reading(self) -> Client:
        """The connection that the ledger is read by."""
        assert self._nc is not None, "start() comes first"
        return self._nc

    async def heads(self) -> dict[int, int]:
        """The last sequence of each partition now. Raises StoreUnavailable."""
        return await heads(self.reading, self.topology)

    # -- the file ------------------------------------------------------------------------------

    async def _opened(self) -> AnalyticsView:
        give_up_at = time.monotonic() + OPEN_WITHIN_S
        while True:
            try:
                return await asyncio.to_thread(self.open, self.path, self._quack())
            except RebuildNeeded as error:
                for older in self.path.parent.glob(f"{self.path.stem}.*.old"):
                    older.unlink()
                aside = self.path.with_suffix(f".{int(time.time())}.old")
                log.warning("%s; the file is kept as %s", error, aside.name)
                self.path.rename(aside)
            except OperationalError as error:
                held = "lock" in str(error).lower()
                if not held or time.monotonic() > give_up_at:
                    raise AnalyticsUnavailable(
                        f"the analytics tables cannot be opened: {error}. "
                        + (
                            "Only one process can have them: stop the other one"
                            if held
                            else f"They are a fold of the ledger: remove {self.path} and they are "
                            "built anew"
                        )
                    ) from error
                await asyncio.sleep(0.2)
            except PersistenceError as error:
                raise AnalyticsUnavailable(
                    f"the analytics tables cannot be opened: {error}. They are a fold of the "
                    f"ledger: remove {self.path} and they are built anew"
                ) from error

    def _quack(self) -> Quack | None:
        settings = self.settings
        if settings.quack_port is None or settings.quack_token is None:
            return None
        token = settings.quack_token.get_secret_value()
        extensions = tuple(_extension(name) for name in ("httpfs", "quack"))
        return Quack(settings.quack_host, settings.quack_port, token, extensions)

    def open(self, path: Path, quack: Quack | None = None) -> AnalyticsView:
        """Opens a file of tables, made when it is missing. Raises the library's errors."""
        path.parent.mkdir(parents=True, exist_ok=True)
        datastore = DuckDBDatastore(
            path, memory_bytes=int(self.settings.analytics_memory), quack=quack
        )
        try:
            return AnalyticsView(datastore)
        except BaseException:
            datastore.close()
            raise

    # -- what others see -----------------------------------------------------------------------

    def _says(self) -> dict[str, Any]:
        if self.tables is None:
            return {"state": "starting"}
        return self.tables.projector.progress.told()

    def _partition_of(self, application_name: str) -> int:
        return int(application_name.rpartition("-")[2])

    def _changed(self, followings: list[Following]) -> None:
        self._loop.call_soon_threadsafe(self._pulse, followings)

    def _pulse(self, followings: list[Following]) -> None:
        for following in followings:
            following.wake()
        self._fresh.changed()
