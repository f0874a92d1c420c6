"""usage: tokens of a model call."""

from __future__ import annotations

import pytest
from pydantic_core import to_json

from domain.commands import TOKENS_MAX, parse_command
from domain.errors import (
    ConversationNotInitialized,
    InvalidRequest,
    InvalidState,
    VersionConflict,
)
from tests.domain.specification import append, given, init, reset, usage

EVERYTHING = {
    "cached_tokens": 5,
    "cache_write_tokens": 7,
    "reasoning_tokens": 5,
    "model": "claude-5",
    "provider": "anthropic",
    "message_id": "m-1",
    "cost_usd": "0.002100000",
    "metadata": {"tier": "batch"},
}


# done


def test_it_records_the_tokens() -> None:
    expected = {"prompt_tokens": 12, "completion_tokens": 5, "metadata": {}}

    given(init()).when(usage(12, 5)).then(("UsageRecorded", expected))


def test_it_keeps_every_field_as_it_was_sent() -> None:
    expected = {"prompt_tokens": 12, "completion_tokens": 5, **EVERYTHING}

    given(init()).when(usage(12, 5, **EVERYTHING)).then(("UsageRecorded", expected))


def test_no_tokens_at_all_may_be_recorded() -> None:
    expected = {"prompt_tokens": 0, "completion_tokens": 0, "metadata": {}}

    given(init()).when(usage(0, 0)).then(("UsageRecorded", expected))


def test_the_totals_grow_and_those_of_the_session_begin_again_after_a_reset() -> None:
    scenario = given(init(), usage(12, 5), usage(1, 2), reset(), usage(100, 10))

    assert scenario.conversation is not None
    assert scenario.conversation.totals == (100, 10, 113, 17)


# rejected


def test_a_conversation_that_does_not_exist_takes_none() -> None:
    given().when(usage()).then_refused(ConversationNotInitialized)


@pytest.mark.parametrize(
    ("figures", "field"),
    [
        ({"prompt_tokens": -1}, "prompt_tokens"),
        ({"completion_tokens": -1}, "completion_tokens"),
        ({"prompt_tokens": 1.0}, "prompt_tokens"),
        ({"prompt_tokens": "1"}, "prompt_tokens"),
        ({"prompt_tokens": True}, "prompt_tokens"),
        ({"prompt_tokens": TOKENS_MAX + 1}, "prompt_tokens"),
        ({"prompt_tokens": 10**30}, "prompt_tokens"),
        ({"cached_tokens": 7, "cache_write_tokens": 6}, "cached_tokens"),
        ({"reasoning_tokens": 6}, "reasoning_tokens"),
        ({"cost_usd": 0.5}, "cost_usd"),
        ({"cost_usd": "-0.5"}, "cost_usd"),
        ({"cost_usd": "NaN"}, "cost_usd"),
        ({"cost_usd": "1e3"}, "cost_usd"),
        ({"cost_usd": "1234567890"}, "cost_usd"),
        ({"cost_usd": "0.1234567890"}, "cost_usd"),
        ({"cost_usd": "١.٥"}, "cost_usd"),
        ({"cost_usd": ""}, "cost_usd"),
    ],
)
def test_figures_that_cannot_be_are_refused_by_name(figures: dict[str, object], field: str) -> None:
    body = {"prompt_tokens": 12, "completion_tokens": 5, **figures}

    with pytest.raises(InvalidRequest) as refusal:
        parse_command("usage", to_json(body))

    assert isinstance(refusal.value.details, list)
    assert [each["field"] for each in refusal.value.details] == [field]


# repeated


def test_the_same_command_again_answers_the_totals_of_the_first_time() -> None:
    scenario = given(init(), usage(12, 5).under("c-1"), usage(100, 100), reset())

    receipt = scenario.when(usage(12, 5).under("c-1")).then_repeated()

    assert receipt.usage == (12, 5, 12, 5)
    assert (receipt.first_version, receipt.last_version) == (2, 2)


def test_a_command_id_of_another_verb_is_refused() -> None:
    given(init(), append().under("c-1")).when(usage().under("c-1")).then_refused(InvalidState)


# conflicting


def test_it_is_refused_where_the_conversation_is_at_another_version() -> None:
    given(init()).when(usage().expecting(2)).then_refused(VersionConflict)
