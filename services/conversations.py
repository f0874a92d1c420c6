"""Conversations in use: load, decide, append, fold. One instance per process, on its event loop.

A conversation in use has two sides. The aggregate decides, and runs ahead: a command is decided
on the state that the commands before it will have made, while those are still on their way to the
disk. The view is what was stored, and follows: it is folded when the store has said so, and only
views are shown to anyone. When an append fails, whatever was decided on top of it is void: the
conversation is dropped, loaded anew, and those commands are decided again, one conversation at a
time, so that no neighbour notices.

Nothing is answered that rests on something not stored: a refusal or a repeated command that was
decided while appends were under way waits for them; one decided on a state that may be out of
date (another process may have written) is confirmed with the store's leader first.

A conversation that is flooded takes no more than its share: only so many of its commands are
decided ahead of the store, the others wait for their turn, and their neighbours do not.

What is in memory is a cache: bounded in bytes, least recently used out first, never a source.
While every event that is stored is heard of here (`others`), a read need not ask the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Sequence
from itertools import count

from eventsourcing.persistence import StoredEvent

from domain.commands import Command
from domain.conversation import (
    CommandContext,
    Conversation,
    Decision,
    Forgotten,
    Limits,
    PastMessage,
    Receipt,
    decide,
    evolve,
)
from domain.errors import ConversationError, MessageTooLarge, RateLimited
from domain.events import ConversationEvent
from domain.identity import ConversationId
from domain.mapper import ConversationMapper
from infra.jetstream.committer import Write
from infra.jetstream.envelope import (
    GENESIS,
    Message,
    Recorded,
    Tail,
    pack,
    sequence_in,
    unpack,
    verify_chain,
)
from infra.jetstream.errors import Conflict, LedgerDamaged, StoreUnavailable
from infra.jetstream.store import Store, check_contiguous
from infra.sturdy import headers_of
from projections.state import ConversationView
from services.errors import NotYetThere
from services.recall import recall
from services.snapshots import Sleeping, Snapshot, Snapshotter

log = logging.getLogger(__name__)

DECIDE_AGAIN_S = 10.0
"""How long a command is decided again after conflicts before its caller is told."""

AHEAD_MAX = 8
"""Commands on one conversation that are decided and not yet stored, where others are in use too.
Whoever floods one would else fill every batch, and the time between two batches, for everybody."""

AHEAD_ALONE_MAX = 256
"""The same where nobody else has sent anything lately."""

COMPANY_S = 1.0
"""How lately."""

HELD_MAX = 20_000
"""Commands on one conversation that may wait for that; one more is refused."""

MIN_SEQ_WAIT_S = 2.0
"""How long a read waits for the event that its caller has seen."""

KNOWN_S = 10.0
"""How long a view is held to be up to date by what is heard; then it is compared once more."""

WAIT_PAUSE_S = 0.02

LOADS_MAX = 64
"""Conversations that are read from the ledger at once; the others wait for their turn here, where
no request of theirs runs out of its time."""

MISSED_MAX = 100
"""Events of other processes that a conversation is only read through; then it is made ready to be
written to as well."""

_RESTED_ON = "what was written just before was not stored, and this rests on it; try again"
_BEHIND = "what can be read of the conversation stays behind the ledger; try again"
_ENTRY_BYTES = 2_000


class Answer:
    """What a command came to.

    `events` with their stream sequences `seqs` (none: a harmless repeat), and the view right after
    them; for a repeated command `receipt` says which events the first one wrote.
    """

    __slots__ = ("events", "receipt", "seqs", "view")

    def __init__(
        self,
        view: ConversationView,
        events: Sequence[ConversationEvent] = (),
        seqs: Sequence[int] = (),
        receipt: Receipt | None = None,
    ) -> None:
        self.view = view
        self.events = events
        self.seqs = seqs
        self.receipt = receipt


Respond = Callable[[Answer | Exception], None]


class Attempt:
    """One command on its way, until it is answered (exactly once)."""

    __slots__ = (
        "command",
        "context",
        "decision",
        "give_up_at",
        "id",
        "messages",
        "past",
        "refusal",
        "respond",
        "strangers",
        "tries",
        "version",
    )

    def __init__(
        self, id: ConversationId, command: Command, context: CommandContext, respond: Respond
    ) -> None:
        self.id = id
        self.command = command
        self.context = context
        self.respond = respond
        self.decision: Decision | None = None
        self.messages: Sequence[Message] = ()  # that are to be stored
        self.refusal: ConversationError | None = None
        self.past: PastMessage | None = None  # of the message it names, once it was looked up
        self.give_up_at = time.monotonic() + DECIDE_AGAIN_S
        self.tries = 0
        self.version = 0  # that it was decided on, with so many events of strangers
        self.strangers = 0

    @property
    def writes(self) -> bool:
        """Whether its decision has events to store."""
        return self.decision is not None and bool(self.decision.events)


class InUse:
    """A conversation in memory. `conversation` and `tail` run ahead, `view` is what is stored."""

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

    def __init__(self, key: str, view: ConversationView) -> None:
        self.key = key
        self.load: asyncio.Task[None] | None = None
        self.load_error: Exception | None = None
        self.loaded = False
        self.dropped = False
        self.fault: Exception | None = None  # of ours, in folding: the view is of no use any more
        self.conversation: Conversation | Sleeping | None = None
        self.view = view
        self.tail = Tail("")
        self.pending: deque[Attempt] = deque()  # decided, in order; answered as appends settle
        self.held: deque[Attempt] = deque()  # until fewer are pending; empty when none is
        self.waiting: list[Attempt] = []  # for the load
        self.settled: asyncio.Event | None = None
        self.snapshot_version = 0
        self.strangers = 0  # events of other processes taken in since it was loaded
        self.weight = _ENTRY_BYTES
        self.heard_seq = 0  # of the last event that was heard of before it could be taken in
        self.known_in: int | None = None  # the epoch in which the view was found to be up to date
        self.known_until = 0.0

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

    @property
    def busy(self) -> bool:
        """Whether anything is under way that this entry is needed for."""
        return bool(self.pending or self.waiting) or not self.loaded

    def may_have(self, event: Recorded) -> bool:
        """Whether a stored event may be one of ours whose append has not settled yet."""
        at_end = event.version == self.tail.version
        return event.digest == self.tail.digest.hex() if at_end else not self.dropped


class Conversations:
    """Executes commands and shows views. See the module's text for what is guaranteed."""

    def __init__(
        self,
        store: Store,
        *,
        limits: Limits,
        window_size: int,
        cache_bytes: int,
        epoch: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`epoch`: see `others.Others`; None where nothing else is heard."""
        self.store = store
        self._epoch = epoch
        self.window_size = window_size
        self._limits = limits
        self._cache_bytes = cache_bytes
        self._mapper = ConversationMapper()
        self._in_use: OrderedDict[str, InUse] = OrderedDict()
        self._weight = 0
        self._loads = asyncio.Semaphore(LOADS_MAX)
        self._mistrusted: set[str] = set()  # whose snapshots are of no use
        self._last_key = ""
        self._company_until = 0.0  # commands on several conversations have come until lately
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._snapshotter = Snapshotter(store, self._snapshot_of)

    async def close(self) -> None:
        """Returns once every command is answered; nothing is accepted by then any more."""
        await self._idle.wait()
        await self._snapshotter.close()

    # -- commands ------------------------------------------------------------------------------

    def execute(
        self, id: ConversationId, command: Command, context: CommandContext, respond: Respond
    ) -> None:
        """Decides a command, at once where the conversation is in memory, and stores its events.

        `respond` is called once, when the events are on disk or it is known that they are not:
        with an Answer, a ConversationError, or an error of the store.
        """
        self._open += 1
        self._idle.clear()
        if id.key != self._last_key:
            if self._last_key:
                self._company_until = time.monotonic() + COMPANY_S
            self._last_key = id.key
        self._attempt(Attempt(id, command, context, respond))

    def _attempt(self, attempt: Attempt) -> None:
        entry = self._entry(attempt.id.key, conflicts=attempt.tries)
        if entry.loaded:
            self._take(entry, attempt)
        else:
            entry.waiting.append(attempt)

    def _take(self, entry: InUse, attempt: Attempt) -> None:
        """Decides a command on a loaded conversation, or holds it until it is its turn."""
        if not entry.held and len(entry.pending) < self._ahead_max:
            self._decide(entry, attempt)
        elif len(entry.held) < HELD_MAX:
            entry.held.append(attempt)
        else:
            crowded = f"{HELD_MAX:,} commands on this conversation are waiting already; try again"
            self._answer(attempt, StoreUnavailable(crowded))

    @property
    def _ahead_max(self) -> int:
        return AHEAD_MAX if time.monotonic() < self._company_until else AHEAD_ALONE_MAX

    def _release(self, entry: InUse) -> None:
        """Decides what was held, as far as fewer are pending now; elsewhere on a dropped entry,
        behind those that were decided on it."""
        while entry.held and len(entry.pending) < (1 if entry.dropped else self._ahead_max):
            attempt = entry.held.popleft()
            if time.monotonic() > attempt.give_up_at:
                slow = "the commands before this one on its conversation took too long; try again"
                self._answer(attempt, StoreUnavailable(slow))
            elif entry.dropped:
                self._attempt(attempt)
            else:
                self._decide(entry, attempt)

    def _decide(self, entry: InUse, attempt: Attempt) -> None:
        conversation = entry.conversation
        if isinstance(conversation, Sleeping):
            conversation = self._wake(entry, conversation)
            if conversation is None:
                self._attempt(attempt)
                return
        attempt.refusal = None
        attempt.version, attempt.strangers = entry.tail.version, entry.strangers
        try:
            decision = decide(
                conversation,
                attempt.id,
                attempt.command,
                attempt.context,
                self._limits,
                past=attempt.past,
            )
        except Forgotten as asked:
            self._spawn(self._recall(attempt, asked.message_id))
            return
        except ConversationError as refused:
            attempt.decision, attempt.refusal = None, refused
        except Exception as error:  # noqa: BLE001 (a fault of ours: answered as one)
            self._drop(entry)
            self._answer(attempt, error)
            return
        else:
            attempt.decision = decision
            if decision.events:
                self._append(entry, attempt, decision)
                return
        if entry.pending:
            entry.pending.append(attempt)  # rests on what is being stored; told when it is
        else:
            self._confirm(entry, attempt)

    def _append(self, entry: InUse, attempt: Attempt, decision: Decision) -> None:
        try:
            entry.conversation = decision.conversation
            to_stored_event = self._mapper.to_stored_event
            messages = []
            for event in decision.events:
                stored = to_stored_event(event)
                messages.append(
                    pack(entry.tail, stored.topic, stored.originator_version, stored.state)
                )
        except Exception as error:  # noqa: BLE001 (a fault of ours: answered as one)
            self._drop(entry)
            self._answer(attempt, error)
            return
        attempt.messages = messages
        entry.pending.append(attempt)
        self.store.submit(Write(messages, lambda write: self._settled(entry, attempt, write)))

    def _settled(self, entry: InUse, attempt: Attempt, write: Write) -> None:
        """The store has said what became of an append: fold and answer, or decide again."""
        entry.pending.remove(attempt)
        if entry.dropped and write.error is None:
            successor = self._in_use.get(entry.key)  # it may have been read before this was stored
            if successor is not None:
                successor.heard_seq = max(successor.heard_seq, write.seqs[-1])
        error = write.error or self._folded(entry, attempt, write.seqs)
        if error is None:
            self._weigh(entry)
            if not entry.dropped:
                grown = entry.view.version - entry.snapshot_version
                self._snapshotter.grown(entry.key, grown)
        else:
            self._drop(entry)
            if isinstance(error, Conflict):
                self._again(attempt, error)
            else:
                self._answer(attempt, error)
        self._follow_up(entry)

    def _folded(self, entry: InUse, attempt: Attempt, seqs: Sequence[int]) -> Exception | None:
        """Folds what was stored and answers; returns the fault that kept it from doing so."""
        decision = attempt.decision
        assert decision is not None
        try:
            if entry.fault is None:
                for event, seq in zip(decision.events, seqs, strict=True):
                    entry.view.apply(event, seq)
        except Exception as error:  # noqa: BLE001 (a fault of ours: answered as one)
            entry.fault = error
        if entry.fault is None:
            self._answer(attempt, Answer(entry.view, decision.events, seqs))
        return entry.fault

    def _follow_up(self, entry: InUse) -> None:
        """Answers what waited for the appends before it; on a dropped entry, decides it again."""
        while entry.pending and not entry.pending[0].writes:
            attempt = entry.pending.popleft()
            if entry.dropped:
                self._again(attempt, StoreUnavailable(_RESTED_ON))
            else:
                self._confirm(entry, attempt)
        self._release(entry)
        if entry.settled is not None:
            entry.settled.set()
            entry.settled = None

    def _conclude(self, entry: InUse, attempt: Attempt) -> None:
        if attempt.refusal is not None:
            self._answer(attempt, attempt.refusal)
            return
        assert attempt.decision is not None
        self._answer(attempt, Answer(entry.view, receipt=attempt.decision.duplicate))

    def _again(self, attempt: Attempt, failure: Exception) -> None:
        """Decides a command again after what it was decided on was void; not for ever."""
        attempt.tries += 1
        if time.monotonic() > attempt.give_up_at:
            self._answer(attempt, failure)
        else:
            self._attempt(attempt)

    async def _recall(self, attempt: Attempt, message_id: str) -> None:
        """Decides a command anew with what the ledger says about a message of long ago.

        Later commands on the conversation need not wait for it, and may be decided before it.
        """
        try:
            attempt.past = await recall(self.store, attempt.id.key, message_id)
        except Exception as error:  # noqa: BLE001 (whatever it is, the caller is told)
            self._answer(attempt, error)
        else:
            self._attempt(attempt)

    def _confirm(self, entry: InUse, attempt: Attempt) -> None:
        """Answers what was decided on what is stored by now, and may be out of date."""
        if _needs_confirmation(attempt):
            self._spawn(self._confirm_with_leader(entry, attempt))
        else:
            self._conclude(entry, attempt)

    async def _confirm_with_leader(self, entry: InUse, attempt: Attempt) -> None:
        """Answers a refusal only when the ledger was at the version that it was decided on while
        the command was here: it still is, or what came next was decided here after it."""
        try:
            last = await self.store.last(entry.key, leader=True)
            if last is not None and last.version > attempt.version and entry.may_have(last):
                await self._settled_through(entry, last)
        except Exception as error:  # noqa: BLE001 (whatever it is, the caller is told)
            self._answer(attempt, error)
            return
        if (last.version if last else 0) == attempt.version or (
            last is not None
            and last.seq <= entry.view.seq
            and not entry.dropped
            and entry.strangers == attempt.strangers
        ):
            self._conclude(entry, attempt)
            return
        self._drop(entry)
        self._again(attempt, StoreUnavailable(_BEHIND))

    def _answer(self, attempt: Attempt, answer: Answer | Exception) -> None:
        self._open -= 1
        if self._open == 0:
            self._idle.set()
        try:
            attempt.respond(answer)
        except Exception:
            log.exception("a reply could not be made")

    # -- views ---------------------------------------------------------------------------------

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
            anew = id.key not in self._in_use  # a load has it as it is stored when that begins
            entry = await self._ready(id.key)
            if not strong:
                known = anew or entry.is_known(epoch)
                if known if min_seq is None else entry.view.seq >= min_seq:
                    return entry.view
            if look:  # once: what is written after it was asked for need not be in it
                last = await self.store.last(id.key, leader=leader)
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
        entry = self._in_use.get(key)
        return entry is not None and entry.loaded and entry.is_known(self._epoch())

    async def _stands_at(self, entry: InUse, last: Recorded | None) -> bool:
        """Whether the entry's view includes `last`; False when the caller has to look again.

        Our own appends on their way are waited for; a view that is one event behind is brought up
        to date by `last` itself; one further behind is dropped, to be loaded anew.
        """
        if last is None:
            return True
        await self._settled_through(entry, last)
        if entry.view.seq >= last.seq:
            return True
        if not entry.dropped and last.version == entry.view.version + 1:
            self._fold_stranger(entry, last)
            return True
        self._drop(entry)
        return False

    def heard(self, key: str, headers: bytes, body: bytes) -> None:
        """Takes in the live copy of an event that was stored, by us or by another process, with its
        header block."""
        entry = self._in_use.get(key)
        if entry is None:
            return
        try:
            seq = sequence_in(headers)
            if not entry.loaded:
                entry.heard_seq = seq
            elif entry.view.seq < seq:
                self._take_in(entry, unpack(headers_of(headers), body))
        except Exception as error:  # noqa: BLE001 (whatever it is, the ledger itself is asked next)
            log.warning("what was heard of %s is of no use: %s", key, error)
            self._drop(entry)

    def _take_in(self, entry: InUse, recorded: Recorded) -> None:
        if entry.pending:
            if not _is_ours(entry, recorded):
                self._drop(entry)  # whatever we are storing there will be decided again
            # Ours is shown when the store has told us; as that answer may be lost, and another
            # worker be asked about the command, reads ask the ledger until then.
            entry.heard_seq = recorded.seq
            return
        if recorded.version == entry.view.version + 1:
            self._fold_stranger(entry, recorded)
        else:
            self._drop(entry)  # one was not heard

    def _fold_stranger(self, entry: InUse, recorded: Recorded) -> None:
        """Takes in the next event of a conversation at rest, which another process has stored."""
        self._fold(entry, [recorded])
        entry.strangers += 1
        sleeping = entry.conversation
        if isinstance(sleeping, Sleeping) and sleeping.missed > MISSED_MAX:
            self._wake(entry, sleeping)
        self._weigh(entry)

    async def _settled_through(self, entry: InUse, last: Recorded) -> None:
        """Waits for our own appends on their way, as long as the view does not include `last`."""
        while entry.view.seq < last.seq and entry.pending:
            if entry.settled is None:
                entry.settled = asyncio.Event()
            await entry.settled.wait()

    async def replay(
        self, id: ConversationId, until: Callable[[ConversationEvent], bool], *, through: int = 0
    ) -> ConversationView:
        """The conversation as it was after the last event for which `until` holds.

        `until` must hold for every event up to some point and for none behind it; `through` is the
        sequence of an event that is there, whatever a replica says. Folded from the
        first event on; `version` 0 when it holds for none.
        """
        return await self.store.from_any_copy(lambda: self._replayed(id, until, through))

    async def _replayed(
        self, id: ConversationId, until: Callable[[ConversationEvent], bool], through: int
    ) -> ConversationView:
        view = ConversationView.empty(self.window_size)
        subject = self.store.topology.subject(id.key)
        digest = GENESIS
        stream = self.store.stream_of(id.key)
        async for page in self.store.reader.pages(stream, subject, through=through):
            check_contiguous(page)
            digest = verify_chain(digest, page)
            for recorded in page:
                event = self.event(id.key, recorded)
                if not until(event):
                    return view
                view.apply(event, recorded.seq)
        return view

    def event(self, key: str, recorded: Recorded) -> ConversationEvent:
        """The domain event that is recorded there. Raises UnknownEvent."""
        return self._mapper.to_domain_event(
            StoredEvent(key, recorded.version, recorded.topic, recorded.body)
        )

    # -- memory --------------------------------------------------------------------------------

    def _entry(self, key: str, *, conflicts: int = 0) -> InUse:
        """The conversation in memory; a new entry is being loaded when this returns.

        `conflicts`: how often the command that it is for has lost against another writer.
        """
        entry = self._in_use.get(key)
        if entry is None:
            entry = self._in_use[key] = InUse(key, ConversationView.empty(self.window_size))
            self._weight += entry.weight
            entry.load = self._spawn(self._load(entry, pause_s=_pause_s(conflicts)))
            self._shrink()
        else:
            self._in_use.move_to_end(key)
        return entry

    async def _ready(self, key: str) -> InUse:
        """The conversation in memory, loaded. Raises what its load failed with."""
        entry = self._entry(key)
        if not entry.loaded:
            assert entry.load is not None
            await asyncio.shield(entry.load)
            if entry.load_error is not None:
                raise entry.load_error
        return entry

    async def _load(self, entry: InUse, *, pause_s: float) -> None:
        """Loads an entry, then decides what has waited for it. Whoever lost against other writers
        lets them by first, for all its commands on the conversation at once."""
        try:
            if pause_s:
                await asyncio.sleep(pause_s)
            async with self._loads:
                epoch = self._epoch()
                await self.store.from_any_copy(lambda: self._read_in(entry))
            if entry.view.seq >= entry.heard_seq:
                entry.known(epoch)
        except Exception as error:  # noqa: BLE001 (whatever it is, the callers are told)
            entry.load_error = error
            self._drop(entry)
            for attempt in entry.waiting:
                self._answer(attempt, error)
            entry.waiting.clear()
            return
        entry.loaded = True
        waiting, entry.waiting = entry.waiting, []
        for attempt in waiting:
            if entry.dropped:
                self._attempt(attempt)
            else:
                self._take(entry, attempt)
        self._weigh(entry)
        self._snapshotter.grown(entry.key, entry.view.version - entry.snapshot_version)

    async def _read_in(self, entry: InUse) -> None:
        """Rebuilds a conversation from its snapshot and the events behind it.

        Its last event is asked for at the same time: most often that is all there is to read, and
        the view then includes whatever was stored before this began.
        """
        key = entry.key
        entry.conversation, entry.view = None, ConversationView.empty(self.window_size)
        body, last = await asyncio.gather(self._saved(key), self.store.last(key))
        snapshot = Snapshot.decode(body, window_size=self.window_size) if body else None
        if snapshot is not None and last is None:  # a replica that lags
            last = await self.store.last(key, leader=True)
        if snapshot is not None and last is not None:
            events, view = [last], snapshot.view
            if not snapshot.reaches(last):
                events = await self.store.read_up_to(key, last, version=view.version, seq=view.seq)
            if events and snapshot.reaches(events[0]):
                self._begin_at(entry, snapshot)
                self._fold(entry, events[int(snapshot.stands_at(events[0])) :])
                return
            log.warning("the snapshot of %s does not belong to this ledger; ignored", key)
        entry.tail = self.store.tail(key, None)
        if last is not None:
            first = last.version == 1
            self._fold(entry, [last] if first else await self.store.read_up_to(key, last))

    async def _saved(self, key: str) -> bytes | None:
        """The snapshot of a conversation as it was saved, where there is one to go by."""
        if key in self._mistrusted:
            return None
        try:
            return await self.store.snapshots.load(key)
        except StoreUnavailable as error:  # a shortcut only: the events are somewhere else
            log.info("%s", error)
            return None

    def _begin_at(self, entry: InUse, snapshot: Snapshot) -> None:
        view = entry.view = snapshot.view
        entry.conversation = snapshot.aggregate
        entry.snapshot_version = view.version
        digest = bytes.fromhex(snapshot.digest)
        subject = self.store.topology.subject(entry.key)
        entry.tail = Tail(subject, view.seq, view.version, digest, digest)

    def _wake(self, entry: InUse, sleeping: Sleeping) -> Conversation | None:
        """The entry's aggregate, from now on awake to be decided on.

        None when what was saved of it is of no use: the entry is dropped, and the next load goes by
        the conversation's events.
        """
        try:
            entry.conversation = sleeping.awake()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            log.warning("the snapshot of %s is of no use; ignored: %s", entry.key, error)
            self._mistrusted.add(entry.key)
            self._drop(entry)
            return None
        self._weigh(entry)
        return entry.conversation

    def _fold(self, entry: InUse, events: Sequence[Recorded]) -> None:
        """Takes stored events into an entry at rest: aggregate, view and tail."""
        if not events:
            return
        check_contiguous(events)
        if events[0].version != entry.tail.version + 1:
            raise LedgerDamaged(
                f"{events[0].subject}: version {events[0].version} at stream sequence "
                f"{events[0].seq} where version {entry.tail.version + 1} was due"
            )
        verify_chain(entry.tail.digest, events)
        for recorded in events:
            event = self.event(entry.key, recorded)
            if isinstance(entry.conversation, Sleeping):
                entry.conversation.miss(event)
            else:
                entry.conversation = evolve(entry.conversation, event)
            entry.view.apply(event, recorded.seq)
        entry.tail = self.store.tail(entry.key, events[-1])

    def _drop(self, entry: InUse) -> None:
        """Forgets a conversation; appends still under way on it are told as they settle."""
        if not entry.dropped:
            entry.dropped = True
            if self._in_use.get(entry.key) is entry:
                del self._in_use[entry.key]
            self._weight -= entry.weight

    def _weigh(self, entry: InUse) -> None:
        if entry.dropped:
            return
        weight = _ENTRY_BYTES + entry.view.size_bytes
        if entry.conversation is not None:
            weight += entry.conversation.size_bytes
        self._weight += weight - entry.weight
        entry.weight = weight
        if self._weight > self._cache_bytes:
            self._shrink()

    def _shrink(self) -> None:
        """Forgets the least recently used conversations that nobody waits for."""
        if self._weight <= self._cache_bytes:
            return
        for entry in list(self._in_use.values()):
            if not entry.busy:
                self._drop(entry)
                if self._weight <= self._cache_bytes * 0.9:
                    return

    async def _snapshot_of(self, key: str) -> Snapshot | None:
        """What to save for a conversation: as it is in memory, or read anew when that is busy."""
        entry = self._in_use.get(key)
        if entry is None:
            return None
        source = entry
        if entry.busy:
            source = InUse(key, ConversationView.empty(self.window_size))
            source.dropped = True  # it was never in use
            await self.store.from_any_copy(lambda: self._read_in(source))
        aggregate = source.conversation
        if isinstance(aggregate, Sleeping):
            aggregate = self._wake(source, aggregate)
        if aggregate is None:
            return None
        entry.snapshot_version = source.view.version
        self._mistrusted.discard(key)
        return Snapshot(aggregate, source.view, source.tail.digest.hex())

    def _spawn(self, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _is_ours(entry: InUse, recorded: Recorded) -> bool:
    """Whether it is one of the events that we are storing at this moment."""
    return any(
        message.version == recorded.version and message.digest.hex() == recorded.digest
        for attempt in entry.pending
        for message in attempt.messages
    )


def _pause_s(conflicts: int) -> float:
    if conflicts < 2:
        return 0.0
    longest: float = min(0.08, 0.005 * 2 ** (conflicts - 2))
    return longest * random.random()  # noqa: S311 (jitter)


def _needs_confirmation(attempt: Attempt) -> bool:
    """Whether the answer would be another one had somebody else written meanwhile."""
    if attempt.decision is not None:
        return attempt.decision.duplicate is None
    return not isinstance(attempt.refusal, MessageTooLarge | RateLimited)
