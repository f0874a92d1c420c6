"""What the gateway costs: `python -m tests.benchmarks.gateway`.

The server, the worker and the gateway are processes of their own, as `convo up` runs them, and
nothing else runs: an append needs no more. The load is made here, with bare connections (one
request outstanding on each), so that it costs little. What it does cost is shown beside the others:
all of them share the machine.

- append: the same message over NATS and over HTTP, one at a time, in turns; then 64 at once;
- chat: a message is appended over NATS; viewers hold WebSockets. The time is from the durable
  acknowledgement to the frame at a viewer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import websockets

from infra.loop import run
from tests.acceptance.deployment import Worker
from tests.benchmarks.load import Order, Writers
from tests.benchmarks.metering import cpu_seconds, load_average
from tests.benchmarks.wire import Wire
from tests.services.gateway.site import GatewayProcess, Site

CONTENT = "x" * 300
ROUNDS = 3
APPENDS = 300
CLIENTS = 64
VIEWERS = 16
CHATS = 200


class HttpConnection(asyncio.Protocol):
    """One keep-alive connection: a request out, the time of its answer in."""

    def __init__(self) -> None:
        self._unread = b""
        self._answer: asyncio.Future[bytes] | None = None
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("closed"))

    def request(self, raw: bytes) -> asyncio.Future[bytes]:
        """Sends the bytes; the future is the answer's."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(raw)
        return self._answer

    def data_received(self, data: bytes) -> None:
        self._unread += data
        head, found, body = self._unread.partition(b"\r\n\r\n")
        if not found:
            return
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        if len(body) >= length:
            answer, self._unread = self._unread, b""
            assert self._answer is not None
            self._answer.set_result(answer)


class Nats:
    """Requests over one bare connection, one outstanding for each writer."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, asyncio.Future[bytes]] = {}
        self._wire: Wire | None = None
        self._inbox = b"_INBOX.gateway-bench."

    async def connect(self, url: str) -> None:
        self._wire = await Wire.connect(url, self._on_message)
        self._wire.send(b"SUB %b* 1\r\n" % self._inbox)
        await self._wire.round_trip()

    def request(self, subject: str, body: bytes, writer: int = 0) -> asyncio.Future[bytes]:
        """Sends a request; the future is the reply's."""
        assert self._wire is not None
        reply = self._inbox + b"%d" % writer
        self._waiting[reply] = asyncio.get_running_loop().create_future()
        self._wire.send(b"PUB %b %b %d\r\n%b\r\n" % (subject.encode(), reply, len(body), body))
        self._wire.flush()
        return self._waiting[reply]

    def _on_message(self, subject: bytes, _reply: bytes, _headers: bytes, payload: bytes) -> None:
        self._waiting.pop(subject).set_result(payload)


def post(gateway: GatewayProcess, path: str, body: Any) -> bytes:
    """The bytes of a request."""
    content = json.dumps(body).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {urlsplit(gateway.http).netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def http_to(gateway: GatewayProcess) -> HttpConnection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(HttpConnection, "127.0.0.1", gateway.port)
    return connection


async def one_at_a_time(nats: Nats, gateway: GatewayProcess) -> None:
    """Appends over NATS and over HTTP, in turns."""
    http = await http_to(gateway)
    message = {"role": "user", "content": CONTENT}
    raw = post(gateway, "/v1/threads/one/message", message)
    body = json.dumps(message).encode()
    taken: dict[str, list[float]] = {"NATS": [], "HTTP": []}
    for number in range(APPENDS + 50):
        for name, times in taken.items():
            began = time.perf_counter()
            if name == "NATS":
                answer = await nats.request("convo.cmd.default.one.append", body)
                assert b'"ok":true' in answer, answer
            else:
                answer = await http.request(raw)
                assert b" 200 " in answer[:20], answer
            if number >= 50:
                times.append((time.perf_counter() - began) * 1000)
    medians = {name: statistics.median(each) for name, each in taken.items()}
    print(
        f"append, one at a time    NATS p50 {medians['NATS']:.2f} ms   HTTP p50 "
        f"{medians['HTTP']:.2f} ms   difference {medians['HTTP'] - medians['NATS']:.2f} ms"
    )


class HttpWriter(asyncio.Protocol):
    """One keep-alive connection that sends the same request again as soon as it is answered.

    Without a task or a future per request: the load must not be what is measured.
    """

    def __init__(self, raw: bytes, until: float) -> None:
        self._raw = raw
        self._until = until
        self._unread = b""
        self._sent_at = 0.0
        self._transport: asyncio.Transport | None = None
        self.latencies: list[float] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.perf_counter()
        self._transport.write(self._raw)

    def data_received(self, data: bytes) -> None:
        answer = self._unread + data if self._unread else data
        head = answer.find(b"\r\n\r\n")
        at = answer.find(b"content-length: ", 0, head) + 16
        if head < 0 or len(answer) < head + 4 + int(answer[at : answer.find(b"\r", at)]):
            self._unread = answer
            return
        self._unread = b""
        now = time.perf_counter()
        self.latencies.append(now - self._sent_at)
        if not answer.startswith(b"HTTP/1.1 200 "):
            self.done.set_exception(AssertionError(answer.decode(errors="replace")))
        elif now < self._until:
            self._send()
        else:
            self.done.set_result(None)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionError("closed"))


async def over_nats(site: Site, seconds: float) -> list[float]:
    """The latencies of a closed loop of so many writers over one bare connection."""
    body = json.dumps({"role": "user", "content": CONTENT})
    requests = [(f"convo.cmd.default.t-{n}.append", body) for n in range(CLIENTS)]
    writers = Writers(Order(site.server.url, (), requests, '"ok":true', seconds, 0, sys.maxsize))
    await writers.connect()
    await writers.run(requests, seconds=seconds, requests_max=sys.maxsize)
    writers.close()
    assert not writers.errors, writers.first_error
    return list(writers.latencies)


async def over_http(gateway: GatewayProcess, seconds: float) -> list[float]:
    """The same of so many connections to a gateway."""
    message = {"role": "user", "content": CONTENT}
    loop, until = asyncio.get_running_loop(), time.perf_counter() + seconds
    writers = []
    for number in range(CLIENTS):
        raw = post(gateway, f"/v1/threads/t-{number}/message", message)
        make = partial(HttpWriter, raw, until)
        writers.append(await loop.create_connection(make, "127.0.0.1", gateway.port))
    await asyncio.gather(*(writer.done for _, writer in writers))
    for transport, _ in writers:
        transport.close()
    return [each for _, writer in writers for each in writer.latencies]


async def many(site: Site, gateway: GatewayProcess, seconds: float) -> None:
    """Closed loops of so many clients, over NATS and over HTTP, and what they cost each process."""
    watched = {"gateway": gateway.pid, "worker": site.worker.pid, "nats": site.server.pid}
    watched["load"] = os.getpid()
    for name in ("NATS", "HTTP"):
        cpu = {each: cpu_seconds(pid) for each, pid in watched.items()}
        began = time.perf_counter()
        taken = await (over_nats(site, seconds) if name == "NATS" else over_http(gateway, seconds))
        wall = time.perf_counter() - began
        costs = "  ".join(
            f"{each} {(cpu_seconds(pid) - cpu[each]) / len(taken) * 1e6:.0f}"
            for each, pid in watched.items()
        )
        print(
            f"append, {CLIENTS} at once       {name} {len(taken) / wall:,.0f}/s"
            f"   p50 {statistics.median(taken) * 1000:.1f} ms   µs of CPU each: {costs}"
        )


async def chat(nats: Nats, gateway: GatewayProcess) -> None:
    """From durable to the viewers' frames."""
    url = f"{gateway.ws}/conversation/chat"
    viewers = [await websockets.connect(url) for _ in range(VIEWERS)]
    for viewer in viewers:
        await viewer.recv()
    delays: list[float] = []
    for number in range(CHATS + 20):
        seen: list[float] = []

        async def see(viewer: websockets.ClientConnection, seen: list[float] = seen) -> None:
            await viewer.recv()
            seen.append(time.perf_counter())

        watching = [asyncio.ensure_future(see(viewer)) for viewer in viewers]
        body = json.dumps({"role": "user", "content": f"{number} {CONTENT}"}).encode()
        answer = await nats.request("convo.cmd.default.chat.append", body)
        durable = time.perf_counter()
        assert b'"ok":true' in answer, answer
        await asyncio.gather(*watching)
        if number >= 20:
            delays += [(each - durable) * 1000 for each in seen]
    delays.sort()
    print(
        f"chat to {VIEWERS} viewers       p50 {statistics.median(delays):.2f} ms after durable"
        f"   p99 {delays[int(len(delays) * 0.99)]:.2f} ms"
    )
    for viewer in viewers:
        await viewer.close()


async def measure(site: Site, seconds: float) -> None:
    """All of it, so many rounds."""
    gateway = site.gateway()
    nats = Nats()
    await nats.connect(site.server.url)
    for name in ("one", "chat", *(f"t-{number}" for number in range(CLIENTS))):
        await nats.request(f"convo.cmd.default.{name}.init", b'{"user_id":"ada"}')
    for round_ in range(1, ROUNDS + 1):
        print(f"round {round_} (load average {load_average():.1f})")
        await one_at_a_time(nats, gateway)
        await many(site, gateway, seconds)
        await chat(nats, gateway)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of a closed loop")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        site = Site(Path(folder))
        site.worker = Worker(site.server, Path(folder) / "worker")
        try:
            site.start()
            run(measure(site, arguments.seconds))
        finally:
            site.stop()


if __name__ == "__main__":
    main()
