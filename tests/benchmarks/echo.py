"""The ceilings: services that answer without doing anything.

`python -m tests.benchmarks.echo URL` is a bare nats-py service, the fastest that a Python program
on this client can be: `{"ok":true}` on `bench.echo.>`, and on `bench.same.>` what it was last sent
on `bench.tell`, so that a read can be compared with an echo of as many bytes.

`python -m tests.benchmarks.echo URL bare` answers `bench.bare.>` over the bare protocol, at a
fraction of that cost: what the load and nats-server reach when no service limits them.
"""

from __future__ import annotations

import asyncio
import sys

import nats
from nats.aio.msg import Msg

from infra.loop import run
from tests.benchmarks.wire import Wire

ECHO, SAME, TELL, BARE = "bench.echo", "bench.same", "bench.tell", "bench.bare"
ANSWER = b'{"ok":true}'


async def serve(url: str) -> None:
    """Answers through nats-py until the process is ended."""
    nc = await nats.connect(url, name="bench-echo", max_reconnect_attempts=-1)
    told = ANSWER

    async def echo(message: Msg) -> None:
        await nc.publish(message.reply, ANSWER)

    async def same(message: Msg) -> None:
        await nc.publish(message.reply, told)

    async def tell(message: Msg) -> None:
        nonlocal told
        told = message.data
        await nc.publish(message.reply, ANSWER)

    for subject, answer in ((f"{ECHO}.>", echo), (f"{SAME}.>", same), (TELL, tell)):
        await nc.subscribe(subject, cb=answer, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await nc.flush()
    await asyncio.Event().wait()


async def serve_bare(url: str) -> None:
    """Answers over the bare protocol until the process is ended."""
    answer = b"%d\r\n%b\r\n" % (len(ANSWER), ANSWER)

    def on_message(_subject: bytes, reply: bytes, _headers: bytes, _payload: bytes) -> None:
        wire.send(b"PUB %b %b" % (reply, answer))

    wire = await Wire.connect(url, on_message)
    wire.send(b"SUB %b.> 1\r\n" % BARE.encode())
    await wire.round_trip()
    await wire.lost


if __name__ == "__main__":
    run(serve_bare(sys.argv[1]) if "bare" in sys.argv[2:] else serve(sys.argv[1]))
