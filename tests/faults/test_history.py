"""The checker notices what it is there to notice."""

from __future__ import annotations

import hashlib
import json

import pytest

from tests.faults.history import (
    Deed,
    Event,
    Place,
    Row,
    Sight,
    fold,
    problems,
    wrong_rows,
    wrong_sights,
)


def stream(*contents: str) -> list[Event]:
    """One conversation's events with these contents, their versions and chain without a fault."""
    digest = bytes(32)
    found = []
    for version, content in enumerate(contents, start=1):
        told = {"type": "MessageAppended", "version": version, "data": {"content": content}}
        body = json.dumps(told).encode()
        digest = hashlib.sha256(digest + body).digest()
        found.append(Event(version, "t.c", digest.hex(), body))
    return found


ONE = Deed("0", "t.c", "one", 1, [Place(1, 1)])
TURN = Deed("0", "t.c", "turn", 3, [Place(2, 2), Place(3, 3), Place(4, 4)])
UNKNOWN = Deed("0", "t.c", "unknown", 3)
TURNED = ("turn", "turn", "turn")
WHOLE = stream("one", *TURNED)


@pytest.mark.parametrize(
    ("events", "kinds"),
    [
        (WHOLE, set()),
        (stream("one", *TURNED, "unknown", "unknown", "unknown"), set()),
        (stream("one", *TURNED, "unknown"), {"torn"}),
        (stream("one", *TURNED, *["unknown"] * 6), {"doubled"}),
        (stream("one", *TURNED, "one"), {"doubled", "elsewhere"}),
        (stream("one"), {"missing"}),
        (stream("one", "turn", "turn"), {"torn", "elsewhere"}),
        (stream(*TURNED, "one"), {"elsewhere"}),
        (stream("one", *TURNED, "nobody's"), {"strange"}),
        ([*WHOLE[:2], *WHOLE[3:]], {"gap", "chain", "torn", "elsewhere"}),
        ([*WHOLE[:3], WHOLE[3]._replace(digest="0" * 64)], {"chain"}),
        ([*WHOLE[:3], WHOLE[3]._replace(seq=9)], {"elsewhere"}),
    ],
)
def test_the_checker_notices(events: list[Event], kinds: set[str]) -> None:
    found = problems([ONE, TURN, UNKNOWN], events)
    assert {each.partition(":")[0] for each in found} == kinds


def test_the_checker_notices_a_wrong_order() -> None:
    [found] = problems([TURN, ONE], WHOLE)
    assert found.startswith("out of order")


# -- what was shown --------------------------------------------------------------------------------

TALK = fold(stream("one", "two", "three"))


@pytest.mark.parametrize(
    ("sight", "kind"),
    [
        (Sight("t.c", 3, 3, ["one", "two", "three"], 0), None),
        (Sight("t.c", 2, 1, ["one", "two"], None), None),
        (Sight("t.c", 2, 3, ["one", "two"], None), "stale"),
        (Sight("t.c", 4, 3, ["one", "two", "three", "four"], None), "invented"),
        (Sight("t.c", 3, 3, ["one", "three"], None), "wrong"),
        (Sight("t.c", 3, 3, None, 18), "wrong"),
        (Sight("t.other", 1, 0, ["one"], None), "invented"),
    ],
)
def test_an_answer_that_is_not_the_fold_is_noticed(sight: Sight, kind: str | None) -> None:
    found = [each.partition(":")[0] for each in wrong_sights([sight], TALK)]
    assert found == ([kind] if kind else [])


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ({"t.c": Row(3, 3, 0)}, 0),
        ({"t.c": Row(2, 2, 0)}, 1),
        ({"t.c": Row(3, 3, 18)}, 1),
        ({}, 1),
        ({"t.c": Row(3, 3, 0), "t.d": Row(1, 1, 0)}, 1),
    ],
)
def test_a_table_that_is_not_the_fold_is_noticed(rows: dict[str, Row], count: int) -> None:
    assert len(wrong_rows("analytics", rows, TALK)) == count
