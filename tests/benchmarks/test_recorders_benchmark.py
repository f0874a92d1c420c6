"""That the recorders' benchmark measures at all; no figure is judged."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.benchmarks import recorders


@pytest.mark.parametrize("only", ["10 writers, own", "50 events", "processor"])
def test_it_measures_each_store_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, only: str
) -> None:
    monkeypatch.setattr(recorders, "has_postgres", lambda: False)
    figures = recorders.run(tmp_path, rounds=2, seconds=0.02, only=only)
    [row] = figures.values()
    assert {store: len(rates) for store, rates in row.items()} == {"JetStream": 2, "SQLite": 2}
    assert all(rate > 0 for rates in row.values() for rate in rates)
    assert recorders.table(figures).count("\n") == 2


def test_writers_in_processes_of_their_own_are_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorders, "has_postgres", lambda: False)
    monkeypatch.setattr(recorders, "MEASURES", {"2 processes": recorders.processes(2)})
    figures = recorders.run(tmp_path, rounds=1, seconds=0.05)
    assert all(rate > 0 for rates in figures["2 processes"].values() for rate in rates)
