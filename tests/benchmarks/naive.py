"""The ledger that one would write in an hour: a nats-py service, one awaited publish per command.

It keeps the last sequence of each conversation in memory and publishes with that as the expected
one, so that its order is as safe as ours; no validation, no hash chain, no window, no answer to a
repeated command. `python -m tests.benchmarks.naive URL`.
"""

from __future__ import annotations

import asyncio
import sys

import nats
from nats.aio.msg import Msg
from nats.errors import Error as NatsError

from infra.loop import run

APPEND, STORED = "bench.naive", "bench.publish.0.naive"


async def serve(url: str) -> None:
    """Answers until the process is ended; each request in a task of its own."""
    nc = await nats.connect(url, name="bench-naive", max_reconnect_attempts=-1)
    js = nc.jetstream(publish_async_max_pending=10_000)
    last: dict[str, int] = {}
    under_way: set[asyncio.Task[None]] = set()

    async def append(message: Msg) -> None:
        conversation = message.subject.rpartition(".")[2]
        expected = {"Nats-Expected-Last-Subject-Sequence": str(last.get(conversation, 0))}
        try:
            stored = await js.publish(f"{STORED}-{conversation}", message.data, headers=expected)
        except NatsError as error:
            await message.respond(repr(error).encode())
        else:
            last[conversation] = stored.seq
            await message.respond(b'{"ok":true,"seq":%d}' % stored.seq)

    async def hear(message: Msg) -> None:
        if not message.data:
            await message.respond(b'{"ok":true}')
            return
        task = asyncio.create_task(append(message))
        under_way.add(task)
        task.add_done_callback(under_way.discard)

    await nc.subscribe(f"{APPEND}.>", cb=hear, pending_msgs_limit=-1, pending_bytes_limit=-1)
    await nc.flush()
    await asyncio.Event().wait()


if __name__ == "__main__":
    run(serve(sys.argv[1]))
