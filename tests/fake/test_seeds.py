"""Whatever the store does to them, workers and projections keep their promises: seed after seed.

`make test` plays a thousand seeds and more, others each time; `python -m tests.faults.seeds` plays
still more, or one of them again.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing import get_context
from typing import Any
from unittest.mock import patch

import pytest

from infra.jetstream import committer, feed, outcome, reader, scan
from infra.jetstream.envelope import Message, Tail
from infra.jetstream.fence import Fence
from infra.jetstream.reading_back import read_back
from tests.faults.seeds import TOGETHER, main, play_some

from .world import SeedFailed, play

FIRST = int(os.environ.get("CONVO_TEST_SEED", "317729100"))
"""The same seeds at each run, so that a change is what makes a difference; `make faults` and
`python -m tests.faults.seeds` draw others."""

SEEDS_S = 35.0
SEEDS_MIN = 100


@pytest.mark.slow
def test_promises_are_kept_whatever_the_store_does() -> None:
    told: Counter[str] = Counter()
    found: list[str] = []
    stop_at, seed = time.monotonic() + SEEDS_S, FIRST
    with ProcessPoolExecutor(mp_context=get_context("spawn")) as pool:
        playing: set[Future[tuple[Counter[str], list[str]]]] = set()
        while time.monotonic() < stop_at or seed < FIRST + SEEDS_MIN:
            while len(playing) <= (os.cpu_count() or 1):
                playing.add(pool.submit(play_some, range(seed, seed + TOGETHER)))
                seed += TOGETHER
            done, playing = wait(playing, return_when=FIRST_COMPLETED)
            for each in done:
                told += each.result()[0]
                found += each.result()[1]
        for each in playing:
            told += each.result()[0]
            found += each.result()[1]
    print(f"seeds {FIRST} to {seed - 1}: {told}")  # noqa: T201 (shown when it fails)
    assert not found
    assert told["written"] > 3 * (seed - FIRST)
    assert told["view shown"] > 3 * (seed - FIRST)


@pytest.mark.parametrize("seed", [3, 346, 547])
def test_a_seed_plays_the_same_again(seed: int) -> None:
    first, again = play(seed), play(seed)
    assert first.told == again.told
    assert first.trace == again.trace
    assert play(seed + 1).trace != first.trace


# -- the controls: what is broken on purpose is found out ------------------------------------------


def found_out(seeds: range) -> SeedFailed:
    """The first failure among some seeds."""
    for seed in seeds:
        try:
            play(seed)
        except SeedFailed as failure:
            return failure
    pytest.fail(f"none of the seeds {seeds} has noticed")


def taking_10071_for_a_conflict(monkeypatch: pytest.MonkeyPatch) -> None:
    async def read_nothing(
        nc: Any, stream: str, messages: Sequence[Message], ids: set[str], *, timeout: float
    ) -> set[Tail]:
        return {message.tail for message in messages}

    monkeypatch.setattr(committer, "read_back", read_nothing)


def taking_no_answer_for_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    told = outcome.of_exception

    def hopeful(error: Exception, *, sent: bool) -> outcome.Outcome:
        return told(error, sent=False)

    monkeypatch.setattr(outcome, "of_exception", hopeful)


def taking_any_event_for_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    class Anything(set[str]):
        def __contains__(self, _: object) -> bool:
            return True

    async def careless(
        nc: Any, stream: str, messages: Sequence[Message], ids: set[str], *, timeout: float
    ) -> int | set[Tail]:
        return await read_back(nc, stream, messages, Anything(ids), timeout=timeout)

    monkeypatch.setattr(committer, "read_back", careless)


def showing_what_is_not_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "may_be_open", lambda headers: False)
    monkeypatch.setattr(scan, "may_be_open", lambda headers: False)


def projecting_what_is_not_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed, "is_unfinished", lambda block: False)


def forgetting_what_was_acknowledged_a_moment_ago(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Fence, "_with_what_was_stored", lambda self, witness: witness)


@pytest.mark.parametrize(
    "broken",
    [
        taking_10071_for_a_conflict,
        taking_no_answer_for_not_written,
        taking_any_event_for_ones_own,
        showing_what_is_not_committed,
        projecting_what_is_not_committed,
        forgetting_what_was_acknowledged_a_moment_ago,
    ],
)
def test_a_fault_of_ours_is_found_out(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    failure = found_out(range(200))
    assert str(failure).startswith("seed ")


def test_the_command_that_a_failure_names_plays_it_again(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--first", "3", "--seeds", "2", "--jobs", "1"]) == 0
    assert "2 seeds" in capsys.readouterr().out
    with patch("tests.faults.seeds.play", side_effect=SeedFailed("seed 3: made up")):
        assert main(["--first", "3", "--seeds", "1", "--jobs", "1"]) == 1
    assert "seed 3: made up" in capsys.readouterr().out
