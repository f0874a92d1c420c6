"""A store that is settled by hand, and conversations on it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from random import Random

import pytest
import pytest_asyncio

from services.conversations import Conversations
from tests.services.fake_store import FakeStore
from tests.services.rigs import conversations_on, init, turns


@pytest.fixture
def store() -> FakeStore:
    """A store that a test settles by hand; its reads answer at once."""
    return FakeStore(Random(1), patient=False)


@pytest_asyncio.fixture
async def faked(store: FakeStore) -> AsyncIterator[Conversations]:
    """Conversations on the store that is settled by hand, with one that has begun."""
    async with conversations_on(store.as_store) as conversations:
        begun = init(conversations)
        await turns()
        store.settle_all()
        await begun
        yield conversations
        while store.handed:
            store.settle_all()
            await turns()
