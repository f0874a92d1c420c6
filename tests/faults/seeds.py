"""Plays seeds of the fake JetStream: random commands, faults and delays, checked at the end.

    python -m tests.faults.seeds --seeds 10000            the long run, on all cores
    python -m tests.faults.seeds --first 547 --seeds 1    one seed again, with its trace on failure

Exits with 1 when a seed has found something; each one is printed with the command to replay it.
What is played and checked is in `tests/fake/world.py` and `tests/fake/history.py`.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed

from tests.fake.world import SeedFailed, play

TOGETHER = 25
"""Seeds that a process plays in one go."""

TRACE_LINES = 200


def play_some(seeds: range) -> tuple[Counter[str], list[str]]:
    """Plays seeds; how often what was answered, and what was found."""
    told: Counter[str] = Counter()
    found: list[str] = []
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        _play_each(seeds, told, found)
    finally:
        logging.disable(before)
    return told, found


def _play_each(seeds: range, told: Counter[str], found: list[str]) -> None:
    for seed in seeds:
        try:
            told.update(play(seed).told)
        except SeedFailed as failure:
            found.append(f"{failure}\n  python -m tests.faults.seeds --first {seed} --seeds 1")
            if len(seeds) == 1:
                found += failure.trace[-TRACE_LINES:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Plays what the command line asks for; the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.seeds")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many [1000]")
    parser.add_argument("--first", type=int, help="the first one [a random one]")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    options = parser.parse_args(arguments)
    first = random.randrange(10**9) if options.first is None else options.first
    end = first + options.seeds
    parts = [range(seed, min(seed + TOGETHER, end)) for seed in range(first, end, TOGETHER)]
    print(f"seeds {first} to {end - 1}", flush=True)
    told: Counter[str] = Counter()
    started, failures, played = time.monotonic(), 0, 0

    def take(part: range, result: tuple[Counter[str], list[str]]) -> None:
        nonlocal told, failures, played
        told += result[0]
        played += len(part)
        failures += sum(line.startswith("seed ") for line in result[1])
        for line in result[1]:
            print(line, flush=True)

    if options.jobs == 1 or len(parts) == 1:
        for part in parts:
            take(part, play_some(part))
    else:
        with ProcessPoolExecutor(options.jobs) as pool:
            playing = {pool.submit(play_some, part): part for part in parts}
            for done in as_completed(playing):
                take(playing[done], done.result())
    seconds = time.monotonic() - started
    print(f"{played} seeds in {seconds:.0f} s ({played / seconds:.1f} a second), {failures} failed")
    print(", ".join(f"{what} {times}" for what, times in told.most_common()))
    return 1 if failures else 0


if __name__ == "__main__":
    raise SystemExit(main())
