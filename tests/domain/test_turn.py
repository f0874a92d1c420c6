"""turn: messages and the usage they caused, all or nothing."""

from __future__ import annotations

import pytest
from pydantic_core import to_json

from domain.commands import parse_command
from domain.errors import (
    ConversationNotInitialized,
    InvalidRequest,
    InvalidState,
    MessageTooLarge,
    VersionConflict,
)
from domain.rules import Limits
from tests.domain.specification import append, given, init, message, turn

QUESTION = message("What is 2 + 2?", message_id="q")
ANSWER = message("4", "assistant", message_id="a")
TOKENS = {"prompt_tokens": 9, "completion_tokens": 1}

ASKED = ("MessageAppended", {**QUESTION, "metadata": {}})
TITLED = ("ConversationTitled", {"title": "What is 2 + 2?", "source": "auto"})
ANSWERED = ("MessageAppended", {**ANSWER, "metadata": {}})
USED = ("UsageRecorded", {**TOKENS, "metadata": {}})


# done


def test_it_appends_the_messages_in_order_and_then_the_usage() -> None:
    given(init()).when(turn(QUESTION, ANSWER, usage=TOKENS)).then(ASKED, TITLED, ANSWERED, USED)


def test_the_usage_may_be_left_out() -> None:
    given(init(title="x")).when(turn(QUESTION, ANSWER)).then(ASKED, ANSWERED)


def test_a_hundred_messages_are_a_turn() -> None:
    outcome = given(init(title="x")).when(turn(*[message()] * 100))

    assert len(outcome.events) == 100


# rejected


def test_a_conversation_that_does_not_exist_takes_none() -> None:
    given().when(turn(QUESTION)).then_refused(ConversationNotInitialized)


def test_one_message_too_large_refuses_them_all() -> None:
    scenario = given(init(), limits=Limits(max_content_bytes=5))

    error = scenario.when(turn(ANSWER, message("123456"))).then_refused(MessageTooLarge)

    assert error.details == {"index": 1, "size_bytes": 6, "limit_bytes": 5}


def test_one_message_id_that_is_taken_refuses_them_all() -> None:
    scenario = given(init(), append("hello", message_id="a"))

    scenario.when(turn(QUESTION, ANSWER)).then_refused(InvalidState)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [message()] * 101}, "messages"),
        ({"messages": [QUESTION, QUESTION]}, "messages"),
        ({"messages": message()}, "messages"),
        ({"messages": "hello"}, "messages"),
        ({"messages": None}, "messages"),
        ({}, "messages"),
        ({"messages": [message(), message(role="robot")]}, "messages.1.role"),
        ({"messages": [message(), message(None)]}, "messages.1.content"),
        ({"messages": [message()], "usage": {"prompt_tokens": 1}}, "usage.completion_tokens"),
        (
            {"messages": [message()], "usage": {**TOKENS, "reasoning_tokens": 2}},
            "usage.reasoning_tokens",
        ),
    ],
)
def test_a_wrong_field_is_named_where_it_stands(body: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_command("turn", to_json(body))

    assert isinstance(refusal.value.details, list)
    assert [each["field"] for each in refusal.value.details] == [field]


# repeated


def test_the_same_command_again_answers_the_first_receipt() -> None:
    scenario = given(init(), turn(QUESTION, ANSWER, usage=TOKENS).under("c-1"), append())

    receipt = scenario.when(turn(QUESTION, ANSWER, usage=TOKENS).under("c-1")).then_repeated()

    assert (receipt.verb, receipt.first_version, receipt.last_version) == ("turn", 2, 5)
    assert receipt.usage == (9, 1, 9, 1)


# conflicting


def test_it_is_refused_where_the_conversation_is_at_another_version() -> None:
    given(init()).when(turn(QUESTION).expecting(0)).then_refused(VersionConflict)
