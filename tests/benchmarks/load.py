"""The load: so many writers, each with one request outstanding, in a process of its own.

`python -m tests.benchmarks.load` reads one `Order` per line (JSON) and answers each with a `Load`
on one line. Every writer repeats one request whose bytes are made beforehand, so that a request
costs the load a few microseconds; what it costs is part of the result.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import sys
import time
from array import array
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from infra.loop import run
from tests.benchmarks import metering
from tests.benchmarks.wire import Wire

REPLY_WITHIN_S = 30.0
"""A request without an answer for so long ends the measurement as failed."""

_PREPARED_AT_ONCE = 256
_BATCH_ID = b"BATCH-ID-OF-20-BYTES"

Request = tuple[str, str]
"""Subject and body."""


@dataclass(frozen=True)
class Order:
    """What to send: first `prepare`, one step after the other, then each writer its one of
    `requests`, again and again.

    It ends after `seconds`, or earlier with `requests_max` requests; `warm_up_s` before that are
    not counted. A reply without the text `ok` is an error. `watch` names the processes whose CPU
    time and memory are read at the first and at the last moment. With `batch` over 1 a request is
    an atomic batch of so many copies of its message (ADR-50).
    """

    url: str
    prepare: Sequence[Sequence[Request]]
    requests: Sequence[Request]
    ok: str
    seconds: float
    warm_up_s: float
    requests_max: int
    watch: dict[str, int] = field(default_factory=dict)
    batch: int = 1


@dataclass(frozen=True)
class Load:
    """What came of it. `cpu_s` and `peak_mb` have the watched processes and `load` itself."""

    replies: int
    errors: int
    first_error: str
    wall_s: float
    p50_ms: float
    p99_ms: float
    reply_bytes: int
    cpu_s: dict[str, float]
    peak_mb: dict[str, float]


class LoadFailed(Exception):
    """The measurement could not be carried out."""


class Writers:
    """The writers of one order, on one connection."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._ok = order.ok.encode()
        self._inbox = b"_INBOX.%x.%x." % (os.getpid(), time.time_ns())
        self._subject_starts = len(self._inbox)
        self._frames: list[bytes] = []
        self._sent_at = array("d")
        self._until = 0.0
        self._left = 0
        self._open = 0
        self._batches = time.time_ns()
        self._wire: Wire | None = None
        self._done = asyncio.Event()
        self.latencies = array("d")
        self.errors = 0
        self.first_error = ""
        self.reply = b""

    async def connect(self) -> None:
        self._wire = await Wire.connect(self._order.url, self._on_message)
        self._wire.send(b"SUB %b* 1\r\n" % self._inbox)
        await self._wire.round_trip()

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()

    async def prepare(self) -> None:
        """Sends what has to be there before; LoadFailed unless every answer is fine."""
        for step in self._order.prepare:
            for start in range(0, len(step), _PREPARED_AT_ONCE):
                requests = step[start : start + _PREPARED_AT_ONCE]
                await self.run(requests, seconds=0, requests_max=len(requests))
        if self.errors:
            raise LoadFailed(f"a preparing request was refused: {self.first_error}")

    async def run(self, requests: Sequence[Request], *, seconds: float, requests_max: int) -> float:
        """Lets a writer per request go; returns the seconds from the first byte to the last."""
        assert self._wire is not None
        self._frames = [self._frame(writer, *request) for writer, request in enumerate(requests)]
        self.latencies = array("d")
        self._done.clear()
        started = time.perf_counter()
        self._sent_at = array("d", [started] * len(requests))
        self._until = started + seconds
        self._open = min(len(requests), requests_max)
        self._left = requests_max - self._open
        for writer in range(self._open):
            self._wire.send(self._next(writer))
        self._wire.flush()
        await self._answered()
        return time.perf_counter() - started

    async def _answered(self) -> None:
        assert self._wire is not None
        while not self._done.is_set():
            replies = len(self.latencies)
            done = asyncio.ensure_future(self._done.wait())
            waited_for: set[asyncio.Future[Any]] = {done, self._wire.lost}
            await asyncio.wait(
                waited_for, timeout=REPLY_WITHIN_S, return_when=asyncio.FIRST_COMPLETED
            )
            done.cancel()
            if self._wire.lost.done():
                self._wire.lost.result()
            if len(self.latencies) == replies and not self._done.is_set():
                raise LoadFailed(f"{self._open} requests got no answer in {REPLY_WITHIN_S:g} s")

    def _next(self, writer: int) -> bytes:
        frame = self._frames[writer]
        if self._order.batch == 1:
            return frame
        self._batches += 1  # no two batches under one id
        return frame.replace(_BATCH_ID, b"%0*d" % (len(_BATCH_ID), self._batches))

    def _frame(self, writer: int, subject: str, body: str) -> bytes:
        payload = body.encode()
        if self._order.batch > 1:
            return self._batch(writer, subject.encode(), payload)
        head = b"PUB %b %b%d %d\r\n" % (subject.encode(), self._inbox, writer, len(payload))
        return head + payload + b"\r\n"

    def _batch(self, writer: int, subject: bytes, payload: bytes) -> bytes:
        frames = []
        for number in range(1, self._order.batch + 1):
            commits = number == self._order.batch
            headers = b"NATS/1.0\r\nNats-Batch-Id: %b\r\nNats-Batch-Sequence: %d\r\n%b\r\n" % (
                _BATCH_ID,
                number,
                b"Nats-Batch-Commit: 1\r\n" if commits else b"",
            )
            reply = b" %b%d" % (self._inbox, writer) if commits else b""
            sizes = b"%d %d" % (len(headers), len(headers) + len(payload))
            frames.append(b"HPUB %b%b %b\r\n%b%b\r\n" % (subject, reply, sizes, headers, payload))
        return b"".join(frames)

    def _on_message(self, subject: bytes, _reply: bytes, headers: bytes, payload: bytes) -> None:
        now = time.perf_counter()
        writer = int(subject[self._subject_starts :])
        self.latencies.append(now - self._sent_at[writer])
        if self._ok not in payload:
            self.errors += 1
            self.first_error = self.first_error or (headers + payload)[:300].decode(
                errors="replace"
            )
        if now < self._until and self._left > 0:
            self._left -= 1
            self._sent_at[writer] = now
            assert self._wire is not None
            self._wire.send(self._next(writer))
        else:
            self._open -= 1
            if self._open == 0:
                self.reply = payload
                self._done.set()


async def carry_out(order: Order) -> Load:
    """Carries one order out. Raises LoadFailed, WireError, OSError."""
    writers = Writers(order)
    watch = {**order.watch, "load": os.getpid()}
    await writers.connect()
    try:
        await writers.prepare()
        if order.warm_up_s:
            await writers.run(order.requests, seconds=order.warm_up_s, requests_max=sys.maxsize)
        for pid in watch.values():
            metering.forget_peak_memory(pid)
        before = {name: metering.cpu_seconds(pid) for name, pid in watch.items()}
        wall_s = await writers.run(
            order.requests, seconds=order.seconds, requests_max=order.requests_max
        )
        cpu_s = {name: metering.cpu_seconds(pid) - before[name] for name, pid in watch.items()}
        peak_mb = {name: metering.peak_memory_mb(pid) for name, pid in watch.items()}
    finally:
        writers.close()
    latencies = sorted(writers.latencies)
    return Load(
        replies=len(latencies),
        errors=writers.errors,
        first_error=writers.first_error,
        wall_s=wall_s,
        p50_ms=1e3 * latencies[len(latencies) // 2],
        p99_ms=1e3 * latencies[len(latencies) * 99 // 100],
        reply_bytes=len(writers.reply),
        cpu_s=cpu_s,
        peak_mb=peak_mb,
    )


def main() -> None:
    """Carries out the orders on standard input until it ends."""
    gc.disable()  # nothing here makes circles, and its pauses would count as latency
    for line in sys.stdin:
        order = Order(**json.loads(line))
        answer: dict[str, Any]
        try:
            answer = asdict(run(carry_out(order)))
        except Exception as error:  # noqa: BLE001 - told to whoever gave the order
            answer = {"failed": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
        gc.collect()


if __name__ == "__main__":
    main()
