"""Reads that do not ask the ledger: who else writes is known, and nothing stale is ever shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client

from domain.commands import parse_command
from domain.conversation import CommandContext
from domain.identity import ConversationId
from infra.server import EmbeddedServer
from infra.settings import Settings
from services import others
from services.bootstrap import Process, running
from services.conversations import Answer
from services.others import WORKERS, Others
from tests.infra.jetstream.rigs import connected

WORKER = ("commands", "queries")


@pytest.fixture(autouse=True)
def _soon_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(others, "SETTLED_S", 0.2)


@contextlib.asynccontextmanager
async def worker(server: EmbeddedServer, folder: Path) -> AsyncIterator[Process]:
    async with running(Settings(data_dir=folder), WORKER, url=server.url) as process:
        yield process


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not holds():  # noqa: ASYNC110 (what it waits for has no event)
            await asyncio.sleep(0.01)


def sure(process: Process) -> bool:
    return process.conversations._epoch() is not None


def counted(process: Process, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The conversations whose last event the ledger is asked for, from now on."""
    asked: list[str] = []
    last = process.store.last

    async def counting(key: str, *, leader: bool = False) -> Any:
        asked.append(key)
        return await last(key, leader=leader)

    monkeypatch.setattr(process.store, "last", counting)
    return asked


async def told(process: Process, verb: str, conversation: str, **body: Any) -> dict[str, Any]:
    """What this very process answers to a command: not whichever of the queue group takes it."""

    answered: asyncio.Future[Answer | Exception] = asyncio.get_running_loop().create_future()
    process.conversations.execute(
        ConversationId.parse("acme", conversation),
        parse_command(verb, json.dumps(body).encode()),
        CommandContext(None),
        answered.set_result,
    )
    answer = await asyncio.wait_for(answered, 20)
    assert isinstance(answer, Answer), answer
    return {"seq": answer.seqs[-1], "version": answer.view.version}


async def shown(process: Process, conversation: str) -> int:
    """The version that this very process shows."""

    view = await process.conversations.view(ConversationId.parse("acme", conversation))
    return view.version


async def test_a_worker_that_is_alone_reads_from_memory(
    nats_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with worker(nats_server, tmp_path) as alone:
        await until(lambda: sure(alone))
        await told(alone, "init", "alone", user_id="ada")
        asked = counted(alone, monkeypatch)

        versions = []
        for _ in range(3):
            versions.append(await shown(alone, "alone"))
            await told(alone, "append", "alone", role="user", content="more")

    assert versions == [1, 3, 4]  # version 2 is its title
    assert asked == []


async def test_what_one_worker_acknowledges_any_other_shows_at_once(
    nats_server: EmbeddedServer,
    nats_client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Over NATS, which spreads the requests: most reads come to a worker that did not write."""
    async with worker(nats_server, tmp_path) as one, worker(nats_server, tmp_path) as two:
        await until(lambda: sure(one) and sure(two))
        await told(one, "init", "shared", user_id="ada")
        await told(one, "append", "shared", role="user", content="the title")
        assert await shown(one, "shared") == await shown(two, "shared") == 3
        asked = [counted(process, monkeypatch) for process in (one, two)]
        body = json.dumps({"role": "assistant", "content": "hi"}).encode()

        for _ in range(200):
            wrote = await nats_client.request("convo.cmd.acme.shared.append", body, timeout=20)
            read = await nats_client.request("convo.get.acme.shared.usage", b"", timeout=20)
            assert json.loads(read.data)["version"] == json.loads(wrote.data)["version"]

        assert asked == [[], []]
        commits = [process.store.counters[0] for process in (one, two)]
        assert all(each.plain > 0 for each in commits), "both wrote"
        assert [each.conflicts for each in commits] == [0, 0], "each knew what the other wrote"


async def test_a_worker_that_comes_is_noticed_before_it_writes(
    nats_server: EmbeddedServer, nats_client: Client, tmp_path: Path
) -> None:
    async with worker(nats_server, tmp_path) as first:
        await until(lambda: sure(first))
        await told(first, "init", "visited", user_id="ada")
        assert await shown(first, "visited") == 1
        async with worker(nats_server, tmp_path) as second:
            await told(second, "append", "visited", role="assistant", content="from elsewhere")

            assert await shown(first, "visited") == 2


async def test_a_worker_that_leaves_leaves_the_other_alone(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with worker(nats_server, tmp_path) as stays:
        async with worker(nats_server, tmp_path) as goes:
            await until(lambda: sure(stays) and sure(goes))
            await told(goes, "init", "left", user_id="ada")
        await until(lambda: sure(stays))

        assert await shown(stays, "left") == 1
        await told(stays, "append", "left", role="assistant", content="still here")
        assert await shown(stays, "left") == 2


async def test_a_connection_that_was_away_makes_everything_doubtful(
    nats_server: EmbeddedServer, tmp_path: Path
) -> None:
    async with connected(nats_server.url) as nc:
        known = Others(nc, "convo.live", writes=True)
        await known.start(lambda _key, _headers, _body: None)
        await until(lambda: known.epoch is not None)
        before = known.epoch

        await nc._process_op_err(ConnectionResetError("pulled"))

        assert known.epoch is None
        await until(lambda: known.epoch is not None)
        assert known.epoch != before
        await known.stop()


async def test_nothing_is_concluded_while_the_own_greeting_is_not_heard(
    nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(nats_server.url) as nc:
        known = Others(nc, "convo.live", writes=True)
        monkeypatch.setattr(known, "_id", "somebody")  # whose words are somebody else's to it
        said = await nc.subscribe(WORKERS)
        monkeypatch.setattr(known, "_word", lambda word: f"{word} nobody".encode())

        await known.start(lambda _key, _headers, _body: None)
        for _ in range(2):
            await said.next_msg(timeout=20)

        assert known.epoch is None
        await known.stop()
