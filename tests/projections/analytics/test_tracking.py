"""The library's own test case for tracking recorders, and what a batch promises beyond it."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from pathlib import Path

import pytest
from eventsourcing.persistence import (
    IntegrityError,
    OperationalError,
    ProgrammingError,
    Tracking,
    TrackingRecorder,
)
from eventsourcing.tests.persistence import TrackingRecorderTestCase

from projections.analytics import schema, view
from projections.analytics.rows import Rows, new_conversation
from projections.analytics.schema import Migration
from projections.analytics.view import (
    AnalyticsView,
    DuckDBDatastore,
    DuckDBTrackingRecorder,
    NewerSchema,
    RebuildNeeded,
)


class TestDuckDBTrackingRecorder(TrackingRecorderTestCase):
    def create_recorder(self) -> TrackingRecorder:
        recorder = DuckDBTrackingRecorder(DuckDBDatastore(None))
        recorder.create_table()
        return recorder


del TrackingRecorderTestCase  # or pytest would collect the abstract one too


def a_batch(key: str = "acme.c-1") -> Rows:
    conversation = new_conversation(key)
    return Rows(conversations={key: conversation})


def test_a_batch_that_was_written_before_is_refused_and_changes_nothing() -> None:
    tables = AnalyticsView(DuckDBDatastore(None))
    tables.write(a_batch(), Tracking("CONVO-EVENTS-0", 7))

    with pytest.raises(IntegrityError):
        tables.write(a_batch("acme.c-2"), Tracking("CONVO-EVENTS-0", 7))

    assert tables.positions() == {"CONVO-EVENTS-0": 7}
    assert count(tables, "conversations") == 1


def test_rows_that_cannot_be_written_leave_no_tracking() -> None:
    tables = AnalyticsView(DuckDBDatastore(None))
    batch = a_batch()
    batch.events.append(("acme", "c-1", 0, 1, 1, None, None, None, "x", "{}", "h"))

    with pytest.raises(IntegrityError):
        tables.write(batch, Tracking("CONVO-EVENTS-0", 7))

    assert tables.positions() == {}
    assert count(tables, "conversations") == 0


def test_tables_survive_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "ledger.duckdb"
    first = AnalyticsView(DuckDBDatastore(path))
    first.write(a_batch(), Tracking("CONVO-EVENTS-0", 7))
    first.close()
    first.datastore.close()

    again = AnalyticsView(DuckDBDatastore(path))

    assert again.positions() == {"CONVO-EVENTS-0": 7}
    assert count(again, "conversations") == 1
    again.datastore.close()


def test_a_long_log_is_put_into_the_file_also_beside_a_reader(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.duckdb"
    log = tmp_path / "ledger.duckdb.wal"
    tables = AnalyticsView(DuckDBDatastore(path))
    tables.write(a_batch(), Tracking("CONVO-EVENTS-0", 7))
    tables.datastore.shorten_log()
    assert log.stat().st_size > 0, "it was not long"
    reader = tables.datastore.cursor()
    reader.begin()
    seen = reader.execute("SELECT count(*) FROM conversations").fetchone()
    monkeypatch.setattr(view, "SHORT_WAL_BYTES", 0)

    tables.write(a_batch("acme.c-2"), Tracking("CONVO-EVENTS-0", 8))
    tables.datastore.shorten_log()

    assert reader.execute("SELECT count(*) FROM conversations").fetchone() == seen
    assert count(tables, "conversations") == 2
    reader.commit()
    tables.datastore.shorten_log()
    assert not log.exists() or log.stat().st_size == 0
    tables.datastore.close()
    assert count(AnalyticsView(DuckDBDatastore(path)), "conversations") == 2


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.duckdb"
    path.write_bytes(b"not a database" * 1000)

    with pytest.raises(OperationalError):
        DuckDBDatastore(path)


def test_an_open_datastore_takes_no_setting_and_reaches_no_file(tmp_path: Path) -> None:
    connection = DuckDBDatastore(tmp_path / "ledger.duckdb").cursor()
    with pytest.raises(ProgrammingError), view.translated():
        connection.execute("SET enable_external_access = true")
    with pytest.raises(Exception, match="disabled"):
        connection.execute("SELECT * FROM read_text('/etc/hostname')")


def test_a_schema_is_brought_up_to_date_one_migration_after_the_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "ledger.duckdb"
    tables = AnalyticsView(DuckDBDatastore(path))
    tables.write(a_batch(), Tracking("CONVO-EVENTS-0", 7))
    newest = schema.MIGRATIONS[-1].number
    more = (*schema.MIGRATIONS, Migration(newest + 1, ("ALTER TABLE events ADD COLUMN x INT",)))

    monkeypatch.setattr(view, "MIGRATIONS", more)
    tables.migrate()
    tables.migrate()

    assert count(tables, "schema_migrations") == newest + 1
    assert tables.positions() == {"CONVO-EVENTS-0": 7}
    monkeypatch.setattr(view, "MIGRATIONS", schema.MIGRATIONS)
    with pytest.raises(NewerSchema, match="upgrade this process"):
        tables.migrate()
    monkeypatch.setattr(view, "MIGRATIONS", (*more, Migration(newest + 2, None)))
    with pytest.raises(RebuildNeeded):
        tables.migrate()


def test_a_file_of_before_the_sums_of_days_gets_them(tmp_path: Path) -> None:
    tables = AnalyticsView(DuckDBDatastore(tmp_path / "ledger.duckdb"))
    connection = tables.datastore.cursor()
    connection.execute(
        "INSERT INTO usage SELECT 'acme', 'c', i, i, '2026-01-05 23:59:59', 1, 'm', NULL, NULL, "
        "10, 5, 15, 10, NULL, NULL, NULL, 0.5, 'recorded', NULL FROM range(2) r(i)"
    )
    connection.execute("DROP VIEW daily_usage; DROP TABLE usage_days")
    connection.execute("DELETE FROM schema_migrations WHERE number = 3")

    tables.migrate()

    assert connection.execute("FROM daily_usage").fetchall() == [
        ("acme", date(2026, 1, 5), 2, 20, 10, 30, Decimal(1), 0)
    ]


def count(tables: AnalyticsView, table: str) -> int:
    found = tables.datastore.cursor().execute(f"SELECT count(*) FROM {table}").fetchone()
    assert found is not None
    return int(found[0])
