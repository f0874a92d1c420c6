"""The threads family, exchange by exchange as docs/contract.md has it."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Any

import httpx
import pytest

from tests.acceptance.client import Ledger

NOT_INITIALIZED = {
    "success": False,
    "error": "Conversation not initialized",
    "code": "conversation_not_initialized",
    "retryable": False,
}
ISO = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z")


async def begun(http: httpx.AsyncClient, id: str, **fields: Any) -> dict[str, Any]:
    answer = await http.post(f"/v1/threads/{id}/init", json={"userId": "ada", **fields})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def say(http: httpx.AsyncClient, id: str, role: str, content: Any) -> dict[str, Any]:
    answer = await http.post(f"/v1/threads/{id}/message", json={"role": role, "content": content})
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_thread_begins(http: httpx.AsyncClient, id: str) -> None:
    told = await begun(http, id, tenantId="acme")
    assert told["success"] is True
    state = told["state"]
    assert ISO.fullmatch(state.pop("createdAt"))
    assert ISO.fullmatch(state.pop("lastActivity"))
    assert state == {
        "threadId": id,
        "userId": "ada",
        "tenantId": "acme",
        "recentMessages": [],
        "tokensUsed": {"prompt": 0, "completion": 0, "total": 0},
    }
    # and again, without harm
    assert (await begun(http, id))["state"]["tenantId"] == "acme"


async def test_messages_are_shown_oldest_first(http: httpx.AsyncClient, id: str) -> None:
    await begun(http, id)
    told = await say(http, id, "user", "Where is my order?")
    assert (told["success"], told["version"] > 1, told["seq"] > 1) == (True, True, True)
    await say(http, id, "assistant", [{"type": "text", "text": "On its way."}])
    answer = await http.get(f"/v1/threads/{id}/messages", params={"limit": 20})
    messages = answer.json()["messages"]
    times = [datetime.fromisoformat(each.pop("timestamp")) for each in messages]
    assert times == sorted(times)
    assert answer.json().keys() == {"messages"}
    assert messages == [
        {"role": "user", "content": "Where is my order?"},
        {"role": "assistant", "content": [{"type": "text", "text": "On its way."}]},
    ]


async def test_the_last_messages_are_shown(http: httpx.AsyncClient, id: str) -> None:
    await begun(http, id)
    for number in range(25):
        await say(http, id, "user", f"{number}")
    for query, shown in (("", 20), ("?limit=3", 3), ("?limit=1000", 25)):
        messages = (await http.get(f"/v1/threads/{id}/messages{query}")).json()["messages"]
        assert [each["content"] for each in messages] == [f"{n}" for n in range(25 - shown, 25)]


async def test_usage_adds_up(http: httpx.AsyncClient, id: str) -> None:
    await begun(http, id)
    for tokens in ({"promptTokens": 10, "completionTokens": 5}, {"promptTokens": 1}):
        answer = await http.post(f"/v1/threads/{id}/usage", json={"completionTokens": 0, **tokens})
        assert answer.json()["success"] is True
    usage = {"prompt": 11, "completion": 5, "total": 16}
    assert answer.json()["usage"] == usage
    assert (await http.get(f"/v1/threads/{id}/usage")).json() == {"usage": usage}


async def test_the_state_is_everything(http: httpx.AsyncClient, id: str) -> None:
    await begun(http, id)
    await say(http, id, "user", "hello")
    await http.post(f"/v1/threads/{id}/usage", json={"promptTokens": 3, "completionTokens": 4})
    told = (await http.get(f"/v1/threads/{id}/state")).json()
    assert told.keys() == {"state"}
    state = told["state"]
    assert state.keys() == {
        *("threadId", "userId", "tenantId", "recentMessages"),
        *("tokensUsed", "lastActivity", "createdAt"),
    }
    assert (state["threadId"], state["userId"], state["tenantId"]) == (id, "ada", "default")
    assert [each["content"] for each in state["recentMessages"]] == ["hello"]
    assert state["tokensUsed"] == {"prompt": 3, "completion": 4, "total": 7}


async def test_a_reset_begins_anew_and_loses_nothing(
    http: httpx.AsyncClient, ledger: Ledger, id: str
) -> None:
    await begun(http, id)
    await say(http, id, "user", "before")
    answer = await http.post(f"/v1/threads/{id}/reset")
    assert answer.json()["success"] is True
    assert (await http.get(f"/v1/threads/{id}/messages")).json() == {"messages": []}
    kept = await ledger.conversation(id, "default").history(include_reset=True)
    assert [each["content"] for each in kept] == ["before"]


@pytest.mark.parametrize(
    ("method", "route", "body"),
    [
        ("POST", "message", {"role": "user", "content": "hi"}),
        ("GET", "messages", None),
        ("POST", "usage", {"promptTokens": 1, "completionTokens": 1}),
        ("GET", "usage", None),
        ("GET", "state", None),
        ("POST", "reset", None),
    ],
)
async def test_before_init_there_is_nothing(
    http: httpx.AsyncClient, id: str, method: str, route: str, body: Any
) -> None:
    answer = await http.request(method, f"/v1/threads/{id}/{route}", json=body)
    assert answer.status_code == 404
    told = answer.json()
    told.pop("details", None)
    assert told == NOT_INITIALIZED


@pytest.mark.parametrize(
    ("route", "body", "field"),
    [
        ("init", {}, "userId"),
        ("init", {"userId": ""}, "userId"),
        ("message", {"content": "hi"}, "role"),
        ("message", {"role": "robot", "content": "hi"}, "role"),
        ("message", {"role": "user", "content": 7}, "content"),
        ("usage", {"promptTokens": -1, "completionTokens": 0}, "promptTokens"),
        ("usage", {"promptTokens": 1}, "completionTokens"),
        ("messages?limit=0", None, "limit"),
    ],
)
async def test_a_wrong_field_is_named(
    http: httpx.AsyncClient, id: str, route: str, body: Any, field: str
) -> None:
    await begun(http, id)
    answer = await http.request(
        "GET" if body is None else "POST", f"/v1/threads/{id}/{route}", json=body
    )
    assert answer.status_code == 400, answer.text
    told = answer.json()
    assert (told["success"], told["code"]) == (False, "invalid_request")
    assert field in told["error"]
    assert field in {each["field"].split(".")[0] for each in told["details"]}


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"\xff", b'"text"'])
async def test_what_is_no_object_is_refused(http: httpx.AsyncClient, id: str, body: bytes) -> None:
    headers = {"content-type": "application/json"}
    answer = await http.post(f"/v1/threads/{id}/message", content=body, headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


async def test_a_body_that_is_not_called_json_is_refused(http: httpx.AsyncClient, id: str) -> None:
    answer = await http.post(f"/v1/threads/{id}/message", content=b'{"role":"user","content":""}')
    assert answer.status_code == 400
    assert "Content-Type: application/json" in answer.json()["error"]


async def test_a_message_that_is_too_large_is_refused(http: httpx.AsyncClient, id: str) -> None:
    await begun(http, id)
    for size in (300_000, 10_000_000):
        answer = await http.post(
            f"/v1/threads/{id}/message", json={"role": "user", "content": "x" * size}
        )
        assert (answer.status_code, answer.json()["code"]) == (413, "message_too_large")


async def test_a_message_sent_again_is_written_once(http: httpx.AsyncClient, id: str) -> None:
    await begun(http, id)
    headers = {"idempotency-key": "once"}
    body = {"role": "user", "content": "hi"}
    told = [
        (await http.post(f"/v1/threads/{id}/message", json=body, headers=headers)).json()
        for _ in range(2)
    ]
    assert told[0] == told[1]
    assert len((await http.get(f"/v1/threads/{id}/messages")).json()["messages"]) == 1


async def test_what_a_message_has_besides_is_kept(
    http: httpx.AsyncClient, ledger: Ledger, id: str
) -> None:
    await begun(http, id)
    body = {"role": "assistant", "content": None, "toolCalls": [{"id": "t"}], "likes": 3}
    answer = await http.post(
        f"/v1/threads/{id}/message", json={**body, "messageId": "m", "metadata": {"a": 1}}
    )
    assert answer.json()["messageId"] == "m"
    [kept] = await ledger.conversation(id, "default").messages()
    assert (kept["tool_calls"], kept["metadata"]) == ([{"id": "t"}], {"likes": 3, "a": 1})


async def test_a_closed_thread_takes_no_message(
    http: httpx.AsyncClient, ledger: Ledger, id: str
) -> None:
    await begun(http, id)
    await ledger.conversation(id, "default").do("close")
    answer = await http.post(f"/v1/threads/{id}/message", json={"role": "user", "content": ""})
    assert (answer.status_code, answer.json()["code"]) == (410, "conversation_closed")


async def test_any_id_names_a_thread(http: httpx.AsyncClient) -> None:
    for name in ("a.b", "*", ">", "漢字", "a b", "50%25"):
        await begun(http, name)
        assert (await http.get(f"/v1/threads/{name}/state")).status_code == 200
    long = "x" * 201
    answer = await http.post(f"/v1/threads/{long}/init", json={"userId": "ada"})
    assert answer.status_code == 400


async def test_unknown_routes_and_methods_are_refused_in_the_same_form(
    http: httpx.AsyncClient, id: str
) -> None:
    for method, route, status, code in (
        ("GET", "/nowhere", 404, "not_found"),
        ("PUT", f"/v1/threads/{id}/reset", 405, "method_not_allowed"),
    ):
        answer = await http.request(method, route)
        assert (answer.status_code, answer.json()["code"]) == (status, code)
        assert answer.json()["success"] is False
