"""The automatic title: once in a conversation's life, never over a given one."""

from __future__ import annotations

from typing import Any

import pytest

from domain.messages import title_of
from tests.domain.specification import append, given, import_, init, message, reset, turn, update


def titles(scenario_events: Any) -> list[str]:
    return [event.title for event in scenario_events if event.TOPIC == "ConversationTitled"]


@pytest.mark.parametrize(
    ("content", "title"),
    [
        ("hello", "hello"),
        ("x" * 50, "x" * 50),
        ("x" * 51, "x" * 50 + "..."),
        ("x" * 49 + " y", "x" * 49 + "..."),
        ("  hello \n", "hello"),
        ("日本語" * 20, ("日本語" * 20)[:50] + "..."),
        (" " * 60 + "far to the right", "far to the right"),
        ([{"type": "text", "text": "look"}, {"type": "text", "text": "here"}], "look here"),
        ([{"type": "input_text", "text": "look"}], "look"),
        ([{"type": "image_url", "text": "not text"}, {"type": "text", "text": "look"}], "look"),
        ("", None),
        (" \n\t", None),
        (None, None),
        ([{"type": "image_url", "image_url": {"url": "x"}}], None),
        ([{"type": "text"}, {"type": "text", "text": None}], None),
    ],
)
def test_a_title_is_the_first_fifty_characters_of_the_text(content: Any, title: str | None) -> None:
    assert title_of(content) == title


@pytest.mark.parametrize(
    "request_",
    [append("hello"), turn(message("hello")), import_(message("hello"))],
    ids=lambda request: request.verb,
)
def test_the_first_user_message_titles_the_conversation(request_: Any) -> None:
    scenario = given(init(), request_, append("and more"))

    assert titles(scenario.events) == ["hello"]
    assert [event.TOPIC for event in scenario.events][1:3] == [
        "MessageAppended",
        "ConversationTitled",
    ]


@pytest.mark.parametrize("role", ["assistant", "system", "developer", "tool"])
def test_other_roles_give_no_title(role: str) -> None:
    assert titles(given(init(), append("hello", role)).events) == []


def test_a_user_message_without_text_leaves_it_to_the_next() -> None:
    picture = [{"type": "image_url", "image_url": {"url": "x"}}]

    scenario = given(init(), append(""), append(picture), append("what is this?"))

    assert titles(scenario.events) == ["what is this?"]


def test_a_title_given_at_the_start_stays() -> None:
    assert titles(given(init(title="Given"), append("hello")).events) == []


def test_a_title_given_by_an_update_stays() -> None:
    assert titles(given(init(), update(title="Given"), append("hello")).events) == []


def test_a_title_that_was_taken_away_is_not_made_up_again() -> None:
    assert titles(given(init(title="x"), update(title=None), append("hello")).events) == []
    made_up = given(init(), append("one"), update(title=None), append("two"))
    assert titles(made_up.events) == ["one"]


def test_a_title_is_made_up_once_in_a_life_whatever_is_reset() -> None:
    scenario = given(init(), append("one"), reset(), append("two"), import_(message("three")))

    assert titles(scenario.events) == ["one"]
