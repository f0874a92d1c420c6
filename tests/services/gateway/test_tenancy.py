"""Two tenants and three users: nobody reaches another's conversation, by whatever route.

The table has a row for every route of the application; a route without one fails the test.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import httpx
import pytest
import websockets
from fastapi import FastAPI

from infra.settings import Settings
from services.gateway.app import create_app
from services.gateway.gateway import Gateway
from services.gateway.keys import KeyFile
from tests.acceptance.client import Conversation, Ledger
from tests.services.gateway.site import GatewayProcess, Site
from tests.services.gateway.talking import Talking

SECRET = "the eagle lands at dawn"
LATER = "the eagle has landed"
MESSAGE = {"role": "user", "content": "hello"}
UI_MESSAGE = {"id": "m", "role": "user", "parts": [{"type": "text", "text": "hello"}]}


class Row(NamedTuple):
    """A route, and what is sent to it; `{id}` is Ada's conversation."""

    method: str
    route: str
    body: Any = None
    query: str = ""


TABLE = [
    Row("POST", "/v1/threads/{threadId}/init", {"userId": "$me"}),
    Row("POST", "/v1/threads/{threadId}/message", MESSAGE),
    Row("GET", "/v1/threads/{threadId}/messages"),
    Row("POST", "/v1/threads/{threadId}/usage", {"promptTokens": 1, "completionTokens": 1}),
    Row("GET", "/v1/threads/{threadId}/usage"),
    Row("GET", "/v1/threads/{threadId}/state"),
    Row("POST", "/v1/threads/{threadId}/reset"),
    Row("GET", "/conversation/{id}/messages"),
    Row("POST", "/conversation/{id}/messages", MESSAGE),
    Row("GET", "/conversation/{id}/state"),
    Row("PUT", "/conversation/{id}/state", {"userId": "$me", "context": {"a": 1}}),
    Row("POST", "/conversation/{id}/clear"),
    Row("WS", "/conversation/{id}", {"type": "system", "content": "get_history"}),
    Row("POST", "/api/copilot", {"conversationId": "$id", "messages": [MESSAGE]}),
    Row("WS", "/ws", {"type": "start_chat", "prompt": "hello"}, "?conversationId=$id"),
    Row("GET", "/chat/{conversationId}/catchup"),
    Row("GET", "/chat", None, "?conversationId=$id&prompt=hello"),
    Row("GET", "/sessions/{id}/history"),
    Row(
        "POST",
        "/sessions/{id}/update",
        {"operation": "set_history", "messages": [MESSAGE]},
    ),
    Row("DELETE", "/sessions/{id}/clear"),
    Row("POST", "/api/chat", {"id": "$id", "messages": [UI_MESSAGE]}),
    Row("GET", "/api/chat"),
    Row("GET", "/api/chat/search", None, "?q=eagle"),
    Row("GET", "/api/chat/{chatId}/history"),
    Row("DELETE", "/api/chat/{chatId}"),
    Row("POST", "/api/chat/{chatId}", {"id": "$id", "messages": [UI_MESSAGE]}),
    Row("GET", "/api/chat/{chatId}/stream"),
    Row("POST", "/api/chat/{chatId}/stop"),
]
OF_NOBODY = {
    *(
        ("GET", path)
        for path in ("/", "/page.css", "/page.js", "/openapi.json", "/docs", "/health")
    ),
    *(("GET", path) for path in ("/docs.js", "/docs.css")),
}
"""Routes that are the same for everybody and show nothing of any conversation."""


def routes(app: FastAPI) -> set[tuple[str, str]]:
    """(method, path) of every route, WS for WebSockets; HEAD is GET without its body."""

    def below(routes: Any, prefix: str) -> Iterator[tuple[str, str]]:
        for route in routes:
            if (included := getattr(route, "original_router", None)) is not None:
                yield from below(included.routes, prefix + route.include_context.prefix)
            elif getattr(route, "methods", None):
                yield from ((method, prefix + route.path) for method in route.methods - {"HEAD"})
            else:
                yield "WS", prefix + route.path

    return set(below(app.routes, ""))


def test_every_route_has_a_row() -> None:
    app = create_app(Gateway(Settings(), *cast("tuple[Any, Any, Any, Any]", (None,) * 4)))
    listed = {(row.method, row.route) for row in TABLE}
    found = routes(app)
    assert len(found) > 20
    assert found - OF_NOBODY == listed


@pytest.fixture(scope="module")
def keyed(
    site: Site, talking: Talking, tmp_path_factory: pytest.TempPathFactory
) -> tuple[GatewayProcess, dict[str, str]]:
    """A gateway, and the keys of three users of two tenants."""
    file = KeyFile(tmp_path_factory.mktemp("keys") / "keys.json")
    users = {"ada": "acme", "bob": "acme", "carol": "globex"}
    keys = {user: file.add(user, tenant, user) for user, tenant in users.items()}
    return site.gateway(auth="keys", keys_file=file.path), keys


async def secret(ledger: Ledger, id: str) -> Conversation:
    """Ada's conversation, in which an answer is on its way."""
    conversation = ledger.conversation(id, "acme")
    await conversation.do("init", {"user_id": "ada", "title": SECRET, "context": {"a": SECRET}})
    await conversation.append(SECRET)
    await conversation.do("reply.start", message_id="r")
    await conversation.do("reply.chunk", message_id="r", index=0, texts=[SECRET])
    return conversation


@pytest.mark.parametrize("user", ["bob", "carol"])
@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.method} {row.route}")
async def test_nobody_reaches_anothers_conversation(
    keyed: tuple[GatewayProcess, dict[str, str]], ledger: Ledger, id: str, row: Row, user: str
) -> None:
    gateway, keys = keyed
    conversation = await secret(ledger, id)
    before = await conversation.events()
    headers = {"x-api-key": keys[user]}
    path = row.route
    for name in ("threadId", "conversationId", "chatId", "id"):
        path = path.replace(f"{{{name}}}", id)
    path += row.query.replace("$id", id)
    body = json.loads(json.dumps(row.body).replace("$id", id).replace("$me", user))
    if row.method == "WS":
        said = await over_websocket(gateway.ws + path, headers, body, conversation)
    else:
        said = await over_http(row.method, gateway.http + path, headers, body)
    assert SECRET not in said
    assert LATER not in said
    after = await conversation.events()
    assert after[: len(before)] == before
    assert {each["actor"] for each in after[len(before) :]} <= {None}
    assert (await conversation.state())["title"] == SECRET


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.method} {row.route}")
async def test_without_credentials_no_route_answers(
    keyed: tuple[GatewayProcess, dict[str, str]], row: Row
) -> None:
    gateway, _ = keyed
    path = row.route.replace("{", "").replace("}", "") + row.query
    if row.method == "WS":
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(gateway.ws + path)
        assert refused.value.response.status_code == 401
        return
    async with httpx.AsyncClient(timeout=30) as client:
        answer = await client.request(row.method, gateway.http + path, json=row.body)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")


async def test_who_waits_for_an_id_does_not_hear_its_later_owner(
    keyed: tuple[GatewayProcess, dict[str, str]], ledger: Ledger, id: str
) -> None:
    gateway, keys = keyed
    url = f"{gateway.ws}/conversation/{id}"
    async with websockets.connect(url, additional_headers={"x-api-key": keys["bob"]}) as waiting:
        await waiting.recv()
        await secret(ledger, id)
        heard: list[Any] = []
        with contextlib.suppress(websockets.ConnectionClosed):
            async with asyncio.timeout(30):
                while True:
                    heard.append(await waiting.recv())
    assert heard == []


async def test_lists_are_of_the_user_alone(
    keyed: tuple[GatewayProcess, dict[str, str]], ledger: Ledger, id: str
) -> None:
    gateway, keys = keyed
    await secret(ledger, id)
    async with httpx.AsyncClient(base_url=gateway.http, timeout=30) as client:
        seen: dict[str, set[str]] = {}
        deadline = time.monotonic() + 30
        while id not in seen.get("ada", set()):
            assert time.monotonic() < deadline, "the directory does not take it in"
            for user, key in keys.items():
                answer = await client.get("/api/chat", headers={"x-api-key": key})
                seen[user] = {each["id"] for each in answer.json()["chats"]}
    assert id not in seen["bob"] | seen["carol"]


async def test_searches_find_the_users_own_alone(
    keyed: tuple[GatewayProcess, dict[str, str]], ledger: Ledger, id: str
) -> None:
    gateway, keys = keyed
    conversation = await secret(ledger, id)
    seq = (await conversation.append("the albatross landed", role="user"))["seq"]
    async with httpx.AsyncClient(base_url=gateway.http, timeout=30) as client:
        for user, found in (("ada", [id]), ("bob", []), ("carol", [])):
            for where in ({}, {"chatId": id}):
                answer = await client.get(
                    "/api/chat/search",
                    params={"q": "albatross", "minSeq": seq, **where},
                    headers={"x-api-key": keys[user]},
                )
                assert [each["chatId"] for each in answer.json()["hits"]] == found


async def over_http(method: str, url: str, headers: dict[str, str], body: Any) -> str:
    """All that an answer holds, as far as it comes within a few seconds."""
    said = ""
    async with httpx.AsyncClient(timeout=20) as client:
        request = client.stream(method, url, headers=headers, json=body)
        async with request as answer:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(5):
                    async for chunk in answer.aiter_text():
                        said += chunk
    assert answer.status_code < 500, said
    return said


async def over_websocket(
    url: str, headers: dict[str, str], body: Any, conversation: Conversation
) -> str:
    """All that a WebSocket says, also after more has been said in the conversation."""
    try:
        connection = await websockets.connect(url, additional_headers=headers)
    except websockets.InvalidStatus as refused:
        return (refused.response.body or b"").decode()
    said = ""
    async with connection:
        with contextlib.suppress(websockets.ConnectionClosed, TimeoutError):
            await connection.send(json.dumps(body))
            await conversation.append(LATER, role="assistant")
            while True:
                said += str(await asyncio.wait_for(connection.recv(), 1))
    return said
