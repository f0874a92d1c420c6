from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest_asyncio

from infra.supervision import (
    STATUS_FILE,
    TETHER,
    Patience,
    Program,
    State,
    Supervisor,
    exit_in_words,
    read_status,
)

Until = Callable[[Callable[[], bool]], Awaitable[None]]

SLEEPER = "import time; time.sleep(600)"
STUBBORN = (
    "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "open(sys.argv[1], 'w').close(); time.sleep(600)"
)


def python(name: str, source: str, *arguments: object, output: Path | None = None) -> Program:
    argv = [sys.executable, "-c", source, *(str(each) for each in arguments)]
    return Program(name, argv, output=output)


@pytest_asyncio.fixture
async def supervisor(tmp_path: Path) -> AsyncIterator[Supervisor]:
    quick = Patience(first_s=0.01, longest_s=0.02, failing_after=3)
    supervisor = Supervisor(tmp_path / STATUS_FILE, patience=quick, facts={"url": "nats://here"})
    yield supervisor
    await supervisor.stop(within=0)


def test_the_pause_doubles_up_to_the_longest() -> None:
    patience = Patience()
    assert [patience.pause_s(deaths) for deaths in (1, 2, 3, 7, 8, 9, 10_000)] == [
        0.1,
        0.2,
        0.4,
        6.4,
        10.0,
        10.0,
        10.0,
    ]


def test_how_a_process_ended_is_said_in_words() -> None:
    assert exit_in_words(3) == "exit code 3"
    assert exit_in_words(-9) == "SIGKILL"
    assert exit_in_words(-63) == "signal 63"


async def test_a_child_that_is_killed_is_restarted(supervisor: Supervisor, until: Until) -> None:
    child = supervisor.start(python("sleeper", SLEEPER))
    await until(lambda: child.pid is not None)
    first = child.pid
    child.signal(signal.SIGKILL)
    await until(lambda: child.restarts == 1 and child.pid not in {None, first})
    assert child.last_exit == "SIGKILL"
    assert child.state is State.RUNNING


async def test_one_that_is_restarted_on_purpose_has_not_died(
    supervisor: Supervisor, until: Until
) -> None:
    child = supervisor.start(python("sleeper", SLEEPER))

    def restarted_often() -> bool:
        child.restart()
        return child.restarts > supervisor.patience.failing_after

    await until(restarted_often)
    await until(lambda: child.pid is not None)
    assert child.state is State.RUNNING


async def test_one_that_keeps_dying_is_failing_and_the_others_go_on(
    supervisor: Supervisor, until: Until, tmp_path: Path
) -> None:
    steady = supervisor.start(python("steady", SLEEPER))
    dying = supervisor.start(python("dying", "raise SystemExit(7)"))
    missing = supervisor.start(Program("missing", [str(tmp_path / "no-program")]))
    await until(lambda: dying.state is State.FAILING and missing.state is State.FAILING)
    restarts = dying.restarts
    await until(lambda: dying.restarts > restarts)  # it is still tried
    assert steady.state is State.RUNNING
    assert steady.restarts == 0
    status = read_status(tmp_path)
    assert status is not None
    assert status["pid"] == os.getpid()
    assert status["url"] == "nats://here"
    rows = {row["name"]: row for row in status["processes"]}
    assert rows["dying"]["state"] == "failing"
    assert rows["dying"]["last_exit"] == "exit code 7"
    assert rows["missing"]["last_exit"] == "exit code 127"
    assert rows["steady"]["state"] == "running"
    assert rows["steady"]["pid"] == steady.pid


async def test_one_that_recovers_is_running_again(
    tmp_path: Path, until: Until, supervisor: Supervisor
) -> None:
    supervisor.patience = Patience(first_s=0.01, longest_s=0.01, settled_s=0.05, failing_after=1)
    flag = tmp_path / "flag"
    source = (
        "import os, sys, time\nif not os.path.exists(sys.argv[1]): sys.exit(1)\ntime.sleep(600)"
    )
    child = supervisor.start(python("recovering", source, flag))
    await until(lambda: child.state is State.FAILING)
    flag.touch()
    await until(lambda: child.state is State.RUNNING)


async def test_stopping_one_leaves_the_others(supervisor: Supervisor, until: Until) -> None:
    first = supervisor.start(python("first", SLEEPER))
    second = supervisor.start(python("second", SLEEPER))
    await until(lambda: first.pid is not None and second.pid is not None)
    await supervisor.stop(["first"])
    assert first.state is State.STOPPED
    assert first.restarts == 0
    assert second.state is State.RUNNING


async def test_one_that_ignores_the_request_is_killed(
    supervisor: Supervisor, until: Until, tmp_path: Path
) -> None:
    child = supervisor.start(python("stubborn", STUBBORN, tmp_path / "deaf"))
    await until((tmp_path / "deaf").exists)
    await supervisor.stop(within=0.05)
    assert child.last_exit == "SIGKILL"


async def test_a_hurry_cuts_the_wait(supervisor: Supervisor, until: Until, tmp_path: Path) -> None:
    child = supervisor.start(python("stubborn", STUBBORN, tmp_path / "deaf"))
    await until((tmp_path / "deaf").exists)
    hurry = asyncio.Event()
    stopping = asyncio.ensure_future(supervisor.stop(within=600, hurry=hurry))
    hurry.set()
    await stopping
    assert child.last_exit == "SIGKILL"


async def test_one_asked_to_stop_between_restarts_stops(
    supervisor: Supervisor, until: Until
) -> None:
    supervisor.patience = Patience(first_s=600, longest_s=600)
    child = supervisor.start(python("dying", "raise SystemExit(1)"))
    await until(lambda: child.state is State.RESTARTING)
    await supervisor.stop()
    assert child.state is State.STOPPED


async def test_output_is_kept_where_asked(
    supervisor: Supervisor, until: Until, tmp_path: Path
) -> None:
    output = tmp_path / "said"
    supervisor.start(python("speaker", "print('once', flush=True)\n" + SLEEPER, output=output))
    await until(lambda: output.exists() and output.read_text() == "once\n")


def test_a_status_left_by_a_dead_supervisor_counts_for_nothing(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None
    (tmp_path / "run").mkdir()
    for content in ("", "[]", "{}", json.dumps({"pid": 2**22 + 1, "processes": []})):
        (tmp_path / STATUS_FILE).write_text(content)
        assert read_status(tmp_path) is None


async def test_a_program_whose_parent_is_already_gone_is_not_started(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-I", "-S", str(TETHER), "1", "touch", str(tmp_path / "started")
    )
    assert await process.wait() == 1
    assert not (tmp_path / "started").exists()
