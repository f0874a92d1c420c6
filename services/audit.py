"""The audit service: `convo.audit.<tenant>.<conversation>.{replay,verify,diff,export}`.

Every answer is made from the stream alone, read page by page: never from a projection, a snapshot
or the conversations in memory. `replay` and `diff` check the hash chain of what they read, and
refuse behind the first event that does not fit; `verify` and `export` take the record as it is.

A replay that goes on where the last page ended goes on with that page's fold, when it is still
here (`CURSORS` of them are kept); otherwise it is folded anew from the first event.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import AsyncGenerator, Awaitable, Callable
from datetime import datetime
from typing import Annotated, Any

from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import Service
from pydantic import AwareDatetime, Field
from pydantic_core import to_json

from domain.commands import parse_as
from domain.errors import ConversationNotInitialized, InvalidRequest
from domain.events import ConversationEvent
from domain.identity import ConversationId
from infra.jetstream.envelope import GENESIS, Recorded
from infra.jetstream.scan import as_stored, scan
from infra.jetstream.store import Store
from projections.audit.diff import changes
from projections.audit.entries import Replay
from projections.state import ConversationView
from services.endpoint import Answering, Outbox, conversation_of, start_service
from services.paging import oldest_that_fit
from services.queries import PAGE_MAX, Query
from services.record import events_of
from services.verification import ConversationCheck

PREFIX = "convo.audit."
CURSORS = 32
_ROOM_BYTES = 4_096

Number = Annotated[int, Field(ge=1, le=2**53)]
Time = Annotated[AwareDatetime, Field(strict=False)]


class ReplayQuery(Query):
    """Entries `from_version` … `to_version` (inclusive), or up to the time `at` (inclusive)."""

    from_version: Number = 1
    to_version: Number | None = None
    at: Time | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = 100


class VerifyQuery(Query):
    """Nothing to say."""


class DiffQuery(Query):
    """From one version or time to another; version 0 is before the first event."""

    from_version: Annotated[int, Field(ge=0, le=2**53)] | None = None
    to_version: Number | None = None
    from_at: Time | None = None
    to_at: Time | None = None


class ExportQuery(Query):
    """Messages behind stream sequence `after_seq`, oldest first."""

    after_seq: Annotated[int, Field(ge=0, le=2**53)] = 0
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_MAX


class Cursor:
    """A replay between two pages: the fold, its place on the stream, and the last event's hash.

    `ready` is the entry of the event taken in last, when no page had room for it.
    """

    __slots__ = ("digest", "ready", "replay")

    def __init__(self, window_size: int) -> None:
        self.replay = Replay(window_size)
        self.digest = GENESIS
        self.ready: dict[str, Any] | None = None

    @property
    def next_version(self) -> int:
        """The version of the entry that comes next."""
        return self.replay.view.version + (0 if self.ready else 1)


class AuditService(Answering):
    """Answers audit requests out of a store's streams, read over `nc`."""

    def __init__(self, store: Store, nc: Client, outbox: Outbox, *, window_size: int) -> None:
        self._store = store
        self._nc = nc
        super().__init__(outbox, self._answer)
        self._window_size = window_size
        self._cursors: OrderedDict[tuple[str, int], Cursor] = OrderedDict()
        self._answers: dict[
            str,
            tuple[type[Query], Callable[[ConversationId, Any], Awaitable[dict[str, Any]]]],
        ] = {
            "replay": (ReplayQuery, self._replay),
            "verify": (VerifyQuery, self._verify),
            "diff": (DiffQuery, self._diff),
            "export": (ExportQuery, self._export),
        }

    async def start(self, nc: Client) -> Service:
        """Listens on `nc`, in the queue group that all audit services share."""
        return await start_service(
            nc,
            name="convo-audit",
            description="Goes through the record again: replay, verify, diff, export",
            endpoints={"audit": (f"{PREFIX}>", self.handle)},
        )

    async def _answer(self, request: Request) -> dict[str, Any]:
        id, what = conversation_of(request.subject, PREFIX)
        if what not in self._answers:
            raise InvalidRequest(
                f"there is no audit {what[:40]!r}: ask for one of {', '.join(self._answers)}"
            )
        model, answer = self._answers[what]
        return await answer(id, parse_as(model, what, request.data))

    # -- what is answered ----------------------------------------------------------------------

    async def _replay(self, id: ConversationId, query: ReplayQuery) -> dict[str, Any]:
        if query.to_version is not None and query.at is not None:
            raise InvalidRequest("give to_version or at, not both")
        last = await self._last(id)
        if query.from_version > last.version + 1:
            raise _no_such_version("from_version", query.from_version, last.version)
        if query.to_version is not None and query.to_version > last.version:
            raise _no_such_version("to_version", query.to_version, last.version)
        cursor = self._cursors.pop((id.key, query.from_version), None) or Cursor(self._window_size)
        entries, more = await self._entries(id, cursor, query)
        body: dict[str, Any] = {
            "ok": True,
            "version": last.version,
            "seq": last.seq,
            "entries": entries,
        }
        if more and cursor.next_version <= last.version:
            body["next"] = cursor.next_version
            self._keep(id, cursor)
        return body

    async def _entries(
        self, id: ConversationId, cursor: Cursor, query: ReplayQuery
    ) -> tuple[list[dict[str, Any]], bool]:
        """One page of entries, and whether there is room for more of them behind it."""
        entries: list[dict[str, Any]] = []
        room = self._outbox.reply_bytes_max - _ROOM_BYTES
        if cursor.ready is not None:
            entries.append(cursor.ready)
            room -= len(to_json(cursor.ready))
            cursor.ready = None
            if len(entries) >= query.limit:
                return entries, query.to_version is None or cursor.next_version <= query.to_version
        async with contextlib.aclosing(self._events(id, cursor)) as events:
            async for recorded, event in events:
                if _is_behind(event, query.to_version, query.at):
                    return entries, False
                cursor.replay.apply(event, recorded.seq)
                cursor.digest = bytes.fromhex(recorded.digest)
                if event.originator_version < query.from_version:
                    continue
                entry = cursor.replay.entry(recorded.body, recorded.digest)
                room -= len(to_json(entry)) + 1
                if room < 0 and entries:
                    cursor.ready = entry
                    return entries, True
                entries.append(entry)
                if len(entries) >= query.limit:
                    done = query.to_version == event.originator_version
                    return entries, not done
        return entries, False

    async def _verify(self, id: ConversationId, query: VerifyQuery) -> dict[str, Any]:
        del query
        check = ConversationCheck()
        async for block in scan(
            self._nc,
            self._store.stream_of(id.key),
            subject=self._store.topology.subject(id.key),
        ):
            for stored in block:
                check.take(stored)
        if not check.events:
            raise ConversationNotInitialized.named(id.tenant_id, id.conversation_id)
        return {"ok": True, **check.report()}

    async def _diff(self, id: ConversationId, query: DiffQuery) -> dict[str, Any]:
        _require_one("from", query.from_version, query.from_at)
        _require_one("to", query.to_version, query.to_at)
        last = await self._last(id)
        for name, version in (
            ("from_version", query.from_version),
            ("to_version", query.to_version),
        ):
            if version is not None and version > last.version:
                raise _no_such_version(name, version, last.version)
        before = await self._view_at(id, query.from_version, query.from_at)
        after = await self._view_at(id, query.to_version, query.to_at)
        found = list(changes(before, after))
        kept = oldest_that_fit(found, self._outbox.reply_bytes_max)
        body: dict[str, Any] = {
            "ok": True,
            "version": last.version,
            "seq": last.seq,
            "from_version": before.version,
            "to_version": after.version,
            "events": abs(after.version - before.version),
            "changes": kept,
        }
        if len(kept) < len(found):
            body["truncated"] = True
        return body

    async def _export(self, id: ConversationId, query: ExportQuery) -> dict[str, Any]:
        last = await self._last(id)
        subject = self._store.topology.subject(id.key)
        stream = self._store.stream_of(id.key)
        messages: list[dict[str, Any]] = []
        blocks = scan(self._nc, stream, subject=subject, from_seq=query.after_seq + 1)
        async with contextlib.aclosing(blocks):
            async for block in blocks:
                messages += map(as_stored, block)
                if len(messages) >= query.limit or _size(messages) > self._outbox.reply_bytes_max:
                    break
        kept = oldest_that_fit(messages[: query.limit], self._outbox.reply_bytes_max)
        body: dict[str, Any] = {
            "ok": True,
            "version": last.version,
            "seq": last.seq,
            "tenant_id": id.tenant_id,
            "conversation_id": id.conversation_id,
            "stream": stream,
            "subject": subject,
            "partition": self._store.topology.partition(id.key),
            "events": kept,
        }
        if kept and kept[-1]["seq"] < last.seq:
            body["next"] = kept[-1]["seq"]
        return body

    # -- reading -------------------------------------------------------------------------------

    async def _last(self, id: ConversationId) -> Recorded:
        last = await self._store.last(id.key, leader=True)
        if last is None:
            raise ConversationNotInitialized.named(id.tenant_id, id.conversation_id)
        return last

    def _events(
        self, id: ConversationId, cursor: Cursor
    ) -> AsyncGenerator[tuple[Recorded, ConversationEvent], None]:
        """The conversation's events behind the cursor, checked, oldest first."""
        view = cursor.replay.view
        return events_of(
            self._store, id.key, seq=view.seq, version=view.version, digest=cursor.digest
        )

    async def _view_at(
        self, id: ConversationId, version: int | None, at: datetime | None
    ) -> ConversationView:
        """The conversation after that version, or at that time; `version` 0 when before it all."""
        cursor = Cursor(self._window_size)
        if version == 0:
            return cursor.replay.view
        async with contextlib.aclosing(self._events(id, cursor)) as events:
            async for recorded, event in events:
                if _is_behind(event, version, at):
                    break
                cursor.replay.apply(event, recorded.seq)
        return cursor.replay.view

    def _keep(self, id: ConversationId, cursor: Cursor) -> None:
        self._cursors[id.key, cursor.next_version] = cursor
        while len(self._cursors) > CURSORS:
            self._cursors.popitem(last=False)


def _size(messages: list[dict[str, Any]]) -> int:
    return sum(len(each.get("body", "")) for each in messages)


def _is_behind(event: ConversationEvent, version: int | None, at: datetime | None) -> bool:
    if version is not None:
        return event.originator_version > version
    return at is not None and event.timestamp > at


def _require_one(end: str, version: int | None, at: datetime | None) -> None:
    if (version is None) == (at is None):
        raise InvalidRequest(
            f"give {end}_version or {end}_at, one of them",
            [{"field": f"{end}_version", "problem": f"exactly one of it and {end}_at"}],
        )


def _no_such_version(field: str, version: int, current: int) -> InvalidRequest:
    return InvalidRequest(
        f"the conversation is at version {current}, it has no version {version} yet",
        [{"field": field, "problem": f"at most {current}"}],
    )
