"""The analytics path measured.

    python -m tests.benchmarks.analytics [EVENTS] [--data DIR] [--rounds N]

One ledger of EVENTS events (half messages, half usage, as in a chat), then in the same run, N times
one after the other (3, medians):

- do-nothing: nats-py reads the stream, its first million events at most, through an ordered
  consumer with a callback that counts them, on uvloop; once also by `fetch(1000)`;
- ingest: an empty projection, in a new process, catches up with the same stream;

and then, with the tables of the last ingest:

- lag: 2,000 events/s more, how long it takes until one just stored is in an answer (p50, p99);
- daily usage: `FROM daily_usage` meanwhile, over NATS (p50, p99);
- memory: what the analytics process took after each half million events of the ingest, and at most.

With --data the ledger is kept in DIR, or taken from there where it has that many events: the
filling and the measuring may then be two runs. With --tables the tables there are taken too, as the
run before has left them: lag and daily usage alone are measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg

from domain.events import ConversationEvent, ConversationStarted, MessageAppended, UsageRecorded
from domain.identity import ConversationId
from domain.mapper import ConversationMapper
from infra.connection import connect
from infra.jetstream.envelope import pack
from infra.jetstream.store import Store
from infra.loop import run
from infra.server import EmbeddedServer
from infra.settings import Settings
from infra.supervision import Child, Program, Supervisor
from services.bootstrap import topology
from services.projector import heads

ROOT = Path(__file__).resolve().parents[2]
BATCH = 1_000
CONVERSATIONS = 5_000
TEXT = "the quick brown fox jumps over the lazy dog and so on "
MODELS = ("gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro", "of-our-own")
LAG_RATE = 2_000
LAG_S = 15.0
FETCHED = 200_000
CONSUMED = 1_000_000
ROUNDS = 3
POLL_S = 0.1
MEMORY_EVERY = 500_000


class Source:
    """Events as a chat makes them, over `CONVERSATIONS` conversations of 20 tenants."""

    def __init__(self, store: Store, name: str) -> None:
        self._store = store
        self._name = name
        self._mapper = ConversationMapper()
        self._tails: dict[str, Any] = {}
        self._made = 0

    async def write(self, count: int) -> None:
        """Stores `count` events in batches."""
        while count > 0:
            size = min(BATCH, count)
            await self._store.append([self._packed() for _ in range(size)])
            for tail in self._tails.values():
                tail.in_flight = False
            count -= size

    def _packed(self) -> Any:
        number = self._made // 2 % CONVERSATIONS
        key = ConversationId(f"tenant-{number % 20}", f"{self._name}-{number}").key
        tail = self._tails.get(key)
        if tail is None:
            tail = self._tails[key] = self._store.tail(key, None)
        stored = self._mapper.to_stored_event(self._event(key, tail.version + 1))
        self._made += 1
        return pack(tail, stored.topic, stored.originator_version, stored.state)

    def _event(self, key: str, version: int) -> ConversationEvent:
        common: dict[str, Any] = {
            "originator_id": key,
            "originator_version": version,
            "timestamp": datetime.now(UTC),
            "actor": None,
            "command_id": f"command-{self._made}",
            "verb": "append",
        }
        if version == 1:
            user = f"user-{hash(key) % 500}"
            return ConversationStarted(**common, user_id=user, context={}, metadata={})
        if self._made % 2:
            return UsageRecorded(
                **common,
                prompt_tokens=self._made % 3_000,
                completion_tokens=self._made % 700,
                model=MODELS[self._made // 2 % len(MODELS)],
                metadata={},
            )
        return MessageAppended(
            **common,
            message_id=f"message-{self._made}",
            role="user" if self._made % 4 else "assistant",
            content=TEXT,
            metadata={},
        )


async def ordered(url: str, count: int) -> float:
    """Events/s of an ordered consumer whose callback does nothing."""
    client = await nats.connect(url)
    seen = 0
    done = asyncio.Event()

    async def nothing(_: Msg) -> None:
        nonlocal seen
        seen += 1
        if seen == count:
            done.set()

    started = time.perf_counter()
    await client.jetstream().subscribe(
        "convo.evt.>",
        ordered_consumer=True,
        cb=nothing,
        pending_msgs_limit=-1,
        pending_bytes_limit=-1,
    )
    await done.wait()
    rate = count / (time.perf_counter() - started)
    await client.close()
    return rate


async def fetching(url: str, count: int) -> float:
    """Events/s of `fetch(1000)`, doing nothing with them."""
    client = await nats.connect(url)
    subscription = await client.jetstream().pull_subscribe(
        "convo.evt.>",
        stream="CONVO-EVENTS-0",
        config=nats.js.api.ConsumerConfig(
            ack_policy=nats.js.api.AckPolicy.NONE, mem_storage=True, inactive_threshold=30
        ),
    )
    started = time.perf_counter()
    seen = 0
    while seen < count:
        seen += len(await subscription.fetch(1_000, timeout=5))
    rate = count / (time.perf_counter() - started)
    await client.close()
    return rate


async def ask(client: Client, sql: str, min_seq: int | None = None) -> Any:
    headers = None if min_seq is None else {"Convo-Min-Seq": str(min_seq)}
    body = json.dumps({"sql": sql}).encode()
    return json.loads((await client.request("convo.sql", body, timeout=30, headers=headers)).data)


async def position(client: Client) -> int:
    try:
        answer = await client.request("$SRV.STATS.convo-analytics", timeout=2)
    except nats.errors.Error:
        return 0
    says = json.loads(answer.data)["endpoints"][0]["data"]
    return int(says.get("positions", {}).get("0", 0))


async def ingesting(client: Client, count: int, child: Child) -> tuple[float, list[int]]:
    """Events/s of an empty projection that catches up, from its first event on; and what it took
    in memory (MB) after each `MEMORY_EVERY` events."""
    while not (first := await position(client)):  # noqa: ASYNC110 (of another process)
        await asyncio.sleep(0.01)
    started = time.perf_counter()
    memory: list[int] = []
    while (now := await position(client)) < count:
        if now >= MEMORY_EVERY * (len(memory) + 1):
            memory.append(memory_mb(child, "VmRSS"))
        await asyncio.sleep(POLL_S)
    rate = (now - first) / (time.perf_counter() - started)
    return rate, [*memory, memory_mb(child, "VmRSS")]


async def steady(source: Source, work: Callable[[], Awaitable[None]]) -> None:
    """Stores `LAG_RATE` events/s for `LAG_S` while `work` is repeated beside it."""
    repeating = asyncio.create_task(repeat(work))
    step = 100
    due = time.perf_counter()
    for _ in range(int(LAG_S * LAG_RATE / step)):
        await source.write(step)
        due += step / LAG_RATE
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
    repeating.cancel()
    await asyncio.gather(repeating, return_exceptions=True)


async def repeat(work: Callable[[], Awaitable[None]]) -> None:
    while True:
        await work()
        await asyncio.sleep(0.02)


def shown(values: list[float]) -> str:
    cuts = quantiles(values, n=100)
    return f"p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms, most {max(values):.0f} ms"


def memory_mb(child: Child, what: str) -> int:
    """What the process takes (`VmRSS`), or took at most (`VmHWM`)."""
    status = Path(f"/proc/{child.pid}/status").read_text(encoding="ascii")
    line = next(each for each in status.splitlines() if each.startswith(what))
    return int(line.split()[1]) // 1024


class Service:
    """`convo serve analytics` in a process of its own."""

    def __init__(self, directory: Path, url: str) -> None:
        self.url = url
        self._tables = directory / "analytics"
        self._supervisor = Supervisor(directory / "status.json")
        environment = {
            **os.environ,
            "CONVO_DATA_DIR": str(directory),
            "CONVO_NATS_URL": url,
            "PYTHONPATH": str(ROOT),
        }
        argv = (sys.executable, "-P", "-m", "services.cli", "serve", "analytics")
        self._program = Program("analytics", argv, environment)

    def start(self) -> Child:
        """Starts it with the tables that are there."""
        return self._supervisor.start(self._program)

    async def stop(self) -> None:
        await self._supervisor.stop(["analytics"], within=10, hurry=asyncio.Event())
        self._supervisor.children.pop("analytics", None)

    async def start_anew(self) -> Child:
        """Ends it and starts it without tables."""
        await self.stop()
        shutil.rmtree(self._tables, ignore_errors=True)
        return self.start()


async def compared(service: Service, client: Client, head: int, rounds: int) -> Child:
    """Has the consumer that does nothing and an ingest take turns; returns the last ingest's
    process."""
    consumed: list[float] = []
    ingested: list[float] = []
    for _ in range(rounds):
        await service.stop()  # it would read along
        consumed.append(await ordered(service.url, min(head, CONSUMED)))
        child = await service.start_anew()
        rate, memory = await ingesting(client, head, child)
        ingested.append(rate)
        print(f"ordered consumer  {consumed[-1]:>9,.0f} events/s, doing nothing")
        print(f"ingest            {rate:>9,.0f} events/s")
        took = ", ".join(f"{each:,}" for each in memory)
        print(f"memory            {took} MB after each {MEMORY_EVERY:,} events and at the end")
        print(f"                  {memory_mb(child, 'VmHWM'):,} MB at most", flush=True)
    ratio = median(ingested) / median(consumed)
    print(f"medians           {median(ingested):>9,.0f} events/s of {median(consumed):,.0f}")
    print(f"                  {ratio:>9.2f} of it", flush=True)
    return child


async def measure(count: int, directory: Path, *, tables: bool, rounds: int) -> None:
    settings = Settings(data_dir=directory)
    async with EmbeddedServer(directory) as server:
        writing = await connect(server.url, name="bench", settings=settings)
        reading = await connect(server.url, name="bench-read", settings=settings)
        store = await Store.open(topology(settings), writing=writing, reading=reading)
        there = (await heads(reading, store.topology))[0]
        if there < count:
            started = time.perf_counter()
            await Source(store, f"c{there}").write(count - there)
            print(f"stored            {(count - there) / (time.perf_counter() - started):>9,.0f}/s")
        head = (await heads(reading, store.topology))[0]
        service = Service(directory, server.url)
        if tables:
            child = service.start()
            await ingesting(reading, head, child)
        else:
            fetched = await fetching(server.url, min(head, FETCHED))
            print(f"fetch(1000)       {fetched:>9,.0f} events/s, doing nothing", flush=True)
            child = await compared(service, reading, head, rounds)
        used = (await ask(reading, "SELECT count(*) FROM usage"))["rows"][0][0]
        queries: list[float] = []
        lags: list[float] = []

        async def query() -> None:
            began = time.perf_counter()
            answer = await ask(reading, "SELECT * FROM daily_usage")
            assert answer["ok"], answer
            queries.append((time.perf_counter() - began) * 1000)

        async def lag() -> None:
            last = await store.reader.last("CONVO-EVENTS-0", "convo.evt.0.>")
            if last is not None:
                began = time.perf_counter()
                answer = await ask(reading, "SELECT 1", last.seq)
                assert answer["ok"], answer
                lags.append((time.perf_counter() - began) * 1000)

        source = Source(store, f"c{head}")
        await steady(source, lag)
        print(f"lag               {shown(lags)} at {LAG_RATE:,} events/s ({len(lags)} samples)")
        await steady(source, query)
        print(f"daily usage       {shown(queries)} over {used:,} usage rows while ingesting")
        print(f"memory            {memory_mb(child, 'VmHWM'):,} MB at most")
        await service.stop()
        await store.close()
        await writing.close()
        await reading.close()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    options.add_argument("events", type=int, nargs="?", default=1_000_000, metavar="EVENTS")
    options.add_argument("--data", type=Path, metavar="DIR", help="Keep the ledger there.")
    options.add_argument("--tables", action="store_true", help="Take the tables there too.")
    options.add_argument("--rounds", type=int, default=ROUNDS, metavar="N")
    given = options.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        data = given.data or Path(directory)
        run(measure(given.events, data, tables=given.tables, rounds=given.rounds))


if __name__ == "__main__":
    main()
