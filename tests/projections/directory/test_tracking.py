"""The library's own test case for tracking recorders, and what a batch promises beyond it."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.persistence import IntegrityError, Tracking, TrackingRecorder
from eventsourcing.tests.persistence import TrackingRecorderTestCase

from projections.directory import schema
from projections.directory.view import Arrived, DirectoryDatastore, DirectoryView, OtherFormat
from tests.projections.directory.given import STREAMS, Told


class TestDirectoryView(TrackingRecorderTestCase):
    @pytest.fixture(autouse=True)
    def path(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def create_recorder(self) -> TrackingRecorder:
        return DirectoryView(DirectoryDatastore(self.folder / "directory.sqlite"))


del TrackingRecorderTestCase  # or pytest would collect the abstract one too


def contents(path: Path) -> dict[str, list[Any]]:
    """Every row of every table, the index's own included as what it finds."""
    database = sqlite3.connect(path)
    try:
        tables = ("tenants", "conversations", "activity", "messages", "heads", "tracking")
        found = {
            table: sorted(database.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
            for table in tables
        }
        database.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, found, instance)")
        found["found"] = sorted(database.execute("SELECT * FROM temp.terms").fetchall())
        return found
    finally:
        database.close()


def test_a_batch_that_was_written_before_is_refused_and_changes_nothing(told: Told) -> None:
    told.start("a")
    told.say("a", "hello")
    told.flush()
    before = contents(told.path)

    with pytest.raises(IntegrityError):
        told.write(*told.written[0])

    assert contents(told.path) == before
    assert told.view.positions(STREAMS) == {0: 2, 1: 0}
    assert told.view.hash_at(0, 2) == "hash 2"
    assert told.view.hash_at(1, 0) is None


def test_rows_that_cannot_be_written_leave_no_tracking(told: Told) -> None:
    told.start("a")
    told.flush()
    before = contents(told.path)
    told.say("a", "hello")
    [arrived] = told._waiting.pop(0)
    broken = Arrived(arrived.id, arrived.event, 2**70)

    with pytest.raises(OverflowError):
        told.view.write(0, [broken], Tracking(STREAMS[0], 2), digest="hash 2")

    assert contents(told.path) == before
    told.write(0, [arrived])
    assert told.found("hello") == {"a/m-1"}


def something_happens(told: Told, chance: random.Random, id: str, message: str, words: str) -> None:
    possible: list[Callable[[], None]] = [
        lambda: told.say(id, words, message),
        lambda: told.edit(id, message, words),
        lambda: told.redact(id, message),
        lambda: told.begin_reply(id, message),
        lambda: told.chunk(id, message, words),
        lambda: told.finish_reply(id, message),
        lambda: told.close_for(id, "deleted"),
        lambda: told.close_for(id, "closed"),
        lambda: told.reopen(id),
        lambda: told.update(id, user_id=chance.choice(["ada", "grace", None])),
        lambda: told.reset(id),
        lambda: told.erase(id) if chance.random() < 0.1 else None,
    ]
    chance.choice(possible)()


def a_busy_day(told: Told, seed: int) -> list[Arrived]:
    """Events of every kind in no good order; they are not written yet."""
    chance = random.Random(seed)
    conversations = ["a", "b", "c"]
    messages = ["m-1", "m-2", "m-3"]
    for id in conversations:
        told.start(id)
    for _ in range(80):
        id, message = chance.choice(conversations), chance.choice(messages)
        words = " ".join(chance.choices(["one", "two", "北京", "です"], k=3))
        something_happens(told, chance, id, message, words)
    events = told._waiting.pop(0)
    told.now = told.now.replace(day=20)
    return events


@pytest.mark.parametrize("seed", range(15))
def test_the_tables_are_the_same_however_the_events_are_cut_into_batches(
    tmp_path: Path, seed: int
) -> None:
    told = Told(tmp_path / "whole")
    events = a_busy_day(told, seed)
    told.write(0, events)
    told.close()
    whole = contents(tmp_path / "whole")

    chance = random.Random(seed)
    for name, size_max in (("one by one", 1), ("at random", 12)):
        other = Told(tmp_path / name)
        rest = events
        while rest:
            size = chance.randint(1, size_max)
            other.write(0, rest[:size])
            rest = rest[size:]
        other.close()
        assert contents(tmp_path / name) == whole, name


def test_nothing_is_left_in_the_index_of_what_is_not_to_be_found(tmp_path: Path) -> None:
    for seed in range(10):
        told = Told(tmp_path / f"{seed}")
        events = a_busy_day(told, seed)
        told.write(0, events)
        for id in ("a", "b", "c"):
            told.erase(id)
        told.flush()
        told.close()
        assert contents(tmp_path / f"{seed}")["found"] == []


def test_a_file_of_another_format_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "directory.sqlite"
    Told(path).close()
    Told(path).close()  # the same format opens again

    monkeypatch.setattr("projections.directory.view.USER_VERSION", schema.USER_VERSION + 1)
    with pytest.raises(OtherFormat):
        Told(path)
