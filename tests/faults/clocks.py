"""Clocks that jump under load, by hours and years, forwards and backwards, in every process alike.

The sweeper closes what it takes for silent and the next message opens it again; versions, chains,
totals and tables have to be what they always are. nats-server keeps the machine's clock: it takes
its times for durations from the monotonic one.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from pathlib import Path

from tests.faults.load import Load
from tests.faults.result import Result
from tests.faults.rig import Ledger

WRITERS = 10
WORKERS = 2
ROUND_S = 1.0


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many seconds, with three jumps in each."""
    result = Result("clock jumps", rounds=rounds)
    ledger = Ledger(directory / "ledger", workers=WORKERS, program="tests.faults.jumping")
    async with ledger:
        load = Load(ledger.url, WRITERS, rng)
        await load.start()
        for _ in range(rounds):
            await load.further(10)
            await asyncio.sleep(ROUND_S)
        await load.stop()
        events, tables = await ledger.settled()
        result.judge(load, events, tables)
    times = [event.json()["time"] for event in events]
    back = sum(later < earlier for earlier, later in itertools.pairwise(times))
    result.notes.append(f"{back} times the next event was earlier than the one before it")
    result.blame(ledger.complaints())
    return result.end()
