"""convo replay, verify and diff."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from rich.cells import cell_len

from services.cli.timeline import Timeline, zone_of
from tests.services.cli.conftest import Convo, answer, complaint


@pytest.fixture(scope="module")
def talked() -> set[str]:
    return set()


@pytest.fixture
def talk(ledger: str, convo: Convo, talked: set[str]) -> str:
    """The name of a conversation of seven events, the same for every test of the module."""
    if not talked:
        talked.add("c-7")
        assert convo("init", "c-7", "ada", "--actor", "user:ada").exit_code == 0
        assert convo("append", "c-7", "user", "What is\nan event?").exit_code == 0
        assert convo("append", "c-7", "assistant", "A fact \x1b[31m你好" + "!" * 300).exit_code == 0
        assert convo("update", "c-7", "--model", "gpt-4o").exit_code == 0
        assert convo("reset", "c-7").exit_code == 0
        assert convo("append", "c-7", "user", "Hi", "--command-id", "the-last").exit_code == 0
    return "c-7"


def test_a_replay_is_a_timeline_that_fits_a_terminal(
    talk: str, convo: Convo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")

    lines = convo("replay", talk).stdout.splitlines()

    assert max(map(cell_len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert lines[0].endswith(", times in UTC")
    assert "  init by user:ada, command " in lines[1]
    assert lines[2].endswith("1  ConversationStarted  user ada")
    assert lines[5].strip() == "2  user: What is an event?"
    assert "1 message, window 1 (" in lines[6]
    assert lines[-3].endswith("append, command the-last")
    assert lines[-2].strip() == "7  user: Hi"
    assert "3 messages, window 1 (" in lines[-1]


def test_a_replay_in_json_is_an_entry_a_line(talk: str, convo: Convo) -> None:
    entries = [json.loads(line) for line in convo("replay", talk, "--json").stdout.splitlines()]

    assert [each["version"] for each in entries] == [1, 2, 3, 4, 5, 6, 7]
    assert len(entries[3]["data"]["content"]) > 300
    assert all(len(each["state"]["window_digest"]) == 64 for each in entries)


def test_a_replay_from_and_to_versions_and_times(talk: str, convo: Convo) -> None:
    def versions(*flags: str) -> list[int]:
        result = convo("replay", talk, "--json", *flags)
        assert result.exit_code == 0, result.stderr
        return [json.loads(line)["version"] for line in result.stdout.splitlines()]

    entries = [json.loads(line) for line in convo("replay", talk, "--json").stdout.splitlines()]
    time = entries[3]["time"]

    assert versions("--from", "3", "--to", "5") == [3, 4, 5]
    assert versions("--at", time) == [1, 2, 3, 4]
    assert versions("--to", time) == [1, 2, 3, 4]
    assert versions("--from", time) == [4, 5, 6, 7]
    assert versions("--from", time, "--speed", "1000x") == [4, 5, 6, 7]
    assert versions("--at", "2000-01-01T00:00:00Z") == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--at", "2026-11-21T09:00:00"], "with its zone"),
        (["--to", "soon"], "neither a version (7) nor a time"),
        (["--tz", "Mars"], "no time zone 'Mars'"),
        (["--tz", "../../etc/passwd"], "no time zone"),
        (["--speed", "fast"], "1x, 10x or max"),
        (["--speed", "0x"], "1x, 10x or max"),
        (["--step"], "needs a terminal"),
        (["--follow", "--to", "3"], "--follow has no end"),
        (["--at", "3", "--to", "3"], "exclude each other"),
    ],
)
def test_a_replay_that_cannot_be_understood(convo: Convo, flags: list[str], says: str) -> None:
    assert says in complaint(convo("replay", "c", *flags), 2)


def test_times_are_shown_in_the_zone_asked_for() -> None:
    entry = an_entry(time="2026-11-21T23:30:00.500000Z")

    berlin = Timeline(zone_of("Europe/Berlin"), "Europe/Berlin", width=100, colours=False)
    assert next(berlin.lines(entry)) == "2026-11-22, times in Europe/Berlin"
    assert next(berlin.lines({**entry, "time": "2026-11-21T23:31:00Z"})).startswith(
        "00:31:00.000  append"
    )
    assert zone_of("utc") is UTC
    assert zone_of("local") == datetime.now(UTC).astimezone().tzinfo


def test_colours_stand_around_a_line_and_never_come_from_a_message() -> None:
    entry = an_entry(content="\x1b[31mred")

    lines = list(Timeline(UTC, "UTC", width=80, colours=True).lines(entry))

    assert lines[0].startswith("\x1b[1m")
    assert r"\x1b[31mred" in lines[2]
    assert "\x1b" not in lines[2]


def test_the_events_of_one_command_stand_under_it() -> None:
    timeline = Timeline(UTC, "UTC", width=80, colours=False)

    assert len(list(timeline.lines(an_entry(version=2)))) == 4
    assert len(list(timeline.lines(an_entry(version=3)))) == 2


def an_entry(**fields: Any) -> dict[str, Any]:
    totals = {"prompt": 1, "completion": 2, "total": 3}
    return {
        "version": 2,
        "type": "MessageAppended",
        "time": "2026-11-21T09:00:00.000000Z",
        "actor": None,
        "command_id": "x",
        "verb": "append",
        "data": {"role": "user", "content": fields.pop("content", "Hi"), "metadata": {}},
        "state": {
            "status": "active",
            "message_count": 1,
            "window": ["m"],
            "window_digest": "0" * 64,
            "tokens_used": totals,
            "lifetime_tokens": totals,
        },
        **fields,
    }


def test_a_valid_conversation(talk: str, convo: Convo) -> None:
    result = convo("verify", talk)

    assert result.exit_code == 0
    assert result.stdout.startswith("valid: default/c-7, 7 events, head\n")
    assert answer(convo("verify", talk, "--json"))["valid"] is True


def test_a_diff_shows_what_was_and_what_is(talk: str, convo: Convo) -> None:
    lines = convo("diff", talk, "--from", "4", "--to", "5").stdout.splitlines()

    assert lines[0].startswith("version 4 to 5: 1 event, ")
    assert lines[lines.index("  model") + 1] == '  + "gpt-4o"'
    found = answer(convo("diff", talk, "--from", "4", "--to", "7", "--json"))
    assert found["events"] == 3
