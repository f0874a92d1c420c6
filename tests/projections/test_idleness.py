"""Who has been silent for how long."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from freezegun import freeze_time

from projections.idleness import Idleness, Silent
from tests.domain.specification import (
    ADAS,
    Request,
    append,
    close,
    erase,
    given,
    init,
    reopen,
    reply_abort,
    reply_chunk,
    reply_finish,
    reply_start,
)

MORNING = datetime(2026, 11, 21, 9, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


def after(*requests: Request) -> Idleness:
    """What is known when a minute passes from one request to the next, from 09:00 on."""
    scenario = given()
    for number, request in enumerate(requests):
        with freeze_time(MORNING + number * MINUTE):
            assert scenario.when(request).error is None
    idleness = Idleness()
    for event in scenario.events:
        idleness.apply(event)
    return idleness


def silent(idleness: Idleness, minute: int) -> list[int]:
    """The versions at which conversations fell silent by that minute."""
    return [each.version for each in idleness.conversations(MORNING + minute * MINUTE)]


def test_a_conversation_is_silent_from_its_last_event_on() -> None:
    idleness = after(init(title="x"), append(), append())

    assert silent(idleness, 1) == []
    assert silent(idleness, 2) == silent(idleness, 99) == [3]


@pytest.mark.parametrize("end", [close(), close("inactive"), close("deleted"), erase()])
def test_one_that_has_ended_is_none_of_them(end: Request) -> None:
    assert silent(after(init(), append(), end), 99) == []


def test_one_that_is_reopened_is_one_again() -> None:
    assert silent(after(init(title="x"), close(), reopen()), 2) == [3]


def test_one_that_is_forgotten_comes_back_with_its_next_event() -> None:
    scenario = given(init(title="x"))
    idleness = Idleness()
    idleness.apply(scenario.events[0])
    idleness.forget(ADAS.key)
    assert len(idleness) == 0

    idleness.apply(scenario.when(append()).events[0])

    assert len(idleness) == 1


def test_a_reply_is_silent_from_its_last_chunk_on() -> None:
    idleness = after(init(title="x"), reply_start(), reply_chunk(0, "a"), append())

    assert list(idleness.replies(MORNING + MINUTE)) == []
    assert list(idleness.replies(MORNING + 2 * MINUTE)) == [Silent(ADAS.key, 4, "r-1")]


@pytest.mark.parametrize("end", [reply_finish(), reply_abort(), close()])
def test_a_reply_that_has_ended_is_none_of_them(end: Request) -> None:
    idleness = after(init(title="x"), reply_start(), end)

    assert list(idleness.replies(MORNING + 99 * MINUTE)) == []
