"""Seeds of the fake JetStream, on a virtual clock: what no real server does often enough."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from tests.faults.result import Result
from tests.faults.seeds import TOGETHER, play_some

REFUSED = ("StoreUnavailable", "StoreReadOnly", "Conflict")


async def run(rounds: int, rng: random.Random, directory: Path) -> Result:
    """So many seeds, one after the other from a random one on, on all cores."""
    result = Result("seeds", rounds=rounds)
    first = rng.randrange(10**9)
    end = first + rounds
    parts = [range(seed, min(seed + TOGETHER, end)) for seed in range(first, end, TOGETHER)]
    told: Counter[str] = Counter()
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor() as pool:
        playing = [loop.run_in_executor(pool, play_some, part) for part in parts]
        for answers, found in await asyncio.gather(*playing):
            told += answers
            result.blame(f"wrong: {each}" for each in found)
    result.acknowledged = told["written"]
    result.unknown = told["unknown"]
    result.refused = sum(told[each] for each in REFUSED)
    result.notes.append(f"seeds {first} to {end - 1}; {told['view shown']:,} views checked")
    return result.end()
