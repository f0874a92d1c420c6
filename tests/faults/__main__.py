"""`make faults`: every fault program in its long form, and a report of one page.

    python -m tests.faults [--short] [--seed N] [--only NAME ...] [--report FILE]

The report is written again after each scenario. The exit status is 1 when one failed; a scenario
that this machine cannot run is skipped, with its reason in the report.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import traceback
from pathlib import Path

from tests.faults import report
from tests.faults.result import Result, skipped
from tests.faults.scenarios import SCENARIOS


def main() -> int:
    options = _options()
    results: list[Result] = []
    command = "python -m tests.faults " + " ".join(sys.argv[1:])
    for name in options.only or SCENARIOS:
        print(f"{name} ...", end=" ", flush=True)
        results.append(_run(name, options.seed, short=options.short))
        told = results[-1]
        verdict = f"skipped: {told.skipped}" if told.skipped else "ok" if told.ok else "FAILED"
        print(f"{verdict} ({told.seconds:.0f} s)", *told.found[:5], sep="\n    ", flush=True)
        report.write(options.report, report.page(results, options.seed, command.strip()))
    print(f"report: {options.report}")
    return 0 if all(result.ok for result in results) else 1


def _run(name: str, seed: int, *, short: bool) -> Result:
    scenario = SCENARIOS[name]
    if reason := scenario.why_not():
        return skipped(name, reason)
    rounds = scenario.rounds_short or 1 if short else scenario.rounds
    folder = Path(tempfile.mkdtemp(prefix="convo-faults-"))
    try:
        result = asyncio.run(scenario.run(rounds, random.Random(seed), folder))
    except Exception:  # noqa: BLE001 (the other scenarios have to run as well)
        result = Result(name, rounds=rounds)
        result.blame([f"broken off: its files are in {folder}; {traceback.format_exc()[-2_000:]}"])
        return result.end()
    if result.ok:
        shutil.rmtree(folder)
    else:
        result.notes.append(f"its files are in {folder}")
    return result


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make faults", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--short", action="store_true", help="a few rounds of each: five minutes")
    parser.add_argument("--only", nargs="+", choices=list(SCENARIOS), metavar="NAME")
    parser.add_argument("--report", type=Path, default=Path("build/faults.md"), metavar="FILE")
    parser.add_argument(
        "--seed",
        type=int,
        default=int(os.environ.get("CONVO_TEST_SEED", random.randrange(2**32))),
        help="of every random choice but the scheduler's",
    )
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
