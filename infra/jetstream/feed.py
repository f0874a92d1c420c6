"""A stream followed as it grows: pushed by JetStream, handed over whole.

Over an ephemeral pull consumer (ADR-13) without acknowledgements, in memory, with requests always
outstanding: what is stored is sent at once.

Guarantees: every event behind a sequence, once and in order, joined exactly there; the next message
is always the one with the next stream sequence; the events of a batch only once all of it has
arrived, its commit included (`whole`). A lost connection, consumer or server is picked up again
behind the last event handed over, if that is still there. A sequence that is missing on the stream
itself, another event where the last one was, or a batch that ends without its commit, ends it with
LedgerDamaged: nothing is skipped.

A stream may have several copies, and a consumer reads one of them, chosen by chance. One that is
damaged, or is behind and stays so, delivers nothing any more and still sends heartbeats: the feed
looks whether the stream has what does not come. And what one copy does not have is not lost yet:
that it is comes out when as many consumers as `DOUBTS_MAX` got no further.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Protocol

from nats.aio.client import Client
from nats.nuid import NUID

from infra.bulk import Delivered
from infra.jetstream import outcome
from infra.jetstream.envelope import (
    Placed,
    Recorded,
    batch_of,
    is_unfinished,
    read_in_bulk,
    status_of,
    unpack_in_bulk,
    unpack_stored,
)
from infra.jetstream.errors import NATS_FAILURES, LedgerDamaged, StoreUnavailable, reason
from infra.jetstream.topology import call
from infra.sturdy import subscribe_in_bulk

log = logging.getLogger(__name__)

REQUEST_EVENTS = 1_000
REQUEST_BYTES = 8_000_000
REQUEST_EXPIRES_S = 30.0
HEARTBEAT_S = 1.0
SILENCE_MAX_S = 2.5 * HEARTBEAT_S
"""Without a message or heartbeat, after which the consumer is taken for lost."""

LOOK_S = 2.0
"""Between two looks whether the stream has events that do not come, while none comes."""

DOUBTS_MAX = 8
"""So many consumers in a row have to find the stream damaged at the same place. With one of three
copies damaged, all of them read that one once in 6,600 times."""

CONSUMER_INACTIVE_S = 60
CALL_TIMEOUT_S = 2.0
CHECK_S = 0.5
PAUSE_S = 0.05
PAUSE_MAX_S = 1.0

_HEARTBEAT = "100"
_EXPIRED = "408"
_REQUEST_DONE = ("maxbytes", "batch completed")
"""In a conflict (409) that only says that one request is served, with what is left of it."""


class Taker(Protocol):
    """Who follows: asked and given on the event loop."""

    @property
    def has_room(self) -> bool:
        """Whether it keeps up with what it is given."""

    def is_stopped(self) -> bool:
        """Whether nothing is wanted any more."""

    def hand_over(self, events: Sequence[Recorded]) -> None:
        """Takes events, oldest first."""


class Feed:
    """Follows a stream behind a sequence, through as many consumers as it takes.

    Lives on the loop, except for `starved`.
    """

    def __init__(self, taker: Taker, stream: str, seq: int) -> None:
        self.starved = False  # for want of room nothing more was asked for
        self._taker = taker
        self._stream = stream
        self._changed: asyncio.Event | None = None
        self._passed_on = seq  # sequence of the last message handed over, and its hash
        self._passed_on_digest = ""
        # of the present consumer:
        self._received = seq
        self._whole: list[Recorded] = []  # to be handed over
        self._open: list[Recorded] = []  # of a batch that is not complete yet
        self._open_batch: bytes | None = None  # its id
        self._asked = 0  # messages still to come of what was asked for
        self._heard_at = 0.0
        self._looked_at = 0.0
        self._received_then = seq  # and what was received, and what was there, at that look
        self._there_then = 0
        self._lost = ""
        self._error: LedgerDamaged | None = None

    def wake(self) -> None:
        """Has it look again at what is wanted of it."""
        if self._changed is not None:
            self._changed.set()

    async def run(self, nc: Client) -> None:
        """Follows the stream until the taker is stopped. Raises LedgerDamaged."""
        self._changed = asyncio.Event()
        pause = PAUSE_S
        doubts = 0
        while not self._taker.is_stopped():
            before = self._passed_on
            damage: LedgerDamaged | None = None
            try:
                await self._follow(nc, self._changed)
            except _LOST as error:
                self._lost = reason(error)
            except LedgerDamaged as error:
                damage, self._lost = error, str(error)
            if self._taker.is_stopped():
                return
            moved = self._passed_on > before
            pause = PAUSE_S if moved else min(pause * 2, PAUSE_MAX_S)
            doubts = 0 if damage is None or moved else doubts
            if damage is not None:
                doubts += 1
                if doubts == DOUBTS_MAX:
                    raise damage
            level = logging.INFO if damage is None else logging.WARNING
            log.log(level, "following %s again: %s", self._stream, self._lost)
            await asyncio.sleep(pause)

    async def _follow(self, nc: Client, changed: asyncio.Event) -> None:
        """One consumer's life. Returns when it is lost or not wanted any more."""
        self._received = self._passed_on
        self._whole, self._open = [], []
        self._asked = 0
        self._lost = ""
        self._error = None
        name = NUID().next().decode()
        inbox = nc.new_inbox()
        reconnects = nc.stats["reconnects"]
        incoming = await subscribe_in_bulk(nc, inbox, self._on_messages, self._read)
        try:
            await self._recognise(nc)
            await self._create(nc, name)
            self._heard_at = self._looked_at = time.monotonic()
            self._received_then, self._there_then = self._received, 0
            while not self._taker.is_stopped():
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
                elif await self._stands_still(nc):
                    self._lost = f"sequence {self._received + 1} is there and does not come"
                if self._lost:
                    await self._check_gap(nc)
                    return
        finally:
            with contextlib.suppress(*NATS_FAILURES):
                await incoming.unsubscribe()
                await nc.publish(f"$JS.API.CONSUMER.DELETE.{self._stream}.{name}")

    async def _recognise(self, nc: Client) -> None:
        """Raises LedgerDamaged unless the stream still has the event that was handed over last."""
        if not self._passed_on_digest:
            return
        answer = await call(
            nc,
            f"STREAM.MSG.GET.{self._stream}",
            {"seq": self._passed_on},
            timeout=CALL_TIMEOUT_S,
        )
        if "error" in answer and not outcome.absent(answer):
            raise StoreUnavailable(f"{self._stream}: {answer['error'].get('description')}")
        found = unpack_stored(answer["message"]).digest if "message" in answer else None
        if found != self._passed_on_digest:
            raise LedgerDamaged(
                f"stream {self._stream} has {'another event' if found else 'none'} at sequence "
                f"{self._passed_on}, which was read before: it went back in time; restore it from "
                "a backup or a replica"
            )

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
        self.starved = not self._taker.has_room
        if not self._asked:
            self._heard_at = time.monotonic()  # nothing was due
        while not self.starved and self._asked <= REQUEST_EVENTS:
            self._asked += REQUEST_EVENTS
            await nc.publish(
                f"$JS.API.CONSUMER.MSG.NEXT.{self._stream}.{name}", _REQUEST, reply=inbox
            )

    def _read(self, data: bytes, place: int, sid: bytes) -> tuple[int, int]:
        """Takes the events that begin there, as nearly all that comes; `infra.bulk.Read`."""
        found, behind = read_in_bulk(data, place, sid)
        if found:
            self._heard_at = time.monotonic()
            self._on_events(found)
            if self._whole or self._asked <= REQUEST_EVENTS:
                self.wake()
        return len(found), behind

    def _on_messages(self, messages: Sequence[Delivered]) -> None:
        self._heard_at = time.monotonic()
        for message in messages:
            if self._lost or self._error is not None:
                return
            if message.reply:
                self._on_event(message)
            else:
                self._on_status(*status_of(message.headers))
        if self._whole or self._asked <= REQUEST_EVENTS:
            self.wake()

    def _on_event(self, message: Delivered) -> None:
        try:
            event = unpack_in_bulk(message)
        except (LedgerDamaged, ValueError) as error:
            self._error = LedgerDamaged(f"following {self._stream}: {error}")
            self.wake()
            return
        headers = message.headers
        self._on_events([(event, batch_of(headers), is_unfinished(headers))])

    def _on_events(self, events: Sequence[Placed]) -> None:
        for event, batch, unfinished in events:
            if self._lost or self._error is not None:
                return
            self._asked -= 1
            if event.seq != self._received + 1:
                if event.seq > self._received:
                    self._lost = f"sequence {self._received + 1} did not come"
                    self.wake()
                continue
            self._received = event.seq
            if self._open:
                if batch != self._open_batch:
                    self._error = LedgerDamaged(
                        f"following {self._stream}: the batch before sequence {event.seq} has no "
                        "commit, and other messages follow it: events are missing; restore it "
                        "from a backup"
                    )
                    self.wake()
                    return
                self._open.append(event)
                if not unfinished:
                    self._whole += self._open
                    self._open = []
            elif unfinished:
                self._open.append(event)
                self._open_batch = batch
            else:
                self._whole.append(event)

    def _on_status(self, status: str, said: str, headers: Mapping[str, str]) -> None:
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
            self._taker.hand_over(whole)
            self._passed_on, self._passed_on_digest = whole[-1].seq, whole[-1].digest

    async def _stands_still(self, nc: Client) -> bool:
        """Whether nothing has come since the last look, and the stream had something then."""
        now = time.monotonic()
        if not self._asked or now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        if self._received > self._received_then:
            self._received_then, self._there_then = self._received, 0
            return False
        if self._there_then > self._received:
            return True
        with contextlib.suppress(StoreUnavailable):  # no leader for now: no reason to begin anew
            self._there_then = await self._last_seq(nc)
        return False

    async def _last_seq(self, nc: Client) -> int:
        """The stream's last sequence, as its leader has it."""
        info = await call(nc, f"STREAM.INFO.{self._stream}", {}, timeout=CALL_TIMEOUT_S)
        last: int = info.get("state", {}).get("last_seq", 0)
        return last

    async def _check_gap(self, nc: Client) -> None:
        """Raises LedgerDamaged when the stream has no message at a sequence that did not come."""
        missing = self._received + 1
        # In this order: what comes between the two answers is no gap.
        if await self._last_seq(nc) <= missing:
            return
        answer = await call(
            nc, f"STREAM.MSG.GET.{self._stream}", {"seq": missing}, timeout=CALL_TIMEOUT_S
        )
        if outcome.absent(answer):
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
