"""A connection that does to a committer what networks and servers do: it loses, delays, repeats.

It wraps a real one. `Weather` does it at random, from a seed; a test that wants one certain fault
sets `on_commit`, `on_part` or `on_api` itself.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import (
    NoRespondersError,
    OutboundBufferLimitError,
    StaleConnectionError,
)
from nats.errors import TimeoutError as NoAnswer

from infra.lean import Event
from tests.lines import as_headers

Headers = dict[str, str]


@dataclass(frozen=True)
class Call:
    """One publish or request; `send` really makes it, as often as it is called."""

    client: Client
    subject: str
    body: bytes
    headers: Headers | None
    timeout: float

    async def send(self) -> Msg:
        """Sends it and returns the server's answer."""
        return await self.client.request(
            self.subject, self.body, timeout=self.timeout, headers=self.headers
        )

    async def send_late(self) -> None:
        """Sends it, to nobody's knowledge."""
        await self.client.publish(self.subject, self.body, headers=self.headers)

    def answer(self, error: dict[str, Any] | None = None, **fields: Any) -> Msg:
        """An answer that the server never gave."""
        body = {"stream": "made up", **fields} | ({"error": error} if error else {})
        return Msg(self.client, subject="_INBOX", data=json.dumps(body).encode())


Requested = Callable[[Call], Awaitable[Msg]]
Published = Callable[[Call], Awaitable[None]]


class FaultyClient:
    """The part of `Client` that a committer uses.

    `on_commit`: a request that stores something (a plain publish, or the last of a batch);
    `on_part`: an earlier message of a batch; `on_api`: a request to JetStream's API.
    """

    def __init__(self, client: Client) -> None:
        self.client = client
        self.on_commit: Requested = Call.send
        self.on_part: Published = Call.send_late
        self.on_api: Requested = Call.send
        self.commits: list[Call] = []
        self.committing = asyncio.Event()

    @property
    def max_payload(self) -> int:
        return self.client.max_payload

    async def request(
        self,
        subject: str,
        payload: bytes = b"",
        timeout: float = 0.5,
        old_style: bool = False,
        headers: Headers | str | None = None,
    ) -> Msg:
        call = Call(self.client, subject, payload, as_headers(headers), timeout)
        if subject.startswith("$JS.API."):
            return await self.on_api(call)
        self.commits.append(call)
        self.committing.set()
        return await self.on_commit(call)

    async def publish_events(self, events: Sequence[Event]) -> None:
        for subject, lines, body in events:
            await self.on_part(Call(self.client, subject, body, as_headers(lines), 0.0))


async def lose_answer(call: Call) -> Msg:
    """It is stored; nobody hears of it."""
    await call.send()
    raise NoAnswer


async def lose(_: Call) -> Msg:
    """It never arrives, and nobody can tell."""
    raise NoAnswer


class Weather:
    """Random faults on a client, as often as `badness` (0 … 1) says, while it is `bad`."""

    def __init__(self, client: FaultyClient, random: Random, badness: float) -> None:
        self.bad = True
        self._random = random
        self._badness = badness
        self._late: set[asyncio.Task[None]] = set()
        client.on_commit = self._commit
        client.on_part = self._part
        client.on_api = self._api

    async def clear(self) -> None:
        """No faults from here on; what is still on its way has arrived."""
        self.bad = False
        while self._late:
            await asyncio.gather(*self._late)

    def _strikes(self) -> bool:
        return self.bad and self._random.random() < self._badness

    async def _commit(self, call: Call) -> Msg:
        if not self._strikes():
            return await call.send()
        match self._random.randrange(9):
            case 0:
                return await lose_answer(call)
            case 1:
                return await lose(call)
            case 2:
                self._send_later(call)
                raise NoAnswer
            case 3:
                answer = await call.send()
                await call.send_late()  # a copy; the first answer is the one that is heard
                return answer
            case 4:
                self._send_later(call)
                return await call.send()
            case 5:
                raise OutboundBufferLimitError
            case 6:
                await call.send()
                raise StaleConnectionError
            case 7:
                raise NoRespondersError
            case _:
                return call.answer({"code": 400, "err_code": 10071, "description": "read error"})

    async def _part(self, call: Call) -> None:
        # Per message: a batch has many, and most batches should arrive.
        if self._strikes() and self._random.random() < 0.02:
            match self._random.randrange(3):
                case 0:
                    return  # lost
                case 1:
                    raise OutboundBufferLimitError
                case _:
                    await call.send_late()  # twice
        await call.send_late()

    async def _api(self, call: Call) -> Msg:
        if not self._strikes():
            return await call.send()
        match self._random.randrange(3):
            case 0:
                raise NoAnswer
            case 1:
                return await lose_answer(call)
            case _:
                return call.answer({"code": 503, "err_code": 10008, "description": "no leader"})

    def _send_later(self, call: Call) -> None:
        async def send() -> None:
            await asyncio.sleep(self._random.uniform(0, 0.2))
            await call.send_late()
            await call.client.flush()

        task = asyncio.get_running_loop().create_task(send())
        self._late.add(task)
        task.add_done_callback(self._late.discard)
