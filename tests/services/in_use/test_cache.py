"""What is kept in memory, and what is forgotten."""

from __future__ import annotations

from domain.identity import ConversationId
from services.conversations import Conversations
from tests.services.fake_store import FakeStore
from tests.services.rigs import ADAS, append, conversations_on, init, turns

from .rigs import by_rival


def weight_of(conversations: Conversations) -> int:
    return sum(
        entry.view.size_bytes + (entry.conversation.size_bytes if entry.conversation else 0)
        for entry in conversations.cache.entries.values()
    )


async def test_the_cache_stays_within_its_bytes_and_forgets_the_least_recently_used(
    store: FakeStore,
) -> None:
    async with conversations_on(store.as_store, cache_bytes=200_000) as conversations:
        ids = [ConversationId.parse("acme", f"c-{n}") for n in range(100)]
        for id in ids:
            begun = init(conversations, id=id)
            await turns()
            store.settle_all()
            await begun
            await conversations.view(ids[0])
            assert conversations.cache.weight <= 200_000
            assert weight_of(conversations) <= conversations.cache.weight
        assert 10 < len(conversations.cache.entries) < 100
        assert ids[0].key in conversations.cache.entries, "used all the time"
        assert ids[-1].key in conversations.cache.entries
        assert ids[1].key not in conversations.cache.entries


async def test_what_other_processes_write_counts_too(store: FakeStore) -> None:
    """A process that only reads must stay within its bytes as well."""
    async with conversations_on(store.as_store, cache_bytes=1_000_000) as conversations:
        begun = init(conversations)
        await turns()
        store.settle_all()
        await begun
        for _ in range(45):
            by_rival(store, "x" * 100_000)
            await conversations.view(ADAS)
            assert weight_of(conversations) <= conversations.cache.weight <= 1_200_000


async def test_a_conversation_that_is_waited_for_is_not_forgotten(store: FakeStore) -> None:
    async with conversations_on(store.as_store, cache_bytes=1) as conversations:
        sent = [init(conversations)] + [append(conversations) for _ in range(5)]
        await turns()
        assert len(conversations.cache.entries) == 1
        store.settle_all()
        assert [(await each).version for each in sent] == [1, 2, 3, 4, 5, 6]
        await turns()
        assert not conversations.cache.entries
        assert conversations.cache.weight == 0


async def test_conversations_that_do_not_exist_are_forgotten_like_others(store: FakeStore) -> None:
    async with conversations_on(store.as_store, cache_bytes=50_000) as conversations:
        for n in range(200):
            view = await conversations.view(ConversationId.parse("acme", f"nobody-{n}"))
            assert not view.exists
        assert conversations.cache.weight <= 50_000
