"""That the benchmarks measure at all: a few hundred operations, and no figure is judged."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import pytest_asyncio

from tests.benchmarks import goals, inside, report
from tests.benchmarks.figures import Measured, Row, errors_of, row
from tests.benchmarks.load import LoadFailed
from tests.benchmarks.measuring import Measurement
from tests.benchmarks.peers.process import peers
from tests.benchmarks.stage import load_process, stage
from tests.benchmarks.workloads import WORKLOADS, Case, Plan, Workload

PYTHON = Path(sys.executable)

PLAN = Plan(
    cases=[Case(workload, 4) for workload in WORKLOADS.values()],
    rounds=1,
    seconds=20,
    echo_seconds=20,
    warm_up_s=0,
    requests_max=60,
)


Measure = Callable[[Plan], Awaitable[tuple[list[Row], list[Measured]]]]


@pytest_asyncio.fixture(scope="module")
async def measure(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Measure]:
    """Carries a plan out on real processes that the module's tests share."""
    folder = tmp_path_factory.mktemp("bench")
    async with stage(folder) as here, load_process() as load:

        async def carry_out(plan: Plan) -> tuple[list[Row], list[Measured]]:
            measurement = Measurement(plan, [here], load, lambda _measured: None)
            return await measurement.carry_out(), measurement.measured

        yield carry_out


async def test_every_operation_gives_a_row_behind_that_of_its_echo(
    measure: Measure,
) -> None:
    rows, measured = await measure(PLAN)

    assert errors_of(measured) == []
    assert [each.operation for each in rows] == [
        "bare",
        "publish",
        "batch",
        *(
            operation
            for name in ("append", "append-one", "turn", "messages")
            for operation in (f"echo of {name}", name)
        ),
        "import",
        "append: a naive JetStream service",
    ]
    assert all(each.requests == 60 for each in measured)
    assert all(each.per_s > 0 and each.p99_ms >= each.p50_ms > 0 for each in rows)
    assert all(each.cpu_s_per_1000.keys() == each.peak_mb.keys() for each in rows)
    assert {each.operation: each.of_ceiling is None for each in rows} == {
        each.operation: each.operation not in {"append", "append-one", "turn", "messages"}
        for each in rows
    }


async def test_the_echo_of_a_read_answers_as_many_bytes(measure: Measure) -> None:
    plan = replace(PLAN, cases=[Case(WORKLOADS["messages"], 2)])

    _, (read, echo) = await measure(plan)

    assert read.reply_bytes > 50 * 215
    assert echo.reply_bytes == read.reply_bytes


async def test_a_refused_request_is_counted_and_quoted(measure: Measure) -> None:
    append = WORKLOADS["append"]
    plan = replace(PLAN, cases=[Case(replace(append, prepare=()), 1)])

    _, measured = await measure(plan)

    [line] = errors_of(measured)
    assert "append at 1: 60 of 60 requests failed" in line
    assert "conversation_not_initialized" in line


async def test_a_refused_preparation_ends_the_measurement(measure: Measure) -> None:
    broken = Workload("broken", "", requests=lambda _run, _writers: [("nobody.here", "{}")])
    plan = replace(PLAN, cases=[Case(replace(broken, prepare=[broken.requests]), 1)])

    with pytest.raises(LoadFailed, match="a preparing request was refused"):
        await measure(plan)


async def test_peers_are_measured_in_the_same_rounds_and_absent_ones_are_named(
    tmp_path: Path,
) -> None:
    names = ["plain SQLite", "eventsourcing on SQLite", "UmaDB"]  # only the last is not installed
    said: list[str] = []
    plan = replace(PLAN, cases=[], peer_cases=[("append", 3), ("messages", 2)], peer_seconds=0.2)

    async with (
        load_process() as load,
        peers(tmp_path, said.append, interpreter=PYTHON, names=names) as others,
    ):
        measurement = Measurement(plan, [], load, lambda _measured: None, others)
        rows = await measurement.carry_out()

    assert errors_of(measurement.measured) == []
    assert [each.operation for each in rows] == [
        f"{operation}: {name}" for name in names[:2] for operation in ("append", "messages")
    ]
    assert all(each.per_s > 0 and each.p99_ms >= each.p50_ms > 0 for each in rows)
    assert said == ["Left out: UmaDB: No module named 'umadb'"]


def test_a_goal_is_judged_by_the_median_of_its_rounds() -> None:
    ours = [made("append", rate, round_) for round_, rate in enumerate([100.0, 300.0, 200.0])]
    other = [made("append: UmaDB", 100.0, round_) for round_ in range(3)]

    [judged] = goals.judge(ours + other)

    assert (judged.measured, judged.spread, judged.met) == (2.0, (1.0, 3.0), True)
    assert "append alone / UmaDB" in goals.table([judged])


def test_a_row_holds_medians_and_the_ratio_to_the_echo_of_the_same_round() -> None:
    rates, echo_rates = [10.0, 40.0, 20.0], [100.0, 80.0, 100.0]

    found = row(
        [made("append", rate, round_) for round_, rate in enumerate(rates)],
        [made("echo of append", rate, round_) for round_, rate in enumerate(echo_rates)],
    )

    assert (found.per_s, found.spread, found.of_ceiling) == (20.0, (10.0, 40.0), 0.2)


def test_another_checkout_is_compared_round_by_round() -> None:
    ours = [made("append", rate, round_) for round_, rate in enumerate([10.0, 20.0, 40.0])]
    other = [made("append (other)", rate, round_) for round_, rate in enumerate([15.0, 20.0, 80.0])]

    assert report.comparison(ours) == ""
    assert report.comparison(ours + other) == ("append (other) at 1: 1.50 × ours (1.00 to 2.00)\n")


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    measured = [made("append", 10.0, 1)]
    rows = [row(measured)]
    here = report.Circumstances.here(tmp_path)
    docs = tmp_path / "performance.md"
    docs.write_text(f"above\n{report.BEGIN}\nold\n{report.END}\nbelow\n", encoding="utf-8")

    report.write_json(tmp_path / "run" / "figures.json", here, rows, measured)
    report.write_docs(docs, here, rows, measured)
    report.write_docs(docs, here, rows, measured)

    kept = json.loads((tmp_path / "run" / "figures.json").read_text(encoding="utf-8"))
    assert kept["rows"][0]["per_s"] == kept["measured"][0]["per_s"] == 10.0
    text = docs.read_text(encoding="utf-8")
    assert text.startswith("above\n")
    assert text.endswith("\nbelow\n")
    assert "old" not in text
    assert text.count("| append |") == 1


def test_docs_without_marks_are_left_alone(tmp_path: Path) -> None:
    docs = tmp_path / "performance.md"
    docs.write_text("no marks", encoding="utf-8")

    with pytest.raises(report.DocsWithoutMarks):
        report.write_docs(
            docs, report.Circumstances.here(tmp_path), [row([made("append", 1, 1)])], []
        )

    assert docs.read_text(encoding="utf-8") == "no marks"


def test_what_an_append_costs_the_worker_is_split_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert inside.main(["16", "3000"]) == 0

    said = capsys.readouterr().out
    total, *steps = [float(number) for number in re.findall(r"(?m)^ *([0-9.]+) ", said)]
    assert total > 0
    assert sum(steps) == pytest.approx(total, abs=0.1 * len(steps))
    assert len([step for step in steps if step]) > len(steps) / 2


def made(operation: str, per_s: float, round_: int) -> Measured:
    figures = {"server": 1.0, "service": 2.0, "load": 3.0}
    return Measured(operation, 1, round_, 100, 0, "", per_s, 1.0, 2.0, 11, figures, figures, 0.5)
