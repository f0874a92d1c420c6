"""Snapshots of conversations: what shortens a cold load, written while nobody waits for it.

A snapshot holds the aggregate and its view at one event, with that event's sequence and hash.
Whoever loads it compares it with the events behind, so a snapshot that does not belong to the
ledger (an old one, or one of another ledger) is noticed and ignored. Losing one costs time only.

The view is what readers wait for; the aggregate, which remembers a thousand messages and commands
and so grows with the conversation, is left as it was written until somebody decides on it.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from pydantic_core import from_json, to_json

from domain.conversation import Conversation, evolve
from domain.events import ConversationEvent
from infra.jetstream.envelope import Recorded, chain
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.store import Store
from projections.state import ConversationView
from services.tasks import ended

log = logging.getLogger(__name__)

EVERY_EVENTS = 50
"""A conversation that has grown by this many events since its snapshot is due for the next."""

DUTY = 0.05
"""The largest part of the time that writing snapshots may take."""


_WITH_ITS_PARTS = re.compile(rb'\{"view_bytes":(\d+),"digest":"([0-9a-f]{64})","view":')
_CONVERSATION = b',"conversation":'
_MISSED_BYTES = 2_000  # roughly what an event takes in memory


class Sleeping:
    """An aggregate as it was written, and the events that it has missed since."""

    __slots__ = ("_events", "_state", "version")

    def __init__(self, state: bytes, version: int) -> None:
        self._state = state
        self._events: list[ConversationEvent] = []
        self.version = version

    @property
    def size_bytes(self) -> int:
        """Roughly what it takes in memory."""
        return len(self._state) + _MISSED_BYTES * len(self._events)

    def miss(self, event: ConversationEvent) -> None:
        """Keeps an event for when it wakes."""
        self._events.append(event)
        self.version = event.originator_version

    @property
    def missed(self) -> int:
        """How many events it has missed."""
        return len(self._events)

    def awake(self) -> Conversation:
        """The aggregate right after the last of them. Raises ValueError when what was written is
        of no use here."""
        conversation = Conversation.from_state(from_json(self._state))
        for event in self._events:
            conversation = evolve(conversation, event)
        if conversation.version != self.version:
            raise ValueError(f"an aggregate of version {conversation.version} beside another view")
        return conversation


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A conversation right after the event at sequence `view.seq`, whose hash is `digest`."""

    aggregate: Conversation | Sleeping
    view: ConversationView
    digest: str

    @property
    def conversation(self) -> Conversation:
        """The aggregate, awake. Raises ValueError when it is of no use."""
        return self.aggregate.awake() if isinstance(self.aggregate, Sleeping) else self.aggregate

    def encode(self) -> bytes:
        """The snapshot as JSON; `view_bytes` tells where its parts are, for `decode`."""
        view = to_json(self.view.to_state())
        conversation = to_json(self.conversation.to_state())
        return b'{"view_bytes":%d,"digest":"%b","view":%b%b%b}' % (
            len(view),
            self.digest.encode(),
            view,
            _CONVERSATION,
            conversation,
        )

    @classmethod
    def decode(cls, body: bytes, *, window_size: int) -> Self | None:
        """Reads what `encode` wrote; None for one that is of no use here.

        That is one of another format, or with a window of another size than is wanted now.
        """
        try:
            found = cls._in_parts(body) or cls._whole(body)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.info("a snapshot is ignored: %s", error)
            return None
        if found.view.window_size != window_size or found.view.version != found.aggregate.version:
            return None
        return found

    @classmethod
    def _in_parts(cls, body: bytes) -> Self | None:
        head = _WITH_ITS_PARTS.match(body)
        if head is None:
            return None
        end = head.end() + int(head[1])
        start = end + len(_CONVERSATION)
        if body[end:start] != _CONVERSATION:
            return None
        view = ConversationView.from_state(from_json(body[head.end() : end]))
        return cls(Sleeping(body[start:-1], view.version), view, head[2].decode())

    @classmethod
    def _whole(cls, body: bytes) -> Self:
        state: dict[str, Any] = from_json(body)
        view = ConversationView.from_state(state["view"])
        conversation = Conversation.from_state(state["conversation"])
        return cls(conversation, view, bytes.fromhex(state["digest"]).hex())

    def stands_at(self, event: Recorded) -> bool:
        """Whether this is the snapshot right after that very event."""
        at = (self.view.seq, self.view.version, self.digest)
        return at == (event.seq, event.version, event.digest)

    def reaches(self, event: Recorded) -> bool:
        """Whether this is the snapshot right after that event or, by the chain of hashes, of the
        one before it."""
        if self.stands_at(event):
            return True
        if event.version != self.view.version + 1 or event.seq <= self.view.seq:
            return False
        return chain(bytes.fromhex(self.digest), event.body).hex() == event.digest


class Snapshotter:
    """Writes the snapshots that are due, one after the other, within `DUTY`.

    `take(key)` gives the snapshot to write, which is encoded at once, or None when there is none.
    """

    def __init__(self, store: Store, take: Callable[[str], Awaitable[Snapshot | None]]) -> None:
        self._store = store
        self._take = take
        self._due: dict[str, None] = {}
        self._wake = asyncio.Event()
        self._task = asyncio.get_running_loop().create_task(self._run())

    def grown(self, key: str, events: int) -> None:
        """Hears that a conversation has grown by `events` since its snapshot."""
        if events >= EVERY_EVENTS and key not in self._due:
            self._due[key] = None
            self._wake.set()

    async def close(self) -> None:
        """Stops; what is still due is written by whoever loads that conversation next."""
        await ended(self._task)

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            if not self._due:
                self._wake.clear()
                continue
            key = next(iter(self._due))
            del self._due[key]
            started = time.perf_counter()
            try:
                await self._write(key)
            except StoreUnavailable as error:
                log.info("a snapshot was not written: %s", error)
            except Exception:
                log.exception("a snapshot could not be written")
            await asyncio.sleep((time.perf_counter() - started) / DUTY)

    async def _write(self, key: str) -> None:
        snapshot = await self._take(key)
        if snapshot is not None:
            await self._store.snapshots.save(key, snapshot.encode())
