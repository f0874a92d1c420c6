"""A connection to the fake: as much of nats-py's client as the ledger's infrastructure uses.

As the product connects: it comes back for ever, and a publish while it is away fails at once. A
request whose connection breaks fails by its own timeout.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, cast

from nats.aio.msg import Msg
from nats.errors import (
    ConnectionClosedError,
    MaxPayloadError,
    NoRespondersError,
    OutboundBufferLimitError,
)
from nats.errors import TimeoutError as NoAnswer

from infra.lean import Event, LeanClient
from services.others import WORKERS
from tests.lines import as_headers

from .server import Server
from .stream import matches
from .wire import MAX_PAYLOAD, PING, Headers, Wire

NEXT_S = 1e-7
"""What is due at the same time comes in any order; one connection's messages come in theirs."""

Callback = Callable[[Msg], Awaitable[None]]


class FakeSubscription:
    """What `subscribe` returns."""

    def __init__(self, client: FakeClient, subject: str, callback: Callback) -> None:
        self.subject = subject
        self.callback = callback
        self._client = client

    async def unsubscribe(self) -> None:
        """Hears nothing from now on."""
        if self in self._client.subscriptions:
            self._client.subscriptions.remove(self)


class FakeClient:
    """One connection of a process."""

    def __init__(self, server: Server, name: str) -> None:
        self.name = name
        self.epoch = 1
        self.max_payload = MAX_PAYLOAD
        self.stats = {"reconnects": 0}
        self.subscriptions: list[FakeSubscription] = []
        self.is_closed = False
        self.is_connected = True
        self.last_error: Exception | None = None
        self._server_info = {"cluster": "c"} if server.replicas > 1 else {}
        self._server = server
        self._loop = asyncio.get_running_loop()
        self._numbers = count(1)
        self._requests: dict[str, asyncio.Future[Msg]] = {}
        self._there_by = 0.0  # messages of one direction keep their order
        self._back_by = 0.0
        self._cut_at: dict[int, float] = {}
        server.connections.append(self)

    @property
    def as_client(self) -> LeanClient:
        return cast("LeanClient", self)

    # -- as nats-py has it -------------------------------------------------------------------------

    def new_inbox(self) -> str:
        """A subject of this connection's own."""
        return f"_INBOX.{self.name}-{next(self._numbers)}"

    async def publish(
        self, subject: str, payload: bytes = b"", reply: str = "", headers: Headers | None = None
    ) -> None:
        """Sends a message."""
        if self.is_closed:
            raise ConnectionClosedError
        if len(payload) > self.max_payload:
            raise MaxPayloadError
        if not self.is_connected:
            raise OutboundBufferLimitError
        copy = dict(headers) if headers else None
        self._send(Wire(subject, subject, reply, copy, payload))

    async def publish_events(self, events: Sequence[Event]) -> None:
        """Sends several messages."""
        for subject, lines, body in events:
            await self.publish(subject, body, headers=as_headers(lines))

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: Headers | str | None = None,
    ) -> Msg:
        """Sends a message and returns the first answer."""
        token = f"{subject if subject == PING else self.name}/{next(self._numbers)}"
        answer: asyncio.Future[Msg] = self._loop.create_future()
        self._requests[token] = answer
        giving_up = self._loop.call_later(timeout, _give_up, answer)
        try:
            await self.publish(subject, payload, token, as_headers(headers))
            message = await answer
        finally:
            giving_up.cancel()
            del self._requests[token]
        if message.headers and message.headers.get("Status") == "503":
            raise NoRespondersError
        return message

    async def subscribe(
        self,
        subject: str,
        *,
        cb: Callback,
        pending_msgs_limit: int = 0,
        pending_bytes_limit: int = 0,
    ) -> FakeSubscription:
        """Has `cb` called for each message, one after the other."""
        subscription = FakeSubscription(self, subject, cb)
        self.subscriptions.append(subscription)
        return subscription

    async def flush(self, timeout: float = 10.0) -> None:
        """Returns when what was sent has come, and what was sent back before has been heard."""
        await self.request(PING, timeout=timeout)

    def hears(self, subject: str) -> bool:
        """Whether there is a subscription to the subject."""
        return any(matches(each.subject, subject) for each in self.subscriptions)

    async def close(self) -> None:
        """Ends it."""
        self.is_closed = True
        self.is_connected = False
        if self in self._server.connections:
            self._server.connections.remove(self)

    # -- the network -------------------------------------------------------------------------------

    def _send(self, wire: Wire) -> None:
        weather, receive = self._server.weather, self._server.receive
        if wire.to in (PING, WORKERS):  # on one connection: these keep their order, and come
            pass
        elif weather.strikes("request lost"):
            return
        elif weather.strikes("request late"):
            self._loop.call_later(weather.lateness(), receive, self, self.epoch, wire)
            return
        self._there_by = max(self._there_by + NEXT_S, self._loop.time() + weather.latency())
        if weather.strikes("request twice"):  # nobody hears what becomes of the first
            unheard = wire._replace(reply="")
            self._loop.call_at(self._there_by, self._arrive, self.epoch, unheard)
            late = self._there_by + weather.lateness()
            self._loop.call_at(late, receive, self, self.epoch, wire._replace(again=True))
            return
        self._loop.call_at(self._there_by, self._arrive, self.epoch, wire)

    def _arrive(self, epoch: int, wire: Wire) -> None:
        if self._loop.time() <= self._cut_at.get(epoch, float("inf")):
            self._server.receive(self, epoch, wire)

    def deliver(self, epoch: int, wire: Wire) -> None:
        """A message from the server sets out."""
        weather = self._server.weather
        is_answer = wire.to in self._requests and not wire.to.startswith(PING)
        if is_answer and weather.strikes("answer lost"):
            return
        if is_answer and weather.strikes("answer late"):
            self._loop.call_later(weather.lateness(), self._hear, epoch, wire)
            return
        self._back_by = max(self._back_by + NEXT_S, self._loop.time() + weather.latency())
        self._loop.call_at(self._back_by, self._hear, epoch, wire)
        if is_answer and weather.strikes("answer twice"):
            self._loop.call_at(self._back_by + weather.lateness(), self._hear, epoch, wire)

    def _hear(self, epoch: int, wire: Wire) -> None:
        if epoch != self.epoch or not self.is_connected:
            return
        to, subject, reply, headers, body, _ = wire
        message = Msg(self.as_client, subject, reply, body, cast("Any", headers))
        answer = self._requests.get(to)
        if answer is not None:
            if not answer.done():
                answer.set_result(message)
            return
        for subscription in list(self.subscriptions):
            if matches(subscription.subject, to):
                _call(subscription.callback, message)

    def lose(self, back_in_s: float) -> None:
        """The connection breaks; it is there again after `back_in_s` seconds."""
        if self.is_closed or not self.is_connected:
            return
        self._server.log(f"{self.name} disconnected for {back_in_s:.2f} s")
        self.is_connected = False
        self._cut_at[self.epoch] = self._loop.time() + self._server.weather.latency()
        self._loop.call_later(back_in_s, self._reconnect)

    def _reconnect(self) -> None:
        if self.is_closed:
            return
        if self._server.down:
            self._loop.call_later(0.1, self._reconnect)
            return
        self.epoch += 1
        self.is_connected = True
        self._there_by = self._back_by = self._loop.time()
        self.stats["reconnects"] += 1


def _give_up(answer: asyncio.Future[Msg]) -> None:
    if not answer.done():
        answer.set_exception(NoAnswer())


def _call(callback: Callback, message: Msg) -> None:
    """Runs a callback to its end at once."""
    coroutine = cast("Any", callback(message))
    try:
        coroutine.send(None)
    except StopIteration:
        return
    raise AssertionError("a callback that waits for something; the fake cannot have that")
