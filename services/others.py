"""Whether other workers write, and what they write: so that a conversation in memory need not be
compared with the ledger at every read.

A worker that is alone knows every event, because it stored it. As soon as there is another one it
listens to `convo.live.>`, which the server fills from the streams before it acknowledges. Workers
make themselves known on `convo.workers`, in plain NATS messages of two words: `hello <id>` when
one starts or comes back, `who <id>` from a process that only reads, both answered by `here <id>`;
`bye <id>` when one has stopped.

What that is good for rests on the order of one connection to one server: the greeting of a worker,
and the copy of every event, are on this process's connection before anybody can have read an
acknowledgement and asked here. Copies are taken in as they are read from the socket, so before any
request behind them. Where that does not hold (a cluster, a connection that was away, a
greeting that its own sender does not hear, for want of permission) nothing is concluded, and each
read asks the ledger. A worker that another one took for dead, because it was suspended when that
one started, is believed in again at its first word. Decisions never rest on any of this: those are
compared-and-set.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.nuid import NUID

from infra.bulk import Delivered
from infra.jetstream.envelope import batch_of, is_unfinished
from infra.jetstream.errors import NATS_FAILURES, reason
from infra.sturdy import subscribe_in_bulk
from services.tasks import ended

log = logging.getLogger(__name__)

WORKERS = "convo.workers"

SETTLED_S = 2.0
"""How long a worker waits for answers to its greeting before it holds itself to be alone."""

_PAUSE_S = 0.2

Heard = Callable[[str, bytes, bytes], None]
"""Called with an event that was stored: its originator, the message's header block and body. Must
not raise."""


class Others:
    """The workers beside this process; `nc` must be the connection that it takes requests on.

    `live`: prefix of the events' live copies, without the partition. `writes`: whether this process
    is a worker itself.
    """

    def __init__(self, nc: Client, live: str, *, writes: bool) -> None:
        self._nc = nc
        self._greeting = "hello" if writes else "who"
        self._live = live
        self._prefix = f"{live}.".encode()
        self._heard: Heard = _nobody
        self._id = NUID().next().decode()
        self._others: set[str] = set()
        self._met = asyncio.Event()
        self._stopped = False
        self._epoch = 0
        self._sure = False
        self._echoed = False
        self._listening: Subscription | None = None
        self._open: dict[bytes, list[Delivered]] = {}  # by partition: a batch without its commit
        self._reconnects = nc.stats["reconnects"]
        self._asking: asyncio.Task[None] | None = None

    @property
    def epoch(self) -> int | None:
        """A number for as long as every event that is stored is known here; None when that is not
        sure. What was up to date in an epoch is up to date as long as it lasts."""
        if not self._nc.is_connected or self._nc.stats["reconnects"] != self._reconnects:
            self._ask()
        return self._epoch if self._sure else None

    @property
    def alone(self) -> bool:
        """Whether no other worker is known of."""
        return not self._others

    async def start(self, heard: Heard) -> None:
        """Begins to listen, and greets: before the first request is taken, everybody knows.

        `heard` is called with each event that is stored while there are others. Where several
        servers carry the messages nothing is begun.
        """
        self._heard = heard
        if self._nc._server_info.get("cluster"):  # nats-py has no public name for it
            self._stopped = True
            return
        await self._nc.subscribe(WORKERS, cb=self._on_word)
        await self._say(self._greeting)
        self._ask()

    async def stop(self) -> None:
        """Nothing is sure from here on; call it before the connection is drained."""
        self._stopped = True
        self._doubt()
        if self._asking is not None:
            await ended(self._asking)

    async def say_bye(self, nc: Client) -> None:
        """Tells the others, on a connection that is still there, that nothing more is written."""
        if self._greeting == "hello" and nc.is_connected:
            try:
                await nc.publish(WORKERS, self._word("bye"))
                await nc.flush()
            except NATS_FAILURES as error:
                log.info("the other workers were not told of the end: %s", reason(error))

    # -- who is there --------------------------------------------------------------------------

    def _ask(self) -> None:
        """Begins an epoch in which nothing is sure until it is known who is there."""
        self._open.clear()
        self._reconnects = self._nc.stats["reconnects"]
        self._doubt()
        if self._stopped:
            return
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._find_out())

    def _doubt(self) -> None:
        self._epoch += 1
        self._sure = False

    async def _find_out(self) -> None:
        while not self._sure:
            try:
                await self._greet()
            except NATS_FAILURES as error:
                log.debug("who else is there is not known yet: %s", reason(error))
            await asyncio.sleep(_PAUSE_S)

    async def _greet(self) -> None:
        epoch = self._epoch
        self._echoed = False
        await self._say(self._greeting)
        if not self._others:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._met.wait(), SETTLED_S)
        if self._others and self._listening is None:
            await self._listen()
        await asyncio.sleep(0 if self._echoed else _PAUSE_S)
        known = self._listening is not None or not self._others
        if epoch == self._epoch and self._echoed and known:
            self._sure = True

    async def _listen(self) -> None:
        subject = f"{self._live}.>"
        listening = await subscribe_in_bulk(self._nc, subject, self._on_events)
        await self._nc.flush()
        if subject in str(self._nc.last_error):  # it comes before the answer to a flush
            log.warning("may not listen to %s: every read asks the ledger", subject)
            await listening.unsubscribe()
        else:
            self._listening = listening

    async def _on_word(self, message: Msg) -> None:
        word, _, id = message.data.decode("utf-8", "replace").partition(" ")
        if id == self._id:
            self._echoed = self._echoed or word == self._greeting
            return
        if word == "bye":
            await self._forget(id)
        elif word in ("hello", "here") and id not in self._others:
            self._others.add(id)
            self._met.set()
            if self._listening is None:
                self._ask()
        if word in ("hello", "who") and self._greeting == "hello":
            await self._nc.publish(WORKERS, self._word("here"))

    async def _forget(self, id: str) -> None:
        self._others.discard(id)
        if not self._others:
            self._met.clear()
            if self._listening is not None:
                listening, self._listening = self._listening, None
                self._ask()  # what it has not handed over yet is looked up
                await listening.unsubscribe()

    async def _say(self, word: str) -> None:
        await self._nc.publish(WORKERS, self._word(word))
        await self._nc.flush()

    def _word(self, word: str) -> bytes:
        return f"{word} {self._id}".encode()

    # -- what they write -----------------------------------------------------------------------

    def _on_events(self, messages: Sequence[Delivered]) -> None:
        """Passes on what is committed: a batch's copies come one by one, before its commit."""
        for message in messages:
            partition, _ = self._place(message)
            begun = self._open.get(partition)
            if begun and batch_of(begun[0].headers) != batch_of(message.headers):
                self._ask()  # a batch that was begun has no end: whatever else was not heard
            if is_unfinished(message.headers):
                self._open.setdefault(partition, []).append(message)
                continue
            for each in [*self._open.pop(partition, ()), message]:
                _, originator = self._place(each)
                self._heard(originator.decode("utf-8", "replace"), each.headers, each.body)

    def _place(self, message: Delivered) -> tuple[bytes, bytes]:
        """Partition and originator of a live copy."""
        partition, _, originator = message.subject[len(self._prefix) :].partition(b".")
        return partition, originator


def _nobody(_originator: str, _headers: bytes, _body: bytes) -> None:
    """Listens to nothing."""
