from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from nats.errors import OutboundBufferLimitError

from infra.connection import CredentialsRefused, ServerTooOld, ServerUnreachable, connect
from infra.server import EmbeddedServer, free_port
from infra.settings import Settings

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@contextlib.asynccontextmanager
async def answering(reply: Callable[[str], bytes]) -> AsyncIterator[str]:
    """A made-up NATS server: its URL. `reply` answers each protocol line, "" for the greeting."""

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            writer.write(reply(""))
            while line := await reader.readline():
                writer.write(reply(line.decode().strip()))
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    try:
        yield f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def greeting(version: str) -> bytes:
    served = {"server_id": "x", "version": version, "max_payload": 1_048_576, "headers": True}
    return f"INFO {json.dumps(served)}\r\n".encode()


async def test_nobody_there_is_one_clear_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ServerUnreachable, match=r"\(connection refused\)\. Start it \(`convo up`"):
        await connect(
            f"nats://127.0.0.1:{free_port()}", name="test", settings=Settings(), within=0.3
        )
    assert not caplog.records


async def test_an_unusable_url_is_one_clear_error() -> None:
    with pytest.raises(ServerUnreachable, match="cannot be used"):
        await connect("nats://127.0.0.1:99999", name="test", settings=Settings(), within=0.3)


async def test_a_password_is_never_shown() -> None:
    url = f"nats://ada:secret@127.0.0.1:{free_port()}"
    with pytest.raises(ServerUnreachable) as refused:
        await connect(url, name="test", settings=Settings(), within=0.3)
    assert "secret" not in str(refused.value)


async def test_refused_credentials_are_said_at_once() -> None:
    def reply(line: str) -> bytes:
        if not line:
            return greeting("2.15.1")
        return b"-ERR 'Authorization Violation'\r\n" if line.startswith("PING") else b""

    async with answering(reply) as url:
        with pytest.raises(CredentialsRefused, match="CONVO_NATS_CREDS"):
            await connect(url, name="test", settings=Settings(), within=60)


@pytest.mark.parametrize("version", ["2.15.0", "2.14.6", "1.9.9"])
async def test_an_older_server_is_refused(version: str) -> None:
    def reply(line: str) -> bytes:
        if not line:
            return greeting(version)
        return b"PONG\r\n" if line.startswith("PING") else b""

    async with answering(reply) as url:
        with pytest.raises(ServerTooOld, match=rf"{version}; 2.15.1 or newer .* Upgrade"):
            await connect(url, name="test", settings=Settings())


async def test_it_comes_back_and_buffers_nothing(
    nats_server: EmbeddedServer,
    caplog: pytest.LogCaptureFixture,
    until: Callable[[Callable[[], bool]], Awaitable[None]],
) -> None:
    caplog.set_level(logging.INFO)
    client = await connect(nats_server.url, name="survivor", settings=Settings())
    try:
        heard = await client.subscribe("still.here")
        nats_server.kill()
        await until(lambda: not client.is_connected)
        with pytest.raises(OutboundBufferLimitError):
            await client.publish("still.here", b"while away")
        await until(lambda: client.is_connected)
        await client.publish("still.here", b"after")
        assert (await heard.next_msg(timeout=10)).data == b"after"
    finally:
        await client.close()
    lines = [
        each.getMessage() for each in caplog.records if "connection survivor" in each.getMessage()
    ]
    assert any("lost" in line for line in lines)
    assert any("back at" in line for line in lines)
    assert all("\n" not in line for line in lines)
    assert not any(each.exc_info for each in caplog.records)


async def test_a_request_under_way_may_fail_with_its_connection(
    nats_server: EmbeddedServer,
) -> None:
    hasty = await connect(nats_server.url, name="hasty", settings=Settings())
    patient = await connect(nats_server.url, name="patient", settings=Settings())
    hasty.fails_with_connection = True
    try:
        silent = await hasty.subscribe("silent")  # there is somebody, who never answers
        asked = [
            asyncio.ensure_future(client.request("silent", timeout=60))
            for client in (hasty, patient)
        ]
        for _ in asked:
            await silent.next_msg(timeout=30)
        nats_server.kill()
        with pytest.raises(ConnectionResetError, match="the connection was lost"):
            async with asyncio.timeout(30):
                await asked[0]
        assert not asked[1].done()
        asked[1].cancel()
        await asyncio.gather(*asked, return_exceptions=True)
    finally:
        await hasty.close()
        await patient.close()
