"""The lean client and nats-py's own do the same, on the wire and in what they raise."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats import errors
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.jetstream import envelope
from infra.lean import LeanClient, _block
from infra.server import EmbeddedServer
from infra.sturdy import SturdyClient

EVENT = {
    envelope.EVENT_TYPE: "MessageAppended",
    envelope.EVENT_VERSION: "7",
    envelope.EVENT_HASH: "0" * 64,
    envelope.BATCH_ID: "batch",
}


@pytest_asyncio.fixture
async def clients(nats_server: EmbeddedServer) -> AsyncIterator[tuple[Client, Client]]:
    """The original and the lean one."""
    pair = (SturdyClient(), LeanClient())
    for client in pair:
        await client.connect(nats_server.url)
    yield pair
    for client in pair:
        await client.close()


async def received(client: Client, publish: Any) -> list[tuple[str, str, bytes, Any]]:
    """The two messages that `publish` publishes below `lean.`, as they arrive."""
    arrived: list[tuple[str, str, bytes, Any]] = []
    both = asyncio.Event()

    async def on_message(message: Msg) -> None:
        arrived.append((message.subject, message.reply, message.data, message.headers))
        if len(arrived) == 2:
            both.set()

    subscription = await client.subscribe("lean.>", cb=on_message)
    await client.flush()
    await publish(client)
    async with asyncio.timeout(10):
        await both.wait()
    await subscription.unsubscribe()
    return arrived


@pytest.mark.parametrize(
    "headers",
    [
        None,
        {},
        EVENT,
        EVENT | {envelope.EVENT_TYPE: "été: 日本 = %0A"},
        EVENT | {envelope.EVENT_TYPE: "a\r\nNats-Rollup: all"},
        EVENT | {envelope.EVENT_TYPE: "a\nb"},
        EVENT | {envelope.EVENT_TYPE: " a "},
        EVENT | {envelope.EVENT_TYPE: "\ta\t"},
        EVENT | {envelope.EVENT_TYPE: ""},
        EVENT | {"Another-Header": "x"},
        {"Another-Header": "x", "Yet-Another": "0190-ab:%20"},
        {"Another-Header": "a b "},
        {"Another-Header": "x\r\nYet-Another: y"},
        {"Another-Header": ""},
    ],
)
@pytest.mark.parametrize("body", [b"", b"{}", b"\r\n\0" * 1_000])
async def test_the_same_arrives(
    clients: tuple[Client, Client], headers: dict[str, str] | None, body: bytes
) -> None:
    async def publish(client: Client) -> None:
        await client.publish("lean.one", body, headers=headers)
        await client.publish("lean.two", body, reply="somewhere", headers=headers)

    original, lean = [await received(client, publish) for client in clients]
    assert lean == original
    assert len(lean) == 2


def test_events_and_plain_headers_are_what_it_is_quick_with() -> None:
    assert _block(EVENT) is not None
    assert _block({"Another-Header": "x"}) is not None
    assert _block({"Another-Header": "a b"}) is None
    assert _block({"Another-Header": "x\r\nYet-Another: y"}) is None


async def echo(client: Client) -> None:
    async def answer(message: Msg) -> None:
        await client.publish(message.reply, b"echo of " + message.data, headers=message.headers)

    await client.subscribe("echo", cb=answer)
    await client.flush()


async def test_requests_get_their_own_answers(clients: tuple[Client, Client]) -> None:
    original, lean = clients
    await echo(original)
    answers = await asyncio.gather(
        *(lean.request("echo", b"%d" % n, timeout=10, headers=EVENT) for n in range(300))
    )
    assert [answer.data for answer in answers] == [b"echo of %d" % n for n in range(300)]
    assert answers[0].headers == EVENT
    assert (await lean.request("echo", b"old", timeout=10, old_style=True)).data == b"echo of old"


async def test_what_goes_wrong_is_raised_alike(clients: tuple[Client, Client]) -> None:
    for client in clients:
        await client.subscribe("silence", cb=ignore)
        with pytest.raises(errors.NoRespondersError):
            await client.request("nobody", b"", timeout=10, headers=EVENT)
        with pytest.raises(errors.TimeoutError):
            await client.request("silence", b"", timeout=0.02, headers=EVENT)
        with pytest.raises(errors.MaxPayloadError):
            await client.request("silence", b"x" * 9_000_000, timeout=1, headers=EVENT)
        with pytest.raises(errors.BadSubjectError):
            await client.request("a b", b"", timeout=1, headers=EVENT)
        with pytest.raises(errors.BadHeaderError):
            await client.publish("silence", b"", headers={"a b": "x"})
        await client.close()
        with pytest.raises(errors.ConnectionClosedError):
            await client.request("silence", b"", timeout=1, headers=EVENT)


async def test_a_request_that_could_not_be_sent_leaves_nothing_behind(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    await server.start()
    client = LeanClient()
    lost = asyncio.Event()

    async def on_disconnect() -> None:
        lost.set()

    await client.connect(server.url, pending_size=0, disconnected_cb=on_disconnect)
    await server.stop()
    await lost.wait()
    for body in (b"", b"x" * 9_000_000):
        with pytest.raises(errors.Error):
            await client.request("echo", body, timeout=10, headers=EVENT)
    assert client._resp_map == {}
    with contextlib.suppress(OSError):  # its transport is gone
        await client.close()


async def test_a_request_that_is_given_up_leaves_nothing_behind(
    clients: tuple[Client, Client],
) -> None:
    original, lean = clients
    arrived = asyncio.Event()

    async def hear(_: Msg) -> None:
        arrived.set()

    await original.subscribe("silence", cb=hear)
    await original.flush()
    waiting = asyncio.ensure_future(lean.request("silence", b"", timeout=60, headers=EVENT))
    async with asyncio.timeout(10):
        await arrived.wait()
    assert len(lean._resp_map) == 1
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert lean._resp_map == {}


async def ignore(_: Msg) -> None:
    pass


async def test_headers_may_be_lines_already(clients: tuple[Client, Client]) -> None:
    lines = "".join(f"{name}: {value}\r\n" for name, value in EVENT.items())

    async def as_a_mapping(client: Client) -> None:
        await client.publish("lean.one", b"1", headers=EVENT)
        await client.publish("lean.two", b"", headers=EVENT)

    async def as_lines(client: Any) -> None:
        await client.publish("lean.one", b"1", headers=lines)
        await client.publish("lean.two", b"", headers=lines)

    async def in_one_piece(client: Any) -> None:
        await client.publish_events([("lean.one", lines, b"1"), ("lean.two", lines, b"")])
        await client.flush()

    original, lean = clients
    arrived = await received(original, as_a_mapping)
    assert await received(lean, as_lines) == arrived
    assert await received(lean, in_one_piece) == arrived


async def test_events_that_cannot_be_sent_are_refused_as_a_message_is(
    clients: tuple[Client, LeanClient],
) -> None:
    _, lean = clients
    lean.options["max_reconnect_attempts"] = 0
    await lean.close()
    with pytest.raises(errors.ConnectionClosedError):
        await lean.publish_events([("lean.one", "", b"")])
