"""How a conversation gets into memory: from its snapshot and the events behind it.

And back: what is saved of one in memory, that the next load is shorter.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable

from domain.conversation import Conversation
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.store import Store
from services.in_use.cache import Cache
from services.in_use.conversation import InUse
from services.snapshots import Sleeping, Snapshot, Snapshotter
from services.tasks import Tasks

log = logging.getLogger(__name__)

LOADS_MAX = 64
"""Conversations that are read from the ledger at once; the others wait for their turn here, where
no request of theirs runs out of its time."""


class Loader:
    """Loads conversations into a cache, and has their snapshots written as they grow."""

    def __init__(
        self, store: Store, cache: Cache, *, window_size: int, epoch: Callable[[], int | None]
    ) -> None:
        self._store = store
        self._cache = cache
        self._window_size = window_size
        self._epoch = epoch
        self._turns = asyncio.Semaphore(LOADS_MAX)
        self._mistrusted: set[str] = set()  # whose snapshots are of no use
        self._tasks = Tasks()
        self.snapshotter = Snapshotter(store, self._snapshot_of)

    def begin(self, key: str, *, conflicts: int = 0) -> InUse:
        """A new entry for a conversation that is not in memory, being loaded when this returns.

        `conflicts`: how often the command that it is for has lost against another writer.
        """
        entry = self._new(key)
        self._cache.add(entry)
        entry.load = self._tasks.start(self._load(entry, pause_s=_pause_s(conflicts)))
        return entry

    async def ready(self, key: str) -> InUse:
        """The conversation in memory, loaded. Raises what its load failed with."""
        entry = self._cache.used(key) or self.begin(key)
        if not entry.loaded:
            assert entry.load is not None
            await asyncio.shield(entry.load)
            if entry.load_error is not None:
                raise entry.load_error
        return entry

    def wake(self, entry: InUse, sleeping: Sleeping) -> Conversation | None:
        """The entry's aggregate, from now on awake to be decided on.

        None when what was saved of it is of no use: the entry is dropped, and the next load goes by
        the conversation's events.
        """
        try:
            conversation = entry.conversation = sleeping.awake()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the snapshot of %s is of no use; ignored: %s", entry.key, error)
            self._mistrusted.add(entry.key)
            self._cache.drop(entry)
            return None
        self._cache.weigh(entry)
        return conversation

    def _new(self, key: str) -> InUse:
        return InUse(key, self._store.topology.subject(key), self._window_size)

    async def _load(self, entry: InUse, *, pause_s: float) -> None:
        """Loads an entry, then calls whoever has waited for it. One who lost against other writers
        lets them by first, for all the commands on the conversation at once."""
        try:
            if pause_s:
                await asyncio.sleep(pause_s)
            async with self._turns:
                epoch = self._epoch()
                await self._store.from_any_copy(lambda: self._read_in(entry))
            if entry.view.seq >= entry.heard_seq:
                entry.known(epoch)
        except Exception as error:  # noqa: BLE001 (whatever it is, the callers are told)
            entry.load_error = error
            self._cache.drop(entry)
        else:
            entry.loaded = True
        waiting, entry.waiting = entry.waiting, []
        for loaded in waiting:
            loaded()
        if entry.loaded:
            self._cache.weigh(entry)
            self.snapshotter.grown(entry.key, entry.view.version - entry.snapshot_version)

    async def _read_in(self, entry: InUse) -> None:
        """Rebuilds a conversation from its snapshot and the events behind it.

        Its last event is asked for at the same time: most often that is all there is to read, and
        the view then includes whatever was stored before this began.
        """
        key = entry.key
        entry.begin()
        body, last = await asyncio.gather(self._saved(key), self._store.last(key))
        snapshot = Snapshot.decode(body, window_size=self._window_size) if body else None
        if snapshot is not None and last is None:  # a replica that lags
            last = await self._store.last(key, leader=True)
        if snapshot is not None and last is not None:
            events, view = [last], snapshot.view
            if not snapshot.reaches(last):
                events = await self._store.read_up_to(key, last, version=view.version, seq=view.seq)
            if events and snapshot.reaches(events[0]):
                entry.begin_at(snapshot)
                entry.fold(events[int(snapshot.stands_at(events[0])) :])
                return
            log.warning("the snapshot of %s does not belong to this ledger; ignored", key)
        if last is not None:
            first = last.version == 1
            entry.fold([last] if first else await self._store.read_up_to(key, last))

    async def _saved(self, key: str) -> bytes | None:
        """The snapshot of a conversation as it was saved, where there is one to go by."""
        if key in self._mistrusted:
            return None
        try:
            return await self._store.snapshots.load(key)
        except StoreUnavailable as error:  # a shortcut only: the events are somewhere else
            log.info("%s", error)
            return None

    async def _snapshot_of(self, key: str) -> Snapshot | None:
        """What to save for a conversation: as it is in memory, or read anew when that is busy."""
        entry = self._cache.entries.get(key)
        if entry is None:
            return None
        source = entry
        if entry.busy:
            source = self._new(key)
            source.dropped = True  # it was never in use
            await self._store.from_any_copy(lambda: self._read_in(source))
        aggregate = source.conversation
        if isinstance(aggregate, Sleeping):
            aggregate = self.wake(source, aggregate)
        if aggregate is None:
            return None
        entry.snapshot_version = source.view.version
        self._mistrusted.discard(key)
        return Snapshot(aggregate, source.view, source.tail.digest.hex())


def _pause_s(conflicts: int) -> float:
    if conflicts < 2:
        return 0.0
    longest: float = min(0.08, 0.005 * 2 ** (conflicts - 2))
    return longest * random.random()  # noqa: S311 (jitter)
