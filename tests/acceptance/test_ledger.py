"""The ledger itself, read with a NATS client only: streams, events, hashes, partitions, live."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from nats.aio.msg import Msg

from tests.acceptance.client import Conversation, Ledger
from tests.acceptance.conftest import connected
from tests.acceptance.deployment import Deployment, NatsServer
from tests.acceptance.raw import RawConnection
from tests.acceptance.stream import api, partition_of, stored_events

IDS = ["c-1", "a.b", "ä ö", "*", ">", "x" * 200, "漢字", "", "c-2", "c-3", "c-4", "c-5", "c-6"]


LIVED = 48
"""The events that `lived` adds to a conversation."""


async def lived(conversation: Conversation) -> None:
    """Lets a conversation have one event of each type, single and in batches."""
    await conversation.append("Hello, Wörld \u2028 👩")
    turn = [{"role": "user", "content": "one"}, {"role": "assistant", "content": [{"type": "x"}]}]
    use = {"prompt_tokens": 3, "completion_tokens": 1, "cost_usd": "0.000000001"}
    await conversation.do("turn", messages=turn, usage=use)
    await conversation.do("update", context={"a": None, "b": [1.5, True]}, title=None)
    await conversation.do("import", messages=turn * 20, mode="replace")
    await conversation.do("reset", reason="why not")


async def test_the_streams_keep_what_they_are_given(ledger: Ledger, deployment: Deployment) -> None:
    for partition in range(deployment.partitions):
        info = await api(ledger.nats, f"STREAM.INFO.CONVO-EVENTS-{partition}")
        config = info["config"]
        promised = {
            "subjects": [f"convo.evt.{partition}.*.*"],
            "storage": "file",
            "discard": "new",
            "deny_delete": True,
            "deny_purge": True,
            "allow_direct": True,
            "allow_atomic": True,
            "compression": "none",
            "max_msgs": -1,
            "max_age": 0,
            "max_msgs_per_subject": -1,
            "max_msg_size": 900_000,
        }
        assert {name: config[name] for name in promised} == promised
        assert config["republish"]["dest"] == "convo.live.>"
        for refused in (f"STREAM.PURGE.{config['name']}", f"STREAM.MSG.DELETE.{config['name']}"):
            answer = await ledger.nats.request(f"$JS.API.{refused}", b'{"seq": 1}', timeout=10)
            assert "error" in json.loads(answer.data)


async def test_each_event_is_one_json_message_on_the_conversation_s_subject(
    conversation: Conversation, deployment: Deployment
) -> None:
    await lived(conversation)
    tokens = conversation.tokens
    messages = await stored_events(conversation.nats, tokens, deployment.partitions)
    shown = await conversation.events()
    assert len(messages) == len(shown) == 1 + LIVED
    for version, (message, event) in enumerate(zip(messages, shown, strict=True), start=1):
        body = json.loads(message.body)
        partition = partition_of(tokens, deployment.partitions)
        assert message.subject == f"convo.evt.{partition}.{tokens}"
        assert message.headers["Event-Type"] == body["type"]
        assert message.headers["Event-Version"] == str(version) == str(body["version"])
        assert event == {**body, "seq": message.seq, "hash": message.headers["Event-Hash"]}
        assert list(body)[:8] == [
            "type", "schema", "tenant_id", "conversation_id", "version", "time", "actor",
            "command_id",
        ]  # fmt: skip
        assert list(body)[-1] == "data"


async def test_the_chain_can_be_recomputed_by_anyone(
    conversation: Conversation, deployment: Deployment
) -> None:
    await lived(conversation)
    digest = bytes(32)
    messages = await stored_events(conversation.nats, conversation.tokens, deployment.partitions)
    for message in messages:
        digest = hashlib.sha256(digest + message.body).digest()
        assert message.headers["Event-Hash"] == digest.hex()


async def test_every_event_is_republished_live_and_in_order(
    conversation: Conversation, deployment: Deployment
) -> None:
    heard: list[Msg] = []
    arrived = asyncio.Event()

    async def hear(message: Msg) -> None:
        heard.append(message)
        if len(heard) == LIVED:
            arrived.set()

    await conversation.nats.subscribe(f"convo.live.*.{conversation.tokens}", cb=hear)
    await lived(conversation)
    await asyncio.wait_for(arrived.wait(), 30)
    stored = await stored_events(conversation.nats, conversation.tokens, deployment.partitions)
    for message, event in zip(heard, stored[1:], strict=True):
        assert message.data == event.body
        assert message.subject == event.subject.replace("convo.evt", "convo.live", 1)
        assert message.headers is not None
        assert message.headers["Event-Hash"] == event.headers["Event-Hash"]


@pytest.fixture
def mapping(deployment: Deployment, tmp_path: Path) -> Iterator[str]:
    """The URL of a server that maps `probe.<tenant>.<conversation>` to `found.<partition>`."""
    config = f'mappings {{ "probe.*.*": "found.{{{{partition({deployment.partitions},1,2)}}}}" }}'
    server = NatsServer(tmp_path / "mapping", config=config)
    server.start()
    yield server.url
    server.stop()


async def test_a_partition_is_the_one_that_nats_itself_would_choose(
    ledger: Ledger, deployment: Deployment, mapping: str
) -> None:
    seen = set()
    with RawConnection(mapping) as nats:
        nats.subscribe(b"found.*")
        for name in filter(None, IDS):
            conversation = ledger.conversation(
                name, tenant_id=f"{name}-{deployment.partitions}"[-200:]
            )
            reply = await conversation.init()
            nats.publish(f"probe.{conversation.tokens}".encode(), b"")
            chosen = int(nats.next().subject.decode().rpartition(".")[2])
            assert reply["partition"] == chosen
            [stored] = await stored_events(ledger.nats, conversation.tokens, deployment.partitions)
            assert stored.subject.split(".")[2] == str(chosen)
            seen.add(chosen)
    assert seen == set(range(deployment.partitions))


async def test_the_sequence_of_a_reply_is_that_of_the_stream(
    conversation: Conversation, deployment: Deployment
) -> None:
    replies = [
        await conversation.append("one"),
        await conversation.do("turn", messages=[{"role": "tool", "content": "x"}] * 3),
        await conversation.do("reset"),
    ]
    stored = await stored_events(conversation.nats, conversation.tokens, deployment.partitions)
    told = [event for reply in replies for event in reply["events"]]
    assert [(event["version"], event["seq"]) for event in told] == [
        (version, event.seq) for version, event in enumerate(stored[1:], start=2)
    ]
    assert [reply["seq"] for reply in replies] == [reply["events"][-1]["seq"] for reply in replies]


async def test_a_ledger_outlives_its_services_and_its_server(deploy: Any) -> None:
    deployed: Deployment = deploy()
    nats = await connected(deployed.url)
    conversation = await Ledger(nats).begun()
    await lived(conversation)
    before = await conversation.state(), await conversation.events()
    first = await conversation.append("once", command_id="k", role="tool")
    await nats.close()
    deployed.stop()
    deployed.start()
    nats = await connected(deployed.url)
    conversation = Conversation(nats, "acme", conversation.conversation_id)
    again = await conversation.append("once", command_id="k", role="tool")
    assert again == {**first, "duplicate": True}
    version = first["version"] - 1
    assert await conversation.state(at_version=version) == before[0]
    assert (await conversation.events())[:-1] == before[1]
    await nats.close()


async def test_another_number_of_partitions_is_refused_with_the_difference(deploy: Any) -> None:
    deployed: Deployment = deploy(partitions=2)
    for worker in deployed.workers:
        worker.stop()
    for other in (1, 3):
        stranger = deployed.worker(partitions=other)
        stranger.start()
        assert stranger.exit_status() == 1
        assert "partition" in stranger.log
        assert "Traceback" not in stranger.log
