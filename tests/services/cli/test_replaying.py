"""convo replay as a process: followed live, gone through key by key, watched at its pace."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.services.cli.conftest import Convo, answer

ROOT = Path(__file__).resolve().parents[3]
PATIENCE_S = 30.0


@pytest.fixture
def talk(ledger: str, convo: Convo, request: pytest.FixtureRequest) -> str:
    """A conversation of the test's own, of three events."""
    name = f"c-{request.node.name}"
    assert convo("init", name, "ada").exit_code == 0
    assert convo("append", name, "user", "one").exit_code == 0
    return name


def started(ledger: str, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "services.cli", "replay", *arguments, "--nats", ledger],
        bufsize=0,  # what select says and what readline takes are the same
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "TERM": "xterm"},
        **options,
    )


@pytest.fixture
def following(ledger: str, talk: str) -> Iterator[subprocess.Popen[bytes]]:
    process = started(
        ledger, talk, "--follow", "--json", stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    yield process
    process.kill()
    process.communicate()


def line(process: subprocess.Popen[bytes]) -> dict[str, Any]:
    """The next line that the process prints."""
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], PATIENCE_S)
    assert ready, "nothing came"
    found: dict[str, Any] = json.loads(process.stdout.readline())
    return found


def test_what_happens_later_is_shown_as_it_happens(
    following: subprocess.Popen[bytes], talk: str, convo: Convo
) -> None:
    assert [line(following)["version"] for _ in range(3)] == [1, 2, 3]

    for number in range(4, 8):
        sent = answer(convo("append", talk, "assistant", f"message {number}", "--json"))
        entry = line(following)
        assert entry["version"] == sent["version"] == number
        assert entry["data"]["content"] == f"message {number}"
        assert entry["state"]["message_count"] == number - 2

    following.send_signal(signal.SIGINT)
    _, said = following.communicate(timeout=PATIENCE_S)
    assert following.returncode == 130
    assert b"Traceback" not in said


class Terminal:
    """A process on a terminal of 80 columns."""

    def __init__(self, ledger: str, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        self.process = started(ledger, *arguments, stdin=theirs, stdout=theirs, stderr=theirs)
        os.close(theirs)
        self._seen = b""

    def until(self, text: str) -> str:
        """Everything that was shown, once this text was."""
        while text.encode() not in self._seen:
            ready, _, _ = select.select([self._ours], [], [], PATIENCE_S)
            assert ready, self._seen.decode()
            self._seen += os.read(self._ours, 65_536)
        return self._seen.decode()

    def press(self, key: str) -> None:
        os.write(self._ours, key.encode())

    def close(self) -> int:
        status = self.process.wait(PATIENCE_S)
        os.close(self._ours)
        return status


def test_key_by_key_in_a_terminal_with_colours(ledger: str, talk: str) -> None:
    terminal = Terminal(ledger, talk, "--step")

    assert "one" not in terminal.until("window 0 (")
    terminal.press(" ")
    shown = terminal.until("window 1 (")
    assert "user: one" in shown
    assert "ConversationTitled" not in shown
    assert "\x1b[" in shown
    terminal.press("q")

    assert terminal.close() == 0


def test_ctrl_c_ends_the_steps(ledger: str, talk: str) -> None:
    terminal = Terminal(ledger, talk, "--step")
    terminal.until("window 0 (")

    terminal.process.send_signal(signal.SIGINT)

    assert terminal.close() == 130


def test_time_passes_at_the_speed_wanted(ledger: str, talk: str, convo: Convo) -> None:
    """Only that every event comes, in order; how long it takes is nobody's promise."""
    result = convo("replay", talk, "--speed", "100x", "--json")

    assert [json.loads(each)["version"] for each in result.stdout.splitlines()] == [1, 2, 3]
