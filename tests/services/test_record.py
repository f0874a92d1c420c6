"""A conversation's events as they are read: in order, and none that does not belong there."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from domain.commands import parse_command
from domain.rules import CommandContext
from infra.jetstream.envelope import GENESIS, Recorded
from infra.jetstream.errors import LedgerDamaged
from services.record import checked, events_of

from .fake_store import FakeStore
from .rigs import ADAS

Spoil = Callable[[list[Recorded]], list[Recorded]]


@pytest.fixture
def store() -> FakeStore:
    """A store with a conversation of five events."""
    store = FakeStore(Random(1), patient=False)
    store.rival(ADAS, parse_command("init", b'{"user_id": "ada"}'), CommandContext(None))
    for _ in range(4):
        append = parse_command("append", b'{"role": "assistant", "content": "hello"}')
        store.rival(ADAS, append, CommandContext(None))
    return store


async def test_events_are_read_from_the_first_on_or_from_behind_any(store: FakeStore) -> None:
    log, events = store.log[ADAS.key], store.events(ADAS.key)
    read = [each async for each in events_of(store.as_store, ADAS.key)]
    assert read == list(zip(log, events, strict=True))
    for last in log:
        behind = events_of(
            store.as_store,
            ADAS.key,
            seq=last.seq,
            version=last.version,
            digest=bytes.fromhex(last.digest),
        )
        assert [event async for _, event in behind] == events[last.version :]


def of_a_later_version(log: list[Recorded]) -> list[Recorded]:
    return log[1:]


def with_one_missing(log: list[Recorded]) -> list[Recorded]:
    return log[:2] + log[3:]


def with_another_text(log: list[Recorded]) -> list[Recorded]:
    return [*log[:3], log[3]._replace(body=log[3].body.replace(b"hello", b"jello")), log[4]]


@pytest.mark.parametrize(
    ("spoilt", "says"),
    [
        (of_a_later_version, "version 2 at stream sequence 2 where version 1 was due"),
        (with_one_missing, "an event is missing"),
        (with_another_text, "version 4 .* does not fit its hash chain"),
    ],
)
def test_events_that_do_not_belong_there_are_damage(
    store: FakeStore, spoilt: Spoil, says: str
) -> None:
    log = store.log[ADAS.key]
    assert checked(log, 0, GENESIS).hex() == log[-1].digest
    with pytest.raises(LedgerDamaged, match=says):
        checked(spoilt(log), 0, GENESIS)
