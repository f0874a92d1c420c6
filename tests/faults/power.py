"""The power is cut under load: whatever was not synced is gone, of the ledger and of the tables.

Everything is frozen (SIGSTOP) a moment before, as power ends disk and processors together. A server
that went on would find its writes done and its fsync refused, and 2.15.1 acknowledges all the same.

The control is the same with the server's default of syncing now and then: it has to lose data.
"""

from __future__ import annotations

import random
from pathlib import Path

from infra.server import EmbeddedServer
from infra.staging import Staging
from tests.faults.disk import MB, Disk, why_not
from tests.faults.history import read_stream
from tests.faults.load import Load
from tests.faults.result import Result
from tests.faults.rig import Ledger

__all__ = ["run", "why_not"]

WRITERS = 12
WORKERS = 2
DISK_BYTES = 1024 * MB


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many power cuts, then the control."""
    result = Result("power cuts", rounds=rounds)
    async with Disk(directory, DISK_BYTES) as disk:
        ledger = Ledger(directory / "ledger", data_dir=disk.path / "data", workers=WORKERS)
        await ledger.start()
        try:
            load = Load(ledger.url, WRITERS, rng)
            await load.through(rounds, lambda _: cut(ledger, disk))
            events, tables = await ledger.settled()
            result.judge(load, events, tables)
        finally:
            await ledger.stop()
    result.blame(ledger.complaints())
    await control(result, rng, directory / "control")
    return result.end()


async def cut(ledger: Ledger, disk: Disk) -> None:
    """One power cut; all is started again."""
    await lose(ledger, disk)
    await ledger.start()


async def lose(ledger: Ledger, disk: Disk) -> None:
    """Drops everything unsynced, and ends the ledger."""
    ledger.freeze_everything()
    disk.cut_power()
    await ledger.kill_everything()
    await disk.unmount()
    disk.mount()
    Staging(ledger.data_dir / "nats" / "jetstream").lose()


async def control(result: Result, rng: random.Random, directory: Path) -> None:
    """One power cut of a server that syncs every ten seconds; the default is two minutes."""
    control = Result("")
    async with Disk(directory, DISK_BYTES) as disk:
        data_dir = disk.path / "data"
        ledger = Ledger(directory / "ledger", data_dir=data_dir, sync="10s")
        await ledger.start()
        load = Load(ledger.url, WRITERS, rng)
        await load.start()
        await load.further(100)
        await lose(ledger, disk)
        await load.stop()
        async with EmbeddedServer(data_dir) as server:  # nobody who would notice and refuse
            control.judge(load, await read_stream(server.url))
    words = f"synced every 10 s: {control.lost} of {load.acknowledged} lost"
    result.controlled(words, bites=control.lost > 0)
