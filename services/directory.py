"""The directory service: `convo.list.<tenant>` and `convo.search.<tenant>`, from tables of its own.

One process follows the ledger into `directory/directory.sqlite` in the data directory and answers
from it, each answer in a thread and on a consistent snapshot beside the writer. The file is a fold
of the ledger: it can be thrown away at any time. Several such processes may run on several
machines, each with a file of its own.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

from eventsourcing.persistence import PersistenceError, Tracking
from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import Service
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from domain.commands import parse_as
from domain.errors import InvalidRequest
from domain.identity import ConversationId, decode_token
from domain.mapper import ConversationMapper
from domain.messages import Role
from infra.jetstream.envelope import Recorded
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.topology import Topology
from infra.lock import FileLock
from infra.settings import Settings
from projections.directory import listing, search
from projections.directory.entry import microseconds
from projections.directory.listing import BadCursor, Cursor
from projections.directory.view import Arrived, DirectoryDatastore, DirectoryView, OtherFormat
from services.endpoint import MIN_SEQ, Answering, Outbox, header_number, start_service
from services.freshness import Freshness
from services.paging import oldest_that_fit
from services.projector import Following, Projector

log = logging.getLogger(__name__)

FOLDER: Final = Path("directory")
FILE: Final = "directory.sqlite"
"""Within the data directory."""

LIST: Final = "convo.list."
SEARCH: Final = "convo.search."

OPEN_WITHIN_S: Final = 20.0
"""How long a predecessor may take to let go of the file."""

THREADS: Final = 4

T = TypeVar("T")


class DirectoryUnavailable(StoreUnavailable):
    """The tables cannot be opened; the message says what to do."""


class Query(BaseModel):
    """A request body: exactly the fields below, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


Name = Annotated[str, Field(min_length=1, max_length=1_000)]
Time = Annotated[AwareDatetime, Field(strict=False)]


class ListQuery(Query):
    """Which conversations, how many at once, and where to go on (`next` of the page before)."""

    user_id: Name | None = None
    status: Literal["active", "closed", "inactive", "deleted", "erased"] | None = None
    limit: Annotated[int, Field(ge=1, le=1_000)] = 50
    cursor: Annotated[str, Field(min_length=1, max_length=20_000)] | None = None


class SearchQuery(Query):
    """What to look for, and where; `from` and `to` (RFC 3339) are of the message's timestamp."""

    query: Annotated[str, Field(min_length=1, max_length=1_000)]
    user_id: Name | None = None
    role: Role | None = None
    conversation_id: Name | None = None
    limit: Annotated[int, Field(ge=1, le=100)] = 20
    from_: Annotated[Time | None, Field(alias="from")] = None
    to: Time | None = None


class DirectoryTarget:
    """The directory's tables as a projector fills them."""

    name = "directory"

    def __init__(
        self,
        view: DirectoryView,
        streams: Mapping[int, str],
        folder: Path,
        originator: Callable[[str], str],
    ) -> None:
        self.remedy = f"stop the directory service, remove {folder}, and start it again"
        self._view = view
        self._streams = streams
        self._originator = originator
        self._mapper = ConversationMapper()

    def positions(self) -> dict[str, int]:
        """The sequence of the last event in the tables, by stream."""
        found = self._view.positions(self._streams)
        return {self._streams[partition]: seq for partition, seq in found.items()}

    def hash_at(self, partition: int, seq: int) -> str | None:
        """The chain hash of the last event that is in the tables."""
        return self._view.hash_at(partition, seq)

    def fold(self, partition: int, events: Sequence[Recorded]) -> Callable[[Tracking], None]:
        """Reads the events; returns what takes them in."""
        arrived = []
        for each in events:
            key = self._originator(each.subject)
            event = self._mapper.event_of(key, each.version, each.topic, each.body)
            arrived.append(Arrived(ConversationId.from_key(key), event, each.seq))
        digest = events[-1].digest
        return lambda tracking: self._view.write(partition, arrived, tracking, digest=digest)

    def forget(self) -> None:
        """Nothing: all of it is in the tables."""

    def rest(self) -> None:
        """Nothing."""


class DirectoryService:
    """Follows the ledger into the directory's tables, and answers from them."""

    def __init__(self, settings: Settings, topology: Topology, outbox: Outbox) -> None:
        self.folder = settings.data_dir / FOLDER
        self._topology = topology
        self._streams = {
            partition: topology.stream_name(partition) for partition in range(topology.partitions)
        }
        self._outbox = outbox
        self._loop = asyncio.get_running_loop()
        self._freshness: Freshness | None = None
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="directory")
        self._answering = [
            ("list", f"{LIST}>", Answering(outbox, self._list)),
            ("search", f"{SEARCH}>", Answering(outbox, self._search)),
        ]
        self._lock: FileLock | None = None
        self._view: DirectoryView | None = None
        self._projector: Projector | None = None
        self._following: Following | None = None

    async def start(self, serving: Client, following: Client) -> Service:
        """Opens the tables, follows the ledger over `following`, and listens on `serving`.

        Raises DirectoryUnavailable when another process has the file, or it cannot be used.
        """
        self._lock = await self._locked()
        self._view = await asyncio.to_thread(self._opened)
        target = DirectoryTarget(self._view, self._streams, self.folder, self._topology.originator)
        self._freshness = Freshness(
            "the directory's tables", following, self._topology, self._positions
        )
        self._projector = Projector(target, self._topology, changed=self._changed)
        self._following = Following(following, self._projector)
        await self._following.start()
        return await start_service(
            serving,
            name="convo-directory",
            description="Lists conversations, and finds what was said in them",
            endpoints={
                name: (subject, answering.handle) for name, subject, answering in self._answering
            },
            says=self._says,
        )

    async def close(self) -> None:
        """Answers what was taken, then lets go of the tables."""
        for _, _, answering in self._answering:
            await answering.idle()
        if self._following is not None:
            await self._following.close()
        if self._projector is not None:
            await asyncio.to_thread(self._projector.close)
        self._threads.shutdown()
        if self._view is not None:
            await asyncio.to_thread(self._view.datastore.close)
        if self._lock is not None:
            self._lock.close()

    # -- the file ------------------------------------------------------------------------------

    async def _locked(self) -> FileLock:
        give_up_at = self._loop.time() + OPEN_WITHIN_S
        while True:
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                return FileLock(self.folder / "lock")
            except BlockingIOError:
                if self._loop.time() > give_up_at:
                    raise DirectoryUnavailable(
                        f"another process has {self.folder}: stop it, or give this one another "
                        "data directory"
                    ) from None
                await asyncio.sleep(0.2)
            except OSError as error:
                raise DirectoryUnavailable(
                    f"{self.folder} cannot be written ({error.strerror or error}): mend that"
                ) from error

    def _opened(self) -> DirectoryView:
        path = self.folder / FILE
        try:
            try:
                return DirectoryView(DirectoryDatastore(path))
            except OtherFormat as error:
                log.warning("%s: it is built anew", error)
                for each in self.folder.glob(f"{FILE}*"):
                    each.unlink()
                return DirectoryView(DirectoryDatastore(path))
        except PersistenceError as error:
            raise DirectoryUnavailable(
                f"the directory's tables cannot be opened: {error}. They are a fold of the "
                f"ledger: remove {self.folder} and they are built anew"
            ) from error

    # -- answering -----------------------------------------------------------------------------

    async def _list(self, request: Request) -> dict[str, Any]:
        tenant = _tenant_of(request.subject, LIST)
        query = parse_as(ListQuery, "list", request.data)
        cursor = _cursor_of(query.cursor)
        await self._fresh(request, cursor.positions if cursor else {})
        wanted = listing.Wanted(query.user_id, query.status)
        page = await self._in_thread(
            partial(
                listing.page,
                self._open_view,
                tenant,
                wanted,
                query.limit,
                streams=self._streams,
                cursor=cursor,
            )
        )
        kept = oldest_that_fit(page.conversations, self._outbox.reply_bytes_max)
        body: dict[str, Any] = {"ok": True, "conversations": kept}
        if kept and (page.more or len(kept) < len(page.conversations)):
            body["next"] = page.cursors[len(kept) - 1].text()
        return body

    async def _search(self, request: Request) -> dict[str, Any]:
        tenant = _tenant_of(request.subject, SEARCH)
        query = parse_as(SearchQuery, "search", request.data)
        await self._fresh(request, {})
        wanted = search.Wanted(
            user_id=query.user_id,
            role=query.role,
            conversation_id=query.conversation_id,
            since=None if query.from_ is None else microseconds(query.from_),
            until=None if query.to is None else microseconds(query.to),
        )
        hits = await self._in_thread(
            partial(search.search, self._open_view, tenant, query.query, wanted, query.limit)
        )
        return {"ok": True, "hits": oldest_that_fit(hits, self._outbox.reply_bytes_max)}

    @property
    def _open_view(self) -> DirectoryView:
        assert self._view is not None, "start() comes first"
        return self._view

    async def _in_thread(self, work: Callable[[], T]) -> T:
        try:
            return await self._loop.run_in_executor(self._threads, work)
        except PersistenceError as error:
            raise StoreUnavailable(
                f"the directory's tables cannot be read ({error}): try again; when it stays so, "
                f"remove {self.folder} and start the service again"
            ) from error

    # -- how fresh -----------------------------------------------------------------------------

    async def _fresh(self, request: Request, positions: Mapping[int, int]) -> None:
        """Waits until the tables have what was asked for. Raises NotTakenInYet."""
        if any(partition not in self._streams for partition in positions):
            raise _bad_cursor("it is of a ledger with other partitions")
        min_seq = header_number(request.headers or {}, MIN_SEQ)
        assert self._freshness is not None, "start() comes first"
        if min_seq:
            await self._freshness.include(min_seq)
        await self._freshness.reach(positions)

    def _positions(self) -> Mapping[int, int]:
        return {} if self._projector is None else self._projector.progress.positions

    def _changed(self) -> None:
        self._loop.call_soon_threadsafe(self._pulse)

    def _pulse(self) -> None:
        if self._following is not None:
            self._following.wake()
        assert self._freshness is not None, "start() comes first"
        self._freshness.changed()

    def _says(self) -> dict[str, Any]:
        assert self._projector is not None, "start() comes first"
        return self._projector.progress.told()


def _tenant_of(subject: str, prefix: str) -> str:
    """The tenant that a subject names. Raises InvalidRequest."""
    token = subject.removeprefix(prefix)
    if "." in token:
        raise InvalidRequest(
            f"the subject has to be {prefix}<tenant>; a dot in a tenant's id is %2E"
        )
    return ConversationId.parse(decode_token(token), "any").tenant_id


def _cursor_of(text: str | None) -> Cursor | None:
    try:
        return None if text is None else Cursor.parse(text)
    except BadCursor as error:
        raise _bad_cursor(str(error)) from None


def _bad_cursor(problem: str) -> InvalidRequest:
    return InvalidRequest(
        f"cursor cannot be used: {problem}. Begin again without one",
        [{"field": "cursor", "problem": problem}],
    )
