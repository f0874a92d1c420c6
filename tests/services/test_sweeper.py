"""The sweeper: what is silent ends once, whoever sweeps, and what is not stays."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import nats
import pytest
from freezegun import freeze_time
from nats.aio.client import Client

from infra.jetstream.envelope import EVENT_TYPE
from infra.jetstream.scan import scan
from infra.server import EmbeddedServer
from infra.settings import Settings
from services.bootstrap import running, topology
from services.sweeper import Sweeper
from tests.acceptance.client import Conversation, Ledger

DAY = timedelta(hours=24)
IDLE = int(os.environ.get("CONVO_TEST_IDLE", "1000"))
"""Conversations of the long test; with 10,000 it takes minutes under freezegun."""


@pytest.fixture(params=[1, 3], ids=["1-partition", "3-partitions"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path, partitions=request.param)


@pytest.fixture
async def ledger(settings: Settings, tmp_path: Path) -> AsyncIterator[Ledger]:
    """A ledger of the test's own, with commands and queries."""
    async with (
        EmbeddedServer(tmp_path / "data") as server,
        running(settings, ("commands", "queries"), url=server.url),
    ):
        client = await nats.connect(server.url)
        yield Ledger(client)
        await client.close()


def sweeper(settings: Settings, client: Client) -> Sweeper:
    return Sweeper(settings, topology(settings), client)


async def later(by: timedelta, *sweepers: Sweeper) -> list[int]:
    """What each of the sweepers ended when all swept at once, at a time so much later."""
    then = datetime.now(UTC) + by
    with freeze_time(then, real_asyncio=True, ignore=["nats", "infra", "asyncio"]):
        return await asyncio.gather(*(each.sweep() for each in sweepers))


async def ends_of(conversation: Conversation) -> list[tuple[str, str | None]]:
    return [
        (event["data"]["reason"], event["actor"])
        for event in await conversation.events()
        if event["type"] in {"ConversationClosed", "ReplyAborted"}
    ]


async def test_what_nobody_has_talked_in_for_a_day_is_closed_once(
    settings: Settings, ledger: Ledger
) -> None:
    idle = [await ledger.begun() for _ in range(100)]
    both = [sweeper(settings, ledger.nats) for _ in range(2)]

    assert await later(DAY - timedelta(minutes=1), *both) == [0, 0]
    assert sum(await later(DAY, *both)) == 100
    assert await later(DAY, *both) == [0, 0]

    for conversation in idle:
        assert await ends_of(conversation) == [("inactive", "service:sweeper")]
        assert (await conversation.state())["status"] == "inactive"


@pytest.mark.slow
@pytest.mark.parametrize("settings", [1], indirect=True)
async def test_of_many_each_is_closed_once_and_active_ones_stay(
    settings: Settings, ledger: Ledger
) -> None:
    """By the events themselves: no view is asked."""
    both = [sweeper(settings, ledger.nats) for _ in range(2)]
    idle = await begun(ledger, IDLE)
    assert await later(timedelta(0), *both) == [0, 0]
    with freeze_time(datetime.now(UTC) + DAY, real_asyncio=True, ignore=["nats", "infra"]):
        active = await begun(ledger, 100)

    swept = [await later(DAY + timedelta(hours=1), *both) for _ in range(2)]

    assert [sum(each) for each in swept] == [IDLE, 0]
    closed = Counter[str]()
    async for block in scan(ledger.nats, "CONVO-EVENTS-0"):
        closed.update(
            each.subject for each in block if each.headers[EVENT_TYPE] == "ConversationClosed"
        )
    assert closed == Counter(f"convo.evt.0.{each}" for each in idle)
    assert not closed.keys() & {f"convo.evt.0.{each}" for each in active}


async def begun(ledger: Ledger, count: int) -> list[str]:
    """The keys of so many new conversations."""
    conversations = [ledger.conversation() for _ in range(count)]
    left = iter(conversations)

    async def begin() -> None:
        for each in left:
            await each.do("init", user_id="ada")

    await asyncio.gather(*(begin() for _ in range(200)))
    return [each.tokens for each in conversations]


async def test_active_ones_stay(settings: Settings, ledger: Ledger) -> None:
    idle, active, done = [await ledger.begun() for _ in range(3)]
    await done.do("close")
    sweeping = sweeper(settings, ledger.nats)
    tomorrow = datetime.now(UTC) + DAY
    with freeze_time(tomorrow, real_asyncio=True, ignore=["nats", "infra", "asyncio"]):
        await active.append("still here")
        assert await sweeping.sweep() == 1

    assert [(await each.state())["status"] for each in (idle, active, done)] == [
        *("inactive", "active", "closed")
    ]


async def test_who_comes_back_is_closed_again_another_time(
    settings: Settings, ledger: Ledger
) -> None:
    conversation = await ledger.begun()
    sweeping = sweeper(settings, ledger.nats)
    assert await later(DAY, sweeping) == [1]
    await conversation.append("back")
    assert await later(timedelta(0), sweeping) == [0]

    assert await later(DAY, sweeping) == [1]

    assert len(await ends_of(conversation)) == 2


async def test_a_sweeper_that_starts_late_finds_what_is_idle(
    settings: Settings, ledger: Ledger
) -> None:
    first, second = await ledger.begun(), await ledger.begun()
    await second.append("hello")
    assert await later(DAY, sweeper(settings, ledger.nats)) == [2]

    assert await later(DAY, sweeper(settings, ledger.nats)) == [0]

    assert [len(await ends_of(each)) for each in (first, second)] == [1, 1]


async def test_an_event_that_came_meanwhile_wins(settings: Settings, ledger: Ledger) -> None:
    conversation = await ledger.begun()
    sweeping = sweeper(settings, ledger.nats)
    await sweeping._read()
    await conversation.append("hello")
    silent = list(sweeping._partitions[0].conversations(datetime.now(UTC) + DAY))
    others = [
        each for p in sweeping._partitions[1:] for each in p.conversations(datetime.now(UTC) + DAY)
    ]

    for partition in sweeping._partitions:
        assert await sweeping._end(partition, [*silent, *others]) == 0

    assert (await conversation.state())["status"] == "active"


async def test_a_reply_whose_producer_is_gone_is_aborted_and_keeps_its_text(
    settings: Settings, ledger: Ledger
) -> None:
    conversation = await ledger.begun()
    message_id = (await conversation.do("reply.start"))["message_id"]
    await conversation.do("reply.chunk", message_id=message_id, index=0, texts=["Half a"])
    both = [sweeper(settings, ledger.nats) for _ in range(2)]

    assert await later(timedelta(seconds=30), *both) == [0, 0]
    assert sum(await later(timedelta(seconds=61), *both)) == 1

    assert await ends_of(conversation) == [("silent", "service:sweeper")]
    assert await conversation.contents() == ["Half a"]
    assert (await conversation.state())["status"] == "active"


async def test_it_sweeps_by_itself_where_it_is_served(tmp_path: Path) -> None:
    settings = Settings(data_dir=tmp_path, inactive_after="1s")
    services = ("commands", "queries", "sweeper")
    async with (
        EmbeddedServer(tmp_path / "data") as server,
        running(settings, services, url=server.url),
    ):
        client = await nats.connect(server.url)
        conversation = await Ledger(client).begun()
        async with asyncio.timeout(30):
            while (await conversation.state())["status"] != "inactive":  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await client.close()
