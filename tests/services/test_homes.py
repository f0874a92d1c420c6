"""A conversation's commands are carried out by one of the workers, and by any when that is gone."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from nats.aio.client import Client
from nats.errors import NoRespondersError
from nats.errors import TimeoutError as NatsTimeout
from nats.micro.request import Request
from nats.nuid import NUID

from infra.connection import connect
from infra.lean import LeanClient
from infra.server import EmbeddedServer
from infra.settings import Settings
from services import homes
from services.bootstrap import Process, running
from services.commands import PREFIX
from services.homes import PASSED_ON, REPLY, Homes
from services.up import SERVE

TENANT = NUID().next().decode()


@contextlib.asynccontextmanager
async def workers(server: EmbeddedServer, folder: Path, count: int) -> AsyncIterator[list[Process]]:
    """So many that know of one another."""
    async with contextlib.AsyncExitStack() as stack:
        settings = [Settings(data_dir=folder / str(number)) for number in range(count)]
        there = [
            await stack.enter_async_context(running(each, ("commands", "queries"), url=server.url))
            for each in settings
        ]
        await until(lambda: all(len(homes_of(each)._homes) == count for each in there))
        yield there


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 (what it waits for has no event)
            await asyncio.sleep(0.01)


def homes_of(worker: Process) -> Homes:
    assert worker.commands._homes is not None
    return worker.commands._homes


def carried_out(worker: Process) -> set[str]:
    """The conversations that this worker has decided a command on."""
    return {key for key, entry in worker.conversations.cache.entries.items() if entry.tail.version}


async def ask(
    nc: Client,
    conversation: str,
    verb: str,
    headers: dict[str, str] | None = None,
    timeout: float = 10,
    **body: Any,
) -> Any:
    answer = await nc.request(
        f"{PREFIX}{TENANT}.{conversation}.{verb}",
        json.dumps(body).encode(),
        timeout=timeout,
        headers=headers,
    )
    return json.loads(answer.data)


async def said(nc: Client, conversation: str, times: int) -> list[int]:
    """Begins a conversation and appends to it in turn; the versions that came of it."""
    await ask(nc, conversation, "init", user_id="ada", title="-")
    answers = [
        await ask(nc, conversation, "append", role="user", content="hello") for _ in range(times)
    ]
    return [answer["version"] for answer in answers]


async def test_each_conversation_is_written_to_by_one_worker_alone(
    nats_server: EmbeddedServer,
    nats_client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(homes, "SILENT_S", 1_000.0)  # however slow, all stay
    names = [f"shared-{number}" for number in range(48)]  # so many that each worker has some
    async with workers(nats_server, tmp_path, 3) as there:
        versions = await asyncio.gather(*(said(nats_client, name, 6) for name in names))
        shares = [carried_out(each) for each in there]
        passed_on = [homes_of(each).passed_on for each in there]

    assert versions == [[2, 3, 4, 5, 6, 7]] * len(names)
    assert all(shares)
    assert sum(map(len, shares)) == len(names)
    assert all(passed_on)


async def test_what_is_passed_on_arrives_as_it_was_sent(
    nats_server: EmbeddedServer, nats_client: Client, tmp_path: Path
) -> None:
    async with workers(nats_server, tmp_path, 2) as there:
        answers = []
        for number in range(16):
            name = f"as-sent-{number}"
            headers = {"Convo-Command-Id": f"c-{number}", "Convo-Actor": "ada", "X-Other": "a b"}
            await ask(nats_client, name, "init", headers, user_id="ada")
            answers.append(
                await ask(
                    nats_client,
                    name,
                    "append",
                    {"Convo-Expected-Version": "7"},
                    role="user",
                    content="x",
                )
            )
            events = await nats_client.request(
                f"convo.get.{TENANT}.{name}.events", b"{}", timeout=10
            )
            [begun] = json.loads(events.data)["events"]
            assert (begun["command_id"], begun["actor"]) == (f"c-{number}", "ada")
        assert sum(homes_of(each).passed_on for each in there) > 0

    assert {answer["error"]["code"] for answer in answers} == {"version_conflict"}


async def test_a_worker_that_stops_loses_no_request(
    nats_server: EmbeddedServer, nats_client: Client, tmp_path: Path
) -> None:
    names = [f"stopping-{number}" for number in range(8)]
    done = asyncio.Event()

    async def write(name: str) -> int:
        await ask(nats_client, name, "init", user_id="ada", title="-")
        version = 1
        while not done.is_set():
            version += 1
            answer = await ask(nats_client, name, "append", role="user", content="x")
            assert answer["version"] == version
        return version

    async with workers(nats_server, tmp_path / "a", 1) as [staying]:
        async with running(
            Settings(data_dir=tmp_path / "b"), ("commands", "queries"), url=nats_server.url
        ) as leaving:
            await until(lambda: len(homes_of(staying)._homes) == 2)
            writers = [asyncio.ensure_future(write(name)) for name in names]
            await until(lambda: homes_of(staying).passed_on > 50)
            await until(lambda: homes_of(leaving).passed_on > 50)
        await until(lambda: homes_of(staying)._homes == [homes_of(staying).id])
        done.set()
        versions = await asyncio.gather(*writers)

    assert min(versions) > 1


@contextlib.asynccontextmanager
async def another_process(server: EmbeddedServer, folder: Path) -> AsyncIterator[int]:
    """The pid of a worker in a process of its own."""
    process = await asyncio.create_subprocess_exec(
        *(*SERVE, "commands", "queries"),
        env={**os.environ, "CONVO_NATS_URL": server.url, "CONVO_DATA_DIR": str(folder)},
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield process.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGCONT)
            process.kill()
        await process.wait()


async def nobody_listens(nc: Client, subject: str) -> None:
    """Returns once the server has noticed that whoever listened there is dead."""
    while True:
        try:
            await nc.request(subject, timeout=0.05)
        except NoRespondersError:
            return
        except NatsTimeout:
            continue


async def test_when_a_home_is_killed_its_commands_are_carried_out_at_once(
    nats_server: EmbeddedServer,
    nats_client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(homes, "SILENT_S", 1_000.0)  # nothing is told by silence
    names = [f"killed-{number}" for number in range(12)]
    async with (
        workers(nats_server, tmp_path / "here", 1) as [here],
        another_process(nats_server, tmp_path / "there") as there,
    ):
        await until(lambda: len(homes_of(here)._homes) == 2)
        for name in names:
            await ask(nats_client, name, "init", user_id="ada", title="-")
        before = homes_of(here).passed_on
        os.kill(there, signal.SIGKILL)
        [killed] = set(homes_of(here)._homes) - {homes_of(here).id}
        await nobody_listens(nats_client, f"{PASSED_ON}{killed}.-")
        answers = [
            await ask(nats_client, name, "append", role="user", content="x") for name in names
        ]
        assert homes_of(here).passed_on == before + 1  # the one that nobody took
        assert len(homes_of(here)._homes) == 1

    assert [answer["version"] for answer in answers] == [2] * len(names)


async def test_a_home_that_says_nothing_any_more_is_passed_over(
    nats_server: EmbeddedServer, nats_client: Client, tmp_path: Path
) -> None:
    async with (
        workers(nats_server, tmp_path / "here", 1) as [here],
        another_process(nats_server, tmp_path / "there") as there,
    ):
        await until(lambda: len(homes_of(here)._homes) == 2)
        os.kill(there, signal.SIGSTOP)
        await until(lambda: len(homes_of(here)._homes) == 1)
        os.kill(there, signal.SIGCONT)
        await until(lambda: len(homes_of(here)._homes) == 2)


async def test_what_is_passed_on_by_a_stranger_is_answered_to_no_subject_of_the_ledger(
    nats_server: EmbeddedServer, nats_client: Client, tmp_path: Path
) -> None:
    async with workers(nats_server, tmp_path, 1) as [worker]:
        heard = []
        listening = await nats_client.subscribe("convo.evt.0.evil.>")
        subject = f"{PASSED_ON}{homes_of(worker).id}.{TENANT}.evil.init"
        await nats_client.publish(
            subject, b'{"user_id":"ada"}', headers={REPLY: "convo.evt.0.evil.c"}
        )
        answer = await ask(nats_client, "evil", "init", user_id="ada")
        with contextlib.suppress(TimeoutError):
            heard.append(await listening.next_msg(timeout=0.2))

    assert answer["version"] == 1
    assert heard == []


async def test_a_worker_that_may_not_pass_anything_on_keeps_what_it_gets(
    nats_server: EmbeddedServer,
    nats_client: Client,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    publish = LeanClient.publish

    async def denied(self: LeanClient, subject: str, *args: Any, **given: Any) -> None:
        if not subject.startswith(PASSED_ON):  # the server drops it without an answer
            await publish(self, subject, *args, **given)

    monkeypatch.setattr(homes, "_TRIAL_S", 0.1)
    async with workers(nats_server, tmp_path / "here", 1) as [here]:
        monkeypatch.setattr(LeanClient, "publish", denied)
        async with workers(nats_server, tmp_path / "there", 1) as [there]:
            names = [f"kept-{number}" for number in range(8)]
            versions = await asyncio.gather(*(said(nats_client, name, 3) for name in names))
            assert homes_of(here)._homes == [homes_of(here).id]
            assert homes_of(there)._homes == [homes_of(there).id]

    assert versions == [[2, 3, 4]] * len(names)


async def test_of_what_was_passed_on_only_so_much_is_remembered(
    nats_client: Client, nats_server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: Request) -> None:
        raise AssertionError

    monkeypatch.setattr(homes, "REMEMBERED_BYTES", 50_000)
    asking = await connect(nats_server.url, name="asking", settings=Settings())
    here = Homes(nats_client, PREFIX, never)
    passed = 0

    async def take(message: Any) -> None:
        nonlocal passed
        passed += await here.pass_on("nobody", Request(message))

    await nats_client.subscribe(f"{PREFIX}>", cb=take)
    await nats_client.flush()
    for _ in range(200):
        await asking.publish(f"{PREFIX}{TENANT}.c.append", bytes(1_000))
    await until(lambda: passed == 200)
    assert 0 < here._sent_bytes <= 50_000
    assert here._sent_bytes == sum(each.size for each in here._sent.values())
    await asking.close()
