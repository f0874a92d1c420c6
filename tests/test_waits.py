"""Tests wait for answers with bounds that a loaded machine keeps, too."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BOUNDED = {"request": 3, "next_msg": 1}
"""Calls of nats-py that give up after a second or less where no `timeout` is given; from how many
positional arguments on there is one among them."""
OVER_HTTP = "http"
"""What tests call an HTTP client, whose requests look the same."""


def hasty(source: str) -> Iterator[int]:
    """The lines on which a NATS client is not told how long to wait."""
    for node in ast.walk(ast.parse(source)):
        if not (isinstance(node, ast.Await) and isinstance(node.value, ast.Call)):
            continue
        call = node.value
        named = {keyword.arg for keyword in call.keywords}
        if (
            isinstance(call.func, ast.Attribute)
            and len(call.args) < BOUNDED.get(call.func.attr, 0)
            and not named & {"timeout", "json"}
            and ast.unparse(call.func.value) != OVER_HTTP
        ):
            yield node.lineno


def test_a_hasty_request_is_found() -> None:
    assert list(
        hasty("await nc.request('a', b'', headers=h)\nawait nc.request('a', timeout=5)")
    ) == [1]
    assert list(hasty("await http.request('GET', '/')\nawait heard.next_msg()")) == [2]


def test_every_request_of_a_test_says_how_long_it_waits() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        if not {"node_modules", "benchmarks"} & set(path.parts)
        for line in hasty(path.read_text(encoding="utf-8"))
    ]
    assert found == [], "nats-py gives up after half a second: give a timeout of 10 s or so"
