"""The store: committers, reader and snapshots of one application, over its streams.

This is the one append path and the one read path. The ledger's services use it directly on their
event loop; the recorders of the `eventsourcing` library use it through a thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
from typing import Any, TypeVar

from nats.aio.client import Client
from nats.nuid import NUID

from infra.jetstream.committer import Committer, Counters, Write
from infra.jetstream.envelope import Message, Recorded, Tail
from infra.jetstream.errors import LedgerDamaged, TooLarge
from infra.jetstream.reader import Reader
from infra.jetstream.scan import Stored
from infra.jetstream.snapshots import Snapshots
from infra.jetstream.topology import EVENT_BYTES_MAX, Topology, ensure
from infra.lean import LeanClient

log = logging.getLogger(__name__)

_T = TypeVar("_T")

COPIES_TRIED = 16
"""Reads of a replicated stream that have to meet damage, one after the other, before it counts: any
replica may answer each of them, and the copies of the others may be whole."""

NEAR = 20_000
"""Messages of a stream, two blocks of its store or so, that the server looks through in no time."""

STEPS_MAX = 50
"""Events that are rather asked for one by one than looked for in more than that."""


class Store:
    """Appends to and reads from the streams of one `Topology`.

    `streams` holds the configuration and state that each events stream had when it was opened.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        writing: LeanClient,
        reading: Client,
        streams: Sequence[dict[str, Any]],
        request_timeout: float,
        deadline: float,
        gather: float = 0.0,
    ) -> None:
        self.topology = topology
        self.streams = streams
        self.reader = Reader(reading, timeout=request_timeout)
        self.snapshots = Snapshots(reading, topology, timeout=request_timeout)
        writer = NUID().next().decode()
        self._writer = writer.encode()
        self._committers = [
            Committer(
                writing,
                topology.stream_name(partition),
                event_bytes_max=_event_bytes_max(streams[partition]),
                request_timeout=request_timeout,
                deadline=deadline,
                gather=gather,
                writer=writer,
            )
            for partition in range(topology.partitions)
        ]

    @classmethod
    async def open(
        cls,
        topology: Topology,
        *,
        writing: LeanClient,
        reading: Client,
        request_timeout: float | None = None,
        deadline: float = 30.0,
        gather: float = 0.0,
    ) -> Store:
        """Creates or verifies the streams and returns the store on them.

        `writing` and `reading` should be two connections, so that a long read never delays a
        commit. `request_timeout` (s) defaults to 2 on one replica and 5 on more. `gather`: see
        `committer.Committer`. Raises StreamMismatch, StoreUnavailable.
        """
        streams = await ensure(writing, topology)
        replicas = max(stream["config"].get("num_replicas", 1) for stream in streams)
        return cls(
            topology,
            writing=writing,
            reading=reading,
            streams=streams,
            request_timeout=request_timeout or (2.0 if replicas == 1 else 5.0),
            deadline=deadline,
            gather=gather,
        )

    @property
    def event_bytes_max(self) -> int:
        """The largest event (headers and body, bytes) that every partition takes."""
        return min(_event_bytes_max(stream) for stream in self.streams)

    @property
    def counters(self) -> list[Counters]:
        """What each partition's committer did since it was made."""
        return [committer.counters for committer in self._committers]

    async def close(self) -> None:
        """Waits until every write handed over is done, and lets go of the connections."""
        await asyncio.gather(*(committer.idle() for committer in self._committers))
        await self.reader.close()

    def wrote(self, block: bytes) -> bool:
        """Whether the header block of an event says that it was written here."""
        return self._writer in block

    def distrust_reading(self, distrusts: bool) -> None:
        """Whether the server may show what is not on disk (it could not write): until that is over
        no write counts as stored because it can be read."""
        for committer in self._committers:
            committer.distrusts_reading = distrusts

    # -- appending -----------------------------------------------------------------------------

    def acknowledged(self, stream: str) -> Stored | None:
        """The last message of an events stream that was stored for us; its time is not told (0)."""
        for partition, committer in enumerate(self._committers):
            last = committer.last_stored
            if last is not None and self.topology.stream_name(partition) == stream:
                headers, seq = last.headers(), committer.stored_through
                return Stored(seq, last.tail.subject, headers, 0, last.body)
        return None

    def submit(self, write: Write) -> None:
        """Hands a write to the committer of its partition. See `committer.Write`."""
        partition = self.topology.partition_of_subject(write.messages[0].tail.subject)
        self._committers[partition].submit(write)

    async def append(self, messages: Sequence[Message]) -> range:
        """Stores events all or not at all; returns their stream sequences, in order.

        Raises Conflict, StoreUnavailable, StoreReadOnly, OutcomeUnknown, TooLarge (also when the
        events belong to several partitions: no transaction spans two streams).
        """
        partitions = {self.topology.partition_of_subject(m.tail.subject) for m in messages}
        if len(partitions) > 1:
            raise TooLarge(
                "these events belong to different partitions, which cannot be written together; "
                "use one partition, or write them one originator at a time"
            )
        done: asyncio.Future[Write] = asyncio.get_running_loop().create_future()

        def settle(write: Write) -> None:
            if not done.done():
                done.set_result(write)

        self.submit(Write(messages, settle))
        write = await done
        if write.error is not None:
            raise write.error
        return write.seqs

    # -- reading -------------------------------------------------------------------------------

    def stream_of(self, originator: str) -> str:
        """The name of the stream that holds this originator's events."""
        return self.topology.stream_name(self.topology.partition(originator))

    async def from_any_copy(self, read: Callable[[], Awaitable[_T]]) -> _T:
        """What `read` returns, asked again while it raises LedgerDamaged and there are replicas."""
        replicas = max(stream["config"].get("num_replicas", 1) for stream in self.streams)
        for tries in range(COPIES_TRIED if replicas > 1 else 1, 0, -1):
            try:
                return await read()
            except LedgerDamaged as error:
                if tries == 1:
                    raise
                log.warning("another copy is asked: %s", error)
        raise AssertionError("unreachable")

    async def last(self, originator: str, *, leader: bool = False) -> Recorded | None:
        """The originator's last event, None when it has none."""
        partition = self.topology.partition(originator)
        stream = self.topology.stream_name(partition)
        self.reader.heard_stored(stream, self._committers[partition].stored_through)
        return await self.reader.last(stream, self.topology.subject(originator), leader=leader)

    def tail(self, originator: str, last: Recorded | None) -> Tail:
        """The end of an originator's subject behind `last`, to append to."""
        subject = self.topology.subject(originator)
        if last is None:
            return Tail(subject)
        digest = bytes.fromhex(last.digest)
        return Tail(subject, last.seq, last.version, digest, digest)

    async def read(self, originator: str, *, from_seq: int = 1, through: int = 0) -> list[Recorded]:
        """All of an originator's events from stream sequence `from_seq` on, oldest first.

        `through` is the sequence of one that is known to be there. Raises LedgerDamaged when a
        version is missing between them.
        """
        events: list[Recorded] = []
        pages = self.reader.pages(
            self.stream_of(originator), self.topology.subject(originator), from_seq, through=through
        )
        async for page in pages:
            check_contiguous(events[-1:] + page)
            events += page
        return events

    async def read_up_to(
        self, originator: str, last: Recorded, *, version: int = 1, seq: int = 1
    ) -> list[Recorded]:
        """An originator's events from that version, which is at `seq`, through its last one, and
        further where there are more by now; oldest first.

        `seq` saves a search; whether that version is there is for the caller to see, by the first
        of what is returned. Raises LedgerDamaged when a version is missing between them.
        """
        steps = last.version - version
        if 0 < steps <= STEPS_MAX and self._is_far_to_search(last, seq):
            events = await self._back_from(originator, last, steps)
            if len(events) > steps:
                return events
        return await self.read(originator, from_seq=seq, through=last.seq)

    def _is_far_to_search(self, last: Recorded, seq: int) -> bool:
        """Whether it is quicker to ask for events one by one than to have the server look for them.

        It counts them first, in all blocks of the stream behind `seq` unless that is the first
        sequence, and a block that it has not at hand takes it 10 ms or more.
        """
        if seq <= 1:
            return last.follows > 0 and last.seq - last.follows > NEAR
        stream = self.topology.partition_of_subject(last.subject)
        begun_at: int = self.streams[stream]["state"]["last_seq"]
        end = max(begun_at, self.reader.whole(self.topology.stream_name(stream)), last.seq)
        return end - seq > NEAR

    async def _back_from(self, originator: str, last: Recorded, steps: int) -> list[Recorded]:
        """`last` and so many events before it, or fewer where one is not found; oldest first."""
        events = [last]
        for _ in range(steps):
            event = await self.reader.before(self.stream_of(originator), events[-1])
            if event is None:
                break
            events.append(event)
        events.reverse()
        check_contiguous(events)
        return events

    async def read_page(
        self, originator: str, from_seq: int, limit: int, *, through: int = 0
    ) -> tuple[list[Recorded], int]:
        """At most `limit` of an originator's events from `from_seq` on, and how many are behind.

        `through` is the sequence of one that is known to be there; see `Reader.page`.
        """
        stream, subject = self.stream_of(originator), self.topology.subject(originator)

        async def read() -> tuple[list[Recorded], int]:
            events, pending = await self.reader.page(
                stream, subject, from_seq, limit=limit, through=through
            )
            check_contiguous(events)
            return events, pending

        return await self.from_any_copy(read)

    async def locate_version(
        self, originator: str, version: int, *, last: Recorded
    ) -> Recorded | None:
        """The originator's event with at least this version; `last` is its last one."""
        if version <= 1:
            return await self.reader.first_from(
                self.stream_of(originator), self.topology.subject(originator), 1
            )
        if version >= last.version:
            return last if version == last.version else None
        return await self.reader.locate(
            self.stream_of(originator),
            self.topology.subject(originator),
            lambda event: event.version >= version,
            last_seq=last.seq,
        )


def check_contiguous(events: Sequence[Recorded]) -> None:
    """Raises LedgerDamaged unless each event's version is the one before it plus 1."""
    for before, event in pairwise(events):
        if event.version != before.version + 1:
            raise LedgerDamaged(
                f"{event.subject}: version {event.version} (stream sequence {event.seq}) follows "
                f"version {before.version} (sequence {before.seq}); an event is missing"
            )


def _event_bytes_max(stream: dict[str, Any]) -> int:
    configured = stream["config"].get("max_msg_size", -1)
    return configured if configured > 0 else EVENT_BYTES_MAX
