"""Reading a JetStream stream by Direct Get (ADR-31): last event, ranges, whole subjects.

A Direct Get may be answered by any replica, and one that lags answers with the past: on three
replicas 22 % of reads right after an acknowledgement did. Pass `leader=True` where that matters;
those go to `$JS.API.STREAM.MSG.GET`, which only the stream's leader answers. With one replica
both are the same.

Everything read is an event that `envelope.unpack` accepts; order is the stream's; there is no
gap within a page (each message names the sequence before it). What belongs to a batch without a
commit is not there yet (`whole`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.nuid import NUID

from infra.jetstream import outcome
from infra.jetstream.envelope import Recorded, stored_headers, unpack, unpack_stored
from infra.jetstream.errors import NATS_FAILURES, LedgerDamaged, StoreUnavailable, reason
from infra.jetstream.topology import call
from infra.jetstream.whole import find_whole, may_be_open

PAGE_EVENTS = 1_000
PAGE_BYTES = 4_000_000

_STATUS_END_OF_BATCH = "204"
_ATTEMPTS = 3


class _Page:
    """Collects the messages that answer one batched Direct Get."""

    __slots__ = ("done", "events", "last_headers", "pending", "previous")

    def __init__(self) -> None:
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.events: list[Recorded] = []
        self.last_headers: Mapping[str, Any] = {}
        self.pending = 0
        self.previous = 0

    def take(self, message: Msg) -> None:
        headers = message.headers or {}
        status = headers.get("Status")
        if status is None:
            if headers.get("Nats-Last-Sequence") != str(self.previous):
                raise StoreUnavailable("a message of a page got lost on the way")
            event = unpack(headers, message.data)
            self.previous = event.seq
            self.events.append(event)
            self.last_headers = headers
        elif status == _STATUS_END_OF_BATCH:
            if headers.get("Nats-Last-Sequence") != str(self.previous):
                raise StoreUnavailable("the last message of a page got lost on the way")
            self.pending = int(headers.get("Nats-Num-Pending", "0"))
            self._end()
        elif not outcome.is_found(headers):
            self._end()

    def fail(self, error: Exception) -> None:
        if not self.done.done():
            self.done.set_exception(error)

    def _end(self) -> None:
        if not self.done.done():
            self.done.set_result(None)


class Reader:
    """Reads events streams over one NATS connection."""

    def __init__(self, nc: Client, *, timeout: float = 5.0) -> None:
        """`timeout` (s) for one page; a page that fails is asked for up to three times."""
        self._nc = nc
        self._timeout = timeout
        self._nuid = NUID()
        self._inbox = nc.new_inbox()
        self._pages: dict[str, _Page] = {}
        self._whole: dict[str, int] = defaultdict(int)  # up to where streams are known to be
        self._subscription: Subscription | None = None

    async def close(self) -> None:
        """Gives up the reader's subscription; the connection stays open."""
        if self._subscription is not None and not self._nc.is_closed:
            await self._subscription.unsubscribe()
        self._subscription = None

    def heard_stored(self, stream: str, seq: int) -> None:
        """Hears that a message was acknowledged: everything up to it is committed."""
        self._whole[stream] = max(self._whole[stream], seq)

    def whole(self, stream: str) -> int:
        """Up to where a stream is known to be committed; it may be further by now."""
        return self._whole[stream]

    async def last(self, stream: str, subject: str, *, leader: bool = False) -> Recorded | None:
        """The last event on a subject, None when there is none."""
        for attempt in range(1, _ATTEMPTS + 1):
            if leader:
                event, headers = await self._from_leader(stream, {"last_by_subj": subject})
            else:
                event, headers = await self._one(f"$JS.API.DIRECT.GET.{stream}.{subject}", b"")
            if event is None or await self._is_whole(stream, event, headers):
                return event
            if not leader and "*" not in subject and ">" not in subject:
                return await self._last_up_to(stream, subject, self._whole[stream])
            if attempt < _ATTEMPTS:
                await asyncio.sleep(0.05 * attempt)
        raise StoreUnavailable(f"{stream} ends in a batch that is not committed; try again")

    async def _last_up_to(self, stream: str, subject: str, seq: int) -> Recorded | None:
        if seq == 0:
            return None
        body = json.dumps({"multi_last": [subject], "up_to_seq": seq}).encode()
        page = await self._page(f"$JS.API.DIRECT.GET.{stream}", body)
        return page.events[-1] if page.events else None

    async def before(self, stream: str, event: Recorded) -> Recorded | None:
        """The event before that one on its subject; None when there is none, or it is not known
        to the replica that answers."""
        seq = event.follows or event.seq - 1
        if seq < 1:
            return None
        with contextlib.suppress(LedgerDamaged):  # what is no event may be in between
            found, _ = await self._one(f"$JS.API.DIRECT.GET.{stream}", b'{"seq": %d}' % seq)
            if found is not None and found.subject == event.subject:
                return found
        return await self._last_up_to(stream, event.subject, event.seq - 1)

    async def first_from(
        self, stream: str, subject: str, seq: int, *, leader: bool = False
    ) -> Recorded | None:
        """The first event on `subject` (wildcards allowed) at or after stream sequence `seq`."""
        body = {"seq": max(1, seq), "next_by_subj": subject}
        if leader:
            event, headers = await self._from_leader(stream, body)
        else:
            event, headers = await self._one(
                f"$JS.API.DIRECT.GET.{stream}", json.dumps(body).encode()
            )
        if event is None or await self._is_whole(stream, event, headers):
            return event
        return None

    async def _is_whole(self, stream: str, event: Recorded, headers: Mapping[str, Any]) -> bool:
        """Whether an event's batch, if it is of one, is committed."""
        if not may_be_open(headers):
            self.heard_stored(stream, event.seq)
        elif event.seq > self._whole[stream]:
            whole = await find_whole(self._nc, stream, seen=event.seq, timeout=self._timeout)
            self.heard_stored(stream, whole)
        return event.seq <= self._whole[stream]

    async def page(
        self,
        stream: str,
        subject: str,
        seq: int,
        *,
        limit: int = PAGE_EVENTS,
        bytes_max: int = PAGE_BYTES,
        through: int = 0,
    ) -> tuple[list[Recorded], int]:
        """Events on `subject` (wildcards allowed) from stream sequence `seq` on, oldest first.

        Returns at most `limit` of them, about `bytes_max` bytes (at least one when there is one),
        and how many are left behind them. `through` is the sequence of an event that is there:
        what a replica that lags does not know up to it comes from the leader (and "left" is then
        0 or 1).
        """
        body = json.dumps(
            {"seq": max(1, seq), "next_by_subj": subject, "batch": limit, "max_bytes": bytes_max}
        ).encode()
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                page = await self._page(f"$JS.API.DIRECT.GET.{stream}", body)
                events, left = page.events, page.pending
                if events and not await self._is_whole(stream, events[-1], page.last_headers):
                    whole = self._whole[stream]
                    events, left = [event for event in events if event.seq <= whole], 0
                break
            except StoreUnavailable:
                if attempt == _ATTEMPTS:
                    raise
                await asyncio.sleep(0.05 * attempt)
        seq = events[-1].seq + 1 if events else max(1, seq)
        while not left and seq <= through and len(events) < limit:
            event = await self.first_from(stream, subject, seq, leader=True)
            if event is None:
                break
            events.append(event)
            seq = event.seq + 1
        return events, left or int(seq <= through and len(events) >= limit)

    async def pages(
        self, stream: str, subject: str, seq: int = 1, *, through: int = 0
    ) -> AsyncIterator[list[Recorded]]:
        """All events on `subject` from `seq` on, page by page, up to the end when it is reached.

        `through` as in `page`.
        """
        while True:
            events, pending = await self.page(stream, subject, seq, through=through)
            if events:
                yield events
                seq = events[-1].seq + 1
            if not pending or not events:
                return

    async def locate(
        self, stream: str, subject: str, reaches: Callable[[Recorded], bool], *, last_seq: int
    ) -> Recorded | None:
        """The first event on `subject` for which `reaches` holds; None when it holds for none.

        `reaches` must be monotonic over the subject (a version, a time): it is found by bisection
        over stream sequences, in O(log last_seq) round trips, whatever the subject's length.
        """
        low, high = 1, last_seq  # the answer's sequence is >= low; known answers shrink high
        found: Recorded | None = None
        while low <= high:
            middle = (low + high) // 2
            event = await self.first_from(stream, subject, middle)
            if event is None:  # a replica that lags
                event = await self.first_from(stream, subject, middle, leader=True)
            if event is None or event.seq > last_seq:
                high = middle - 1
            elif reaches(event):
                found = event
                high = middle - 1
            else:
                low = event.seq + 1
        return found

    async def _page(self, api: str, body: bytes) -> _Page:
        if self._subscription is None:
            self._subscription = await self._nc.subscribe(f"{self._inbox}.*", cb=self._on_message)
        token = self._nuid.next().decode()
        page = self._pages[token] = _Page()
        try:
            await self._nc.publish(api, body, reply=f"{self._inbox}.{token}")
            await asyncio.wait_for(page.done, self._timeout)
        except (StoreUnavailable, LedgerDamaged):
            raise
        except NATS_FAILURES as error:
            raise _unreachable(api, error) from error
        finally:
            del self._pages[token]
        return page

    async def _on_message(self, message: Msg) -> None:
        page = self._pages.get(message.subject.rpartition(".")[2])
        if page is None:
            return
        try:
            page.take(message)
        except (StoreUnavailable, LedgerDamaged) as error:
            page.fail(error)

    async def _one(self, api: str, body: bytes) -> tuple[Recorded | None, Mapping[str, Any]]:
        """The event that answers a Direct Get, with its headers."""
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                message = await self._nc.request(api, body, timeout=self._timeout)
                headers: dict[str, Any] = message.headers or {}
                if outcome.is_found(headers):
                    return unpack(headers, message.data), headers
                return None, headers
            except NATS_FAILURES as error:
                if attempt == _ATTEMPTS:
                    raise _unreachable(api, error) from error
                await asyncio.sleep(0.05 * attempt)
            except StoreUnavailable:
                if attempt == _ATTEMPTS:
                    raise
        raise AssertionError("unreachable")

    async def _from_leader(
        self, stream: str, body: dict[str, Any]
    ) -> tuple[Recorded | None, Mapping[str, Any]]:
        """The event that the leader answers with, and its headers."""
        answer = await call(self._nc, f"STREAM.MSG.GET.{stream}", body, timeout=self._timeout)
        if "error" not in answer:
            return unpack_stored(answer["message"]), stored_headers(answer["message"])
        if outcome.absent(answer):
            return None, {}
        said = answer["error"].get("description")
        raise StoreUnavailable(f"reading {stream} failed: {said}")


def _unreachable(api: str, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"{api} was not answered ({reason(error)}); "
        "check that the NATS server is up, then try again"
    )
