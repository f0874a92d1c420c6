"""The streams family: exchange by exchange as docs/contract.md has it."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import httpx
import pytest
from websockets.asyncio.client import ClientConnection, connect

from domain.identity import encode_token
from tests.acceptance.client import Ledger
from tests.model_server import said
from tests.services.gateway.site import GatewayProcess
from tests.services.gateway.talking import Talking

pytestmark = pytest.mark.usefixtures("talking")

JSON = dict[str, Any]
WITHIN_S = 30


class Viewer:
    """A client on the WebSocket, which keeps what it was told."""

    def __init__(self, socket: ClientConnection) -> None:
        self.socket = socket
        self.frames: list[JSON] = []

    async def send(self, **frame: Any) -> None:
        await self.socket.send(json.dumps(frame))

    async def next(self) -> JSON:
        async with asyncio.timeout(WITHIN_S):
            self.frames.append(json.loads(await self.socket.recv()))
        return self.frames[-1]

    async def until(self, *types: str) -> JSON:
        """The next frame of one of these types."""
        while True:
            frame = await self.next()
            if frame["type"] in types:
                return frame

    async def sees(self, text: str) -> None:
        """Returns once an answer says this, and none is on its way any more.

        That it has ended is told by `done`, or by a `catchup` that was asked for when it had.
        """
        while self.text != text or self.running:
            await self.next()

    @property
    def running(self) -> set[str]:
        """The answers that are on their way, as somebody would see it."""
        running: set[str] = set()
        for frame in self.frames:
            match frame["type"]:
                case "catchup":
                    running = {each["id"] for each in frame["messages"] if each["streaming"]}
                case "conversation_created":
                    running.add(frame["messageId"])
                case "done" | "error":
                    running.discard(frame.get("messageId"))
        return running

    @property
    def text(self) -> str:
        """The text of the last answer, as somebody would see it."""
        text = ""
        for frame in self.frames:
            match frame["type"]:
                case "conversation_created":
                    text = ""
                case "catchup":
                    answers = [m for m in frame["messages"] if m["role"] == "assistant"]
                    text = answers[-1]["content"] if answers else ""
                case "text":
                    text += frame["content"]
        return text


@contextlib.asynccontextmanager
async def viewing(gateway: GatewayProcess, id: str = "", **more: str) -> AsyncIterator[Viewer]:
    query = "&".join(f"{name}={quote(value)}" for name, value in more.items())
    url = f"{gateway.ws}/ws?{query}" + (f"&conversationId={quote(id)}" if id else "")
    async with connect(url) as socket:
        yield Viewer(socket)


async def test_a_chat_from_its_first_word(gateway: GatewayProcess, ledger: Ledger) -> None:
    async with viewing(gateway, sessionId="s-1") as viewer:
        await viewer.send(type="ping")
        assert await viewer.next() == {"type": "pong"}
        await viewer.send(type="start_chat", prompt="say 12")
        created = await viewer.next()
        end = await viewer.until("done", "error")

        assert created.keys() == {"type", "conversationId", "messageId"}
        assert created["type"] == "conversation_created"
        assert end == {"type": "done", "messageId": created["messageId"]}
        assert {frame["type"] for frame in viewer.frames[2:-1]} == {"text"}
        assert viewer.text == said(12)

        await viewer.send(type="start_chat", prompt="and again")
        again = await viewer.until("conversation_created")
        await viewer.until("done")
        assert again["conversationId"] == created["conversationId"]
        assert viewer.text == "and again"

    conversation = ledger.conversation(created["conversationId"], "default")
    messages = await conversation.messages()
    assert [m["role"] for m in messages] == ["user", "assistant", "user", "assistant"]
    assert messages[0]["metadata"] == {"sessionId": "s-1"}
    state = await conversation.state()
    assert (state["user_id"], state["title"]) == ("local", "say 12")


async def test_the_answer_goes_on_when_every_client_leaves(
    gateway: GatewayProcess, talking: Talking, id: str
) -> None:
    prompt = f"say 60 hold 20 {id}"
    async with viewing(gateway, id) as viewer:
        assert await viewer.next() == {
            "type": "catchup",
            "conversation": None,
            "messages": [],
            "hasActiveStream": False,
        }
        await viewer.send(type="start_chat", prompt=prompt)
        while viewer.text.count(" ") < 10:
            await viewer.until("text")

    async with viewing(gateway, id) as viewer:
        caught_up = await viewer.next()
        talking.model.go(id)
        end = await viewer.until("done")
        assert caught_up["hasActiveStream"] is True
        assert caught_up["conversation"]["id"] == id
        question, answer = caught_up["messages"]
        assert question["content"] == prompt
        assert (answer["id"], answer["streaming"]) == (end["messageId"], True)
        assert viewer.text == said(60)

    async with viewing(gateway, id) as viewer:
        caught_up = await viewer.next()
        assert caught_up["hasActiveStream"] is False
        assert viewer.text == said(60)


async def test_a_client_that_leaves_at_once_is_answered(
    gateway: GatewayProcess, http: httpx.AsyncClient, id: str
) -> None:
    async with viewing(gateway, id) as viewer:
        await viewer.send(type="start_chat", prompt="say 3")

    async with asyncio.timeout(WITHIN_S):
        while True:
            found = await http.get(f"/chat/{id}/catchup")
            messages = found.json().get("messages", ())
            if len(messages) == 2 and not found.json()["hasActiveStream"]:
                break
            await asyncio.sleep(0.02)
    assert found.json()["messages"][1]["content"] == said(3)


async def test_a_stop_keeps_what_was_said(gateway: GatewayProcess, id: str) -> None:
    async with viewing(gateway, id) as viewer:
        await viewer.next()
        await viewer.send(type="start_chat", prompt="stall after 5")
        while viewer.text != said(5):
            await viewer.until("text")
        await viewer.send(type="stop")
        assert (await viewer.next())["stopped"] == "stopped"

    async with viewing(gateway, id) as viewer:
        caught_up = await viewer.next()
        assert caught_up["hasActiveStream"] is False
        assert caught_up["messages"][-1]["error"] is None  # somebody wanted that
        assert viewer.text == said(5)


async def test_two_viewers_see_the_same(gateway: GatewayProcess, id: str) -> None:
    async with viewing(gateway, id) as one, viewing(gateway, id) as other:
        await one.next()
        await other.next()  # nothing is there yet, when it comes
        await one.send(type="start_chat", prompt="say 20")
        await one.until("done")
        await other.sees(said(20))
        async with viewing(gateway, id) as late:
            await late.next()
            await late.send(type="start_chat", prompt="say 21")
            await late.until("done")
            assert late.text == said(21)

        # Who did not ask is told the question by a catchup, and the answer as everybody.
        for viewer in (one, other):
            asked = await viewer.until("catchup")
            assert [m["content"] for m in asked["messages"] if m["role"] == "user"][-1] == "say 21"
            await viewer.sees(said(21))


async def test_what_others_change_is_told_by_a_catchup(
    gateway: GatewayProcess, ledger: Ledger, id: str
) -> None:
    async with viewing(gateway, id) as viewer:
        await viewer.next()
        await viewer.send(type="start_chat", prompt="hello")
        await viewer.until("done")
        conversation = ledger.conversation(id, "default")
        await conversation.do("redact", message_id=(await conversation.messages())[0]["message_id"])
        caught_up = await viewer.until("catchup")
        assert [m["content"] for m in caught_up["messages"]] == ["hello"]
        await conversation.do("reset")
        assert (await viewer.until("catchup"))["messages"] == []


@pytest.mark.parametrize(
    ("script", "message", "text"),
    [
        ("refuse 500", "the model refused with status 500", ""),
        ("break after 4", "the connection to the model failed", said(4)),
    ],
)
async def test_a_model_that_fails_is_an_error_to_who_is_there_and_to_who_comes_later(
    *,
    gateway: GatewayProcess,
    http: httpx.AsyncClient,
    id: str,
    script: str,
    message: str,
    text: str,
) -> None:
    async with viewing(gateway, id) as viewer:
        await viewer.next()
        await viewer.send(type="start_chat", prompt=script)
        error = await viewer.until("error", "done")
        assert (error["type"], error["message"]) == ("error", message)
        assert viewer.text == text

    async with viewing(gateway, id) as late:
        *_, answer = (await late.next())["messages"]
        assert (answer["content"], answer["error"]) == (text, message)
    comes_back = {"Last-Event-ID": encode_token(id)}
    async with http.stream("GET", "/chat", params={"prompt": script}, headers=comes_back) as answer:
        (_, caught_up), (_, end) = await events(answer)
    assert caught_up["messages"][-1]["error"] == message
    assert end == error


@pytest.mark.parametrize(
    "frame",
    [
        "no json",
        "[]",
        "{}",
        '{"type": "other"}',
        '{"type": "start_chat"}',
        '{"type":"start_chat","prompt":" "}',
    ],
)
async def test_a_bad_frame_is_an_error_and_the_connection_stays(
    gateway: GatewayProcess, frame: str
) -> None:
    async with viewing(gateway) as viewer:
        await viewer.socket.send(frame)
        error = await viewer.next()
        assert (error["type"], error["code"]) == ("error", "invalid_request")
        await viewer.send(type="ping")
        assert await viewer.next() == {"type": "pong"}


async def test_a_closed_conversation_takes_nothing(
    gateway: GatewayProcess, ledger: Ledger, id: str
) -> None:
    conversation = ledger.conversation(id, "default")
    await conversation.init()
    await conversation.do("close")
    async with viewing(gateway, id) as viewer:
        assert (await viewer.next())["conversation"]["status"] == "closed"
        await viewer.send(type="start_chat", prompt="hello?")
        assert (await viewer.next())["code"] == "conversation_closed"


async def test_catchup_over_http(http: httpx.AsyncClient, ledger: Ledger, id: str) -> None:
    missing = await http.get(f"/chat/{id}/catchup")
    assert (missing.status_code, missing.json()["error"]) == (404, "Conversation not initialized")
    await ledger.conversation(id, "default").init()

    found = await http.get(f"/chat/{id}/catchup")

    assert found.status_code == 200
    assert found.json().keys() == {"conversation", "messages", "hasActiveStream"}
    assert found.json()["conversation"]["id"] == id


async def events(answer: httpx.Response) -> list[tuple[str, JSON]]:
    found: list[tuple[str, JSON]] = []
    id = ""
    async for line in answer.aiter_lines():
        if line.startswith("id: "):
            id = line[4:]
        elif line.startswith("data: "):
            found.append((id, json.loads(line[6:])))
    return found


async def test_a_prompt_is_answered_by_server_sent_events(http: httpx.AsyncClient) -> None:
    async with http.stream("GET", "/chat", params={"prompt": "say 30"}) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"].startswith("text/event-stream")
        told = await events(answer)

    frames = [frame for _, frame in told]
    assert frames[0]["type"] == "conversation_created"
    assert frames[-1] == {"type": "done", "messageId": frames[0]["messageId"]}
    assert "".join(frame["content"] for frame in frames[1:-1]) == said(30)
    assert {id for id, _ in told} == {frames[0]["conversationId"]}


async def test_an_event_source_that_comes_back_says_nothing_twice(
    http: httpx.AsyncClient, talking: Talking, ledger: Ledger
) -> None:
    name = uuid4()
    id = f"with spaces / and dots. {name}"
    params = {"prompt": f"say 60 hold 20 {name}", "conversationId": id}
    async with http.stream("GET", "/chat", params=params) as answer:
        async for line in answer.aiter_lines():
            if line.startswith("id: "):
                last_event_id = line[4:]
            if '"text"' in line:
                break

    headers = {"Last-Event-ID": last_event_id}
    async with http.stream("GET", "/chat", params=params, headers=headers) as answer:
        talking.model.go(str(name))
        (_, first), *rest = await events(answer)

    assert (first["type"], first["hasActiveStream"]) == ("catchup", True)
    text = first["messages"][1]["content"] + "".join(f.get("content", "") for _, f in rest)
    assert text == said(60)
    assert len(await ledger.conversation(id, "default").messages()) == 2


async def test_who_comes_back_to_several_answers_is_told_how_each_ends(
    http: httpx.AsyncClient, ledger: Ledger, id: str
) -> None:
    conversation = ledger.conversation(id, "default")
    await conversation.init()
    for message_id in ("first", "second"):
        await conversation.do("reply.start", message_id=message_id)

    params, headers = {"prompt": "hello"}, {"Last-Event-ID": encode_token(id)}
    async with http.stream("GET", "/chat", params=params, headers=headers) as answer:
        for message_id in ("second", "first"):
            await conversation.do("reply.finish", message_id=message_id)
        async with asyncio.timeout(WITHIN_S):
            (_, caught_up), *ends = await events(answer)

    assert caught_up["hasActiveStream"] is True
    assert [end["messageId"] for _, end in ends] == ["second", "first"]


async def test_pages_of_other_origins_may_not_speak(http: httpx.AsyncClient) -> None:
    answer = await http.get("/chat?prompt=hello", headers={"Sec-Fetch-Site": "cross-site"})
    assert answer.status_code == 403
