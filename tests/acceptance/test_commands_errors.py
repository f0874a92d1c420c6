"""Every error that a command can end with, beside the refusals that stand with their verbs: too
large, too fast, no store, nobody knows, and a ledger that contradicts itself."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from infra.jetstream.store import Store
from infra.settings import Settings
from services.bootstrap import running
from tests.acceptance.client import Conversation, Ledger, checked_error, eventually, request
from tests.acceptance.conftest import Deploy, connected
from tests.acceptance.deployment import Deployment, Gateway, Hub
from tests.acceptance.stream import copy_events, limit_stream, stored_events

LIMIT = 262_144
HELLO = {"role": "assistant", "content": "Hello"}


# -- message_too_large ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fits", "size"),
    [
        ("x" * LIMIT, LIMIT),
        ("é" * (LIMIT // 2), LIMIT),
        ("漢" * (LIMIT // 3) + "x", LIMIT),
        ([{"type": "text", "text": "x" * (LIMIT - 27)}], LIMIT),
    ],
    ids=["ASCII", "two bytes each", "three bytes each", "parts"],
)
async def test_content_may_be_256_kib_and_no_byte_more(
    conversation: Conversation, fits: Any, size: int
) -> None:
    await conversation.append(fits, role="assistant")
    assert await conversation.contents() == [fits]
    more = (
        fits + "x" if isinstance(fits, str) else [{"type": "text", "text": fits[0]["text"] + "x"}]
    )
    error = await conversation.refused(
        "message_too_large", "append", {"role": "assistant", "content": more}
    )
    assert error["details"] == {"index": 0, "size_bytes": size + 1, "limit_bytes": LIMIT}
    assert error["retryable"] is False
    assert (await conversation.state())["version"] == 2


async def test_the_limit_is_the_operator_s(deploy: Deploy) -> None:
    deployed = deploy(max_content_bytes=1_000)
    nats = await connected(deployed.url)
    conversation = await Ledger(nats).begun()
    await conversation.append("x" * 1_000)
    await conversation.refused(
        "message_too_large", "append", {"role": "user", "content": "x" * 1_001}
    )
    await nats.close()


LARGE: dict[str, str] = {"k": "x" * 900_000}


@pytest.mark.parametrize(
    ("verb", "body"),
    [
        ("append", {**HELLO, "metadata": LARGE}),
        ("append", {"role": "assistant", "content": None, "tool_calls": [LARGE]}),
        ("usage", {"prompt_tokens": 1, "completion_tokens": 1, "metadata": LARGE}),
        ("turn", {"messages": [HELLO, {**HELLO, "metadata": LARGE}]}),
        ("import", {"messages": [{**HELLO, "metadata": LARGE}], "mode": "replace"}),
        ("update", {"context": LARGE}),
        ("reset", {"reason": "x" * 900_000}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_an_event_larger_than_the_ledger_takes_is_refused(
    conversation: Conversation, verb: str, body: dict[str, Any]
) -> None:
    error = await conversation.refused("message_too_large", verb, body)
    assert error["retryable"] is False
    assert (await conversation.state())["version"] == 1
    assert (await conversation.append("next"))["version"] == 3


async def test_an_init_larger_than_the_ledger_takes_begins_nothing(ledger: Ledger) -> None:
    conversation = ledger.conversation()
    body = {"user_id": "ada", "context": LARGE}
    await conversation.refused("message_too_large", "init", body)
    await conversation.get_refused("conversation_not_initialized", "state")
    await conversation.init()


async def test_what_is_sent_together_with_one_too_large_is_not_harmed(
    conversation: Conversation,
) -> None:
    large = {**HELLO, "metadata": LARGE}

    async def fine(number: int) -> None:
        await conversation.append(f"{number}", role="tool")

    await asyncio.gather(
        *map(fine, range(10)),
        conversation.refused("message_too_large", "append", large),
        *map(fine, range(10, 20)),
        conversation.refused("message_too_large", "append", large),
        *map(fine, range(20, 30)),
    )
    assert sorted(await conversation.contents(), key=int) == [f"{n}" for n in range(30)]


# -- rate_limited --------------------------------------------------------------------------------


async def test_over_the_messages_per_minute_it_is_told_when_to_come_again(deploy: Deploy) -> None:
    deployed = deploy(messages_per_minute=4)
    nats = await connected(deployed.url)
    ledger = Ledger(nats)
    conversation, neighbour = await ledger.begun(), await ledger.begun()
    await conversation.append("one", command_id="first")
    await conversation.do("turn", messages=[HELLO, HELLO])
    three = {"messages": [HELLO, HELLO, HELLO]}
    for verb in ("turn", "import"):
        error = await conversation.refused("rate_limited", verb, three)
        assert error["retryable"] is True
        assert 0 < error["details"]["retry_after_ms"] <= 60_000
        assert error["details"]["messages_per_minute"] == 4
    await conversation.append("four")
    error = await conversation.refused("rate_limited", "append", HELLO)
    assert 0 < error["details"]["retry_after_ms"] <= 60_000
    assert len(await conversation.messages()) == 4

    assert (await conversation.append("one", command_id="first"))["duplicate"]
    await conversation.do("usage", prompt_tokens=1, completion_tokens=1)
    await conversation.do("reset")
    await conversation.do("update", title="still possible")
    await conversation.refused("rate_limited", "append", HELLO)
    await neighbour.append("not limited")
    assert deployed.complaints() == []
    await nats.close()


# -- storage_unavailable -------------------------------------------------------------------------


async def test_a_full_ledger_refuses_writes_answers_reads_and_recovers(deploy: Deploy) -> None:
    deployed = deploy()
    nats = await connected(deployed.url)
    ledger = Ledger(nats)
    conversation = await ledger.begun()
    await conversation.append("kept", role="tool")
    await limit_stream(nats, "CONVO-EVENTS-0", max_bytes=1_000)

    for verb, body in (("append", HELLO), ("turn", {"messages": [HELLO] * 30}), ("reset", {})):
        error = await conversation.refused("storage_unavailable", verb, body)
        assert error["retryable"] is True
    await ledger.conversation().refused("storage_unavailable", "init", {"user_id": "ada"})
    together = [conversation.refused("storage_unavailable", "append", HELLO) for _ in range(64)]
    await asyncio.gather(*together)
    assert await conversation.contents() == ["kept"]

    await limit_stream(nats, "CONVO-EVENTS-0", max_bytes=-1)
    await conversation.append("room again", role="tool")
    assert await conversation.contents() == ["kept", "room again"]
    assert (await conversation.state())["version"] == 3
    assert deployed.complaints() == []
    await nats.close()


class Remote:
    """Services and a client on one server, the ledger on another that a test can take away.

    The services run in this process with their waits shortened: a write is given up after 3 s.
    """

    def __init__(self, hub: Hub, ledger: Ledger) -> None:
        self.hub = hub
        self.ledger = ledger


@pytest_asyncio.fixture
async def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Remote]:
    hub = Hub(tmp_path / "hub")
    gateway = Gateway(tmp_path / "gateway", hub)
    monkeypatch.setattr(Store, "open", partial(Store.open, deadline=3.0, request_timeout=0.5))
    hub.start()
    gateway.start()
    try:
        async with running(Settings(), ("commands", "queries"), url=gateway.url):
            nats = await connected(gateway.url)
            yield Remote(hub, Ledger(nats))
            await nats.close()
    finally:
        gateway.stop()
        hub.stop()


async def test_without_the_store_every_request_is_answered(remote: Remote) -> None:
    known, unknown = await remote.ledger.begun(), remote.ledger.conversation()
    remote.hub.kill()
    for error in await asyncio.gather(
        known.refused("storage_unavailable", "append", HELLO),
        known.refused("storage_unavailable", "turn", {"messages": [HELLO, HELLO]}),
        known.get_refused("storage_unavailable", "messages"),
        known.get_refused("storage_unavailable", "history"),
        unknown.refused("storage_unavailable", "init", {"user_id": "ada"}),
        unknown.get_refused("storage_unavailable", "state"),
    ):
        assert error["retryable"] is True
    remote.hub.start()
    await eventually(lambda: known.append("here again", role="tool"))
    assert await eventually(known.contents) == ["here again"]


# -- outcome_unknown -----------------------------------------------------------------------------


async def test_a_write_that_nobody_answers_is_unknown_and_may_be_sent_again(
    remote: Remote,
) -> None:
    one, other = await remote.ledger.begun(), await remote.ledger.begun()
    message = {"role": "assistant", "content": "once", "command_id": "k"}
    turn = {"messages": [HELLO, HELLO], "command_id": "k"}
    remote.hub.freeze()
    for error in await asyncio.gather(
        one.refused("outcome_unknown", "append", message),
        other.refused("outcome_unknown", "turn", turn),
    ):
        assert error["retryable"] is True
        assert "same command id" in error["message"]
    remote.hub.thaw()
    assert (await eventually(lambda: one.do("append", message)))["version"] == 2
    assert (await eventually(lambda: other.do("turn", turn)))["version"] == 3
    assert await eventually(one.contents) == ["once"]
    assert await eventually(other.contents) == ["Hello", "Hello"]
    assert (await eventually(lambda: one.do("append", message)))["duplicate"]
    assert (await eventually(lambda: other.do("turn", turn)))["duplicate"]


# -- internal ------------------------------------------------------------------------------------


def foreign(version: int, body: bytes, digest: bytes) -> dict[str, str]:
    """Nothing of a ledger's event."""
    return {}


def not_in_the_chain(version: int, body: bytes, digest: bytes) -> dict[str, str]:
    """An event whose hash is not the one that its body gives."""
    return {
        "Event-Type": "MessageAppended",
        "Event-Version": str(version + 1),
        "Event-Hash": hashlib.sha256(b"something else").hexdigest(),
    }


def of_a_wrong_version(version: int, body: bytes, digest: bytes) -> dict[str, str]:
    """An event that fits the chain and leaves a version out."""
    return {
        "Event-Type": "MessageAppended",
        "Event-Version": str(version + 2),
        "Event-Hash": hashlib.sha256(digest + body).hexdigest(),
    }


def no_json(version: int, body: bytes, digest: bytes) -> dict[str, str]:
    """An event that fits the chain, of a known type, whose body is none."""
    return of_a_wrong_version(version - 1, body, digest)


def of_an_unknown_type(version: int, body: bytes, digest: bytes) -> dict[str, str]:
    """An event that fits the chain, of a type that this release does not know."""
    return {**no_json(version, body, digest), "Event-Type": "ConversationPainted"}


Damage = Callable[[int, bytes, bytes], dict[str, str]]


@pytest.mark.parametrize(
    "damage", [foreign, not_in_the_chain, of_a_wrong_version, no_json, of_an_unknown_type]
)
@pytest.mark.parametrize("in_memory", [True, False], ids=["in memory", "cold"])
async def test_a_damaged_conversation_is_told_with_an_incident_and_harms_no_other(
    deployment: Deployment, damage: Damage, in_memory: bool
) -> None:
    nats = await connected(deployment.url)
    ledger = Ledger(nats)
    conversation, neighbour = await ledger.begun(), await ledger.begun()
    await conversation.append("Hello", role="tool")
    if not in_memory:  # a conversation that no service has ever read
        original, conversation = conversation, ledger.conversation()
        await copy_events(nats, original.tokens, conversation.tokens, deployment.partitions)
    last = (await stored_events(nats, conversation.tokens, deployment.partitions))[-1]
    body = b"neither JSON nor an event"
    headers = damage(2, body, bytes.fromhex(last.headers["Event-Hash"]))
    await nats.jetstream().publish(last.subject, body, headers=headers)
    deployment.complaints()

    told = []
    for subject, body in (
        (f"convo.cmd.{conversation.tokens}.append", json.dumps(HELLO).encode()),
        (f"convo.cmd.{conversation.tokens}.append", json.dumps(HELLO).encode()),
        (f"convo.get.{conversation.tokens}.messages", b""),
        (f"convo.get.{conversation.tokens}.usage", b""),
        (f"convo.get.{conversation.tokens}.state", b""),
        (f"convo.cmd.{conversation.tokens}.init", b'{"user_id": "ada"}'),
    ):
        reply, told_in_headers = await request(nats, subject, body)
        error = checked_error(reply, told_in_headers, "internal")
        assert error["retryable"] is False
        told.append(error["details"]["incident"])
        assert told[-1] in error["message"]
    assert len(set(told)) == len(told)
    complaints = deployment.complaints()
    assert len(complaints) == len(told)
    for incident, complaint in zip(told, complaints, strict=True):
        assert incident in complaint

    await neighbour.append("unharmed", role="tool")
    assert await neighbour.contents() == ["unharmed"]
    await nats.close()
