"""Looking up a message that a conversation no longer remembers: backwards through the ledger.

The aggregate knows its last 1,000 messages. What a command says about an older one is decided on
what this finds (`domain.rules.PastMessage`).
"""

from __future__ import annotations

from pydantic_core import to_json

from domain.events import MessageAppended, MessageRedacted, ReplyStarted
from domain.rules import PastMessage
from infra.jetstream.store import Store

LOOK_BACK_EVENTS_MAX = 100_000
"""How far back is looked: some seconds of reading."""

_PAGE_EVENTS = 1_000
_BEGINNINGS = frozenset({MessageAppended.TOPIC, ReplyStarted.TOPIC})


async def recall(store: Store, key: str, message_id: str) -> PastMessage:
    """What the ledger says about a message of the conversation, by its last 100,000 events.

    Raises StoreUnavailable, LedgerDamaged.
    """
    last = await store.last(key, leader=True)
    if last is None:
        return PastMessage(exists=False)
    # An event about the message has the id in its JSON, though not every one that has it is one.
    spelled = b'"message_id":' + to_json(message_id)
    redacted = False
    end = last.version
    furthest = max(0, end - LOOK_BACK_EVENTS_MAX)
    while end > furthest:
        start = max(furthest + 1, end - _PAGE_EVENTS + 1)
        first = await store.locate_version(key, start, last=last)
        seq = first.seq if first is not None else last.seq + 1
        exists = False
        while seq <= last.seq:
            page, _ = await store.read_page(key, seq, end - start + 1, through=last.seq)
            for recorded in page:
                if recorded.version <= end and spelled in recorded.body:
                    exists = exists or recorded.topic in _BEGINNINGS
                    redacted = redacted or recorded.topic == MessageRedacted.TOPIC
            if not page or page[-1].version >= end:
                break
            seq = page[-1].seq + 1
        if exists:
            return PastMessage(exists=True, redacted=redacted)
        end = start - 1
    return PastMessage(exists=False)
