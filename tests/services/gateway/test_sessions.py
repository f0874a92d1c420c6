"""The sessions family, exchange by exchange as docs/contract.md has it."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from tests.acceptance.client import Ledger


async def update(http: httpx.AsyncClient, id: str, **body: Any) -> httpx.Response:
    return await http.post(f"/sessions/{id}/update", json=body)


async def append(http: httpx.AsyncClient, id: str, content: str, **fields: Any) -> None:
    message = {"role": "user", "content": content, **fields}
    answer = await update(http, id, operation="append_message", message=message)
    assert answer.status_code == 200, answer.text
    assert answer.json()["success"] is True


async def history(http: httpx.AsyncClient, id: str, query: str = "") -> dict[str, Any]:
    answer = await http.get(f"/sessions/{id}/history{query}")
    assert answer.status_code == 200, answer.text
    told: dict[str, Any] = answer.json()
    return told


async def test_a_session_that_nobody_has_begun_is_empty(http: httpx.AsyncClient, id: str) -> None:
    assert await history(http, id) == {"success": True, "data": [], "metadata": {}, "more": False}
    assert (await http.delete(f"/sessions/{id}/clear")).json() == {"success": True}


async def test_messages_are_kept_with_their_time(http: httpx.AsyncClient, id: str) -> None:
    await append(http, id, "then", timestamp=1_700_000_000.25)
    await append(http, id, "now")
    told = await history(http, id)
    assert told["data"][0] == {"role": "user", "content": "then", "timestamp": 1_700_000_000.25}
    assert told["data"][1]["timestamp"] > 1_700_000_000.25
    assert [each["content"] for each in told["data"]] == ["then", "now"]


async def test_a_history_is_set_in_place_of_another(
    http: httpx.AsyncClient, ledger: Ledger, id: str
) -> None:
    await append(http, id, "before")
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "hi", "timestamp": 1_700_000_000},
    ]
    answer = await update(http, id, operation="set_history", messages=messages)
    assert answer.json()["success"] is True
    assert [each["content"] for each in (await history(http, id))["data"]] == ["be brief", "hi"]
    kept = await ledger.conversation(id, "default").history(include_reset=True)
    assert [each["content"] for each in kept] == ["before", "be brief", "hi"]


async def test_metadata_is_merged(http: httpx.AsyncClient, id: str) -> None:
    await update(http, id, operation="update_metadata", metadata={"a": 1, "b": {"c": 2}})
    await update(http, id, operation="update_metadata", metadata={"a": None, "d": 3})
    assert (await history(http, id))["metadata"] == {"b": {"c": 2}, "d": 3}


async def test_what_is_cleared_is_hidden_and_kept(
    http: httpx.AsyncClient, ledger: Ledger, id: str
) -> None:
    await append(http, id, "said")
    await update(http, id, operation="update_metadata", metadata={"a": 1})
    assert (await http.delete(f"/sessions/{id}/clear")).json() == {"success": True}
    assert await history(http, id) == {"success": True, "data": [], "metadata": {}, "more": False}
    kept = await ledger.conversation(id, "default").history(include_reset=True)
    assert [each["content"] for each in kept] == ["said"]


async def test_a_history_is_longer_than_the_window(http: httpx.AsyncClient, id: str) -> None:
    messages = [{"role": "user", "content": f"{number}"} for number in range(300)]
    await update(http, id, operation="set_history", messages=messages)
    told = await history(http, id)
    assert [each["content"] for each in told["data"]] == [f"{number}" for number in range(300)]
    told = await history(http, id, "?limit=7")
    assert [each["content"] for each in told["data"]] == [f"{n}" for n in range(293, 300)]
    assert told["more"] is True


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "operation"),
        ({"operation": "delete"}, "operation"),
        ({"operation": "append_message"}, "message"),
        ({"operation": "append_message", "message": {"role": "user", "content": 1}}, "content"),
        ({"operation": "set_history", "messages": [{"content": "x"}]}, "role"),
        ({"operation": "update_metadata", "metadata": []}, "metadata"),
    ],
)
async def test_a_wrong_field_is_named(
    http: httpx.AsyncClient, id: str, body: dict[str, Any], named: str
) -> None:
    answer = await update(http, id, **body)
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")
    assert named in answer.json()["error"]
    assert (await history(http, id))["data"] == []
