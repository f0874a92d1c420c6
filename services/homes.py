"""Each conversation has a home among the workers, and its commands are carried out there.

Requests reach the workers by a queue group, whichever is free. Where two workers write to one
conversation in turn, each has to take in what the other wrote before it can decide; so a worker
passes a command on to the one whose conversation it is, which has all of it in memory. That costs
a hop inside the server, for those that came to another worker first, and lets several workers
append faster than one.

Where a conversation's home is follows from who is there: every worker says so once a second on
`convo.workers` (`home <id>`, and `away <id>` before it stops taking requests), and whoever was
silent for `SILENT_S` is not there. Workers may differ about that for a moment; it is a hint and no
more. Any worker can carry out any command, since every append is compared-and-set.

A command that is passed on is a message to `convo.worker.<id>.<tenant>.<conversation>.<verb>`. Its
reply subject is an inbox of the worker that passes it on, where the server says when nobody
listens any more: then that one is away, and the command is carried out here. The subject that the
client waits on travels as the header `Convo-Reply`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from itertools import count
from typing import NamedTuple
from zlib import crc32

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request
from nats.nuid import NUID

from infra.jetstream.errors import NATS_FAILURES, reason
from services.endpoint import NEVER_ANSWER
from services.others import WORKERS
from services.tasks import ended

log = logging.getLogger(__name__)

PASSED_ON = "convo.worker."
REPLY = "Convo-Reply"

SAID_EVERY_S = 1.0
SILENT_S = 3.0

REMEMBERED_BYTES = 16_000_000
"""Of what was passed on lately, in case the server says that nobody was there."""

_ROOM_BYTES = 4_096
_ENTRY_BYTES = 1_000
_NO_RESPONDERS = "503"
_TRIAL = "trial"
_TRIAL_S = 2.0

Take = Callable[[Request], Awaitable[None]]


class _Sent(NamedTuple):
    """A request that was passed on; `size` is roughly what it takes here, in bytes."""

    request: Request
    home: str
    size: int


class Homes:
    """The workers that are there, as one of them knows it.

    `nc` must be the connection that it takes requests on; `prefix` is that of its requests.
    """

    def __init__(self, nc: Client, prefix: str, take: Take) -> None:
        """`take` carries out a request here."""
        self.id = NUID().next().decode()
        self.passed_on = 0
        """Requests that were handed to another worker."""
        self._nc = nc
        self._prefix = prefix
        self._take = take
        self._heard: dict[str, float] = {}  # of the others: when they last said that they are there
        self._homes = [self.id]
        self._inbox = f"{nc.new_inbox()}."
        self._numbers = count(1)
        self._sent: OrderedDict[str, _Sent] = OrderedDict()
        self._sent_bytes = 0
        self._reached = asyncio.Event()
        self._saying: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()

    async def start(self) -> None:
        """Listens to the others, takes what they pass on, and says that we are there.

        Where several servers carry the messages, or this one may not send there, each worker keeps
        what it gets.
        """
        if self._nc._server_info.get("cluster"):  # nats-py has no public name for it
            return
        await self._nc.subscribe(f"{PASSED_ON}{self.id}.>", cb=self._on_passed)
        await self._nc.publish(f"{PASSED_ON}{self.id}.{_TRIAL}")
        await self._nc.flush()
        try:
            await asyncio.wait_for(self._reached.wait(), _TRIAL_S)
        except TimeoutError:
            log.warning("may not use %s>: commands are carried out where they come", PASSED_ON)
            return
        await self._nc.subscribe(f"{self._inbox}*", cb=self._on_nobody)
        await self._nc.subscribe(WORKERS, cb=self._on_word)
        await self._nc.flush()
        self._saying = self._loop.create_task(self._say_each_second())

    async def leave(self) -> None:
        """Tells the others to pass nothing on; call it before the connection is drained."""
        if self._saying is None:
            return
        await ended(self._saying)
        self._homes = [self.id]  # what still comes is carried out here
        if not self._nc.is_connected:
            return
        try:
            await self._nc.publish(WORKERS, f"away {self.id}".encode())
            await self._nc.flush()
        except NATS_FAILURES as error:
            log.info("the other workers were not told that this one stops: %s", reason(error))

    def of(self, subject: str) -> str | None:
        """The other worker that a request belongs to; None where it is to be carried out here."""
        if len(self._homes) == 1:
            return None
        tokens = subject[len(self._prefix) :].split(".", 2)
        if len(tokens) < 3:
            return None
        home = self._homes[crc32(f"{tokens[0]}.{tokens[1]}".encode()) % len(self._homes)]
        return None if home == self.id else home

    async def pass_on(self, home: str, request: Request) -> bool:
        """Hands a request to that worker; False when it cannot be sent there."""
        message = request._msg  # nats.micro has no public name for its reply subject
        headers = message.headers or {}
        if REPLY in headers or len(message.data) + _ROOM_BYTES > self._nc.max_payload:
            return False
        token = str(next(self._numbers))
        subject = f"{PASSED_ON}{home}.{message.subject[len(self._prefix) :]}"
        self._remember(token, _Sent(request, home, len(message.data) + _ENTRY_BYTES))
        try:
            await self._nc.publish(
                subject,
                message.data,
                reply=f"{self._inbox}{token}",
                headers={**headers, REPLY: message.reply},
            )
        except NATS_FAILURES:
            return self._forget(token) is None  # if it is gone, the server has said so already
        self.passed_on += 1
        return True

    # -- what is passed on ---------------------------------------------------------------------

    def _remember(self, token: str, sent: _Sent) -> None:
        self._sent[token] = sent
        self._sent_bytes += sent.size
        while self._sent_bytes > REMEMBERED_BYTES and len(self._sent) > 1:
            self._sent_bytes -= self._sent.popitem(last=False)[1].size

    def _forget(self, token: str) -> _Sent | None:
        sent = self._sent.pop(token, None)
        if sent is not None:
            self._sent_bytes -= sent.size
        return sent

    async def _on_passed(self, message: Msg) -> None:
        """Takes a request that another worker was asked."""
        if message.subject.endswith(f"{self.id}.{_TRIAL}"):
            self._reached.set()
            return
        headers = message.headers or {}
        message.reply = headers.pop(REPLY, "")
        if message.reply.startswith(NEVER_ANSWER):
            message.reply = ""
        message.subject = self._prefix + message.subject[len(PASSED_ON) + len(self.id) + 1 :]
        message.headers = headers or None
        await self._take(Request(message))

    async def _on_nobody(self, message: Msg) -> None:
        """Carries out here what nobody took, and passes nothing more on to that worker."""
        if (message.headers or {}).get("Status") != _NO_RESPONDERS:
            return
        sent = self._forget(message.subject[len(self._inbox) :])
        if sent is not None:
            self._heard.pop(sent.home, None)
            self._settle()
            await self._take(sent.request)

    # -- who is there --------------------------------------------------------------------------

    async def _say_each_second(self) -> None:
        while True:
            try:
                await self._nc.publish(WORKERS, f"home {self.id}".encode())
            except NATS_FAILURES as error:
                log.debug("the other workers were not told of this one: %s", reason(error))
            self._settle()
            await asyncio.sleep(SAID_EVERY_S)

    async def _on_word(self, message: Msg) -> None:
        word, _, id = message.data.decode("utf-8", "replace").partition(" ")
        if id == self.id or word not in ("home", "away"):
            return
        if word == "away":
            self._heard.pop(id, None)
        else:
            known = id in self._heard
            self._heard[id] = self._loop.time()
            if known:
                return
        self._settle()

    def _settle(self) -> None:
        """Makes up who is there."""
        if self._saying is None or self._saying.done():
            return
        lately = self._loop.time() - SILENT_S
        self._heard = {id: heard for id, heard in self._heard.items() if heard > lately}
        self._homes = sorted([self.id, *self._heard])
