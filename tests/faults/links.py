"""Slow, half-open and broken connections between the services and their server.

The clients reach the server directly; the services go through a proxy of the scenario's own.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from infra.server import EmbeddedServer
from tests.faults.load import Load
from tests.faults.proxy import Line, Proxy
from tests.faults.result import Result
from tests.faults.rig import Ledger

WRITERS = 10
WORKERS = 2
LONGEST_S = 3.0

KINDS = ("answers vanish", "slow", "requests vanish", "cut", "nothing arrives")


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many bad spells of each kind in turn."""
    result = Result("links", rounds=rounds)
    async with EmbeddedServer(directory / "server") as server, Proxy(server.port) as proxy:
        async with Ledger(directory / "ledger", workers=WORKERS, nats=proxy.url) as ledger:
            load = Load(server.url, WRITERS, rng)
            await load.through(rounds, lambda number: spell(proxy, KINDS[number % len(KINDS)], rng))
            events, tables = await ledger.settled()
            result.judge(load, events, tables)
        result.blame(ledger.complaints())
    return result.end()


async def spell(proxy: Proxy, kind: str, rng: random.Random) -> None:
    """One bad spell; connections work again when it is over."""
    match kind:
        case "cut":
            for _ in range(3):
                proxy.cut()
                await asyncio.sleep(rng.uniform(0.05, 0.5))
        case "slow":
            proxy.up = Line(delay_s=rng.uniform(0.02, 0.2))
            proxy.down = Line(delay_s=rng.uniform(0.02, 0.2))
        case "answers vanish":
            proxy.down = Line(silent=True)
        case "requests vanish":
            proxy.up = Line(silent=True)
        case _:
            proxy.up, proxy.down = Line(silent=True), Line(silent=True)
    await asyncio.sleep(rng.uniform(0.5, LONGEST_S))
    proxy.heal()
