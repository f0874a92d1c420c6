"""The report of a run: one page of Markdown, a line for each scenario."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from tests.faults.result import Result

COLUMNS = (
    "scenario",
    "rounds",
    "acknowledged",
    "unknown",
    "refused",
    "lost",
    "doubled",
    "wrong",
    "longest outage s",
    "seconds",
    "verdict",
)

LEGEND = """\
*Acknowledged*: commands answered with ok. *Unknown*: no answer in time, or `outcome_unknown`.
*Refused*: answered with an error, or nobody there. *Lost*, *doubled*: acknowledged events that are
missing, torn or elsewhere, or there twice. *Wrong*: answers and tables that are not the fold of the
events."""


def page(results: Sequence[Result], seed: int, command: str) -> str:
    """The whole report as Markdown."""
    failed = [result.scenario for result in results if not result.ok]
    skipped = [result for result in results if result.skipped]
    verdict = f"**Failed:** {', '.join(failed)}." if failed else "**Every promise was kept.**"
    when = f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, {platform.machine()}"
    minutes = sum(result.seconds for result in results) / 60
    acknowledged = sum(result.acknowledged for result in results)
    run = len(results) - len(skipped)
    lines = [
        "# Faults",
        "",
        f"{when}, seed {seed}, {minutes:.1f} minutes: `{command}`",
        "",
        f"{verdict} {run} scenarios, {acknowledged:,} commands acknowledged.",
        "",
        "| " + " | ".join(COLUMNS) + " |",
        "|" + "---|" * len(COLUMNS),
        *map(_row, results),
        "",
        LEGEND,
    ]
    lines += _section("Controls", [(each, each.control) for each in results if each.control])
    lines += _section("Skipped", [(each, each.skipped) for each in skipped])
    lines += _section("Notes", [(each, note) for each in results for note in each.notes])
    lines += _section("Problems", [(each, what) for each in results for what in each.found])
    return "\n".join(lines) + "\n"


def _row(result: Result) -> str:
    verdict = "skipped" if result.skipped else "ok" if result.ok else "FAILED"
    cells = (
        result.scenario,
        f"{result.rounds:,}",
        f"{result.acknowledged:,}",
        f"{result.unknown:,}",
        f"{result.refused:,}",
        result.lost,
        result.doubled,
        result.wrong,
        f"{result.longest_outage_s:.1f}",
        f"{result.seconds:.0f}",
        verdict,
    )
    return "| " + " | ".join(map(str, cells)) + " |"


def _section(title: str, items: Sequence[tuple[Result, str]]) -> list[str]:
    if not items:
        return []
    return ["", f"## {title}", "", *(f"- {result.scenario}: {words}" for result, words in items)]


def write(path: Path, text: str) -> None:
    """Puts the report where it is looked for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
