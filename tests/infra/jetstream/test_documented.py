"""The page about the module says what is shown by which test; those tests are there."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from eventsourcing.tests import persistence as cases

from infra.jetstream import Factory

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "eventsourcing.md").read_text(encoding="utf-8")


def test_every_test_that_the_page_names_exists() -> None:
    existing = {
        node.name
        for path in [
            *(ROOT / "tests/infra/jetstream").glob("test_*.py"),
            *(ROOT / "tests/cluster").glob("test_*.py"),
            Path(cases.__file__),  # the library's own
        ]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 20
    assert named <= existing


def test_every_difference_names_a_test() -> None:
    rows = PAGE.partition("## What is different")[2].partition("\n## ")[0].splitlines()
    rows = [row for row in rows if row.startswith("| ")][1:]
    assert len(rows) >= 10
    assert [row for row in rows if not re.search(r"\| `test_\w+`", row)] == []


def test_every_variable_of_the_factory_is_on_the_page() -> None:
    variables = {
        value for name, value in vars(Factory).items() if name.isupper() and isinstance(value, str)
    }
    assert "NATS_URL" in variables
    assert [name for name in sorted(variables) if f"`{name}`" not in PAGE] == []
