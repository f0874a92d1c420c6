"""Drives one peer: so many writers, each with one call outstanding, for so long."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.benchmarks import metering
from tests.benchmarks.load import Load
from tests.benchmarks.peers.peer import WINDOW, AsyncCall, AsyncPeer, Call, Peer, ThreadedPeer


@dataclass(frozen=True)
class PeerOrder:
    """`operation`: append, or messages (the window). `warm_up_s` before it are not counted."""

    operation: str
    concurrency: int
    seconds: float
    warm_up_s: float


@dataclass(frozen=True)
class Driven:
    """Latencies of the calls that succeeded (s), the errors, and how long it took (s)."""

    latencies: Sequence[float]
    errors: Sequence[str]
    wall_s: float


def carry_out(peer: Peer, order: PeerOrder) -> Load:
    """What came of one order. CPU and memory: `server` where the peer has one, and `load`: this
    process, which is the library and its callers in one."""
    _drive(peer, order, order.warm_up_s)
    watched = {"load": [os.getpid()]}
    if peer.servers:
        watched["server"] = [pid for root in peer.servers for pid in metering.tree(root)]
    before = _cpu(watched)
    driven = _drive(peer, order, order.seconds)
    after = _cpu(watched)
    latencies = sorted(driven.latencies) or [0.0]
    return Load(
        replies=len(driven.latencies),
        errors=len(driven.errors),
        first_error=driven.errors[0] if driven.errors else "",
        wall_s=driven.wall_s,
        p50_ms=1e3 * latencies[len(latencies) // 2],
        p99_ms=1e3 * latencies[len(latencies) * 99 // 100],
        reply_bytes=0,
        cpu_s={name: after[name] - before[name] for name in watched},
        peak_mb={
            name: sum(metering.peak_memory_mb(pid) for pid in pids)
            for name, pids in watched.items()
        },
    )


def _cpu(watched: Mapping[str, Sequence[int]]) -> dict[str, float]:
    return {name: sum(metering.cpu_seconds(pid) for pid in pids) for name, pids in watched.items()}


def _drive(peer: Peer, order: PeerOrder, seconds: float) -> Driven:
    wanted = None if order.operation == "append" else WINDOW
    numbers = range(order.concurrency)
    if isinstance(peer, AsyncPeer):
        tasks = [peer.writer(n) if wanted is None else peer.reader(n) for n in numbers]
        return asyncio.run(_tasks(tasks, seconds, wanted))
    assert isinstance(peer, ThreadedPeer)
    threads = [peer.writer(n) if wanted is None else peer.reader(n) for n in numbers]
    return _threads(threads, seconds, wanted)


def _threads(calls: Sequence[Call], seconds: float, wanted: int | None) -> Driven:
    latencies = [array("d") for _ in calls]
    errors: list[str] = []
    gate = threading.Barrier(len(calls) + 1)

    def repeat(call: Call, taken: array[float]) -> None:
        gate.wait()
        until = time.perf_counter() + seconds
        while (started := time.perf_counter()) < until:
            try:
                _check(call(), wanted)
            except Exception as error:  # noqa: BLE001 (whatever a peer raises is counted)
                errors.append(repr(error)[:200])
            else:
                taken.append(time.perf_counter() - started)

    threads = [
        threading.Thread(target=repeat, args=pair) for pair in zip(calls, latencies, strict=True)
    ]
    for thread in threads:
        thread.start()
    gate.wait()
    began = time.perf_counter()
    for thread in threads:
        thread.join()
    wall_s = time.perf_counter() - began
    return Driven([each for taken in latencies for each in taken], errors, wall_s)


async def _tasks(calls: Sequence[AsyncCall], seconds: float, wanted: int | None) -> Driven:
    latencies: list[float] = []
    errors: list[str] = []
    began = time.perf_counter()

    async def repeat(call: AsyncCall) -> None:
        while (started := time.perf_counter()) < began + seconds:
            try:
                _check(await call(), wanted)
            except Exception as error:  # noqa: BLE001 (whatever a peer raises is counted)
                errors.append(repr(error)[:200])
            else:
                latencies.append(time.perf_counter() - started)

    await asyncio.gather(*(repeat(call) for call in calls))
    return Driven(latencies, errors, time.perf_counter() - began)


def _check(found: object, wanted: int | None) -> None:
    """A window that is not full would be fast for a bad reason."""
    if wanted is not None and found != wanted:
        raise ValueError(f"{found!r} messages were read, not {wanted}")
