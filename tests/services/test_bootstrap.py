"""A process of the ledger: what it is made of, how it starts, and that it stops by draining."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import NoRespondersError

from infra.connection import ConnectionRefused, connect
from infra.jetstream.errors import StoreUnavailable, StreamMismatch
from infra.jetstream.topology import call
from infra.server import EmbeddedServer, free_port
from infra.settings import Settings
from services import bootstrap
from services.bootstrap import running, serve, topology
from services.commands import CommandService
from tests.infra.jetstream.rigs import connected, server_with

COMMANDS_AND_QUERIES = ("commands", "queries")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, window_size=5)


@pytest_asyncio.fixture
async def no_task_left_behind() -> AsyncIterator[None]:
    """What a test starts in this loop has ended with it."""
    before = asyncio.all_tasks()
    yield
    await asyncio.sleep(0)
    ours = {asyncio.current_task()}
    left = {task for task in asyncio.all_tasks() - before - ours if not task.done()}
    assert not left, f"left behind: {left}"


async def asked(nc: Client, subject: str, **body: Any) -> dict[str, Any]:
    message = await nc.request(subject, json.dumps(body).encode(), timeout=20)
    answer: dict[str, Any] = json.loads(message.data)
    return answer


async def appended(nc: Client, conversation: str, content: str) -> dict[str, Any]:
    subject = f"convo.cmd.acme.{conversation}.append"
    return await asked(nc, subject, role="user", content=content)


def test_the_streams_and_subjects_are_the_contracts(tmp_path: Path) -> None:
    made = topology(Settings(data_dir=tmp_path, partitions=3, replicas=3))
    config = made.events_config(2)
    assert config["name"] == "CONVO-EVENTS-2"
    assert config["subjects"] == ["convo.evt.2.*.*"]
    assert config["republish"] == {"src": "convo.evt.>", "dest": "convo.live.>"}
    assert config["num_replicas"] == 3
    assert config["max_msg_size"] == 900_000
    assert made.subject("acme.c-1") == f"convo.evt.{made.partition('acme.c-1')}.acme.c-1"
    assert made.snapshot_subject("acme.c-1").startswith("convo.snap.")


async def test_commands_and_queries_are_answered(
    nats_server: EmbeddedServer, nats_client: Client, settings: Settings
) -> None:
    async with running(settings, COMMANDS_AND_QUERIES, url=nats_server.url):
        begun = await asked(nats_client, "convo.cmd.acme.first.init", user_id="ada")
        assert begun["ok"]
        for n in range(8):
            assert (await appended(nats_client, "first", f"message {n}"))["ok"]
        told = await asked(nats_client, "convo.get.acme.first.messages")
        contents = [message["content"] for message in told["messages"]]
        assert contents == [f"message {n}" for n in range(3, 8)], "the window of the settings"
        names = {
            json.loads((await nats_client.request(f"$SRV.PING.{name}", timeout=5)).data)["name"]
            for name in ("convo-commands", "convo-queries")
        }
        assert names == {"convo-commands", "convo-queries"}


async def test_only_the_named_services_run(
    nats_server: EmbeddedServer, nats_client: Client, settings: Settings
) -> None:
    async with running(settings, ["queries"], url=nats_server.url):
        with pytest.raises(NoRespondersError):
            await asked(nats_client, "convo.cmd.acme.first.init", user_id="ada")
        told = await asked(nats_client, "convo.get.acme.nobody.state")
        assert told["error"]["code"] == "conversation_not_initialized"


@pytest.mark.usefixtures("no_task_left_behind")
async def test_leaving_drains_what_was_accepted_is_carried_out_and_answered(
    nats_server: EmbeddedServer, settings: Settings
) -> None:
    async with connected(nats_server.url) as nc:
        inbox = nc.new_inbox()
        answers: dict[str, dict[str, Any]] = {}
        first = asyncio.Event()

        async def take(message: Msg) -> None:
            answers[message.subject] = json.loads(message.data)
            first.set()

        await nc.subscribe(f"{inbox}.*", cb=take)
        async with running(settings, COMMANDS_AND_QUERIES, url=nats_server.url):
            await asked(nc, "convo.cmd.acme.drained.init", user_id="ada")
            # given hundreds of requests that the server has passed on
            for n in range(300):
                body = json.dumps({"role": "user", "content": f"message {n}"}).encode()
                await nc.publish("convo.cmd.acme.drained.append", body, reply=f"{inbox}.{n}")
                if n % 10 == 0:
                    await nc.publish("convo.get.acme.drained.state", b"", reply=f"{inbox}.get-{n}")
            await nc.flush()
            await first.wait()
            # when the process stops in the middle of them
        await nc.flush()
        # then each of them is answered, and what is said to be stored is
        assert len(answers) == 330
        assert all(answer["ok"] for answer in answers.values())
        with pytest.raises(NoRespondersError):
            await asked(nc, "convo.get.acme.drained.state")
        async with running(settings, COMMANDS_AND_QUERIES, url=nats_server.url):
            told = await asked(nc, "convo.get.acme.drained.state")
            assert told["state"]["message_count"] == 300


@pytest.mark.usefixtures("no_task_left_behind")
async def test_a_stream_that_breaks_a_promise_keeps_it_from_starting(
    tmp_path: Path, settings: Settings
) -> None:
    async with server_with(tmp_path) as url:
        async with connected(url) as nc:
            wrong = {**topology(settings).events_config(0), "deny_purge": False}
            assert "error" not in await call(nc, "STREAM.CREATE.CONVO-EVENTS-0", wrong)
        with pytest.raises(StreamMismatch, match="deny_purge: is false, has to be true"):
            async with running(settings, COMMANDS_AND_QUERIES, url=url):
                pytest.fail("it runs on a stream that can be purged")


@pytest.mark.usefixtures("no_task_left_behind")
async def test_a_server_that_is_not_there_keeps_it_from_starting(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "connect", partial(connect, within=0.3))
    with pytest.raises(ConnectionRefused):
        async with running(settings, COMMANDS_AND_QUERIES, url=f"nats://127.0.0.1:{free_port()}"):
            pytest.fail("it runs without a server")


@pytest.mark.usefixtures("no_task_left_behind")
async def test_jetstream_is_waited_for_and_not_for_ever(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bootstrap, "STORE_WITHIN_S", 0.5)
    accounts = "accounts { A { users [{ user: a, password: a }] } }\nno_auth_user: a"
    async with server_with(tmp_path, settings=accounts) as url:
        with pytest.raises(StoreUnavailable, match="JetStream"):
            async with running(settings, COMMANDS_AND_QUERIES, url=url):
                pytest.fail("it runs without JetStream")


@pytest.mark.usefixtures("no_task_left_behind")
async def test_a_service_that_cannot_start_leaves_nothing_running(
    nats_server: EmbeddedServer, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: CommandService, nc: Client) -> Any:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(CommandService, "start", fails)
    with pytest.raises(RuntimeError, match="a fault of ours"):
        async with running(settings, COMMANDS_AND_QUERIES, url=nats_server.url):
            pytest.fail("it runs without one of its services")


@pytest.mark.usefixtures("no_task_left_behind")
async def test_leaving_when_the_server_is_gone_ends_too(tmp_path: Path, settings: Settings) -> None:
    async with asyncio.timeout(60):
        async with server_with(tmp_path) as url:
            process = running(settings, COMMANDS_AND_QUERIES, url=url)
            await process.__aenter__()
        await process.__aexit__(None, None, None)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_serving_after_everything_was_answered(
    nats_server: EmbeddedServer, nats_client: Client, settings: Settings, signum: signal.Signals
) -> None:
    name = f"signalled-{signum.name.lower()}"
    serving = asyncio.ensure_future(serve(settings, COMMANDS_AND_QUERIES, url=nats_server.url))
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    await asked(nats_client, f"convo.cmd.acme.{name}.init", user_id="ada")
                    break
                except NoRespondersError:
                    await asyncio.sleep(0.01)
            told = [asyncio.ensure_future(appended(nats_client, name, f"{n}")) for n in range(50)]
            await told[0]
            os.kill(os.getpid(), signum)
            answers = await asyncio.gather(*told, return_exceptions=True)
            await serving
        for answer in answers:
            if isinstance(answer, NoRespondersError):
                continue  # it came after the subscription had ended
            assert isinstance(answer, dict)
            assert answer["ok"]
    finally:
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().remove_signal_handler(each)
