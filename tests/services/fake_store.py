"""A store in memory whose every answer waits until a test lets it go, in any order it may take.

It keeps the promises of `infra.jetstream` (compare-and-set on each subject, writes of one tail in
the order they were handed over, a failed one breaks its tail) and no others: neighbours overtake
each other, reads come late, and replicas may lag.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from random import Random
from typing import Any, Literal, TypeVar, cast

from eventsourcing.persistence import StoredEvent

from domain.conversation import Conversation, evolve
from domain.events import ConversationEvent
from domain.identity import ConversationId
from domain.mapper import ConversationMapper
from domain.rules import CommandContext, Limits, decide
from infra.jetstream.committer import Write
from infra.jetstream.envelope import Recorded, Tail, chain
from infra.jetstream.errors import Conflict, OutcomeUnknown, StoreUnavailable, TooLarge
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology
from projections.state import ConversationView

Fate = Literal["stored", "unavailable", "too large", "unknown, stored", "unknown, lost"]
T = TypeVar("T")

MAPPER = ConversationMapper()


class FakeStore:
    """`patient`: reads wait until `let_go`; else they answer at once.

    `lag`: how many of a subject's last events a read that is not the leader's may miss.
    `failing`: the part of the reads that fail.
    """

    def __init__(
        self, random: Random, *, patient: bool, lag: int = 0, failing: float = 0.0
    ) -> None:
        self.topology = Topology(stream="S", prefix="evt", originator_tokens=2)
        self.log: dict[str, list[Recorded]] = defaultdict(list)
        self.seq = 0
        self.handed: list[Write] = []
        self.waiting: list[asyncio.Future[None]] = []
        self.saved: dict[str, bytes] = {}
        self.patient = patient
        self.failing = failing
        self.reads = 0
        self._random = random
        self._lag = lag

    def wrote(self, block: bytes) -> bool:
        return False  # it writes under no id

    async def from_any_copy(self, read: Callable[[], Awaitable[T]]) -> T:
        return await read()

    @property
    def as_store(self) -> Store:
        return cast("Store", self)

    @property
    def reader(self) -> Any:
        return self

    @property
    def snapshots(self) -> Any:
        return _Snapshots(self)

    # -- what conversations ask of a store -------------------------------------------------------

    def submit(self, write: Write) -> None:
        assert write.messages
        self.handed.append(write)

    async def last(self, key: str, *, leader: bool = False) -> Recorded | None:
        events = await self._answered(lambda: self._seen(key, leader=leader))
        return events[-1] if events else None

    async def read(self, key: str, *, from_seq: int = 1, through: int = 0) -> list[Recorded]:
        events = await self._answered(lambda: self._seen(key))
        if through and (not events or events[-1].seq < through):
            events = self._seen(key, leader=True)
        return [event for event in events if event.seq >= from_seq]

    async def read_up_to(
        self, key: str, last: Recorded, *, version: int = 1, seq: int = 1
    ) -> list[Recorded]:
        return await self.read(key, from_seq=seq, through=last.seq)

    async def locate_version(self, key: str, version: int, *, last: Recorded) -> Recorded | None:
        events = await self._answered(lambda: self._seen(key, leader=True))
        return next((event for event in events if event.version >= version), None)

    async def read_page(
        self, key: str, from_seq: int, limit: int, *, through: int = 0
    ) -> tuple[list[Recorded], int]:
        events = await self._answered(lambda: self._seen(key, leader=True))
        behind = [event for event in events if event.seq >= from_seq]
        return behind[:limit], len(behind[limit:])

    def stream_of(self, key: str) -> str:
        return self.topology.stream_name(0)

    async def pages(
        self, stream: str, subject: str, seq: int = 1, *, through: int = 0
    ) -> AsyncIterator[list[Recorded]]:
        events = await self.read(self.topology.originator(subject), from_seq=seq)
        for start in range(0, len(events), 7):
            yield events[start : start + 7]

    def _seen(self, key: str, *, leader: bool = False) -> list[Recorded]:
        events = self.log[key]
        missing = 0 if leader else self._random.randint(0, self._lag)
        return events[: len(events) - missing]

    async def _answered(self, read: Callable[[], T]) -> T:
        self.reads += 1
        early = read() if self._random.random() < 0.5 else None
        if self.patient:
            turn = asyncio.get_running_loop().create_future()
            self.waiting.append(turn)
            await turn
        else:
            await asyncio.sleep(0)
        if self._random.random() < self.failing:
            raise StoreUnavailable("made up: nobody answered")
        return read() if early is None else early

    # -- what a test lets happen -----------------------------------------------------------------

    def let_go(self) -> None:
        """Lets one read be answered."""
        if self.waiting:
            self.waiting.pop(self._random.randrange(len(self.waiting))).set_result(None)

    def may_settle(self) -> list[Write]:
        """The writes that come first on each of their tails."""
        first: dict[Tail, Write] = {}
        for write in self.handed:
            for message in write.messages:
                first.setdefault(message.tail, write)
        return [
            write
            for write in self.handed
            if all(first[message.tail] is write for message in write.messages)
        ]

    def settle(self, write: Write, fate: Fate = "stored") -> None:
        """Lets a write meet its fate, or a conflict where that is its fate anyway."""
        self.handed.remove(write)
        tail = write.messages[0].tail
        key = self.topology.originator(tail.subject)
        stands_at = self.log[key][-1].seq if self.log[key] else 0
        if tail.broken or stands_at != tail.seq:
            self._fail(write, Conflict(tail.subject, tail.seq))
            return
        match fate:
            case "unavailable":
                self._fail(write, StoreUnavailable("made up: not taken"))
            case "too large":
                self._fail(write, TooLarge("made up: too large"))
            case "unknown, lost":
                self._fail(write, OutcomeUnknown("made up: no answer"))
            case "unknown, stored":
                self._store(key, write)
                self._fail(write, OutcomeUnknown("made up: no answer"))
            case "stored":
                first = self.seq + 1
                self._store(key, write)
                write.seqs = range(first, self.seq + 1)
                tail.seq = self.seq
                tail.stored = write.messages[-1].digest
                write.on_done(write)

    def settle_all(self) -> None:
        """Lets everything be stored, and what is handed over as that is told."""
        while ready := self.may_settle():
            self.settle(ready[0])

    def store_untold(self, write: Write) -> None:
        """Stores a write of which nobody hears before `tell`."""
        self.handed.remove(write)
        first = self.seq + 1
        self._store(self.topology.originator(write.messages[0].tail.subject), write)
        write.seqs = range(first, self.seq + 1)

    def tell(self, write: Write) -> None:
        """Reports a write that was stored untold."""
        tail = write.messages[-1].tail
        tail.seq, tail.stored = write.seqs[-1], write.messages[-1].digest
        write.on_done(write)

    def _store(self, key: str, write: Write) -> None:
        for message in write.messages:
            self._record(key, message.topic, message.version, message.digest, message.body)

    def _record(self, key: str, topic: str, version: int, digest: bytes, body: bytes) -> None:
        self.seq += 1
        self.log[key].append(
            Recorded(
                self.seq, self.topology.subject(key), topic, version, digest.hex(), "then", body
            )
        )

    def _fail(self, write: Write, error: Exception) -> None:
        write.error = error
        for message in write.messages:
            message.tail.broken = True
        write.on_done(write)

    def rival(self, id: ConversationId, command: Any, context: CommandContext) -> None:
        """Somebody else carries out a command, all at once; a refusal is raised."""
        decision = decide(self.conversation(id.key), id, command, context, Limits())
        for event in decision.events:
            stored = MAPPER.to_stored_event(event)
            last = self.log[id.key][-1:]
            digest = chain(bytes.fromhex(last[0].digest) if last else bytes(32), stored.state)
            self._record(id.key, stored.topic, stored.originator_version, digest, stored.state)

    # -- what is there, folded without the service -----------------------------------------------

    def events(self, key: str, version: int | None = None) -> list[ConversationEvent]:
        """The events up to a version, all of them for None."""
        return [
            MAPPER.to_domain_event(StoredEvent(key, each.version, each.topic, each.body))
            for each in self.log[key][:version]
        ]

    def conversation(self, key: str, version: int | None = None) -> Conversation | None:
        conversation: Conversation | None = None
        for event in self.events(key, version):
            conversation = evolve(conversation, event)
        return conversation

    def view(self, key: str, window_size: int, version: int | None = None) -> ConversationView:
        view = ConversationView.empty(window_size)
        for event, recorded in zip(self.events(key, version), self.log[key], strict=False):
            view.apply(event, recorded.seq)
        return view


class _Snapshots:
    def __init__(self, store: FakeStore) -> None:
        self._store = store

    async def save(self, key: str, body: bytes) -> bool:
        await self._store._answered(lambda: None)
        self._store.saved[key] = body
        return True

    async def load(self, key: str) -> bytes | None:
        return await self._store._answered(lambda: self._store.saved.get(key))
