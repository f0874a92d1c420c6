"""Checking a whole partition: every sequence, every conversation's chain, every checkpoint.

One pass over the stream beside one over the notary's records, in bounded memory. What is found is
a list of faults, each a plain object whose `kind` says what it is about:

- `sequence`: {from_seq, to_seq}: the stream lacks these, which no ledger ever does;
- `chain`: {conversation, version, seq, problem, expected, found}: the first bad event of a
  conversation (see `infra.jetstream.chain.Fault`);
- `batch`: {from_seq, to_seq, problem}: what was written all or nothing is not there as a whole;
- `checkpoint`: {number?, record_seq, problem, after_seq?, up_to_seq?}: a checkpoint that the events
  no longer fit, which narrows it down to those between; or one that was not made when it says;
- `key`: {record_seq?, problem}: a key that nobody vouches for.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from nats.aio.client import Client

from infra.jetstream.chain import Fault, entry_of
from infra.jetstream.envelope import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE
from infra.jetstream.heads import Heads
from infra.jetstream.scan import Stored, scan
from infra.jetstream.topology import Topology
from infra.notary.checkpoint import (
    NO_PREVIOUS,
    Checkpoint,
    KeyHistory,
    note_digest,
    origin,
)
from infra.notary.merkle import Frontier, leaf_hash
from infra.notary.notes import NoteRefused, PublicKey
from infra.pace import Pace
from services.notary import KEYS, checkpoints_subject, last_seq_of, records
from services.verification import follow_conversation

FAULTS_MAX = 100
"""So many faults are listed; all of them are counted."""

SLICE = 500
"""Events that are read at once, however slow the pace."""

Progress = Callable[[int, int], None]
"""Hears how many events of how many have been checked."""


@dataclass(slots=True)
class PartitionCheck:
    """What was found in one partition. `covered` is the last sequence that a checkpoint proves."""

    partition: int
    stream: str
    events: int = 0
    last_seq: int = 0
    conversations: int = 0
    checkpoints: int = 0
    covered: int = 0
    root: str = ""
    keys: list[str] = field(default_factory=list)
    fault_count: int = 0
    faults: list[dict[str, Any]] = field(default_factory=list)

    @property
    def valid(self) -> bool:
        """Whether there is no fault at all."""
        return self.fault_count == 0

    def blame(self, kind: str, **facts: Any) -> None:
        """Adds a fault."""
        self.fault_count += 1
        if len(self.faults) < FAULTS_MAX:
            self.faults.append({"kind": kind, **facts})

    @property
    def first_bad_seq(self) -> int | None:
        """The first sequence that a fault names; None when there is none."""
        places = [fault.get("seq") or fault.get("from_seq") for fault in self.faults]
        return min(filter(None, places), default=None)

    def report(self) -> dict[str, Any]:
        """The same as a plain object."""
        return {
            "valid": self.valid,
            "partition": self.partition,
            "stream": self.stream,
            "events": self.events,
            "last_seq": self.last_seq,
            "conversations": self.conversations,
            "checkpoints": self.checkpoints,
            "covered_seq": self.covered,
            "root": self.root,
            "keys": self.keys,
            "fault_count": self.fault_count,
            "faults": self.faults,
        }


async def check_partition(
    nc: Client,
    topology: Topology,
    partition: int,
    *,
    pinned: PublicKey | None = None,
    progress: Progress | None = None,
    pace: Pace | None = None,
) -> PartitionCheck:
    """Checks a partition as it is when this begins, no faster than `pace`.

    Raises StoreUnavailable.
    """
    found = PartitionCheck(partition, topology.stream_name(partition))
    total = await last_seq_of(nc, found.stream)
    statements = _Statements(nc, found, KeyHistory(pinned))
    with Heads() as heads:
        async with aclosing(statements.believed()) as believed:
            tree = _Tree(found, believed)
            await tree.look_ahead()
            batches = _Batches(found)
            async with aclosing(scan(nc, found.stream)) as blocks:
                async for block in blocks:
                    for number, stored in enumerate(block, start=1):
                        if stored.seq > total:
                            break
                        _check_chain(stored, heads, found)
                        batches.take(stored)
                        if tree.take(stored):
                            await tree.compare(stored)
                        if pace is not None and (number % SLICE == 0 or number == len(block)):
                            part = block[(number - 1) // SLICE * SLICE : number]
                            await pace.took(len(part), sum(len(each.body) for each in part))
                    if progress is not None:
                        progress(found.events, total)
                    if block[-1].seq >= total:
                        break
            found.conversations = heads.count
            if found.last_seq < total:
                found.blame("sequence", from_seq=found.last_seq + 1, to_seq=total)
            end = await last_seq_of(nc, found.stream)
            batches.finish(end)
            await tree.finish(end)
    found.root = tree.root
    if not statements.keys.is_anchored:
        found.blame("key", problem="the key that was given is none of this ledger's")
    found.keys = [key.line for key in statements.keys.keys]
    return found


class _Batches:
    """What was written as an atomic batch (ADR-50) has to lie there from its first message to the
    one that commits it, without another one in between."""

    def __init__(self, found: PartitionCheck) -> None:
        self._found = found
        self._id = ""
        self._from_seq = 0
        self._last = 0
        self._last_seq = 0

    def take(self, stored: Stored) -> None:
        """Takes in the next message."""
        headers = stored.headers
        id = headers.get(BATCH_ID, "")
        if self._id and id != self._id:
            self._blame("its end is missing")
        if not id:
            return
        number = headers.get(BATCH_SEQUENCE, "")
        if not self._id:
            self._id, self._from_seq, self._last = id, stored.seq, 0
        self._last_seq = stored.seq
        if number != str(self._last + 1):
            self._blame(f"message {self._last + 1} of it is missing, {number} comes next")
            self._id, self._from_seq = id, stored.seq
        self._last = int(number) if number.isdigit() else 0
        if BATCH_COMMIT in headers:
            self._id = ""

    def finish(self, end: int) -> None:
        """Ends with the check; `end`: the last sequence now. A batch whose end has come meanwhile
        is for the next check."""
        if self._id and end <= self._last_seq:
            self._blame("it was never committed")

    def _blame(self, problem: str) -> None:
        self._found.blame("batch", from_seq=self._from_seq, to_seq=self._last_seq, problem=problem)
        self._id = ""


def _check_chain(stored: Stored, heads: Heads, found: PartitionCheck) -> None:
    found.events += 1
    link = heads.get(stored.subject)
    if link is None:
        return  # its first bad event has been told
    following = follow_conversation(link, stored)
    if isinstance(following, Fault):
        heads.set(stored.subject, None)
        conversation = stored.subject.split(".", 3)[-1]
        found.blame("chain", conversation=conversation, **following._asdict())
    else:
        heads.set(stored.subject, following)


class _Tree:
    """The tree over the stream as it is read, beside the checkpoints that speak of it."""

    def __init__(
        self, found: PartitionCheck, believed: AsyncGenerator[tuple[int, Checkpoint], None]
    ) -> None:
        self._found = found
        self._believed = believed
        self._frontier = Frontier()
        self._due = 0  # the size that the next checkpoint speaks of; 0: there is none
        self._next: tuple[int, Checkpoint] | None = None
        self._origin = ""
        self._is_whole = True

    @property
    def root(self) -> str:
        """The root over everything, empty where sequences are missing."""
        return self._frontier.root().hex() if self._is_whole else ""

    async def look_ahead(self) -> None:
        """Takes the next checkpoint in view."""
        self._next = await anext(self._believed, None)
        self._due = 0 if self._next is None else self._next[1].size

    def take(self, stored: Stored) -> bool:
        """Takes in the next message; True when the next checkpoint speaks of what is there now."""
        expected = self._found.last_seq + 1
        self._found.last_seq = stored.seq
        if stored.seq != expected:
            self._found.blame("sequence", from_seq=expected, to_seq=stored.seq - 1)
            self._is_whole = False
        if not self._is_whole:
            return self._due != 0 and stored.seq >= self._due
        leaf = leaf_hash(entry_of(stored))
        if stored.seq == 1:
            self._origin = origin(self._found.stream, leaf)
        self._frontier.append(leaf)
        return stored.seq == self._due

    async def compare(self, stored: Stored) -> None:
        """Holds the checkpoints that are due against the tree."""
        while self._next is not None and self._due <= stored.seq:
            record_seq, checkpoint = self._next
            if not self._is_whole:
                self._blame(record_seq, checkpoint, "events that it counted are missing")
            elif checkpoint.origin != self._origin:
                self._blame(record_seq, checkpoint, "it was made of another stream")
            elif checkpoint.root != self._frontier.root():
                self._blame(record_seq, checkpoint, "the events are not those that it was made of")
            else:
                self._found.covered = checkpoint.size
                self._found.checkpoints += 1
            await self.look_ahead()

    async def finish(self, end: int) -> None:
        """Tells of the checkpoints that speak of more than there is; `end`: the last sequence now.

        What was stored and signed while the check was under way is for the next one.
        """
        while self._next is not None and self._due > end:
            record_seq, checkpoint = self._next
            self._blame(
                record_seq,
                checkpoint,
                f"it counted {checkpoint.size} events, the stream ends at {end}",
            )
            await self.look_ahead()

    def _blame(self, record_seq: int, checkpoint: Checkpoint, problem: str) -> None:
        self._found.blame(
            "checkpoint",
            number=checkpoint.number,
            record_seq=record_seq,
            problem=problem,
            after_seq=self._found.covered,
            up_to_seq=checkpoint.size,
        )


class _Statements:
    """The notary's records about one partition, with the keys that vouch for them."""

    def __init__(self, nc: Client, found: PartitionCheck, keys: KeyHistory) -> None:
        self._nc = nc
        self._found = found
        self.keys = keys
        self._last: Checkpoint | None = None
        self._last_digest = NO_PREVIOUS

    async def believed(self) -> AsyncGenerator[tuple[int, Checkpoint], None]:
        """Yields (record sequence, checkpoint), in order; tells of those that it cannot believe."""
        mine = checkpoints_subject(self._found.partition)
        async with aclosing(records(self._nc)) as found:
            async for record in found:
                note = record.body.decode(errors="replace")
                if record.subject == KEYS:
                    self._introduce(record.seq, note)
                elif record.subject == mine:
                    checkpoint = self._read(record.seq, note)
                    if checkpoint is not None:
                        yield record.seq, checkpoint

    def _introduce(self, record_seq: int, note: str) -> None:
        try:
            self.keys.take(note)
        except NoteRefused as refused:
            self._found.blame("key", record_seq=record_seq, problem=str(refused))

    def _read(self, record_seq: int, note: str) -> Checkpoint | None:
        number = 1 if self._last is None else self._last.number + 1
        try:
            if self.keys.current is None:
                raise NoteRefused("no key has been introduced before it")
            checkpoint = Checkpoint.read(note, self.keys.current)
            if checkpoint.number != number:
                raise NoteRefused(
                    f"it is checkpoint {checkpoint.number}, where {number} was due: an old one "
                    "was stored again, or one is missing"
                )
            if checkpoint.previous != self._last_digest:
                raise NoteRefused("it follows another checkpoint than the one before it")
            if self._last is not None and checkpoint.size <= self._last.size:
                raise NoteRefused("it counts no more events than the one before it")
        except NoteRefused as refused:
            self._found.blame(
                "checkpoint", number=number, record_seq=record_seq, problem=str(refused)
            )
            return None
        self._last, self._last_digest = checkpoint, note_digest(note)
        return checkpoint
