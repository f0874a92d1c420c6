"""The ledger's streams as anybody with a NATS client sees them: nothing of the product is used."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from nats.aio.client import Client
from nats.js.errors import NotFoundError


class Stored(NamedTuple):
    """One message of a stream."""

    subject: str
    seq: int
    headers: dict[str, str]
    body: bytes


def partition_of(tokens: str, partitions: int) -> int:
    """FNV-1a-32 over the bytes of the two subject tokens, modulo the number of partitions."""
    value = 0x811C9DC5
    for byte in tokens.replace(".", "").encode():
        value = (value ^ byte) * 0x01000193 % 2**32
    return value % partitions


async def stored_events(nats: Client, tokens: str, partitions: int) -> list[Stored]:
    """Every message of a conversation, in the order of the stream."""
    partition = partition_of(tokens, partitions)
    jetstream = nats.jetstream()
    found: list[Stored] = []
    while True:
        try:
            message = await jetstream.get_msg(
                f"CONVO-EVENTS-{partition}",
                seq=found[-1].seq + 1 if found else 1,
                subject=f"convo.evt.{partition}.{tokens}",
                next=True,
            )
        except NotFoundError:
            return found
        assert message.seq is not None
        assert message.subject is not None
        found.append(
            Stored(message.subject, message.seq, message.headers or {}, message.data or b"")
        )


async def copy_events(nats: Client, source: str, target: str, partitions: int) -> None:
    """Writes a conversation's messages under another conversation's subject, byte for byte."""
    subject = f"convo.evt.{partition_of(target, partitions)}.{target}"
    for event in await stored_events(nats, source, partitions):
        kept = {name: value for name, value in event.headers.items() if name.startswith("Event-")}
        await nats.jetstream().publish(subject, event.body, headers=kept)


async def limit_stream(nats: Client, stream: str, *, max_bytes: int) -> None:
    """Has a stream take no more than that many bytes; -1 for no limit."""
    config = (await api(nats, f"STREAM.INFO.{stream}"))["config"]
    await api(nats, f"STREAM.UPDATE.{stream}", {**config, "max_bytes": max_bytes})


async def api(nats: Client, name: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
    """What JetStream's API answers, which must not be an error."""
    answer = await nats.request(f"$JS.API.{name}", json.dumps(body or {}).encode(), timeout=10)
    found: dict[str, Any] = json.loads(answer.data)
    assert "error" not in found, found["error"]
    return found
