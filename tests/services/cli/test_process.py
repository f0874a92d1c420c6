"""`convo` as a process: its exit status, its pipes, Ctrl-C."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.services.cli.conftest import Convo

ROOT = Path(__file__).resolve().parents[3]
CONVO = (sys.executable, "-m", "services.cli")

Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(ledger: str) -> Iterator[Start]:
    """Starts `convo` as a process of its own, with pipes."""
    started: list[subprocess.Popen[bytes]] = []

    def run(*arguments: str, **options: object) -> subprocess.Popen[bytes]:
        environment = {**os.environ, "CONVO_NATS_URL": ledger, "PYTHONPATH": str(ROOT)}
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        options["env"] = environment | dict(options.pop("env", {}))  # type: ignore[call-overload]  # a dict
        process = subprocess.Popen([*CONVO, *arguments], **{**pipes, **options})  # type: ignore[call-overload]  # options of Popen
        started.append(process)
        return process  # type: ignore[no-any-return]  # as above

    yield run
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def test_the_exit_status_is_the_processs(start: Start) -> None:
    for arguments, status in ((["--help"], 0), (["state", "none"], 1), (["state"], 2)):
        process = start(*arguments)
        _, err = process.communicate(timeout=30)

        assert process.returncode == status
        assert len(err.splitlines()) == (1 if status else 0)


def test_what_is_piped_is_plain_text(start: Start, convo: Convo, ledger: str) -> None:
    convo("init", "plain", "ada", "--nats", ledger)
    convo("append", "plain", "user", "a\x1b[31mb", "--nats", ledger)

    for command in (["messages", "plain"], ["state", "plain"], ["events", "plain"], ["doctor"]):
        out, err = start(*command).communicate(timeout=30)
        assert out
        assert b"\x1b" not in out + err


def test_a_terminal_that_cannot_show_a_character_gets_an_escape(start: Start, convo: Convo) -> None:
    convo("init", "unicode", "ä您")

    out, err = start(
        "state", "unicode", env={"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}
    ).communicate(timeout=30)

    assert b"\xe4\\u60a8" in out
    assert err == b""


def test_a_reader_that_goes_away_is_no_error(start: Start, convo: Convo) -> None:
    convo("init", "long", "ada")
    for n in range(4):
        convo("append", "long", "user", "x\n" * 60_000, "--command-id", f"k{n}")
    process = start("messages", "long")
    assert process.stdout
    assert process.stdout.readline()
    process.stdout.close()

    assert process.stderr
    assert process.stderr.read() == b""
    assert process.wait(timeout=30) == 0


def test_standard_input_that_is_closed_is_told(ledger: str) -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'exec "{sys.executable}" -m services.cli append c user - <&-'],
        capture_output=True,
        cwd=ROOT,
        timeout=30,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr == (
        b"convo: `-` reads standard input, which is closed; see `convo append --help`\n"
    )


def test_ctrl_c_ends_a_tail_with_130_and_no_traceback(start: Start, convo: Convo) -> None:
    convo("init", "tailed", "ada")
    process = start("tail", "tailed", "--history", "1", "--json")
    assert process.stdout
    event = json.loads(process.stdout.readline())  # it is running

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert event["type"] == "ConversationStarted"
    assert process.returncode == 130
    assert out == b""
    assert err.strip() == b"convo: following default/tailed after version 0 (Ctrl-C ends)"


def test_a_served_query_is_answered_until_sigterm(start: Start, convo: Convo, ledger: str) -> None:
    """Beside the module's own services, in the same queue group."""
    process = start("serve", "queries", "--json")
    assert process.stderr
    line = json.loads(process.stderr.readline())

    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=30)

    assert line["message"] == "serving queries"
    assert process.returncode == 0
    assert b"Traceback" not in err
