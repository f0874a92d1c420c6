"""The audit service: replay, verify, diff and export, from the stream alone."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from hashlib import sha256

import pytest
import pytest_asyncio

from infra.server import EmbeddedServer
from tests.services.auditing import Ledger, Refused, ledger_on


@pytest_asyncio.fixture(scope="module")
async def ledger(nats_server: EmbeddedServer) -> AsyncIterator[Ledger]:
    async with ledger_on(nats_server.url, window_size=5) as ledger:
        await ledger.talk("paged", turns=4)
        await ledger.talk("refusing", turns=1)
        yield ledger


async def test_a_replay_shows_each_event_as_stored_and_the_state_it_led_to(ledger: Ledger) -> None:
    await ledger.talk("shown", turns=2)

    entries = await ledger.replay("shown")

    stored = (await ledger.ask("convo.get.acme.shown.events", limit=100))["events"]
    assert [each["version"] for each in entries] == list(range(1, len(stored) + 1))
    for entry, event in zip(entries, stored, strict=True):
        for field in ("seq", "type", "time", "actor", "command_id", "verb", "data", "hash"):
            assert entry[field] == event[field]
        state = (await ledger.ask("convo.get.acme.shown.state", at_version=entry["version"]))[
            "state"
        ]
        shown = entry["state"]
        for field in ("version", "status", "title", "message_count", "tokens_used"):
            assert shown[field] == state[field]
        assert shown["lifetime_tokens"] == state["lifetime_tokens"]
        assert shown["window"] == [each["message_id"] for each in state["recent_messages"]]
        lines = [
            json.dumps(each, sort_keys=True, ensure_ascii=False, separators=(",", ":")) + "\n"
            for each in state["recent_messages"]
        ]
        assert shown["window_digest"] == sha256("".join(lines).encode()).hexdigest()


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
async def test_pages_of_any_size_make_the_same_replay(ledger: Ledger, limit: int) -> None:
    assert await ledger.replay("paged", limit=limit) == await ledger.replay("paged", limit=1000)


async def test_a_page_is_asked_for_again_or_out_of_order(ledger: Ledger) -> None:
    await ledger.talk("again", turns=3)
    whole = await ledger.replay("again")

    for from_version in (3, 5, 3, 1, 4, 4):
        page = await ledger.audit("again", "replay", from_version=from_version, limit=2)
        assert page["entries"] == whole[from_version - 1 : from_version + 1]
        assert page["next"] == from_version + 2


async def test_pages_are_cut_by_bytes(ledger: Ledger) -> None:
    await ledger.do("large", "init", user_id="ada")
    for _ in range(50):
        await ledger.do("large", "append", role="user", content="x" * 250_000)

    first = await ledger.audit("large", "replay", limit=1000)
    assert len(json.dumps(first)) < ledger.nc.max_payload
    assert "next" in first
    assert [each["version"] for each in await ledger.replay("large", limit=1000)] == list(
        range(1, 53)
    )


async def test_a_replay_ends_where_it_is_asked_to(ledger: Ledger) -> None:
    await ledger.talk("bounded", turns=2)
    whole = await ledger.replay("bounded")

    assert await ledger.replay("bounded", from_version=3, to_version=6, limit=2) == whole[2:6]
    assert await ledger.replay("bounded", to_version=8) == whole
    at = await ledger.replay("bounded", at=whole[4]["time"])
    assert at == [each for each in whole if each["time"] <= whole[4]["time"]]
    assert await ledger.replay("bounded", at="2000-01-01T00:00:00Z") == []
    assert await ledger.replay("bounded", from_version=len(whole) + 1) == []


async def test_a_replay_goes_on_when_the_conversation_does(ledger: Ledger) -> None:
    await ledger.talk("growing", turns=1)
    seen = await ledger.replay("growing")

    await ledger.do("growing", "append", role="user", content="more")

    assert [
        each["data"]["content"]
        for each in await ledger.replay("growing", from_version=len(seen) + 1)
    ] == ["more"]


@pytest.mark.parametrize(
    ("what", "body", "named"),
    [
        ("replay", {"to_version": 99}, "to_version"),
        ("replay", {"from_version": 99}, "from_version"),
        ("replay", {"from_version": 0}, "from_version"),
        ("replay", {"to_version": 1, "at": "2026-01-01T00:00:00Z"}, "not both"),
        ("replay", {"limit": 1001}, "limit"),
        ("replay", {"at": "yesterday"}, "at"),
        ("diff", {}, "from_version"),
        ("diff", {"from_version": 1}, "to_version"),
        ("diff", {"from_version": 1, "to_version": 99}, "to_version"),
        ("export", {"after_seq": -1}, "after_seq"),
        ("verify", {"deep": True}, "deep"),
        ("inspect", {}, "replay, verify, diff, export"),
    ],
)
async def test_what_cannot_be_asked_is_refused_by_name(
    ledger: Ledger, what: str, body: dict[str, object], named: str
) -> None:
    with pytest.raises(Refused) as refused:
        await ledger.audit("refusing", what, **body)
    assert refused.value.error["code"] == "invalid_request"
    assert named in json.dumps(refused.value.error)


@pytest.mark.parametrize(
    ("what", "body"),
    [
        ("replay", {}),
        ("verify", {}),
        ("export", {}),
        ("diff", {"from_version": 0, "to_version": 1}),
    ],
)
async def test_a_conversation_that_does_not_exist_is_told(
    ledger: Ledger, what: str, body: dict[str, object]
) -> None:
    with pytest.raises(Refused) as refused:
        await ledger.audit("nobody", what, **body)
    assert refused.value.error["code"] == "conversation_not_initialized"


async def test_an_intact_conversation_is_valid(ledger: Ledger) -> None:
    await ledger.talk("intact", turns=3)
    [*_, last] = await ledger.replay("intact")

    assert await ledger.audit("intact", "verify") == {
        "ok": True,
        "valid": True,
        "events": last["version"],
        "version": last["version"],
        "seq": last["seq"],
        "head_hash": last["hash"],
    }


async def test_a_diff_names_what_changed_by_its_path(ledger: Ledger) -> None:
    await ledger.do("changed", "init", user_id="ada", context={"topic": "a", "kept": 1})
    await ledger.do("changed", "append", role="user", content="one", message_id="m-1")
    await ledger.do("changed", "update", context={"topic": "b"}, model="gpt-4o")
    await ledger.do("changed", "usage", prompt_tokens=3, completion_tokens=4)

    reply = await ledger.audit("changed", "diff", from_version=3, to_version=5)

    assert reply["events"] == 2
    by_path = {each["path"]: (each["from"], each["to"]) for each in reply["changes"]}
    assert by_path["model"] == (None, "gpt-4o")
    assert by_path["context.topic"] == ("a", "b")
    assert by_path["tokens_used.total"] == (0, 7)
    assert not any(path.startswith(("context.kept", "recent_messages")) for path in by_path)

    back = await ledger.audit("changed", "diff", from_version=5, to_version=1)
    by_path = {each["path"]: (each["from"], each["to"]) for each in back["changes"]}
    assert by_path["recent_messages.m-1"][0]["content"] == "one"
    assert by_path["recent_messages.m-1"][1] is None

    begun = await ledger.audit("changed", "diff", from_version=0, to_version=1)
    assert {"path": "user_id", "from": None, "to": "ada"} in begun["changes"]


async def test_a_diff_between_two_times(ledger: Ledger) -> None:
    await ledger.talk("timed", turns=2)
    entries = await ledger.replay("timed")

    reply = await ledger.audit(
        "timed", "diff", from_at=entries[0]["time"], to_at=entries[-1]["time"]
    )

    assert (reply["from_version"], reply["to_version"]) == (1, entries[-1]["version"])


async def test_an_export_has_every_message_with_its_headers(ledger: Ledger) -> None:
    await ledger.talk("exported", turns=3)
    page = await ledger.audit("exported", "export", limit=4)
    events = page["events"]
    while "next" in page:
        page = await ledger.audit("exported", "export", after_seq=page["next"], limit=4)
        events += page["events"]

    head = bytes(32)
    for version, event in enumerate(events, 1):
        head = sha256(head + event["body"].encode()).digest()
        assert event["headers"]["Event-Hash"] == head.hex()
        assert event["headers"]["Event-Version"] == str(version)
        assert event["subject"] == "convo.evt.0.acme.exported"
    assert len(events) == page["version"]
