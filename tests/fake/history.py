"""Everything that was sent and answered, held against what the ledger says in the end.

The ledger is read out of the fake itself, and folded without the services.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from eventsourcing.persistence import StoredEvent
from pydantic_core import to_json

from domain.commands import Command
from domain.conversation import Conversation, Receipt, evolve
from domain.errors import ConversationError
from domain.events import ConversationEvent, MessageAppended, MessageRedacted, ReplyStarted
from domain.identity import ConversationId
from domain.mapper import ConversationMapper
from domain.rules import CommandContext, Decision, Forgotten, Limits, PastMessage, decide
from infra.jetstream.envelope import EVENT_HASH, EVENT_TYPE, EVENT_VERSION, GENESIS
from infra.jetstream.errors import Conflict, OutcomeUnknown, StoreUnavailable, TooLarge
from infra.jetstream.topology import Topology
from projections.state import ConversationView
from services.in_use.attempt import Answer

from .server import Server
from .stream import Kept

LIMITS = Limits()


class Book:
    """One conversation as it is in the ledger, read as far as it has come."""

    def __init__(self, key: str, window_size: int) -> None:
        self.key = key
        self.events: list[ConversationEvent] = []
        self.seqs: list[int] = []
        self._view = ConversationView.empty(window_size)
        self._digest = GENESIS
        self._states = [to_json(self._view.state())]
        self._mapper = ConversationMapper()

    @property
    def version(self) -> int:
        return len(self.events)

    def take(self, kept: Kept) -> None:
        """Reads the next event; it has to fit the one before it."""
        version = self.version + 1
        digest = hashlib.sha256(self._digest + kept.body).digest()
        place = f"{kept.subject} at sequence {kept.seq}"
        assert kept.headers[EVENT_VERSION] == str(version), f"{place} is not version {version}"
        assert kept.headers[EVENT_HASH] == digest.hex(), f"{place} does not fit its chain"
        event = self._mapper.to_domain_event(
            StoredEvent(self.key, version, kept.headers[EVENT_TYPE], kept.body)
        )
        self._digest = digest
        self.events.append(event)
        self.seqs.append(kept.seq)
        self._view.apply(event, kept.seq)
        self._states.append(to_json(self._view.state()))

    def state(self, version: int) -> bytes:
        """What a view of it shows at a version, as JSON."""
        return self._states[version]

    def conversation(self, version: int) -> Conversation | None:
        """The aggregate as it was at a version."""
        conversation: Conversation | None = None
        for event in self.events[:version]:
            conversation = evolve(conversation, event)
        return conversation


class Ledger:
    """All conversations of a fake server's streams: what is committed there, and nothing else."""

    def __init__(self, server: Server, topology: Topology, window_size: int) -> None:
        self._server = server
        self._topology = topology
        self._window_size = window_size
        self.closed = False
        """Nothing is read any more: what is in the streams from now on is another ledger."""
        self._read: Counter[int] = Counter()
        self._books: dict[str, Book] = {}

    def book(self, key: str) -> Book:
        """A conversation with all that is committed by now."""
        for partition in range(self._topology.partitions):
            self._read_on(partition)
        if key not in self._books:
            self._books[key] = Book(key, self._window_size)
        return self._books[key]

    def committed(self, partition: int) -> list[Kept]:
        """What is committed in a partition, oldest first."""
        stream = self._server.streams[self._topology.stream_name(partition)]
        return stream.log[: stream.committed]

    def _read_on(self, partition: int) -> None:
        if self.closed:
            return
        stream = self._server.streams[self._topology.stream_name(partition)]
        for kept in stream.log[self._read[partition] : stream.committed]:
            key = self._topology.originator(kept.subject)
            if key not in self._books:
                self._books[key] = Book(key, self._window_size)
            self._books[key].take(kept)
        self._read[partition] = stream.committed


@dataclass
class Sent:
    """One command that was sent, and everything that was answered to it; times in virtual s."""

    number: int
    id: ConversationId
    command: Command
    context: CommandContext
    from_version: int
    sent_at: float
    answers: list[Answer | Exception] = field(default_factory=list)
    events: tuple[ConversationEvent, ...] = ()
    seqs: tuple[int, ...] = ()
    receipt: Receipt | None = None
    version_shown: int = 0
    state_shown: bytes = b""
    to_version: int = 0
    answered_at: float = 0.0


def check(sent: list[Sent], ledger: Ledger, ids: list[ConversationId]) -> Counter[str]:
    """Everything that was answered is what the ledger says; returns how often what was.

    Acknowledged events are there, once, where they were said to be; refused ones are not; a
    refusal, or a command with nothing to do, was right at some time between question and answer.
    """
    by_actor: dict[str, list[tuple[int, ConversationEvent]]] = defaultdict(list)
    runs: Counter[tuple[str, str]] = Counter()
    for id in ids:
        book = ledger.book(id.key)
        before = ""
        for seq, event in zip(book.seqs, book.events, strict=True):
            by_actor[event.actor or ""].append((seq, event))
            if before != event.command_id:
                runs[id.key, event.command_id] += 1
            before = event.command_id
    twice = [run for run, times in runs.items() if times > 1]
    assert not twice, f"carried out twice: {twice}"
    told: Counter[str] = Counter()
    for each in sent:
        assert len(each.answers) == 1, f"{each.number} was answered {len(each.answers)} times"
        written = by_actor[f"n{each.number}"]
        told[_check_answer(each, each.answers[0], written, ledger.book(each.id.key))] += 1
    return told


def _check_answer(
    sent: Sent,
    answer: Answer | Exception,
    written: list[tuple[int, ConversationEvent]],
    book: Book,
) -> str:
    if isinstance(answer, OutcomeUnknown):
        return "unknown"
    if isinstance(answer, Answer):
        assert sent.state_shown == book.state(sent.version_shown), f"{sent.number} shown otherwise"
    if isinstance(answer, Answer) and sent.events:
        found = [seq for seq, _ in written]
        assert found == list(sent.seqs), f"{sent.number} told {sent.seqs}, found {found}"
        assert [event for _, event in written] == list(sent.events)
        assert sent.version_shown == sent.events[-1].originator_version
        return "written"
    assert not written, f"{sent.number} is stored at {written[0][0]}, but answered {answer!r}"
    if isinstance(answer, Answer) and sent.receipt is not None:
        first, last = sent.receipt.first_version, sent.receipt.last_version
        repeated = book.events[first - 1 : last]
        assert {event.command_id for event in repeated} == {sent.context.command_id}
        assert {event.verb for event in repeated} == {sent.command.verb}
        return "repeated"
    if isinstance(answer, Answer):
        assert _at_some_time(sent, book, "nothing to do"), f"{sent.number} had something to do"
        return "nothing to do"
    if isinstance(answer, ConversationError):
        assert _at_some_time(sent, book, answer.code), f"{sent.number}: {answer.code} never held"
        return answer.code
    assert isinstance(answer, StoreUnavailable | TooLarge | Conflict), repr(answer)
    return type(answer).__name__


def _at_some_time(sent: Sent, book: Book, outcome: str) -> bool:
    """Whether this would have been the outcome at a version between question and answer."""
    for version in range(sent.to_version, sent.from_version - 1, -1):
        try:
            decision = _decided(sent, book, version)
            found = "done" if decision.events else "nothing to do"
        except ConversationError as refused:
            found = refused.code
        if found == outcome:
            return True
    return False


def _decided(sent: Sent, book: Book, version: int) -> Decision:
    try:
        return decide(book.conversation(version), sent.id, sent.command, sent.context, LIMITS)
    except Forgotten as asked:
        about = [
            event
            for event in book.events[:version]
            if getattr(event, "message_id", None) == asked.message_id
        ]
        past = PastMessage(
            exists=any(isinstance(event, MessageAppended | ReplyStarted) for event in about),
            redacted=any(isinstance(event, MessageRedacted) for event in about),
        )
        again = book.conversation(version)
        return decide(again, sent.id, sent.command, sent.context, LIMITS, past=past)
