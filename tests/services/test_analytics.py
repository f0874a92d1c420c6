"""The projector against a real server: exactly once, resumed, stopped by what it cannot read."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from domain.events import EVENT_CLASSES, ConversationEvent
from infra.jetstream.envelope import pack
from infra.server import EmbeddedServer
from infra.settings import Settings
from projections.analytics import view
from projections.analytics.comparison import digests
from projections.analytics.view import DuckDBDatastore
from services.analytics import FILE
from services.bootstrap import Process, running
from tests.services.rigs import answering, included

JSON = dict[str, Any]
Until = Callable[[Callable[[], bool]], Awaitable[None]]
ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("CONVO_TEST_KILLS", "0"))
"""Rounds of the long test, which runs only where this is set."""


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

    async def do(self, conversation: str, verb: str, **body: Any) -> JSON:
        reply = await self.ask(f"convo.cmd.acme.{conversation}.{verb}", **body)
        assert reply["ok"], reply
        return reply

    async def rows(self, sql: str, min_seq: int | None = None, **body: Any) -> list[list[Any]]:
        reply = await included(lambda: self.ask("convo.sql", min_seq, sql=sql, **body))
        assert reply["ok"], reply
        rows: list[list[Any]] = reply["rows"]
        return rows

    async def stats(self) -> JSON:
        reply = await self.ask("$SRV.STATS.convo-analytics")
        data: JSON = reply["endpoints"][0]["data"]
        return data

    async def stopped(self) -> JSON:
        """The projector's state once it has stopped by itself."""
        async with asyncio.timeout(20):
            while (stats := await self.stats())["state"] != "stopped":  # noqa: ASYNC110 (remote)
                await asyncio.sleep(0.01)
        return stats

    async def head(self) -> int:
        reply = await self.ask("$JS.API.STREAM.INFO.CONVO-EVENTS-0")
        return int(reply["state"]["last_seq"])


@pytest.fixture
async def ledger(nats_server: EmbeddedServer, nats_client: Client) -> AsyncIterator[Ledger]:
    """Commands are answered; analytics run where a test starts them."""
    async with running(Settings(), ("commands",), url=nats_server.url) as process:
        yield Ledger(nats_client, process)


@asynccontextmanager
async def analytics(server: EmbeddedServer, directory: Path) -> AsyncIterator[None]:
    async with running(Settings(data_dir=directory), ("analytics",), url=server.url):
        yield


def in_file(directory: Path) -> dict[str, str]:
    """The digests of the tables that a process has left behind."""
    datastore = DuckDBDatastore(directory / FILE)
    try:
        return digests(datastore.cursor())
    finally:
        datastore.close()


async def life(ledger: Ledger, name: str) -> int:
    """One conversation with something of everything; the sequence of its last event."""
    await ledger.do(name, "init", user_id="ada", title="Plans", context={"a": 1})
    await ledger.do(name, "append", role="user", content="Where to? 北京")
    await ledger.do(name, "append", role="assistant", content=[{"type": "text", "text": "Home."}])
    await ledger.do(name, "usage", prompt_tokens=1000, completion_tokens=100, model="gpt-4o")
    await ledger.do(name, "reset")
    await ledger.do(name, "update", user_id="grace", context={"a": None, "b": 2})
    await ledger.do(name, "append", role="user", content="Again")
    reply = await ledger.do(
        name, "usage", prompt_tokens=5, completion_tokens=1, model="unknown-9", cost_usd="0.25"
    )
    return int(reply["seq"])


async def test_what_was_acknowledged_is_in_the_tables(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with analytics(nats_server, tmp_path):
        seq = await life(ledger, "c-1")

        rows = await ledger.rows(
            "SELECT user_id, title, version, message_count, sessions, total_tokens, cost_usd, "
            "context FROM conversations WHERE conversation_id = 'c-1'",
            min_seq=seq,
        )

        assert rows == [["grace", "Plans", 8, 3, 2, 1106, "0.253500000", '{"b":2}']]
        said = "SELECT role, content, chars, session FROM messages ORDER BY seq"
        assert await ledger.rows(said) == [
            ["user", "Where to? 北京", 12, 1],
            ["assistant", '[{"type":"text","text":"Home."}]', 5, 1],
            ["user", "Again", 5, 2],
        ]
        used = "SELECT session, cost_source, cost_usd FROM usage ORDER BY seq"
        assert await ledger.rows(used) == [
            [1, "priced", "0.003500000"],
            [2, "recorded", "0.250000000"],
        ]
        assert (await ledger.stats())["state"] == "following"


async def test_once_nothing_is_waiting_the_log_is_put_into_the_file(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(view, "SHORT_WAL_BYTES", 0)
    used = "SELECT count(*) FROM usage WHERE conversation_id = 'c-log'"
    log = tmp_path / f"{FILE}.wal"
    async with analytics(nats_server, tmp_path):
        seq = await life(ledger, "c-log")
        assert await ledger.rows(used, min_seq=seq) == [[2]]

        async with asyncio.timeout(20):
            while log.exists() and log.stat().st_size:  # noqa: ASYNC110 (DuckDB tells nobody)
                await asyncio.sleep(0.01)

        assert await ledger.rows(used) == [[2]]


async def test_a_projector_that_starts_again_gives_the_tables_of_one_that_never_stopped(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    for part in range(3):
        async with analytics(nats_server, tmp_path / "stopped"):
            for number in range(4):
                seq = await life(ledger, f"restarts-{part}-{number}")
            await ledger.do("restarts", "init", user_id="ada")  # goes on in the next part
            await ledger.do("restarts", "reset")
            await ledger.do("restarts", "append", role="user", content=f"part {part}")
            seq = await ledger.head()
            await ledger.rows("SELECT 1", min_seq=seq)

    async with analytics(nats_server, tmp_path / "clean"):
        await ledger.rows("SELECT 1", min_seq=seq)
        sessions = await ledger.rows(
            "SELECT session FROM messages WHERE conversation_id = 'restarts' ORDER BY seq"
        )

    assert sessions == [[2], [3], [4]]
    assert in_file(tmp_path / "stopped") == in_file(tmp_path / "clean")


async def test_an_event_that_is_not_known_stops_the_projector_in_front_of_it_until_an_upgrade(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    seq = await life(ledger, "future")
    store = ledger.process.store
    last = await store.last("acme.future")
    assert last is not None
    body = json.dumps(
        {
            "type": "MessagePinned",
            "schema": 1,
            "tenant_id": "acme",
            "conversation_id": "future",
            "version": 9,
            "time": "2026-11-21T09:00:00.000000Z",
            "actor": None,
            "command_id": "c",
            "verb": "pin",
            "data": {},
        }
    ).encode()
    await store.append([pack(store.tail("acme.future", last), "MessagePinned", 9, body)])
    behind = await life(ledger, "after-the-future")

    async with analytics(nats_server, tmp_path):
        await ledger.rows("SELECT 1", min_seq=seq)
        assert await ledger.rows("SELECT max(seq) FROM events") == [[seq]]
        stats = await ledger.stopped()
        assert "MessagePinned" in stats["reason"]
        assert "upgrade this process" in stats["reason"]
        assert f"sequence {seq + 1}" in stats["reason"]

    class MessagePinned(ConversationEvent):
        TOPIC = "MessagePinned"

    async with analytics(nats_server, tmp_path):
        await ledger.rows("SELECT 1", min_seq=behind)
        assert await ledger.rows("SELECT max(seq) FROM events") == [[behind]]
        types = "SELECT type FROM events WHERE conversation_id = 'future' ORDER BY seq DESC LIMIT 1"
        assert await ledger.rows(types) == [["MessagePinned"]]
        assert (await ledger.stats())["state"] == "following"
    assert MessagePinned.TOPIC in EVENT_CLASSES  # from here on this module's ledger needs it


async def test_tables_of_another_ledger_are_not_gone_on_with(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with analytics(nats_server, tmp_path):
        seq = await life(ledger, "other-ledger")
        await ledger.rows("SELECT 1", min_seq=seq)
    datastore = DuckDBDatastore(tmp_path / FILE)
    datastore.cursor().execute("UPDATE events SET hash = 'another' WHERE seq = ?", [seq])
    datastore.close()

    async with analytics(nats_server, tmp_path):
        stats = await ledger.stopped()

        assert "another event" in stats["reason"]
        assert "convo rebuild analytics" in stats["reason"]


async def test_a_file_that_another_process_has_is_one_clear_error(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    (tmp_path / FILE).parent.mkdir()
    (tmp_path / FILE).write_bytes(b"no database" * 1000)

    ended = await asyncio.to_thread(
        subprocess.run,
        [*serve(nats_server)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "the analytics tables cannot be opened" in last
    assert "built anew" in last
    assert "Traceback" not in ended.stderr


async def test_a_file_of_an_older_schema_that_cannot_be_mended_is_built_anew(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with analytics(nats_server, tmp_path):
        seq = await life(ledger, "older")
        await ledger.rows("SELECT 1", min_seq=seq)
    datastore = DuckDBDatastore(tmp_path / FILE)
    datastore.cursor().execute("DELETE FROM schema_migrations WHERE number > 1")
    datastore.cursor().execute("DELETE FROM messages")
    datastore.close()
    (tmp_path / FILE).with_suffix(".1.old").touch()  # kept by an upgrade before

    async with analytics(nats_server, tmp_path):
        said = "SELECT count(*) FROM messages WHERE conversation_id = 'older'"
        assert await ledger.rows(said, min_seq=seq) == [[3]]
        assert (await ledger.stats())["state"] == "following"
    kept = [path.suffix for path in (tmp_path / FILE).parent.iterdir() if path.name != FILE.name]
    assert kept == [".old"]


async def rebuilt(ledger: Ledger, *, verify: bool, **only: str) -> JSON:
    """The result of a rebuild, behind its progress."""
    inbox = ledger.nats.new_inbox()
    answers = await ledger.nats.subscribe(inbox)
    body = json.dumps({"verify": verify, **only}).encode()
    await ledger.nats.publish("convo.analytics.rebuild", body, reply=inbox)
    while True:
        reply: JSON = json.loads((await answers.next_msg(timeout=20)).data)
        if "progress" not in reply:
            await answers.unsubscribe()
            return reply
        assert reply["progress"].keys() == {"done", "total", "events_per_second", "seconds_left"}


async def test_a_rebuild_while_writes_go_on_gives_the_same_tables_and_takes_their_place(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with analytics(nats_server, tmp_path):
        for number in range(5):
            await life(ledger, f"rebuilt-{number}")
        enough = asyncio.Event()
        writing = asyncio.create_task(import_until(enough, ledger, "rebuilding"))
        try:
            verified = await rebuilt(ledger, verify=True)
            exchanged = await rebuilt(ledger, verify=False)
            again = await rebuilt(ledger, verify=True)
        finally:
            enough.set()
            await writing
        assert (verified["same"], verified["exchanged"]) == (True, False)
        assert (exchanged["same"], exchanged["exchanged"]) == (True, True)
        assert again["same"] is True
        head = await ledger.head()
        assert await ledger.rows("SELECT count(*) FROM events", min_seq=head) == [[head]]
    assert [path.name for path in (tmp_path / FILE).parent.iterdir()] == [FILE.name]


async def test_a_rebuild_says_where_the_live_tables_differ_and_mends_them(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with analytics(nats_server, tmp_path):
        seq = await life(ledger, "differing")
        await ledger.rows("SELECT 1", min_seq=seq)
    datastore = DuckDBDatastore(tmp_path / FILE)
    datastore.cursor().execute(
        "UPDATE messages SET content = 'x' WHERE conversation_id = 'differing' AND version = 2"
    )
    datastore.cursor().execute("DELETE FROM usage WHERE seq = ?", [seq])
    datastore.close()

    async with analytics(nats_server, tmp_path):
        found = await rebuilt(ledger, verify=True)
        mended = await rebuilt(ledger, verify=False)
        again = await rebuilt(ledger, verify=True)

    assert found["same"] is False
    place = {"tenant_id": "acme", "conversation_id": "differing"}
    assert found["differences"]["usage"] == [
        place | {"version": 8, "field": "", "live": "no such row", "rebuilt": "a row"}
    ]
    [of_message] = found["differences"]["messages"]
    assert of_message == place | {
        "version": 2,
        "field": "content",
        "live": "x",
        "rebuilt": of_message["rebuilt"],
    }
    assert (mended["same"], mended["exchanged"]) == (False, True)
    assert again["same"] is True


async def whole_life(ledger: Ledger, name: str) -> int:
    """Everything that changes rows that are there already; the sequence of the last event."""
    await life(ledger, name)
    texts = ["What", " is", " said"]
    reply = (await ledger.do(name, "reply.start"))["message_id"]
    await ledger.do(name, "reply.chunk", message_id=reply, index=0, texts=texts)
    await ledger.do(name, "reply.finish", message_id=reply)
    said = await ledger.do(name, "append", role="user", content="secret")
    await ledger.do(name, "redact", message_id=said["message_id"])
    await ledger.do(name, "edit", message_id=reply, content="What was said")
    return int((await ledger.do(name, "close"))["seq"])


async def test_one_conversation_is_compared_with_its_events(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with analytics(nats_server, tmp_path):
        await whole_life(ledger, "honest")
        await whole_life(ledger, "erased")
        await ledger.do("erased", "erase")
        seq = await whole_life(ledger, "changed")
        await ledger.rows("SELECT 1", min_seq=seq)
    datastore = DuckDBDatastore(tmp_path / FILE)
    writing = datastore.cursor()
    writing.execute("UPDATE conversations SET title = 'x' WHERE conversation_id = 'changed'")
    writing.execute("DELETE FROM events WHERE conversation_id = 'changed' AND version = 3")
    writing.execute("INSERT INTO usage SELECT * FROM usage WHERE conversation_id = 'changed'")
    datastore.close()

    async with running(Settings(data_dir=tmp_path), ("analytics", "queries"), url=nats_server.url):
        of = {
            name: await rebuilt(ledger, verify=True, tenant_id="acme", conversation_id=name)
            for name in ("honest", "erased", "changed", "nobody")
        }
        refused = await ledger.ask("convo.analytics.rebuild", conversation_id="changed")
        told = await told_by_convo(nats_server, "acme/changed")
        agreeing = await told_by_convo(nats_server, "acme/honest")

    assert {name: found["same"] for name, found in of.items()} == {
        "honest": True,
        "erased": True,
        "changed": False,
        "nobody": True,
    }
    assert of["honest"]["events"] == 15
    assert refused["error"]["code"] == "invalid_request"
    assert [path.name for path in (tmp_path / FILE).parent.iterdir()] == [FILE.name]
    differences = {
        (each["source"], each["version"], each["field"]): (each["expected"], each["found"])
        for each in told["differences"]
    }
    assert told["valid"] is False
    assert differences == {
        ("analytics.conversations", 15, "title"): ("Plans", "x"),
        ("analytics.events", 3, "row"): ("a row", "no such row"),
        ("analytics.usage", 4, "row"): ("a row", "the row twice"),
        ("analytics.usage", 8, "row"): ("a row", "the row twice"),
    }
    assert {each["conversation"] for each in told["differences"]} == {"acme/changed"}
    assert (agreeing["valid"], agreeing["differences"]) == (True, [])


async def told_by_convo(server: EmbeddedServer, name: str) -> JSON:
    """What `convo verify NAME --projections --json` prints."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "services.cli", "verify", name, "--projections", "--json"),
        *("--nats", server.url),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
    )
    printed, _ = await process.communicate()
    told: JSON = json.loads(printed)
    assert process.returncode == (0 if told["valid"] else 1)
    return told


def serve(server: EmbeddedServer) -> list[str]:
    return [sys.executable, "-P", "-m", "services.cli", "serve", "analytics", "--nats", server.url]


def environment(directory: Path) -> dict[str, str]:
    return {**os.environ, "CONVO_DATA_DIR": str(directory), "PYTHONPATH": str(ROOT)}


async def killed_at_random(
    ledger: Ledger, server: EmbeddedServer, tmp_path: Path, rounds: int
) -> None:
    """Kills the projector again and again during an import, then compares with a clean rebuild."""
    seed = random.randrange(2**32)
    print(f"seed {seed}")  # noqa: T201 (a failure can be repeated)
    chance = random.Random(seed)
    enough = asyncio.Event()
    importing = asyncio.create_task(import_until(enough, ledger, "killed"))
    ends: list[int] = []
    try:
        for _ in range(rounds):
            process = await asyncio.create_subprocess_exec(
                *serve(server), env=environment(tmp_path / "killed")
            )
            if chance.random() < 0.8:  # else while it starts
                await answering(ledger.nats, "convo-analytics")
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            process.send_signal(signal.SIGKILL)
            ends.append(await process.wait())
    finally:
        enough.set()  # not cancelled: nats-py swallows a cancellation now and then
        await importing
    assert set(ends) == {-signal.SIGKILL}

    head = await ledger.head()
    for directory in ("killed", "clean"):
        async with analytics(server, tmp_path / directory):
            await ledger.rows("SELECT 1", min_seq=head)
    assert in_file(tmp_path / "killed") == in_file(tmp_path / "clean")


async def import_until(enough: asyncio.Event, ledger: Ledger, prefix: str) -> None:
    number = 0
    while not enough.is_set():
        name = f"{prefix}-{number % 40}"
        await ledger.do(name, "init", user_id=f"user {number % 7}")
        messages = [{"role": "user", "content": f"message {number} {i}"} for i in range(50)]
        await ledger.do(name, "import", messages=messages)
        await ledger.do(name, "usage", prompt_tokens=number, completion_tokens=1, model="gpt-4o")
        if number % 5 == 0:
            await ledger.do(name, "reset")
        number += 1
        await asyncio.sleep(0.03)


async def test_a_projector_killed_at_random_moments_leaves_the_tables_of_a_clean_rebuild(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    await killed_at_random(ledger, nats_server, tmp_path, rounds=4)


@pytest.mark.slow
@pytest.mark.skipif(not KILLS, reason="CONVO_TEST_KILLS=50 kills it that often")
@pytest.mark.timeout(600)
async def test_a_projector_killed_many_times(
    ledger: Ledger, nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    await killed_at_random(ledger, nats_server, tmp_path, rounds=KILLS)
