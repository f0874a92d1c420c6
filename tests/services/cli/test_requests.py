"""One request: retried under the same command id when it may be, and told in one line when not."""

from __future__ import annotations

import json

import pytest

from services.cli.errors import CommandFailed, Refused
from services.cli.requests import read_answer
from tests.services.cli.conftest import Convo, Script, answer, complaint, error

BUSY = error("storage_unavailable", "the disk is full", retryable=True)


def test_a_write_carries_a_new_command_id(convo: Convo, script: Script) -> None:
    convo("append", "c", "user", "a")
    convo("append", "c", "user", "a")

    first, second = script.ids
    assert first != second


def test_headers_say_what_the_flags_said(convo: Convo, script: Script) -> None:
    result = convo(
        *("append", "acme/a.b c", "user", "Hi", "--command-id", "k 1"),
        *("--expected-version", "7", "--actor", "user:ädä"),
    )

    assert result.exit_code == 0
    [request] = script.requests
    assert request.subject == "convo.cmd.acme.a%2Eb%20c.append"
    assert json.loads(request.data) == {"role": "user", "content": "Hi"}
    assert request.headers == {
        "Convo-Command-Id": "k 1",
        "Convo-Expected-Version": "7",
        "Convo-Actor": "user:ädä",
    }


def test_a_read_carries_how_fresh_it_must_be(convo: Convo, script: Script) -> None:
    script.replies = [{"ok": True, "messages": []}]

    convo("messages", "c", "--limit", "3", "--min-seq", "9", "--consistency", "strong")

    [request] = script.requests
    assert request.subject == "convo.get.default.c.messages"
    assert json.loads(request.data) == {"limit": 3}
    assert request.headers == {"Convo-Min-Seq": "9", "Convo-Consistency": "strong"}


def test_a_refusal_that_may_pass_is_tried_again_under_the_same_id(
    convo: Convo, script: Script
) -> None:
    script.replies = [BUSY, None, BUSY, {"ok": True, "version": 1}]

    result = convo("append", "c", "user", "a", "--json", "--timeout", "2")

    assert answer(result) == {"ok": True, "version": 1}
    assert len(script.ids) == 4
    assert len(set(script.ids)) == 1


def test_it_is_tried_again_three_times_and_no_more(convo: Convo, script: Script) -> None:
    script.replies = [BUSY]

    line = complaint(convo("append", "c", "user", "a"), 1)

    assert line == "the disk is full [storage_unavailable]"
    assert len(script.requests) == 4


@pytest.mark.parametrize("code", ["invalid_request", "version_conflict", "conversation_closed"])
def test_a_refusal_that_stands_is_not_tried_again(convo: Convo, script: Script, code: str) -> None:
    script.replies = [error(code)]

    assert complaint(convo("append", "c", "user", "a"), 1) == f"that was refused [{code}]"
    assert len(script.requests) == 1


def test_a_limit_that_ends_late_is_not_waited_for(convo: Convo, script: Script) -> None:
    script.replies = [error("rate_limited", retryable=True, details={"retry_after_ms": 40_000})]

    assert "[rate_limited]" in complaint(convo("append", "c", "user", "a"), 1)
    assert len(script.requests) == 1


def test_a_limit_that_ends_soon_is_waited_for(convo: Convo, script: Script) -> None:
    limited = error("rate_limited", retryable=True, details={"retry_after_ms": 150})
    script.replies = [limited, {"ok": True}]

    assert convo("append", "c", "user", "a").exit_code == 0


def test_silence_after_a_write_names_the_id_to_repeat_it_with(convo: Convo, script: Script) -> None:
    script.replies = [None]

    line = complaint(convo("append", "c", "user", "a", "--timeout", "0.2"), 1)

    assert line.startswith("no answer within 0.2 s")
    assert line.endswith(f"to repeat it safely: --command-id {script.ids[0]}")


def test_an_unknown_outcome_names_it_too(convo: Convo, script: Script) -> None:
    script.replies = [error("outcome_unknown", "it may have been written", retryable=True)]

    line = complaint(convo("append", "c", "user", "a", "--command-id", "mine"), 1)

    assert line.endswith("[outcome_unknown]; to repeat it safely: --command-id mine")


def test_silence_after_a_read_needs_no_id(convo: Convo, script: Script) -> None:
    script.replies = [None]

    assert "command-id" not in complaint(convo("state", "c", "--timeout", "0.05"), 1)


def test_each_wrong_field_is_named_on_the_one_line(convo: Convo, script: Script) -> None:
    details = [{"field": "role", "problem": "unknown"}, {"field": "name", "problem": "too long"}]
    script.replies = [error("invalid_request", "role is unknown.", details=details)]

    line = complaint(convo("append", "c", "x", "a"), 1)

    assert line == "role is unknown (name: too long) [invalid_request]"


def test_with_json_the_refusal_is_on_standard_output_as_it_came(
    convo: Convo, script: Script
) -> None:
    script.replies = [error("invalid_state", details={"b": 1, "a": [2]})]

    result = convo("reset", "c", "--json")

    complaint(result, 1)
    assert json.loads(result.stdout) == script.replies[0]


def test_no_server_says_how_to_start_one(
    convo: Convo, monkeypatch: pytest.MonkeyPatch, nowhere: str
) -> None:
    monkeypatch.setenv("CONVO_PORT", nowhere.rpartition(":")[2])

    line = complaint(convo("state", "c"), 1)

    assert line.startswith(f"no server answers at {nowhere}: start one with `convo up`")


def test_a_server_that_was_named_and_is_not_there(convo: Convo, nowhere: str) -> None:
    line = complaint(convo("append", "c", "user", "a", "--nats", nowhere), 1)

    assert nowhere in line
    assert "convo up" in line


def test_a_server_without_services_says_how_to_start_them(convo: Convo, server_url: str) -> None:
    writes = complaint(convo("append", "c", "user", "a", "--nats", server_url), 1)
    reads = complaint(convo("state", "c", "--nats", server_url), 1)
    tails = complaint(convo("tail", "c", "--history", "1", "--nats", server_url), 1)

    assert "convo serve commands" in writes
    assert "convo serve queries" in reads
    assert "convo serve queries" in tails


def test_a_url_that_is_none_is_explained(convo: Convo) -> None:
    assert "nats://HOST:PORT" in complaint(convo("state", "c", "--nats", "http://x"), 1)


def test_more_than_the_server_takes_is_refused_before_it_is_sent(
    convo: Convo, script: Script
) -> None:
    line = complaint(convo("append", "c", "user", "-", input="x" * 9_000_000), 1)

    assert "the server takes 8,388,608" in line
    assert script.requests == []


@pytest.mark.parametrize(
    "data", [b"", b"nonsense", b"[]", b'{"other": 1}', b"[" * 100_000, b"\xff"]
)
def test_an_answer_that_is_none_of_ours_is_told(data: bytes) -> None:
    with pytest.raises(CommandFailed, match="not one of the ledger's"):
        read_answer(data)


@pytest.mark.parametrize(
    "failure", [{}, {"error": None}, {"error": "x"}, {"error": {"details": [1]}}]
)
def test_a_refusal_without_its_parts_is_still_one(failure: dict[str, object]) -> None:
    with pytest.raises(Refused, match=r"without saying why \[internal\]"):
        read_answer(json.dumps({"ok": False, **failure}).encode())


def test_a_fault_of_ours_is_one_line_too(convo: Convo, script: Script) -> None:
    script.replies = [{"ok": True}]  # a reply about messages that has none

    line = complaint(convo("messages", "c"), 1)

    assert line.startswith("a fault of ours (KeyError: 'messages')")
    assert "CONVO_LOG_LEVEL=debug" in line


def test_a_window_that_was_cut_says_so(convo: Convo, script: Script) -> None:
    script.replies = [{"ok": True, "messages": [], "truncated": True}]

    assert "see `convo history`" in convo("messages", "c").stdout
