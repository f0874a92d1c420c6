"""The ledger's workers and projections over the fake, and everything that happens to them.

A seed gives the plan (replicas, partitions, workers, caches, which faults and how often), the
commands, the storms and every delay. `play(seed)` returns what was answered how often, or raises
with the seed in the message; the same seed plays the same again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from unittest.mock import patch

from eventsourcing.persistence import OperationalError, Tracking
from nats.errors import Error as NatsError
from pydantic_core import to_json

from domain import conversation as conversation_module
from domain.identity import ConversationId
from domain.mapper import ConversationMapper
from domain.rules import CommandContext
from infra.jetstream.envelope import Recorded
from infra.jetstream.errors import OutcomeUnknown, StoreUnavailable
from infra.jetstream.fence import Fence, LedgerWentBack, Witness
from infra.jetstream.scan import scan
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology
from projections.state import ConversationView
from services import projector as projector_module
from services import recall as recall_module
from services import snapshots as snapshots_module
from services.conversations import Conversations
from services.errors import NotYetThere
from services.in_use.attempt import Answer
from services.others import Others
from services.projector import Following, Projector, State

from .client import FakeClient
from .clock import Clock, run
from .commands import some_command
from .history import LIMITS, Ledger, Sent, check
from .server import Server
from .stream import Kept
from .weather import LATE_S, Weather

WINDOW = 3
LIVE = "live"
ANSWER_WITHIN_S = 180.0
"""In virtual time. A command is decided again for 10 s, and an append is tried for 30 s; the rest
is reading, where each answer is waited for, three times (up to 5 s each), and 40 % never come."""

VIEW_WITHIN_S = 60.0


@dataclass(frozen=True)
class Plan:
    """What a seed's world is like."""

    replicas: int
    partitions: int
    workers: int
    conversations: int
    commands: int
    badness: float
    storms: int
    cache_bytes: int
    forgets: bool
    """In the end the server comes back without its last messages (one replica, one worker)."""

    @classmethod
    def of(cls, random: Random) -> Plan:
        """Draws one."""
        forgets = random.random() < 0.1
        return cls(
            replicas=1 if forgets else random.choice([1, 1, 3]),
            partitions=random.choice([1, 1, 2]),
            workers=1 if forgets else random.choice([1, 2, 3]),
            conversations=random.choice([1, 2, 3, 8]),
            commands=random.choice([30, 60]),
            badness=random.choice([0.0, 0.05, 0.2, 0.4]),
            storms=random.choice([0, 1, 2, 4]),
            cache_bytes=random.choice([1, 10**9, 10**9]),
            forgets=forgets,
        )


class Watch(Fence):
    """A fence that keeps nothing on a disk."""

    def _keep(self, now: Witness) -> None:
        pass


class Worker:
    """What one process of the ledger has: connections, a store, conversations."""

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self.writing = FakeClient(server, f"{name}w")
        self.reading = FakeClient(server, f"{name}r")
        self.serving = FakeClient(server, f"{name}s")
        self.conversations: Conversations
        self.fence: Fence | None = None

    async def open(self, topology: Topology, cache_bytes: int) -> None:
        self.store = await Store.open(
            topology, writing=self.writing.as_client, reading=self.reading.as_client
        )
        self.conversations = Conversations(
            self.store,
            limits=LIMITS,
            window_size=WINDOW,
            cache_bytes=cache_bytes,
            epoch=lambda: self.others.epoch,
        )
        self.others = Others(self.serving.as_client, LIVE, writes=True)
        await self.others.start(self.conversations.heard)

    async def watch(self, topology: Topology) -> None:
        """Has a fence from now on."""
        self.fence = Watch(self.reading.as_client, Path("nowhere"), topology.events_configs())
        self.fence.acknowledged = self.store.acknowledged
        await self.fence.start()

    async def close(self) -> None:
        if self.fence is not None:
            await self.fence.close()
        await self.conversations.close()
        await self.others.stop()
        await self.store.close()


class Tables:
    """The tables of a projection: every event that was written to them, and its fold."""

    name = "plain"
    remedy = "do nothing"

    def __init__(self, random: Random, ledger: Ledger, topology: Topology) -> None:
        self.rows: dict[int, list[tuple[int, str, str]]] = {
            partition: [] for partition in range(topology.partitions)
        }
        self.views: dict[str, ConversationView] = {}
        self.faulty = True
        self._random = random
        self._ledger = ledger
        self._topology = topology
        self._mapper = ConversationMapper()

    def positions(self) -> dict[str, int]:
        return {
            self._topology.stream_name(partition): rows[-1][0]
            for partition, rows in self.rows.items()
            if rows
        }

    def hash_at(self, partition: int, seq: int) -> str | None:
        rows = self.rows[partition]
        return rows[-1][2] if rows and rows[-1][0] == seq else None

    def fold(self, partition: int, events: Sequence[Recorded]) -> Callable[[Tracking], None]:
        return lambda _: self._write(partition, events)

    def _write(self, partition: int, events: Sequence[Recorded]) -> None:
        if self.faulty and self._random.random() < 0.05:
            raise OperationalError("made up: the disk is busy")
        end, last = len(self._ledger.committed(partition)), events[-1].seq
        assert last <= end, f"sequence {last} was shown and never committed"  # all or nothing
        for each in events:
            key, seq, digest = self._topology.originator(each.subject), each.seq, each.digest
            event = self._mapper.event_of(key, each.version, each.topic, each.body)
            self.rows[partition].append((seq, key, digest))
            view = self.views.setdefault(key, ConversationView.empty(WINDOW))
            view.apply(event, seq)

    def forget(self) -> None:
        pass

    def rest(self) -> None:
        pass


class LockStep(Projector):
    """A projector without a thread: what it was given is carried out when `take` returns."""

    def __init__(self, tables: Tables, topology: Topology) -> None:
        super().__init__(tables, topology, changed=lambda: None)

    def _begin(self) -> None:
        pass

    def take(self, partition: int, events: Sequence[Recorded]) -> None:
        self._heard += len(events)
        self._carry_out(partition, events)

    def close(self) -> None:
        self._stopping.set()


@dataclass
class World:
    """Everything that happens for one seed."""

    clock: Clock
    seed: int
    plan: Plan
    random: Random
    server: Server
    topology: Topology
    ledger: Ledger
    ids: list[ConversationId]
    workers: list[Worker] = field(default_factory=list)
    sent: list[Sent] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    acknowledged: Counter[str] = field(default_factory=Counter)
    """The highest version that anybody was told, by conversation."""
    calm: bool = False
    over: bool = False
    forgotten: dict[int, list[Kept]] | None = None
    """What was there before the server forgot its last messages, by partition."""
    _waiting: dict[int, asyncio.Future[None]] = field(default_factory=dict)

    @classmethod
    def begin(cls, clock: Clock, seed: int) -> World:
        """The world of a seed, before anything has happened in it."""
        random = Random(seed)
        plan = Plan.of(random)
        weather = Weather(random, badness=plan.badness)
        server = Server(clock, weather, replicas=plan.replicas)
        topology = Topology(
            stream="EVENTS",
            prefix="evt",
            live_prefix=LIVE,
            snapshot_stream="SNAPSHOTS",
            snapshot_prefix="snap",
            partitions=plan.partitions,
            replicas=plan.replicas,
            originator_tokens=2,
        )
        ids = [ConversationId.parse("acme", f"c-{n}") for n in range(plan.conversations)]
        ledger = Ledger(server, topology, WINDOW)
        return cls(clock, seed, plan, random, server, topology, ledger, ids)

    async def live(self) -> None:
        """From the first command to the last check."""
        self.server.weather.bad = False
        for number in range(self.plan.workers):
            worker = Worker(self.server, f"w{number}")
            await worker.open(self.topology, self.plan.cache_bytes)
            if self.plan.forgets:
                await worker.watch(self.topology)
            self.workers.append(worker)
        self.server.weather.bad = self.plan.badness > 0
        tables = Tables(Random(self.seed), self.ledger, self.topology)
        callers = [self._call(10) for _ in range(self.plan.commands // 10)]
        beside = [self._storm(), self._look(), self._scan(), self._project(tables)]
        others = [asyncio.ensure_future(each) for each in beside]
        await asyncio.gather(*callers)
        self.calm = True
        self.server.weather.bad = False
        if self.plan.forgets:
            await self._forget()
        await asyncio.sleep(LATE_S)
        self.over = True
        await asyncio.gather(*others)
        for worker in self.workers:
            await worker.close()
        self.told += check(self.sent, self.ledger, self.ids)
        self._check_tables(tables)

    # -- commands ----------------------------------------------------------------------------------

    async def _call(self, commands: int) -> None:
        """One caller: sends, waits for the answer or not, and repeats what is not known."""
        random = self.random
        for _ in range(commands):
            sent = self._send(random.choice(self.workers))
            if random.random() < 0.6:
                await self._answered(sent)
                again = isinstance(sent.answers[0], OutcomeUnknown | StoreUnavailable)
                if again and sent.context.command_id is not None and random.random() < 0.8:
                    await self._answered(self._send(random.choice(self.workers), again=sent))
            if random.random() < 0.5:
                await asyncio.sleep(random.choice([0.001, 0.01, 0.5]) * random.random())
        for sent in list(self.sent):
            await self._answered(sent)

    def _send(self, worker: Worker, again: Sent | None = None) -> Sent:
        random, number = self.random, len(self.sent)
        if again is None and self.sent and random.random() < 0.1:
            again = random.choice(self.sent)
        if again is not None and again.context.command_id is not None:
            id, command = again.id, again.command
            command_id: str | None = again.context.command_id
        else:
            id = random.choice(self.ids)
            begins = not self.ledger.book(id.key).version and random.random() < 0.7
            command = some_command(random, number, "init" if begins else None)
            command_id = f"command-{number}" if random.random() < 0.7 else None
        version = self.ledger.book(id.key).version
        expected = random.choice([None] * 12 + [version, version + 1, max(0, version - 1)])
        context = CommandContext(command_id, f"n{number}", expected)
        sent = Sent(number, id, command, context, version, self.clock.now)
        self.sent.append(sent)
        self._waiting[number] = asyncio.get_running_loop().create_future()
        worker.conversations.execute(id, command, context, lambda answer: self._hear(sent, answer))
        return sent

    def _hear(self, sent: Sent, answer: Answer | Exception) -> None:
        sent.answers.append(answer)
        sent.answered_at = self.clock.now
        sent.to_version = self.ledger.book(sent.id.key).version
        if isinstance(answer, Answer):
            sent.events, sent.seqs = tuple(answer.events), tuple(answer.seqs)
            sent.receipt = answer.receipt
            sent.version_shown = answer.view.version
            sent.state_shown = to_json(answer.view.state())
            key = sent.id.key
            self.acknowledged[key] = max(self.acknowledged[key], sent.version_shown)
        said = type(answer).__name__
        self.server.log(f"n{sent.number} {sent.command.verb}: {said} {list(sent.seqs)}")
        waiting = self._waiting[sent.number]
        if not waiting.done():
            waiting.set_result(None)

    async def _answered(self, sent: Sent) -> None:
        await self._waiting[sent.number]
        seconds = sent.answered_at - sent.sent_at
        assert seconds <= ANSWER_WITHIN_S, f"n{sent.number} was answered after {seconds:.0f} s"

    # -- readers -----------------------------------------------------------------------------------

    async def _look(self) -> None:
        """Looks at conversations, until it is calm; what is shown is in the ledger."""
        random = self.random
        while not self.calm:
            await asyncio.sleep(random.choice([0.002, 0.05, 1.0]) * random.random())
            id, worker = random.choice(self.ids), random.choice(self.workers)
            book = self.ledger.book(id.key)
            strong = random.random() < 0.3
            min_seq = book.seqs[-1] if book.seqs and random.random() < 0.3 else None
            # Fresh is what was acknowledged to anybody; what the ledger has, when it was asked for.
            fresh = self.acknowledged[id.key] if self.plan.replicas == 1 else 0
            at_least = book.version if strong or min_seq is not None else fresh
            started = self.clock.now
            try:
                await worker.serving.flush()  # the request takes its way like any message
                view = await worker.conversations.view(id, min_seq=min_seq, strong=strong)
            except (StoreUnavailable, NotYetThere, NatsError) as error:
                self.told[f"view {type(error).__name__}"] += 1
            else:
                if self.forgotten is not None:
                    return
                self.told["view shown"] += 1
                version = view.version
                assert version >= at_least, f"{id.key} shown at {version}, had {at_least}"
                there = self.ledger.book(id.key).version
                assert version <= there, f"{id.key} shown at {version}, only {there} committed"
                assert to_json(view.state()) == self.ledger.book(id.key).state(version)
            assert self.clock.now - started <= VIEW_WITHIN_S

    async def _scan(self) -> None:
        """Reads whole streams, now and then; what comes is committed, and has no gap."""
        random = self.random
        while not self.calm:
            await asyncio.sleep(random.choice([0.05, 2.0]) * random.random())
            partition = random.randrange(self.plan.partitions)
            at_least = len(self.ledger.committed(partition)) if self.plan.replicas == 1 else 0
            reading = random.choice(self.workers).reading.as_client
            seqs: list[int] = []
            try:
                blocks = scan(reading, self.topology.stream_name(partition))
                async for block in blocks:
                    seqs += [stored.seq for stored in block]
            except StoreUnavailable as error:
                self.told[f"scan {type(error).__name__}"] += 1
                continue
            if self.forgotten is not None:
                return
            assert seqs == list(range(1, len(seqs) + 1)), f"a scan read {seqs}"
            committed = len(self.ledger.committed(partition))
            assert at_least <= len(seqs) <= committed, f"scanned {len(seqs)} of {committed}"
            self.told["scanned"] += 1

    async def _project(self, tables: Tables) -> None:
        """Follows the ledger into tables; is started anew now and then."""
        random = self.random
        client = FakeClient(self.server, "p").as_client
        ended = False
        while not ended:
            projector = LockStep(tables, self.topology)
            following = Following(client, projector)
            try:
                await following.start()
            except StoreUnavailable:
                await asyncio.sleep(0.5)
            else:
                until = self.clock.now + random.choice([0.5, 5.0, 1000.0]) * random.random()
                while self.clock.now < until and not ended:
                    following.wake()
                    stopped = projector.progress.state is State.STOPPED
                    assert not stopped or self.forgotten, projector.progress.reason
                    ended = self.over and (bool(self.forgotten) or self._is_up_to_date(tables))
                    await asyncio.sleep(0.25)
            finally:
                await following.close()
                projector.close()

    def _is_up_to_date(self, tables: Tables) -> bool:
        tables.faulty = False
        return all(
            len(rows) >= len(self.ledger.committed(partition))
            for partition, rows in tables.rows.items()
        )

    def _check_tables(self, tables: Tables) -> None:
        for partition, rows in tables.rows.items():
            ledgers = [self.ledger.committed(partition)]
            if self.forgotten is not None:  # an end of either may be missing
                ledgers = [log[: len(rows)] for log in (*ledgers, self.forgotten[partition])]
            there = [
                [
                    (each.seq, self.topology.originator(each.subject), each.headers["Event-Hash"])
                    for each in log
                ]
                for log in ledgers
            ]
            assert rows in there, f"partition {partition}: the tables are not the ledger"
        if self.forgotten is not None:
            return
        for id in self.ids:
            book = self.ledger.book(id.key)
            view = tables.views.get(id.key, ConversationView.empty(WINDOW))
            assert to_json(view.state()) == book.state(book.version), "the tables are not its fold"

    # -- what happens to them ----------------------------------------------------------------------

    async def _storm(self) -> None:
        random = self.random
        for _ in range(self.plan.storms):
            await asyncio.sleep(random.choice([0.02, 0.5, 3.0]) * random.random())
            if self.calm:
                return
            kinds = ["disconnect", "pause", "full"]
            kinds += ["kill", "kill", "wedge"] if self.plan.replicas == 1 else ["leader"] * 3
            await self._strike(random.choice(kinds))

    async def _forget(self) -> None:
        """The server comes back without its last messages; who knew of them has to notice."""
        [worker] = self.workers
        assert worker.fence is not None
        for id in self.ids:
            self.ledger.book(id.key)
        self.ledger.closed = True
        partitions = range(self.topology.partitions)
        self.forgotten = {each: list(self.ledger.committed(each)) for each in partitions}
        known = {}
        for partition in partitions:
            stream = self.topology.stream_name(partition)
            if witness := worker.fence._seen.get(stream):
                last = worker.store.acknowledged(stream)
                known[partition] = max(witness.seq, last.seq if last else 0)
        self.server.kill(self.random.random(), forget=self.random.randint(1, 5))
        forgot = [each for each in partitions if self._lacks(each, len(self.forgotten[each]))]
        refused = await self._is_refused(worker.fence)
        # A late copy may have brought it back by now, and a look under way may have known more.
        missed = any(self._lacks(each, known.get(each, 0)) for each in partitions)
        assert refused or not missed, f"known was {known}"
        assert forgot or not refused, "nothing was forgotten"
        self.told["went back, noticed"] += refused

    def _lacks(self, partition: int, seq: int) -> bool:
        """Whether the message that had this sequence is not there any more."""
        assert self.forgotten is not None
        there = self.ledger.committed(partition)
        if seq > len(there):
            return True
        if seq == 0:
            return False
        now, before = there[seq - 1], self.forgotten[partition][seq - 1]
        return now.headers["Event-Hash"] != before.headers["Event-Hash"]

    async def _is_refused(self, fence: Fence) -> bool:
        await asyncio.sleep(1.5)  # longer than the server is away
        while True:
            try:
                await fence.passed()
            except LedgerWentBack:
                return True
            except StoreUnavailable:
                continue
            return False

    async def _strike(self, kind: str) -> None:
        random, server = self.random, self.server
        self.told[kind] += 1
        seconds = random.choice([0.05, 1.5, 6.0]) * random.random()
        match kind:
            case "disconnect":
                for connection in list(server.connections):
                    if random.random() < 0.5:
                        connection.lose(seconds)
            case "pause":
                server.pause(seconds)
            case "full":
                for stream in server.streams.values():
                    stream.full = True
                await asyncio.sleep(seconds)
                for stream in server.streams.values():
                    stream.full = False
            case "kill":
                server.kill(seconds)
            case "wedge":
                server.wedge()
                await asyncio.sleep(seconds)
                server.kill(0.2)
            case "leader":
                server.change_leader(seconds)


class SeedFailed(AssertionError):
    """A seed has found something; the message says which, and what. `trace`: how it came to it."""

    trace: Sequence[str] = ()


@contextlib.contextmanager
def _a_short_memory() -> Iterator[None]:
    """Messages of a moment ago are forgotten and looked up; snapshots are made all the time."""
    with (
        patch.object(conversation_module, "MESSAGE_IDS_MAX", 6),
        patch.object(recall_module, "_PAGE_EVENTS", 4),
        patch.object(snapshots_module, "EVERY_EVENTS", 3),
        patch.object(projector_module, "RETRY_S", 0.0),
    ):
        yield


@dataclass(frozen=True)
class Played:
    """What a seed came to: how often what was answered, and all that reached the server."""

    told: Counter[str]
    trace: list[str]


def play(seed: int) -> Played:
    """Plays the world of a seed to its end. Raises SeedFailed."""
    worlds: list[World] = []

    async def main(clock: Clock) -> None:
        worlds.append(World.begin(clock, seed))
        await worlds[0].live()

    with _a_short_memory():
        try:
            run(main, seed=seed)
        except Exception as error:
            [world] = worlds
            failure = SeedFailed(f"seed {seed} ({world.plan}): {error!r}")
            failure.trace = world.server.trace
            raise failure from error
    told = worlds[0].told + worlds[0].server.weather.struck
    return Played(told, worlds[0].server.trace)
