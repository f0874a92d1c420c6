"""Conversations under every order of events that a store may come up with, at random from a seed.

Many commands and reads at once, on a few conversations that somebody else writes to as well, over
a store whose answers come late, out of turn, or not at all. Afterwards the log itself tells what
was right.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from random import Random

import pytest

from domain import conversation as conversation_module
from domain.commands import Command
from domain.conversation import Conversation, Receipt
from domain.errors import ConversationError
from domain.events import ConversationEvent, MessageAppended, MessageRedacted, ReplyStarted
from domain.identity import ConversationId
from domain.rules import CommandContext, Decision, Forgotten, Limits, PastMessage, decide
from infra.jetstream.errors import Conflict, OutcomeUnknown, StoreUnavailable, TooLarge
from services import recall as recall_module
from services import snapshots as snapshots_module
from services.conversations import Conversations
from services.errors import NotYetThere
from services.in_use import decider as decider_module
from services.in_use import loader as loader_module
from services.in_use import views as views_module
from services.in_use.attempt import Answer
from tests.fake.commands import some_command

from .fake_store import FakeStore, Fate

WINDOW = 3
IDS = [ConversationId.parse("acme", f"c-{n}") for n in range(3)]


@dataclass
class Sent:
    """One command that was sent, and everything that was answered to it."""

    number: int
    id: ConversationId
    command: Command
    context: CommandContext
    from_version: int
    answers: list[Answer | Exception] = field(default_factory=list)
    events: tuple[ConversationEvent, ...] = ()
    seqs: tuple[int, ...] = ()
    receipt: Receipt | None = None
    version_shown: int = 0
    to_version: int = 0


class World:
    """A few conversations, everything that happens to them, and what has to hold all the while."""

    def __init__(
        self, seed: int, *, cache_bytes: int = 10**9, lag: int = 0, failing: float = 0.0
    ) -> None:
        self.random = Random(seed)
        self.store = FakeStore(self.random, patient=True, lag=lag, failing=failing)
        self.lag = lag
        self.conversations = Conversations(
            self.store.as_store, limits=Limits(), window_size=WINDOW, cache_bytes=cache_bytes
        )
        self.sent: list[Sent] = []
        self.reads: set[asyncio.Task[None]] = set()
        self.shown: Counter[str] = Counter()
        self.fates: list[Fate] = ["stored"]

    # -- what happens ----------------------------------------------------------------------------

    async def live(self, turns: int) -> None:
        steps = {
            self.send: 6,
            self.look: 3,
            self.interfere: 1,
            self.settle: 8,
            self.store.let_go: 10,
        }
        for _ in range(turns):
            [step] = self.random.choices(list(steps), list(steps.values()))
            step()
            for _ in range(self.random.randrange(4)):
                await asyncio.sleep(0)
                self.check_weight()

    async def end(self) -> None:
        """Lets everything come to its end."""
        async with asyncio.timeout(10):
            while self.open:
                self.settle()
                self.store.let_go()
                await asyncio.sleep(0)
                self.check_weight()
        self.store.patient = False
        while self.store.waiting:
            self.store.let_go()
        async with asyncio.timeout(5):
            await self.conversations.close()
        assert self.conversations.decider._open == 0
        assert not self.store.handed

    @property
    def open(self) -> bool:
        return bool(self.reads) or not all(each.answers for each in self.sent)

    def send(self) -> None:
        random = self.random
        number = len(self.sent)
        again = random.choice(self.sent) if self.sent and random.random() < 0.15 else None
        if again is not None and again.context.command_id is not None:
            id, command = again.id, again.command
            command_id: str | None = again.context.command_id
            if random.random() < 0.2:
                command = some_command(random, number)
        else:
            id = random.choice(IDS)
            begins = not self.store.log[id.key] and random.random() < 0.5
            command = some_command(random, number, "init" if begins else None)
            command_id = f"command-{number}" if random.random() < 0.7 else None
        version = len(self.store.log[id.key])
        expected = random.choice([None] * 8 + [version, version + 1, max(0, version - 1)])
        context = CommandContext(command_id, f"n{number}", expected)
        sent = Sent(number, id, command, context, version)
        self.sent.append(sent)
        self.conversations.execute(id, command, context, lambda answer: self.answered(sent, answer))

    def answered(self, sent: Sent, answer: Answer | Exception) -> None:
        sent.answers.append(answer)
        sent.to_version = len(self.store.log[sent.id.key])
        if isinstance(answer, Answer):
            sent.events, sent.seqs = tuple(answer.events), tuple(answer.seqs)
            sent.receipt = answer.receipt
            sent.version_shown = answer.view.version
            expected = self.store.view(sent.id.key, WINDOW, answer.view.version)
            assert answer.view.state() == expected.state()

    def look(self) -> None:
        id = self.random.choice(IDS)
        log = self.store.log[id.key]
        strong = self.random.random() < 0.3
        min_seq = log[-1].seq if log and self.random.random() < 0.3 else None
        sure = strong or min_seq is not None or not self.lag
        at_least = len(log) if sure else 0
        task = asyncio.ensure_future(self.read(id, at_least, min_seq, strong=strong))
        self.reads.add(task)
        task.add_done_callback(self.reads.discard)

    async def read(
        self, id: ConversationId, at_least: int, min_seq: int | None, *, strong: bool
    ) -> None:
        try:
            view = await self.conversations.view(id, min_seq=min_seq, strong=strong)
        except (StoreUnavailable, NotYetThere) as error:
            self.shown[type(error).__name__] += 1
            return
        self.shown["shown"] += 1
        assert view.version >= at_least, "whatever was stored before it was asked for is shown"
        assert view.version <= len(self.store.log[id.key]), "nothing is shown that is not stored"
        assert view.state() == self.store.view(id.key, WINDOW, view.version).state()

    def interfere(self) -> None:
        number = self.random.randrange(10**6, 10**7)
        context = CommandContext(None, f"rival-{number}")
        with contextlib.suppress(ConversationError, Forgotten):
            for _ in range(self.random.choice([1, 1, 3])):
                command = some_command(self.random, number)
                self.store.rival(self.random.choice(IDS), command, context)

    def settle(self) -> None:
        for _ in range(self.random.choice([1, 1, 2, 5])):
            if ready := self.store.may_settle():
                self.store.settle(self.random.choice(ready), self.random.choice(self.fates))

    # -- what has to hold ------------------------------------------------------------------------

    def check_weight(self) -> None:
        entries = self.conversations.cache.entries.values()
        assert self.conversations.cache.weight == sum(entry.weight for entry in entries) >= 0
        assert not any(entry.dropped for entry in entries)

    def check(self) -> Counter[str]:
        """Everything that was answered is what the log says; returns how often what was."""
        told: Counter[str] = Counter()
        by_actor: dict[str, list[tuple[int, ConversationEvent]]] = {}
        commands: Counter[tuple[str, str]] = Counter()
        for id in IDS:
            before = ""
            for recorded, event in zip(
                self.store.log[id.key], self.store.events(id.key), strict=True
            ):
                by_actor.setdefault(event.actor or "", []).append((recorded.seq, event))
                if before != event.command_id:
                    commands[id.key, event.command_id] += 1
                before = event.command_id
        assert set(commands.values()) <= {1}, "a command was carried out twice"
        for sent in self.sent:
            [answer] = sent.answers
            written = by_actor.get(f"n{sent.number}", [])
            told[self.check_answer(sent, answer, written)] += 1
        return told

    def check_answer(
        self, sent: Sent, answer: Answer | Exception, written: list[tuple[int, ConversationEvent]]
    ) -> str:
        if isinstance(answer, OutcomeUnknown):
            return "unknown"
        if isinstance(answer, Answer) and sent.events:
            assert [seq for seq, _ in written] == list(sent.seqs)
            assert [event for _, event in written] == list(sent.events)
            assert sent.version_shown == sent.events[-1].originator_version
            return "written"
        assert not written, f"stored, but answered {answer!r}"
        if isinstance(answer, Answer) and sent.receipt is not None:
            first, last = sent.receipt.first_version, sent.receipt.last_version
            repeated = self.store.events(sent.id.key)[first - 1 : last]
            assert {event.command_id for event in repeated} == {sent.context.command_id}
            assert {event.verb for event in repeated} == {sent.command.verb}
            return "repeated"
        if isinstance(answer, Answer):
            assert self.at_some_time(sent, "nothing to do")
            return "nothing to do"
        if isinstance(answer, ConversationError):
            assert self.at_some_time(sent, answer.code), f"{answer.code} was never so"
            return answer.code
        assert isinstance(answer, StoreUnavailable | TooLarge | Conflict), repr(answer)
        return type(answer).__name__

    def at_some_time(self, sent: Sent, outcome: str) -> bool:
        """Whether this would have been the outcome at a version between question and answer."""
        for version in range(sent.to_version, sent.from_version - 1, -1):
            conversation = self.store.conversation(sent.id.key, version)
            try:
                decision = self.decided(sent, conversation, version)
                found = "done" if decision.events else "nothing to do"
            except ConversationError as refused:
                found = refused.code
            if found == outcome:
                return True
        return False

    def decided(self, sent: Sent, conversation: Conversation | None, version: int) -> Decision:
        try:
            return decide(conversation, sent.id, sent.command, sent.context, Limits())
        except Forgotten as asked:
            about = [
                event
                for event in self.store.events(sent.id.key, version)
                if getattr(event, "message_id", None) == asked.message_id
            ]
            past = PastMessage(
                exists=any(isinstance(event, MessageAppended | ReplyStarted) for event in about),
                redacted=any(isinstance(event, MessageRedacted) for event in about),
            )
            again = self.store.conversation(sent.id.key, version)
            return decide(again, sent.id, sent.command, sent.context, Limits(), past=past)


@pytest.fixture(autouse=True)
def a_short_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Messages of a moment ago are forgotten, and have to be looked up."""
    monkeypatch.setattr(conversation_module, "MESSAGE_IDS_MAX", 6)
    monkeypatch.setattr(recall_module, "_PAGE_EVENTS", 4)


@pytest.fixture(autouse=True)
def a_small_share(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands wait for those before them on their conversation."""
    monkeypatch.setattr(decider_module, "AHEAD_MAX", 3)
    monkeypatch.setattr(decider_module, "AHEAD_ALONE_MAX", 3)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Snapshots at every turn, and nothing that the clock decides: a seed is a schedule."""
    monkeypatch.setattr(snapshots_module, "EVERY_EVENTS", 3)
    monkeypatch.setattr(snapshots_module, "DUTY", float("inf"))
    monkeypatch.setattr(views_module, "WAIT_PAUSE_S", 0)
    monkeypatch.setattr(loader_module, "_pause_s", lambda conflicts: 0)


FATES: list[Fate] = ["stored"] * 20
FATES += ["unavailable", "too large", "unknown, stored", "unknown, lost"]


@pytest.mark.parametrize("seed", range(8))
async def test_everything_is_answered_once_and_as_the_log_says(seed: int) -> None:
    world = World(seed)
    await world.live(500)
    await world.end()
    told = world.check()
    assert told["written"] > 10
    assert world.shown["shown"] == sum(world.shown.values())
    assert world.store.saved, "snapshots were written"


@pytest.mark.parametrize("seed", range(8))
async def test_it_holds_while_writes_and_reads_fail(seed: int) -> None:
    world = World(100 + seed, failing=0.05)
    world.fates = FATES
    await world.live(500)
    await world.end()
    told = world.check()
    assert told["written"] > 10
    assert told["unknown"] + told["StoreUnavailable"] > 0


@pytest.mark.parametrize("seed", range(5))
async def test_it_holds_when_nothing_stays_in_memory(seed: int) -> None:
    world = World(200 + seed, cache_bytes=1)
    world.fates = FATES
    await world.live(400)
    await world.end()
    assert world.check()["written"] > 10
    world.conversations.cache.shrink()
    assert world.conversations.cache.weight == 0
    assert not world.conversations.cache.entries


@pytest.mark.parametrize("seed", range(5))
async def test_it_holds_when_replicas_lag(seed: int) -> None:
    world = World(300 + seed, lag=3)
    await world.live(300)
    await world.end()
    assert world.check()["written"] > 10
