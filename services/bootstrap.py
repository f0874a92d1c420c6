"""The composition root: what a process of the ledger is made of, and how it starts and stops.

Every service of one process shares the connections, the store and the conversations in memory.
Stopping drains: subscriptions end first, what they had taken is carried out and answered, then
the connections close.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, Any

from nats.aio.client import Client

from domain.rules import Limits
from infra.connection import connect
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.fence import Fence
from infra.jetstream.store import Store
from infra.jetstream.topology import Topology
from infra.lean import LeanClient
from infra.settings import Settings
from services.audit import AuditService
from services.commands import CommandService
from services.conversations import Conversations
from services.directory import DirectoryService
from services.endpoint import NEVER_ANSWER, Outbox
from services.health import Health
from services.notary import Notary
from services.others import Others
from services.queries import QueryService
from services.sweeper import Sweeper

if TYPE_CHECKING:
    from services.analytics import AnalyticsService

log = logging.getLogger(__name__)

CLIENTS = ("gateway", "responder")
"""Services that are clients of the others: they need a NATS server, and no store."""

SERVICES = (
    "commands",
    "queries",
    "audit",
    "notary",
    "sweeper",
    "analytics",
    "directory",
    *CLIENTS,
)
"""What `serve` can run."""

ANSWERING = ("commands", "queries", "audit", "analytics", "directory", "responder")
"""Those of them that answer requests, as NATS micro services; the others only do their work."""

FENCE = "fence"
"""Within the data directory: what was seen of each stream, see `infra.jetstream.fence`."""

LIVE = "convo.live"
"""Prefix of the events' live copies."""

STORE_WITHIN_S = 30.0
"""How long JetStream may take to be ready after the server answers (it recovers its streams)."""


def topology(settings: Settings) -> Topology:
    """The ledger's streams and subjects (contract, section 2)."""
    return Topology(
        stream="CONVO-EVENTS",
        prefix="convo.evt",
        live_prefix=LIVE,
        snapshot_stream="CONVO-SNAPSHOTS",
        snapshot_prefix="convo.snap",
        partitions=settings.partitions,
        replicas=settings.replicas,
        originator_tokens=2,
        snapshot_bytes_max=4_000_000,
    )


class Process:
    """The services of one process, running; see `running`."""

    def __init__(
        self,
        store: Store,
        conversations: Conversations,
        outbox: Outbox,
        settings: Settings,
        reading: Client,
        *,
        fence: Fence,
    ) -> None:
        self.store = store
        self.fence = fence
        self.health = Health(fence, store)
        self.conversations = conversations
        self.settings = settings
        self.commands = CommandService(conversations, outbox, self.health)
        self.queries = QueryService(conversations, outbox, fence)
        self.audit = AuditService(store, reading, outbox, window_size=settings.window_size)
        self.notary = Notary(store.topology, reading, settings)
        self.sweeper = Sweeper(settings, store.topology, reading)


@contextlib.asynccontextmanager
async def running(
    settings: Settings, services: Sequence[str], *, url: str
) -> AsyncIterator[Process]:
    """Runs the named services of `SERVICES` against the server at `url`, inside the block.

    Leaving the block drains. Raises ConnectionRefused, StreamMismatch, LedgerWentBack or
    StoreUnavailable when they cannot start.
    """
    name = "convo-" + "-".join(services)
    async with contextlib.AsyncExitStack() as stack:
        serving = await connect(url, name=name, settings=settings)
        serving.never_answer = NEVER_ANSWER
        stack.push_async_callback(serving.close)
        writing = await connect(url, name=f"{name}-write", settings=settings)
        writing.fails_with_connection = True  # whoever appends reads back, and is there sooner
        stack.push_async_callback(writing.close)
        reading = await connect(url, name=f"{name}-read", settings=settings)
        stack.push_async_callback(reading.close)
        ledger = topology(settings)
        fence = Fence(reading, settings.data_dir / FENCE, ledger.events_configs())
        store = await _open(ledger, fence, writing, reading)
        await fence.start()
        stack.push_async_callback(fence.close)
        stack.push_async_callback(store.close)
        others = Others(serving, LIVE, writes="commands" in services)
        conversations = Conversations(
            store,
            limits=Limits(settings.max_content_bytes, settings.messages_per_minute),
            window_size=settings.window_size,
            cache_bytes=settings.cache_bytes,
            epoch=lambda: others.epoch,
        )
        outbox = Outbox(writing)
        process = Process(store, conversations, outbox, settings, reading, fence=fence)
        directory = DirectoryService(settings, store.topology, outbox)
        analytics: AnalyticsService | None = None
        try:
            if "commands" in services or "queries" in services:
                await others.start(conversations.heard)
            if "commands" in services:
                await process.health.start(reading)
                await process.commands.start(serving)
            if "queries" in services:
                await process.queries.start(serving)
            if "audit" in services:
                await process.audit.start(serving)
            if "notary" in services:
                await process.notary.start()
            if "sweeper" in services:
                await process.sweeper.start()
            if "analytics" in services:
                from services.analytics import AnalyticsService as Analytics  # noqa: PLC0415 (DuckDB)

                analytics = Analytics(settings, store.topology, outbox)
                await analytics.start(serving, reading)
            if "directory" in services:
                await directory.start(serving, reading)
            yield process
        finally:
            await process.sweeper.close()
            await others.stop()
            await _drain(serving, process.commands)
            await process.queries.idle()
            await process.audit.idle()
            await process.notary.close()
            await directory.close()
            if analytics is not None:
                await analytics.close()
            await conversations.close()
            await others.say_bye(writing)
            await process.commands.idle()
            await outbox.close()


async def _drain(serving: Client, commands: CommandService) -> None:
    """Ends the subscriptions, and returns once what they brought is taken."""
    await commands.leave()
    if serving.is_connected:
        await serving.drain()


async def _open(topology: Topology, fence: Fence, writing: LeanClient, reading: Client) -> Store:
    give_up_at = asyncio.get_running_loop().time() + STORE_WITHIN_S
    while True:
        try:
            await fence.check()
            store = await Store.open(topology, writing=writing, reading=reading)
            fence.acknowledged = store.acknowledged
            return store
        except StoreUnavailable:
            if asyncio.get_running_loop().time() > give_up_at:
                raise
            await asyncio.sleep(0.2)


async def serve(settings: Settings, services: Sequence[str], *, url: str) -> None:
    """Runs the named services until SIGINT or SIGTERM, then drains. Raises as `running` does, and
    LedgerWentBack or StreamMismatch when that comes to be true meanwhile."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        stopped = asyncio.ensure_future(stop.wait())
        ends: set[asyncio.Future[Any]] = {stopped}
        if of_the_store := [each for each in services if each not in CLIENTS]:
            process = await stack.enter_async_context(running(settings, of_the_store, url=url))
            ends.add(process.fence.broken)
        if "gateway" in services:
            from services.gateway.serving import running as gateway  # noqa: PLC0415 (FastAPI)

            await stack.enter_async_context(gateway(settings, url=url))
        if "responder" in services:
            from services.responder import running as responder  # noqa: PLC0415 (openai)

            await stack.enter_async_context(responder(settings, url=url))
        log.info("serving %s", ", ".join(services))
        tune_garbage_collection()
        await asyncio.wait(ends, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        for end in ends - {stopped}:
            if end.done():
                raise end.result()
        log.info("stopping: answering what was accepted")


def tune_garbage_collection() -> None:
    """Commands make many objects and hardly any cycles: at the default thresholds a fifth of a
    worker's time goes into looking for them."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
