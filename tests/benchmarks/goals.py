"""What the figures should be: ratios within one run, so that they hold on any machine.

Each goal is asked of every round; what counts is the median of its rounds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.figures import Measured
from tests.benchmarks.workloads import BATCH, BY, IMPORTED, USUAL_OF_PEERS

Round = Mapping[tuple[str, int], Measured]
"""One round's measurements by operation and writers."""

Ratio = Callable[[Round], float]

EMBEDDED = ("eventsourcing on SQLite", "openai-agents SQLiteSession", "plain SQLite")
"""Peers without a server between: alone, a write to them is a function call and an fsync."""


@dataclass(frozen=True)
class Goal:
    """`ratio` should be at least (or, where `at_most`, at most) `bound`."""

    what: str
    ratio: Ratio
    bound: float
    at_most: bool = False


@dataclass(frozen=True)
class Judged:
    """A goal and what was measured: the median of the rounds, the lowest and the highest."""

    goal: Goal
    measured: float
    spread: tuple[float, float]

    @property
    def met(self) -> bool:
        """Whether the median is on the right side of the bound."""
        if self.goal.at_most:
            return self.measured <= self.goal.bound
        return self.measured >= self.goal.bound


def judge(measured: Sequence[Measured]) -> list[Judged]:
    """Every goal that this run has the measurements for."""
    rounds: dict[int, dict[tuple[str, int], Measured]] = {}
    for each in measured:
        rounds.setdefault(each.round, {})[each.operation, each.concurrency] = each
    return [
        Judged(goal, median(ratios), (min(ratios), max(ratios)))
        for goal in _goals(measured)
        if (ratios := list(_asked(goal, rounds.values())))
    ]


def table(judged: Sequence[Judged]) -> str:
    """One line a goal, for a terminal; empty without any."""
    width = max((len(each.goal.what) for each in judged), default=0)
    return "\n".join(
        f"{each.goal.what.ljust(width)}  {each.measured:6.2f}  ({each.spread[0]:.2f} to "
        f"{each.spread[1]:.2f})  {_bound(each.goal)}  {'met' if each.met else 'MISSED'}"
        for each in judged
    )


def markdown(judged: Sequence[Judged]) -> str:
    """The same as a Markdown table."""
    lines = ["| goal | measured | rounds | bound | |", "|---|---:|---|---:|---|"]
    lines += [
        f"| {each.goal.what} | {each.measured:.2f} | {each.spread[0]:.2f} to {each.spread[1]:.2f} "
        f"| {_bound(each.goal)} | {'met' if each.met else 'missed'} |"
        for each in judged
    ]
    return "\n".join(lines)


def _bound(goal: Goal) -> str:
    return f"{'≤' if goal.at_most else '≥'} {goal.bound:g}"


def _asked(goal: Goal, rounds: Iterable[Round]) -> Iterable[float]:
    for each in rounds:
        try:
            yield goal.ratio(each)
        except (KeyError, ZeroDivisionError):  # not measured in this run, or nothing came back
            continue


def _goals(measured: Sequence[Measured]) -> list[Goal]:
    uma = f"append{BY}UmaDB"
    found = [
        Goal("append alone / UmaDB", _rates("append", uma, 1), 1.0),
        Goal("append at 16 / UmaDB", _rates("append", uma, 16), 0.6),
        Goal("append at 256 / UmaDB", _rates("append", uma, 256), 1.0),
        Goal("append at 256 / echo", _rates("append", "echo of append", 256), 0.22),
        Goal("append at 1,024 / echo", _rates("append", "echo of append", 1024), 0.30),
        Goal("append alone, p50 / (echo + one durable publish)", _alone, 1.25, at_most=True),
        Goal("events by turn at 256 / by append", _events_by_turn, 0.75),
        Goal(
            "window at 16 / echo of as many bytes", _rates("messages", "echo of messages", 16), 0.6
        ),
        Goal("window alone, p50 / echo of as many bytes", _window_alone, 1.6, at_most=True),
        Goal("events by import / by raw batches of 1,000", _imported, 0.35),
        Goal("events by import, thousands a second", _imported_rate, 15.0),
    ]
    others = {each.operation for each in measured if BY in each.operation} - {uma}
    for operation, writers in USUAL_OF_PEERS:
        for other in sorted(others):
            kind, _, peer = other.partition(BY)
            if kind == operation and not (writers == 1 and peer in EMBEDDED):
                at = "alone" if writers == 1 else f"at {writers}"
                found.append(
                    Goal(f"{operation} {at} / {peer}", _rates(operation, other, writers), 1.0)
                )
    return found


def _rates(operation: str, other: str, writers: int) -> Ratio:
    return lambda each: each[operation, writers].per_s / each[other, writers].per_s


def _alone(each: Round) -> float:
    parts = each["echo of append", 1].p50_ms + each["publish", 1].p50_ms
    return each["append", 1].p50_ms / parts


def _window_alone(each: Round) -> float:
    return each["messages", 1].p50_ms / each["echo of messages", 1].p50_ms


def _events_by_turn(each: Round) -> float:
    return 3 * each["turn", 256].per_s / each["append", 256].per_s


def _imported(each: Round) -> float:
    return IMPORTED * each["import", 8].per_s / (BATCH * each["batch", 4].per_s)


def _imported_rate(each: Round) -> float:
    return IMPORTED * each["import", 8].per_s / 1_000
