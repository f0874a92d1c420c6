"""`convo up` as a process of its own, with stand-in workers over a real nats-server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from infra.connection import connect
from infra.server import EmbeddedServer, free_port
from infra.settings import Settings
from infra.supervision import read_status

RUN_UP = Path(__file__).with_name("run_up.py")
ROOT = RUN_UP.parent.parent.parent

Until = Callable[[Callable[[], bool]], Awaitable[None]]


class Running:
    """One `convo up` of a test."""

    def __init__(self, process: Process, folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.said = ""

    @property
    def data_dir(self) -> Path:
        return self.folder / "data"

    async def ready(self) -> str:
        """Waits for the banner; the URL in it."""
        assert self.process.stdout is not None
        while line := await self.process.stdout.readline():
            self.said += line.decode()
            if line.startswith(b"Ctrl-C"):
                [url] = re.findall(r"NATS +(nats://\S+)", self.said)
                return str(url)
        raise AssertionError(f"not ready: {self.said}{await self.complaint()}")

    async def complaint(self) -> str:
        assert self.process.stderr is not None
        return (await self.process.stderr.read()).decode()

    async def ended(self) -> int:
        """Waits for its end; the exit status."""
        async with asyncio.timeout(60):
            return await self.process.wait()

    def status(self) -> dict[str, dict[str, Any]]:
        """The rows of the status file by name; empty before it is there."""
        status = read_status(self.data_dir) or {"processes": []}
        return {row["name"]: row for row in status["processes"]}

    def pids(self) -> set[int]:
        return {row["pid"] for row in self.status().values() if row["pid"]}

    def serving(self) -> int:
        """How many workers have come so far as to serve."""
        return len(list(self.folder.glob("serving-*")))

    def drained(self) -> int:
        """How many workers stopped as asked."""
        return len(list(self.folder.glob("drained-*")))


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


Start = Callable[..., Awaitable[Running]]


@pytest_asyncio.fixture
async def start(tmp_path: Path) -> AsyncIterator[Start]:
    """Starts `convo up` on tmp_path/data and a free port; ends what is left of it afterwards."""
    started: list[Running] = []

    async def begin(workers: int = 1, plan: str = "", **settings: object) -> Running:
        environment = {
            **{name: value for name, value in os.environ.items() if "CONVO_" not in name},
            "PYTHONPATH": str(ROOT),
            "CONVO_DATA_DIR": str(tmp_path / "data"),
            "CONVO_PORT": "0",
            **{f"CONVO_{name.upper()}": str(value) for name, value in settings.items()},
        }
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            str(RUN_UP),
            str(tmp_path),
            str(workers),
            *([plan] if plan else []),
            env=environment,
            cwd=tmp_path,
            stdout=PIPE,
            stderr=PIPE,
        )
        started.append(Running(process, tmp_path))
        return started[-1]

    yield begin
    for running in started:
        if running.process.returncode is None:
            running.process.kill()
        await running.process.communicate()


async def ask(url: str, subject: str, body: bytes) -> bytes:
    client = await connect(url, name="test", settings=Settings(), within=30)
    try:
        return bytes((await client.request(subject, body, timeout=10)).data)
    finally:
        await client.close()


async def test_when_it_says_ready_it_answers(start: Start) -> None:
    running = await start(workers=2)
    url = await running.ready()
    assert await ask(url, "echo.convo-commands", b"hello") == b"hello"
    assert await ask(url, "echo.convo-queries", b"hello") == b"hello"
    assert set(running.status()) == {"nats-server", "worker-1", "worker-2"}
    assert str(running.data_dir) in running.said
    assert f"init demo ada --nats {url}" in running.said
    assert f"nats -s {url} req convo.cmd.default.demo.append" in running.said


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_asked_to_stop_it_drains_and_leaves_nothing(
    start: Start, until: Until, number: signal.Signals
) -> None:
    running = await start(workers=2)
    await running.ready()
    await until(lambda: running.serving() == 2)
    pids = running.pids()
    assert len(pids) == 3
    running.process.send_signal(number)
    assert await running.ended() == 0
    assert running.drained() == 2
    assert not [pid for pid in pids if alive(pid)]
    assert read_status(running.data_dir) is None
    assert "Traceback" not in await running.complaint()


async def test_asked_to_stop_while_starting_it_stops(start: Start, until: Until) -> None:
    running = await start(plan="all-die")
    await until(lambda: "worker-1" in running.status())
    pids = running.pids()
    running.process.send_signal(signal.SIGTERM)
    assert await running.ended() in {0, 1}  # 1: it had just given up by itself
    assert not [pid for pid in pids if alive(pid)]


async def test_killed_it_leaves_no_process_and_can_be_started_again(
    start: Start, until: Until
) -> None:
    port = free_port()
    running = await start(workers=2, port=port)
    url = await running.ready()
    await until(lambda: running.serving() == 2)
    pids = running.pids()
    assert len(pids) == 3
    running.process.kill()
    await running.ended()
    again = await start(port=port)  # at once: it waits for the old server to be gone
    await until(lambda: not [pid for pid in pids if alive(pid)])
    assert await again.ready() == url


async def test_a_second_one_on_the_same_data_is_refused(start: Start) -> None:
    running = await start()
    url = await running.ready()
    second = await start()
    assert await second.ended() == 1
    complaint = await second.complaint()
    assert f"(pid {running.process.pid}) is already running on {running.data_dir}" in complaint
    assert complaint.count("\n") == 1
    assert await ask(url, "echo.convo-commands", b"still") == b"still"


async def test_a_nats_server_that_crashes_comes_back_with_its_data(
    start: Start, until: Until
) -> None:
    running = await start()
    url = await running.ready()
    client = await connect(url, name="test", settings=Settings())
    await client.jetstream().add_stream(name="KEPT", subjects=["kept"])
    ack = await client.jetstream().publish("kept", b"here")
    await client.close()
    pid = running.status()["nats-server"]["pid"]
    os.kill(pid, signal.SIGKILL)
    await until(lambda: running.status()["nats-server"]["restarts"] == 1)
    again = await connect(url, name="test", settings=Settings(), within=30)
    assert (await again.jetstream().get_msg("KEPT", ack.seq)).data == b"here"
    await again.close()
    assert running.status()["worker-1"]["restarts"] == 0
    assert running.status()["nats-server"]["last_exit"] == "SIGKILL"


async def test_workers_that_were_loaded_before_the_server_answered_begin_once_it_does(
    start: Start, until: Until
) -> None:
    port = free_port()
    running = await start(workers=2, port=port)
    assert await running.ready() == f"nats://127.0.0.1:{port}"
    await until(lambda: running.serving() == 2)
    assert set(running.status()) == {"nats-server", "worker-1", "worker-2"}


async def test_a_worker_that_crashes_is_restarted(start: Start, until: Until) -> None:
    running = await start()
    url = await running.ready()
    os.kill(running.status()["worker-1"]["pid"], signal.SIGKILL)
    await until(lambda: running.status()["worker-1"]["restarts"] == 1)
    await until(lambda: running.status()["worker-1"]["state"] == "running")
    client = await connect(url, name="test", settings=Settings())
    async with asyncio.timeout(30):
        while True:
            try:
                await client.request("echo.convo-commands", b"back", timeout=1)
                break
            except Exception:  # noqa: BLE001 - not there yet; the timeout above decides
                continue
    await client.close()


async def test_a_worker_that_keeps_dying_is_failing_while_the_others_go_on(
    start: Start, until: Until
) -> None:
    running = await start(workers=2, plan="second-dies")
    url = await running.ready()
    await until(lambda: "failing" in {row["state"] for row in running.status().values()})
    [failing] = [row for row in running.status().values() if row["state"] == "failing"]
    assert failing["last_exit"] == "exit code 3"
    assert await ask(url, "echo.convo-commands", b"on") == b"on"
    running.process.send_signal(signal.SIGTERM)
    assert await running.ended() == 0


async def test_workers_that_never_come_up_are_one_clear_error(start: Start) -> None:
    running = await start(plan="all-die")
    assert await running.ended() == 1
    complaint = await running.complaint()
    assert "convo up: the workers keep ending (exit code 3)" in complaint
    assert "Traceback" not in complaint
    assert read_status(running.data_dir) is None


async def test_a_server_elsewhere_is_used_as_it_is(
    start: Start, nats_server: EmbeddedServer
) -> None:
    running = await start(nats_url=nats_server.url)
    assert await running.ready() == nats_server.url
    assert set(running.status()) == {"worker-1"}
    assert not (running.data_dir / "nats").exists()
    assert await ask(nats_server.url, "echo.convo-commands", b"hello") == b"hello"
    running.process.send_signal(signal.SIGTERM)
    assert await running.ended() == 0


async def test_a_server_elsewhere_that_is_not_there_is_one_clear_error(start: Start) -> None:
    running = await start(nats_url=f"nats://127.0.0.1:{free_port()}")
    assert await running.ended() == 1
    complaint = await running.complaint()
    assert "could not be reached" in complaint
    assert complaint.count("\n") == 1


async def test_replicas_without_a_cluster_are_one_clear_error(start: Start) -> None:
    running = await start(replicas=3)
    assert await running.ended() == 1
    assert "CONVO_REPLICAS=3 needs a cluster" in await running.complaint()


async def test_a_further_ctrl_c_hurries(start: Start) -> None:
    running = await start()
    await running.ready()
    worker = running.status()["worker-1"]["pid"]
    os.kill(worker, signal.SIGSTOP)  # it will not drain
    running.process.send_signal(signal.SIGTERM)
    assert running.process.stdout is not None
    while b"Stopping" not in (line := await running.process.stdout.readline()):
        assert line
    running.process.send_signal(signal.SIGINT)
    async with asyncio.timeout(20):  # far below the 35 s that a worker has for draining
        assert await running.process.wait() == 0
    assert not alive(worker)
    assert running.drained() == 0
