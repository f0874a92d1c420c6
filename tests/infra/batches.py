"""Atomic batches as any client writes them, on a server whose files can be looked at."""

from __future__ import annotations

import json
from pathlib import Path

from nats.aio.client import Client

from infra.connection import connect
from infra.jetstream.topology import ensure
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.bootstrap import topology

STREAM = "CONVO-EVENTS-0"


def stream_folder(data_dir: Path) -> Path:
    """Where nats-server keeps the events stream."""
    return data_dir / f"nats/jetstream/jetstream/$G/streams/{STREAM}"


async def connected(server: EmbeddedServer) -> Client:
    """A connection to a server that has the ledger's streams."""
    client = await connect(server.url, name="test", settings=Settings())
    await ensure(client, topology(Settings()))
    return client


async def write_batch(client: Client, id: str, events: int, size: int = 10) -> int:
    """Writes an atomic batch of so many events, each of a subject of its own; returns the stream
    sequence of the last one."""
    for place in range(1, events):
        await client.publish(f"convo.evt.0.t.c{place}", bytes(size), headers=_at(id, place))
    commit = {**_at(id, events), "Nats-Batch-Commit": "1"}
    subject = f"convo.evt.0.t.c{events}"
    answer = await client.request(subject, bytes(size), headers=commit, timeout=10)
    told = json.loads(answer.data)
    assert told["count"] == events
    return int(told["seq"])


async def begin_batch(client: Client, id: str) -> None:
    """Writes the first event of one, which waits for more."""
    await client.request("convo.evt.0.t.begun", b"{}", headers=_at(id, 1), timeout=10)


def _at(id: str, place: int) -> dict[str, str]:
    return {"Nats-Batch-Id": id, "Nats-Batch-Sequence": str(place)}
