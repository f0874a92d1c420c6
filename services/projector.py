"""The projector: follows the ledger and folds it into a view's tables, in a thread of its own.

One for every view that is kept in a file: the analytics tables, the directory. Each batch is rows
and tracking in one transaction, so that a restart goes on exactly behind what is in the tables. A
store or a disk that fails for a while is tried again; an event that cannot be understood stops the
projector in front of it, in a state that says why, and nothing behind it is lost: a release that
understands it goes on from there.

A thread of its own reads events, folds and writes them, beside the event loop that hears of them.
A second one that read ahead bought nothing: all but DuckDB's part waits for Python's lock.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, Protocol

from eventsourcing.persistence import OperationalError, Tracking
from nats.aio.client import Client

from infra.jetstream import outcome
from infra.jetstream.envelope import Recorded, unpack_stored
from infra.jetstream.errors import LedgerDamaged, StoreUnavailable
from infra.jetstream.feed import Feed
from infra.jetstream.topology import Topology, call

log = logging.getLogger(__name__)

BATCH_EVENTS: Final = 20_000
BACKLOG_EVENTS_MAX: Final = 22_000
"""So many are asked for while a batch is written, which hardly needs Python: hearing of them then
does not keep the next batch from being folded."""

RETRY_S: Final = 1.0

SWITCH_S: Final = 0.0002
"""How long a thread of a process with a projector may keep Python from the others. The projector's
hardly ever waits, and an answer gives way a dozen times: by Python's own 5 ms it would take 60."""


class State(StrEnum):
    """`stopped`: for a reason that only an operator or another release can remove."""

    FOLLOWING = "following"
    RETRYING = "retrying"
    STOPPED = "stopped"


@dataclass(slots=True)
class Progress:
    """How far the projector is. Written by its thread, read by others."""

    state: State = State.FOLLOWING
    reason: str | None = None
    positions: dict[int, int] = field(default_factory=dict)
    """The stream sequence of the last event in the tables, by partition."""
    events: int = 0
    batches: int = 0
    lag_ms: int | None = None
    """How long after it was stored the last event of the last batch was in the tables."""

    def told(self) -> dict[str, Any]:
        """What its service says of it in `$SRV.STATS`."""
        return {
            "state": self.state.value,
            "reason": self.reason,
            "positions": {str(each): seq for each, seq in self.positions.items()},
            "events": self.events,
            "lag_ms": self.lag_ms,
        }


class Target(Protocol):
    """Tables that a projector fills: rows and their tracking commit together."""

    name: str
    """What it is called in the log."""
    remedy: str
    """How an operator has the tables built anew."""

    def positions(self) -> dict[str, int]:
        """The sequence of the last event in the tables, by the name of its stream."""

    def hash_at(self, partition: int, seq: int) -> str | None:
        """The hash of the event that was the last one in the tables; None where it is not known."""

    def fold(self, partition: int, events: Sequence[Recorded]) -> Callable[[Tracking], None]:
        """Takes in a batch of events; returns what writes it with its tracking, all or nothing.

        Both raise OperationalError where trying again may help, and any other exception for a batch
        that cannot be understood or written.
        """

    def forget(self) -> None:
        """Drops what it has in memory: the last batch was not written."""

    def rest(self) -> None:
        """Does what would be in the way while something is waiting: nothing is. Never raises."""


class Projector:
    """Fills one target's tables. `changed` is called in the projector's thread at each progress.

    `until`: the sequence in each partition behind which it takes nothing any more (a rebuild).
    """

    def __init__(
        self,
        target: Target,
        topology: Topology,
        *,
        changed: Callable[[], None],
        until: dict[int, int] | None = None,
    ) -> None:
        self.target = target
        self.topology = topology
        self.progress = Progress()
        found = target.positions()
        for partition in range(topology.partitions):
            self.progress.positions[partition] = found.get(topology.stream_name(partition), 0)
        self.until = until
        self._changed = changed
        self._arrived: queue.SimpleQueue[tuple[int, Sequence[Recorded]] | None] = (
            queue.SimpleQueue()
        )
        self._heard = 0  # counted on the event loop alone, `_done` in the thread alone
        self._done = 0
        self._folded = 0  # the same, but they need not be written yet
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="projector", daemon=True)
        self._begin()

    def take(self, partition: int, events: Sequence[Recorded]) -> None:
        """Hears of further events of a partition, oldest first; they may overlap those before."""
        self._heard += len(events)
        self._arrived.put((partition, events))

    @property
    def has_room(self) -> bool:
        """Whether it keeps up with what it is given."""
        return self._heard - self._folded < BACKLOG_EVENTS_MAX

    def fail(self, error: Exception) -> None:
        """Stops for a reason found outside: the ledger is damaged, or is another one."""
        self._enter(State.STOPPED, str(error))

    def close(self) -> None:
        """Finishes the batch at hand, and ends the thread."""
        self._stopping.set()
        self._arrived.put(None)
        self._thread.join()

    def _begin(self) -> None:
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        self._thread.start()

    # -- in the thread -------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            for partition, events in self._gather().items():
                self._carry_out(partition, events)
            if self._done == self._heard:
                self.target.rest()

    def _carry_out(self, partition: int, events: Sequence[Recorded]) -> None:
        try:
            if self.progress.state is not State.STOPPED:
                self._project(partition, events)
        except Exception as error:  # noqa: BLE001 (surfaces as the state, never skipped)
            self._stop(partition, error)
        self._done += len(events)
        self._folded = self._done
        self._changed()

    def _gather(self) -> dict[int, list[Recorded]]:
        """Waits for events; returns all that have come by then too, up to a batch."""
        gathered: dict[int, list[Recorded]] = {}
        count = 0
        while (item := self._arrived.get()) is not None:
            partition, events = item
            gathered.setdefault(partition, []).extend(events)
            count += len(events)
            if count >= min(BATCH_EVENTS, self._heard - self._done):
                break
        return gathered

    def _project(self, partition: int, events: Sequence[Recorded]) -> None:
        position = self.progress.positions[partition]
        end = sys.maxsize if self.until is None else self.until[partition]
        fresh = [event for event in events if position < event.seq <= end]
        for event in fresh:
            seq = event.seq
            if seq != position + 1:
                raise LedgerDamaged(
                    f"{self.topology.stream_name(partition)} has no sequence {position + 1}: "
                    f"{seq} follows {position}"
                )
            position = seq
        if fresh:
            self._write(partition, fresh)

    def _write(self, partition: int, events: Sequence[Recorded]) -> None:
        """Writes events as one batch; in parts when one of them cannot be written, so that all in
        front of that one are."""
        while not self._stopping.is_set():
            try:
                self._write_batch(partition, events)
                return
            except OperationalError as error:
                self.target.forget()
                self._enter(State.RETRYING, str(error))
                self._stopping.wait(RETRY_S)
            except Exception as error:
                self.target.forget()
                if len(events) == 1:
                    raise CannotProject(events[0], error) from error
                half = len(events) // 2
                self._write(partition, events[:half])
                self._write(partition, events[half:])
                return

    def _write_batch(self, partition: int, events: Sequence[Recorded]) -> None:
        stream = self.topology.stream_name(partition)
        last = events[-1]
        write = self.target.fold(partition, events)
        if not self.has_room:
            self._folded = self._done + len(events)
            self._changed()
        write(Tracking(stream, last.seq))
        progress = self.progress
        progress.positions[partition] = last.seq
        progress.events += len(events)
        progress.batches += 1
        progress.lag_ms = _age_ms(last)
        if progress.state is State.RETRYING:
            self._enter(State.FOLLOWING, None)

    def _stop(self, partition: int, error: Exception) -> None:
        stream = self.topology.stream_name(partition)
        position = self.progress.positions[partition]
        self._enter(State.STOPPED, f"{stream} behind sequence {position}: {error}")

    def _enter(self, state: State, reason: str | None) -> None:
        if (state, reason) != (self.progress.state, self.progress.reason):
            log.log(
                logging.INFO if state is State.FOLLOWING else logging.ERROR,
                "%s projection %s%s",
                self.target.name,
                state.value,
                f": {reason}" if reason else "",
            )
        self.progress.state = state
        self.progress.reason = reason
        self._changed()


class CannotProject(Exception):
    """One event cannot be folded or written; the message names it and says what to do."""

    def __init__(self, event: Recorded, error: Exception) -> None:
        super().__init__(
            f"event {event.version} of {event.subject} ({event.topic}) at sequence {event.seq}: "
            f"{error}"
        )


def _age_ms(event: Recorded) -> int:
    """How long ago the store took the event."""
    age = datetime.now(UTC) - datetime.fromisoformat(event.time)
    return max(0, int(age.total_seconds() * 1000))


class _Intake:
    """What the feed of one partition hands over to."""

    def __init__(self, projector: Projector, partition: int) -> None:
        self._projector = projector
        self._partition = partition
        self.stopped = False

    def is_stopped(self) -> bool:
        return self.stopped

    @property
    def has_room(self) -> bool:
        return self._projector.has_room

    def hand_over(self, events: Sequence[Recorded]) -> None:
        self._projector.take(self._partition, events)


class Following:
    """Feeds a projector from every partition's stream, until closed."""

    def __init__(self, nc: Client, projector: Projector) -> None:
        self._nc = nc
        self._projector = projector
        self._intakes: list[_Intake] = []
        self._feeds: list[Feed] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Follows each stream behind the projector's position.

        A stream that is not the one that the tables were made of stops the projector. Raises
        StoreUnavailable.
        """
        loop = asyncio.get_running_loop()
        for partition, seq in self._projector.progress.positions.items():
            stream = self._projector.topology.stream_name(partition)
            try:
                await self._recognise(partition, stream, seq)
            except LedgerDamaged as error:
                self._projector.fail(error)
                return
            intake = _Intake(self._projector, partition)
            feed = Feed(intake, stream, seq)
            self._intakes.append(intake)
            self._feeds.append(feed)
            self._tasks.append(loop.create_task(self._follow(feed)))

    def wake(self) -> None:
        """Has feeds go on that were waiting for room."""
        for feed in self._feeds:
            if feed.starved:
                feed.wake()

    async def close(self) -> None:
        """Stops asking for events."""
        for intake in self._intakes:
            intake.stopped = True
        for feed in self._feeds:
            feed.wake()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _follow(self, feed: Feed) -> None:
        try:
            await feed.run(self._nc)
        except Exception as error:  # noqa: BLE001 (surfaces as the projector's state)
            self._projector.fail(error)

    async def _recognise(self, partition: int, stream: str, seq: int) -> None:
        """Raises LedgerDamaged unless the stream still has the event that was projected last."""
        if not seq:
            return
        answer = await call(self._nc, f"STREAM.MSG.GET.{stream}", {"seq": seq})
        if "error" in answer and not outcome.absent(answer):
            raise StoreUnavailable(f"{stream}: {answer['error'].get('description')}")
        found = unpack_stored(answer["message"]).digest if "message" in answer else None
        if found != self._projector.target.hash_at(partition, seq):
            raise LedgerDamaged(
                f"the tables hold sequence {seq} of {stream}, and the ledger has "
                f"{'another event' if found else 'none'} there: it was replaced or is damaged. "
                f"If it is the right one, {self._projector.target.remedy}"
            )


async def heads(nc: Client, topology: Topology) -> dict[int, int]:
    """The last sequence of each partition's stream now. Raises StoreUnavailable."""
    found = {}
    for partition in range(topology.partitions):
        stream = topology.stream_name(partition)
        answer: dict[str, Any] = await call(nc, f"STREAM.INFO.{stream}", {})
        if "error" in answer:
            raise StoreUnavailable(f"{stream}: {answer['error'].get('description')}")
        found[partition] = answer["state"]["last_seq"]
    return found
