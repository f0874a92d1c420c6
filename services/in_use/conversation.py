"""One conversation in memory: the side that decides and runs ahead, and the side that is stored."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from domain.conversation import Conversation, evolve
from infra.jetstream.envelope import Recorded, Tail
from projections.state import ConversationView
from services.in_use.attempt import Attempt
from services.record import checked, event_of
from services.snapshots import Sleeping, Snapshot

KNOWN_S = 10.0
"""How long a view is held to be up to date by what is heard; then it is compared once more."""


class InUse:
    """A conversation in memory. `conversation` and `tail` run ahead, `view` is what is stored.

    `subject`: where its events are. It has none until it is loaded.
    """

    __slots__ = (
        "conversation",
        "dropped",
        "fault",
        "heard_seq",
        "held",
        "key",
        "known_in",
        "known_until",
        "load",
        "load_error",
        "loaded",
        "pending",
        "settled",
        "snapshot_version",
        "strangers",
        "tail",
        "view",
        "waiting",
        "weight",
    )

    def __init__(self, key: str, subject: str, window_size: int) -> None:
        self.key = key
        self.load: asyncio.Task[None] | None = None
        self.load_error: Exception | None = None
        self.loaded = False
        self.dropped = False
        self.fault: Exception | None = None  # of ours, in folding: the view is of no use any more
        self.conversation: Conversation | Sleeping | None = None
        self.view = ConversationView.empty(window_size)
        self.tail = Tail(subject)
        self.pending: deque[Attempt] = deque()  # decided, in order; answered as appends settle
        self.held: deque[Attempt] = deque()  # until fewer are pending; empty when none is
        self.waiting: list[Callable[[], None]] = []  # called when the load has ended, well or not
        self.settled: asyncio.Event | None = None
        self.snapshot_version = 0
        self.strangers = 0  # events of other processes taken in since it was loaded
        self.weight = 0  # as the cache counts it
        self.heard_seq = 0  # of the last event that was heard of before it could be taken in
        self.known_in: int | None = None  # the epoch in which the view was found to be up to date
        self.known_until = 0.0

    # -- whether it is up to date --------------------------------------------------------------

    def known(self, epoch: int | None) -> None:
        """Notes that the view was up to date at a moment in this epoch."""
        self.known_in = epoch
        self.known_until = time.monotonic() + KNOWN_S

    def is_known(self, epoch: int | None) -> bool:
        """Whether the view includes everything that is stored, as far as is heard here."""
        return (
            epoch is not None
            and self.known_in == epoch
            and self.view.seq >= self.heard_seq
            and time.monotonic() < self.known_until
        )

    # -- what is under way ---------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether anything is under way that this entry is needed for."""
        return bool(self.pending or self.waiting) or not self.loaded

    def may_have(self, event: Recorded) -> bool:
        """Whether a stored event may be one of ours whose append has not settled yet."""
        at_end = event.version == self.tail.version
        return event.digest == self.tail.digest.hex() if at_end else not self.dropped

    def is_storing(self, event: Recorded) -> bool:
        """Whether a stored event is one of those that we are storing at this moment."""
        return any(
            message.version == event.version and message.digest.hex() == event.digest
            for attempt in self.pending
            for message in attempt.messages
        )

    async def settled_through(self, last: Recorded) -> None:
        """Waits for our own appends on their way, as long as the view does not include `last`."""
        while self.view.seq < last.seq and self.pending:
            if self.settled is None:
                self.settled = asyncio.Event()
            await self.settled.wait()

    # -- at rest: both sides at once -----------------------------------------------------------

    def begin(self) -> None:
        """Stands before the first event."""
        self.conversation = None
        self.view = ConversationView.empty(self.view.window_size)
        self.tail = Tail(self.tail.subject)

    def begin_at(self, snapshot: Snapshot) -> None:
        """Stands where a snapshot does."""
        view = self.view = snapshot.view
        self.conversation = snapshot.aggregate
        self.snapshot_version = view.version
        digest = bytes.fromhex(snapshot.digest)
        self.tail = Tail(self.tail.subject, view.seq, view.version, digest, digest)

    def fold(self, events: Sequence[Recorded]) -> None:
        """Takes in stored events. Raises LedgerDamaged when they do not belong behind the view."""
        if not events:
            return
        digest = checked(events, self.tail.version, self.tail.digest)
        for recorded in events:
            event = event_of(self.key, recorded)
            if isinstance(self.conversation, Sleeping):
                self.conversation.miss(event)
            else:
                self.conversation = evolve(self.conversation, event)
            self.view.apply(event, recorded.seq)
        last = events[-1]
        self.tail = Tail(self.tail.subject, last.seq, last.version, digest, digest)
