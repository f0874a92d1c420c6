"""The chats family: exchange by exchange as docs/contract.md has it.

`tests/clients` runs the AI SDK itself against it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any
from uuid import uuid4

import httpx
import pytest

from tests.acceptance.client import Conversation, Ledger
from tests.model_server import said
from tests.services.gateway.site import Site
from tests.services.gateway.talking import Talking

pytestmark = pytest.mark.usefixtures("talking")

JSON = dict[str, Any]
WITHIN_S = 30


def asked(text: str, id: str | None = None, **more: Any) -> JSON:
    """What `useChat` posts for a message."""
    parts = [{"type": "text", "text": text}]
    return {"messages": [{"id": id or f"m-{uuid4()}", "role": "user", "parts": parts}], **more}


async def made(http: httpx.AsyncClient) -> str:
    """A new chat's id."""
    answer = await http.post("/api/chat")
    assert answer.status_code == 200, answer.text
    return str(answer.json()["chatId"])


async def chunks(answer: httpx.Response) -> AsyncIterator[Any]:
    """The chunks of a UI message stream; the last is `[DONE]`."""
    assert answer.status_code == 200, await answer.aread()
    assert answer.headers["x-vercel-ai-ui-message-stream"] == "v1"
    assert answer.headers["content-type"].startswith("text/event-stream")
    async for line in answer.aiter_lines():
        if line.startswith("data: "):
            data = line[6:]
            yield data if data == "[DONE]" else json.loads(data)


async def streamed(http: httpx.AsyncClient, id: str, body: JSON) -> list[Any]:
    async with http.stream("POST", f"/api/chat/{id}", json=body) as answer:
        return [chunk async for chunk in chunks(answer)]


def text_in(found: list[Any]) -> str:
    return "".join(each["delta"] for each in found if each != "[DONE]" and "delta" in each)


async def shown(http: httpx.AsyncClient, id: str) -> list[tuple[str, str]]:
    """(role, text) of a chat's history."""
    answer = await http.get(f"/api/chat/{id}/history")
    assert answer.status_code == 200, answer.text
    assert answer.json()["chatId"] == id
    return [
        (each["role"], "".join(part["text"] for part in json.loads(each["content"])))
        for each in answer.json()["messages"]
    ]


async def test_a_chat_is_made_and_listed(http: httpx.AsyncClient) -> None:
    answer = await http.post("/api/chat")
    assert answer.json().keys() == {"chatId", "userId", "createdAt"}
    assert answer.json()["userId"] == "local"
    assert isinstance(answer.json()["createdAt"], int)
    id = answer.json()["chatId"]
    other = await made(http)
    await streamed(http, id, asked("say 1"))

    async with asyncio.timeout(WITHIN_S):  # the list follows a few milliseconds behind
        while True:
            listed = (await http.get("/api/chat")).json()["chats"]
            if [each["id"] for each in listed[:2]] == [id, other] and listed[0]["title"]:
                break
            await asyncio.sleep(0.02)
    assert listed[0].keys() == {"id", "title", "createdAt", "updatedAt"}
    assert listed[0]["title"] == "say 1"
    assert datetime.fromisoformat(listed[0]["createdAt"]) < datetime.fromisoformat(
        listed[0]["updatedAt"]
    )
    first = (await http.get("/api/chat?limit=1")).json()
    second = (await http.get("/api/chat", params={"limit": 1, "cursor": first["next"]})).json()
    assert [first["chats"][0]["id"], second["chats"][0]["id"]] == [id, other]


async def test_what_was_said_is_found(http: httpx.AsyncClient, ledger: Ledger) -> None:
    id, other = await made(http), await made(http)
    said = [
        await Conversation(ledger.nats, "default", each).append(text, role=role)
        for each, role, text in (
            (id, "user", "Where do albatrosses nest?"),
            (id, "assistant", "Most albatrosses nest on islands."),
            (other, "user", "No albatrosses here."),
        )
    ]
    seq = said[-1]["seq"]

    async def found(**params: Any) -> list[JSON]:
        answer = await http.get("/api/chat/search", params={"minSeq": seq, **params})
        assert answer.status_code == 200, answer.text
        return list(answer.json()["hits"])

    assert {each["chatId"] for each in await found(q="albatross*")} == {id, other}
    assert len(await found(q="albatross*", limit=1)) == 1
    [hit] = await found(q='"nest on"', chatId=id, role="assistant")
    assert hit.keys() == {"chatId", "messageId", "role", "createdAt", "snippet", "score"}
    assert (hit["chatId"], hit["role"]) == (id, "assistant")
    assert hit["messageId"] == said[1]["message_id"]
    assert hit["snippet"] == "Most albatrosses ⟦nest on⟧ islands."
    assert await found(q="albatross*", to="2020-01-01T00:00:00Z") == []
    for wrong in ("", "q=", "q=a&limit=0", "q=a&from=noon", "q=a&role=robot"):
        answer = await http.get(f"/api/chat/search?{wrong}")
        assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_an_answer_is_streamed_in_the_sdks_protocol(http: httpx.AsyncClient) -> None:
    id = await made(http)

    found = await streamed(http, id, asked("say 12", "m-1"))

    assert [each if each == "[DONE]" else each["type"] for each in found] == [
        *("start", "text-start"),
        *(["text-delta"] * (len(found) - 5)),
        *("text-end", "finish", "[DONE]"),
    ]
    assert found[0]["messageId"] == "re-m-1"
    assert found[-2] == {"type": "finish", "finishReason": "stop"}
    assert text_in(found) == said(12)
    history = (await http.get(f"/api/chat/{id}/history")).json()["messages"]
    assert [each["id"] for each in history] == ["m-1", "re-m-1"]
    assert json.loads(history[1]["content"]) == [{"type": "text", "text": said(12)}]
    assert history[0].keys() == {"id", "role", "content", "createdAt"}


async def test_the_default_transport_posts_to_the_familys_root(
    http: httpx.AsyncClient, id: str
) -> None:
    async with http.stream("POST", "/api/chat", json=asked("hello", id=id) | {"id": id}) as answer:
        found = [chunk async for chunk in chunks(answer)]

    assert text_in(found) == "hello"
    assert await shown(http, id) == [("user", "hello"), ("assistant", "hello")]


async def test_a_message_alone_does_too(http: httpx.AsyncClient) -> None:
    id = await made(http)
    [message] = asked("hello")["messages"]
    assert text_in(await streamed(http, id, {"message": message})) == "hello"


async def test_an_answer_goes_on_and_is_resumed_from_its_beginning(
    http: httpx.AsyncClient, talking: Talking
) -> None:
    id = await made(http)
    assert (await http.get(f"/api/chat/{id}/stream")).status_code == 204
    body = asked(f"say 60 hold 20 {id}", "m-1")
    async with http.stream("POST", f"/api/chat/{id}", json=body) as answer:
        async for chunk in chunks(answer):
            if chunk != "[DONE]" and "delta" in chunk:
                break

    async with http.stream("GET", f"/api/chat/{id}/stream") as answer:
        found = []
        async for chunk in chunks(answer):
            found.append(chunk)
            if text_in(found) == said(20):
                talking.model.go(id)

    assert found[0] == {"type": "start", "messageId": "re-m-1"}
    assert found[-2]["type"] == "finish"
    assert text_in(found) == said(60)
    assert (await http.get(f"/api/chat/{id}/stream")).status_code == 204
    assert (await shown(http, id))[1] == ("assistant", said(60))


async def test_what_is_on_its_way_is_not_in_the_history_yet(http: httpx.AsyncClient) -> None:
    id = await made(http)
    async with http.stream("POST", f"/api/chat/{id}", json=asked("stall after 1")) as answer:
        async for chunk in chunks(answer):
            if chunk != "[DONE]" and "delta" in chunk:
                break
        assert await shown(http, id) == [("user", "stall after 1")]
    await http.post(f"/api/chat/{id}/stop")


async def test_a_stop_is_told_to_who_reads(http: httpx.AsyncClient) -> None:
    id = await made(http)
    async with http.stream("POST", f"/api/chat/{id}", json=asked("stall after 5")) as answer:
        found = []
        async for chunk in chunks(answer):
            found.append(chunk)
            if chunk != "[DONE]" and "delta" in chunk and text_in(found) == said(5):
                stopped = await http.post(f"/api/chat/{id}/stop")
                assert stopped.json() == {"success": True, "message": "Stopped"}

    assert [each["type"] for each in found[-3:-1]] == ["text-end", "abort"]
    assert await shown(http, id) == [("user", "stall after 5"), ("assistant", said(5))]
    nothing = await http.post(f"/api/chat/{id}/stop")
    assert nothing.json() == {"success": True, "message": "Nothing was on its way"}


async def test_a_model_that_fails_is_an_error_in_the_stream(http: httpx.AsyncClient) -> None:
    id = await made(http)
    for _ in range(2):  # the second time it has ended already
        found = await streamed(http, id, asked("break after 2", "m-1"))
        assert text_in(found) == said(2)
        assert found[-2] == {"type": "error", "errorText": "the connection to the model failed"}


async def test_a_message_sent_again_is_not_said_again(http: httpx.AsyncClient) -> None:
    id = await made(http)
    body = asked("say 9", "m-1")
    first = await streamed(http, id, body)

    again = await streamed(http, id, body)

    assert text_in(again) == text_in(first) == said(9)
    assert len(await shown(http, id)) == 2


async def test_a_message_sent_twice_at_once_is_said_once(http: httpx.AsyncClient) -> None:
    id = await made(http)
    body = asked("say 9", "m-1")

    found = await asyncio.gather(*(streamed(http, id, body) for _ in range(4)))

    assert [text_in(each) for each in found] == [said(9)] * 4
    assert await shown(http, id) == [("user", "say 9"), ("assistant", said(9))]


async def test_regenerating_takes_the_answer_back(http: httpx.AsyncClient) -> None:
    id = await made(http)
    body = asked("say 3", "m-1")
    first = await streamed(http, id, body)

    second = await streamed(http, id, body | {"trigger": "regenerate-message"})

    assert second[0]["messageId"] != first[0]["messageId"]
    assert text_in(second) == said(3)
    assert await shown(http, id) == [("user", "say 3"), ("assistant", said(3))]
    answer = await http.post(
        f"/api/chat/{id}", json=asked("never said", trigger="regenerate-message")
    )
    assert answer.status_code == 400


async def test_a_message_that_was_changed_is_answered_anew(http: httpx.AsyncClient) -> None:
    id = await made(http)
    await streamed(http, id, asked("say 3", "m-1"))

    await streamed(http, id, asked("say 4", "m-1", messageId="m-1"))

    assert await shown(http, id) == [("user", "say 4"), ("assistant", said(4))]


async def test_parts_that_are_no_text_are_kept(http: httpx.AsyncClient, ledger: Ledger) -> None:
    id = await made(http)
    file = {"type": "file", "mediaType": "image/png", "url": "data:image/png;base64,AA=="}
    parts = [{"type": "text", "text": "say 1"}, file]

    await streamed(http, id, {"message": {"role": "user", "parts": parts, "metadata": {"a": 1}}})

    history = (await http.get(f"/api/chat/{id}/history")).json()["messages"]
    assert json.loads(history[0]["content"]) == parts
    conversation = Conversation(ledger.nats, "default", id)
    assert (await conversation.messages())[0]["metadata"] == {"metadata": {"a": 1}}


async def test_a_deleted_chat_is_gone(http: httpx.AsyncClient) -> None:
    id = await made(http)
    await streamed(http, id, asked("say 1"))

    deleted = await http.delete(f"/api/chat/{id}")

    assert deleted.json() == {"success": True, "message": "Chat deleted"}
    assert (await http.delete(f"/api/chat/{id}")).status_code == 200
    for method, path, body in (
        ("GET", f"/api/chat/{id}/history", None),
        ("GET", f"/api/chat/{id}/stream", None),
        ("POST", f"/api/chat/{id}", asked("anybody?")),
        ("POST", f"/api/chat/{id}/stop", None),
        ("POST", "/api/chat", asked("anybody?") | {"id": id}),
    ):
        answer = await http.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]) == (404, "Chat not found"), path
    async with asyncio.timeout(WITHIN_S):
        while id in {  # noqa: ASYNC110 - it is elsewhere
            each["id"] for each in (await http.get("/api/chat")).json()["chats"]
        }:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"messages": []},
        {"messages": [{"role": "assistant", "parts": [{"type": "text", "text": "hi"}]}]},
        {"message": {"role": "user", "parts": []}},
        {"message": {"role": "user", "parts": [{"type": "text", "text": ""}]}},
        {"messages": "hello"},
        {"messages": [{"role": "user", "parts": ["hello"]}]},
        asked("hello", trigger="other"),
    ],
)
async def test_what_cannot_be_read_is_refused(http: httpx.AsyncClient, body: JSON) -> None:
    answer = await http.post(f"/api/chat/{await made(http)}", json=body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_what_is_not_there_is_not_found(http: httpx.AsyncClient, id: str) -> None:
    for method, path, body in (
        ("GET", f"/api/chat/{id}/history", None),
        ("GET", f"/api/chat/{id}/stream", None),
        ("POST", f"/api/chat/{id}", asked("hello")),
        ("POST", f"/api/chat/{id}/stop", None),
        ("DELETE", f"/api/chat/{id}", None),
    ):
        answer = await http.request(method, path, json=body)
        assert (answer.status_code, answer.json()["error"]) == (404, "Chat not found"), path


async def test_openapi_says_what_streams(http: httpx.AsyncClient) -> None:
    answer = await http.get("/openapi.json")
    assert answer.status_code == 200
    for path, method in (("/api/chat/{chatId}", "post"), ("/chat", "get")):
        content = answer.json()["paths"][path][method]["responses"]["200"]["content"]
        assert list(content) == ["text/event-stream"]


async def test_a_gateway_that_stops_cuts_streams_off_so_that_nobody_takes_them_for_whole(
    site: Site, http: httpx.AsyncClient, talking: Talking
) -> None:
    stopping = site.gateway()
    id = await made(http)
    body = asked(f"say 100 hold 20 {id}")

    async def read() -> None:
        async with (
            httpx.AsyncClient(base_url=stopping.http, timeout=WITHIN_S) as client,
            client.stream("POST", f"/api/chat/{id}", json=body) as answer,
        ):
            async for chunk in chunks(answer):
                if chunk != "[DONE]" and "delta" in chunk:
                    stopping.ask_to_stop()

    with pytest.raises(httpx.RemoteProtocolError):
        await read()
    assert stopping.exit_status() == 0
    assert not [line for line in stopping.log.splitlines() if "ERROR" in line]

    async with http.stream("GET", f"/api/chat/{id}/stream") as answer:
        talking.model.go(id)
        assert text_in([chunk async for chunk in chunks(answer)]) == said(100)
