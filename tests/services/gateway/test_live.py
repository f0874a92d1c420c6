"""Many viewers of a conversation: each event once, in order, whatever `convo.live` loses."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
import pytest_asyncio
from nats.aio.msg import Msg

from domain.identity import ConversationId
from infra.connection import connect
from infra.settings import Settings
from services.gateway import live as live_module
from services.gateway.errors import GatewayError, not_initialized
from services.gateway.identity import Identity
from services.gateway.ledger import JSON
from services.gateway.ledger import Ledger as Asking
from services.gateway.live import Closing, Live, TooSlow, Viewer
from tests.acceptance.client import Conversation, Ledger
from tests.services.gateway.site import Site

ANYBODY = Identity("acme", None)


@pytest_asyncio.fixture
async def live(site: Site) -> AsyncIterator[Live]:
    """The feeds of a process of the test's own."""
    asking = await connect(site.server.url, name="test", settings=Settings())
    hearing = await connect(site.server.url, name="test-live", settings=Settings())
    live = Live(hearing, Asking(asking))
    yield live
    await live.close()
    await hearing.close()
    await asking.close()


@pytest_asyncio.fixture
async def conversation(ledger: Ledger) -> Conversation:
    return await ledger.begun()


def named(conversation: Conversation) -> ConversationId:
    return ConversationId.parse(conversation.tenant_id, conversation.conversation_id)


async def versions(viewer: Viewer, count: int) -> list[int]:
    """Of the next events."""
    found: list[int] = []
    for _ in range(count):
        event = await viewer.next(30)
        assert event is not None, f"only {found}"
        found.append(event.version)
    return found


async def test_viewers_share_one_subscription(live: Live, conversation: Conversation) -> None:
    async with (
        live.watching(named(conversation), ANYBODY) as first,
        live.watching(named(conversation), ANYBODY) as second,
    ):
        assert first.feed is second.feed
        for number in range(5):
            await conversation.append(f"{number}", role="assistant")
        first.begin(1)
        second.begin(3)
        assert await versions(first, 5) == [2, 3, 4, 5, 6]
        assert await versions(second, 3) == [4, 5, 6]
        assert live.viewers == 2
    assert live.feeds == {}


async def test_what_is_lost_on_the_way_is_read_from_the_ledger(
    live: Live, conversation: Conversation
) -> None:
    async with live.watching(named(conversation), ANYBODY) as viewer:
        viewer.begin(1)
        await conversation.append("heard", role="assistant")
        assert await versions(viewer, 1) == [2]
        subscription = viewer.feed._subscription
        assert subscription is not None
        await subscription.unsubscribe()
        await live.nats.flush()
        for number in range(3):
            await conversation.append(f"lost {number}", role="assistant")
        assert await versions(viewer, 3) == [3, 4, 5]


async def test_a_gap_is_filled_before_it_goes_on(live: Live, conversation: Conversation) -> None:
    async with live.watching(named(conversation), ANYBODY) as viewer:
        viewer.begin(1)
        take, lost = viewer.feed._arrived, 3
        viewer.feed._arrived = lambda event: take(event) if event.version != lost else None  # type: ignore[method-assign]
        for number in range(4):
            await conversation.append(f"{number}", role="assistant")
        assert await versions(viewer, 4) == [2, 3, 4, 5]


async def test_a_viewer_that_does_not_keep_up_is_dropped_and_can_catch_up(
    live: Live,
    conversation: Conversation,
    monkeypatch: pytest.MonkeyPatch,
    until: Callable[[Callable[[], bool]], Awaitable[None]],
) -> None:
    monkeypatch.setattr(live_module, "QUEUE_EVENTS_MAX", 3)
    async with live.watching(named(conversation), ANYBODY) as slow:
        slow.begin(1)
        for number in range(5):
            await conversation.append(f"{number}", role="assistant")
        await until(lambda: slow.feed.version == 6)
        with pytest.raises(TooSlow):
            await versions(slow, 5)
    async with live.watching(named(conversation), ANYBODY) as back:
        assert back.seq == (await conversation.get("usage"))["seq"]
        back.begin(6)
        await conversation.append("and on", role="assistant")
        assert await versions(back, 1) == [7]


async def test_a_conversation_that_is_to_begin_can_be_waited_for(
    live: Live, ledger: Ledger, id: str
) -> None:
    conversation = ledger.conversation(id)
    async with live.watching(named(conversation), ANYBODY) as viewer:
        assert await viewer.next(0.01) is None
        await conversation.init()
        assert await versions(viewer, 1) == [1]


async def test_a_conversation_that_begins_while_it_is_looked_for_is_found(
    live: Live, ledger: Ledger, id: str, until: Callable[[Callable[[], bool]], Awaitable[None]]
) -> None:
    conversation = ledger.conversation(id)
    async with live.watching(named(conversation), ANYBODY) as viewer:

        async def too_late(seq: int) -> JSON:
            if seq:
                return await live.ledger.query(ANYBODY, named(conversation), "state", min_seq=seq)
            await conversation.init()
            await until(lambda: viewer.seq > 0)
            raise not_initialized()  # as it was when it was looked for

        found = await viewer.begun(too_late)
        assert found is not None
        assert found["version"] == viewer.version == 1


async def test_what_a_viewer_was_told_is_in_what_is_read_next(
    live: Live, conversation: Conversation, ledger: Ledger
) -> None:
    asked: list[dict[str, str] | None] = []

    async def overhear(message: Msg) -> None:
        asked.append(message.headers)

    id = named(conversation)
    await ledger.nats.subscribe(f"convo.get.{id.key}.messages", cb=overhear)
    await ledger.nats.flush()
    async with live.watching(id, ANYBODY) as viewer:
        viewer.begin(1)
        seq = (await conversation.append("hello", role="assistant"))["seq"]
        assert await versions(viewer, 1) == [2]
    await live.ledger.query(ANYBODY, id, "messages")
    await ledger.nats.flush()
    assert asked == [{"Convo-Min-Seq": str(seq)}]


async def test_a_viewer_ends_when_the_conversation_becomes_anothers(
    live: Live, conversation: Conversation
) -> None:
    async with live.watching(named(conversation), Identity("acme", "ada")) as viewer:
        viewer.begin(1)
        await conversation.append("hers", role="assistant")
        assert await versions(viewer, 1) == [2]
        await conversation.do("update", {"user_id": "bob"})
        await conversation.append("his", role="assistant")
        with pytest.raises(GatewayError):
            await versions(viewer, 1)


async def test_goodbye_ends_every_viewer(live: Live, conversation: Conversation) -> None:
    async with live.watching(named(conversation), ANYBODY) as viewer:
        waiting = asyncio.ensure_future(viewer.next())
        await asyncio.sleep(0)
        live.say_goodbye()
        with pytest.raises(Closing):
            await waiting
    with pytest.raises(Closing):
        async with live.watching(named(conversation), ANYBODY):
            pass
