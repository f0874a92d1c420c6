"""What a fault program found: one line of the report."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tests.faults.history import Event, Row, fold, problems, wrong_rows, wrong_sights
from tests.faults.load import Load

LOST = frozenset({"missing", "elsewhere", "torn", "gap", "chain"})
DOUBLED = frozenset({"doubled"})


@dataclass(slots=True)
class Result:
    """One scenario's rounds, summed up; `ok` when every promise was kept and the control failed."""

    scenario: str
    rounds: int = 0
    acknowledged: int = 0
    unknown: int = 0
    refused: int = 0
    lost: int = 0
    doubled: int = 0
    wrong: int = 0
    """Answers and rows that are not the fold, and answers that nobody should get."""
    longest_outage_s: float = 0.0
    control: str = ""
    """What the same program found where it had to find something; empty where there is none."""
    control_bites: bool = True
    found: list[str] = field(default_factory=list)
    """The problems in words, the first of each kind."""
    notes: list[str] = field(default_factory=list)
    skipped: str = ""
    seconds: float = 0.0
    _began: float = field(default_factory=time.monotonic)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.doubled or self.wrong) and self.control_bites

    def judge(
        self,
        loads: Load | Sequence[Load],
        events: Sequence[Event],
        tables: Mapping[str, Mapping[str, Row]] | None = None,
    ) -> None:
        """Adds what the loads were told and shown, compared with what is there."""
        folded = fold(events)
        loads = [loads] if isinstance(loads, Load) else loads
        self.blame(problems((deed for load in loads for deed in load.deeds), events))
        for load in loads:
            self.acknowledged += load.acknowledged
            self.unknown += load.unanswered + load.refused["outcome_unknown"]
            self.refused += load.refused.total() - load.refused["outcome_unknown"]
            self.longest_outage_s = max(self.longest_outage_s, load.longest_outage_s)
            self.blame(wrong_sights(load.sights, folded))
            self.blame(load.odd)
        for name, rows in (tables or {}).items():
            self.blame(wrong_rows(name, rows, folded))

    def blame(self, found: Iterable[str]) -> None:
        """Counts problems, each by the kind it begins with."""
        shown = Counter(each.partition(":")[0] for each in self.found)
        for problem in found:
            kind = problem.partition(":")[0]
            if kind in LOST:
                self.lost += 1
            elif kind in DOUBLED:
                self.doubled += 1
            else:
                self.wrong += 1
            shown[kind] += 1
            if shown[kind] <= 5:
                self.found.append(problem)

    def controlled(self, words: str, *, bites: bool) -> None:
        """Tells what the control found: it has to `bite`, or the scenario proves nothing."""
        self.control = words
        self.control_bites = bites

    def end(self) -> Result:
        """Stops the clock; returns itself."""
        self.seconds = time.monotonic() - self._began
        return self


def skipped(scenario: str, reason: str) -> Result:
    """The line of a scenario that this machine cannot run."""
    return Result(scenario, skipped=reason)
