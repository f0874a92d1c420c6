"""Writers that keep account of what they were told, and the audit of a stream against it."""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import random
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import nats
from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

REQUEST_TIMEOUT_S = 0.8
"""Short: a request that a kill has swallowed must not hold its writer up."""

TURN = 3
"""Messages in a turn."""


class Place(NamedTuple):
    """Where an event is: as a reply told it, or as the stream has it."""

    version: int
    seq: int


@dataclass(slots=True)
class Deed:
    """One command of a writer: what it says, and where it was told that its events are.

    `told` None: nobody answered, it may have happened or not.
    """

    writer: int
    tokens: str
    content: str
    events: int
    told: list[Place] | None = None
    tries: int = 0


class Event(NamedTuple):
    """One event of the stream."""

    seq: int
    tokens: str
    digest: str
    body: bytes

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(slots=True)
class Load:
    """Writers on conversations of their own and on one that they share, until `stop`."""

    url: str
    writers: int
    rng: random.Random
    deeds: list[Deed] = field(default_factory=list)
    acknowledged: int = 0
    unanswered: int = 0
    _stopping: bool = False
    _tasks: list[asyncio.Task[None]] = field(default_factory=list)
    _clients: list[Client] = field(default_factory=list)
    _wake: asyncio.Condition = field(default_factory=asyncio.Condition)

    async def start(self) -> None:
        """Begins the conversations and the writing."""
        for writer in range(self.writers):
            client = await nats.connect(
                self.url,
                max_reconnect_attempts=-1,
                reconnect_time_wait=0.05,
                pending_size=0,
                error_cb=_quiet,
            )
            self._clients.append(client)
            for tokens in {f"faults.own-{writer}", "faults.shared"}:
                body = b'{"user_id": "ada", "title": "Faults"}'
                answer = await client.request(f"convo.cmd.{tokens}.init", body, timeout=30)
                assert json.loads(answer.data)["ok"], answer.data
        self._tasks = [
            asyncio.ensure_future(self._write(writer, client))
            for writer, client in enumerate(self._clients)
        ]

    async def stop(self) -> None:
        """Returns once every writer has heard of its last request, or given it up."""
        self._stopping = True
        await asyncio.gather(*self._tasks)
        for client in self._clients:
            await client.close()

    async def further(self, acknowledgements: int) -> None:
        """Returns once that many more commands were acknowledged."""
        goal = self.acknowledged + acknowledgements
        async with asyncio.timeout(60), self._wake:
            await self._wake.wait_for(lambda: self.acknowledged >= goal)

    async def _write(self, writer: int, client: Client) -> None:
        for number in itertools.count():
            if self._stopping:
                return
            tokens = "faults.shared" if self.rng.random() < 0.3 else f"faults.own-{writer}"
            events = TURN if self.rng.random() < 0.3 else 1
            deed = Deed(writer, tokens, f"{writer}:{number}", events)
            self.deeds.append(deed)
            insists = self.rng.random() < 0.5
            while not await self._try(client, deed) and insists and not self._stopping:
                pass

    async def _try(self, client: Client, deed: Deed) -> bool:
        """Sends the command (again, under the same id); says whether it was acknowledged."""
        deed.tries += 1
        message = {"role": "tool", "content": deed.content}
        body: dict[str, Any] = {**message, "command_id": deed.content}
        verb = "append"
        if deed.events > 1:
            body = {"messages": [message] * TURN, "command_id": deed.content}
            verb = "turn"
        subject = f"convo.cmd.{deed.tokens}.{verb}"
        try:
            answer = await client.request(
                subject, json.dumps(body).encode(), timeout=REQUEST_TIMEOUT_S
            )
        except NatsTimeoutError:
            self.unanswered += 1
            return False
        except (NatsError, OSError):
            await asyncio.sleep(0.02)  # nobody there at this moment
            return False
        reply = json.loads(answer.data)
        if not reply["ok"]:
            code = reply["error"]["code"]
            assert code in {"storage_unavailable", "outcome_unknown"}, reply
            return False
        deed.told = [Place(event["version"], event["seq"]) for event in reply["events"]]
        async with self._wake:
            self.acknowledged += 1
            self._wake.notify_all()
        return True


def problems(deeds: Iterable[Deed], events: Iterable[Event]) -> list[str]:
    """What the stream holds against what the writers were told; empty when all is well.

    Every acknowledged event is there once, where it was said to be; what was not acknowledged is
    there at most once, and whole; versions have no gap; each writer's acknowledged events are in
    the order it sent them; the hash chains hold.
    """
    found: list[str] = []
    held: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for tokens, own in _by_conversation(events).items():
        digest = bytes(32)
        for version, event in enumerate(own, start=1):
            content = event.json()
            digest = hashlib.sha256(digest + event.body).digest()
            if content["version"] != version:
                found.append(f"gap: {tokens} has version {content['version']} as event {version}")
            if event.digest != digest.hex():
                found.append(f"chain: {tokens} version {version}")
            if content["type"] == "MessageAppended":
                place = Place(content["version"], event.seq)
                held[tokens, content["data"]["content"]].append(place)
    last_of_writer: dict[tuple[int, str], int] = {}
    for deed in deeds:
        places = held.pop((deed.tokens, deed.content), [])
        name = f"{deed.tokens} {deed.content}"
        if len(places) > deed.events:
            found.append(f"doubled: {name} at {places}")
        elif 0 < len(places) < deed.events:
            found.append(f"torn: {name}, {len(places)} of {deed.events} at {places}")
        if deed.told is None:
            continue
        if not places:
            found.append(f"missing: {name}, told {deed.told}")
        elif places != deed.told:
            found.append(f"elsewhere: {name}, told {deed.told}, found {places}")
        else:
            key = (deed.writer, deed.tokens)
            if places[0].version < last_of_writer.get(key, 0):
                found.append(f"out of order: {name} at {places}")
            last_of_writer[key] = places[-1].version
    found += [f"strange: {tokens} {content}" for tokens, content in held]
    return found


def _by_conversation(events: Iterable[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[event.tokens].append(event)
    return found


async def read_stream(url: str, stream: str = "CONVO-EVENTS-0") -> list[Event]:
    """Every event of a stream, in its order; empty when there is no such stream."""
    client = await nats.connect(url)
    try:
        jetstream = client.jetstream()
        try:
            last = (await jetstream.stream_info(stream)).state.last_seq
        except NotFoundError:
            return []
        found: list[Event] = []
        consumer = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
        subscription = await jetstream.subscribe(
            "convo.evt.>", stream=stream, ordered_consumer=True, config=consumer
        )
        while not found or found[-1].seq < last:
            message = await subscription.next_msg(timeout=30)
            assert message.headers is not None
            tokens = message.subject.split(".", 3)[3]
            seq = message.metadata.sequence.stream
            found.append(Event(seq, tokens, message.headers["Event-Hash"], message.data))
        return found
    finally:
        await client.close()


async def _quiet(error: Exception) -> None:
    """Connections are lost here on purpose."""
