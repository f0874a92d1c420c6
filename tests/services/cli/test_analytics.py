"""`convo sql`: a table for a person, bytes for a program, one clear line when it is refused."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.services.cli.conftest import Convo, complaint


@pytest.fixture
def seq(convo: Convo, ledger: str) -> str:
    """A conversation of two messages; the sequence of its last event."""
    convo("init", "acme/sql", "ada", "--command-id", "i")
    convo("append", "acme/sql", "user", "Hello", "--command-id", "a")
    written = convo("append", "acme/sql", "user", "two\nlines", "--command-id", "b", "--json")
    return str(json.loads(written.stdout)["seq"])


MESSAGES = "SELECT content, chars FROM messages WHERE conversation_id = 'sql' ORDER BY seq"


def test_a_table_for_a_person(convo: Convo, seq: str) -> None:
    lines = convo("sql", MESSAGES, "--min-seq", seq).stdout.splitlines()

    assert lines[0].split() == ["content", "chars"]
    assert lines[2:4] == ["Hello          5", "two lines      9"]
    assert lines[4].startswith("(2 rows in ")


def test_the_reply_as_json(convo: Convo, seq: str) -> None:
    for flags in (["--json"], ["--format", "json"]):
        reply = json.loads(convo("sql", MESSAGES, "--min-seq", seq, *flags).stdout)
        assert reply["rows"] == [["Hello", 5], ["two\nlines", 9]]


def test_csv_and_parquet_into_files(convo: Convo, seq: str, tmp_path: Path) -> None:
    convo("sql", MESSAGES, "--min-seq", seq, "--format", "csv", "-o", "m.csv")
    convo("sql", MESSAGES, "--format", "parquet", "-o", "m.parquet")

    with (tmp_path / "m.csv").open(encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["content", "chars"], ["Hello", "5"], ["two\nlines", "9"]]
    assert pq.read_table(tmp_path / "m.parquet").to_pydict() == {
        "content": ["Hello", "two\nlines"],
        "chars": [5, 9],
    }


def test_parameters_and_a_tenant(convo: Convo, seq: str) -> None:
    count = (
        "sql",
        "SELECT count(*) FROM messages WHERE role = ?",
        "--params",
        '["user"]',
        "--json",
    )
    assert json.loads(convo(*count, "--min-seq", seq).stdout)["rows"][0][0] >= 2
    assert json.loads(convo(*count, "--tenant", "nobody").stdout)["rows"] == [[0]]


def test_bars(convo: Convo, seq: str) -> None:
    lines = convo("sql", MESSAGES, "--min-seq", seq, "--chart").stdout.splitlines()
    assert lines == ["Hello      " + "█" * 28 + " 5", "two lines  " + "█" * 50 + " 9"]


def test_a_line_over_time(convo: Convo, seq: str) -> None:
    over_days = (
        "SELECT DATE '2026-11-01' + n::INT AS day, n FROM range(9) AS r(n) WHERE n <> 4 ORDER BY 1"
    )

    *rows, axis = convo("sql", over_days, "--chart").stdout.splitlines()

    assert len(rows) == 8
    assert rows[0] == "8 ┤" + " " * 49 + "█" * 7
    assert rows[-1] == "0 ┤" + " " * 7 + "█" * 49
    assert axis.split() == ["2026-11-01", "2026-11-09"]
    assert "behind a label" in complaint(convo("sql", "SELECT 'a', 'b'", "--chart"), 1)


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("SELEC 1", "syntax error"),
        ("SELECT nothing FROM messages", "nothing"),
        ("DROP TABLE messages", "only SELECT may be run here"),
        ("FROM read_csv('/etc/passwd')", "read_csv"),
    ],
)
def test_a_refusal_is_one_line(convo: Convo, seq: str, statement: str, said: str) -> None:
    assert said in complaint(convo("sql", statement), 1)


def test_a_cut_answer_says_so(convo: Convo, seq: str) -> None:
    result = convo("sql", MESSAGES, "--min-seq", seq, "--max-rows", "1")
    assert "(1 rows" in result.stdout
    assert "cut" in result.stdout
    result = convo("sql", MESSAGES, "--max-rows", "1", "--format", "csv")
    assert "the answer was cut" in result.stderr


def test_a_rebuild_gives_the_same_tables(convo: Convo, seq: str) -> None:
    verified = convo("rebuild", "analytics", "--verify").stdout.splitlines()
    assert verified[0].endswith("the same as the live ones")
    assert {line.split()[0] for line in verified[1:]} == {"same"}

    result = json.loads(convo("rebuild", "analytics", "--json").stdout)
    assert (result["same"], result["exchanged"]) == (True, True)
    assert json.loads(convo("sql", MESSAGES, "--json").stdout)["row_count"] == 2


def test_tables_as_parquet_by_day(convo: Convo, seq: str, tmp_path: Path) -> None:
    convo("sql", "SELECT 1", "--min-seq", seq)
    counted = json.loads(convo("export-parquet", "out", "--tenant", "acme", "--json").stdout)[
        "rows"
    ]

    for name, count in counted.items():
        files = sorted((tmp_path / "out" / name).glob("day=*/*.parquet"))
        assert sum(pq.ParquetFile(file).metadata.num_rows for file in files) == count
        asked = convo("sql", f"SELECT count(*) FROM {name}", "--tenant", "acme", "--json")
        assert json.loads(asked.stdout)["rows"] == [[count]]
    assert counted["messages"] == 2
    assert "not empty" in complaint(convo("export", "parquet", "out"), 1)
    convo("export", "parquet", "again", "--tenant", "acme")
    assert (tmp_path / "again" / "messages").is_dir()


def test_a_report_is_one_page_that_needs_nothing_else(
    convo: Convo, seq: str, tmp_path: Path
) -> None:
    tokens = ("--prompt-tokens", "1000", "--completion-tokens", "10", "--model", "gpt-4o<script>")
    used = json.loads(convo("usage", "acme/sql", *tokens, "--json").stdout)
    convo("sql", "SELECT 1", "--min-seq", str(used["seq"]))

    convo("report", "--tenant", "acme", "-o", "r.html")

    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert "gpt-4o&lt;script&gt;" in page
    assert "1,010" in page
    assert "tenant acme" in page
    assert page.count("<h2>") == 5
    for reaching_out in ("http", "src=", "<script", "@import", "url("):
        assert reaching_out not in page
