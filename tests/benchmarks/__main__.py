"""`python -m tests.benchmarks`: what the ledger costs, measured on this machine."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

from infra.jetstream.errors import StoreUnavailable
from infra.server import ServerFailed
from tests.benchmarks import goals, profiling, report
from tests.benchmarks.figures import errors_of
from tests.benchmarks.load import LoadFailed
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.metering import load_average
from tests.benchmarks.peers.process import peers
from tests.benchmarks.stage import ROOT, StageFailed, load_process, stage
from tests.benchmarks.workloads import USUAL, USUAL_OF_PEERS, WORKLOADS, Case, Plan

RESULTS = ROOT / "bench-results"
"""Git-ignored; the store is here too while it runs, so on the disk that the checkout is on."""

QUIET = 0.5
"""The load average below which figures may go into the docs."""

QUIET_WITHIN_S = 300


class NotQuiet(Exception):
    """Other programs are busy on this machine."""


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measures the ledger beside a bare echo service and beside what one would use "
        "instead, interleaved, in one run.",
        epilog="operations: " + "; ".join(f"{w.name}: {w.what}" for w in WORKLOADS.values()),
    )
    parser.add_argument("--quick", action="store_true", help="one short round, half a minute")
    parser.add_argument(
        "--only", action="append", choices=list(WORKLOADS), help="this operation (repeatable)"
    )
    parser.add_argument(
        "--peers",
        action=argparse.BooleanOptionalAction,
        help="measure what one would use instead, too (default: unless --quick or --only)",
    )
    parser.add_argument(
        "--concurrency", action="append", type=int, metavar="N", help="writers (repeatable)"
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="of which medians are taken")
    parser.add_argument("--seconds", type=float, metavar="S", help="of one measurement")
    parser.add_argument(
        "--beside",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="another checkout, whose worker is measured in the same rounds (repeatable)",
    )
    parser.add_argument(
        "--profile",
        type=Path,
        metavar="FILE",
        help="profile the worker: .svg (flame graph) or stacks in text, with py-spy; else cProfile",
    )
    parser.add_argument(
        "--write-docs", type=Path, metavar="FILE", help="put the table between the file's marks"
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the JSON file to write")
    return parser.parse_args(argv)


def plan_of(arguments: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    cases = [
        Case(WORKLOADS[name], concurrency)
        for name in arguments.only or USUAL
        for concurrency in arguments.concurrency or USUAL[name]
    ]
    usual = Plan(rounds=1, seconds=1.2, echo_seconds=0.8, peer_seconds=0.6)
    if not arguments.quick:
        usual = Plan()
    with_peers = arguments.peers
    if with_peers is None:
        with_peers = not (arguments.quick or arguments.only)
    return Plan(
        cases=cases,
        rounds=arguments.rounds or usual.rounds,
        seconds=arguments.seconds or usual.seconds,
        echo_seconds=min(usual.echo_seconds, arguments.seconds or usual.seconds),
        warm_up_s=usual.warm_up_s,
        peer_cases=USUAL_OF_PEERS if with_peers else (),
        peer_seconds=min(usual.peer_seconds, arguments.seconds or usual.peer_seconds),
    )


async def bench(arguments: argparse.Namespace) -> int:
    """Measures, prints, writes; returns the exit status: 1 when requests failed."""
    if arguments.write_docs:
        wait_until_quiet()
    RESULTS.mkdir(exist_ok=True)
    started = time.monotonic()
    circumstances = report.Circumstances.here(RESULTS)
    print(circumstances.sentence(), flush=True)
    folder = Path(tempfile.mkdtemp(prefix="store-", dir=RESULTS))
    profiler = profiling.choose(arguments.profile)
    try:
        async with AsyncExitStack() as up:
            stages = [
                await up.enter_async_context(
                    stage(folder / "ours", interpreter=profiler.interpreter)
                )
            ]
            for number, other in enumerate(arguments.beside):
                root = other.resolve()
                beside = stage(folder / f"other-{number}", name=root.name, root=root)
                stages.append(await up.enter_async_context(beside))
            load = await up.enter_async_context(load_process())
            await profiler.attach(stages[0].watch("worker")["service"])
            plan = plan_of(arguments)
            others = []
            if plan.peer_cases:
                others = await up.enter_async_context(
                    peers(folder / "peers", lambda words: print(words, flush=True))
                )
            measurement = Measurement(
                plan,
                stages,
                load,
                lambda each: print(report.one_line(each), flush=True),
                others,
            )
            try:
                rows = await measurement.carry_out()
            finally:
                await profiler.detach()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    told = [
        report.table(rows),
        report.comparison(measurement.measured),
        goals.table(goals.judge(measurement.measured)),
        f"{time.monotonic() - started:.0f} s.",
    ]
    print("\n" + "\n".join(filter(None, told)), flush=True)
    output = arguments.output or RESULTS / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    report.write_json(output, circumstances, rows, measurement.measured)
    print(f"Written: {output}")
    if arguments.write_docs:
        report.write_docs(arguments.write_docs, circumstances, rows, measurement.measured)
        print(f"Written: {arguments.write_docs}")
    if arguments.profile:
        print(profiler.summary())
    errors = errors_of(measurement.measured)
    print("\n".join(errors), file=sys.stderr, end="\n" if errors else "")
    return 1 if errors else 0


def wait_until_quiet() -> None:
    """Returns once nothing else is busy here. NotQuiet after five minutes."""
    give_up_at = time.monotonic() + QUIET_WITHIN_S
    while (busy := load_average()) >= QUIET:
        if time.monotonic() > give_up_at:
            raise NotQuiet(
                f"the load average is {busy:.2f}: figures for the docs are taken below {QUIET}; "
                "end what else runs here, or leave --write-docs away"
            )
        print(f"Load average {busy:.2f}; waiting until it is below {QUIET}.", flush=True)
        time.sleep(15)


def main() -> int:
    try:
        return asyncio.run(bench(parse()))
    except (
        LoadFailed,
        NotQuiet,
        ServerFailed,
        StageFailed,
        StoreUnavailable,
        profiling.NoProfile,
        report.DocsWithoutMarks,
    ) as error:
        print(f"benchmarks: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
