"""convo list and convo search."""

from __future__ import annotations

import json

import pytest

from tests.services.cli.conftest import Convo, answer, complaint


@pytest.fixture(scope="module")
def talked() -> dict[str, int]:
    return {}


@pytest.fixture
def talk(ledger: str, convo: Convo, talked: dict[str, int]) -> int:
    """The seq of the last event of a few conversations of the tenant `shop`."""
    if not talked:
        for number, user in enumerate(("ada", "grace", "ada")):
            name = f"shop/c-{number}"
            assert convo("init", name, user).exit_code == 0
            said = answer(
                convo("append", name, "user", f"Das Café {number}, 北京\x1b[31m", "--json")
            )
        talked["seq"] = said["seq"]
    return talked["seq"]


def test_conversations_are_listed_a_line_each_newest_first(talk: int, convo: Convo) -> None:
    lines = convo("list", "shop", "--min-seq", talk).stdout.splitlines()

    assert [line.split("  ")[1] for line in lines] == ["c-2", "c-1", "c-0"]
    assert "grace" in lines[1]
    assert "1 messages, 0 tokens" in lines[1]
    assert "\x1b" not in "".join(lines)


def test_pages_are_turned_by_hand_or_all_at_once(talk: int, convo: Convo) -> None:
    first = convo("list", "--tenant", "shop", "--limit", 2, "--min-seq", talk).stdout.splitlines()
    cursor = first[-1].removeprefix("(more: --cursor ").partition(",")[0]
    assert "c-0" in convo("list", "shop", "--cursor", cursor).stdout

    every = convo("list", "shop", "--limit", 1, "--all", "--json").stdout.splitlines()
    assert [json.loads(line)["conversations"][0]["conversation_id"] for line in every] == [
        "c-2",
        "c-1",
        "c-0",
    ]


def test_a_list_of_a_user(talk: int, convo: Convo) -> None:
    reply = answer(convo("list", "shop", "--user-id", "ada", "--min-seq", talk, "--json"))
    assert [each["conversation_id"] for each in reply["conversations"]] == ["c-2", "c-0"]
    assert convo("list", "shop", "--status", "deleted").stdout == ""


def test_hits_show_where_they_are_and_what_was_said(talk: int, convo: Convo) -> None:
    found = convo(
        "search", "cafe 北京", "--tenant", "shop", "--user-id", "grace", "--min-seq", talk
    )

    heading, snippet = found.stdout.splitlines()
    assert heading.startswith("c-1  2  ")
    assert "Das ⟦Café⟧ 1, ⟦北京⟧" in snippet
    assert "\x1b" not in found.stdout
    assert convo("search", "cafe", "--tenant", "shop", "--to", "2020-01-01T00:00:00Z").stdout == ""
    reply = answer(convo("search", "café*", "--tenant", "shop", "--limit", 2, "--json"))
    assert len(reply["hits"]) == 2


def test_what_is_wrong_is_one_line(talk: int, convo: Convo) -> None:
    assert "cursor" in complaint(convo("list", "shop", "--cursor", "nonsense"), 1)
    assert "given twice" in complaint(convo("list", "shop", "--tenant", "other"), 2)
    assert "from" in complaint(convo("search", "x", "--from", "yesterday"), 1)
    assert "--status" in complaint(convo("list", "--status", "open"), 2)
