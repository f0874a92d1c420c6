"""What no SQL text can do: read files, settings or the catalogue, write, or see another tenant."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pytest
from eventsourcing.persistence import Tracking
from pydantic_core import from_json

from projections.analytics import sandbox
from projections.analytics.query import Format, Query, QueryInterrupted, Question
from projections.analytics.rows import Rows, new_conversation
from projections.analytics.sandbox import SQLRefused
from projections.analytics.schema import TABLES, VIEWS
from projections.analytics.view import AnalyticsView, DuckDBDatastore
from tests.projections.analytics.test_rows import read, said, used

SECRET = "the other tenant's secret 4711"

Ask = Callable[..., list[list[Any]]]


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> AnalyticsView:
    """Three messages of tenant `ours`, numbers all, and 500 of tenant `theirs`, secrets all."""
    directory = tmp_path_factory.mktemp("tables")
    tables = AnalyticsView(DuckDBDatastore(directory / "ledger.duckdb", memory_bytes=300 << 20))
    rows = Rows()
    seq = 0
    for key, count, content in (("theirs.s", 500, SECRET), ("ours.c", 3, "7")):
        conversation = new_conversation(key)
        conversation.user_id = f"user of {key}"
        for version in range(1, count + 1):
            seq += 1
            event: Any = said(content=content) if version % 2 else used(model=content)
            event = dataclasses.replace(event, originator_id=key, originator_version=version)
            rows.fold(read(event, seq), conversation)
    tables.write(rows, Tracking("CONVO-EVENTS-0", seq))
    return tables


@pytest.fixture
def ask(tables: AnalyticsView) -> Ask:
    def ask(sql: str, **options: Any) -> list[list[Any]]:
        rows: list[list[Any]] = from_json(
            Query(tables.datastore, Question(sql, **options)).run().body
        )
        return rows

    return ask


@pytest.fixture
def for_us(tables: AnalyticsView, ask: Ask) -> Ask:
    def for_us(sql: str, **options: Any) -> list[list[Any]]:
        return ask(sql, tenant_id="ours", **options)

    return for_us


HOSTILE = {
    "file by name": "SELECT * FROM '/etc/passwd'",
    "file by csv": "SELECT * FROM read_csv('/etc/passwd')",
    "file by text": "SELECT * FROM read_text('/etc/passwd')",
    "file by blob": "SELECT * FROM read_blob('/etc/passwd')",
    "file by json": "FROM read_json_auto('/etc/passwd')",
    "file by parquet": "FROM parquet_scan('/tmp/x.parquet')",
    "file by database": "FROM read_duckdb('/tmp/x.duckdb')",
    "files listed": "FROM glob('/*')",
    "file sniffed": "FROM sniff_csv('/etc/passwd')",
    "network": "FROM 'https://example.com/x.csv'",
    "network by function": "FROM read_csv('https://example.com/x.csv')",
    "copy out": "COPY messages TO '/tmp/stolen.csv'",
    "copy in": "COPY messages FROM '/tmp/x.csv'",
    "export": "EXPORT DATABASE '/tmp/stolen'",
    "attach": "ATTACH '/tmp/other.duckdb'",
    "detach": "DETACH ledger",
    "use": "USE memory",
    "install": "INSTALL httpfs",
    "load": "LOAD httpfs",
    "set": "SET memory_limit = '100GB'",
    "reset": "RESET memory_limit",
    "pragma": "PRAGMA database_list",
    "pragma with a value": "PRAGMA threads = 64",
    "call": "CALL pragma_version()",
    "checkpoint": "CHECKPOINT",
    "insert": "INSERT INTO tracking VALUES ('x', 1)",
    "update": "UPDATE messages SET content = ''",
    "delete": "DELETE FROM events",
    "truncate": "TRUNCATE events",
    "drop": "DROP TABLE events",
    "create": "CREATE TABLE mine AS SELECT 1",
    "create a view": "CREATE TEMP VIEW mine AS SELECT 1",
    "create a macro": "CREATE MACRO mine() AS 1",
    "alter": "ALTER TABLE events RENAME TO mine",
    "merge": "MERGE INTO tracking USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
    "two statements": "SELECT 1; DROP TABLE events",
    "two statements hidden": "SELECT 1 /* ; */ ; ; DELETE FROM events --",
    "begin": "BEGIN",
    "commit and go on": "COMMIT; SELECT 1",
    "explain analyze": "EXPLAIN ANALYZE SELECT * FROM messages",
    "prepare": "PREPARE p AS SELECT 1",
    "execute": "EXECUTE p",
    "vacuum": "VACUUM",
    "nothing": "",
    "a comment": "-- nothing",
    "environment": "SELECT getenv('HOME')",
    "setting": "SELECT current_setting('memory_limit')",
    "variable": "SELECT getvariable('x')",
    "settings": "FROM duckdb_settings()",
    "settings as a view": "FROM duckdb_settings",
    "secrets": "FROM duckdb_secrets()",
    "tables": "FROM duckdb_tables()",
    "tables as a view": "FROM duckdb_tables",
    "columns": "FROM duckdb_columns()",
    "databases": "FROM duckdb_databases()",
    "views": "SELECT sql FROM duckdb_views()",
    "logs": "FROM duckdb_logs()",
    "sqlite's catalogue": "FROM sqlite_master",
    "postgres's catalogue": "FROM pg_catalog.pg_class",
    "postgres's catalogue alone": "FROM pg_class",
    "the information schema": "FROM information_schema.tables",
    "show": "SHOW TABLES",
    "show all": "SHOW ALL TABLES",
    "describe": "DESCRIBE messages",
    "summarize": "SUMMARIZE messages",
    "summarize inside": "SELECT * FROM (SUMMARIZE messages)",
    "describe inside": "SELECT * FROM (DESCRIBE messages)",
    "storage": "FROM pragma_storage_info('messages')",
    "metadata": "FROM pragma_table_info('messages')",
    "our own migrations": "FROM schema_migrations",
    "our own sums": "FROM usage_days",
    "text as SQL": "FROM query('SELECT * FROM messages')",
    "text as a table": "FROM query_table('messages')",
    "text as a table, by a macro": "FROM histogram_values(messages, chars)",
    "text as a plan": "FROM json_execute_serialized_sql(json_serialize_sql('SELECT 1'))",
    "statistics": "SELECT stats(content) FROM messages LIMIT 1",
    "statistics inside": "SELECT max(len(stats(content))) FROM messages",
    "statistics in a lambda": "SELECT list_transform([content], lambda x: stats(x)) FROM messages",
    "a qualified statistics": "SELECT main.stats(content) FROM messages",
    "a view's text": "SELECT pg_get_viewdef(1)",
    "a log": "SELECT write_log('x')",
    "a nap": "SELECT sleep_ms(100000)",
    "a postgres nap": "SELECT pg_sleep(100000)",
    "a sequence": "SELECT nextval('x')",
    "python's variables": "SELECT * FROM batch",
    "python's variables by a cte": (
        "SELECT * FROM (WITH tables AS (SELECT 1) FROM tables), tables, duckdb_views"
    ),
    "a system view under a cte's name": (
        "SELECT * FROM (WITH duckdb_tables AS (SELECT 1) FROM duckdb_tables), duckdb_tables"
    ),
    "a catalog": "FROM ledger.main.messages",
    "a schema": "FROM main.messages",
    "a quoted schema": 'FROM "main"."messages"',
    "the temporary schema": "FROM temp.main.messages",
    "a function's catalog": "SELECT system.main.version()",
    "a recursive bomb": (
        "WITH RECURSIVE r AS (SELECT repeat('x', 100000) AS x UNION ALL SELECT x || x FROM r) "
        "SELECT max(len(x)) FROM r"
    ),
    "a deep one": "SELECT " + "+".join(["1"] * 5000),
    "a long one": "SELECT '" + "x" * 200_000 + "'",
    "a deep list": "SELECT " + "[" * 3000 + "]" * 3000,
    "a list of everything": "SELECT list(a.i) FROM range(1000000000) a(i), range(10) b",
    "a large sort": (
        "SELECT * FROM (SELECT i, repeat('x', 1000) t FROM range(100000000) r(i)) ORDER BY t, i"
    ),
    "a wide answer": "SELECT repeat('x', 20000000)",
}


@pytest.mark.parametrize("sql", HOSTILE.values(), ids=HOSTILE.keys())
@pytest.mark.parametrize("tenant_id", [None, "ours"])
def test_it_is_refused_and_the_next_question_answered(
    tables: AnalyticsView, ask: Ask, sql: str, tenant_id: str | None
) -> None:
    query = Query(tables.datastore, Question(sql, tenant_id=tenant_id))
    timer = threading.Timer(5, query.interrupt)
    timer.start()
    try:
        with pytest.raises((SQLRefused, QueryInterrupted)) as refused:
            query.run()
    finally:
        timer.cancel()
    assert SECRET not in str(refused.value)
    assert ask("SELECT count(*) FROM messages") == [[252]]


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT count(*) FROM range(100000000000) a, range(100000000000) b",
        "SELECT count(*) FROM messages a, messages b, messages c, messages d, messages e",
        "WITH RECURSIVE r AS (SELECT 1 AS x UNION ALL SELECT x + 1 FROM r) SELECT max(x) FROM r",
    ],
)
def test_a_query_without_end_is_interrupted(tables: AnalyticsView, ask: Ask, sql: str) -> None:
    query = Query(tables.datastore, Question(sql))
    timer = threading.Timer(0.2, query.interrupt)
    timer.start()
    with pytest.raises((QueryInterrupted, SQLRefused), match=r"^$|more memory than it may have"):
        query.run()
    assert ask("SELECT count(*) FROM messages") == [[252]]


# Texts that would show another tenant's rows, were there a way.
ESCAPES = [
    "SELECT content FROM messages",
    'SELECT content FROM "messages"',
    'SELECT content FROM "MESSAGES"',
    "SELECT data FROM events",
    "SELECT model FROM usage",
    "SELECT user_id FROM conversations",
    "FROM messages",
    "TABLE messages",
    "SELECT content FROM messages WHERE tenant_id = 'theirs' OR true",
    "SELECT content FROM messages WHERE 1 = 1) OR (1 = 1",
    "SELECT content FROM messages UNION ALL SELECT content FROM messages",
    "WITH messages AS (FROM messages) SELECT content FROM messages",
    "WITH m AS MATERIALIZED (FROM messages) SELECT content FROM m",
    "WITH tenant_id AS (SELECT 'theirs') SELECT content FROM messages",
    "SELECT (SELECT string_agg(content, ',') FROM messages)",
    "SELECT content FROM messages m, LATERAL (SELECT * FROM messages o WHERE o.seq >= m.seq)",
    "SELECT content FROM (SELECT 'theirs' AS tenant_id) RIGHT JOIN messages USING (tenant_id)",
    "SELECT m.content FROM events e FULL JOIN messages m ON true",
    "SELECT content FROM messages TABLESAMPLE 100%",
    "PIVOT messages ON role IN ('user') USING max(content)",
    "UNPIVOT messages ON content, role",
    "SELECT COLUMNS('content') FROM messages",
    "SELECT * REPLACE ('x' AS tenant_id) FROM messages",
    "SELECT content AS tenant_id FROM messages WHERE tenant_id = 'theirs'",
    "SELECT max(content), min(content), first(content), any_value(content) FROM messages",
    "SELECT histogram(content) FROM messages",
    "SELECT list(m) FROM messages m",
    "SELECT row_to_json(m) FROM messages m",
    "SELECT messages FROM messages",
    "SELECT content, count(*) OVER () FROM messages QUALIFY row_number() OVER () > 0",
    "SELECT * FROM daily_usage",
    "SELECT * FROM usage_by_user",
    "SELECT * FROM usage_by_model",
    "SELECT * FROM usage_without_cost",
    "SELECT * FROM active_conversations",
    "SELECT * FROM response_times",
    "SELECT * FROM tracking",
    "SELECT approx_top_k(content, 5) FROM messages",
    "SELECT arg_max(content, seq), mode(content) FROM messages",
    "SELECT * FROM messages POSITIONAL JOIN events",
    "SELECT * FROM messages ASOF JOIN events USING (seq)",
    "SELECT rowid FROM messages",
    "SELECT * FROM messages ANTI JOIN (SELECT 'ours' AS tenant_id) USING (tenant_id)",
]

# Expressions that fail on the others' rows: an error would tell that they are there, and what.
TELLTALE = [
    "CAST(content AS INTEGER) > 0",
    "CAST(content AS INTEGER) BETWEEN 0 AND 10 AND seq > 0",
    "(content::DATE IS NOT NULL OR true)",
    "CASE WHEN CAST(content AS INTEGER) > 0 THEN true ELSE error(content) END",
    "CASE WHEN content <> '7' THEN error(content) ELSE true END",
    "json_extract(content::JSON, '$') IS NOT NULL",
    "strptime(content, '%d') IS NOT NULL",
    "content IN (SELECT error(content) FROM messages WHERE content <> '7') OR true",
    "1 / (CAST(content AS INTEGER) - 7 + 1) > 0",
]


@pytest.mark.parametrize("sql", ESCAPES)
def test_no_text_shows_another_tenants_rows(for_us: Ask, ask: Ask, sql: str) -> None:
    try:
        shown = str(for_us(sql))
    except SQLRefused as refused:
        shown = str(refused)
    for theirs in (SECRET, "theirs.s", '"theirs"', "'theirs',"):
        assert theirs not in shown
    assert for_us("SELECT count(*) FROM messages") == [[2]]
    assert ask("SELECT count(*) FROM messages") == [[252]]


@pytest.mark.parametrize("condition", TELLTALE)
@pytest.mark.parametrize(
    "form",
    [
        "SELECT count(*) FROM messages WHERE {}",
        "SELECT count(*) FILTER ({}) FROM messages",
        "SELECT ({}) AS x, count(*) FROM messages GROUP BY x",
        "SELECT content FROM messages ORDER BY ({}) LIMIT 1",
        "SELECT count(*) FROM messages JOIN (SELECT true AS t) ON t = ({})",
        "SELECT count(*) FROM (SELECT ({}) AS x FROM messages WHERE chars < 100) WHERE x",
        "WITH m AS (FROM messages) SELECT count(*) FROM m WHERE {} AND tenant_id = 'ours'",
    ],
)
def test_not_even_an_error_tells_of_another_tenants_rows(
    for_us: Ask, condition: str, form: str
) -> None:
    assert for_us(form.format(condition))


def test_every_table_and_view_is_limited_to_the_tenant(for_us: Ask) -> None:
    for name in (*TABLES, *VIEWS):
        if name != "tracking":
            tenants = for_us(f"SELECT DISTINCT tenant_id FROM {name}")
            assert tenants in ([["ours"]], []), name
    assert for_us("SELECT count(*) FROM events") == [[3]]
    assert for_us("SELECT count(*) FROM usage") == [[1]]
    assert for_us("SELECT sum(calls) FROM daily_usage") == [[1]]


@pytest.mark.parametrize("tenant_id", ["our' OR '1'='1", "ours'; DROP TABLE events; --", "x"])
def test_a_tenants_name_is_a_name_and_nothing_else(ask: Ask, tenant_id: str) -> None:
    assert ask("SELECT count(*) FROM messages", tenant_id=tenant_id) == [[0]]


def test_ordinary_questions_are_answered(ask: Ask) -> None:
    assert ask("SELECT ? + 1, upper(?)", params=[1, "a"]) == [[2, "A"]]
    assert ask("SELECT $a::VARCHAR", params={"a": 7}) == [["7"]]
    assert ask("WITH RECURSIVE r AS (SELECT 1 AS x UNION SELECT x + 1 FROM r WHERE x < 9) "
               "SELECT sum(x) FROM r") == [[45]]  # fmt: skip
    assert ask("SELECT content.upper() FROM messages WHERE tenant_id = 'ours' LIMIT 1") == [["7"]]
    assert ask("FROM (VALUES (1), (2)) SELECT count(*)") == [[2]]
    assert ask("SELECT json_extract_string(data, '$.role') FROM events WHERE seq = 1") == [["user"]]
    assert ask("SELECT i FROM range(3) r(i) ORDER BY ALL") == [[0], [1], [2]]
    assert ask("SELECT unnest([1, 2])") == [[1], [2]]


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("NULL", None),
        ("9223372036854775807::HUGEINT * 10", 92233720368547758070),
        ("1.5::DECIMAL(18, 9)", "1.500000000"),
        ("TIMESTAMP '2026-11-21 09:00:00'", "2026-11-21T09:00:00.000000Z"),
        ("TIMESTAMPTZ '2026-11-21 09:00:00+02'", "2026-11-21T07:00:00.000000Z"),
        ("DATE '2026-11-21'", "2026-11-21"),
        ("'NaN'::DOUBLE", "NaN"),
        ("'a\\x00b'::BLOB", "YQBi"),
        ("{'a': [1, NULL]}", {"a": [1, None]}),
        ("true", True),
        ("'\u2028 北京'", "\u2028 北京"),
    ],
)
def test_values_as_json(ask: Ask, value: str, shown: Any) -> None:
    assert ask(f"SELECT {value}") == [[shown]]


def test_an_answer_is_cut_by_rows_and_by_bytes(tables: AnalyticsView) -> None:
    by_rows = Query(tables.datastore, Question("FROM messages", rows_max=10)).run()
    assert (by_rows.row_count, by_rows.truncated) == (10, True)
    whole = Query(tables.datastore, Question("FROM messages", rows_max=252)).run()
    assert (whole.row_count, whole.truncated) == (252, False)
    formats: tuple[Format, ...] = ("json", "csv", "arrow")
    for each in formats:
        question = Question("FROM messages", format=each, bytes_max=12_000)
        by_bytes = Query(tables.datastore, question).run()
        assert 0 < by_bytes.row_count < 252
        assert by_bytes.truncated
        assert len(by_bytes.body) <= 12_000


def test_a_query_reads_one_snapshot_while_rows_are_written(tmp_path: Path) -> None:
    tables = AnalyticsView(DuckDBDatastore(tmp_path / "ledger.duckdb"))
    stop = threading.Event()

    def write() -> None:
        seq = 0
        conversation = new_conversation("a.c")
        while not stop.is_set():
            rows = Rows()
            for _ in range(20):
                seq += 1
                event = dataclasses.replace(said(), originator_id="a.c", originator_version=seq)
                rows.fold(read(event, seq), conversation)
            tables.write(rows, Tracking("CONVO-EVENTS-0", seq))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(30):
            question = Question(
                "SELECT (SELECT count(*) FROM events), (SELECT count(*) FROM messages), "
                "(SELECT coalesce(max(message_count), 0) FROM conversations)"
            )
            answer = Query(tables.datastore, question).run()
            counts = {*from_json(answer.body)[0], answer.tracking.get("CONVO-EVENTS-0", 0)}
            assert len(counts) == 1
    finally:
        stop.set()
        writer.join()


def test_the_functions_were_reviewed_for_this_release_of_duckdb() -> None:
    """Another release may have functions that tell more than they should: look at them, then
    write its version here and in `sandbox`."""
    assert duckdb.__version__ == "1.5.5"
    assert "DuckDB 1.5.5" in Path(sandbox.__file__).read_text(encoding="utf-8")
