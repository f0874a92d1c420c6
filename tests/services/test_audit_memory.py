"""A conversation of 100,000 events is audited in bounded memory, in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.errors import NoRespondersError

from infra.connection import connect
from infra.jetstream.store import Store
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.bootstrap import topology
from tests.benchmarks.audit import fill

EVENTS = 100_000
GROWTH_MIB_MAX = 80
"""What may be held beyond what the first pages take: the replies on their way, and what malloc
keeps. All entries of such a replay are 250 MB of JSON."""

JSON = dict[str, Any]


Process = subprocess.Popen[bytes]


@pytest_asyncio.fixture(scope="module")
async def worker(nats_server: EmbeddedServer) -> AsyncIterator[Process]:
    """`convo serve audit`, on a ledger of one very long conversation."""
    settings = Settings()
    writing = await connect(nats_server.url, name="fill", settings=settings)
    store = await Store.open(topology(settings), writing=writing, reading=writing)
    await fill(store, EVENTS, 1)
    await store.close()
    await writing.close()
    root = Path(__file__).resolve().parents[2]
    command = ["-P", "-m", "services.cli", "serve", "audit", "--nats", nats_server.url]
    process = subprocess.Popen(  # noqa: ASYNC220 - starting it takes no time
        [sys.executable, *command], env={**os.environ, "PYTHONPATH": str(root)}
    )
    yield process
    process.terminate()
    assert process.wait(30) == 0


def memory_mib(process: Process) -> int:
    """The most that the process has held so far."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) // 1024


async def ask(nc: Client, what: str, **body: Any) -> JSON:
    answer = await nc.request(f"convo.audit.acme.c-0.{what}", json.dumps(body).encode(), timeout=60)
    reply: JSON = json.loads(answer.data)
    assert reply["ok"], reply
    return reply


@pytest.mark.slow
async def test_a_hundred_thousand_events_are_replayed_in_bounded_memory(
    worker: Process, nats_client: Client
) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                page = await ask(nats_client, "replay", limit=1_000)
                break
            except NoRespondersError:  # it is just starting
                await asyncio.sleep(0.1)
    versions = len(page["entries"])
    at_first = 0
    while "next" in page:
        page = await ask(nats_client, "replay", limit=1_000, from_version=page["next"])
        assert page["entries"][0]["version"] == versions + 1
        versions += len(page["entries"])
        if versions == 5_000:
            at_first = memory_mib(worker)
    assert versions == EVENTS
    assert page["entries"][-1]["state"]["message_count"] == EVENTS
    assert at_first > 0

    assert (await ask(nats_client, "verify"))["events"] == EVENTS
    assert (await ask(nats_client, "diff", from_version=1, to_version=EVENTS))["events"] == (
        EVENTS - 1
    )
    assert memory_mib(worker) - at_first < GROWTH_MIB_MAX
