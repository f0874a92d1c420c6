"""What an append costs the worker itself: no socket, no server, no disk.

    python -m tests.benchmarks.inside [WRITERS] [APPENDS]

The worker's code and nats-py do what they do in `convo serve`, but on a transport that stands in
for the socket: it brings the next request as soon as one is answered, and acknowledges at once.
Prints the CPU time of an append and, from a look at the stack every millisecond of it, what that
goes into. Unlike rates, this hardly depends on what else the machine does.
"""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from types import FrameType
from unittest.mock import patch

from nats.aio.client import Client

from domain.rules import Limits
from infra.jetstream.store import Store
from infra.lean import LeanClient
from infra.loop import run
from infra.settings import Settings
from services.bootstrap import topology, tune_garbage_collection
from services.commands import CommandService
from services.conversations import Conversations
from services.endpoint import Outbox
from services.homes import PASSED_ON
from tests.benchmarks.texts import text

WRITERS = 256
APPENDS = 50_000
WINDOW, CACHE_BYTES = 50, 128 * 1024 * 1024
SAMPLED_EVERY_S = 0.001

STEPS = {
    "BulkParser.parse": "taking it off the wire (nats-py)",
    "Subscription._wait_for_msgs": "handing it to the service (nats-py)",
    "Endpoint._handle_request": "handing it to the service (nats-py)",
    "CommandService._handle": "understanding it",
    "decide": "deciding",
    "Decider.execute": "finding its conversation",
    "Decider._append": "its stored form and its hash",
    "Committer.submit": "gathering what goes together",
    "Committer._pump": "gathering what goes together",
    "Committer._commit_batch": "sending it to the store",
    "Committer._commit_plain": "sending it to the store",
    "Decider._settled": "folding it",
    "CommandService._reply": "making the reply",
    "Outbox._run": "sending the reply",
    "Wire.writelines": "this benchmark",
}
"""The function that a step is in, and whatever that calls; the innermost counts."""
ELSE = "everything else: the event loop, tasks, garbage"

_INFO = {"server_id": "inside", "version": "2.15.1", "headers": True, "max_payload": 8_388_608}
_NOTHING = b"NATS/1.0 404 Message Not Found\r\n\r\n"
_PUBLISH = re.compile(rb"H?PUB (\S+)  ?(?:(\S+) )?(?:\d+ )?(\d+)\r\n")
"""Subject, reply subject, bytes."""

Published = Callable[[bytes, bytes], bytes]
"""Called with a message's subject and reply subject; returns what that brings in."""


class Wire:
    """nats-py's transport, with nobody behind it but `published`."""

    def __init__(self) -> None:
        self.incoming: asyncio.Queue[bytes] = asyncio.Queue()
        self.published: Published = lambda _subject, _reply: b""
        self._greeted = False

    async def connect(self, *_: object, **__: object) -> None: ...

    async def drain(self) -> None: ...

    async def wait_closed(self) -> None: ...

    def close(self) -> None: ...

    def at_eof(self) -> bool:
        return False

    async def readline(self) -> bytes:
        return await self.incoming.get()

    async def read(self, _size: int) -> bytes:
        return await self.incoming.get()

    def write(self, data: bytes) -> None:
        self.writelines([data])

    def writelines(self, frames: list[bytes]) -> None:
        """Answers what was sent, all of it in one piece."""
        sent = b"".join(frames)
        came = b"PONG\r\n" * sent.count(b"PING\r\n")
        place = 0
        while found := _PUBLISH.search(sent, place):
            came += self.published(found[1], found[2] or b"")
            place = found.end() + int(found[3])
        if came:
            self.incoming.put_nowait(came)


def message(subject: bytes, sid: int, body: bytes, reply: bytes = b"") -> bytes:
    """As nats-server delivers it."""
    return b"MSG %b %d %b %d\r\n%b\r\n" % (subject, sid, reply, len(body), body)


async def connected() -> tuple[LeanClient, Wire]:
    """A client on a wire of its own."""
    wires: list[Wire] = []

    def dial() -> Wire:
        wires.append(Wire())
        wires[-1].incoming.put_nowait(b"INFO " + json.dumps(_INFO).encode() + b"\r\n")
        return wires[-1]

    client = LeanClient()
    with patch("nats.aio.client.TcpTransport", dial):
        await client.connect("nats://inside:4222")
    return client, wires[0]


def subscription_of(client: Client, prefix: str) -> int:
    """The number of the subscription whose subject begins like this."""
    return next(n for n, each in client._subs.items() if each.subject.startswith(prefix))


async def measure(writers: int, appends: int) -> tuple[float, Counter[str]]:
    """Seconds of CPU of that many appends, and in which step each millisecond of it was."""
    serving, requests = await connected()
    writing, commits = await connected()
    ledger = topology(Settings())
    store = Store(
        ledger,
        writing=writing,
        reading=writing,
        streams=[{"config": {}}] * ledger.partitions,
        request_timeout=60,
        deadline=60,
    )
    conversations = Conversations(
        store, limits=Limits(), window_size=WINDOW, cache_bytes=CACHE_BYTES, epoch=lambda: 1
    )
    service = CommandService(conversations, Outbox(serving))
    to_itself = PASSED_ON.encode()
    requests.published = lambda subject, _: (
        message(subject, subscription_of(serving, PASSED_ON), b"")
        if subject.startswith(to_itself)
        else b""
    )
    await service.start(serving)
    await writing._init_request_sub()
    sid, answers = subscription_of(serving, "convo.cmd."), subscription_of(writing, "_INBOX")
    store_end, done = 0, 0
    enough = asyncio.Event()

    def published(subject: bytes, reply: bytes) -> bytes:
        """Acknowledges what is written, and has nothing to read."""
        nonlocal store_end
        if subject.startswith(b"convo."):
            store_end += 1  # one of a batch, or its commit
            return reply and message(reply, answers, b'{"stream":"inside","seq":%d}' % store_end)
        return b"HMSG %b %d %d %d\r\n%b\r\n" % (reply, answers, *2 * (len(_NOTHING),), _NOTHING)

    def replied(inbox: bytes, _reply: bytes) -> bytes:
        """Takes a reply, and brings its writer's next request."""
        nonlocal done
        if not inbox.isdigit():
            return b""  # a word for other workers
        done += 1
        if done == wanted:
            enough.set()
        return following[int(inbox)] if done + writers <= wanted else b""

    def frames(verb: str, body: object) -> list[bytes]:
        subject = f"convo.cmd.default.inside-{{}}.{verb}"
        encoded = json.dumps(body).encode()
        return [
            message(subject.format(writer).encode(), sid, encoded, b"%d" % writer)
            for writer in range(writers)
        ]

    commits.published, requests.published = published, replied
    following = frames("append", {"role": "user", "content": text(1)})
    wanted = writers
    requests.incoming.put_nowait(b"".join(frames("init", {"user_id": "inside", "title": "-"})))
    await enough.wait()
    enough.clear()
    done, wanted = 0, appends
    tune_garbage_collection()
    spent: Counter[str] = Counter()
    before = signal.signal(signal.SIGPROF, lambda _, frame: spent.update([step_of(frame)]))
    signal.setitimer(signal.ITIMER_PROF, SAMPLED_EVERY_S, SAMPLED_EVERY_S)
    began = time.process_time()
    requests.incoming.put_nowait(b"".join(following))
    await enough.wait()
    seconds = time.process_time() - began
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)
    await conversations.close()
    return seconds, spent


def step_of(frame: FrameType | None) -> str:
    """The innermost step that a frame is in."""
    while frame is not None:
        step = STEPS.get(frame.f_code.co_qualname)
        if step is not None:
            return step
        frame = frame.f_back
    return ELSE


def main(argv: list[str]) -> int:
    writers, appends = (*map(int, argv), *(WRITERS, APPENDS)[len(argv) :])
    seconds, spent = run(measure(writers, appends))
    micros = 1e6 * seconds / appends
    print(f"{micros:6.1f} µs of CPU for an append, {writers} writers, {appends:,} appends\n")
    for step in dict.fromkeys([*STEPS.values(), ELSE]):
        print(f"{micros * spent[step] / spent.total():6.1f}  {step}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
