"""What the recorders of one application share: connections, and a journal for each of its streams.

Streams and subjects of an application with prefix `Shop` (see `tokens.stream_prefix`); in each
originator ids are one subject token (see `tokens.encode_token`), UUIDs in their canonical form:

- `Shop-EVENTS-0`: events on `Shop.evt.0.<originator>`, and on `Shop.trk.0.<application>` the
  tracking records of a process recorder, which commit in one batch with the events;
- `Shop-SNAPSHOTS-0`, and so on for any other purpose of an aggregate recorder:
  `Shop.snapshots.0.<originator>.<version>`, one message each;
- `Shop-TRACKING-0`: `Shop.pos.0.<application>` and `Shop.view.0.<key>`, the latest message of
  each: what a tracking recorder without events keeps.

A sequence of the events stream is a notification id. Nothing is connected until a recorder is
made; from then on connections come back by themselves, and calls wait for them up to a timeout.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import weakref
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from eventsourcing.persistence import (
    InterfaceError,
    OperationalError,
    PersistenceError,
    ProgrammingError,
)
from nats.aio.client import Client

from infra.jetstream import outcome
from infra.jetstream.bridge import Bridge, Reply
from infra.jetstream.by_version import ByVersion
from infra.jetstream.connections import Connections, Server
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable, reason
from infra.jetstream.journal import Journal
from infra.jetstream.store import Store
from infra.jetstream.tokens import stream_prefix
from infra.jetstream.topology import Topology, call

log = logging.getLogger(__name__)

_T = TypeVar("_T")

REQUEST_TIMEOUT_S = 5.0
"""For one answer, of several that a call may wait for."""

GATHER_S = 0.002
"""Threads that a batch has answered are back with their next insert by then, or have none."""

CLOSE_TIMEOUT_S = 5.0
SLACK_S = 10.0
"""What a call may take beyond the timeout before its thread is let go: then the loop hangs."""

RESERVED = ("EVENTS", "TRACKING")
TRACKING = "trk"
VIEW = "view"


@dataclass(eq=False)
class _Opened:
    """What was opened on the loop and has to be closed there."""

    connections: Connections
    journals: dict[str, Journal] = field(default_factory=dict)
    opening: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def close(self) -> None:
        """Lets writes finish, for a while, and closes the connections."""
        for journal in self.journals.values():
            try:
                async with asyncio.timeout(CLOSE_TIMEOUT_S):
                    await journal.close()
            except NATS_FAILURES as error:
                log.warning("closing %s with writes under way: %s", journal.stream, reason(error))
        await self.connections.close()


class JetStreamDatastore:
    """The streams of one application prefix. For any number of threads; see the module's text."""

    def __init__(
        self,
        server: Server | str,
        prefix: str,
        *,
        replicas: int = 1,
        originator_id_type: Literal["uuid", "text"] = "uuid",
        timeout: float = 30.0,
        create_streams: bool = True,
    ) -> None:
        """`prefix`: as `tokens.stream_prefix` makes it. `timeout` (s): for one call to finish.

        `replicas` of the streams that are created; `create_streams` False has them all be there
        already. Nothing is connected yet.
        """
        self.server = Server(server) if isinstance(server, str) else server
        self.prefix = prefix
        self.originator_id_type = originator_id_type
        self.timeout = timeout
        self._replicas = replicas
        self.create_streams = create_streams
        self._guard = threading.RLock()
        self._bridge: Bridge | None = None
        self._opened: _Opened | None = None
        self._closed = False
        self._farewell: weakref.finalize[..., JetStreamDatastore] | None = None
        self.stops: weakref.WeakSet[Any] = weakref.WeakSet()
        """What has to be told to `stop()` when the datastore closes: subscriptions."""

    # -- streams -------------------------------------------------------------------------------

    def events(self) -> Journal:
        """The journal of events and of tracking records that commit with them."""
        return self._journal(self._topology("EVENTS", "evt", beside=(f"{self.prefix}.{TRACKING}",)))

    def tracking(self) -> Journal:
        """The journal of tracking records without events, and of the views that go with them."""
        return self._journal(
            self._topology("TRACKING", "pos", beside=(f"{self.prefix}.{VIEW}",), kept_per_subject=1)
        )

    def by_version(self, purpose: str) -> ByVersion:
        """Events on subjects of their own, for snapshots and other purposes."""
        name = stream_prefix(purpose)
        if name.upper() in RESERVED:
            raise ProgrammingError(f"{purpose!r} cannot be a purpose: its stream is another one's")
        topology = self._topology(name.upper(), name, originator_tokens=2)
        _, opened = self._ready()
        return ByVersion(
            self._journal(topology, expect_new=True),
            opened.connections.reading,
            request_timeout=min(self.timeout, REQUEST_TIMEOUT_S),
        )

    def subject_beside(self, kind: str, token: str) -> str:
        """The subject of what is kept beside originators: a tracking record, a view's record."""
        return f"{self.prefix}.{kind}.0.{token}"

    def _topology(self, stream: str, subject: str, **others: Any) -> Topology:
        return Topology(
            stream=f"{self.prefix}-{stream}",
            prefix=f"{self.prefix}.{subject}",
            replicas=self._replicas,
            **others,
        )

    def _journal(self, topology: Topology, *, expect_new: bool = False) -> Journal:
        _, opened = self._ready()
        return self.run(self._open(opened, topology, expect_new))

    async def _open(self, opened: _Opened, topology: Topology, expect_new: bool) -> Journal:
        async with opened.opening:
            journal = opened.journals.get(topology.stream)
            if journal is not None:
                return journal
            if not self.create_streams:
                await _require_stream(opened.connections.writing, topology.stream_name(0))
            store = await Store.open(
                topology,
                writing=opened.connections.writing,
                reading=opened.connections.reading,
                request_timeout=self.timeout if self.timeout < REQUEST_TIMEOUT_S else None,
                deadline=self.timeout,
                gather=GATHER_S,
            )
            journal = opened.journals[topology.stream] = Journal(
                store,
                timeout=self.timeout,
                expect_new=expect_new,
            )
            return journal

    # -- calls ---------------------------------------------------------------------------------

    def run(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine of a journal on the loop; this thread waits for it."""
        try:
            bridge, _ = self._ready()
        except BaseException:
            coroutine.close()
            raise
        with self._translated():
            return bridge.run(coroutine, self.timeout + SLACK_S)

    def call(self, start: Callable[[Reply[_T]], None]) -> _T:
        """Calls something on the loop that gives a reply; this thread waits for that."""
        bridge, _ = self._ready()
        with self._translated():
            return bridge.call(start, self.timeout + SLACK_S)

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """The one place where errors leave for the library: all are of its own family
        (`eventsourcing.persistence.PersistenceError`), the driver's are OperationalErrors."""
        try:
            yield
        except PersistenceError:
            raise
        except NATS_FAILURES as error:
            raise StoreUnavailable(
                f"NATS at {self.server.shown} failed: {reason(error)}; try again"
            ) from error

    def spawn(self, make: Callable[[Connections], Coroutine[Any, Any, None]]) -> None:
        """Starts what `make` makes of the connections on the loop; returns at once."""
        bridge, opened = self._ready()
        bridge.spawn(make(opened.connections))

    @property
    def is_inside(self) -> bool:
        """Whether the caller is on the loop's own thread."""
        return self._bridge is not None and self._bridge.is_inside

    def call_soon(self, callback: Callable[[], None]) -> None:
        """Calls something on the loop, soon; nothing when the datastore is closed."""
        bridge = self._bridge
        if bridge is not None and bridge.is_here:
            try:
                bridge.loop.call_soon_threadsafe(callback)
            except RuntimeError:
                log.debug("the loop is closed")

    def _ready(self) -> tuple[Bridge, _Opened]:
        with self._guard:
            if self._closed:
                raise InterfaceError("the factory is closed; construct a new one")
            if self._bridge is None or self._opened is None:
                bridge = Bridge.acquire()
                try:
                    opened = bridge.run(
                        _connect(self.server, self.prefix),
                        self.server.connect_timeout + SLACK_S,
                    )
                except BaseException:
                    bridge.release(wait=CLOSE_TIMEOUT_S)
                    raise
                bridge.at_end(opened.close)
                self._bridge, self._opened = bridge, opened
                self._farewell = weakref.finalize(self, _release, bridge, opened, wait=0)
                self._farewell.atexit = False  # the bridge sees to it then
            return self._bridge, self._opened

    def close(self) -> None:
        """Ends subscriptions, lets writes finish and closes the connections; harmless to repeat."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            for each in list(self.stops):
                each.stop()
            if self._farewell is not None and self._farewell.detach() is not None:
                assert self._bridge is not None
                assert self._opened is not None
                _release(self._bridge, self._opened, wait=CLOSE_TIMEOUT_S)


def _release(bridge: Bridge, opened: _Opened, *, wait: float) -> None:
    """Gives up what was opened; also when the datastore itself is gone (then nobody waits)."""
    bridge.not_at_end(opened.close)
    bridge.release(opened.close(), wait=wait)


async def _connect(server: Server, name: str) -> _Opened:
    return _Opened(await Connections.open(server, name))


async def _require_stream(nc: Client, name: str) -> None:
    answer = await call(nc, f"STREAM.INFO.{name}", {})
    if outcome.unmade(answer):
        raise OperationalError(
            f"stream {name} does not exist and CREATE_TABLE says not to create it; start the "
            "application once with CREATE_TABLE=y, under a user that may create streams"
        )
