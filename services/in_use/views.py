"""What readers are shown: conversations as they are stored, now or at some time before.

While every event that is stored is heard of here (`others`), a read need not ask the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from itertools import count

from domain.events import ConversationEvent
from domain.identity import ConversationId
from infra.jetstream.envelope import Recorded, sequence_in, unpack
from infra.jetstream.store import Store
from infra.sturdy import headers_of
from projections.state import ConversationView
from services.errors import NotYetThere
from services.in_use.cache import Cache
from services.in_use.conversation import InUse
from services.in_use.loader import Loader
from services.record import events_of
from services.snapshots import Sleeping

log = logging.getLogger(__name__)

MIN_SEQ_WAIT_S = 2.0
"""How long a read waits for the event that its caller has seen."""

WAIT_PAUSE_S = 0.02

MISSED_MAX = 100
"""Events of other processes that a conversation is only read through; then it is made ready to be
written to as well."""


class Views:
    """Shows the conversations of a cache, kept up to date with what other processes store."""

    def __init__(
        self,
        store: Store,
        cache: Cache,
        loader: Loader,
        *,
        window_size: int,
        epoch: Callable[[], int | None],
    ) -> None:
        self._store = store
        self._cache = cache
        self._loader = loader
        self._window_size = window_size
        self._epoch = epoch

    async def view(
        self, id: ConversationId, *, min_seq: int | None = None, strong: bool = False
    ) -> ConversationView:
        """The conversation as it is stored; `version` 0 when it does not exist.

        Fresh when it was asked for: the last event is compared with the store (through the leader
        when `strong`), unless everything that is stored is heard of here, or the view already
        includes `min_seq`. Use it at once: it goes on changing. Raises NotYetThere when `min_seq`
        does not appear in time, StoreUnavailable, LedgerDamaged.
        """
        give_up_at = time.monotonic() + MIN_SEQ_WAIT_S
        leader = strong
        look = True
        last: Recorded | None = None
        for looks in count():
            epoch = self._epoch()
            anew = id.key not in self._cache.entries
            entry = await self._loader.ready(id.key)
            if not strong:  # a load has it as it is stored when that begins
                known = anew or entry.is_known(epoch)
                if known if min_seq is None else entry.view.seq >= min_seq:
                    return entry.view
            if look:  # once: what is written after it was asked for need not be in it
                last = await self._store.last(id.key, leader=leader)
            there = await self._stands_at(entry, last)
            if there and look:
                entry.known(epoch)
            if there and (min_seq is None or entry.view.seq >= min_seq):
                return entry.view
            if time.monotonic() > give_up_at:
                wanted = max(min_seq or 0, last.seq if last else 0)
                raise NotYetThere(wanted, entry.view.seq)
            look = there
            if there:
                leader = True
                await asyncio.sleep(WAIT_PAUSE_S)
            elif looks > 1:  # what was loaded anew is still behind: a replica that lags
                await asyncio.sleep(WAIT_PAUSE_S)
        raise AssertionError("unreachable")

    def knows(self, key: str) -> bool:
        """Whether `view`, when nothing more is asked of it, has nothing to wait for."""
        entry = self._cache.entries.get(key)
        return entry is not None and entry.loaded and entry.is_known(self._epoch())

    async def _stands_at(self, entry: InUse, last: Recorded | None) -> bool:
        """Whether the entry's view includes `last`; False when the caller has to look again.

        Our own appends on their way are waited for; a view that is one event behind is brought up
        to date by `last` itself; one further behind is dropped, to be loaded anew.
        """
        if last is None:
            return True
        await entry.settled_through(last)
        if entry.view.seq >= last.seq:
            return True
        if not entry.dropped and last.version == entry.view.version + 1:
            self._fold_stranger(entry, last)
            return True
        self._cache.drop(entry)
        return False

    def heard(self, key: str, headers: bytes, body: bytes) -> None:
        """Takes in the live copy of an event that was stored, by us or by another process, with its
        header block."""
        entry = self._cache.entries.get(key)
        if entry is None:
            return
        try:
            seq = sequence_in(headers)
            if not entry.loaded or (entry.pending and self._store.wrote(headers)):
                entry.heard_seq = seq  # one of ours is shown when the store has told us: see below
            elif entry.view.seq < seq:
                self._take_in(entry, unpack(headers_of(headers), body))
        except Exception as error:  # noqa: BLE001 (whatever it is, the ledger itself is asked next)
            log.warning("what was heard of %s is of no use: %s", key, error)
            self._cache.drop(entry)

    def _take_in(self, entry: InUse, recorded: Recorded) -> None:
        if entry.pending:
            if not entry.is_storing(recorded):
                self._cache.drop(entry)  # whatever we are storing there will be decided again
            # Ours is shown when the store has told us; as that answer may be lost, and another
            # worker be asked about the command, reads ask the ledger until then.
            entry.heard_seq = recorded.seq
            return
        if recorded.version == entry.view.version + 1:
            self._fold_stranger(entry, recorded)
        else:
            self._cache.drop(entry)  # one was not heard

    def _fold_stranger(self, entry: InUse, recorded: Recorded) -> None:
        """Takes in the next event of a conversation at rest, which another process has stored."""
        entry.fold([recorded])
        entry.strangers += 1
        sleeping = entry.conversation
        if isinstance(sleeping, Sleeping) and sleeping.missed > MISSED_MAX:
            self._loader.wake(entry, sleeping)
        self._cache.weigh(entry)

    async def replay(
        self, id: ConversationId, until: Callable[[ConversationEvent], bool], *, through: int = 0
    ) -> ConversationView:
        """The conversation as it was after the last event for which `until` holds.

        `until` must hold for every event up to some point and for none behind it; `through` is the
        sequence of an event that is there, whatever a replica says. Folded from the
        first event on; `version` 0 when it holds for none.
        """
        return await self._store.from_any_copy(lambda: self._replayed(id, until, through))

    async def _replayed(
        self, id: ConversationId, until: Callable[[ConversationEvent], bool], through: int
    ) -> ConversationView:
        view = ConversationView.empty(self._window_size)
        async with contextlib.aclosing(events_of(self._store, id.key, through=through)) as events:
            async for recorded, event in events:
                if not until(event):
                    break
                view.apply(event, recorded.seq)
        return view
