"""Notifications as they are recorded: pushed by JetStream, iterated over by a thread.

Implements the library's `Subscription` over an ephemeral pull consumer (ADR-13) without
acknowledgements, in memory, with requests always outstanding: what is stored is sent at once.

Guarantees: every event behind `gt`, once and in order, joined exactly at `gt`; the next message is
always the one with the next stream sequence (tracking records included, which are not yielded);
the events of a batch only once all of it has arrived. A lost connection, consumer or server is
picked up again behind the last event handed over. A sequence that is missing on the stream itself
ends the iteration with LedgerDamaged: it is never skipped.

A reader that is slow is not sent more than `BUFFERED_MAX` notifications ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from eventsourcing.persistence import Notification, Subscription
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.nuid import NUID

from infra.jetstream.envelope import BATCH_COMMIT, BATCH_ID, Recorded, unpack_delivered
from infra.jetstream.errors import NATS_FAILURES, LedgerDamaged, StoreUnavailable, reason
from infra.jetstream.journal import Journal
from infra.jetstream.topology import call

if TYPE_CHECKING:
    from infra.jetstream.recorders import JetStreamApplicationRecorder

log = logging.getLogger(__name__)

BUFFERED_MAX = 5_000
REQUEST_EVENTS = 1_000
REQUEST_BYTES = 8_000_000
REQUEST_EXPIRES_S = 30.0
HEARTBEAT_S = 1.0
SILENCE_MAX_S = 2.5 * HEARTBEAT_S
"""Without a message or heartbeat, after which the consumer is taken for lost."""

CONSUMER_INACTIVE_S = 60
CALL_TIMEOUT_S = 2.0
CHECK_S = 0.5
PAUSE_S = 0.05
PAUSE_MAX_S = 1.0
EXIT_TIMEOUT_S = 5.0

_HEARTBEAT = "100"
_EXPIRED = "408"
_CONFLICT = "409"
_REQUEST_DONE = ("maxbytes", "batch completed")
"""In a conflict that only says that one request is served, with what is left of it."""

_NO_MESSAGE = 10037


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
        self._feed = _Feed(self, journal.stream, gt or 0)
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


class _Feed:
    """Follows a stream behind a sequence, through as many consumers as it takes.

    Lives on the loop, except for `starved`.
    """

    def __init__(self, subscription: JetStreamSubscription, stream: str, seq: int) -> None:
        self.starved = False  # for want of room nothing more was asked for
        self._subscription = subscription
        self._stream = stream
        self._changed: asyncio.Event | None = None
        self._passed_on = seq  # sequence of the last message handed over
        # of the present consumer:
        self._received = seq
        self._whole: list[Recorded] = []  # to be handed over
        self._open: list[Recorded] = []  # of a batch that is not complete yet
        self._asked = 0  # messages still to come of what was asked for
        self._heard_at = 0.0
        self._lost = ""
        self._error: LedgerDamaged | None = None

    def wake(self) -> None:
        """Has it look again at what is wanted of it."""
        if self._changed is not None:
            self._changed.set()

    async def run(self, nc: Client) -> None:
        """Follows the stream until the subscription is stopped. Raises LedgerDamaged."""
        self._changed = asyncio.Event()
        pause = PAUSE_S
        while not self._subscription.is_stopped():
            before = self._passed_on
            try:
                await self._follow(nc, self._changed)
            except _LOST as error:
                self._lost = reason(error)
            if self._subscription.is_stopped():
                return
            log.info("following %s again: %s", self._stream, self._lost)
            pause = PAUSE_S if self._passed_on > before else min(pause * 2, PAUSE_MAX_S)
            await asyncio.sleep(pause)

    async def _follow(self, nc: Client, changed: asyncio.Event) -> None:
        """One consumer's life. Returns when it is lost or not wanted any more."""
        self._received = self._passed_on
        self._whole, self._open = [], []
        self._asked = 0
        self._lost = ""
        name = NUID().next().decode()
        inbox = nc.new_inbox()
        reconnects = nc.stats["reconnects"]
        incoming = await nc.subscribe(inbox, cb=self._on_message)
        try:
            await self._create(nc, name)
            self._heard_at = time.monotonic()
            while not self._subscription.is_stopped():
                await self._ask(nc, name, inbox)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(CHECK_S):
                        await changed.wait()
                changed.clear()
                self._hand_over()
                if self._error is not None:
                    raise self._error
                if nc.stats["reconnects"] != reconnects:
                    self._lost = "the connection was lost"
                elif self._asked and time.monotonic() - self._heard_at > SILENCE_MAX_S:
                    self._lost = "nothing was heard of the consumer"
                if self._lost:
                    await self._check_gap(nc)
                    return
        finally:
            with contextlib.suppress(*NATS_FAILURES):
                await incoming.unsubscribe()
                await nc.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}")

    async def _create(self, nc: Client, name: str) -> None:
        config = {
            "name": name,
            "deliver_policy": "by_start_sequence",
            "opt_start_seq": self._passed_on + 1,
            "ack_policy": "none",
            "max_deliver": 1,
            "inactive_threshold": CONSUMER_INACTIVE_S * 1_000_000_000,
            "num_replicas": 1,
            "mem_storage": True,
        }
        answer = await call(
            nc,
            f"CONSUMER.CREATE.{self._stream}.{name}",
            {"stream_name": self._stream, "config": config, "action": "create"},
            timeout=CALL_TIMEOUT_S,
        )
        if "error" in answer:
            raise StoreUnavailable(f"no consumer: {answer['error'].get('description')}")

    async def _ask(self, nc: Client, name: str, inbox: str) -> None:
        """Asks for more, so that there is always a request that the server can answer at once."""
        self.starved = not self._subscription.has_room
        while not self.starved and self._asked <= REQUEST_EVENTS:
            self._asked += REQUEST_EVENTS
            await nc.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{name}", _REQUEST, reply=inbox
            )

    async def _on_message(self, message: Msg) -> None:
        self._heard_at = time.monotonic()
        headers = message.headers or {}
        status = headers.get("Status")
        if self._lost:
            return
        if status is not None:
            self._on_status(status, headers)
            return
        try:
            event = unpack_delivered(message.subject, message.reply, headers, message.data)
        except (LedgerDamaged, ValueError) as error:
            self._error = LedgerDamaged(f"following {self._stream}: {error}")
            self.wake()
            return
        self._asked -= 1
        if event.seq != self._received + 1:
            if event.seq > self._received:
                self._lost = f"sequence {self._received + 1} did not come"
                self.wake()
            return
        self._received = event.seq
        self._open.append(event)
        if BATCH_ID not in headers or BATCH_COMMIT in headers:
            self._whole += self._open
            self._open = []
        if self._whole or self._asked <= REQUEST_EVENTS:
            self.wake()

    def _on_status(self, status: str, headers: dict[str, str]) -> None:
        said = headers.get("Description", "")
        left = headers.get("Nats-Pending-Messages", "")
        if status == _HEARTBEAT:
            return
        if left and (status == _EXPIRED or said.lower().endswith(_REQUEST_DONE)):
            self._asked -= int(left)
        else:
            self._lost = f"{status} {said}"
        self.wake()

    def _hand_over(self) -> None:
        if self._whole:
            whole, self._whole = self._whole, []
            self._subscription.hand_over(whole)
            self._passed_on = whole[-1].seq

    async def _check_gap(self, nc: Client) -> None:
        """Raises LedgerDamaged when the stream has no message at a sequence that did not come."""
        missing = self._received + 1
        answer = await call(
            nc, f"STREAM.MSG.GET.{self._stream}", {"seq": missing}, timeout=CALL_TIMEOUT_S
        )
        if answer.get("error", {}).get("err_code") != _NO_MESSAGE:
            return
        info = await call(nc, f"STREAM.INFO.{self._stream}", {}, timeout=CALL_TIMEOUT_S)
        if info.get("state", {}).get("last_seq", 0) > missing:
            raise LedgerDamaged(
                f"stream {self._stream} has later messages, but none with sequence {missing}: "
                "an event is missing; restore it from a backup or a replica"
            )


_LOST: tuple[type[Exception], ...] = (StoreUnavailable, *NATS_FAILURES)
_REQUEST = json.dumps(
    {
        "batch": REQUEST_EVENTS,
        "max_bytes": REQUEST_BYTES,
        "expires": int(REQUEST_EXPIRES_S * 1e9),
        "idle_heartbeat": int(HEARTBEAT_S * 1e9),
    }
).encode()
