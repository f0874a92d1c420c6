"""What it costs to read an event out of its stored JSON: by the mapper, and as analytics does it.

    python -m tests.benchmarks.reading

Processor time for an event, best of ten, over messages and usage in turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from domain.events import ConversationEvent, MessageAppended, UsageRecorded
from domain.mapper import ConversationMapper
from projections.analytics.reading import data_of, received

EVENTS = 20_000
ROUNDS = 10
KEY = "tenant-7.conversation-1234"
TEXT = "the quick brown fox jumps over the lazy dog and so on "
MAPPER = ConversationMapper()


def event(version: int) -> ConversationEvent:
    common: dict[str, Any] = {
        "originator_id": KEY,
        "originator_version": version,
        "timestamp": datetime.now(UTC),
        "actor": None,
        "command_id": f"command-{version}",
        "verb": "append",
        "metadata": {},
    }
    if version % 2:
        return UsageRecorded(
            **common, prompt_tokens=version, completion_tokens=70, model="claude-sonnet-4-5"
        )
    return MessageAppended(**common, message_id=f"message-{version}", role="user", content=TEXT)


def mapped(version: int, topic: str, body: bytes) -> object:
    return MAPPER.event_of(KEY, version, topic, body), data_of(body)


def read(version: int, topic: str, body: bytes) -> object:
    return received(KEY, version, topic, body, partition=0, seq=version, digest="ab" * 32)


def us_each(
    work: Callable[[int, str, bytes], object], events: list[tuple[int, str, bytes]]
) -> float:
    best = float("inf")
    for _ in range(ROUNDS):
        started = time.thread_time()
        for each in events:
            work(*each)
        best = min(best, time.thread_time() - started)
    return best / len(events) * 1e6


def main() -> None:
    stored = [MAPPER.to_stored_event(event(version)) for version in range(1, EVENTS + 1)]
    events = [(each.originator_version, each.topic, each.state) for each in stored]
    print(f"by the mapper     {us_each(mapped, events):5.2f} us")
    print(f"for analytics     {us_each(read, events):5.2f} us")


if __name__ == "__main__":
    main()
