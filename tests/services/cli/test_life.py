"""The commands about what was said and the end of it, against the ledger's own services."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.services.cli.conftest import Convo, answer, complaint

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture
def c(convo: Convo, ledger: str) -> str:
    """A conversation of its own that has begun."""
    name = f"c-{uuid4()}"
    assert convo("init", name, "ada").exit_code == 0
    return name


def window(convo: Convo, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = answer(convo("messages", name, "--json"))["messages"]
    return found


def types(convo: Convo, name: str) -> list[str]:
    return [event["type"] for event in answer(convo("events", name, "--json"))["events"]]


def test_a_reply_is_said_as_it_is_read(convo: Convo, c: str) -> None:
    said = "Once upon a time 日本\n" * 3_000  # more than one read

    reply = answer(
        convo(
            *("reply", c, "--model", "gpt-4o", "--finish-reason", "stop", "--json"),
            *("--prompt-tokens", 3, "--completion-tokens", 4, "--message-id", "r-1"),
            input=said.encode(),
        )
    )

    assert [event["type"] for event in reply["events"]] == ["ReplyCompleted", "UsageRecorded"]
    assert reply["usage"]["total"] == 7
    (message,) = window(convo, c)
    assert (message["content"], message["message_id"]) == (said, "r-1")
    assert "streaming" not in message


def test_a_reply_says_what_was_written(convo: Convo, c: str) -> None:
    shown = convo("reply", c, input="Hello").stdout

    assert shown.startswith(f"reply finished, default/{c} at version 4 ")


def test_a_reply_that_does_not_fit_is_aborted(convo: Convo, c: str) -> None:
    line = complaint(convo("reply", c, input="x" * 300_000), 1)

    assert "262144" in line
    assert types(convo, c)[-1] == "ReplyAborted"


def test_a_reply_of_no_text_is_aborted(convo: Convo, c: str) -> None:
    assert "UTF-8" in complaint(convo("reply", c, input=b"good\xff"), 1)

    assert types(convo, c)[-1] == "ReplyAborted"


async def test_ctrl_c_aborts_the_reply_and_keeps_what_was_said(ledger: str) -> None:
    name = f"c-{uuid4()}"

    def run(*arguments: str, **more: Any) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "CONVO_NATS_URL": ledger, "PYTHONPATH": str(REPOSITORY)}
        command = [sys.executable, "-m", "services.cli", *arguments]
        return subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more
        )

    def messages() -> list[dict[str, Any]]:
        shown, _ = run("messages", name, "--json").communicate(timeout=30)
        found: list[dict[str, Any]] = json.loads(shown)["messages"]
        return found

    def stopped() -> tuple[int, bytes, dict[str, Any]]:
        run("init", name, "ada").communicate(timeout=30)
        saying = run("reply", name, stdin=subprocess.PIPE)
        assert saying.stdin is not None
        saying.stdin.write(b"Half a")
        saying.stdin.flush()
        deadline = time.monotonic() + 30
        while not (found := messages()) or not found[0]["content"]:
            assert time.monotonic() < deadline
        assert found[0]["streaming"] is True
        saying.send_signal(signal.SIGINT)
        _, complaint = saying.communicate(timeout=30)
        return saying.returncode, complaint, messages()[0]

    status, complaint, message = await asyncio.to_thread(stopped)

    assert status == 130
    assert b"what was said stays" in complaint
    assert (message["content"], "streaming" in message) == ("Half a", False)


def test_a_reply_can_be_aborted_by_another(convo: Convo, c: str) -> None:
    answer(convo("reply", c, "--message-id", "r-1", "--json", input="x"))

    assert "not being written" in complaint(convo("reply", c, "--abort", "r-1"), 1)
    assert "--finish-reason" in complaint(convo("reply", c, "--reason", "x", input=""), 2)
    assert "go together" in complaint(convo("reply", c, "--prompt-tokens", 1, input=""), 2)


def test_edit_and_redact(convo: Convo, c: str) -> None:
    answer(convo("append", c, "user", "Helo", "--message-id", "m-1", "--json"))

    assert convo("edit", c, "m-1", "Hello").stdout.startswith(f"edited, default/{c} at version 4")
    assert window(convo, c)[0]["content"] == "Hello"
    assert "[edited]" in convo("messages", c).stdout
    answer(convo("edit", c, "m-1", "--content-json", '[{"type": "text", "text": "Hi"}]', "--json"))
    assert convo("edit", c, "m-1", "-", input="from stdin").exit_code == 0
    assert window(convo, c)[0]["content"] == "from stdin"
    assert "once" in complaint(convo("edit", c, "m-1"), 2)

    answer(convo("redact", c, "m-1", "--reason", "a card number", "--json"))
    assert window(convo, c)[0]["content"] is None
    assert "[redacted]" in convo("messages", c).stdout
    assert convo("redact", c, "m-1").stdout.startswith("nothing to write")
    assert "has no message 'm-9'" in complaint(convo("redact", c, "m-9"), 1)


def test_close_reopen_and_erase(convo: Convo, c: str) -> None:
    assert convo("close", c).exit_code == 0
    assert "send reopen first" in complaint(convo("append", c, "user", "Hello"), 1)
    assert convo("close", c, "--reason", "deleted").stdout.startswith("deleted, ")
    assert convo("reopen", c, "--reason", "back").exit_code == 0
    assert convo("append", c, "user", "Hello").exit_code == 0
    reply = answer(convo("erase", c, "--legal-basis", "GDPR Art. 17", "--json"))
    assert reply["shredded"] is False
    assert window(convo, c) == []
    assert "erased for good" in complaint(convo("init", c, "ada"), 1)
