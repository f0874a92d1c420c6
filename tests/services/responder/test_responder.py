"""The responder: every answer ends, once, and what was said of it stays."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import nats
import pytest
import pytest_asyncio

from infra.server import EmbeddedServer
from infra.settings import Settings
from services.bootstrap import running
from services.responder import running as responding
from services.responder.answer import Answer
from services.responder.ledger import Conversation as Talk
from tests.acceptance.client import Conversation, Ledger, refused, request
from tests.model_server import CACHED, REASONING, ModelServer, said

REPOSITORY = Path(__file__).resolve().parents[3]


class Rig(Ledger):
    """A ledger with a model, and the responders that a test starts."""

    def __init__(self, connection: Any, url: str, model: ModelServer) -> None:
        super().__init__(connection)
        self.url = url
        self.model = model

    def responder(self, **settings: Any) -> contextlib.AbstractAsyncContextManager[None]:
        """A responder of the test's own that asks the model server."""
        found = {"model_url": self.model.url, "model": "test-model", **settings}
        return responding(Settings(**found), url=self.url)

    async def asked(self, text: str, **init: Any) -> Asked:
        """A conversation in which the user has said this, and an answer is on its way."""
        conversation = await self.begun(**init)
        appended = await conversation.append(text)
        return await self.respond(conversation, appended)

    async def respond(self, conversation: Conversation, appended: Any) -> Asked:
        reply, _ = await request(
            self.nats,
            f"convo.respond.{conversation.tokens}",
            json.dumps({"message_id": appended["message_id"]}).encode(),
            {"Convo-Min-Seq": str(appended["seq"])},
        )
        assert reply["ok"], reply
        return Asked(conversation, reply)


class Asked:
    """An answer that was asked for."""

    def __init__(self, conversation: Conversation, reply: dict[str, Any]) -> None:
        self.conversation = conversation
        self.reply = reply
        self.message_id = reply["message_id"]

    async def text(self) -> str:
        return str((await self._message())["content"])

    async def grown(self, pieces: int) -> None:
        """Returns once at least so many pieces are written."""
        async with asyncio.timeout(30):
            while len((await self.text()).split()) < pieces:  # noqa: ASYNC110 - it is elsewhere
                await asyncio.sleep(0.01)

    async def end(self) -> dict[str, Any]:
        """The event that ended the reply, once there is one."""
        async with asyncio.timeout(30):
            while "streaming" in await self._message():  # noqa: ASYNC110 - it is elsewhere
                await asyncio.sleep(0.01)
        ends = [
            event
            for event in await self.conversation.events()
            if event["type"] in {"ReplyCompleted", "ReplyAborted"}
            and event["data"]["message_id"] == self.message_id
        ]
        assert len(ends) == 1
        return dict(ends[0])

    async def _message(self) -> dict[str, Any]:
        [found] = [
            each
            for each in await self.conversation.messages()
            if each["message_id"] == self.message_id
        ]
        return dict(found)


@pytest_asyncio.fixture(scope="module")
async def url(nats_server: EmbeddedServer, store_dir: Path) -> AsyncIterator[str]:
    """A ledger without a responder, for the module."""
    settings = Settings(data_dir=store_dir)
    async with running(settings, ("commands", "queries"), url=nats_server.url):
        yield nats_server.url


@pytest.fixture
async def rig(url: str) -> AsyncIterator[Rig]:
    client = await nats.connect(url)
    async with ModelServer() as model:
        yield Rig(client, url, model)
    await client.close()


Until = Callable[[Callable[[], bool]], Awaitable[None]]


async def test_answers_in_pieces_and_records_the_models_own_usage(rig: Rig) -> None:
    async with rig.responder():
        asked = await rig.asked("say 23")
        assert asked.reply["duplicate"] is False
        end = await asked.end()

    assert (end["type"], end["data"]["finish_reason"]) == ("ReplyCompleted", "stop")
    assert await asked.text() == said(23)
    events = await asked.conversation.events()
    started = next(each for each in events if each["type"] == "ReplyStarted")
    assert started["actor"] == "service:responder"
    assert started["data"]["model"] == "test-model"
    assert started["data"]["metadata"] == {"answers": asked.reply["answers"]}
    chunks = [each["data"] for each in events if each["type"] == "ReplyChunkAppended"]
    sizes = [chunk["last_index"] - chunk["first_index"] + 1 for chunk in chunks]
    assert (sum(sizes), max(sizes)) == (23, 5)
    [usage] = [each["data"] for each in events if each["type"] == "UsageRecorded"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (11, 23)
    assert (usage["cached_tokens"], usage["reasoning_tokens"]) == (CACHED, REASONING)
    assert (usage["model"], usage["message_id"]) == ("test-model", asked.message_id)


async def test_the_model_is_told_the_system_prompt_and_the_last_messages(rig: Rig) -> None:
    conversation = await rig.begun(context={"system_prompt": "Be brief."}, model="other-model")
    for number in range(6):
        await conversation.append(f"old {number}", role="assistant")
    hidden = await conversation.append("hidden")
    await conversation.do("redact", message_id=hidden["message_id"])
    picture = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA=="}
    others = [{"type": "custom"}, {**picture, "mediaType": "text/csv"}]
    question = await conversation.append([{"type": "text", "text": "say 1"}, picture, *others])
    await conversation.append("said too late")
    async with rig.responder(model_messages=3, model_key="sk-mine"):
        await (await rig.respond(conversation, question)).end()

    [asked] = rig.model.requests
    assert asked["model"] == "other-model"
    assert asked["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "old 4"},
        {"role": "assistant", "content": "old 5"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "say 1"},
                {"type": "image_url", "image_url": {"url": picture["url"]}},
            ],
        },
    ]
    assert "bearer sk-mine" in rig.model.headers[0].lower()


async def test_without_settings_an_echo_answers(rig: Rig) -> None:
    async with rig.responder(model_url=None, model=None):
        asked = await rig.asked("Is anybody there?", model="gpt-4o")
        assert (await asked.end())["type"] == "ReplyCompleted"

    assert await asked.text() == "Is anybody there?"
    usage, _ = await asked.conversation.usage()
    assert usage == {"prompt": 3, "completion": 3, "total": 6}


async def test_a_stop_keeps_what_was_said_and_reaches_the_model(rig: Rig, until: Until) -> None:
    async with rig.responder(), rig.responder():
        asked = await rig.asked("stall after 7")
        await asked.grown(7)
        await asked.conversation.do("reply.abort", message_id=asked.message_id)
        await until(lambda: rig.model.gone == 1)  # long before any timeout

        assert (await asked.end())["data"]["reason"] == "stopped"
    assert await asked.text() == said(7)


async def test_a_stop_is_heard_as_soon_as_the_answer_has_begun(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    over: list[Answer] = []
    do, run = Talk.do, Answer.run

    async def stopped_at_once(self: Talk, verb: str, body: Any, **more: Any) -> Any:
        begun = await do(self, verb, body, **more)
        if verb == "reply.start":
            await do(self, "reply.abort", {"message_id": body["message_id"]})
        return begun

    async def until_over(self: Answer, *about: Any) -> None:
        await run(self, *about)
        over.append(self)

    monkeypatch.setattr(Talk, "do", stopped_at_once)
    monkeypatch.setattr(Answer, "run", until_over)
    async with rig.responder():
        asked = await rig.asked("stall after 0")
        await until(lambda: len(over) == 1)  # long before any timeout

    assert (await asked.end())["data"]["reason"] == "stopped"


@pytest.mark.parametrize(
    ("script", "reason", "text"),
    [
        ("refuse 401", "the model refused with status 401", ""),
        ("refuse 400", "the model refused with status 400", ""),
        ("break after 3", "the connection to the model failed", said(3)),
        ("end after 3", "the model's answer broke off", said(3)),
        ("error after 3", "the model's answer broke", said(3)),
        ("garbage", "the model's answer broke", ""),
    ],
)
async def test_a_model_that_fails_leaves_an_aborted_reply(
    rig: Rig, script: str, reason: str, text: str
) -> None:
    async with rig.responder():
        asked = await rig.asked(script)
        end = await asked.end()

    assert (end["type"], end["data"]["reason"]) == ("ReplyAborted", reason)
    assert await asked.text() == text


async def test_a_model_that_cannot_be_reached_leaves_an_aborted_reply(rig: Rig) -> None:
    async with rig.responder(model_url="http://127.0.0.1:9/v1"):
        end = await (await rig.asked("say 1")).end()

    assert end["data"]["reason"] == "the connection to the model failed"


async def test_a_model_that_falls_silent_is_given_up(rig: Rig) -> None:
    async with rig.responder(model_timeout="2s"):
        asked = await rig.asked("stall after 2")
        end = await asked.end()

    assert end["data"]["reason"] == "the model fell silent"
    assert await asked.text() == said(2)


async def test_one_answer_for_each_message_however_often_and_of_how_many_it_is_asked(
    rig: Rig,
) -> None:
    async with rig.responder(), rig.responder(), rig.responder():
        conversation = await rig.begun()
        question = await conversation.append("say 40 every 0.005")
        asked = await asyncio.gather(*(rig.respond(conversation, question) for _ in range(12)))
        await asked[0].end()
        again = await rig.respond(conversation, question)

    assert [each.reply["duplicate"] for each in asked].count(False) == 1
    assert again.reply["duplicate"] is True
    assert {each.message_id for each in asked} == {again.message_id}
    assert len(rig.model.requests) == 1
    assert await again.text() == said(40)


async def test_another_attempt_has_another_id(rig: Rig) -> None:
    async with rig.responder():
        first = await rig.asked("end after 1")
        await first.end()
        reply, _ = await request(
            rig.nats, f"convo.respond.{first.conversation.tokens}", b'{"reply_id": "second"}'
        )
        second = Asked(first.conversation, reply)
        await second.end()

    assert (second.message_id, reply["duplicate"]) == ("second", False)
    assert reply["answers"] == first.reply["answers"]


async def test_what_cannot_be_answered_is_refused(rig: Rig) -> None:
    async with rig.responder():
        conversation = await rig.begun()
        subject = f"convo.respond.{conversation.tokens}"
        await refused(rig.nats, "message_not_found", subject, b"")
        await refused(rig.nats, "message_not_found", subject, b'{"message_id": "none"}')
        await refused(rig.nats, "invalid_request", subject, b'{"unknown": 1}')
        await refused(rig.nats, "invalid_request", f"{subject}.more", b"")
        nowhere = f"convo.respond.{rig.conversation().tokens}"
        await refused(rig.nats, "conversation_not_initialized", nowhere, b"")


async def test_an_answer_too_long_to_keep_ends_as_one_that_was_cut(rig: Rig) -> None:
    async with rig.responder():
        asked = await rig.asked("say 30 of 10000")
        end = await asked.end()

    assert (end["type"], end["data"]["finish_reason"]) == ("ReplyCompleted", "length")
    assert await asked.text() == ("x" * 10_000) * 25


async def test_a_responder_told_to_stop_aborts_its_answers_at_once(rig: Rig) -> None:
    async with rig.responder():
        asked = await rig.asked("stall after 4")
        await asked.grown(4)

    assert (await asked.end())["data"]["reason"] == "interrupted"
    assert await asked.text() == said(4)


async def test_a_responder_that_is_killed_leaves_its_answers_to_the_sweeper(
    rig: Rig, tmp_path: Path
) -> None:
    async with killed_in_time(rig, tmp_path) as process:
        asked = await rig.asked("stall after 4")
        await asked.grown(4)
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
    async with running(Settings(reply_silence="0.5s"), ("sweeper",), url=rig.url):
        end = await asked.end()

    assert end["data"]["reason"] == "silent"
    assert await asked.text() == said(4)


@contextlib.asynccontextmanager
async def killed_in_time(rig: Rig, directory: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A responder as a process of its own, answering; gone at the end, whatever happens."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "services.cli", "serve", "responder", "--nats", rig.url),
        cwd=directory,
        env={
            **os.environ,
            "PYTHONPATH": str(REPOSITORY),
            "CONVO_MODEL_URL": rig.model.url,
            "CONVO_MODEL": "test-model",
        },
    )
    try:
        async with asyncio.timeout(60):
            while True:
                with contextlib.suppress(nats.errors.Error):
                    await rig.nats.request("$SRV.PING.convo-responder", timeout=1)
                    break
                await asyncio.sleep(0.05)
        yield process
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
