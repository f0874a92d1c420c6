"""One stream's events by originator and version: what the library's recorders need of a store.

The store appends behind sequences; the library counts versions. A `Journal` knows where subjects
end, so that a busy originator costs one round trip, and finds versions without reading all of them.

Guarantees: versions of one subject are stored in ascending order, each once; what was recorded is
read by every later call, of this process or another one, also where followers answer (on several
replicas the leader is asked for the end first, and a follower that lags is asked again). What is
read in order is checked against its hash chain.

Not guaranteed: that versions are contiguous. The library's own recorders do not ask for it either.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from itertools import pairwise
from sys import maxsize
from typing import NamedTuple, TypeVar

from infra.jetstream.appender import Addition, Appender
from infra.jetstream.bridge import Reply
from infra.jetstream.ends import End, Ends, Mark
from infra.jetstream.envelope import (
    GENESIS,
    Recorded,
    verify_chain,
)
from infra.jetstream.errors import (
    LedgerDamaged,
    StoreUnavailable,
)
from infra.jetstream.reader import PAGE_EVENTS
from infra.jetstream.store import Store

DISCARD_MAX = 64
"""Events rather read and thrown away than searched on for."""

_T = TypeVar("_T")


class Span(NamedTuple):
    """Versions with gt < version <= lte; None has no bound."""

    gt: int | None = None
    lte: int | None = None

    def holds(self, version: int) -> bool:
        """Whether the version is one of them."""
        return (self.gt is None or version > self.gt) and (self.lte is None or version <= self.lte)

    def size_max(self) -> int:
        """How many there can be."""
        return maxsize if self.lte is None else self.lte - (-1 if self.gt is None else self.gt)


class Journal:
    """Appends to and reads from one events stream. Lives on one event loop."""

    def __init__(
        self,
        store: Store,
        *,
        timeout: float,
        expect_new: bool = False,
    ) -> None:
        """`timeout` (s): how long a read is tried again while the store does not answer.

        `expect_new`: subjects are taken to be empty until the store says otherwise.
        """
        self.store = store
        self.stream = store.topology.stream_name(0)
        self.any_event = store.topology.subject("*")
        self.replicated = store.streams[0]["config"].get("num_replicas", 1) > 1
        self._reader = store.reader
        self._timeout = timeout
        self.ends = Ends()
        self._appender = Appender(
            store, self.ends, lambda subject: self.last(subject, leader=True), expect_new=expect_new
        )

    async def close(self) -> None:
        """Returns when every append handed over is done."""
        await self.store.close()

    # -- appending -----------------------------------------------------------------------------

    async def append(self, additions: Sequence[Addition]) -> range:
        """Records events, all or none, each subject's in ascending order; their sequences.

        Raises VersionTaken when a subject is at one of these versions or behind it already (the
        first subject given comes first), DataError, StoreUnavailable, OutcomeUnknown.
        """
        return await self._appender.append(additions)

    def record(self, additions: Sequence[Addition], reply: Reply[range]) -> None:
        """The same for a thread that waits for `reply`; to be called on the loop."""
        self._appender.record(additions, reply)

    # -- reading one subject -------------------------------------------------------------------

    async def last(self, subject: str, *, leader: bool | None = None) -> Recorded | None:
        """The last event on a subject (wildcards allowed, of the leader only), None without one."""
        if leader is None:
            leader = self.replicated
        return await self.patiently(lambda: self._reader.last(self.stream, subject, leader=leader))

    async def select(
        self, subject: str, span: Span, *, desc: bool = False, limit: int | None = None
    ) -> list[Recorded]:
        """A subject's events with versions in the span, in the order asked for, at most `limit`."""
        if limit is not None and limit <= 0:
            return []
        if desc and limit is not None:
            return await self._newest(subject, span, limit)
        events = await self._oldest(subject, span, limit)
        return events[::-1] if desc else events

    async def _newest(self, subject: str, span: Span, limit: int) -> list[Recorded]:
        last = await self.last(subject)
        if last is None or (span.gt is not None and last.version <= span.gt):
            return []
        if span.lte is None or span.lte >= last.version:
            if limit == 1:
                return [last]
            span = Span(span.gt, last.version)
        assert span.lte is not None
        width = limit
        while True:  # versions may jump: fewer than `limit` may be within `limit` versions
            near = Span(span.lte - width, span.lte)
            enough = near.size_max() >= span.size_max()
            events = await self._oldest(subject, span if enough else near, None)
            if len(events) >= limit or enough:
                return events[: -limit - 1 : -1]
            width *= 4

    async def _oldest(self, subject: str, span: Span, limit: int | None) -> list[Recorded]:
        end = self.ends.hold(subject)
        try:
            up_to = 0
            if self.replicated:
                last = await self.last(subject)
                if last is None or (span.gt is not None and last.version <= span.gt):
                    return []
                end.saw(last.version, last.seq)
                up_to = last.seq
            seq = 1 if span.gt is None else await self._behind(subject, span.gt, end)
            if seq is None:
                return []
            found: list[Recorded] = []
            room = min(maxsize if limit is None else limit, span.size_max()) + DISCARD_MAX
            page_max = max(1, min(PAGE_EVENTS, room))
            async with aclosing(self._walk(subject, seq, up_to, page_max)) as pages:
                async for page in pages:
                    found += [event for event in page if span.holds(event.version)]
                    end.saw(page[-1].version, page[-1].seq)
                    _mark_last_skipped(end, page, span)
                    if len(found) >= (maxsize if limit is None else limit):
                        return found[:limit]
                    if span.lte is not None and page[-1].version >= span.lte:
                        break
            return found
        finally:
            self.ends.let_go([end])

    async def _walk(
        self, subject: str, seq: int, up_to: int, page_max: int
    ) -> AsyncGenerator[list[Recorded], None]:
        """Pages of a subject from `seq` on to its end, which is at least at `up_to`; none empty."""
        previous: Recorded | None = None
        first = seq == 1
        give_up_at = time.monotonic() + self._timeout
        while True:
            page, pending = await self._page(subject, seq, page_max)
            if page:
                _check_order(previous, page, from_first=first)
                first = False
                previous = page[-1]
                seq = previous.seq + 1
                yield page
            if not pending:
                if seq > up_to:
                    return
                await self._not_there_yet(give_up_at)

    async def _behind(self, subject: str, version: int, end: End) -> int | None:
        """A stream sequence with every later version at or behind it, and few earlier ones.

        None when the subject has no later version. By interpolation between places already known,
        every other time by halving: O(log) round trips at worst, none for the last place asked for.
        """
        low, high = end.around(version)
        if version - low.version <= DISCARD_MAX:
            return low.seq + 1
        if high is None:
            last = await self.last(subject)
            if last is None or last.version <= version:
                return None
            high = Mark(last.version, last.seq)
        low = await self._search(subject, version, low, high)
        end.mark(low.version, low.seq)
        return low.seq + 1

    async def _search(self, subject: str, version: int, low: Mark, high: Mark) -> Mark:
        """The event at or before `version` that is behind `low` and nearest to it, or almost."""
        top = high.seq  # nothing of the subject is between here and `high`
        halve = False
        while version - low.version > DISCARD_MAX and top - low.seq > 1:
            share = 0.5 if halve else (version - low.version) / (high.version - low.version)
            halve = not halve
            probe = min(top - 1, max(low.seq + 1, low.seq + int((top - low.seq) * share)))
            event = await self._first_from(subject, probe)
            if event is None or event.seq >= high.seq:
                top = probe
            elif event.version > version:
                high, top = Mark(event.version, event.seq), probe
            else:
                low = Mark(event.version, event.seq)
        return low

    # -- reading the stream --------------------------------------------------------------------

    async def notifications(
        self, start: int, limit: int, stop: int | None, topics: Sequence[str]
    ) -> list[Recorded]:
        """Events of the whole stream from sequence `start` to `stop`, at most `limit`, in order.

        Of a batch, only once all of it is there.
        """
        self._reader.heard_stored(self.stream, self._appender.acknowledged)
        up_to = 0
        if self.replicated:
            last = await self.last(self.any_event)
            if last is None:
                return []
            up_to = last.seq
        if stop is not None:
            up_to = min(up_to, stop)
        seq = max(1, start)
        found: list[Recorded] = []
        give_up_at = time.monotonic() + self._timeout
        while len(found) < limit and (stop is None or seq <= stop):
            wanted = PAGE_EVENTS if topics else min(PAGE_EVENTS, limit - len(found))
            if stop is not None:
                wanted = min(wanted, stop - seq + 1)
            page, pending = await self._page(self.any_event, seq, wanted)
            found += [
                event
                for event in page
                if (not topics or event.topic in topics) and (stop is None or event.seq <= stop)
            ]
            if page:
                seq = page[-1].seq + 1
            if not pending:
                if seq > up_to:
                    break
                await self._not_there_yet(give_up_at)
        return found[:limit]

    # -- asking --------------------------------------------------------------------------------

    async def _page(self, subject: str, seq: int, limit: int) -> tuple[list[Recorded], int]:
        return await self.patiently(
            lambda: self._reader.page(self.stream, subject, seq, limit=limit)
        )

    async def _first_from(self, subject: str, seq: int) -> Recorded | None:
        return await self.patiently(lambda: self._reader.first_from(self.stream, subject, seq))

    async def patiently(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Asks again while the store does not answer, as long as the timeout lets us."""
        give_up_at = time.monotonic() + self._timeout
        while True:
            try:
                return await ask()
            except StoreUnavailable:
                if time.monotonic() + _PAUSE_S > give_up_at:
                    raise
                await asyncio.sleep(_PAUSE_S)

    async def _not_there_yet(self, give_up_at: float) -> None:
        """Waits for a replica that lags behind what the leader has acknowledged."""
        if time.monotonic() > give_up_at:
            raise StoreUnavailable("a replica lags too far behind its leader; try again")
        await asyncio.sleep(_LAG_PAUSE_S)


_PAUSE_S = 0.1
_LAG_PAUSE_S = 0.005


def _check_order(previous: Recorded | None, page: list[Recorded], *, from_first: bool) -> None:
    """Raises LedgerDamaged unless each event fits the hash, and the version, of the one before."""
    if not page:
        return
    if previous is not None:
        page = [previous, *page]
    verify_chain(GENESIS, page[:1] if from_first and previous is None else ())
    verify_chain(bytes.fromhex(page[0].digest), page[1:])
    for before, event in pairwise(page):
        if event.version <= before.version:
            raise LedgerDamaged(
                f"{event.subject}: version {event.version} (stream sequence {event.seq}) follows "
                f"version {before.version} (sequence {before.seq})"
            )


def _mark_last_skipped(end: End, page: list[Recorded], span: Span) -> None:
    """Remembers the last event read in vain, if any: reading starts behind it the next time."""
    if span.gt is not None and page[0].version <= span.gt:
        skipped = next(event for event in reversed(page) if event.version <= span.gt)
        end.mark(skipped.version, skipped.seq)
