"""What happens in a conversation, as it happens, to many viewers at once.

One subscription to `convo.live.*.<tenant>.<conversation>` for each conversation that somebody here
watches, whatever the number of viewers. `convo.live` is plain NATS and may lose messages; versions
of a conversation have no gaps, so a `Feed` sees what is missing and reads it from the ledger before
it goes on: every viewer gets each event once, in order. The recipe is that of docs/streaming.md.

A viewer begins with what it reads (`Viewer.begin`) and goes on with what follows. Its queue is
bounded: one that does not keep up is dropped (`TooSlow`), and begins anew when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from pydantic_core import from_json

from domain.identity import ConversationId
from infra.jetstream.errors import NATS_FAILURES
from services.gateway.errors import NOT_INITIALIZED, GatewayError, not_initialized
from services.gateway.identity import Identity
from services.gateway.ledger import JSON, Ledger
from services.tasks import ended

log = logging.getLogger(__name__)

QUEUE_EVENTS_MAX: Final = 2_000
QUEUE_BYTES_MAX: Final = 8 * 1024 * 1024
"""What one viewer may leave unread."""

QUIET_S: Final = 1.0
"""After so long without an event a feed asks once whether the last one was the last."""

CERTAIN_FOR_S: Final = 15.0
"""And however quiet, a feed that is watched asks this often: a cluster may lose without a word."""

PAGE: Final = 500

OWNING: Final = frozenset({"ConversationStarted", "ContextUpdated"})
"""Events that say whose the conversation is."""

_SEQ = "Nats-Sequence"

T = TypeVar("T")


class TooSlow(Exception):
    """The viewer left too much unread; it may come back and begin anew."""


class Closing(Exception):
    """This process stops: the viewer may come back to another one."""


class Event:
    """One stored event. Shared by all viewers: not to be changed.

    `memo(key, make)` keeps what viewers make of it (a frame, as JSON), so that it is made once.
    """

    __slots__ = ("_made", "actor", "command_id", "data", "seq", "size", "time", "type", "version")

    def __init__(self, stored: JSON, seq: int, size: int) -> None:
        self.version: int = stored["version"]
        self.seq = seq
        self.type: str = stored["type"]
        self.time: str = stored["time"]
        self.actor: str | None = stored.get("actor")
        self.command_id: str | None = stored.get("command_id")
        self.data: JSON = stored["data"]
        self.size = size
        self._made: dict[Any, Any] = {}

    def of_another(self, user_id: str | None) -> bool:
        """Whether the conversation is from here on another user's than `user_id` (None: anyone)."""
        return (
            user_id is not None
            and self.type in OWNING
            and self.data.get("user_id", user_id) != user_id
        )

    def memo(self, key: Any, make: Callable[[Event], T]) -> T:
        """What `make` makes of the event, made once for all viewers that ask under `key`."""
        if key not in self._made:
            self._made[key] = make(self)
        made: T = self._made[key]
        return made


class Viewer:
    """One who watches a feed; make it with `Live.watching`."""

    def __init__(self, feed: Feed, user_id: str | None) -> None:
        self.feed = feed
        self.user_id = user_id
        self.version = 0
        self._queue: deque[Event] = deque()
        self._bytes = 0
        self._wake = asyncio.Event()
        self._end: Exception | None = None

    @property
    def seq(self) -> int:
        """What a read must include (`min_seq`): what comes next then follows it."""
        return self.feed.seq

    def begin(self, version: int) -> None:
        """The viewer has read the conversation at `version`; what follows it comes next."""
        self.version = version

    async def begun(self, read: Callable[[int], Awaitable[JSON]]) -> JSON | None:
        """What `read` says when it includes the event of a sequence; what follows it comes next.

        None where nobody has begun the conversation: then all of it comes next.
        Raises GatewayError: it is another user's.
        """
        while True:
            seq = self.seq
            try:
                reply = await read(seq)
            except GatewayError as error:
                if error.code != NOT_INITIALIZED or seq:
                    raise
                if self.seq == seq:
                    return None
            else:
                self.begin(reply["version"])
                return reply

    async def next(self, timeout: float | None = None) -> Event | None:
        """The event that follows; None when there is none within `timeout` seconds.

        Raises TooSlow, Closing or GatewayError when there will be none any more.
        """
        while True:
            while self._queue:
                event = self._queue.popleft()
                self._bytes -= event.size
                if event.version > self.version:
                    self.version = event.version
                    return event
            if self._end is not None:
                raise self._end
            self._wake.clear()
            if timeout is None:
                await self._wake.wait()
            else:
                try:
                    await asyncio.wait_for(self._wake.wait(), timeout)
                except TimeoutError:
                    return None

    async def events(self) -> AsyncIterator[Event]:
        """Each event that follows, for ever. Raises as `next` does."""
        while True:
            event = await self.next()
            assert event is not None, "without a timeout there is always one"
            yield event

    def put(self, event: Event) -> None:
        """Hands over an event; too many of them end the viewer."""
        if self._end is not None or event.version <= self.version:
            return
        if event.of_another(self.user_id):
            self.end(not_initialized())
            return
        self._queue.append(event)
        self._bytes += event.size
        if len(self._queue) > QUEUE_EVENTS_MAX or self._bytes > QUEUE_BYTES_MAX:
            self.end(TooSlow(f"more than {len(self._queue) - 1} events were left unread"))
        self._wake.set()

    def end(self, reason: Exception) -> None:
        """Ends the viewer: it gets nothing more."""
        self._queue.clear()
        self._bytes = 0
        self._end = reason
        self._wake.set()


class Feed:
    """The events of one conversation, in order, to its viewers."""

    def __init__(self, id: ConversationId, live: Live) -> None:
        self.id = id
        self.version = 0
        self.seq = 0
        self.viewers: set[Viewer] = set()
        self.certain_until = 0.0
        self.quiet_since = 0.0
        self._live = live
        self._subscription: Subscription | None = None
        self._early: list[Event] = []
        self._reading: asyncio.Task[None] | None = None
        self.ready: asyncio.Task[None] = asyncio.get_running_loop().create_task(self._open())
        self.ready.add_done_callback(_retrieved)

    async def _open(self) -> None:
        """Subscribes, then learns where the conversation is. Raises GatewayError."""
        try:
            self._subscription = await self._live.nats.subscribe(
                f"convo.live.*.{self.id.key}", cb=self._take
            )
            await self._live.nats.flush()
        except NATS_FAILURES as error:
            msg = f"the connection to NATS is lost ({error}): look at /health"
            raise GatewayError(503, "storage_unavailable", msg, retryable=True) from None
        try:
            reply = await self._live.ledger.query(self._live.caller, self.id, "usage", strong=True)
        except GatewayError as error:
            if error.code != NOT_INITIALIZED:
                raise
        else:
            self.version, self.seq = reply["version"], reply["seq"]
        self._note_event()
        early, self._early = self._early, []
        for event in early:
            self._arrived(event)

    def close(self) -> None:
        """Nobody watches any more."""
        self.ready.cancel()
        if self._reading is not None:
            self._reading.cancel()
        if self._subscription is not None:
            self._live.later(self._subscription.unsubscribe())

    async def _take(self, message: Msg) -> None:
        event = _event_of(message)
        if event is None:
            return
        if self.ready.done():
            self._arrived(event)
        else:
            self._early.append(event)

    def _arrived(self, event: Event) -> None:
        if event.version <= self.version:
            return
        if event.version == self.version + 1 and self._reading is None:
            self._hand_over(event)
            self._note_event()
        else:
            self.read_again()

    def _hand_over(self, event: Event) -> None:
        self.version, self.seq = event.version, event.seq
        self._live.ledger.saw(self.id, event.seq)
        for viewer in self.viewers:
            viewer.put(event)

    def _note_event(self) -> None:
        now = asyncio.get_running_loop().time()
        self.certain_until, self.quiet_since = 0.0, now

    def due(self, now: float) -> bool:
        """Whether it is time to ask the ledger if something was lost."""
        return (
            self.ready.done()
            and self._reading is None
            and now >= self.certain_until
            and now - self.quiet_since >= QUIET_S
        )

    def read_again(self) -> None:
        """Reads from the ledger what is missing; viewers get it in order."""
        if self._reading is None:
            self._reading = asyncio.get_running_loop().create_task(self._read())

    async def _read(self) -> None:
        """Until the ledger has nothing more; what fails is tried again at the next quiet second."""
        try:
            async with self._live.reads:
                while await self._read_page():
                    pass
            self.certain_until = asyncio.get_running_loop().time() + CERTAIN_FOR_S
        except GatewayError as error:
            if error.code == NOT_INITIALIZED:
                self.certain_until = asyncio.get_running_loop().time() + CERTAIN_FOR_S
            else:
                log.info("a conversation could not be read after a gap: %s", error.message)
                self._note_event()
        finally:
            self._reading = None

    async def _read_page(self) -> bool:
        """Hands over the events of one page; says whether there are more."""
        body = {"after_version": self.version, "limit": PAGE}
        page = await self._live.ledger.query(
            self._live.caller, self.id, "events", body, strong=True
        )
        for stored in page["events"]:
            if stored["version"] == self.version + 1:
                self._hand_over(Event(stored, stored["seq"], len(str(stored["data"]))))
        return "next" in page


class Live:
    """The feeds of this process, over a connection of their own."""

    def __init__(self, nats: Client, ledger: Ledger) -> None:
        self.nats = nats
        self.ledger = ledger
        self.caller = Identity("", None)
        """Feeds read for all their viewers; each viewer's own read says whether it may."""
        self.feeds: dict[ConversationId, Feed] = {}
        self.reads = asyncio.Semaphore(32)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closing = False
        self._ticker = asyncio.get_running_loop().create_task(self._tick())

    @asynccontextmanager
    async def watching(self, id: ConversationId, caller: Identity) -> AsyncIterator[Viewer]:
        """A viewer of the conversation inside the block, from now on.

        Then read it as of `viewer.seq`, `viewer.begin(version)`, and go on with `viewer.next()`.
        Whether the caller may see it is for that read to say; once it becomes another user's, the
        viewer ends. Raises GatewayError when the ledger cannot be reached, Closing when this
        process stops.
        """
        if self._closing:
            raise Closing("this gateway stops: connect again")
        feed = self.feeds.get(id)
        if feed is None:
            feed = self.feeds[id] = Feed(id, self)
        viewer = Viewer(feed, caller.user_id)
        feed.viewers.add(viewer)
        try:
            await asyncio.shield(feed.ready)
            yield viewer
        finally:
            feed.viewers.discard(viewer)
            if not feed.viewers and self.feeds.get(id) is feed:
                del self.feeds[id]
                feed.close()

    @property
    def viewers(self) -> int:
        """How many watch, over all conversations."""
        return sum(len(feed.viewers) for feed in self.feeds.values())

    def later(self, work: Any) -> None:
        """Carries a small piece of work out without anybody waiting for it."""
        task = asyncio.ensure_future(_quietly(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def say_goodbye(self) -> None:
        """Ends every viewer with Closing, and lets no new one in."""
        self._closing = True
        for feed in self.feeds.values():
            for viewer in feed.viewers:
                viewer.end(Closing("this gateway stops: connect again"))

    async def close(self) -> None:
        """Ends everything."""
        self.say_goodbye()
        await ended(self._ticker)
        for feed in list(self.feeds.values()):
            feed.close()
        self.feeds.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _tick(self) -> None:
        """Has feeds ask the ledger when they have been quiet, or the connection was away."""
        loop = asyncio.get_running_loop()
        reconnects = self.nats.stats["reconnects"]
        while True:
            await asyncio.sleep(QUIET_S / 2)
            came_back = self.nats.stats["reconnects"] != reconnects
            reconnects = self.nats.stats["reconnects"]
            now = loop.time()
            for feed in self.feeds.values():
                if came_back:
                    feed.certain_until = 0.0
                if feed.due(now):
                    feed.read_again()


def _event_of(message: Msg) -> Event | None:
    """The event in a message of `convo.live`; None for anything else that was published there."""
    try:
        stored = from_json(message.data)
        return Event(stored, int((message.headers or {})[_SEQ]), len(message.data))
    except (ValueError, KeyError, TypeError):
        return None


def _retrieved(task: asyncio.Task[None]) -> None:
    """Whoever still waits for the task sees its failure; that nobody does is no fault."""
    if not task.cancelled():
        task.exception()


async def _quietly(work: Any) -> None:
    try:
        await work
    except NATS_FAILURES as error:
        log.debug("a subscription was not ended in good order: %s", error)
