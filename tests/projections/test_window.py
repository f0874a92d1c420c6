"""The recent window and its messages."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from freezegun import freeze_time
from pydantic_core import from_json

from domain.events import MessageAppended
from projections.history import History, messages_of
from projections.window import Window, message_view
from tests.domain.specification import (
    Request,
    append,
    edit,
    given,
    init,
    redact,
    reply_abort,
    reply_chunk,
    reply_finish,
    reply_start,
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


@freeze_time("2026-11-21T09:00:00Z")
def test_a_reply_is_in_its_place_while_it_grows() -> None:
    growing = [reply_start(), append("meanwhile"), reply_chunk(0, "Hel", "lo")]

    reply, other = window_of(*growing).messages()
    assert (reply["content"], reply["streaming"], reply["version"]) == ("Hello", True, 2)
    assert other["content"] == "meanwhile"
    del reply["streaming"]
    for ending, told in (
        (reply_finish(), {}),
        (reply_finish(finish_reason="length"), {"finish_reason": "length"}),
        (reply_abort(), {"aborted": "stopped"}),
    ):
        assert window_of(*growing, ending).messages()[0] == {**reply, **told}


def test_a_reply_counts_as_one_message_and_may_leave_before_it_ends() -> None:
    window = window_of(reply_start(), *[append(str(n)) for n in range(3)], reply_chunk(0, "late"))

    assert contents(window.messages()) == ["0", "1", "2"]


def test_an_edited_message_keeps_its_place_and_says_so() -> None:
    window = window_of(append("a", message_id="m-1"), append("b"), edit("m-1", "better"))

    first, second = window.messages()
    assert (first["content"], first["edited"]) == ("better", True)
    assert "edited" not in second


@freeze_time("2026-11-21T09:00:00Z")
def test_a_redacted_message_keeps_its_place_and_nothing_it_said() -> None:
    said = append("a", "assistant", message_id="m-1", tool_calls=[{"a": "b"}], metadata={"c": "d"})
    before = window_of(said).messages()[0]

    (after,) = window_of(said, edit("m-1", "e"), redact("m-1")).messages()

    assert after == {
        **{name: before[name] for name in ("message_id", "role", "timestamp", "version")},
        "content": None,
        "metadata": {},
        "redacted": True,
    }


def test_no_object_that_was_given_away_changes() -> None:
    events = given(
        init(title="x"),
        append("a", message_id="m-1"),
        reply_start(),
        edit("m-1", "b"),
        reply_chunk(0, "c"),
        redact("m-1"),
        reply_finish(),
    ).events
    window = Window(3)
    kept = []
    for event in events:
        window.apply(event)
        kept.append((window.messages(), copy.deepcopy(window.messages())))

    for given_away, as_it_was in kept:
        assert given_away == as_it_was


@pytest.mark.parametrize(
    "change", [reply_chunk(0, "x" * 1_000), edit("m-1", "x" * 1_000), redact("m-1")]
)
def test_its_weight_follows_what_changes(change: Request) -> None:
    said = [append("y" * 500, message_id="m-1"), reply_start()]

    changed = window_of(*said, change)

    restored = Window.from_state(3, changed.to_state())
    assert changed.size_bytes == restored.size_bytes != window_of(*said).size_bytes


def test_nothing_else_touches_it() -> None:
    window = window_of(append("a"), usage(), update(title="y"), init())

    assert contents(window.messages()) == ["a"]


@pytest.mark.parametrize(
    "change",
    [
        append("z"),
        reply_chunk(0, "so", message_id="m-2"),
        edit("m-1", "other"),
        redact("m-1"),
        reset(),
        usage(),
    ],
)
def test_its_json_is_that_of_its_messages_whatever_was_read_before(change: Request) -> None:
    # given a window that somebody has read
    said = [append("y", message_id="m-1"), reply_start(message_id="m-2")]
    before = len(given(init(title="x"), *said).events)
    events = through_storage(given(init(title="x"), *said, change).events)
    window = Window(3)
    for event in events[:before]:
        window.apply(event)
    assert from_json(window.to_json()) == window.messages()
    # when something happens
    for event in events[before:]:
        window.apply(event)
    # then the next reader sees it
    assert from_json(window.to_json()) == window.messages()


def test_a_hidden_message_is_hidden_from_who_reads_json_too() -> None:
    window = window_of(append("secret", message_id="m-1"))
    assert b"secret" in window.to_json()
    window.hide({"m-1": 99})
    assert b"secret" not in window.to_json()


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


def test_a_page_of_the_history_follows_its_messages_behind_its_end() -> None:
    said = [append("a", message_id="m-1"), reply_start(), reply_chunk(0, "b")]
    events = given(init(title="x"), *said, append("next"), reply_chunk(1, "c"), redact("m-1"))
    history = History()
    for event in events.events[:4]:
        history.apply(event)
    before_its_end = history.is_unfinished()
    for event in events.events[4:]:
        history.follow(event)

    assert contents(history.messages) == [None, "bc"]
    history.follow(events.when(reply_finish()).events[0])
    assert (before_its_end, history.is_unfinished()) == (True, False)
    assert "streaming" not in history.messages[1]


def test_a_page_of_the_history_can_be_told_what_is_redacted_behind_it() -> None:
    history = History()
    for event in given(init(title="x"), append("a", message_id="m-1"), append("b")).events:
        history.apply(event)

    history.hide({"m-1": 9})

    assert contents(history.messages) == [None, "b"]
    history.keep(1, None)
    assert contents(history.messages) == ["b"]
