"""Writers and readers that keep account of what they were told and shown.

Each writes into a conversation of its own and into one that all share, single messages and whole
turns, often again under the same id until it is told; between that it reads what it has written.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError

from tests.faults.history import (
    COMPLETION_TOKENS,
    PROMPT_TOKENS,
    Deed,
    Place,
    Sight,
    quiet,
)

PATIENCE_S = 0.8
"""Short: a request that a kill has swallowed must not hold its writer up."""

SHARED = "faults.shared"
TURN = 3
"""Messages in a turn."""

EXPECTED_REFUSALS = frozenset({"storage_unavailable", "outcome_unknown"})
VIEWS = ("messages", "usage", "state")


@dataclass(slots=True)
class Load:
    """Writers on conversations of their own and on one that they share, until `stop`.

    `patience_s`: after that a writer gives a request up as unknown. `pace_s`: what a writer rests
    between two commands, at most. `name`: tells the conversations of several loads apart. `fresh`:
    a query sees everything that was acknowledged before it, to whomever; else it has to ask for it.
    """

    url: str
    writers: int
    rng: random.Random
    patience_s: float = PATIENCE_S
    pace_s: float = 0.02
    name: str = "own"
    fresh: bool = True
    deeds: list[Deed] = field(default_factory=list)
    sights: list[Sight] = field(default_factory=list)
    acknowledged: int = 0
    unanswered: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    odd: list[str] = field(default_factory=list)
    """Answers that nobody should get, whatever fails."""
    longest_outage_s: float = 0.0
    """The longest time without any acknowledgement."""
    slowest_s: float = 0.0
    """The slowest call, to its answer or to being given up."""
    _last_s: float = 0.0
    _stopping: bool = False
    _newest: dict[str, Place] = field(default_factory=dict)
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _clients: list[Client] = field(default_factory=list)
    _wake: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def start(self) -> None:
        """Begins the conversations and the writing."""
        for writer in range(self.writers):
            client = await nats.connect(
                self.url.split(","),
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.05,
                pending_size=0,
                connect_timeout=1,
                ping_interval=1 if self.patience_s < 5 else 120,  # the impatient hang up on a pause
                error_cb=quiet,
            )
            self._clients.append(client)
            for tokens in (f"faults.{self.name}-{writer}", SHARED):
                await self._begin(client, tokens)
        self._last_s = time.monotonic()
        self._tasks = [
            asyncio.ensure_future(self._write(writer, client))
            for writer, client in enumerate(self._clients)
        ]

    async def _begin(self, client: Client, tokens: str) -> None:
        body = b'{"user_id": "ada", "title": "Faults"}'
        async with asyncio.timeout(60):
            while True:
                try:
                    answer = await client.request(f"convo.cmd.{tokens}.init", body, timeout=10)
                except NatsError:
                    await asyncio.sleep(0.1)
                    continue
                if json.loads(answer.data)["ok"]:
                    return

    async def stop(self) -> None:
        """Returns once every writer has heard of its last request, or given it up."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        for client in self._clients:
            await client.close()

    async def through(self, rounds: int, strike: Callable[[int], Awaitable[None]]) -> None:
        """Writes while it is struck so many times, each time until something is acknowledged again.

        `strike` gets the number of the round, from 0 on.
        """
        await self.start()
        for number in range(rounds):
            await self.further(self.rng.randrange(10, 60))
            await strike(number)
            await self.further(1)
        await self.further(20)
        await self.stop()

    async def further(self, acknowledgements: int, *, within: float = 60) -> None:
        """Returns once that many more commands were acknowledged."""
        goal = self.acknowledged + acknowledgements
        async with asyncio.timeout(within), self._wake:
            await self._wake.wait_for(lambda: self.acknowledged >= goal)

    async def _write(self, writer: int, client: Client) -> None:
        for number in itertools.count():
            if self._stopping:
                return
            tokens = SHARED if self.rng.random() < 0.3 else f"faults.{self.name}-{writer}"
            events = TURN if self.rng.random() < 0.3 else 1
            deed = Deed(f"{self.name}-{writer}", tokens, f"{self.name} {writer}:{number}", events)
            self.deeds.append(deed)
            insists = self.rng.random() < 0.5
            while not await self._try(client, deed) and insists and not self._stopping:
                pass
            if self.rng.random() < 0.2:
                await self._look(client, tokens)
            await asyncio.sleep(self.rng.random() * self.pace_s)

    async def _try(self, client: Client, deed: Deed) -> bool:
        """Sends the command (again, under the same id); says whether it was acknowledged."""
        deed.tries += 1
        message = {"role": "tool", "content": deed.content}
        body: dict[str, Any] = {**message, "command_id": deed.content}
        verb = "append"
        if deed.events > 1:
            usage = {"prompt_tokens": PROMPT_TOKENS, "completion_tokens": COMPLETION_TOKENS}
            body = {"messages": [message] * TURN, "usage": usage, "command_id": deed.content}
            verb = "turn"
        reply = await self._ask(client, f"convo.cmd.{deed.tokens}.{verb}", body)
        if reply is None:
            return False
        deed.told = [
            Place(event["version"], event["seq"])
            for event in reply["events"]
            if event["type"] == "MessageAppended"
        ]
        newest = self._newest.get(deed.tokens, deed.told[-1])
        self._newest[deed.tokens] = max(newest, deed.told[-1])
        async with self._wake:
            self.acknowledged += 1
            now = time.monotonic()
            self.longest_outage_s = max(self.longest_outage_s, now - self._last_s)
            self._last_s = now
            self._wake.notify_all()
        return True

    async def _look(self, client: Client, tokens: str) -> None:
        """Reads one view; it has to be as new as what anybody was told before."""
        newest = self._newest.get(tokens, Place(0, 0))
        view = self.rng.choice(VIEWS)
        headers = {"Convo-Min-Seq": str(newest.seq)}
        if self.fresh and self.rng.random() < 0.7:
            headers = {}
        reply = await self._ask(client, f"convo.get.{tokens}.{view}", {}, headers)
        if reply is None:
            return
        self.sights.append(sight_of(tokens, view, reply, at_least=newest.version))

    async def _ask(
        self,
        client: Client,
        subject: str,
        body: dict[str, Any],
        headers: dict[str, str] | None = None,
    ) -> dict[str, Any] | None:
        """One call, which ends as ok (the reply), refused or unknown (None)."""
        started = time.monotonic()
        try:
            answer = await client.request(
                subject, json.dumps(body).encode(), timeout=self.patience_s, headers=headers
            )
        except NatsTimeoutError:
            self.unanswered += 1
            return None
        except (NatsError, OSError):
            self.refused["nobody there"] += 1
            await asyncio.sleep(0.02)
            return None
        finally:
            self.slowest_s = max(self.slowest_s, time.monotonic() - started)
        reply: dict[str, Any] = json.loads(answer.data)
        if reply["ok"]:
            return reply
        code = reply["error"]["code"]
        self.refused[code] += 1
        # No command here expects a version. Workers that were in each other's way for as long as a
        # command is decided again say so, and that it may be sent again.
        crowded_out = code == "version_conflict" and reply["error"]["retryable"]
        if code not in EXPECTED_REFUSALS and not crowded_out:
            self.odd.append(f"{code}: {subject}: {reply['error']['message'][:200]}")
        await asyncio.sleep(0.02)
        return None


def sight_of(tokens: str, view: str, reply: dict[str, Any], *, at_least: int) -> Sight:
    """What a query's reply shows of the conversation."""
    window = tokens_used = None
    if view == "messages":
        window = [message["content"] for message in reply["messages"]]
    elif view == "usage":
        tokens_used = reply["lifetime"]["total"]
    else:
        window = [message["content"] for message in reply["state"]["recent_messages"]]
        tokens_used = reply["state"]["lifetime_tokens"]["total"]
    return Sight(tokens, reply["version"], at_least, window, tokens_used)
