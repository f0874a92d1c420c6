"""append: one message more."""

from __future__ import annotations

from typing import Any

import pytest

from domain.conversation import MESSAGE_IDS_MAX
from domain.errors import (
    ConversationNotInitialized,
    InvalidState,
    MessageTooLarge,
    VersionConflict,
)
from domain.rules import Limits
from tests.domain.specification import append, given, import_, init, message, reset, stored, update

TITLED = init(title="A title, so that none is made up")


def said(role: str, content: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    data = {"message_id": ..., "role": role, "content": content, "metadata": {}}
    return ("MessageAppended", {**data, **more})


# done


def test_it_appends_the_message_under_an_id_of_its_own() -> None:
    given(TITLED).when(append("hello")).then(said("user", "hello"))


def test_it_keeps_every_field_as_it_was_sent() -> None:
    sent = {
        "message_id": "m-1",
        "name": "weather",
        "tool_calls": [{"id": "t-1", "type": "function", "function": {"name": "f"}}],
        "tool_call_id": "t-0",
        "created_at": "2024-02-29T23:59:59.5+09:00",
        "metadata": {"tokens": 3, "nested": {"a": [1, 2.5, None]}},
    }

    given(TITLED).when(append(None, "assistant", **sent)).then(said("assistant", None, **sent))


@pytest.mark.parametrize("role", ["user", "assistant", "system", "developer", "tool"])
def test_every_role_may_speak(role: str) -> None:
    given(TITLED).when(append("hello", role)).then(said(role, "hello"))


@pytest.mark.parametrize(
    "content",
    [
        "",
        "日本語と emoji 👩‍👩‍👧 and \u0000\u2028",
        [{"type": "text", "text": "look"}, {"type": "image_url", "image_url": {"url": "x"}}],
    ],
)
def test_content_is_kept_exactly(content: Any) -> None:
    given(TITLED).when(append(content)).then(said("user", content))


def test_the_versions_have_no_gap() -> None:
    scenario = given(init(), append("one"), append("two", "assistant"), append("three"))

    assert [event.originator_version for event in scenario.events] == [1, 2, 3, 4, 5]


def test_all_events_of_one_command_carry_its_time_its_id_and_its_actor() -> None:
    first, second = given(init()).when(append("hello").under("c-9").by("user:ada")).events

    assert (stored(first)["type"], stored(second)["type"]) == (
        "MessageAppended",
        "ConversationTitled",
    )
    for key, value in {"command_id": "c-9", "actor": "user:ada", "verb": "append"}.items():
        assert stored(first)[key] == stored(second)[key] == value
    assert first.timestamp == second.timestamp


def test_it_may_expect_the_present_version() -> None:
    given(TITLED).when(append("hello").expecting(1)).then(said("user", "hello"))


def test_a_command_id_in_the_body_counts_where_no_header_gives_one() -> None:
    (event,) = given(TITLED).when(append("hello", command_id="c-1")).events

    assert event.command_id == "c-1"


# rejected


def test_a_conversation_that_does_not_exist_takes_none() -> None:
    error = given().when(append("hello")).then_refused(ConversationNotInitialized)

    assert "init" in error.message


def test_not_existing_comes_before_the_expected_version() -> None:
    given().when(append("hello").expecting(7)).then_refused(ConversationNotInitialized)


def test_a_message_id_is_taken_once_in_a_conversation() -> None:
    scenario = given(TITLED, append("hello", message_id="m-1"))

    error = scenario.when(append("again", message_id="m-1")).then_refused(InvalidState)

    assert error.details == {"message_id": "m-1"}


def test_a_message_id_stays_taken_after_a_reset() -> None:
    scenario = given(TITLED, append("hello", message_id="m-1"), reset())

    scenario.when(append("again", message_id="m-1")).then_refused(InvalidState)


def test_a_message_id_is_free_again_once_a_thousand_messages_have_followed() -> None:
    followers = [message(str(number)) for number in range(MESSAGE_IDS_MAX // 2)]
    scenario = given(TITLED, append("hello", message_id="m-1"), import_(*followers))
    scenario.when(append("again", message_id="m-1")).then_refused(InvalidState)

    scenario = given(
        TITLED, append("x", message_id="m-1"), import_(*followers), import_(*followers)
    )
    scenario.when(append("again", message_id="m-1")).then(said("user", "again", message_id="m-1"))


@pytest.mark.parametrize(
    ("content", "size_bytes"),
    [
        ("x" * 11, 11),
        ("日本語x", 10),  # three bytes each
        ([{"type": "text"}], 17),  # of JSON
    ],
)
def test_content_over_the_limit_is_refused_with_the_figures(content: Any, size_bytes: int) -> None:
    limits = Limits(max_content_bytes=size_bytes - 1)

    error = given(TITLED, limits=limits).when(append(content)).then_refused(MessageTooLarge)

    facts = {"index": 0, "size_bytes": size_bytes, "limit_bytes": size_bytes - 1}
    assert error.details == facts


@pytest.mark.parametrize("content", ["x" * 11, "日本語xx", [{"type": "text"}]])
def test_content_at_the_limit_is_taken(content: Any) -> None:
    limits = Limits(max_content_bytes=17 if isinstance(content, list) else 11)

    given(TITLED, limits=limits).when(append(content)).then(said("user", content))


# repeated


def test_the_same_command_again_writes_nothing_and_answers_the_first_receipt() -> None:
    scenario = given(init(), append("hello").under("c-1"), append("more"))

    receipt = scenario.when(append("hello").under("c-1")).then_repeated()

    assert (receipt.verb, receipt.first_version, receipt.last_version) == ("append", 2, 3)


def test_a_repetition_is_known_before_any_other_check() -> None:
    scenario = given(TITLED, append("hello", message_id="m-1").under("c-1"))
    scenario.limits = Limits(max_content_bytes=1, messages_per_minute=1)

    again = append("not the same at all", message_id="m-1").under("c-1").expecting(99)

    scenario.when(again).then_repeated()


def test_a_command_id_of_another_verb_is_refused() -> None:
    scenario = given(TITLED, update(title="New").under("c-1"))

    scenario.when(append("hello").under("c-1")).then_refused(InvalidState)


def test_another_verbs_command_id_comes_before_the_expected_version() -> None:
    scenario = given(TITLED, update(title="New").under("c-1"))

    scenario.when(append("hello").under("c-1").expecting(99)).then_refused(InvalidState)


# conflicting


def test_it_is_refused_where_the_conversation_is_at_another_version() -> None:
    error = given(TITLED, append()).when(append().expecting(1)).then_refused(VersionConflict)

    assert error.details == {"expected": 1, "current": 2}


def test_a_conflict_comes_before_the_limits() -> None:
    scenario = given(TITLED, limits=Limits(max_content_bytes=1))

    scenario.when(append("too long").expecting(9)).then_refused(VersionConflict)
