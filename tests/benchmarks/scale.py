"""`python -m tests.benchmarks.scale`: whether what an append and a read cost stays the same.

By the number of conversations, the length of one, the age of the ledger, the number of live
subscribers and of workers; the memory of a worker that has touched very many conversations, on the
way and after many more appends; and how long `convo up` takes until it answers, empty and on the
ledger that all this has made. Several minutes; `--conversations` and `--appends` make it shorter,
`--only memory` (or length, subscribers, workers, start) leaves the rest out. Each figure stands
beside the same one taken on the young ledger of the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.supervision import Program, Supervisor
from services.others import SETTLED_S
from services.up import WORKER
from tests.benchmarks import metering
from tests.benchmarks.load import Load, Order, Request
from tests.benchmarks.peers.servers import free_port
from tests.benchmarks.stage import ROOT, LoadProcess, Stage, environment, load_process, stage
from tests.benchmarks.texts import text

WRITERS = 256
READERS = 64
WORKERS_ROUNDS = 3
SUBSCRIBERS = 100
LONG = 20_000
"""Events in the longest conversation."""

TOUCHED_AT_ONCE = 2_000
TOLD_EVERY = 100_000

_SECONDS = 4.0
_UP_WITHIN_S = 60.0
_CONVO_UP = "import sys; from services.cli import main; sys.exit(main())"


PARTS = ("length", "subscribers", "workers", "memory", "start")


@dataclass(frozen=True)
class Scale:
    """How large the ledger is made: conversations touched, and appends after that; and what of it
    all is measured."""

    conversations: int = 300_000
    appends: int = 1_000_000
    parts: Sequence[str] = PARTS


class Ground:
    """One stage with its load: orders in the words of this benchmark."""

    def __init__(self, up: Stage, load: LoadProcess) -> None:
        self.up = up
        self._load = load

    async def order(
        self,
        requests: Sequence[Request],
        *,
        seconds: float = _SECONDS,
        prepare: Sequence[Sequence[Request]] = (),
        requests_max: int = sys.maxsize,
        beside: Mapping[str, int] | None = None,
    ) -> Load:
        """Each writer repeats its request; raises AssertionError when one is refused.

        `beside`: processes that are watched too.
        """
        load = await self._load.carry_out(
            Order(
                url=self.up.url,
                prepare=prepare,
                requests=requests,
                ok='"ok":true',
                seconds=seconds,
                warm_up_s=0,
                requests_max=requests_max,
                watch={**self.up.watch("worker"), **(beside or {})},
            )
        )
        assert not load.errors, load.first_error
        return load

    async def appended(self, run: str, *, beside: Mapping[str, int] | None = None) -> Load:
        """Appends by `WRITERS` writers to new conversations."""
        names = [f"{run}-{writer}" for writer in range(WRITERS)]
        return await self.order(
            [_append(name) for name in names], prepare=[_inits(names)], beside=beside
        )

    async def appends(self, run: str) -> float:
        """The same, a second."""
        return _rate(await self.appended(run))

    async def read(
        self, run: str, *, readers: int = READERS, beside: Mapping[str, int] | None = None
    ) -> Load:
        """Windows by so many readers, each of a conversation of its own."""
        names = [f"{run}-{reader}" for reader in range(readers)]
        return await self.order(
            [_read(name) for name in names],
            prepare=[_inits(names), [_import(n, 60) for n in names]],
            beside=beside,
        )

    async def reads(self, run: str) -> float:
        """The same, a second."""
        return _rate(await self.read(run))

    def worker_mb(self) -> float:
        """Resident memory of the worker now, in MB."""
        return metering.memory_mb(self.up.watch("worker")["service"])


async def measure(scale: Scale, folder: Path) -> None:
    """Carries everything out and prints a line for each figure."""
    if "start" in scale.parts:
        empty = await _up_answers(folder / "empty")
        say("convo up, empty, to the first answer", f"{empty:.2f} s")
    async with AsyncExitStack() as stack:
        load = await stack.enter_async_context(load_process())
        async with stage(folder / "ledger") as up:
            ground = Ground(up, load)
            if "length" in scale.parts:
                await _by_length(ground)
            if "subscribers" in scale.parts:
                await _by_subscribers(ground)
            if "workers" in scale.parts:
                await _by_workers(ground)
            if "memory" in scale.parts:
                await _by_age(ground, scale)
    if "start" in scale.parts:
        again = await _up_answers(folder / "ledger")
        size = metering.disk_mb(folder / "ledger")
        say(f"convo up on that ledger ({size:,.0f} MB) to the first answer", f"{again:.2f} s")


async def _by_age(ground: Ground, scale: Scale) -> None:
    young = await ground.appends("young")
    say("append at 256, young ledger", f"{young:,.0f}/s")
    young_reads = await ground.reads("young-read")
    say("window at 64, young ledger", f"{young_reads:,.0f}/s")
    await _touch(ground, scale)
    old = await ground.appends("old")
    say("append at 256, the ledger as it is now", f"{old / young:.2f} × young")
    old_reads = await ground.reads("old-read")
    say("window at 64, the ledger as it is now", f"{old_reads / young_reads:.2f} × young")


async def _touch(ground: Ground, scale: Scale) -> None:
    """A conversation begun and written to once, so many times; then appends, every time that it is
    told on others of them."""
    began = time.monotonic()
    say("memory of the worker, before", f"{ground.worker_mb():.0f} MB")
    for start in range(0, scale.conversations, TOUCHED_AT_ONCE):
        names = [f"touched-{n}" for n in range(start, start + TOUCHED_AT_ONCE)]
        await ground.order(
            [_append(name) for name in names],
            prepare=[_inits(names)],
            seconds=0,
            requests_max=len(names),
        )
        if (start + TOUCHED_AT_ONCE) % TOLD_EVERY < TOUCHED_AT_ONCE:
            say(
                f"memory of the worker, {start + TOUCHED_AT_ONCE:,} conversations touched",
                f"{ground.worker_mb():.0f} MB ({time.monotonic() - began:.0f} s)",
            )
    for appended in range(0, scale.appends, TOLD_EVERY):
        began = time.monotonic()
        first = appended // TOLD_EVERY * WRITERS
        numbers = [number % scale.conversations for number in range(first, first + WRITERS)]
        await ground.order(
            [_append(f"touched-{number}") for number in numbers],
            seconds=600,
            requests_max=TOLD_EVERY,
        )
        say(
            f"memory of the worker, {appended + TOLD_EVERY:,} appends later",
            f"{ground.worker_mb():.0f} MB ({TOLD_EVERY / (time.monotonic() - began):,.0f}/s)",
        )


async def _by_length(ground: Ground) -> None:
    rates: dict[int, float] = {}
    for length in (100, LONG):
        name = f"long-{length}"
        imports = [[_import(name, min(500, length - 1))]] * max(1, length // 500)
        load = await ground.order([_append(name)] * 16, prepare=[_inits([name]), *imports])
        rates[length] = load.replies / load.wall_s
    say(
        f"append by 16 to one conversation of {LONG:,} events",
        f"{rates[LONG] / rates[100]:.2f} × one of 100",
    )


async def _by_subscribers(ground: Ground) -> None:
    alone = await ground.appends("alone")
    heard = 0

    async def hear(_message: object) -> None:
        nonlocal heard
        heard += 1

    clients = [await nats.connect(ground.up.url) for _ in range(SUBSCRIBERS)]
    try:
        for number, client in enumerate(clients):  # each watches conversations of its own
            for writer in range(number, WRITERS, SUBSCRIBERS):
                await client.subscribe(f"convo.live.*.default.watched-{writer}", cb=hear)
            await client.flush()
        watched = await ground.appends("watched")
    finally:
        for client in clients:
            await client.close()
    assert heard, "nothing was heard: the subscribers watch the wrong subjects"
    say(
        f"append at 256, each conversation watched by one of {SUBSCRIBERS} connections",
        f"{watched / alone:.2f} × unwatched",
    )


async def _by_workers(ground: Ground) -> None:
    """Rates of one worker and of two, and where the CPU goes: two cores are all there is."""
    rounds: list[list[tuple[Load, Load]]] = []
    for number in range(WORKERS_ROUNDS):
        one = [
            await ground.appended(f"one-{number}"),
            await ground.read(f"one-read-{number}"),
            await ground.read(f"one-lone-{number}", readers=2),
        ]
        async with _another_worker(ground.up) as pid:
            beside = {"worker 2": pid}
            two = [
                await ground.appended(f"two-{number}", beside=beside),
                await ground.read(f"two-read-{number}", beside=beside),
                await ground.read(f"two-lone-{number}", readers=2, beside=beside),
            ]
        rounds.append(list(zip(one, two, strict=True)))
    whats = (f"append at {WRITERS}", f"window at {READERS}", "window at 2")
    for what, pairs in zip(whats, zip(*rounds, strict=True), strict=True):
        ratios = sorted(
            ((_rate(two) / _rate(one), one, two) for one, two in pairs), key=lambda each: each[0]
        )
        middle, one, two = ratios[len(ratios) // 2]
        say(
            f"{what}, two workers",
            f"{middle:.2f} × one ({ratios[0][0]:.2f} to {ratios[-1][0]:.2f})",
        )
        say("  one worker", _cpu(one))
        say("  two workers", _cpu(two))


def _rate(load: Load) -> float:
    return load.replies / load.wall_s


def _cpu(load: Load) -> str:
    """What each process took: microseconds for a request, and part of a core."""
    each = ", ".join(
        f"{name} {seconds / load.replies * 1e6:.0f} us ({seconds / load.wall_s:.0%})"
        for name, seconds in load.cpu_s.items()
    )
    cores = sum(load.cpu_s.values()) / load.wall_s
    return f"{_rate(load):,.0f}/s, {cores:.2f} cores: {each}"


@contextlib.asynccontextmanager
async def _another_worker(up: Stage) -> AsyncIterator[int]:
    """A second worker inside the block, by its process id."""
    supervisor = Supervisor()
    log = up.server.log_file.with_name("worker-2.log")
    ours = environment(up.url, ROOT, log.parent)
    child = supervisor.start(Program("worker-2", WORKER, ours, log), keep=False)
    client = await nats.connect(up.url)
    try:
        while await _answers_of(client, "$SRV.PING.convo-commands") < 2:
            pass  # each time it listens for a moment
        await asyncio.sleep(SETTLED_S + 1)  # until each knows of the other
        assert child.pid is not None, child.last_exit
        yield child.pid
    finally:
        await client.close()
        await supervisor.stop(["worker-2"])


async def _answers_of(client: Client, subject: str) -> int:
    inbox = client.new_inbox()
    heard = await client.subscribe(inbox)
    await client.publish(subject, b"", reply=inbox)
    answers = 0
    with contextlib.suppress(NatsError):
        while True:
            await heard.next_msg(timeout=0.3)
            answers += 1
    await heard.unsubscribe()
    return answers


async def _up_answers(data: Path) -> float:
    """Seconds from starting `convo up` to the first answer to a command."""
    port = free_port()
    started = time.monotonic()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-c", _CONVO_UP, "up", "--data", str(data), "--port", str(port)),
        stdout=asyncio.subprocess.DEVNULL,
        env={**environment("", ROOT), "CONVO_NATS_URL": "", "CONVO_GATEWAY_PORT": str(free_port())},
    )
    try:
        client = await nats.connect(
            f"nats://127.0.0.1:{port}", max_reconnect_attempts=-1, reconnect_time_wait=0.02,
            connect_timeout=1, error_cb=_quiet, allow_reconnect=True,
        )  # fmt: skip
        subject, body = _inits([f"first-{os.getpid()}-{port}"])[0]
        while True:
            try:
                reply = await client.request(subject, body.encode(), timeout=1)
            except NatsError:
                assert time.monotonic() - started < _UP_WITHIN_S, "convo up does not answer"
                await asyncio.sleep(0.01)
            else:
                assert json.loads(reply.data)["ok"], reply.data
                break
        took = time.monotonic() - started
        await client.close()
    finally:
        process.send_signal(signal.SIGTERM)
        await process.wait()
    return took


async def _quiet(_error: Exception) -> None:
    """Connections are refused until the server is there."""


def _append(name: str) -> Request:
    return f"convo.cmd.default.{name}.append", json.dumps({"role": "user", "content": text(1)})


def _inits(names: Sequence[str]) -> list[Request]:
    body = json.dumps({"user_id": "bench", "title": "Scale"})
    return [(f"convo.cmd.default.{name}.init", body) for name in names]


def _import(name: str, messages: int) -> Request:
    body = {"mode": "append", "messages": [{"role": "user", "content": text(1)}] * messages}
    return f"convo.cmd.default.{name}.import", json.dumps(body)


def _read(name: str) -> Request:
    return f"convo.get.default.{name}.messages", "{}"


def say(what: str, figure: str) -> None:
    """One figure."""
    print(f"{what}: {figure}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.scale")
    parser.add_argument("--conversations", type=int, default=Scale.conversations)
    parser.add_argument("--appends", type=int, default=Scale.appends)
    parser.add_argument("--only", action="append", choices=PARTS, default=[])
    arguments = parser.parse_args()
    results = ROOT / "bench-results"
    results.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=results))
    try:
        asyncio.run(
            measure(
                Scale(arguments.conversations, arguments.appends, arguments.only or PARTS), folder
            )
        )
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
