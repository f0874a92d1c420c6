"""The commands that read, against the ledger's own services."""

from __future__ import annotations

import json

import pytest

from tests.services.cli.conftest import Convo, answer, complaint

MESSAGES = 7


@pytest.fixture(scope="module")
def name() -> str:
    return "acme/views"


@pytest.fixture(autouse=True)
def conversation(convo: Convo, ledger: str, name: str) -> None:
    """user `ada`; seven messages, m-0 … m-6 at versions 2 …; 3 + 4 tokens at the end."""
    convo("init", name, "ada", "--title", "T")
    for n in range(MESSAGES):
        convo(
            "append", name, "user", f"text {n}", "--message-id", f"m-{n}", "--command-id", f"k-{n}"
        )
    convo("usage", name, "--prompt-tokens", "3", "--completion-tokens", "4", "--command-id", "u")


def test_messages_are_shown_oldest_first(convo: Convo, name: str) -> None:
    lines = convo("messages", name, "--limit", "2").stdout.splitlines()

    assert [line.split()[-1] for line in lines] == ["m-5", "5", "m-6", "6"]
    assert lines[1] == "    text 5"


def test_messages_as_json_are_the_reply(convo: Convo, name: str) -> None:
    reply = answer(convo("messages", name, "--json"))

    assert reply["ok"] is True
    assert [message["message_id"] for message in reply["messages"]] == [
        f"m-{n}" for n in range(MESSAGES)
    ]


def test_totals_are_a_table(convo: Convo, name: str) -> None:
    _, since_reset, lifetime = convo("usage-totals", name).stdout.splitlines()

    assert since_reset.split() == ["since", "the", "reset", "3", "4", "7"]
    assert lifetime.split() == ["lifetime", "3", "4", "7"]


def test_the_state_is_shown_field_by_field(convo: Convo, name: str) -> None:
    shown = dict(line.split(maxsplit=1) for line in convo("state", name).stdout.splitlines())

    assert shown["tenant_id"] == "acme"
    assert shown["title"] == "T"
    assert shown["message_count"] == str(MESSAGES)


def test_the_state_at_a_version_and_at_a_time(convo: Convo, name: str) -> None:
    at_version = answer(convo("state", name, "--at-version", "3", "--json"))
    time = answer(convo("events", name, "--json"))["events"][2]["time"]
    at_time = answer(convo("state", name, "--at", time, "--json"))

    assert at_version["state"]["message_count"] == 2
    assert at_time["state"] == at_version["state"]


def test_a_page_of_the_history_says_how_to_get_the_next(convo: Convo, name: str) -> None:
    lines = convo("history", name, "--limit", "3").stdout.splitlines()

    assert len(lines) == 7
    assert lines[-1] == "(more: --after-version 4, or --all)"


def test_the_page_before_a_version(convo: Convo, name: str) -> None:
    reply = answer(convo("history", name, "--before-version", "5", "--limit", "2", "--json"))

    assert [message["version"] for message in reply["messages"]] == [3, 4]
    lines = convo("history", name, "--before-version", "5", "--limit", "2").stdout.splitlines()
    assert lines[-1] == f"(more: --before-version {reply['next']}, or --all)"


def test_all_pages_of_the_history(convo: Convo, name: str) -> None:
    text = convo("history", name, "--limit", "3", "--all").stdout
    pages = convo("history", name, "--limit", "3", "--all", "--json").stdout.splitlines()

    assert [line.strip() for line in text.splitlines()[1::2]] == [
        f"text {n}" for n in range(MESSAGES)
    ]
    assert [len(json.loads(page)["messages"]) for page in pages] == [3, 3, 1]


def test_the_history_behind_a_reset(convo: Convo, ledger: str) -> None:
    convo("init", "was-reset", "ada")
    convo("append", "was-reset", "user", "before", "--command-id", "1")
    convo("reset", "was-reset", "--command-id", "2")

    assert convo("history", "was-reset").stdout == ""
    assert "before" in convo("history", "was-reset", "--include-reset").stdout


def test_events_are_shown_as_lines_and_as_stored(convo: Convo, name: str) -> None:
    lines = convo("events", name, "--limit", "4", "--all").stdout.splitlines()
    first = answer(convo("events", name, "--limit", "1", "--json"))["events"][0]

    assert [line.split()[2] for line in lines] == [str(n) for n in range(1, MESSAGES + 3)]
    assert lines[0].endswith("acme/views  1  ConversationStarted  user ada: T")
    assert first["type"] == "ConversationStarted"
    assert len(first["hash"]) == 64


def test_a_read_of_what_does_not_exist(convo: Convo, ledger: str) -> None:
    for view in ("messages", "usage-totals", "state", "history", "events"):
        assert complaint(convo(view, "none"), 1).endswith("[conversation_not_initialized]")
