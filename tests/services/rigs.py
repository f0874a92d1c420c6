"""What the tests of the services stand on: conversations over a store, and commands to them."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout
from nats.micro.request import Request
from nats.nuid import NUID
from pydantic_core import to_json

from domain.commands import parse_command
from domain.conversation import Receipt
from domain.identity import ConversationId
from domain.rules import CommandContext, Limits
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology
from services.conversations import Conversations
from services.in_use.attempt import Answer
from tests.infra.jetstream.rigs import opened

ADAS = ConversationId.parse("acme", "ada's first chat")


def ledger(partitions: int = 1) -> Topology:
    """A ledger's streams and subjects, under names that no other test has."""
    name = NUID().next().decode()
    return Topology(
        stream=name,
        prefix=f"{name}.evt",
        live_prefix=f"{name}.live",
        snapshot_stream=f"{name}-SNAPSHOTS",
        snapshot_prefix=f"{name}.snap",
        partitions=partitions,
        originator_tokens=2,
        snapshot_bytes_max=4_000_000,
    )


async def answering(nats: Client, service: str) -> None:
    """Returns once the service (such as "convo-analytics") answers a ping."""
    async with asyncio.timeout(60):
        while True:
            try:
                await nats.request(f"$SRV.PING.{service}", timeout=1)
                return
            except (NoRespondersError, NatsTimeout):
                await asyncio.sleep(0.02)


async def included(ask: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    """The answer, asked for again while tables lack what it must include.

    The service waits a few seconds; a machine that is slow takes longer to fill them.
    """
    async with asyncio.timeout(90):
        while True:
            reply = await ask()
            if reply["ok"] or reply["error"]["code"] != "storage_unavailable":
                return reply


@contextlib.asynccontextmanager
async def conversations_on(
    store: Store,
    *,
    limits: Limits | None = None,
    window_size: int = 50,
    cache_bytes: int = 100_000_000,
) -> AsyncIterator[Conversations]:
    """Conversations over a store; closed, and found at rest, at the end."""
    conversations = Conversations(
        store, limits=limits or Limits(), window_size=window_size, cache_bytes=cache_bytes
    )
    yield conversations
    async with asyncio.timeout(20):
        await conversations.close()
    assert conversations.decider._open == 0


def hears_everything(conversations: Conversations, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on, in one epoch, nothing is stored that is not heard of."""
    for part in (conversations.loader, conversations.views):
        monkeypatch.setattr(part, "_epoch", lambda: 1)


@contextlib.asynccontextmanager
async def process_on(url: str, topology: Topology, **settings: Any) -> AsyncIterator[Conversations]:
    """Conversations as a process of their own has them: with their own store and connections."""
    async with (
        opened(url, topology, request_timeout=1.0) as store,
        conversations_on(store, **settings) as conversations,
    ):
        yield conversations


@dataclass(frozen=True)
class Told:
    """An answer, as it was when it was given (its view goes on changing)."""

    events: list[tuple[str, int]]
    seqs: list[int]
    receipt: Receipt | None
    version: int
    seq: int
    state: dict[str, Any]


def sending(
    conversations: Conversations,
    verb: str,
    body: dict[str, Any],
    *,
    id: ConversationId = ADAS,
    command_id: str | None = None,
    expected: int | None = None,
) -> asyncio.Future[Told]:
    """Executes a command now; what is answered comes later, a refusal as an exception."""
    told: asyncio.Future[Told] = asyncio.get_running_loop().create_future()

    def respond(answer: Answer | Exception) -> None:
        assert not told.done() or told.cancelled(), "answered twice"
        if told.cancelled():
            return
        if isinstance(answer, Exception):
            told.set_exception(answer)
            return
        view = answer.view
        told.set_result(
            Told(
                [(event.TOPIC, event.originator_version) for event in answer.events],
                list(answer.seqs),
                answer.receipt,
                view.version,
                view.seq,
                view.state(),
            )
        )

    command = parse_command(verb, to_json(body))
    conversations.execute(id, command, CommandContext(command_id, None, expected), respond)
    return told


def init(conversations: Conversations, **more: Any) -> asyncio.Future[Told]:
    return sending(conversations, "init", {"user_id": "ada"}, **more)


def append(
    conversations: Conversations, content: str = "hello", role: str = "assistant", **more: Any
) -> asyncio.Future[Told]:
    return sending(conversations, "append", {"role": role, "content": content}, **more)


def contents(state: dict[str, Any]) -> list[Any]:
    """What was said in a state's window, oldest first."""
    return [message["content"] for message in state["recent_messages"]]


async def turns(number: int = 20) -> None:
    """Lets the loop go on for a while."""
    for _ in range(number):
        await asyncio.sleep(0)


class Answers:
    """A connection that keeps what is replied."""

    max_payload = 8_000_000
    is_connected = False

    def __init__(self) -> None:
        self.given: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    async def publish(self, subject: str, body: bytes, headers: dict[str, str] | None) -> None:
        self.given.put_nowait(json.loads(body))


def request(subject: str, body: bytes = b"", headers: dict[str, str] | None = None) -> Request:
    """A request as a service takes it."""
    asked = SimpleNamespace(
        subject=subject, data=body, headers=headers or {}, _msg=SimpleNamespace(reply="inbox")
    )
    return cast("Request", asked)
