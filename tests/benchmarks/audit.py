"""How fast a whole ledger is checked, beside a consumer of the same stream that does nothing.

    python -m tests.benchmarks.audit [EVENTS] [CONVERSATIONS] [ROUNDS]

Fills a stream, then reads it three times in each round: by an ordered consumer of nats-py (its own
client, none of this project's) doing nothing, by `check_partition` with a notary's checkpoints, and
by the scan that this reads with, doing nothing. Prints rates, and the most memory that this process
took.
"""

from __future__ import annotations

import asyncio
import resource
import sys
import tempfile
import time
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.js.api import ConsumerConfig

from infra.connection import connect
from infra.jetstream.envelope import Message, Tail, pack
from infra.jetstream.scan import scan
from infra.jetstream.store import Store
from infra.loop import run
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.bootstrap import topology
from services.ledger_check import check_partition
from services.notary import Notary, checkpoints_subject, last_record

BATCH = 1_000
LEDGER = topology(Settings())


async def fill(store: Store, events: int, conversations: int) -> None:
    """Stores that many events, of that many conversations side by side."""
    tails = [Tail(LEDGER.subject(f"acme.c-{number}")) for number in range(conversations)]
    for start in range(0, events, BATCH):
        batch = [
            message(tails[number % conversations], number)
            for number in range(start, min(events, start + BATCH))
        ]
        seqs = await store.append(batch)
        for seq, each in zip(seqs, batch, strict=True):
            each.tail.seq, each.tail.stored = seq, each.digest


def message(tail: Tail, number: int) -> Message:
    """One event of about 400 bytes, as the ledger stores it."""
    conversation = tail.subject.rpartition(".")[2]
    version = tail.version + 1
    body = (
        f'{{"type":"MessageAppended","schema":1,"tenant_id":"acme",'
        f'"conversation_id":"{conversation}","version":{version},'
        f'"time":"2026-11-21T09:00:00.123456Z","actor":null,"command_id":"x{number}",'
        f'"verb":"append","data":{{"message_id":"m-{number}","role":"user","content":'
        f'"{"What was said. " * 12}","metadata":{{}}}}}}'
    )
    return pack(tail, "MessageAppended", version, body.encode())


async def by_scan(nc: Client, url: str, stream: str, events: int) -> None:
    """Reads everything and does nothing."""
    del url
    read = 0
    async for block in scan(nc, stream):
        read += len(block)
    assert read == events


async def by_ordered_consumer(nc: Client, url: str, stream: str, events: int) -> None:
    """The same by nats-py's own client, with its ordered consumer and a callback."""
    del nc
    done = asyncio.Event()
    read = 0

    async def take(message: Msg) -> None:
        nonlocal read
        read += 1
        if read == events:
            done.set()

    plain = await nats.connect(url)
    await plain.jetstream().subscribe(
        "convo.evt.>", stream=stream, ordered_consumer=True, cb=take, config=ConsumerConfig()
    )
    await done.wait()
    await plain.close()


async def by_check(nc: Client, url: str, stream: str, events: int) -> None:
    """Everything that `convo verify --all` does."""
    del url, stream
    check = await check_partition(nc, LEDGER, 0)
    assert check.valid, check.faults
    assert check.events == events
    assert check.covered > events * 0.99


async def main(events: int, conversations: int, rounds: int) -> None:
    """Fills, signs, measures, prints."""
    with tempfile.TemporaryDirectory() as folder:
        async with EmbeddedServer(Path(folder)) as server:
            settings = Settings(data_dir=Path(folder))
            nc = await connect(server.url, name="bench", settings=settings)
            other = await connect(server.url, name="bench-read", settings=settings)
            store = await Store.open(LEDGER, writing=nc, reading=other)
            began = time.perf_counter()
            await fill(store, events, conversations)
            print(f"{events:,} events stored in {time.perf_counter() - began:.0f} s", flush=True)
            notary = Notary(LEDGER, nc, settings)
            began = time.perf_counter()
            await notary.start()
            while True:
                record = await last_record(nc, checkpoints_subject(0))
                if record is not None and int(record.body.split(b"\n")[1]) > events * 0.99:
                    break
                await asyncio.sleep(0.2)
            await notary.close()
            print(f"the notary caught up in {time.perf_counter() - began:.0f} s", flush=True)
            base_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            for number in range(1, rounds + 1):
                rates = []
                for read in (by_ordered_consumer, by_check, by_scan):
                    began, used = time.perf_counter(), time.process_time()
                    await read(nc, server.url, LEDGER.stream_name(0), events)
                    rate = events / (time.perf_counter() - began)
                    used_us = (time.process_time() - used) / events * 1_000_000
                    rates.append(f"{read.__name__} {rate:,.0f}/s ({used_us:.1f} us of CPU each)")
                print(f"round {number}: {', '.join(rates)}", flush=True)
            peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            print(f"memory: {peak_kib // 1024} MiB at most ({base_kib // 1024} before the rounds)")
            await store.close()
            await nc.close()
            await other.close()


if __name__ == "__main__":
    given = [int(each) for each in sys.argv[1:]]
    defaults = [1_000_000, 20_000, 3]
    run(main(*given, *defaults[len(given) :]))
