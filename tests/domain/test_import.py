"""import: earlier messages, behind what is there or in its place."""

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
from tests.domain.specification import append, given, import_, init, message, usage

OLD = message("long ago", message_id="m-1", created_at="2019-03-01T10:00:00Z")
IMPORTED = ("MessageAppended", {**OLD, "metadata": {}})
TITLED = ("ConversationTitled", {"title": "long ago", "source": "auto"})


# done


def test_it_appends_the_messages_with_their_own_times() -> None:
    given(init()).when(import_(OLD)).then(IMPORTED, TITLED)


def test_replace_resets_the_session_first() -> None:
    scenario = given(init(title="x"), append())

    scenario.when(import_(OLD, mode="replace")).then(("SessionReset", {}), IMPORTED)


def test_replace_with_nothing_only_resets() -> None:
    given(init()).when(import_(mode="replace")).then(("SessionReset", {}))


def test_nothing_to_append_writes_nothing() -> None:
    given(init()).when(import_(mode="append")).then_nothing()


def test_five_hundred_messages_go_in_at_once() -> None:
    outcome = given(init(title="x")).when(import_(*[message()] * 500))

    assert len(outcome.events) == 500


# rejected


def test_a_conversation_that_does_not_exist_takes_none() -> None:
    given().when(import_(OLD)).then_refused(ConversationNotInitialized)


def test_one_message_too_large_refuses_them_all_and_the_reset() -> None:
    scenario = given(init(), append(), limits=Limits(max_content_bytes=8))

    scenario.when(import_(OLD, message("123456789"), mode="replace")).then_refused(MessageTooLarge)


def test_one_message_id_that_is_taken_refuses_them_all_and_the_reset() -> None:
    scenario = given(init(), append(message_id="m-1"))

    scenario.when(import_(message(), OLD, mode="replace")).then_refused(InvalidState)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"messages": [message()] * 501}, "messages"),
        ({"messages": [OLD, OLD]}, "messages"),
        ({"messages": [], "mode": "merge"}, "mode"),
        ({}, "messages"),
        ({"messages": [message(created_at="yesterday")]}, "messages.0.created_at"),
        ({"messages": [message(created_at="2019-03-01 10:00:00Z")]}, "messages.0.created_at"),
        ({"messages": [message(created_at="2019-03-01T10:00:00")]}, "messages.0.created_at"),
        ({"messages": [message(created_at="2019-02-29T10:00:00Z")]}, "messages.0.created_at"),
        ({"messages": [message(created_at="2019-03-01T10:00:00+25:00")]}, "messages.0.created_at"),
        ({"messages": [message(created_at="0001-01-01T00:00:00+01:00")]}, "messages.0.created_at"),
        ({"messages": [message(created_at=1551434400)]}, "messages.0.created_at"),
    ],
)
def test_a_wrong_field_is_named_where_it_stands(body: object, field: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        parse_command("import", to_json(body))

    assert isinstance(refusal.value.details, list)
    assert [each["field"] for each in refusal.value.details] == [field]


# repeated


def test_the_same_command_again_answers_the_first_receipt() -> None:
    scenario = given(init(), import_(OLD, mode="replace").under("c-1"), usage())

    receipt = scenario.when(import_(OLD, mode="replace").under("c-1")).then_repeated()

    assert (receipt.verb, receipt.first_version, receipt.last_version) == ("import", 2, 4)


# conflicting


def test_it_is_refused_where_the_conversation_is_at_another_version() -> None:
    given(init()).when(import_(OLD).expecting(0)).then_refused(VersionConflict)
