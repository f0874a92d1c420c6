"""The recent window and its messages."""

from __future__ import annotations

from typing import Any

import pytest
from freezegun import freeze_time

from domain.events import MessageAppended
from projections.history import messages_of
from projections.window import Window, message_view
from tests.domain.specification import (
    Request,
    append,
    given,
    init,
    reset,
    through_storage,
    update,
    usage,
)


def window_of(*requests: Request, size: int = 3) -> Window:
    window = Window(size)
    for event in through_storage(given(init(title="x"), *requests).events):
        window.apply(event)
    return window


def contents(messages: list[dict[str, Any]]) -> list[str]:
    return [each["content"] for each in messages]


def appended(request: Request) -> MessageAppended:
    (event,) = through_storage(given(init(title="x")).when(request).events)
    assert isinstance(event, MessageAppended)
    return event


def test_it_holds_the_last_messages_oldest_first() -> None:
    window = window_of(*[append(str(number)) for number in range(5)])

    assert contents(window.messages()) == ["2", "3", "4"]


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        (1, ["2"]),
        (2, ["1", "2"]),
        (3, ["0", "1", "2"]),
        (9, ["0", "1", "2"]),
        (None, ["0", "1", "2"]),
    ],
)
def test_a_limit_takes_the_newest(limit: int | None, expected: str) -> None:
    window = window_of(*[append(str(number)) for number in range(3)])

    assert contents(window.messages(limit)) == list(expected)


def test_a_reset_empties_it() -> None:
    assert contents(window_of(append("a"), reset(), append("b")).messages()) == ["b"]
    assert window_of(append("a"), reset()).size_bytes == Window(3).size_bytes


def test_nothing_else_touches_it() -> None:
    window = window_of(append("a"), usage(), update(title="y"), init())

    assert contents(window.messages()) == ["a"]


def test_the_list_it_gives_is_the_readers_own() -> None:
    window = window_of(append("a"))
    window.messages().clear()

    assert contents(window.messages()) == ["a"]


@freeze_time("2026-11-21T09:00:00Z")
def test_a_message_without_optional_fields_shows_none_of_them() -> None:
    assert message_view(appended(append("hello", message_id="m-1"))) == {
        "message_id": "m-1",
        "role": "user",
        "content": "hello",
        "timestamp": "2026-11-21T09:00:00.000000Z",
        "version": 2,
        "metadata": {},
    }


def test_a_message_with_every_field_shows_them_all() -> None:
    sent = {
        "message_id": "m-1",
        "name": "weather",
        "tool_calls": [{"id": "t-1"}],
        "tool_call_id": "t-0",
        "metadata": {"a": 1},
    }
    event = appended(append(None, "assistant", created_at="2019-03-01T10:00:00Z", **sent))

    assert message_view(event) == {
        **sent,
        "role": "assistant",
        "content": None,
        "timestamp": "2019-03-01T10:00:00Z",
        "version": 2,
    }


def test_the_history_shows_a_message_as_the_window_does() -> None:
    requests = [append("a"), usage(), append("b", "assistant", tool_calls=[{"id": "t-1"}])]
    events = given(init(title="x"), *requests).events
    window = Window(3)
    for event in events:
        window.apply(event)

    assert messages_of(events) == window.messages()
    assert messages_of([]) == []
