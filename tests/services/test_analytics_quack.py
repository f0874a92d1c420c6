"""Any DuckDB client attaches the tables by quack, reads while they are written, never writes."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest_asyncio
from nats.aio.client import Client

from infra.server import EmbeddedServer, free_port
from infra.settings import Settings
from services.bootstrap import running
from tests.services.rigs import included

CLIENT = Path(__file__).with_name("attaching_client.py")
TOKEN = "quack quack quack"


@pytest_asyncio.fixture(scope="module")
async def uri(nats_server: EmbeddedServer, store_dir: Path) -> AsyncIterator[str]:
    settings = Settings(data_dir=store_dir, quack_port=free_port(), quack_token=TOKEN)
    async with running(settings, ("commands", "analytics"), url=nats_server.url):
        yield f"quack:127.0.0.1:{settings.quack_port}"


async def as_client(uri: str, *statements: str, token: str = TOKEN) -> list[Any]:
    """What a DuckDB client in another process is told: ATTACH first, then each statement."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        str(CLIENT),
        uri,
        token,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    output, _ = await process.communicate("".join(f"{each}\n" for each in statements).encode())
    return [json.loads(line) for line in output.splitlines()]


async def appended(nats: Client, content: str) -> int:
    await nats.request("convo.cmd.acme.quack.init", b'{"user_id": "ada"}', timeout=10)
    body = json.dumps({"role": "user", "content": content}).encode()
    reply = json.loads((await nats.request("convo.cmd.acme.quack.append", body, timeout=10)).data)
    seq = int(reply["seq"])
    await asked(nats, "SELECT 1", seq)
    return seq


async def asked(nats: Client, sql: str, seq: int) -> list[Any]:
    async def ask() -> dict[str, Any]:
        body, headers = json.dumps({"sql": sql}).encode(), {"Convo-Min-Seq": str(seq)}
        message = await nats.request("convo.sql", body, timeout=20, headers=headers)
        reply: dict[str, Any] = json.loads(message.data)
        return reply

    rows: list[Any] = (await included(ask))["rows"]
    return rows


async def test_a_client_counts_rows_while_writes_go_on(uri: str, nats_client: Client) -> None:
    first = await appended(nats_client, "before")
    enough = asyncio.Event()
    writing = asyncio.create_task(keep_appending(enough, nats_client))
    try:
        count = "SELECT count(*) FROM ledger.events"
        attached, *counts, views = await as_client(
            uri, *[count] * 30, "SELECT count(*) FROM ledger.active_conversations"
        )
    finally:
        enough.set()
        await writing
    assert attached == []
    found = [rows[0][0] for rows in counts]
    assert found[0] >= first
    assert found == sorted(found)
    assert views == [[1]]


async def keep_appending(enough: asyncio.Event, nats: Client) -> None:
    number = 0
    while not enough.is_set():
        await appended(nats, f"message {number}")
        number += 1


async def test_a_client_cannot_write_nor_reach_beyond_the_tables(
    uri: str, nats_client: Client
) -> None:
    seq = await appended(nats_client, "safe")
    remote = "FROM quack_query_by_name('ledger', '{}')"
    tried = [
        "INSERT INTO ledger.tracking VALUES ('x', 1)",
        "CREATE TABLE ledger.mine AS SELECT 1",
        "DROP TABLE ledger.events",
        "DELETE FROM ledger.events",
        "UPDATE ledger.events SET type = 'x'",
        remote.format("DELETE FROM events"),
        remote.format("SELECT 1; DELETE FROM events"),
        remote.format("UPDATE messages SET content = 1"),
        remote.format("CREATE OR REPLACE MACRO convo_quack_may_read(a, b) AS true"),
        remote.format("SET memory_limit = 1"),
        remote.format("ATTACH ''/tmp/x.duckdb''"),
        remote.format("COPY events TO ''/tmp/stolen.csv''"),
        remote.format("CHECKPOINT"),
        remote.format("FROM read_text(''/etc/hostname'')"),
        remote.format("FROM ''/etc/hostname''"),
        remote.format("FROM quack_server_list()"),
        remote.format("FROM quack_stop(''x'')"),
        remote.format("FROM query(''SELECT 1'')"),
        remote.format("SELECT sleep_ms(100000)"),
        remote.format("FROM duckdb_secrets()"),
    ]

    attached, *answers, after = await as_client(
        uri, *tried, f"SELECT count(*) FROM ledger.events WHERE seq <= {seq}"
    )

    assert attached == []
    for statement, answer in zip(tried, answers, strict=True):
        assert isinstance(answer, dict), statement
    assert after == [[seq]]
    assert await asked(nats_client, "SELECT count(*) FROM tracking", seq) == [[1]]


async def test_a_client_without_the_token_is_not_let_in(uri: str) -> None:
    attached, counted = await as_client(
        uri, "SELECT count(*) FROM ledger.events", token="another token"
    )
    assert "Authentication failed" in attached["error"]
    assert "error" in counted
