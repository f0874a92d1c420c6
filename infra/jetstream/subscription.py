"""Notifications as they are recorded: pushed by JetStream, iterated over by a thread.

Implements the library's `Subscription` over a `Feed` of the stream, with its guarantees: every
event behind `gt`, once and in order, joined exactly at `gt` (tracking records are not yielded). A
sequence that is missing on the stream itself ends the iteration with LedgerDamaged.

A reader that is slow is not sent more than `BUFFERED_MAX` notifications ahead.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eventsourcing.persistence import Notification, Subscription
from nats.aio.client import Client

from infra.jetstream.envelope import Recorded
from infra.jetstream.feed import Feed
from infra.jetstream.journal import Journal

if TYPE_CHECKING:
    from infra.jetstream.recorders import JetStreamApplicationRecorder

BUFFERED_MAX = 5_000
EXIT_TIMEOUT_S = 5.0


class JetStreamSubscription(Subscription["JetStreamApplicationRecorder"]):
    """An iterator of notifications. `stop` may be called by any thread, and unblocks `next`."""

    def __init__(
        self,
        recorder: JetStreamApplicationRecorder,
        journal: Journal,
        gt: int | None = None,
        topics: Sequence[str] = (),
    ) -> None:
        super().__init__(recorder=recorder, gt=gt, topics=tuple(topics))
        self._datastore = recorder.datastore
        self._handover = threading.Condition()
        self._arrived: deque[Notification] = deque()
        self._taken: deque[Notification] = deque()
        self._error: Exception | None = None
        self._finished = threading.Event()
        self._feed = Feed(self, journal.stream, gt or 0)
        self._datastore.stops.add(self)
        self._datastore.spawn(lambda connections: self._run(connections.tailing))

    def __next__(self) -> Notification:
        """The next notification; waits for it. Raises StopIteration once stopped, LedgerDamaged."""
        while not self._taken or self._has_been_stopped:
            with self._handover:
                while not (self._arrived or self._has_been_stopped or self._error):
                    self._handover.wait()
                if self._error is not None and not self._arrived:
                    raise self._error
                if self._has_been_stopped:
                    raise StopIteration
                self._taken, self._arrived = self._arrived, deque()
            if self._feed.starved:
                self._datastore.call_soon(self._feed.wake)
        return self._taken.popleft()

    def stop(self) -> None:
        """Ends the iteration, in whatever thread it is. Harmless to repeat."""
        super().stop()
        with self._handover:
            self._handover.notify_all()
        self._datastore.call_soon(self._feed.wake)

    def __exit__(self, *args: object, **kwargs: Any) -> None:
        """Stops, and waits until the consumer has been given up."""
        super().__exit__(*args, **kwargs)
        if not self._datastore.is_inside:
            self._finished.wait(EXIT_TIMEOUT_S)

    # -- for the feed, on the loop -------------------------------------------------------------

    def is_stopped(self) -> bool:
        """Whether nobody wants any more of it."""
        return self._has_been_stopped

    @property
    def has_room(self) -> bool:
        """Whether the iterating thread keeps up."""
        return len(self._arrived) < BUFFERED_MAX

    def hand_over(self, events: Sequence[Recorded]) -> None:
        """Gives events to the iterating thread."""
        recorder = self._recorder
        wanted = [
            recorder.notification(event)
            for event in events
            if recorder.is_event(event.subject)
            and (not self._topics or event.topic in self._topics)
        ]
        if wanted:
            with self._handover:
                self._arrived.extend(wanted)
                self._handover.notify_all()

    async def _run(self, nc: Client) -> None:
        try:
            await self._feed.run(nc)
        except Exception as error:  # noqa: BLE001 (whatever it is, the iterating thread gets it)
            with self._handover:
                self._error = error
                self._handover.notify_all()
        finally:
            self._finished.set()
