"""A store without room: refused clearly, shown to the operator, and over by itself.

With a small disk of its own where that can be had; everywhere with a stream that is full.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
from nats.aio.client import Client
from nats.errors import Error as NatsError

from infra.jetstream.topology import call
from infra.server import EmbeddedServer
from infra.settings import Settings
from services import health
from services.bootstrap import Process, running
from services.cli.inspection import inspect
from services.health import SUBJECT
from tests.faults.disk import MB, Disk, why_not
from tests.faults.rig import Ledger

JSON = dict[str, Any]
Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def asked(nc: Client, subject: str, body: JSON | None = None) -> JSON:
    reply = await nc.request(subject, json.dumps(body or {}).encode(), timeout=40)
    answer: JSON = json.loads(reply.data)
    return answer


async def say(nc: Client, content: str = "hello") -> JSON:
    return await asked(nc, "convo.cmd.default.c.append", {"role": "assistant", "content": content})


async def says(nc: Client) -> JSON:
    """What the command service tells of its state."""
    told: JSON = (await asked(nc, "$SRV.STATS.convo-commands"))["endpoints"][0]["data"]
    return told


@pytest.fixture
async def process(nats_server: EmbeddedServer, nats_client: Client) -> Any:
    async with running(Settings(), ("commands", "queries"), url=nats_server.url) as process:
        await asked(nats_client, "convo.cmd.default.c.init", {"user_id": "ada"})
        yield process


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was heard counts until something else is heard, however long a test takes."""
    monkeypatch.setattr(health, "HELD_S", 1_000.0)


async def told(nc: Client, process: Process, until: Until, state: str) -> None:
    """Has the process hear how the store is."""
    await nc.publish(SUBJECT, json.dumps({"state": state, "reason": "no room: make some"}).encode())
    await until(lambda: process.health._heard.state == state)


@pytest.mark.usefixtures("held")
async def test_while_there_is_no_room_writes_are_refused_at_once_and_reads_go_on(
    process: Process, nats_client: Client, until: Until
) -> None:
    await told(nats_client, process, until, "read_only")

    refused = await say(nats_client)
    shown = await asked(nats_client, "convo.get.default.c.messages")

    assert refused["error"]["code"] == "storage_unavailable"
    assert refused["error"]["message"] == "no room: make some"
    assert refused["error"]["retryable"] is True
    assert shown["ok"] is True
    assert await says(nats_client) == {"state": "read_only", "reason": "no room: make some"}

    await told(nats_client, process, until, "ok")
    assert (await say(nats_client))["ok"] is True
    assert await says(nats_client) == {"state": "ok"}


async def test_who_hears_nothing_any_more_takes_writes_again(
    process: Process, nats_client: Client, until: Until
) -> None:
    await told(nats_client, process, until, "wedged")
    process.health._heard_until = time.monotonic()  # the time has passed

    assert (await say(nats_client))["ok"] is True
    assert await says(nats_client) == {"state": "ok"}


async def test_what_is_no_word_on_the_store_changes_nothing(
    process: Process, nats_client: Client
) -> None:
    for junk in (b"", b"{", b"[]", b'{"state": "sideways"}', b'{"state": ["ok"]}'):
        await nats_client.publish(SUBJECT, junk)

    assert (await say(nats_client))["ok"] is True


async def test_a_full_stream_refuses_says_so_and_takes_writes_again_when_it_may_be_larger(
    process: Process, nats_client: Client, nats_server: EmbeddedServer
) -> None:
    info = await call(nats_client, "STREAM.INFO.CONVO-EVENTS-0", {})
    small = {**info["config"], "max_bytes": info["state"]["bytes"] + 100_000}
    assert "error" not in await call(nats_client, "STREAM.UPDATE.CONVO-EVENTS-0", small)

    answers = [await say(nats_client, "x" * 10_000) for _ in range(15)]
    settings = Settings(nats_url=nats_server.url)
    found = await inspect(settings, 5.0)

    refused = answers[-1]
    assert answers[0]["ok"] is True
    assert refused["error"]["code"] == "storage_unavailable"
    assert "full" in refused["error"]["message"]
    assert (await says(nats_client))["state"] == "read_only"
    assert "writes are refused (read_only)" in (found.problem or "")

    await call(nats_client, "STREAM.UPDATE.CONVO-EVENTS-0", info["config"])
    assert (await say(nats_client))["ok"] is True
    assert (await inspect(settings, 5.0)).problem is None


async def test_a_store_that_is_full_refuses_cleanly_and_takes_writes_again_when_it_may_be_larger(
    tmp_path: Path,
) -> None:
    """As an operator gives it more: the limit is removed, and settled anew at the next start."""
    limit = tmp_path / "data" / "nats" / "max_file_store"
    limit.parent.mkdir(parents=True)
    limit.write_text("1000000\n")
    ledger = Ledger(tmp_path / "ledger", data_dir=tmp_path / "data")
    await ledger.start()
    nc = await nats.connect(ledger.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
    try:
        await asked(nc, "convo.cmd.default.c.init", {"user_id": "ada"})
        answers = [await say(nc, "x" * 50_000) for _ in range(20)]
        shown = await asked(nc, "convo.get.default.c.messages")
        await ledger.stop()
        limit.unlink()
        await ledger.start()
        again = await _until_answered(nc, ok=True)
    finally:
        await nc.close()
        await ledger.stop()

    assert answers[0]["ok"] is True
    refused = answers[-1]["error"]
    assert refused["code"] == "storage_unavailable"
    assert "the store is full" in refused["message"]
    assert "10077" in refused["message"]
    assert len(shown["messages"]) == sum(each["ok"] for each in answers)
    assert again["version"] == 2 + len(shown["messages"])


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "no loop mounts")
async def test_a_disk_that_fills_up_and_is_emptied_needs_no_person(tmp_path: Path) -> None:
    async with Disk(tmp_path, 160 * MB) as disk:
        ledger = Ledger(tmp_path / "ledger", data_dir=disk.path / "data")
        await ledger.start()
        nc = await nats.connect(ledger.url, max_reconnect_attempts=-1, reconnect_time_wait=0.1)
        try:
            await asked(nc, "convo.cmd.default.c.init", {"user_id": "ada"})
            disk.fill(leave=2 * MB)

            refused = await _until_answered(nc, ok=False)
            found = await inspect(Settings(data_dir=disk.path / "data", nats_url=ledger.url), 5.0)
            shown = await asked(nc, "convo.get.default.c.messages")
            disk.relieve()
            await _until_answered(nc, ok=True)
        finally:
            await nc.close()
            await ledger.stop()
    assert refused["error"]["code"] == "storage_unavailable"
    assert "is nearly full" in refused["error"]["message"]
    assert "writes are refused (read_only)" in (found.problem or "")
    assert shown["ok"] is True


async def _until_answered(nc: Client, *, ok: bool) -> JSON:
    """The first answer to a write that says ok, or that does not."""
    async with asyncio.timeout(60):
        while True:
            try:
                answer = await say(nc)
            except NatsError:
                answer = {"ok": None}
            if answer["ok"] is ok:
                return answer
            await asyncio.sleep(0.05)
