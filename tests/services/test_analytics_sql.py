"""`convo.sql` over NATS, from a process of its own under its supervisor, as `convo up` runs it."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.connection import connect
from infra.server import EmbeddedServer
from infra.settings import Settings
from infra.supervision import Child, Program, Supervisor
from services.bootstrap import running
from tests.services.rigs import answering, included

JSON = dict[str, Any]
Until = Callable[[Callable[[], bool]], Awaitable[None]]

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = sorted((ROOT / "docs/samples").glob("*.jsonl.gz"))
MORE = sorted(Path(os.environ["CONVO_TEST_DATA"]).glob("*.jsonl.gz")) if (
    "CONVO_TEST_DATA" in os.environ
) else []  # fmt: skip


@pytest_asyncio.fixture(scope="module")
async def child(nats_server: EmbeddedServer, store_dir: Path) -> AsyncIterator[Child]:
    """The analytics process, answering; it is restarted when it ends."""
    argv = (sys.executable, "-P", "-m", "services.cli", "serve", "analytics")
    environment = {
        **os.environ,
        "CONVO_DATA_DIR": str(store_dir),
        "CONVO_NATS_URL": nats_server.url,
        "CONVO_ANALYTICS_MEMORY": "300MB",
        "PYTHONPATH": str(ROOT),
    }
    supervisor = Supervisor(store_dir / "status.json")
    settings = Settings(data_dir=store_dir)
    async with running(settings, ("commands", "queries"), url=nats_server.url):
        child = supervisor.start(Program("analytics", argv, environment))
        nats = await connect(nats_server.url, name="test", settings=settings)
        await answering(nats, "convo-analytics")
        await nats.close()
        yield child
        await supervisor.stop(["analytics"], within=10, hurry=asyncio.Event())


async def request(nats: Client, sql: str, min_seq: int | None = None, **body: Any) -> Msg:
    headers = None if min_seq is None else {"Convo-Min-Seq": str(min_seq)}
    return await nats.request(
        "convo.sql", json.dumps({"sql": sql, **body}).encode(), timeout=60, headers=headers
    )


async def ask(nats: Client, sql: str, **body: Any) -> JSON:
    reply: JSON = json.loads((await request(nats, sql, **body)).data)
    return reply


async def rows(nats: Client, sql: str, **body: Any) -> list[list[Any]]:
    reply = await included(lambda: ask(nats, sql, **body))
    assert reply["ok"], reply
    found: list[list[Any]] = reply["rows"]
    return found


async def begun(nats: Client, name: str) -> int:
    await nats.request(f"convo.cmd.acme.{name}.init", b'{"user_id": "ada"}', timeout=10)
    body = b'{"role": "user", "content": "Hello"}'
    reply = await nats.request(f"convo.cmd.acme.{name}.append", body, timeout=10)
    return int(json.loads(reply.data)["seq"])


async def test_each_format_carries_rows_and_facts(child: Child, nats_client: Client) -> None:
    seq = await begun(nats_client, "formats")
    sql = "SELECT content, chars FROM messages WHERE conversation_id = 'formats'"

    await rows(nats_client, sql, min_seq=seq)
    reply = await ask(nats_client, sql)
    csv = await request(nats_client, sql, format="csv")
    arrow = await request(nats_client, sql, format="arrow")

    assert reply.keys() == {
        "ok", "columns", "rows", "row_count", "truncated", "elapsed_ms", "position",
    }  # fmt: skip
    assert reply["columns"] == [
        {"name": "content", "type": "VARCHAR"},
        {"name": "chars", "type": "BIGINT"},
    ]
    assert reply["rows"] == [["Hello", 5]]
    assert (reply["row_count"], reply["truncated"]) == (1, False)
    assert reply["position"]["0"] >= seq
    assert csv.data == b"content,chars\nHello,5\n"
    assert pa.ipc.open_stream(arrow.data).read_all().to_pydict() == {
        "content": ["Hello"],
        "chars": [5],
    }
    for message in (csv, arrow):
        assert message.headers is not None
        assert message.headers["Convo-Row-Count"] == "1"
        assert message.headers["Convo-Truncated"] == "false"
        assert json.loads(message.headers["Convo-Position"])["0"] >= seq


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"not json", "JSON"),
        (b"{}", "sql"),
        (b'{"sql": 1}', "sql"),
        (b'{"sql": "SELECT 1", "format": "xml"}', "format"),
        (b'{"sql": "SELECT 1", "max_rows": 0}', "max_rows"),
        (b'{"sql": "SELECT 1", "timeout_ms": -1}', "timeout_ms"),
        (b'{"sql": "SELECT 1", "tenant_id": ""}', "tenant_id"),
        (b'{"sql": "SELECT 1", "tenant": "acme"}', "tenant"),
        (b'{"sql": "SELECT 1; SELECT 2"}', "one statement"),
        (b'{"sql": "SELECT * FROM read_text(\'/etc/passwd\')"}', "read_text"),
        (b'{"sql": "ATTACH \'x\'"}', "only SELECT"),
        (b'{"sql": "SELECT nope FROM messages"}', "Binder Error"),
        (b'{"sql": "SELECT ?", "params": []}', "parameter"),
    ],
)
@pytest.mark.parametrize("as_format", ["json", "arrow"])
async def test_a_refusal_is_the_contracts_in_every_format(
    child: Child, nats_client: Client, body: bytes, problem: str, as_format: str
) -> None:
    if as_format == "arrow" and b'"format"' not in body and body.startswith(b'{"sql'):
        body = body[:-1] + b', "format": "arrow"}'
    message = await nats_client.request("convo.sql", body, timeout=20)

    assert message.headers is not None
    assert message.headers["Nats-Service-Error-Code"] == "400"
    error = json.loads(message.data)["error"]
    assert error["code"] == "invalid_request"
    assert problem in json.dumps(error)
    assert await rows(nats_client, "SELECT 1") == [[1]]


async def test_a_query_that_takes_too_long_is_interrupted(
    child: Child, nats_client: Client
) -> None:
    bomb = "SELECT count(*) FROM range(1000000000000) a(i) WHERE hash(i) = 7"
    reply = await ask(nats_client, bomb, timeout_ms=200)
    assert reply["error"]["code"] == "invalid_request"
    assert "timeout_ms" in reply["error"]["message"]
    assert await rows(nats_client, "SELECT 1") == [[1]]


async def test_a_query_that_ignores_its_interruption_ends_the_process_which_comes_back(
    child: Child, nats_client: Client, until: Until
) -> None:
    seq = await begun(nats_client, "before-the-end")
    await rows(nats_client, "SELECT 1", min_seq=seq)
    restarts = child.restarts
    # Each of these rows takes seconds inside one function, where DuckDB does not look.
    stubborn = "SELECT max(length(repeat('x', 2000000000 + i::INT))) FROM range(2000) r(i)"
    patient = "SELECT count(*) FROM range(1000000000000) a(i) WHERE hash(i) = 7"

    other = asyncio.create_task(ask(nats_client, patient, timeout_ms=60_000))
    reply = await ask(nats_client, stubborn, timeout_ms=300)

    for told in (reply, await other):
        assert told["error"]["code"] == "storage_unavailable"
        assert told["error"]["retryable"] is True
    await until(lambda: child.restarts == restarts + 1)
    await answering(nats_client, "convo-analytics")
    behind = await begun(nats_client, "after-the-end")
    found = await rows(nats_client, "SELECT count(*) FROM events", min_seq=behind)
    assert found == [[behind]]


async def imported(url: str, files: list[Path], prefix: str) -> None:
    """`convo import` of each file, under a tenant of the file's name."""
    for path in files:
        tenant = prefix + path.name.partition(".")[0]
        argv = ["import", str(path), "--tenant", tenant, "--nats", url]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-P", "-m", "services.cli", *argv,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=asyncio.subprocess.DEVNULL,
        )  # fmt: skip
        assert await process.wait() == 0


def counted(path: Path) -> dict[str, Any]:
    """The totals of a file, counted without anything of ours."""
    roles: Counter[str] = Counter()
    chars = conversations = 0
    tokens: Counter[str] = Counter()
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            conversation = json.loads(line)
            conversations += 1
            for message in conversation["messages"]:
                roles[message["role"]] += 1
                content = message["content"]
                if isinstance(content, list):
                    content = "".join(part.get("text", "") for part in content)
                chars += len(content or "")
            for use in conversation.get("usage", ()):
                cached = use.get("cache_read_input_tokens") or 0
                written = use.get("cache_creation_input_tokens") or 0
                tokens["prompt"] += use["input_tokens"] + cached + written
                tokens["completion"] += use["output_tokens"]
                tokens["cached"] += cached
                tokens["cache_write"] += written
                tokens["uncached"] += use["input_tokens"]
                tokens["calls"] += 1
    return {"roles": roles, "chars": chars, "conversations": conversations, "tokens": tokens}


async def check_totals(nats: Client, url: str, files: list[Path], prefix: str = "") -> None:
    await imported(url, files, prefix)
    info = await nats.request("$JS.API.STREAM.INFO.CONVO-EVENTS-0", b"{}", timeout=10)
    seq = json.loads(info.data)["state"]["last_seq"]
    await rows(nats, "SELECT 1", min_seq=seq)
    for path in files:
        tenant = prefix + path.name.partition(".")[0]
        expected = counted(path)
        roles = await rows(
            nats, "SELECT role, count(*) FROM messages GROUP BY ALL", tenant_id=tenant
        )
        assert dict(roles) == expected["roles"]
        assert await rows(nats, "SELECT sum(chars) FROM messages", tenant_id=tenant) == [
            [expected["chars"]]
        ]
        assert await rows(
            nats, "SELECT count(*), sum(message_count) FROM conversations", tenant_id=tenant
        ) == [[expected["conversations"], sum(expected["roles"].values())]]
        sums = (
            "SELECT count(*), coalesce(sum(prompt_tokens), 0), coalesce(sum(completion_tokens), 0),"
            " coalesce(sum(total_tokens), 0), coalesce(sum(uncached_tokens), 0),"
            " coalesce(sum(cached_tokens), 0), coalesce(sum(cache_write_tokens), 0) FROM usage"
        )
        of = expected["tokens"]
        assert await rows(nats, sums, tenant_id=tenant) == [
            [
                of["calls"],
                of["prompt"],
                of["completion"],
                of["prompt"] + of["completion"],
                of["uncached"],
                of["cached"],
                of["cache_write"],
            ]
        ]
        cost = (
            "SELECT (SELECT coalesce(sum(cost_usd), 0) FROM usage),"
            " (SELECT coalesce(sum(cost_usd), 0) FROM conversations)"
        )
        ((by_call, by_conversation),) = await rows(nats, cost, tenant_id=tenant)
        assert Decimal(by_call) == Decimal(by_conversation)


@pytest.mark.slow
async def test_totals_by_sql_are_those_of_the_imported_files(
    child: Child, nats_server: EmbeddedServer, nats_client: Client
) -> None:
    assert SAMPLES
    await check_totals(nats_client, nats_server.url, SAMPLES)


@pytest.mark.slow
@pytest.mark.skipif(not MORE, reason="CONVO_TEST_DATA names a folder of *.jsonl.gz to import")
@pytest.mark.timeout(600)
async def test_totals_by_sql_are_those_of_more_files(
    child: Child, nats_server: EmbeddedServer, nats_client: Client
) -> None:
    await check_totals(nats_client, nats_server.url, MORE, "more-")
