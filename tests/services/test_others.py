"""Reads that do not ask the ledger: who else writes is known, and nothing stale is ever shown."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, ClassVar, cast

import pytest
from nats.aio.client import Client

from domain.commands import parse_command
from domain.identity import ConversationId
from domain.rules import CommandContext
from infra.bulk import Delivered
from infra.server import EmbeddedServer
from infra.settings import Settings
from infra.sturdy import SturdyClient
from services import others
from services.bootstrap import Process, running
from services.endpoint import Outbox
from services.homes import Homes
from services.in_use.attempt import Answer
from services.others import WORKERS, Others
from services.queries import PREFIX
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
    return process.conversations.views._epoch() is not None


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
    monkeypatch.setattr(Homes, "of", lambda *_: None)  # each carries out what comes to it
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


async def test_an_event_that_was_read_before_a_request_is_in_its_answer(
    nats_server: EmbeddedServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hearing: list[Others] = []
    start = Others.start

    async def noted(known: Others, heard: others.Heard) -> None:
        hearing.append(known)
        await start(known, heard)

    monkeypatch.setattr(Others, "start", noted)
    async with worker(nats_server, tmp_path) as one, worker(nats_server, tmp_path) as two:
        await until(lambda: sure(one) and sure(two))
        await told(one, "init", "read", user_id="ada")
        assert await shown(one, "read") == 1
        # given an event of the other's that is on its way
        nc, listening = hearing[0]._nc, hearing[0]._listening
        assert isinstance(nc, SturdyClient)
        assert listening is not None
        came: list[Delivered] = []
        take, nc._ps.takers[listening._id] = nc._ps.takers[listening._id], came.extend
        await told(two, "append", "read", role="assistant", content="from elsewhere")
        await until(lambda: bool(came) and b"from elsewhere" in came[-1].body)
        nc._ps.takers[listening._id] = take
        event = came.pop()
        take(came)  # a copy of what was written before, where that was slow
        assert await shown(one, "read") == 1
        # when it comes, and in the same read behind it a request
        size = len(event.headers)
        copy = b"HMSG %b %d %d %d\r\n%b%b\r\n" % (
            *(event.subject, listening._id, size, size + len(event.body)),
            *(event.headers, event.body),
        )
        [queries] = [sub._id for sub in nc._subs.values() if sub.subject == f"{PREFIX}>"]
        answers: asyncio.Queue[bytes] = asyncio.Queue()
        monkeypatch.setattr(Outbox, "send", lambda _outbox, _to, body: answers.put_nowait(body))
        await nc._ps.parse(copy + b"MSG convo.get.acme.read.usage %d answer 0\r\n\r\n" % queries)
        # then it is answered behind it too
        assert json.loads(await asyncio.wait_for(answers.get(), 20))["version"] == 2


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


async def test_a_batch_is_heard_of_when_its_commit_is() -> None:
    heard: list[tuple[str, bytes]] = []
    nc = RecordingClient()
    between = Others(cast("Client", nc), "live", writes=False)
    await between.start(lambda key, _, body: heard.append((key, body)))
    reconsidered = between._epoch

    def copy(subject: str, body: bytes, id: str = "", *, commit: bool = False) -> None:
        lines = f"Nats-Batch-Id: {id}\r\n" if id else ""
        if commit:
            lines += "Nats-Batch-Commit: 1\r\n"
        headers = f"NATS/1.0\r\n{lines}\r\n".encode()
        between._on_events([Delivered(subject.encode(), b"", headers, body)])

    # given a batch of which the copies come one by one, and another partition's beside it
    copy("live.0.acme.a", b"1", "b1")
    copy("live.1.acme.z", b"2")
    copy("live.0.acme.b", b"3", "b1")
    assert heard == [("acme.z", b"2")]
    # when its last one has come, then all of it is heard of, in order
    copy("live.0.acme.a", b"4", "b1", commit=True)
    assert heard[1:] == [("acme.a", b"1"), ("acme.b", b"3"), ("acme.a", b"4")]
    assert between._epoch == reconsidered
    # and one that has no end makes everything doubtful
    copy("live.0.acme.a", b"5", "b2")
    copy("live.0.acme.a", b"6")
    assert heard[4:] == [("acme.a", b"6")]
    assert between._epoch > reconsidered
    await between.stop()


class RecordingClient:
    """As much of a connection as is needed to be alone on it."""

    is_connected = True
    _server_info: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.stats = {"reconnects": 0}

    async def subscribe(self, subject: str, **_: Any) -> None:
        pass

    async def publish(self, subject: str, payload: bytes) -> None:
        pass

    async def flush(self) -> None:
        pass
