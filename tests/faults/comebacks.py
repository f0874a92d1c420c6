"""A large ledger that is killed: how long until commands are answered again.

Wanted with 500,000 events: within 3 s after the server alone was killed (median), within 5 s of the
restart after everything was.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import time
from pathlib import Path

import nats
from nats.errors import Error as NatsError

from tests.faults.history import quiet
from tests.faults.load import Load
from tests.faults.result import Result
from tests.faults.rig import SERVER, Ledger

WRITERS = 4
EVENTS_PER_ROUND = 50_000
PER_IMPORT = 500
IMPORTERS = 4
MESSAGES = 2_500
"""Of one imported conversation."""


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """50,000 events for each round, then so many kills, of the server and of everything in turn."""
    result = Result("comebacks", rounds=rounds)
    server_s: list[float] = []
    everything_s: list[float] = []
    async with Ledger(directory / "ledger") as ledger:
        await fill(ledger.url, rounds * EVENTS_PER_ROUND)
        load = Load(ledger.url, WRITERS, rng, patience_s=0.3)
        await load.start()
        for number in range(rounds):
            await load.further(20)
            if number % 2 == 0:
                await ledger.kill(SERVER)
                began = time.monotonic()
                await load.further(1)
                server_s.append(time.monotonic() - began)
            else:
                await ledger.kill_everything()
                began = time.monotonic()
                await ledger.start()
                await load.further(1)
                everything_s.append(time.monotonic() - began)
        await load.stop()
        found, tables = await ledger.settled()
        own = [event for event in found if event.tokens.startswith("faults.")]
        result.judge(load, own, tables)
        result.notes.append(f"{len(found):,} events")
        result.blame(ledger.complaints())
    for name, taken in (("server killed", server_s), ("everything killed", everything_s)):
        if taken:
            median, worst = statistics.median(taken), max(taken)
            result.notes.append(f"{name}: answered after {median:.1f} s, at worst {worst:.1f} s")
    return result.end()


async def fill(url: str, events: int) -> None:
    """Imports so many events."""
    conversations = iter(range(events // MESSAGES))
    messages = [{"role": "tool", "content": f"line {number} " * 10} for number in range(PER_IMPORT)]
    body = json.dumps({"messages": messages}).encode()

    async def work() -> None:
        client = await nats.connect(url, error_cb=quiet)
        for number in conversations:
            place = f"convo.cmd.filler.c-{number}"
            await client.request(f"{place}.init", b'{"user_id": "ada", "title": "x"}', timeout=60)
            for _ in range(MESSAGES // PER_IMPORT):
                while True:
                    try:
                        answer = await client.request(f"{place}.import", body, timeout=60)
                    except NatsError:
                        continue
                    if json.loads(answer.data)["ok"]:
                        break
        await client.close()

    await asyncio.gather(*(work() for _ in range(IMPORTERS)))
