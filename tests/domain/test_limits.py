"""Messages per minute: counted from the conversation's own events."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest
from freezegun import freeze_time
from freezegun.api import FrozenDateTimeFactory

from domain.conversation import Conversation
from domain.errors import RateLimited
from domain.rules import Limits
from tests.domain.specification import (
    Request,
    Scenario,
    append,
    given,
    import_,
    init,
    message,
    reset,
    turn,
    usage,
)

THREE = Limits(messages_per_minute=3)


@pytest.fixture
def clock() -> Iterator[FrozenDateTimeFactory]:
    with freeze_time("2026-11-21T09:00:00Z") as frozen:
        assert isinstance(frozen, FrozenDateTimeFactory)
        yield frozen


def at(clock: FrozenDateTimeFactory, seconds: float) -> None:
    clock.tick(timedelta(seconds=seconds))


def test_the_message_over_the_limit_is_refused_and_told_when_to_come_back(
    clock: FrozenDateTimeFactory,
) -> None:
    scenario = given(init(), append("1"), limits=THREE)
    at(clock, 10)
    scenario = continued(scenario, append("2"), append("3"))
    at(clock, 20.5)

    error = scenario.when(append("4")).then_refused(RateLimited)

    # The first of the three leaves the minute at 60 s; it is 30.5 s now.
    assert error.details == {"messages_per_minute": 3, "retry_after_ms": 29_500}
    assert error.retryable


def test_it_is_taken_once_that_time_has_come_and_not_a_moment_before(
    clock: FrozenDateTimeFactory,
) -> None:
    scenario = given(init(), append("1"), append("2"), append("3"), limits=THREE)

    at(clock, 59.999)
    error = scenario.when(append("4")).then_refused(RateLimited)
    assert error.details == {"messages_per_minute": 3, "retry_after_ms": 1}

    at(clock, 0.001)
    assert scenario.when(append("4")).events


def test_every_message_of_a_command_counts(clock: FrozenDateTimeFactory) -> None:
    scenario = given(init(), append("1"), limits=THREE)
    at(clock, 10)
    continued(scenario, append("2"))

    # Three more fit once both are gone.
    error = scenario.when(turn(*[message()] * 3)).then_refused(RateLimited)
    assert error.details == {"messages_per_minute": 3, "retry_after_ms": 60_000}
    error = scenario.when(turn(*[message()] * 2)).then_refused(RateLimited)
    assert error.details == {"messages_per_minute": 3, "retry_after_ms": 50_000}


def test_a_command_of_more_messages_than_the_limit_waits_for_an_empty_minute(
    clock: FrozenDateTimeFactory,
) -> None:
    scenario = given(init(), append("1"), limits=THREE)
    history = import_(*[message()] * 10)

    scenario.when(history).then_refused(RateLimited)
    at(clock, 60)
    assert len(scenario.when(history).events) == 10

    error = scenario.when(append("too early")).then_refused(RateLimited)
    assert error.details == {"messages_per_minute": 3, "retry_after_ms": 60_000}


def test_what_is_no_message_is_not_counted(clock: FrozenDateTimeFactory) -> None:
    scenario = given(init(), append("1"), append("2"), usage(), reset(), limits=THREE)

    assert scenario.when(append("3")).events
    assert scenario.when(usage()).events
    assert scenario.when(import_()).events == ()


def test_a_reset_does_not_make_room(clock: FrozenDateTimeFactory) -> None:
    scenario = given(init(), append("1"), append("2"), append("3"), reset(), limits=THREE)

    scenario.when(append("4")).then_refused(RateLimited)


def test_the_limit_holds_across_a_snapshot(clock: FrozenDateTimeFactory) -> None:
    scenario = given(init(), append("1"), append("2"), append("3"), limits=THREE)
    assert scenario.conversation is not None
    restored = Conversation.from_state(scenario.conversation.to_state())

    assert restored.message_times == scenario.conversation.message_times


def test_without_a_limit_nothing_is_counted(clock: FrozenDateTimeFactory) -> None:
    scenario = given(init(), *[append(str(number)) for number in range(50)])

    assert scenario.when(append("more")).events


def continued(scenario: Scenario, *requests: Request) -> Scenario:
    for request in requests:
        assert scenario.when(request).error is None
    return scenario
