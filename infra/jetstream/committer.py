"""Group commit with compare-and-set: how events get onto a JetStream stream.

One committer per partition's stream. Whoever has events to write hands over a `Write`; it is all
or nothing. What waits together is committed together:

- few waiting single events go out as plain publishes, side by side, each with its own fsync
  (≈ 0.4 ms when alone);
- more than that, or a write of several events, goes out as one atomic batch (ADR-50): any number
  of writes of any subjects, one fsync, ≈ 3 ms plus 20 µs an event. While a batch is on its way
  the next one gathers. Nobody ever waits for company.

Guarantees: writes on one subject are stored in the order they were handed over, each directly
behind the one before it (`Nats-Expected-Last-Subject-Sequence` on the first event of a subject in
a batch; the server compares with the state before the batch). A write is reported stored only
after JetStream acknowledged it, or after it was found on the stream under an id that it was sent
under (`Nats-Batch-Id`, `Event-Write`; not by its hash, which an equal event of another writer has
too). When the answer does not tell (`outcome`), the subject is read through the leader; nothing is
guessed.

Not guaranteed: any order between subjects, and that a write reported as OutcomeUnknown will not
still appear: the same bytes may be sent again at any time, either copy wins, never both.

After one write on a tail failed, the tail is broken: every later write on it fails as a Conflict,
because it was decided on a state that never came to be. Writes on other subjects that shared the
batch are not harmed: they are committed again without it.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from itertools import count

from nats.errors import (
    ConnectionClosedError,
    ConnectionDrainingError,
    OutboundBufferLimitError,
)
from nats.nuid import NUID

from infra.jetstream import outcome
from infra.jetstream.costs import Costs
from infra.jetstream.envelope import (
    BATCH_COMMIT,
    BATCH_ID,
    BATCH_SEQUENCE,
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    HEADER_BYTES_MAX,
    WRITE_ID,
    Message,
    Tail,
)
from infra.jetstream.errors import (
    NATS_FAILURES,
    Conflict,
    OutcomeUnknown,
    StoreReadOnly,
    StoreUnavailable,
    TooLarge,
)
from infra.jetstream.reading_back import read_back
from infra.jetstream.topology import BATCH_MESSAGES_MAX
from infra.lean import Event, LeanClient

log = logging.getLogger(__name__)

BATCH_BYTES_MAX = 16_000_000
"""Body bytes in one batch of several writes; a single write may be larger."""

WAITING_MAX = 20_000
"""Writes that may wait; one more is refused as StoreUnavailable."""

TOLD_AT_ONCE = 32
"""Writes whose callers are told in one turn of the loop: each makes a reply, the socket waits."""

TRIED_EVERY = 32
"""After so many batches in a row that could have been plain publishes, these are tried once: what
they cost may have changed meanwhile."""

_PAUSE_S = 0.02
_PAUSE_MAX_S = 0.5
_INCOMPLETE_MAX = 3
"""How often a batch may arrive incomplete before its writes are sent one by one: a message in the
middle that the server refuses (too large, no room) gets no answer, it only goes missing."""


class Write:
    """Events to be stored all or not at all, and what became of them.

    Once `on_done` was called (exactly once, on the event loop) either `seqs` holds the stream
    sequences of `messages`, consecutive and in order, or `error` says why not: Conflict,
    StoreUnavailable, StoreReadOnly, TooLarge (nothing was written) or OutcomeUnknown.
    """

    __slots__ = ("deadline", "error", "messages", "on_done", "seqs")

    def __init__(self, messages: Sequence[Message], on_done: Callable[[Write], None]) -> None:
        self.messages = messages
        self.on_done = on_done
        self.seqs: range = range(0)
        self.error: Exception | None = None
        self.deadline = 0.0


Publish = Callable[[list[Write], str], Awaitable[outcome.Outcome]]
"""Sends a group once, under an id that nothing else is ever sent under."""


@dataclass(slots=True)
class Counters:
    """What a committer did since it was made."""

    plain: int = 0
    batches: int = 0
    batched_events: int = 0
    conflicts: int = 0
    unknown: int = 0


class Committer:
    """Commits writes to one stream, in groups. Lives on one event loop; not for several threads."""

    def __init__(
        self,
        nc: LeanClient,
        stream: str,
        *,
        event_bytes_max: int,
        request_timeout: float = 2.0,
        deadline: float = 30.0,
        gather: float = 0.0,
        writer: str | None = None,
    ) -> None:
        """`request_timeout` (s): for one answer. `deadline` (s): for a write, hand-over to done.

        `gather` (s): how long those whom a batch has answered may take to come back with their next
        write before the next batch goes without them; 0 waits for nobody. For callers that do
        nothing but wait for each write, as threads do: they would share every other batch only.

        `writer`: what every id begins with that something is sent under; nobody else's may.
        """
        self.distrusts_reading = False
        """What the store shows may not be on disk: nothing is settled by reading it."""
        self.counters = Counters()
        self.stored_through = 0  # the stream sequence up to which it has seen everything stored
        self.last_stored: Message | None = None
        """The message at `stored_through`."""
        self.costs = Costs()
        self._nc = nc
        self._stream = stream
        self._event_bytes_max = event_bytes_max
        self._timeout = request_timeout
        self._deadline = deadline
        self._gather = gather
        self._expected = 0  # writes to be waiting before the next batch goes
        self._gathering: asyncio.TimerHandle | None = None
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Write] = deque()
        self._plain_in_flight = 0
        self._plain_answered_at = 0.0  # while others are under way and no batch is; else 0
        self._batch_in_flight = False
        self._batches_in_a_row = 0
        self._waited_since = 0.0  # for the writers of the next batch; 0: they are not waited for
        self._pump_scheduled = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._untold: deque[Write] = deque()
        self._telling = False
        self._id_prefix = writer or NUID().next().decode()
        self._id_numbers = count(1)
        self._idle = asyncio.Event()
        self._idle.set()

    # -- handing over ------------------------------------------------------------------------

    def submit(self, write: Write) -> None:
        """Takes a write over; its `on_done` is called later, never from within this call."""
        write.deadline = time.monotonic() + self._deadline
        self._idle.clear()
        error = self._refusal(write)
        if error is not None:
            self._fail(write, error)
            return
        self._waiting.append(write)
        self._pump_soon()  # soon: whatever this turn of the loop still brings in goes with it

    async def idle(self) -> None:
        """Returns once every write that was handed over is done."""
        await self._idle.wait()

    def _refusal(self, write: Write) -> Exception | None:
        if len(write.messages) > BATCH_MESSAGES_MAX:
            return TooLarge(
                f"{len(write.messages)} events in one write, at most {BATCH_MESSAGES_MAX} fit "
                "into one atomic batch: write them in parts"
            )
        largest = max(len(m.body) for m in write.messages) + HEADER_BYTES_MAX
        limit = min(self._event_bytes_max, self._nc.max_payload)
        if largest > limit:
            return TooLarge(
                f"an event of {largest} bytes with its headers, at most {limit} are stored"
            )
        if len(self._waiting) >= WAITING_MAX:
            return StoreUnavailable(f"{WAITING_MAX} writes are waiting already; try again")
        return None

    # -- choosing what goes next ---------------------------------------------------------------

    def _pump(self) -> None:
        self._pump_scheduled = False
        if self._batch_in_flight:
            return  # its end pumps again, with all that gathered meanwhile
        if len(self._waiting) < self._expected:
            self._tell_idle()
            return
        self._expect(0)
        if self._gather and self._plain_in_flight and self._would_share():
            return  # with those under way, as soon as they are answered
        ready, events = self._take_ready()
        if not ready:
            self._tell_idle()
        elif events >= self._batch_from():
            self._start_batch(ready)
        else:
            self._start_few(ready)

    def _would_share(self) -> bool:
        return len(self._waiting) + self._plain_in_flight >= self._batch_from()

    def _batch_from(self) -> int:
        """How many waiting events are a batch; now and then more than the costs say."""
        tried = self._batches_in_a_row >= TRIED_EVERY
        return Costs.BREAK_EVEN_MAX + 1 if tried else self.costs.break_even()

    def _take_ready(self) -> tuple[list[Write], int]:
        """Takes the oldest writes that one batch can hold; returns them and their events' number.

        Left waiting: what does not fit, writes on a tail that is in flight, and whatever comes
        behind a write left waiting on one of its tails. Writes that cannot go any more are failed.
        """
        ready: list[Write] = []
        left: list[Write] = []
        held: set[Tail] = set()
        writers: dict[str, Tail] = {}  # a subject may have two tails: not both in one batch
        events = body_bytes = 0
        now = time.monotonic()
        while self._waiting and events < BATCH_MESSAGES_MAX and body_bytes < BATCH_BYTES_MAX:
            write = self._waiting.popleft()
            tails = [message.tail for message in write.messages]
            broken = next((tail for tail in tails if tail.broken), None)
            if broken is not None:
                self._fail(write, Conflict(broken.subject, broken.seq))
            elif any(
                tail.in_flight or tail in held or writers.get(tail.subject, tail) is not tail
                for tail in tails
            ):
                held.update(tails)
                left.append(write)
            elif now > write.deadline:
                self._fail(write, StoreUnavailable("the store took no writes; try again"))
            elif events + len(tails) > BATCH_MESSAGES_MAX:
                held.update(tails)
                left.append(write)
                break
            else:
                ready.append(write)
                writers.update((tail.subject, tail) for tail in tails)
                events += len(tails)
                body_bytes += sum(len(message.body) for message in write.messages)
        self._waiting.extendleft(reversed(left))
        return ready, events

    def _start_few(self, writes: list[Write]) -> None:
        """Publishes single events side by side, one per tail, and the other writes as one batch.

        As many plain publishes as may be under way; the rest waits on, and so does whatever comes
        behind it on one of its tails.
        """
        together: list[Write] = []
        joining: set[Tail] = set()
        left: list[Write] = []
        held: set[Tail] = set()
        for write in writes:
            tails = {message.tail for message in write.messages}
            if not held.isdisjoint(tails) or any(tail.in_flight for tail in tails):
                left.append(write)
                held |= tails
            elif len(write.messages) > 1 or not joining.isdisjoint(tails):
                together.append(write)
                joining |= tails
            elif self._plain_in_flight >= self._batch_from():
                left.append(write)
                held |= tails
            else:
                write.messages[0].tail.in_flight = True
                self._plain_in_flight += 1
                self._batches_in_a_row = 0
                self._start(self._commit_plain(write))
        self._waiting.extendleft(reversed(left))
        if together:
            self._start_batch(together)

    def _start_batch(self, writes: list[Write]) -> None:
        for write in writes:
            for message in write.messages:
                message.tail.in_flight = True
        self._batch_in_flight = True
        self._batches_in_a_row += 1
        self._plain_answered_at = 0.0
        self._start(self._commit_batch(writes, self._waited_since or time.monotonic()))
        self._waited_since = 0.0

    def _start(self, commit: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(commit)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- committing ----------------------------------------------------------------------------

    async def _commit_plain(self, write: Write) -> None:
        alone = self._plain_in_flight == 1 and not self._batch_in_flight
        started = time.monotonic()
        await self._settle([write], self._publish_one)
        self._plain_in_flight -= 1
        self.counters.plain += 1
        self._saw_plain(started, alone=alone, stored=write.error is None)
        self._pump_soon()

    def _saw_plain(self, started: float, *, alone: bool, stored: bool) -> None:
        now = time.monotonic()
        if stored and not self._batch_in_flight:
            if self._plain_answered_at:
                self.costs.saw_next(now - self._plain_answered_at)
            elif alone and not self._plain_in_flight:
                self.costs.saw_alone(now - started)
        followed = self._plain_in_flight and stored and not self._batch_in_flight
        self._plain_answered_at = now if followed else 0.0

    async def _commit_batch(self, writes: list[Write], started: float) -> None:
        events = sum(len(write.messages) for write in writes)
        await self._settle(writes, self._publish_batch)
        self._batch_in_flight = False
        self.counters.batches += 1
        self.counters.batched_events += events
        if all(write.error is None for write in writes):
            self.costs.saw_batch(time.monotonic() - started, events)
        if self._gather and len(writes) > 1:
            self._expect(len(self._waiting) + len(writes))
            self._waited_since = time.monotonic()
        self._pump()  # at once: what has gathered is on its way before anyone is told

    async def _settle(self, group: list[Write], publish: Publish) -> None:
        """Sends a group until it is known what became of it; every write in it ends up done, or
        waiting again."""
        try:
            await self._try_until_known(group, publish, set())
        except Exception as error:
            # A fault of ours must not leave anyone waiting for ever.
            log.exception("the committer failed")
            for write in group:
                if not write.seqs and write.error is None:
                    self._fail(write, OutcomeUnknown(f"the committer failed: {error!r}"))

    async def _try_until_known(
        self, group: list[Write], publish: Publish, ids: set[str], *, uncertain: bool = False
    ) -> None:
        """`ids`: what the group, or one that it was a part of, was sent under before; `uncertain`:
        nobody answered to one of those."""
        pause = _PAUSE_S
        incomplete = 0
        while True:
            id = f"{self._id_prefix}{next(self._id_numbers):x}"
            ids.add(id)
            answer = await publish(group, id)
            if isinstance(answer, outcome.Stored):
                self._stored(group, answer.seq - sum(len(w.messages) for w in group) + 1)
                return
            if isinstance(answer, outcome.ReadBack):
                uncertain = uncertain or answer.unknown
                self.counters.unknown += answer.unknown
            # Whatever this answer says, an earlier copy that nobody answered to may be stored; and
            # a commit that comes twice is told the second time that its batch is incomplete.
            if uncertain or isinstance(answer, outcome.ReadBack | outcome.Incomplete):
                try:
                    if await self._settled_by_reading(group, ids):
                        return
                except StoreUnavailable as error:
                    log.info("%s", error)
                    uncertain = True
            incomplete += isinstance(answer, outcome.Incomplete)
            if isinstance(answer, outcome.Refused) or (
                len(group) > 1 and incomplete >= _INCOMPLETE_MAX
            ):
                await self._refused(group, answer.reason, ids, uncertain=uncertain)
                return
            if isinstance(answer, outcome.Full) and not uncertain:
                for write in group:
                    self._fail(write, StoreReadOnly(f"the store is full: {answer.reason}"))
                return
            group = self._not_yet_due(group, pause, answer.reason, uncertain=uncertain)
            if not group:
                return
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311 (jitter)
            pause = min(pause * 2, _PAUSE_MAX_S)

    def _not_yet_due(
        self, group: list[Write], pause: float, reason: str, *, uncertain: bool
    ) -> list[Write]:
        """Fails the writes whose deadline comes before the next attempt; returns the others.

        A group that may be stored already cannot be sent in parts: it fails as a whole.
        """
        next_attempt = time.monotonic() + pause
        if all(next_attempt <= write.deadline for write in group):
            return group
        failure = OutcomeUnknown if uncertain else StoreUnavailable
        left: list[Write] = []
        for write in group:
            broken = next((m.tail for m in write.messages if m.tail.broken), None)
            if uncertain or next_attempt > write.deadline:
                self._fail(write, failure(f"the store did not answer: {reason}"))
            elif broken is not None:
                self._fail(write, Conflict(broken.subject, broken.seq))
            else:
                left.append(write)
        return left

    async def _publish_one(self, group: list[Write], id: str) -> outcome.Outcome:
        message = group[0].messages[0]
        _assert_in_order([message])
        expected = f"{EXPECTED_LAST_SUBJECT_SEQUENCE}: {message.tail.seq}\r\n"
        return await self._request(message, f"{message.lines()}{WRITE_ID}: {id}\r\n{expected}")

    async def _publish_batch(self, group: list[Write], id: str) -> outcome.Outcome:
        """Sends all events of the group as a new atomic batch; its commit is what is answered."""
        expected: set[Tail] = set()
        messages = [message for write in group for message in write.messages]
        _assert_in_order(messages)
        events: list[Event] = []
        for place, message in enumerate(messages, start=1):
            tail = message.tail
            lines = f"{message.lines()}{BATCH_ID}: {id}\r\n{BATCH_SEQUENCE}: {place}\r\n"
            if tail not in expected:
                expected.add(tail)
                lines += f"{EXPECTED_LAST_SUBJECT_SEQUENCE}: {tail.seq}\r\n"
            events.append((tail.subject, lines, message.body))
        try:
            await self._nc.publish_events(events[:-1])
        except NATS_FAILURES as error:
            return outcome.of_exception(error, sent=False)  # no commit was sent
        return await self._request(messages[-1], f"{events[-1][1]}{BATCH_COMMIT}: 1\r\n")

    async def _request(self, message: Message, lines: str) -> outcome.Outcome:
        try:
            reply = await self._nc.request(
                message.tail.subject, message.body, timeout=self._timeout, headers=lines
            )
        except (OutboundBufferLimitError, ConnectionClosedError, ConnectionDrainingError) as error:
            return outcome.of_exception(error, sent=False)
        except NATS_FAILURES as error:
            return outcome.of_exception(error, sent=True)
        try:
            answer = json.loads(reply.data)
        except ValueError:
            answer = None
        return outcome.of_answer(answer if isinstance(answer, dict) else {})

    # -- finding out ---------------------------------------------------------------------------

    async def _settled_by_reading(self, group: list[Write], ids: set[str]) -> bool:
        """Reads the group's subjects back; False when they tell that nothing happened yet.

        Raises StoreUnavailable when they cannot be read.
        """
        if self.distrusts_reading:
            raise StoreUnavailable("what can be read of the store is not to be trusted now")
        messages = [message for write in group for message in write.messages]
        known = await read_back(self._nc, self._stream, messages, ids, timeout=self._timeout)
        if isinstance(known, int):
            self._stored(group, known)
        elif known:
            self._conflicted(group, known)
        return bool(known)

    async def _refused(
        self, group: list[Write], reason: str, ids: set[str], *, uncertain: bool
    ) -> None:
        if len(group) == 1:
            refusal = TooLarge(f"the store refuses it: {reason}")
            self._fail(group[0], OutcomeUnknown(str(refusal)) if uncertain else refusal)
            return
        unknown = False  # whether the group was stored as the batch that nobody answered to
        for write in group:  # one of them is the culprit, or the batch as a whole was too much
            broken = next((m.tail for m in write.messages if m.tail.broken), None)
            if broken is not None:
                self._fail(
                    write,
                    OutcomeUnknown(f"the store did not answer: {reason}")
                    if unknown
                    else Conflict(broken.subject, broken.seq),
                )
                continue
            publish = self._publish_one if len(write.messages) == 1 else self._publish_batch
            await self._try_until_known([write], publish, ids, uncertain=uncertain)
            unknown = unknown or isinstance(write.error, OutcomeUnknown)

    # -- telling -------------------------------------------------------------------------------

    def _stored(self, group: list[Write], seq: int) -> None:
        for write in group:
            write.seqs = range(seq, seq + len(write.messages))
            for message in write.messages:
                message.tail.seq = seq
                message.tail.stored = message.digest
                message.tail.in_flight = False
                seq += 1
        if seq - 1 > self.stored_through:
            self.stored_through = seq - 1
            self.last_stored = group[-1].messages[-1]
        for write in group:
            self._done(write)

    def _conflicted(self, group: list[Write], moved_on: set[Tail]) -> None:
        """Fails the writes decided on a tail that moved on; the others of the group wait again."""
        self.counters.conflicts += 1
        again: list[Write] = []
        for write in group:
            stale = next(
                (m.tail for m in write.messages if m.tail in moved_on or m.tail.broken), None
            )
            if stale is not None:
                self._fail(write, Conflict(stale.subject, stale.seq))
                continue
            for message in write.messages:
                message.tail.in_flight = False
            again.append(write)
        self._waiting.extendleft(reversed(again))

    def _fail(self, write: Write, error: Exception) -> None:
        write.error = error
        for message in write.messages:
            message.tail.broken = True
            message.tail.in_flight = False
        self._done(write)

    def _done(self, write: Write) -> None:
        self._untold.append(write)
        if not self._telling:
            self._telling = True
            self._loop.call_soon(self._tell)

    def _tell(self) -> None:
        """Tells some of those whose writes are done, in order; the loop has other work between."""
        for _ in range(min(TOLD_AT_ONCE, len(self._untold))):
            write = self._untold.popleft()
            try:
                write.on_done(write)
            except Exception:
                log.exception("the callback of a write failed")
        if self._untold:
            self._loop.call_soon(self._tell)
        else:
            self._telling = False
            self._tell_idle()

    def _expect(self, writes: int) -> None:
        """Lets the next batch wait, for a moment, until so many writes wait; 0: not any longer."""
        self._expected = writes
        if self._gathering is not None:
            self._gathering.cancel()
            self._gathering = None
        if writes:
            self._gathering = self._loop.call_later(self._gather, self._expect_no_more)

    def _expect_no_more(self) -> None:
        self._expect(0)
        self._waited_since = 0.0  # in vain: no part of what a batch costs
        self._pump_soon()

    def _pump_soon(self) -> None:
        if not self._pump_scheduled:
            self._pump_scheduled = True
            self._loop.call_soon(self._pump)

    def _tell_idle(self) -> None:
        busy = self._waiting or self._untold or self._plain_in_flight or self._batch_in_flight
        if not busy:
            self._idle.set()


def _assert_in_order(messages: Sequence[Message]) -> None:
    """Stops a fault of ours before it is written: each event goes behind the one it was made on."""
    last: dict[Tail, bytes] = {}
    for message in messages:
        before = last.get(message.tail, message.tail.stored)
        assert message.previous == before, f"{message.tail.subject} out of order"
        last[message.tail] = message.digest
