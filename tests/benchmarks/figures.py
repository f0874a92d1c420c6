"""Measurements and what is made of them: medians over rounds, ratios within a round."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from tests.benchmarks.load import Load

PROCESSES = ("server", "service", "load")


@dataclass(frozen=True)
class Measured:
    """One measurement: an operation (or its echo) once, within one round.

    `cpu_s_per_1000` are CPU seconds per 1,000 requests, `peak_mb` MB (10^6 bytes), `load_busy` the
    part of one CPU that the load took.
    """

    operation: str
    concurrency: int
    round: int
    requests: int
    errors: int
    first_error: str
    per_s: float
    p50_ms: float
    p99_ms: float
    reply_bytes: int
    cpu_s_per_1000: Mapping[str, float]
    peak_mb: Mapping[str, float]
    load_busy: float

    @classmethod
    def of(cls, operation: str, concurrency: int, round_: int, load: Load) -> Measured:
        thousands = max(load.replies, 1) / 1_000
        return cls(
            operation=operation,
            concurrency=concurrency,
            round=round_,
            requests=load.replies,
            errors=load.errors,
            first_error=load.first_error,
            per_s=load.replies / load.wall_s,
            p50_ms=load.p50_ms,
            p99_ms=load.p99_ms,
            reply_bytes=load.reply_bytes,
            cpu_s_per_1000={name: cpu_s / thousands for name, cpu_s in load.cpu_s.items()},
            peak_mb=load.peak_mb,
            load_busy=load.cpu_s["load"] / load.wall_s,
        )


@dataclass(frozen=True)
class Row:
    """One line of the table: medians over the rounds.

    `of_ceiling` is the median of the ratios to the echo of the same round, None for an echo;
    `spread` the slowest and the fastest round, per second.
    """

    operation: str
    concurrency: int
    rounds: int
    per_s: float
    spread: tuple[float, float]
    of_ceiling: float | None
    p50_ms: float
    p99_ms: float
    cpu_s_per_1000: Mapping[str, float]
    peak_mb: Mapping[str, float]
    load_busy: float
    errors: int


def row(measured: Sequence[Measured], ceilings: Sequence[Measured] = ()) -> Row:
    """The line of one operation; `ceilings` are the echoes of the same rounds, in their order."""

    def mid(figure: Callable[[Measured], float]) -> float:
        return median(figure(each) for each in measured)

    def per_process(figure: Callable[[Measured], Mapping[str, float]]) -> dict[str, float]:
        return {
            name: median(figure(each)[name] for each in measured)
            for name in PROCESSES
            if name in figure(measured[0])
        }

    rates = [each.per_s for each in measured]
    ratios = [one.per_s / echo.per_s for one, echo in zip(measured, ceilings, strict=False)]
    return Row(
        operation=measured[0].operation,
        concurrency=measured[0].concurrency,
        rounds=len(measured),
        per_s=median(rates),
        spread=(min(rates), max(rates)),
        of_ceiling=median(ratios) if ratios else None,
        p50_ms=mid(lambda each: each.p50_ms),
        p99_ms=mid(lambda each: each.p99_ms),
        cpu_s_per_1000=per_process(lambda each: each.cpu_s_per_1000),
        peak_mb=per_process(lambda each: each.peak_mb),
        load_busy=mid(lambda each: each.load_busy),
        errors=sum(each.errors for each in measured),
    )


def errors_of(measured: Iterable[Measured]) -> list[str]:
    """One line per measurement in which requests failed."""
    return [
        f"{each.operation} at {each.concurrency}: {each.errors} of {each.requests} requests "
        f"failed, the first with {each.first_error}"
        for each in measured
        if each.errors
    ]
