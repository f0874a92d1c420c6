"""The processes of a measurement: nats-server, the worker, the echo services, the load.

All are what a user runs: the server is the embedded one (`sync_interval: always` unless told
otherwise), the worker is `convo serve commands queries` in a process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.connection import connect
from infra.jetstream.topology import ensure
from infra.server import EmbeddedServer
from infra.settings import PREFIX, Settings, variable
from infra.supervision import Child, Program, State, Supervisor
from services.up import ANSWERING, WORKER
from tests.benchmarks import echo, naive
from tests.benchmarks.load import Load, LoadFailed, Order
from tests.benchmarks.workloads import PUBLISH, Service

ROOT = Path(__file__).resolve().parent.parent.parent
READY_WITHIN_S = 30.0
_PAUSE_S = 0.02
_LINE_BYTES_MAX = 16 * 1024 * 1024


class StageFailed(Exception):
    """A process of the measurement did not come up; its log says why."""


@dataclass(frozen=True)
class Stage:
    """What is up: a server, a worker of the program in `root`, two echo services, the naive one."""

    name: str
    root: Path
    url: str
    server: EmbeddedServer
    services: Mapping[Service, Child]

    def watch(self, served_by: Service) -> dict[str, int]:
        """The processes whose cost belongs to a request. StageFailed when one has ended."""
        if self.server.pid is None or self.server.restarts:
            raise StageFailed(f"nats-server ended; its log is {self.server.log_file}")
        pids = {"server": self.server.pid}
        if served_by != "none":
            child = self.services[served_by]
            if child.pid is None:
                raise StageFailed(f"{child.name} ended: {child.last_exit}")
            pids["service"] = child.pid
        return pids


@contextlib.asynccontextmanager
async def stage(
    folder: Path, *, name: str = "", root: Path = ROOT, interpreter: Sequence[str] = ()
) -> AsyncIterator[Stage]:
    """Everything up and answering inside the block, gone after it; the store is in `folder`.

    `root` is the checkout that the worker runs; `interpreter` starts it in place of Python alone (a
    profiler's command line). Raises StageFailed, ServerFailed.
    """
    supervisor = Supervisor()
    server = EmbeddedServer(folder, supervisor=supervisor)
    try:
        await server.start()
        url = server.url
        ours = environment(url, ROOT)
        worker = (*interpreter, *WORKER[2:]) if interpreter else WORKER
        python = (sys.executable, "-P", "-m")
        listen = (*python, echo.__name__, url)
        programs: dict[Service, Program] = {
            "worker": _program(folder, "worker", worker, environment(url, root, folder)),
            "echo": _program(folder, "echo", listen, ours),
            "bare": _program(folder, "bare", (*listen, "bare"), ours),
            "naive": _program(folder, "naive", (*python, naive.__name__, url), ours),
        }
        services = {
            service: supervisor.start(program, keep=False) for service, program in programs.items()
        }
        client = await connect(url, name="bench", settings=Settings())
        try:
            for service in ANSWERING:
                await _answering(client, f"$SRV.PING.{service}", services["worker"])
            await _answering(client, f"{echo.ECHO}.ready", services["echo"])
            await _answering(client, f"{echo.BARE}.ready", services["bare"])
            await _answering(client, f"{naive.APPEND}.ready", services["naive"])
            await ensure(client, PUBLISH)
        finally:
            await client.close()
        yield Stage(name, root, url, server, services)
    finally:
        await supervisor.stop(["worker", "echo", "bare", "naive"])
        await server.stop()


class LoadProcess:
    """The process that makes the load; one order at a time."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def carry_out(self, order: Order) -> Load:
        """Raises LoadFailed when the order could not be carried out."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
        await self._process.stdin.drain()
        line = await self._process.stdout.readline()
        if not line:
            raise LoadFailed("the load process ended; what it said is above")
        answer = json.loads(line)
        if "failed" in answer:
            raise LoadFailed(answer["failed"])
        return Load(**answer)


@contextlib.asynccontextmanager
async def load_process() -> AsyncIterator[LoadProcess]:
    """A load process inside the block; it ends with its standard input, so with us."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tests.benchmarks.load"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env=environment("", ROOT),
        limit=_LINE_BYTES_MAX,
    )
    try:
        yield LoadProcess(process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        try:
            await asyncio.wait_for(process.wait(), 5)
        except TimeoutError:
            process.kill()
            await process.wait()


def environment(url: str, root: Path, folder: Path | None = None) -> Mapping[str, str]:
    """Ours without the operator's settings: what is measured are the defaults.

    `folder`: where a worker keeps what it has seen of the streams, so that it is not held to what
    another one has seen of other streams.
    """
    kept = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    own = {} if folder is None else {variable("data_dir"): str(folder / "worker")}
    return {**kept, **own, "PYTHONPATH": str(root), variable("nats_url"): url}


def _program(
    folder: Path, name: str, argv: Sequence[str], environment: Mapping[str, str]
) -> Program:
    return Program(name, argv, environment, folder / "log" / f"{name}.log")


async def _answering(client: Client, subject: str, child: Child) -> None:
    """Returns once a request on `subject` is answered."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + READY_WITHIN_S
    while True:
        try:
            await client.request(subject, timeout=1)
            return
        except NatsError:  # nobody listens yet
            if child.state is State.STOPPED or loop.time() > give_up_at:
                raise StageFailed(_last_words(child)) from None
        await asyncio.sleep(_PAUSE_S)


def _last_words(child: Child) -> str:
    log = child.program.output
    said = log.read_text(encoding="utf-8", errors="replace") if log and log.exists() else ""
    return f"{child.name} did not come up ({child.last_exit}). It said: {said.strip()[-2000:]}"
