"""`make demo` as a process of its own: what it shows, and that it leaves nothing behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from services.demo import ROOT, SAMPLES

Until = Callable[[Callable[[], bool]], Awaitable[None]]

SMALL = SAMPLES / "crosswoz_zh.jsonl.gz"


def processes_that_name(text: str) -> list[str]:
    """The command lines of running processes in which the text occurs."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue  # gone meanwhile
        if text in line:
            found.append(line)
    return found


@asynccontextmanager
async def demo(
    temporary: Path, *arguments: str | Path, **environment: str
) -> AsyncIterator[Process]:
    """A demonstration whose temporary directories are in `temporary`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "services.demo",
        *map(str, arguments),
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary), **environment},
        stdin=DEVNULL,
        stdout=PIPE,
        stderr=PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


async def end_of(process: Process) -> tuple[int, str, str]:
    """Waits for the end; exit status, standard output, standard error."""
    async with asyncio.timeout(100):
        out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def line_with(process: Process, text: str) -> str:
    """Reads on to the line that has the text in it."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        while line := (await process.stdout.readline()).decode():
            if text in line:
                return line
    raise AssertionError(f"the demonstration ended without saying {text!r}")


async def test_it_shows_what_the_ledger_promises_and_leaves_nothing(tmp_path: Path) -> None:
    async with demo(tmp_path) as process:
        status, said, complained = await end_of(process)

    assert (status, complained) == (0, ""), complained
    assert "\x1b" not in said, "colours in a pipe"
    assert re.search(r"nats-server \(pid \d+\) is killed", said)
    assert "read back: 4,526 messages of 315 conversations" in said
    assert re.search(r"the last of 50 messages in the window, of \d\d in the history", said)
    assert re.search(r"lifetime +1,747,891 +90 +1,747,981", said)
    now, before, early = re.findall(
        r"^ +([\d,]+) +(\d+) +(\d+) +([\d,]+) +([\d,]+)$", said, re.MULTILINE
    )
    assert now[1:] == ("0", "66", "0", "1,747,981")
    assert before[1:] == ("50", "66", "1,747,981", "1,747,981")
    assert early == ("20", "18", "18", "0", "0")
    assert re.findall(r'"version": (\d+), "seq": (\d+), "duplicate": (\w+)', said) == [
        ("102", seq := said.rpartition('"seq": ')[2].partition(",")[0], "false"),
        ("102", seq, "true"),
    ]
    assert list(tmp_path.iterdir()) == []
    assert processes_that_name(str(tmp_path)) == []


@pytest.mark.parametrize(
    ("number", "when"), [(signal.SIGINT, "Real conversations go in"), (signal.SIGTERM, "kill -9")]
)
async def test_interrupted_it_stops_and_cleans_up(
    tmp_path: Path, number: signal.Signals, when: str
) -> None:
    async with demo(tmp_path) as process:
        await line_with(process, when)
        process.send_signal(number)
        status, _, complained = await end_of(process)

    assert (status, complained.strip()) == (130, "Interrupted.")
    assert list(tmp_path.iterdir()) == []
    assert processes_that_name(str(tmp_path)) == []


async def test_interrupted_twice_it_leaves_no_process(tmp_path: Path, until: Until) -> None:
    async with demo(tmp_path) as process:
        await line_with(process, "ready after")
        process.send_signal(signal.SIGINT)
        process.send_signal(signal.SIGINT)
        status, _, _ = await end_of(process)

    assert status == 130
    await until(lambda: processes_that_name(str(tmp_path)) == [])


async def test_killed_it_leaves_no_process(tmp_path: Path, until: Until) -> None:
    async with demo(tmp_path) as process:
        await line_with(process, "ready after")
        assert processes_that_name(str(tmp_path))
        process.kill()
        await process.wait()

    await until(lambda: processes_that_name(str(tmp_path)) == [])


async def test_a_reader_that_goes_away_ends_it_without_a_word(tmp_path: Path) -> None:
    async with demo(tmp_path, SMALL) as process:
        await line_with(process, "A ledger of its own")
        assert process.stdout is not None
        process.stdout._transport.close()  # type: ignore[attr-defined]  # as `| head -2` does
        async with asyncio.timeout(60):
            assert process.stderr is not None
            complained = await process.stderr.read()
            status = await process.wait()

    assert (status, complained) == (0, b"")
    assert list(tmp_path.iterdir()) == []


async def test_a_directory_of_ones_own_is_kept_and_goes_on(tmp_path: Path) -> None:
    data = tmp_path / "kept"
    async with demo(tmp_path, "--data", data, SMALL) as process:
        status, said, _ = await end_of(process)
        assert status == 0
        assert "read back: 1,688 messages of 100 conversations" in said

    another = SAMPLES / "tau_bench_airline_en.jsonl.gz"
    async with demo(tmp_path, "--data", data, SMALL, another) as process:
        status, said, complained = await end_of(process)

    assert (status, complained) == (0, "")
    assert re.search(r"crosswoz_zh\.jsonl\.gz +0 conversations +0 messages", said)
    assert "read back: 2,316 messages of 125 conversations" in said


async def test_settings_of_the_shell_have_no_say(tmp_path: Path) -> None:
    async with demo(
        tmp_path, SMALL, CONVO_NATS_URL="nats://127.0.0.1:9", CONVO_WINDOW_SIZE="3"
    ) as process:
        status, said, complained = await end_of(process)

    assert (status, complained) == (0, "")
    assert re.search(r"the last of \d\d messages in the window", said)


async def test_a_file_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    async with demo(tmp_path, "no-such-file.jsonl") as process:
        status, said, complained = await end_of(process)

    assert (status, said) == (2, "")
    assert complained.splitlines()[-1].endswith("there is no file no-such-file.jsonl")
