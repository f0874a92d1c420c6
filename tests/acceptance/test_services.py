"""The services as NATS micro services: `$SRV.PING`, `INFO` and `STATS` answer for each."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from nats.aio.msg import Msg

from tests.acceptance.client import Ledger
from tests.acceptance.conftest import Deploy, connected
from tests.acceptance.raw import RawConnection

SERVICES = ["convo-commands", "convo-queries"]


async def asked(ledger: Ledger, subject: str) -> dict[str, Any]:
    """The one answer to a question about a service."""
    answer = await ledger.nats.request(subject, b"", timeout=10)
    found: dict[str, Any] = json.loads(answer.data)
    return found


@pytest.mark.parametrize("service", SERVICES)
async def test_each_answers_for_itself(ledger: Ledger, service: str) -> None:
    ping = await asked(ledger, f"$SRV.PING.{service}")
    assert ping["type"] == "io.nats.micro.v1.ping_response"
    assert ping["name"] == service
    for kind in ("INFO", "STATS"):
        by_id = await asked(ledger, f"$SRV.{kind}.{service}.{ping['id']}")
        assert (by_id["name"], by_id["id"]) == (service, ping["id"])
        assert by_id["type"] == f"io.nats.micro.v1.{kind.lower()}_response"
        assert by_id["version"] == ping["version"]
        assert by_id["endpoints"]
    info = await asked(ledger, f"$SRV.INFO.{service}")
    assert info["description"]
    [endpoint] = info["endpoints"]
    assert endpoint["subject"] == ("convo.cmd.>" if service == "convo-commands" else "convo.get.>")


async def test_all_answer_a_ping_to_all(ledger: Ledger) -> None:
    names: set[str] = set()
    complete = asyncio.Event()

    async def hear(message: Msg) -> None:
        names.add(json.loads(message.data)["name"])
        if names >= set(SERVICES):
            complete.set()

    inbox = ledger.nats.new_inbox()
    await ledger.nats.subscribe(inbox, cb=hear)
    await ledger.nats.publish("$SRV.PING", b"", reply=inbox)
    await asyncio.wait_for(complete.wait(), 10)


async def test_the_statistics_count_requests(ledger: Ledger) -> None:
    conversation = await ledger.begun()
    before = await asked(ledger, "$SRV.STATS.convo-commands")
    for number in range(7):
        await conversation.append(f"{number}")
    after = await asked(ledger, "$SRV.STATS.convo-commands")
    counted = [stats["endpoints"][0]["num_requests"] for stats in (before, after)]
    assert counted[1] - counted[0] == 7


async def test_the_workers_of_a_ledger_share_the_requests(deploy: Deploy) -> None:
    deployed = deploy(workers=3)
    nats = await connected(deployed.url)
    conversation = await Ledger(nats).begun()
    for _ in range(100):
        await conversation.do("usage", prompt_tokens=1, completion_tokens=0)
    counts: dict[str, int] = {}
    with RawConnection(deployed.url) as raw:
        raw.subscribe(b"_INBOX.stats")
        raw.publish(b"$SRV.STATS.convo-commands", b"", reply=b"_INBOX.stats")
        while len(counts) < 3:
            stats = raw.next().json()
            counts[stats["id"]] = stats["endpoints"][0]["num_requests"]
    assert sum(counts.values()) == 101
    assert all(counts.values())
    assert (await conversation.usage())[0]["prompt"] == 100
    await nats.close()
