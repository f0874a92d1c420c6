"""What a flood on one conversation does to the others.

    python -m tests.benchmarks.flood [--neighbours N] [--writers N] [--rounds N] [--root DIR]

So many neighbours write one message after the other, each into a conversation of its own: first
alone, then beside so many writers on one other conversation, then beside as many on conversations
of their own. Prints the medians of their latencies over the rounds. Wanted: the p99 beside the
flood at most twice that without it. The third line tells what of that is the flood, and what the
machine being busy.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.benchmarks.load import Load, Order, Request
from tests.benchmarks.stage import ROOT, LoadProcess, load_process, stage

RATIO_MAX = 2.0
MESSAGE = '{"role": "tool", "content": "%s"}' % ("x" * 200)

CASES = ("alone", "one conversation flooded", "as many, on their own")


async def measure(options: argparse.Namespace) -> dict[str, list[tuple[Load, Load | None]]]:
    """The neighbours' figures by case, with those of the flood, one pair for each round."""
    found: dict[str, list[tuple[Load, Load | None]]] = {case: [] for case in CASES}
    with tempfile.TemporaryDirectory(prefix="flood-") as folder:
        async with (
            stage(Path(folder), root=options.root) as up,
            load_process() as calm,
            load_process() as wild,
        ):
            for number in range(options.rounds):
                for case in CASES:
                    tag = f"{number}-{CASES.index(case)}"
                    flood = None
                    if case != "alone":
                        names = [f"flood-{tag}"] * options.writers
                        if case != CASES[1]:
                            names = [f"flood-{tag}-{each}" for each in range(options.writers)]
                        order = _order(up.url, names, options.seconds + 1.0)
                        flood = asyncio.ensure_future(wild.carry_out(order))
                    names = [f"neighbour-{tag}-{each}" for each in range(options.neighbours)]
                    found[case].append(await _pair(calm, up.url, names, options.seconds, flood))
    return found


async def _pair(
    calm: LoadProcess,
    url: str,
    names: Sequence[str],
    seconds: float,
    flood: asyncio.Future[Load] | None,
) -> tuple[Load, Load | None]:
    if flood is not None:
        await asyncio.sleep(0.4)  # until it is under way
    ours = await calm.carry_out(_order(url, names, seconds))
    return ours, await flood if flood is not None else None


def _order(url: str, names: Sequence[str], seconds: float) -> Order:
    begin: list[Request] = [
        (f"convo.cmd.bench.{name}.init", '{"user_id": "ada", "title": "Flood"}')
        for name in dict.fromkeys(names)
    ]
    appends = [(f"convo.cmd.bench.{name}.append", MESSAGE) for name in names]
    return Order(url, [begin], appends, '"ok":true', seconds, 0.3, sys.maxsize)


def main() -> int:
    """Measures and prints; returns 1 when the ratio is not what is wanted."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.flood")
    parser.add_argument("--neighbours", type=int, default=8)
    parser.add_argument("--writers", type=int, default=256)
    parser.add_argument("--root", type=Path, default=ROOT, help="another checkout to measure")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=2.0)
    found = asyncio.run(measure(parser.parse_args()))
    p99 = {}
    for case, pairs in found.items():
        p50_ms = statistics.median(ours.p50_ms for ours, _ in pairs)
        p99[case] = statistics.median(ours.p99_ms for ours, _ in pairs)
        rate = statistics.median(flood.replies / flood.wall_s if flood else 0 for _, flood in pairs)
        errors = sum(ours.errors + (flood.errors if flood else 0) for ours, flood in pairs)
        print(
            f"{case:<26} p50 {p50_ms:6.2f} ms  p99 {p99[case]:6.2f} ms"
            f"  beside {rate:7,.0f}/s  {errors} errors"
        )
    ratio = p99[CASES[1]] / p99[CASES[0]]
    print(f"p99 beside the flood {ratio:.2f} times that without it, wanted at most {RATIO_MAX:g}")
    return int(ratio > RATIO_MAX)


if __name__ == "__main__":
    sys.exit(main())
