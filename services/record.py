"""The record of a conversation: its events as the ledger has them, each checked against the last.

That each version follows the one before it, and that each hash fits, is found out as they are read,
by whoever reads them.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence

from domain.events import ConversationEvent
from domain.mapper import ConversationMapper
from infra.jetstream.envelope import GENESIS, Recorded, verify_chain
from infra.jetstream.errors import LedgerDamaged
from infra.jetstream.store import Store, check_contiguous

_MAPPER = ConversationMapper()


def event_of(key: str, recorded: Recorded) -> ConversationEvent:
    """The domain event that is recorded there. Raises UnknownEvent."""
    return _MAPPER.event_of(key, recorded.version, recorded.topic, recorded.body)


def checked(events: Sequence[Recorded], version: int, digest: bytes) -> bytes:
    """The hash of the last of some events that come right behind that version, with that hash.

    There must be one at least. Raises LedgerDamaged when they do not belong there.
    """
    first = events[0]
    if first.version != version + 1:
        raise LedgerDamaged(
            f"{first.subject}: version {first.version} at stream sequence {first.seq} where "
            f"version {version + 1} was due"
        )
    check_contiguous(events)
    return verify_chain(digest, events)


async def events_of(
    store: Store,
    key: str,
    *,
    seq: int = 0,
    version: int = 0,
    digest: bytes = GENESIS,
    through: int = 0,
) -> AsyncGenerator[tuple[Recorded, ConversationEvent], None]:
    """A conversation's events behind the one at that sequence, of that version and hash; oldest
    first.

    `through` is the sequence of one that is there, whatever a replica says. Close it when you stop
    early. Raises LedgerDamaged, UnknownEvent, StoreUnavailable.
    """
    pages = store.reader.pages(
        store.stream_of(key), store.topology.subject(key), seq + 1, through=through
    )
    async for page in pages:
        digest = checked(page, version, digest)
        version = page[-1].version
        for recorded in page:
            yield recorded, event_of(key, recorded)
