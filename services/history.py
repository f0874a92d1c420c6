"""Pages of a conversation's history, read from the ledger.

A page is a run of events; what became of its messages may stand behind it. The chunks of a reply
follow it closely, and are read on to its end; redactions and edits of any time are told by the
view of the present (`ConversationView.redactions`, `edits`).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from domain.events import ConversationEvent
from domain.identity import ConversationId
from infra.jetstream.envelope import Recorded
from infra.jetstream.store import Store
from projections.history import History
from projections.messages import Beginning, Message
from projections.state import ConversationView
from services.paging import newest_that_fit, oldest_that_fit
from services.record import event_of

_SCAN_EVENTS = 500
_FIRST_SCAN_EVENTS = 64


class Page(NamedTuple):
    """Messages, oldest first, and what to pass on for the page behind (or before) it, if any."""

    messages: list[Message]
    next: int | None


class HistoryReader:
    """Reads the history of one conversation, whose present is `now`."""

    def __init__(
        self,
        store: Store,
        id: ConversationId,
        now: ConversationView,
        *,
        bytes_max: int,
    ) -> None:
        self._store = store
        self._id = id
        self._now = now
        self._bytes_max = bytes_max

    async def after(self, version: int, limit: int) -> Page:
        """Up to `limit` messages that began behind `version`; `next` is the version to go on from.

        A page that has become too long for one answer is cut at its newest end.
        """
        history = History()
        size, seq, more = 0, 0, False
        async for recorded, event in self._events(version):
            history.apply(event)
            version, seq = recorded.version, recorded.seq
            size += len(recorded.body)
            more = len(history) > limit or size > self._bytes_max
            if more:
                break
        history.keep(0, limit)
        messages = await self._as_they_are_now(history, version, seq)
        kept = list(oldest_that_fit(messages, self._bytes_max))
        if not more and len(kept) == len(messages):
            return Page(kept, None)
        return Page(kept, kept[-1]["version"] if kept else version)

    async def before(self, version: int, limit: int, *, first: int) -> Page:
        """Up to `limit` messages that began in front of `version`, none in front of `first`.

        `next` is the version to go on before. One that has become too long for one answer is cut
        at its oldest end.
        """
        start = end = min(version, self._now.version + 1)
        events: list[tuple[Recorded, ConversationEvent]] = []
        begun, size, block = 0, 0, _FIRST_SCAN_EVENTS
        while begun <= limit and size <= self._bytes_max and start > first:
            behind = start
            start = max(first, start - block)
            read = [each async for each in self._events(start - 1, until=behind)]
            begun += sum(isinstance(event, Beginning) for _, event in read)
            size += sum(len(recorded.body) for recorded, _ in read)
            events[:0] = read
            block = min(block * 2, _SCAN_EVENTS)
        history = History()
        for _, event in events:
            history.apply(event)
        history.keep(-limit, None)
        messages = await self._as_they_are_now(history, end - 1, events[-1][0].seq if events else 0)
        kept = list(newest_that_fit(messages, self._bytes_max))
        if begun <= limit and start <= first and len(kept) == len(messages):
            return Page(kept, None)
        return Page(kept, kept[0]["version"] if kept else start)

    async def _as_they_are_now(self, history: History, version: int, seq: int) -> list[Message]:
        """The messages after all that has happened; taken in up to `version` at sequence `seq`."""
        if history.is_unfinished():
            async for recorded, event in self._events(version):
                history.follow(event)
                seq = recorded.seq
                if not history.is_unfinished():
                    break
        history.hide(self._now.redactions)
        stream, subject = self._place
        for message in history.messages:
            edited_at = self._now.edits.get(message["message_id"], 0)
            if edited_at > seq and "redacted" not in message:
                recorded_edit = await self._store.reader.first_from(stream, subject, edited_at)
                if recorded_edit is not None:
                    history.follow(event_of(self._id.key, recorded_edit))
        return history.messages

    async def _events(
        self, after: int, *, until: int | None = None
    ) -> AsyncIterator[tuple[Recorded, ConversationEvent]]:
        """The events behind version `after`, in front of version `until`, oldest first."""
        key = self._id.key
        last = await self._store.last(key, leader=True)
        if last is None or after >= last.version:
            return
        first = await self._store.locate_version(key, after + 1, last=last)
        seq = first.seq if first is not None else last.seq + 1
        while seq <= last.seq:
            limit = _SCAN_EVENTS if until is None else min(until - 1 - after, _SCAN_EVENTS)
            page, _ = await self._store.read_page(key, seq, limit, through=last.seq)
            for recorded in page:
                yield recorded, event_of(key, recorded)
            if not page or (until is not None and page[-1].version >= until - 1):
                return
            after, seq = page[-1].version, page[-1].seq + 1

    @property
    def _place(self) -> tuple[str, str]:
        key = self._id.key
        return self._store.stream_of(key), self._store.topology.subject(key)
