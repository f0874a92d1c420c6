"""The directory against a real server: what was acknowledged is listed and found, exactly once."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from infra.server import EmbeddedServer
from infra.settings import Settings
from services import freshness
from services.bootstrap import Process, running
from services.directory import FILE, FOLDER
from services.endpoint import Outbox
from tests.services.rigs import answering, included

JSON = dict[str, Any]
ROOT = Path(__file__).resolve().parents[2]


@dataclass
class Ledger:
    nats: Client
    process: Process

    async def ask(self, subject: str, min_seq: int | None = None, **body: Any) -> JSON:
        headers = None if min_seq is None else {"Convo-Min-Seq": str(min_seq)}
        message = await self.nats.request(
            subject, json.dumps(body).encode(), timeout=20, headers=headers
        )
        reply: JSON = json.loads(message.data)
        return reply

    async def do(self, name: str, verb: str, **body: Any) -> JSON:
        reply = await self.ask(f"convo.cmd.{name}.{verb}", **body)
        assert reply["ok"], reply
        return reply

    async def listed(self, tenant: str, min_seq: int | None = None, **body: Any) -> list[str]:
        reply = await included(lambda: self.ask(f"convo.list.{tenant}", min_seq, **body))
        assert reply["ok"], reply
        return [each["conversation_id"] for each in reply["conversations"]]

    async def found(self, tenant: str, query: str, min_seq: int | None = None, **body: Any) -> Any:
        subject = f"convo.search.{tenant}"
        reply = await included(lambda: self.ask(subject, min_seq, query=query, **body))
        assert reply["ok"], reply
        return [(each["conversation_id"], each["snippet"]) for each in reply["hits"]]

    async def refused(self, subject: str, **body: Any) -> JSON:
        reply = await self.ask(subject, **body)
        assert not reply["ok"], reply
        error: JSON = reply["error"]
        return error

    async def head(self) -> int:
        reply = await self.ask("$JS.API.STREAM.INFO.CONVO-EVENTS-0")
        return int(reply["state"]["last_seq"])


@pytest.fixture
async def ledger(nats_server: EmbeddedServer, nats_client: Client) -> AsyncIterator[Ledger]:
    """Commands are answered; the directory runs where a test starts it."""
    async with running(Settings(), ("commands",), url=nats_server.url) as process:
        yield Ledger(nats_client, process)


@asynccontextmanager
async def directory(server: EmbeddedServer, data_dir: Path) -> AsyncIterator[None]:
    async with running(Settings(data_dir=data_dir), ("directory",), url=server.url):
        yield


async def test_what_was_acknowledged_is_listed_and_found(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with directory(nats_server, tmp_path):
        for number in range(20):
            await ledger.do(f"fresh.c-{number}", "init", user_id="ada")
            reply = await ledger.do(
                f"fresh.c-{number}", "append", role="user", content=f"我在北京 {number}"
            )
            seq = reply["seq"]
            assert (await ledger.listed("fresh", min_seq=seq, limit=1)) == [f"c-{number}"]
            assert await ledger.found("fresh", f"北京 {number}", min_seq=seq) == [
                (f"c-{number}", f"我在⟦北京⟧ ⟦{number}⟧")
            ]


async def test_pages_follow_one_another_by_next(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with directory(nats_server, tmp_path):
        for number in range(7):
            seq = (await ledger.do(f"paged.c-{number}", "init", user_id="ada"))["seq"]

        await ledger.listed("paged", min_seq=seq)
        page = await ledger.ask("convo.list.paged", limit=3)
        shown = page["conversations"]
        while "next" in page:
            await ledger.do("paged.c-0", "append", role="user", content="up it goes")
            page = await ledger.ask("convo.list.paged", limit=3, cursor=page["next"])
            shown += page["conversations"]

    assert [each["conversation_id"] for each in shown] == [f"c-{n}" for n in range(6, -1, -1)]


async def test_a_cursor_is_good_at_another_instance_that_is_behind(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with directory(nats_server, tmp_path / "one"):
        for number in range(4):
            seq = (await ledger.do(f"moved.c-{number}", "init", user_id="ada"))["seq"]
        await ledger.listed("moved", min_seq=seq)
        page = await ledger.ask("convo.list.moved", limit=2)
    async with directory(nats_server, tmp_path / "two"):
        assert await ledger.listed("moved", cursor=page["next"]) == ["c-1", "c-0"]


async def test_a_page_is_cut_by_bytes_and_goes_on(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with directory(nats_server, tmp_path):
        for number in range(6):
            reply = await ledger.do(f"large.c-{number}", "init", user_id="ada", title="x" * 1000)
        monkeypatch.setattr(Outbox, "reply_bytes_max", 4_096 + 3_500)
        await ledger.listed("large", min_seq=reply["seq"])
        page = await ledger.ask("convo.list.large")
        assert [each["conversation_id"] for each in page["conversations"]] == ["c-5", "c-4"]
        assert await ledger.listed("large", cursor=page["next"]) == ["c-3", "c-2"]


@pytest.mark.parametrize(
    ("subject", "body", "field"),
    [
        ("convo.list.acme", {"limit": 0}, "limit"),
        ("convo.list.acme", {"limit": "3"}, "limit"),
        ("convo.list.acme", {"status": "open"}, "status"),
        ("convo.list.acme", {"cursor": "nonsense"}, "cursor"),
        ("convo.list.acme", {"unknown": 1}, "unknown"),
        ("convo.search.acme", {}, "query"),
        ("convo.search.acme", {"query": ""}, "query"),
        ("convo.search.acme", {"query": "x", "role": "robot"}, "role"),
        ("convo.search.acme", {"query": "x", "from": "yesterday"}, "from"),
        ("convo.search.acme", {"query": "x", "limit": 101}, "limit"),
    ],
)
async def test_a_body_that_does_not_fit_is_refused_with_its_field(
    ledger: Ledger,
    nats_server: EmbeddedServer,
    tmp_path: Path,
    *,
    subject: str,
    body: JSON,
    field: str,
) -> None:
    async with directory(nats_server, tmp_path):
        error = await ledger.refused(subject, **body)
    assert error["code"] == "invalid_request"
    assert [each["field"] for each in error["details"]] == [field]


async def test_subjects_hold_one_canonical_tenant(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with directory(nats_server, tmp_path):
        for subject in ("convo.list.a.b", "convo.search.a.b", "convo.list.%61"):
            error = await ledger.refused(subject, query="x")
            assert error["code"] == "invalid_request"
        reply = await ledger.do("a%2Eb.c", "init", user_id="ada")
        assert await ledger.listed("a%2Eb", min_seq=reply["seq"]) == ["c"]


async def test_what_the_ledger_does_not_have_is_not_waited_for_without_end(
    ledger: Ledger,
    nats_server: EmbeddedServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with directory(nats_server, tmp_path):
        error = await ledger.refused("convo.list.acme", min_seq=2**40)
        assert (error["code"], error["retryable"]) == ("storage_unavailable", True)

        await ledger.do("late.c-1", "init", user_id="ada")
        monkeypatch.setattr(freshness, "MIN_SEQ_WAIT_S", 0.05)
        monkeypatch.setattr(freshness.Freshness, "_have", lambda *_: False)
        error = await ledger.refused("convo.search.late", query="x", min_seq=await ledger.head())
        assert (error["code"], error["retryable"]) == ("storage_unavailable", True)


async def test_it_is_a_micro_service_that_says_how_far_it_is(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with directory(nats_server, tmp_path):
        seq = (await ledger.do("stats.c-1", "init", user_id="ada"))["seq"]
        await ledger.listed("stats", min_seq=seq)
        info = await ledger.ask("$SRV.INFO.convo-directory")
        stats = await ledger.ask("$SRV.STATS.convo-directory")
    assert [each["name"] for each in info["endpoints"]] == ["list", "search"]
    assert stats["endpoints"][0]["data"]["state"] == "following"
    assert stats["endpoints"][0]["data"]["positions"] == {"0": await ledger.head()}


async def test_a_file_of_another_format_is_built_anew(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    seq = (await ledger.do("anew.c-1", "init", user_id="ada"))["seq"]
    async with directory(nats_server, tmp_path):
        await ledger.listed("anew", min_seq=seq)
    database = sqlite3.connect(tmp_path / FOLDER / FILE)
    database.execute("PRAGMA user_version = 1")
    database.close()

    async with directory(nats_server, tmp_path):
        assert await ledger.listed("anew", min_seq=seq) == ["c-1"]


async def test_tables_of_another_ledger_are_not_gone_on_with(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    seq = (await ledger.do("other.c-1", "init", user_id="ada"))["seq"]
    async with directory(nats_server, tmp_path):
        await ledger.listed("other", min_seq=seq)
    database = sqlite3.connect(tmp_path / FOLDER / FILE)
    with database:
        database.execute("UPDATE heads SET hash = 'another'")
    database.close()

    async with directory(nats_server, tmp_path):
        stats = await ledger.ask("$SRV.STATS.convo-directory")
    said = stats["endpoints"][0]["data"]
    assert said["state"] == "stopped"
    assert "another event" in said["reason"]
    assert str(tmp_path / FOLDER) in said["reason"]


def serve(server: EmbeddedServer) -> list[str]:
    return [sys.executable, "-P", "-m", "services.cli", "serve", "directory", "--nats", server.url]


def environment(data_dir: Path) -> dict[str, str]:
    return {**os.environ, "CONVO_DATA_DIR": str(data_dir), "PYTHONPATH": str(ROOT)}


async def test_a_file_that_is_none_of_ours_is_one_clear_error(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / FILE).write_bytes(b"no database" * 1000)

    process = await asyncio.create_subprocess_exec(
        *serve(nats_server), env=environment(tmp_path), stderr=asyncio.subprocess.PIPE
    )
    _, said = await process.communicate()

    assert process.returncode == 1
    assert b"cannot be opened" in said
    assert b"built anew" in said
    assert b"Traceback" not in said


def in_file(data_dir: Path) -> dict[str, list[Any]]:
    """Every row that a process has left behind, and every term in the index."""
    database = sqlite3.connect(data_dir / FOLDER / FILE)
    try:
        tables = ("tenants", "conversations", "activity", "messages", "heads", "tracking")
        found = {
            table: sorted(database.execute(f"SELECT * FROM {table}").fetchall(), key=repr)
            for table in tables
        }
        database.execute("CREATE VIRTUAL TABLE temp.terms USING fts5vocab(main, found, instance)")
        found["found"] = sorted(database.execute("SELECT * FROM temp.terms").fetchall())
        return found
    finally:
        database.close()


async def import_until(enough: asyncio.Event, ledger: Ledger) -> None:
    number = 0
    while not enough.is_set():
        name = f"killed.c-{number % 40}"
        await ledger.do(name, "init", user_id=f"user {number % 7}")
        messages = [{"role": "user", "content": f"message 北京 {number} {n}"} for n in range(50)]
        await ledger.do(name, "import", messages=messages)
        await ledger.do(name, "update", user_id=f"user {number % 5}")
        number += 1
        await asyncio.sleep(0.03)


async def test_a_directory_killed_at_random_moments_is_that_of_a_clean_rebuild(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (a failure can be repeated)
    chance = random.Random(seed)
    enough = asyncio.Event()
    importing = asyncio.create_task(import_until(enough, ledger))
    ends: list[int] = []
    try:
        for _ in range(4):
            process = await asyncio.create_subprocess_exec(
                *serve(nats_server), env=environment(tmp_path / "killed")
            )
            await answering(ledger.nats, "convo-directory")
            await asyncio.sleep(chance.uniform(0, 0.5))  # the moment of the kill, not a readiness
            process.send_signal(signal.SIGKILL)
            ends.append(await process.wait())
    finally:
        enough.set()  # not cancelled: nats-py swallows a cancellation now and then
        await importing
    assert set(ends) == {-signal.SIGKILL}
    found = in_file(tmp_path / "killed")
    assert found["messages"]
    assert len(found["found"]) >= len(found["messages"])

    head = await ledger.head()
    for name in ("killed", "clean"):
        async with directory(nats_server, tmp_path / name):
            await ledger.listed("killed", min_seq=head)
    assert in_file(tmp_path / "killed") == in_file(tmp_path / "clean")
