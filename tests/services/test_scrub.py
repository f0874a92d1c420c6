"""Reading everything beside the work: batches that are not whole, and how fast it goes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infra import pace as pacing
from infra.jetstream.envelope import BATCH_COMMIT, BATCH_ID, BATCH_SEQUENCE
from infra.jetstream.scan import Stored
from infra.pace import Pace
from services.ledger_check import PartitionCheck, _Batches


def message(seq: int, batch: str = "", number: int = 0, *, commit: bool = False) -> Stored:
    headers = {BATCH_ID: batch, BATCH_SEQUENCE: str(number)} if batch else {}
    if commit:
        headers[BATCH_COMMIT] = "1"
    return Stored(seq, "convo.evt.0.t.c", headers, 0, b"{}")


WHOLE = [
    message(1),
    message(2, "a", 1),
    message(3, "a", 2, commit=True),
    message(4, "b", 1, commit=True),
    message(5),
]


def found_in(*messages: Stored, end: int | None = None) -> list[dict[str, Any]]:
    found = PartitionCheck(0, "CONVO-EVENTS-0")
    batches = _Batches(found)
    for each in messages:
        batches.take(each)
    batches.finish(messages[-1].seq if end is None else end)
    return found.faults


def test_whole_batches_are_no_fault() -> None:
    assert found_in(*WHOLE) == []


@pytest.mark.parametrize("behind", [message(4), message(4, "c", 1, commit=True)])
def test_a_batch_whose_end_is_missing(behind: Stored) -> None:
    [fault] = found_in(message(1), message(2, "a", 1), message(3, "a", 2), behind)

    assert fault == {"kind": "batch", "from_seq": 2, "to_seq": 3, "problem": "its end is missing"}


def test_a_batch_that_lacks_a_message_in_between() -> None:
    [fault] = found_in(message(1, "a", 1), message(3, "a", 3), message(4, "a", 4, commit=True))

    assert (fault["from_seq"], fault["to_seq"]) == (1, 3)
    assert "message 2 of it is missing" in fault["problem"]


def test_a_batch_whose_beginning_is_missing() -> None:
    [fault] = found_in(message(1), message(3, "a", 2), message(4, "a", 3, commit=True))

    assert "message 1 of it is missing" in fault["problem"]


def test_a_batch_at_the_very_end_that_was_never_committed() -> None:
    [fault] = found_in(message(1), message(2, "a", 1), message(3, "a", 2))

    assert fault["problem"] == "it was never committed"


def test_a_batch_whose_end_came_while_it_was_read_is_no_fault() -> None:
    assert found_in(message(1), message(2, "a", 1), end=3) == []


def test_the_first_bad_sequence_is_told() -> None:
    found = PartitionCheck(0, "CONVO-EVENTS-0")
    assert found.first_bad_seq is None

    found.blame("key", problem="nobody's")
    found.blame("chain", seq=9, version=2)
    found.blame("sequence", from_seq=7, to_seq=8)

    assert found.first_bad_seq == 7


# -- the pace --------------------------------------------------------------------------------------


class Clock:
    """Time that passes only by sleeping."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(pacing, "time", self)
        monkeypatch.setattr(pacing, "asyncio", self)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize(
    ("rate", "seconds"), [("1000", 10.0), ("2MB", 5.0), ("500kb/s", 20.0), ("max", 0.0)]
)
def test_reading_takes_the_time_that_its_rate_allows(
    monkeypatch: pytest.MonkeyPatch, rate: str, seconds: float
) -> None:
    clock = Clock(monkeypatch)
    pace = Pace.parse(rate)

    async def read() -> None:
        for _ in range(20):
            await pace.took(500, 500_000)

    asyncio.run(read())
    assert clock.now == pytest.approx(seconds)


@pytest.mark.parametrize("rate", ["", "fast", "0", "-1", "5 apples", "MB"])
def test_what_is_no_rate(rate: str) -> None:
    with pytest.raises(ValueError, match="write it as"):
        Pace.parse(rate)
