"""The disk is full under load, to the last block, and then has room again.

While it is full every command is refused or unknown and reads go on; when there is room it goes on
by itself: nobody restarts anything. Every fourth time the server is killed while it is full.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from tests.faults.disk import MB, Disk, why_not
from tests.faults.load import Load
from tests.faults.result import Result
from tests.faults.rig import SERVER, Ledger

__all__ = ["run", "why_not"]

WRITERS = 8
DISK_BYTES = 192 * MB
FULL_S = 3.0
RECOVERY_S = 60.0


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many times full and free again."""
    result = Result("disk full", rounds=rounds)
    async with Disk(directory, DISK_BYTES) as disk:
        ledger = Ledger(directory / "ledger", data_dir=disk.path / "data")
        await ledger.start()
        try:
            load = Load(ledger.url, WRITERS, rng)
            await load.start()
            for number in range(rounds):
                await load.further(rng.randrange(10, 60))
                # Every third time the blocks run out under the writers' hands.
                disk.fill(leave=rng.randrange(1, 8) * 65_536 if number % 3 == 2 else 0)
                await asyncio.sleep(rng.uniform(0.5, FULL_S))
                if number % 4 == 3:  # it comes back on a full disk, where it can complete nothing
                    await ledger.kill(SERVER)
                    await asyncio.sleep(rng.uniform(0.5, FULL_S))
                disk.relieve()
                await load.further(5, within=RECOVERY_S)
            await load.stop()
            events, tables = await ledger.settled()
            result.judge(load, events, tables)
        finally:
            await ledger.stop()
    result.blame(ledger.complaints())
    return result.end()
