"""The commands that write, against the ledger's own services."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.services.cli.conftest import Convo, answer, complaint

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture
def c(convo: Convo, ledger: str) -> str:
    """A conversation of its own that has begun."""
    name = f"c-{uuid4()}"
    assert convo("init", name, "ada").exit_code == 0
    return name


def stored(convo: Convo, name: str) -> list[dict[str, Any]]:
    """The data of every event of the conversation."""
    return [event["data"] for event in answer(convo("events", name, "--json"))["events"]]


def test_init_takes_the_user_in_place_or_as_a_flag(convo: Convo, ledger: str) -> None:
    for n, arguments in enumerate([["ada"], ["--user-id", "ada"]]):
        reply = answer(
            convo("init", f"i-{n}/x", *arguments, "--title", "T", "--context", '{"a": 1}', "--json")
        )

        assert reply["tenant_id"] == f"i-{n}"
        assert reply["state"]["user_id"] == "ada"
        assert reply["state"]["title"] == "T"
        assert reply["state"]["context"] == {"a": 1}


def test_init_again_is_harmless(convo: Convo, c: str) -> None:
    result = convo("init", c, "bob")

    assert result.exit_code == 0
    assert result.stdout.startswith(f"nothing to write, default/{c} at version 1 (seq ")


def test_append_takes_role_and_content_in_place_or_as_flags(convo: Convo, c: str) -> None:
    for arguments in (
        ["user", "Hello"],
        ["--role", "user", "--content", "Hello"],
        ["--role", "user", "Hello"],
        ["user", "--content", "Hello"],
    ):
        reply = answer(convo("append", c, *arguments, "--json"))
        assert reply["events"][0]["type"] == "MessageAppended"

    said = [(each["role"], each["content"]) for each in stored(convo, c) if "role" in each]
    assert said == [("user", "Hello")] * 4


def test_content_that_begins_with_a_dash(convo: Convo, c: str) -> None:
    assert convo("append", c, "user", "--", "- item").exit_code == 0
    assert convo("append", c, "user", "--content", "--help").exit_code == 0

    assert [each["content"] for each in stored(convo, c) if "role" in each] == ["- item", "--help"]


@pytest.mark.parametrize("text", ["", "one\ntwo\n", "  \r\n", "\x00\x1b[0m", "您好 😀\ufeff"])
def test_standard_input_is_taken_as_it_is(convo: Convo, c: str, text: str) -> None:
    assert convo("append", c, "user", "-", input=text.encode()).exit_code == 0

    assert next(each["content"] for each in stored(convo, c) if "role" in each) == text


def test_standard_input_that_is_not_utf_8_is_refused(convo: Convo, c: str) -> None:
    line = complaint(convo("append", c, "user", "-", input=b"ab\xff"), 2)

    assert "standard input is not UTF-8 (byte 2)" in line


def test_append_with_everything(convo: Convo, c: str) -> None:
    result = convo(
        *("append", c, "assistant", "--tool-calls", json.dumps([CALL]), "--name", "bot"),
        *("--message-id", "m-1", "--created-at", "2020-01-01T00:00:00Z", "--metadata", '{"a": 1}'),
    )
    assert result.exit_code == 0
    assert "m-1" in result.stdout.splitlines()[1]
    parts = json.dumps([{"type": "text", "text": "done"}])
    assert convo("append", c, "tool", "--content-json", parts, "--tool-call-id", "1").exit_code == 0

    [call, outcome] = [each for each in stored(convo, c) if "role" in each]
    assert call == {
        "message_id": "m-1",
        "role": "assistant",
        "content": None,
        "name": "bot",
        "tool_calls": [CALL],
        "created_at": "2020-01-01T00:00:00Z",
        "metadata": {"a": 1},
    }
    assert outcome["content"] == [{"type": "text", "text": "done"}]
    assert outcome["tool_call_id"] == "1"


def test_the_same_command_id_writes_once(convo: Convo, c: str) -> None:
    first = answer(convo("append", c, "user", "a", "--command-id", "k", "--json"))
    again = convo("append", c, "user", "a", "--command-id", "k")

    assert again.exit_code == 0
    assert again.stdout.startswith("already written: message of user")
    assert first["message_id"] in again.stdout
    assert len([each for each in stored(convo, c) if "role" in each]) == 1


def test_a_version_that_has_passed_is_refused(convo: Convo, c: str) -> None:
    assert convo("append", c, "user", "a", "--expected-version", "1").exit_code == 0

    line = complaint(convo("append", c, "user", "b", "--expected-version", "1"), 1)

    assert line.endswith("[version_conflict]")


def test_who_did_it_is_kept(convo: Convo, c: str) -> None:
    convo("append", c, "user", "a", "--actor", "user:ädä")

    events = answer(convo("events", c, "--json"))["events"]
    assert events[1]["actor"] == "user:ädä"


def test_usage_is_recorded_with_its_fields(convo: Convo, c: str) -> None:
    result = convo(
        *("usage", c, "--prompt-tokens", "10", "--completion-tokens", "5", "--cached-tokens", "3"),
        *(
            "--cache-write-tokens",
            "2",
            "--reasoning-tokens",
            "1",
            "--model",
            "m",
            "--provider",
            "p",
        ),
        *("--message-id", "m-1", "--cost-usd", "0.01", "--metadata", '{"a": 1}'),
    )

    assert result.stdout.startswith(f"10 + 5 tokens, default/{c} at version 2")
    assert stored(convo, c)[1] == {
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "cached_tokens": 3,
        "cache_write_tokens": 2,
        "reasoning_tokens": 1,
        "model": "m",
        "provider": "p",
        "message_id": "m-1",
        "cost_usd": "0.01",
        "metadata": {"a": 1},
    }


def test_a_turn_is_written_from_flags(convo: Convo, c: str) -> None:
    reply = answer(
        convo(
            *("turn", c, "--message", "user:a:b", "--message", "assistant:-"),
            *("--prompt-tokens", "3", "--completion-tokens", "1", "--model", "m", "--json"),
            input="from stdin",
        )
    )

    assert len(reply["message_ids"]) == 2
    assert reply["usage"] == {"prompt": 3, "completion": 1, "total": 4}
    said = [each["content"] for each in stored(convo, c) if "role" in each]
    assert said == ["a:b", "from stdin"]


def test_a_turn_is_written_from_a_file_and_from_standard_input(
    convo: Convo, c: str, tmp_path: Path
) -> None:
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    file = tmp_path / "turn.json"
    file.write_text(json.dumps(body))

    assert convo("turn", c, "--body", file, "--message", "assistant:b").exit_code == 0
    assert convo("turn", c, "--body", "-", input=json.dumps(body)).exit_code == 0

    assert [each["content"] for each in stored(convo, c) if "role" in each] == ["a", "b", "a"]


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("{", "--body is not JSON"),
        ("[]", "--body must be a JSON object"),
        ('{"messages": 1}', "`messages` in the body must be a list"),
        ('{"messages": [], "usage": {}}', "usage is given twice"),
    ],
)
def test_a_body_that_is_wrong_is_not_sent(convo: Convo, ledger: str, body: str, says: str) -> None:
    arguments = ["--body", "-", "--message", "user:a", "--prompt-tokens", "1"]

    assert says in complaint(convo("turn", "c", *arguments, input=body), 2)


def test_reset_and_update(convo: Convo, c: str) -> None:
    assert convo("update", c, "--title", "T", "--context", '{"a": 1}').exit_code == 0
    assert convo("update", c, "--context", '{"a": null}', "--user-id", "bob").exit_code == 0
    assert convo("reset", c, "--reason", "done").exit_code == 0

    state = answer(convo("state", c, "--json"))["state"]
    assert (state["title"], state["context"], state["user_id"]) == ("T", {}, "bob")
    assert stored(convo, c)[3] == {"reason": "done"}


def test_a_write_to_a_conversation_that_does_not_exist(convo: Convo, ledger: str) -> None:
    for arguments in (
        ["append", "none", "user", "a"],
        ["usage", "none", "--prompt-tokens", "1", "--completion-tokens", "1"],
        ["turn", "none", "--message", "user:a"],
        ["reset", "none"],
        ["update", "none", "--title", "T"],
    ):
        line = complaint(convo(*arguments), 1)
        assert line.endswith("[conversation_not_initialized]")
        assert "init" in line
