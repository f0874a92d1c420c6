"""The conversations family, exchange by exchange as docs/contract.md has it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import websockets

from tests.acceptance.client import Ledger
from tests.services.gateway.site import GatewayProcess
from tests.services.gateway.talking import Talking


class Talker:
    """A WebSocket client that reads frame by frame."""

    def __init__(self, connection: websockets.ClientConnection) -> None:
        self.connection = connection

    async def send(self, frame: Any) -> None:
        await self.connection.send(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def next(self) -> dict[str, Any]:
        async with asyncio.timeout(30):
            frame: dict[str, Any] = json.loads(await self.connection.recv())
        return frame


@asynccontextmanager
async def connected(gateway: GatewayProcess, id: str) -> AsyncIterator[Talker]:
    """A connected client, the greeting not yet read."""
    async with websockets.connect(f"{gateway.ws}/conversation/{id}", max_size=None) as connection:
        yield Talker(connection)


async def say(http: httpx.AsyncClient, id: str, content: Any, **fields: Any) -> dict[str, Any]:
    body = {"role": "user", "content": content, **fields}
    answer = await http.post(f"/conversation/{id}/messages", json=body)
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_conversation_begins_on_first_use(http: httpx.AsyncClient, id: str) -> None:
    answer = await http.get(f"/conversation/{id}/messages")
    assert answer.json() == {"conversationId": id, "messages": [], "totalTokens": 0}
    before = int(time.time() * 1000)
    told = await say(http, id, "hello", tokens=7)
    assert (told["success"], told["message"]["role"]) == (True, "user")
    assert before <= told["message"]["timestamp"] <= time.time() * 1000
    answer = await http.get(f"/conversation/{id}/messages")
    assert answer.json() == {
        "conversationId": id,
        "messages": [told["message"]],
        "totalTokens": 7,
    }
    assert told["message"]["content"] == "hello"
    assert told["message"]["tokens"] == 7


async def test_the_state_is_merged(http: httpx.AsyncClient, id: str) -> None:
    empty = (await http.get(f"/conversation/{id}/state")).json()
    assert (empty["conversationId"], empty["userId"], empty["context"]) == (id, None, {})
    for facts in (
        {"userId": "ada", "model": "m-1", "context": {"a": 1, "b": 2}},
        {"context": {"a": None, "c": 3}},
    ):
        answer = await http.put(f"/conversation/{id}/state", json=facts)
        assert answer.status_code == 200, answer.text
    assert answer.json()["success"] is True
    state = (await http.get(f"/conversation/{id}/state")).json()
    assert answer.json()["state"] == state
    assert (state["userId"], state["model"]) == ("ada", "m-1")
    assert state["context"] == {"b": 2, "c": 3}
    assert state["createdAt"] <= state["lastActivity"] <= time.time() * 1000


async def test_clear_takes_messages_tokens_and_context(
    http: httpx.AsyncClient, ledger: Ledger, id: str
) -> None:
    assert (await http.post(f"/conversation/{id}/clear")).json() == {"success": True}
    await say(http, id, "secret", tokens=3)
    await http.put(f"/conversation/{id}/state", json={"context": {"a": 1}})
    assert (await http.post(f"/conversation/{id}/clear")).json() == {"success": True}
    answer = await http.get(f"/conversation/{id}/messages")
    assert answer.json() == {"conversationId": id, "messages": [], "totalTokens": 0}
    assert (await http.get(f"/conversation/{id}/state")).json()["context"] == {}
    kept = await ledger.conversation(id, "default").history(include_reset=True)
    assert [each["content"] for each in kept] == ["secret"]


async def test_everybody_hears_what_is_said(
    gateway: GatewayProcess, http: httpx.AsyncClient, id: str
) -> None:
    await say(http, id, "before")
    await http.put(f"/conversation/{id}/state", json={"model": "m-1"})
    async with connected(gateway, id) as ada, connected(gateway, id) as bob:
        greeting = {
            "type": "system",
            "content": "Connected to conversation",
            "metadata": {"conversationId": id, "messageCount": 1, "model": "m-1"},
        }
        assert (await ada.next(), await bob.next()) == (greeting, greeting)
        await ada.send({"type": "chat", "role": "user", "content": "hi", "tokens": 2})
        heard = await ada.next()
        assert heard == await bob.next()
        timestamp = heard["metadata"].pop("timestamp")
        assert isinstance(timestamp, int)
        assert heard == {
            "type": "chat",
            "role": "user",
            "content": "hi",
            "metadata": {"messageCount": 2, "tokens": 2},
        }
        await say(http, id, [{"type": "text", "text": "over HTTP"}], role="assistant")
        assert [(await each.next())["content"] for each in (ada, bob)] == [
            [{"type": "text", "text": "over HTTP"}]
        ] * 2


async def test_history_is_told_to_who_asks_and_cleared_for_all(
    gateway: GatewayProcess, http: httpx.AsyncClient, id: str
) -> None:
    first = await say(http, id, "first", tokens=5)
    async with connected(gateway, id) as ada, connected(gateway, id) as bob:
        await ada.next()
        await bob.next()
        await ada.send({"type": "system", "content": "get_history"})
        assert await ada.next() == {
            "type": "system",
            "content": "history",
            "metadata": {"messages": [first["message"]], "totalTokens": 5},
        }
        await bob.send({"type": "system", "content": "clear_history"})
        cleared = {"type": "system", "content": "history_cleared"}
        assert (await ada.next(), await bob.next()) == (cleared, cleared)
        await http.post(f"/conversation/{id}/clear")
        cleared = {"type": "system", "content": "conversation_cleared"}
        assert (await ada.next(), await bob.next()) == (cleared, cleared)


async def test_a_reply_is_followed(
    gateway: GatewayProcess, http: httpx.AsyncClient, ledger: Ledger, id: str
) -> None:
    await say(http, id, "tell me")
    conversation = ledger.conversation(id, "default")
    await conversation.do("reply.start", message_id="r")
    async with connected(gateway, id) as early:
        assert (await early.next())["metadata"]["messageCount"] == 2
        await conversation.do("reply.chunk", message_id="r", index=0, texts=["Once ", "upon "])
        assert await early.next() == {"type": "status", "status": "streaming"}
        async with connected(gateway, id) as late:
            await late.next()
            await conversation.do("reply.chunk", message_id="r", index=2, texts=["a time"])
            await conversation.do("reply.finish", message_id="r")
            heard = await early.next()
            assert heard["content"] == "Once upon a time"
            assert (heard["role"], heard["metadata"]["messageCount"]) == ("assistant", 2)
            assert await late.next() == heard
            complete = {"type": "status", "status": "complete"}
            assert (await early.next(), await late.next()) == (complete, complete)
        await conversation.do("reply.start", message_id="s")
        assert await early.next() == {"type": "status", "status": "thinking"}
        await conversation.do("reply.abort", message_id="s")
        assert await early.next() == {"type": "status", "status": "complete"}


async def test_the_copilot_answers(http: httpx.AsyncClient, talking: Talking, id: str) -> None:
    question = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "say 5"},
    ]
    for asked in (question, [*question, {"role": "user", "content": "and now?"}]):
        answer = await http.post("/api/copilot", json={"conversationId": id, "messages": asked})
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert (told["success"], told["conversationId"]) == (True, id)
        assert told["message"]["role"] == "assistant"
        assert told["message"]["content"] == ("0 1 2 3 4 " if asked is question else "and now?")
    shown = (await http.get(f"/conversation/{id}/messages")).json()["messages"]
    assert shown[-1] == told["message"]
    assert [each["role"] for each in shown] == ["system", "user", "assistant", "user", "assistant"]


async def test_the_copilot_uses_the_default_conversation(
    http: httpx.AsyncClient, talking: Talking
) -> None:
    answer = await http.post(
        "/api/copilot", json={"messages": [{"role": "user", "content": "hello"}]}
    )
    assert answer.json()["conversationId"] == "default"
    shown = (await http.get("/conversation/default/messages")).json()["messages"]
    assert shown[-1] == answer.json()["message"]


async def test_an_answer_that_breaks_off_is_told_as_that(
    http: httpx.AsyncClient, talking: Talking, id: str
) -> None:
    messages = [{"role": "user", "content": "break after 3"}]
    answer = await http.post("/api/copilot", json={"conversationId": id, "messages": messages})
    told = answer.json()
    assert (answer.status_code, told["code"], told["retryable"]) == (502, "answer_aborted", True)
    assert told["details"]["message"]["content"] == "0 1 2 "


async def test_an_answer_that_is_cleared_away_is_told_as_that(
    http: httpx.AsyncClient, ledger: Ledger, talking: Talking, id: str
) -> None:
    messages = [{"role": "user", "content": "stall after 2"}]
    body = {"conversationId": id, "messages": messages}
    asking = asyncio.ensure_future(http.post("/api/copilot", json=body))
    conversation = ledger.conversation(id, "default")
    async with asyncio.timeout(30):
        while True:
            shown = (await http.get(f"/conversation/{id}/messages")).json()["messages"]
            if shown and shown[-1]["content"] == "0 1 ":
                break
            await asyncio.sleep(0.02)

    await conversation.do("reset")

    told = (await asking).json()
    assert (told["code"], told["retryable"]) == ("answer_aborted", True)
    assert "(reset)" in told["error"]


@pytest.mark.parametrize("messages", [[], [{"role": "assistant", "content": "hi"}], None])
async def test_the_copilot_wants_a_question(http: httpx.AsyncClient, messages: Any) -> None:
    answer = await http.post("/api/copilot", json={"messages": messages})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize(
    ("frame", "says"),
    [
        ("{", "JSON"),
        ("[]", "JSON object"),
        (b"\xff", "JSON"),
        ({"type": "dance"}, "type"),
        ({"content": "hi"}, "type"),
        ({"type": "system", "content": "reboot"}, "get_history"),
        ({"type": "chat", "content": "hi"}, "role"),
        ({"type": "chat", "role": "robot", "content": "hi"}, "role"),
        ({"type": "chat", "role": "user", "content": 7}, "content"),
        ({"type": "chat", "role": "user", "content": "x" * 300_000}, "at most"),
    ],
)
async def test_a_bad_frame_leaves_the_connection_open(
    gateway: GatewayProcess, id: str, frame: Any, says: str
) -> None:
    async with connected(gateway, id) as client:
        assert (await client.next())["metadata"]["messageCount"] == 0
        await client.send(frame)
        told = await client.next()
        assert told["type"] == "error"
        assert says in told["error"]
        await client.send({"type": "chat", "role": "user", "content": "still here"})
        assert (await client.next())["content"] == "still here"


async def test_a_frame_that_is_too_large_ends_the_connection(
    gateway: GatewayProcess, id: str
) -> None:
    async with connected(gateway, id) as client:
        await client.next()
        await client.send({"type": "chat", "role": "user", "content": "x" * 1_100_000})
        with pytest.raises(websockets.ConnectionClosed) as ended:
            await client.next()
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1009


async def test_too_many_frames_end_the_connection(gateway: GatewayProcess, id: str) -> None:
    async with connected(gateway, id) as client:
        with pytest.raises(websockets.ConnectionClosed) as ended:
            await _flood(client)
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1008


async def test_a_stopping_gateway_tells_its_viewers_to_come_back(
    site: Any, http: httpx.AsyncClient, id: str
) -> None:
    leaving = site.gateway()
    async with connected(leaving, id) as client:
        await client.next()
        leaving.ask_to_stop()
        with pytest.raises(websockets.ConnectionClosed) as ended:
            await client.next()
    assert ended.value.rcvd is not None
    assert ended.value.rcvd.code == 1012
    assert await asyncio.to_thread(leaving.exit_status) == 0


async def _flood(client: Talker) -> None:
    for _ in range(1_000):
        await client.send({"type": "dance"})
    while True:
        await client.next()
