"""SIGKILL of nats-server, of each service, of several, and of everything at once, under load."""

from __future__ import annotations

import random
from pathlib import Path

from infra.server import EmbeddedServer
from tests.faults.history import read_stream
from tests.faults.load import Load
from tests.faults.result import Result
from tests.faults.rig import SERVER, TABLES, Ledger

WRITERS = 12
WORKERS = 2

KINDS = ("server", "worker", "everything", "both", "workers", "table")


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many kills of every kind in turn, then the control."""
    result = Result("kills", rounds=rounds)
    ledger = Ledger(directory / "ledger", workers=WORKERS)
    async with ledger:
        load = Load(ledger.url, WRITERS, rng)
        await load.through(rounds, lambda number: strike(ledger, KINDS[number % len(KINDS)], rng))
        events, tables = await ledger.settled()
        result.judge(load, events, tables)
    result.blame(ledger.complaints())
    await control(result, rng, directory / "control")
    return result.end()


async def strike(ledger: Ledger, kind: str, rng: random.Random) -> None:
    """One fault; the supervisor, or we, start again what was killed."""
    worker = rng.choice(ledger.workers)
    if kind == "everything":
        await ledger.kill_everything()
        await ledger.start()
        return
    victims = {
        "server": [SERVER],
        "worker": [worker],
        "both": [SERVER, worker],
        "workers": ledger.workers,
        "table": [rng.choice([*TABLES, "audit"])],
    }[kind]
    for name in victims:
        await ledger.kill(name)


async def control(result: Result, rng: random.Random, directory: Path) -> None:
    """The same load, kill and check on a stream that is kept in memory: it has to be noticed."""
    ledger = Ledger(directory, program="tests.faults.forgetful")
    await ledger.start()
    load = Load(ledger.url, WRITERS, rng)
    await load.start()
    await load.further(50)
    await ledger.kill_everything()
    await load.stop()
    control = Result("")
    async with EmbeddedServer(ledger.data_dir) as server:  # nobody who would notice and refuse
        control.judge(load, await read_stream(server.url))
    words = f"a ledger in memory: {control.lost} of {load.acknowledged} lost"
    result.controlled(words, bites=control.lost >= 50)
