"""What becomes of commands: decided, appended, folded, answered.

A command is decided on the state that those before it will have made. When an append fails,
whatever was decided on top of it is void: the conversation is dropped, loaded anew, and those
commands are decided again, one conversation at a time, so that no neighbour notices.

Nothing is answered that rests on something not stored: a refusal or a repeated command that was
decided while appends were under way waits for them; one decided on a state that may be out of
date (another process may have written) is confirmed with the store's leader first.

A conversation that is flooded takes no more than its share: only so many of its commands are
decided ahead of the store, the others wait for their turn, and their neighbours do not.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from functools import partial

from domain.commands import Command
from domain.errors import ConversationError
from domain.identity import ConversationId
from domain.mapper import ConversationMapper
from domain.rules import CommandContext, Decision, Forgotten, Limits, decide
from infra.jetstream.committer import Write
from infra.jetstream.envelope import pack
from infra.jetstream.errors import Conflict, StoreUnavailable
from infra.jetstream.store import Store
from services.in_use.attempt import Answer, Attempt, Respond
from services.in_use.cache import Cache
from services.in_use.conversation import InUse
from services.in_use.loader import Loader
from services.recall import recall
from services.snapshots import Sleeping
from services.tasks import Tasks

log = logging.getLogger(__name__)

AHEAD_MAX = 8
"""Commands on one conversation that are decided and not yet stored, where others are in use too.
Whoever floods one would else fill every batch, and the time between two batches, for everybody."""

AHEAD_ALONE_MAX = 256
"""The same where nobody else has sent anything lately."""

COMPANY_S = 1.0
"""How lately."""

HELD_MAX = 20_000
"""Commands on one conversation that may wait for that; one more is refused."""

_RESTED_ON = "what was written just before was not stored, and this rests on it; try again"
_BEHIND = "what can be read of the conversation stays behind the ledger; try again"


class Decider:
    """Decides commands on the conversations of a cache, and answers each of them once."""

    def __init__(self, store: Store, cache: Cache, loader: Loader, limits: Limits) -> None:
        self._store = store
        self._cache = cache
        self._loader = loader
        self._limits = limits
        self._snapshotter = loader.snapshotter
        self._mapper = ConversationMapper()
        self._last_key = ""
        self._company_until = 0.0  # commands on several conversations have come until lately
        self._open = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._tasks = Tasks()

    async def idle(self) -> None:
        """Returns once every command is answered."""
        await self._idle.wait()

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
        key = attempt.id.key
        entry = self._cache.used(key)
        if entry is None:
            entry = self._loader.begin(key, conflicts=attempt.tries)
        if entry.loaded:
            self._take(entry, attempt)
        else:
            entry.waiting.append(partial(self._loaded, entry, attempt))

    def _loaded(self, entry: InUse, attempt: Attempt) -> None:
        if entry.load_error is not None:
            self._answer(attempt, entry.load_error)
        elif entry.dropped:
            self._attempt(attempt)
        else:
            self._take(entry, attempt)

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
            conversation = self._loader.wake(entry, conversation)
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
            self._tasks.start(self._recall(attempt, asked.message_id))
            return
        except ConversationError as refused:
            attempt.decision, attempt.refusal = None, refused
        except Exception as error:  # noqa: BLE001 (a fault of ours: answered as one)
            self._cache.drop(entry)
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
            self._cache.drop(entry)
            self._answer(attempt, error)
            return
        attempt.messages = messages
        entry.pending.append(attempt)
        self._store.submit(Write(messages, lambda write: self._settled(entry, attempt, write)))

    def _settled(self, entry: InUse, attempt: Attempt, write: Write) -> None:
        """The store has said what became of an append: fold and answer, or decide again."""
        entry.pending.remove(attempt)
        if entry.dropped and write.error is None:
            successor = self._cache.entries.get(entry.key)
            if successor is not None:  # it may have been read before this was stored
                successor.heard_seq = max(successor.heard_seq, write.seqs[-1])
        error = write.error or self._folded(entry, attempt, write.seqs)
        if error is None:
            self._cache.weigh(entry)
            if not entry.dropped:
                grown = entry.view.version - entry.snapshot_version
                self._snapshotter.grown(entry.key, grown)
        else:
            self._cache.drop(entry)
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
            attempt.past = await recall(self._store, attempt.id.key, message_id)
        except Exception as error:  # noqa: BLE001 (whatever it is, the caller is told)
            self._answer(attempt, error)
        else:
            self._attempt(attempt)

    def _confirm(self, entry: InUse, attempt: Attempt) -> None:
        """Answers what was decided on what is stored by now, and may be out of date."""
        if attempt.may_be_out_of_date:
            self._tasks.start(self._confirm_with_leader(entry, attempt))
        else:
            self._conclude(entry, attempt)

    async def _confirm_with_leader(self, entry: InUse, attempt: Attempt) -> None:
        """Answers a refusal only when the ledger was at the version that it was decided on while
        the command was here: it still is, or what came next was decided here after it."""
        try:
            last = await self._store.last(entry.key, leader=True)
            if last is not None and last.version > attempt.version and entry.may_have(last):
                await entry.settled_through(last)
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
        self._cache.drop(entry)
        self._again(attempt, StoreUnavailable(_BEHIND))

    def _answer(self, attempt: Attempt, answer: Answer | Exception) -> None:
        self._open -= 1
        if self._open == 0:
            self._idle.set()
        try:
            attempt.respond(answer)
        except Exception:
            log.exception("a reply could not be made")
