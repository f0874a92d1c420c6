"""The client reads what nats-py's own reads, whatever is in a message."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.connection import connect
from infra.server import EmbeddedServer
from infra.settings import Settings
from infra.sturdy import MALFORMED, SturdyClient

USUAL = b"NATS/1.0\r\nEvent-Type: MessageAppended\r\nEvent-Version: 7\r\nEmpty: \r\n\r\n"

pieces = st.sampled_from(
    [
        *(b"NATS/1.0", b"NATS/1.0\r\n", b"\r\n\r\n", b"N: v\r\n", b"Name", b"a.b", b"503"),
        *(b"\r\n", b"\r", b"\n", b":", b": ", b" ", b"\t", b"\x00", b"\x1c", b"\xc3\xa9", b"\xff"),
    ]
)


def read_by(client: Client, block: bytes) -> dict[str, str] | None:
    """What a client makes of a block; MALFORMED where that would end its connection."""
    reading = client._process_headers(block)
    try:
        reading.send(None)  # it waits for nothing
    except StopIteration as done:
        found: dict[str, str] | None = done.value
        return found
    except (IndexError, ValueError):
        return {MALFORMED: "1"}
    raise AssertionError("it waits for something")


@given(st.lists(pieces, max_size=12).map(b"".join))
@example(USUAL)
@example(USUAL[:-2])
@example(USUAL + b"\r\n")
@example(USUAL.replace(b"\r\n\r\n", b"\r\nEvent-Version: 8\r\n\r\n"))
@example(b"NATS/1.0 503\r\n\r\n")
@example(b"NATS/1.0 100 Idle Heartbeat\r\nNats-Last-Consumer: 1\r\n\r\n")
def test_header_blocks_are_read_as_nats_py_reads_them(block: bytes) -> None:
    if block.startswith(b"NATS/1.0") or not block:
        assert read_by(SturdyClient(), block) == read_by(Client(), block)


async def test_a_flush_that_was_given_up_ends_no_connection(nats_client: Client) -> None:
    flushes = [asyncio.ensure_future(nats_client.flush()) for _ in range(3)]
    while len(nats_client._pongs) < 3:  # noqa: ASYNC110 - nats-py tells nobody
        await asyncio.sleep(0)
    for each in flushes[:2]:
        each.cancel()
    await asyncio.gather(*flushes, return_exceptions=True)

    await nats_client.flush(timeout=5)

    assert nats_client._reading_task is not None
    assert not nats_client._reading_task.done()
    assert nats_client.stats["reconnects"] == 0


async def test_a_flush_comes_behind_what_was_sent_before_it(nats_client: Client) -> None:
    transport: Any = nats_client._transport
    sent = bytearray()

    class Watched:
        """Notes what is written, in its order."""

        def __getattr__(self, name: str) -> object:
            return getattr(transport, name)

        def write(self, data: bytes) -> None:
            sent.extend(data)
            transport.write(data)

        def writelines(self, lines: list[bytes]) -> None:
            sent.extend(b"".join(lines))
            transport.writelines(lines)

    listening = await nats_client.subscribe("here")
    await nats_client.flush()
    nats_client._transport = Watched()  # type: ignore[assignment]  # (it does what is asked of it)
    await nats_client.publish("there", b"word")
    await listening.drain()  # type: ignore[no-untyped-call]  # (nats-py's)
    assert sent.index(b"PUB there") < sent.index(b"UNSUB") < sent.index(b"PING")


async def test_what_comes_until_a_connection_is_drained_is_handed_over(
    nats_server: EmbeddedServer, nats_client: Client
) -> None:
    taken = sent = 0
    enough = False

    async def take(_: Msg) -> None:
        nonlocal taken
        taken += 1

    async def send() -> None:
        nonlocal sent
        while not enough:
            await nats_client.publish("drained", b"")
            sent += 1
            await nats_client.flush()

    for _ in range(20):
        draining = await connect(nats_server.url, name="draining", settings=Settings())
        kept = await connect(nats_server.url, name="kept", settings=Settings())
        for each in (draining, kept):
            await each.subscribe("drained", queue="q", cb=take)
            await each.flush()
        taken = sent = 0
        enough = False
        sending = asyncio.ensure_future(send())
        while taken < 20:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0)
        await draining.drain()
        enough = True
        await sending
        await kept.drain()
        assert taken == sent
