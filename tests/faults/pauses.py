"""Processes frozen (SIGSTOP) and let go again: what they had begun must not come twice, nor late.

A patient load beside the usual one waits for every answer: a pause swallows no request, so each has
to be answered, be it with a refusal.
"""

from __future__ import annotations

import asyncio
import random
import signal
from pathlib import Path

from tests.faults.load import Load
from tests.faults.result import Result
from tests.faults.rig import SERVER, TABLES, Ledger

WRITERS = 10
WORKERS = 2
PATIENCE_S = 45.0
"""Longer than any answer may take: 30 s for the commit, and what a pause adds."""

LONGEST_S = 3.5


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many pauses of the server, of a worker, of both, of a table's process."""
    result = Result("pauses", rounds=rounds)
    async with Ledger(directory / "ledger", workers=WORKERS) as ledger:
        load = Load(ledger.url, WRITERS, rng)
        patient = Load(ledger.url, 2, rng, patience_s=PATIENCE_S, name="patient")
        await patient.start()
        await load.through(rounds, lambda number: freeze(ledger, number, rng))
        await patient.stop()
        events, tables = await ledger.settled()
        result.judge([load, patient], events, tables)
        if patient.unanswered:
            result.blame([f"unanswered: {patient.unanswered} calls had no answer in 45 s"])
        result.notes.append(f"slowest answer to a patient caller {patient.slowest_s:.1f} s")
    result.blame(ledger.complaints())
    return result.end()


async def freeze(ledger: Ledger, number: int, rng: random.Random) -> None:
    """Freezes one of them, or two, for a while."""
    worker = rng.choice(ledger.workers)
    names = [[SERVER], [worker], [SERVER, worker], [rng.choice(TABLES)]][number % 4]
    for name in names:
        await ledger.signal(name, signal.SIGSTOP)
    await asyncio.sleep(rng.uniform(0.2, LONGEST_S))
    for name in rng.sample(names, len(names)):
        await ledger.signal(name, signal.SIGCONT)
