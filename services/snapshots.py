"""Snapshots of conversations: what shortens a cold load, written while nobody waits for it.

A snapshot holds the aggregate and its view at one event, with that event's sequence and hash.
Whoever loads it reads on from that very event, so a snapshot that does not belong to the ledger
(an old one, or one of another ledger) is noticed and ignored. Losing one costs time only.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Self

from pydantic_core import from_json, to_json

from domain.conversation import Conversation
from infra.jetstream.envelope import Recorded
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.store import Store
from projections.state import ConversationView
from services.tasks import ended

log = logging.getLogger(__name__)

EVERY_EVENTS = 50
"""A conversation that has grown by this many events since its snapshot is due for the next."""

DUTY = 0.05
"""The largest part of the time that writing snapshots may take."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A conversation right after the event at sequence `view.seq`, whose hash is `digest`."""

    conversation: Conversation
    view: ConversationView
    digest: str

    def encode(self) -> bytes:
        """The snapshot as JSON."""
        return to_json(
            {
                "digest": self.digest,
                "conversation": self.conversation.to_state(),
                "view": self.view.to_state(),
            }
        )

    @classmethod
    def decode(cls, body: bytes, *, window_size: int) -> Self | None:
        """Reads what `encode` wrote; None for one that is of no use here.

        That is one of another format, or with a window of another size than is wanted now.
        """
        try:
            state: dict[str, Any] = from_json(body)
            view = ConversationView.from_state(state["view"])
            conversation = Conversation.from_state(state["conversation"])
            digest = state["digest"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.info("a snapshot is ignored: %s", error)
            return None
        if view.window_size != window_size or view.version != conversation.version:
            return None
        return cls(conversation, view, digest)

    def stands_at(self, event: Recorded) -> bool:
        """Whether this is the snapshot right after that very event."""
        at = (self.view.seq, self.view.version, self.digest)
        return at == (event.seq, event.version, event.digest)


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
