"""What the gateway costs: `python -m tests.benchmarks.gateway`.

The server, the worker and the gateway are processes of their own, as `convo up` runs them; the load
is made here, with bare connections (one request outstanding on each), so that it costs little.

- append: the same message over NATS and over HTTP, one at a time, in turns; then 64 at once;
- chat: a message is appended over NATS; viewers hold WebSockets. The time is from the durable
  acknowledgement to the frame at a viewer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import websockets

from tests.benchmarks.metering import cpu_seconds, load_average
from tests.benchmarks.wire import Wire, run
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


async def many(nats: Nats, gateway: GatewayProcess, seconds: float) -> None:
    """Closed loops of so many clients, over NATS and over HTTP."""
    message = {"role": "user", "content": CONTENT}
    body = json.dumps(message).encode()
    connections = [await http_to(gateway) for _ in range(CLIENTS)]

    async def over_nats(writer: int) -> bytes:
        return await nats.request(f"convo.cmd.default.t-{writer}.append", body, writer)

    async def over_http(writer: int) -> bytes:
        return await connections[writer].request(requests[writer])

    requests = [post(gateway, f"/v1/threads/t-{n}/message", message) for n in range(CLIENTS)]
    for name, send in (("NATS", over_nats), ("HTTP", over_http)):
        taken: list[float] = []
        until = time.perf_counter() + seconds

        async def loop(
            writer: int, send: Any = send, taken: list[float] = taken, until: float = until
        ) -> None:
            while (began := time.perf_counter()) < until:
                answer = await send(writer)
                assert b'"ok":true' in answer or b" 200 " in answer[:20], answer
                taken.append(time.perf_counter() - began)

        cpu, began = cpu_seconds(gateway.pid), time.perf_counter()
        await asyncio.gather(*(loop(writer) for writer in range(CLIENTS)))
        wall = time.perf_counter() - began
        used = cpu_seconds(gateway.pid) - cpu
        print(
            f"append, {CLIENTS} at once       {name} {len(taken) / wall:,.0f}/s"
            f"   p50 {statistics.median(taken) * 1000:.1f} ms"
            + (
                f"   gateway: {used / wall:.0%} of a CPU, {used / len(taken) * 1e6:.0f} µs each"
                if name == "HTTP"
                else ""
            )
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
        await many(nats, gateway, seconds)
        await chat(nats, gateway)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.gateway")
    parser.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of a closed loop")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        site = Site(Path(folder))
        try:
            site.start()
            run(measure(site, arguments.seconds))
        finally:
            site.stop()


if __name__ == "__main__":
    main()
