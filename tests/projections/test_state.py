"""The state of a conversation, rule by rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from freezegun import freeze_time
from freezegun.api import FrozenDateTimeFactory
from pydantic_core import from_json, to_json

from domain.events import ConversationEvent
from projections.state import ConversationView
from tests.domain.specification import (
    Request,
    append,
    close,
    edit,
    erase,
    given,
    import_,
    init,
    message,
    redact,
    reopen,
    reset,
    through_storage,
    update,
    usage,
)

NOTHING_USED = {"prompt": 0, "completion": 0, "total": 0}


@dataclass(frozen=True, kw_only=True)
class WindOfChangeFelt(ConversationEvent):
    """An event type that no view knows."""

    TOPIC = "WindOfChangeFelt"


@pytest.fixture
def clock() -> Iterator[FrozenDateTimeFactory]:
    with freeze_time("2026-11-21T09:00:00Z") as frozen:
        assert isinstance(frozen, FrozenDateTimeFactory)
        yield frozen


def view_of(*requests: Request, window_size: int = 50) -> ConversationView:
    view = ConversationView.empty(window_size)
    for seq, event in enumerate(through_storage(given(*requests).events), 1):
        view.apply(event, seq)
    return view


def test_before_its_first_event_a_conversation_does_not_exist() -> None:
    view = ConversationView.empty(50)

    assert (view.exists, view.version, view.seq) == (False, 0, 0)
    assert view.messages() == []
    assert view.usage() == {"usage": NOTHING_USED, "lifetime": NOTHING_USED}


def test_a_conversation_that_has_just_begun(clock: FrozenDateTimeFactory) -> None:
    assert view_of(init("ada")).state() == {
        "conversation_id": "ada's first chat",
        "tenant_id": "acme",
        "user_id": "ada",
        "title": None,
        "status": "active",
        "model": None,
        "context": {},
        "metadata": {},
        "recent_messages": [],
        "tokens_used": NOTHING_USED,
        "lifetime_tokens": NOTHING_USED,
        "message_count": 0,
        "created_at": "2026-11-21T09:00:00.000000Z",
        "last_activity": "2026-11-21T09:00:00.000000Z",
        "version": 1,
        "seq": 1,
    }


def test_last_activity_is_the_time_of_the_last_event(clock: FrozenDateTimeFactory) -> None:
    scenario = given(init())
    clock.tick(timedelta(seconds=1.5))
    scenario.when(usage())
    view = ConversationView.empty(50)
    for event in scenario.events:
        view.apply(event, 1)

    assert view.state()["created_at"] == "2026-11-21T09:00:00.000000Z"
    assert view.state()["last_activity"] == "2026-11-21T09:00:01.500000Z"


def test_context_and_metadata_are_merged_key_by_key_and_null_removes_one() -> None:
    view = view_of(
        init(context={"a": 1, "b": {"deep": 1}, "none": None}, metadata={"m": 1}),
        update(context={"a": None, "b": {"other": 2}, "c": 3}),
        update(metadata={"n": [None], "missing": None}),
    )

    assert view.state()["context"] == {"b": {"other": 2}, "c": 3}
    assert view.state()["metadata"] == {"m": 1, "n": [None]}


def test_facts_are_replaced_removed_or_left_as_they_are() -> None:
    told = {"title": "A", "model": "m-1"}

    kept = view_of(init("ada", **told), update(context={"x": 1})).state()
    assert (kept["user_id"], kept["title"], kept["model"]) == ("ada", "A", "m-1")
    replaced = view_of(init("ada", **told), update(title="B", model="m-2", user_id="bob")).state()
    assert (replaced["user_id"], replaced["title"], replaced["model"]) == ("bob", "B", "m-2")
    removed = view_of(init("ada", **told), update(title=None, model=None, user_id=None)).state()
    assert (removed["user_id"], removed["title"], removed["model"]) == (None, None, None)


def test_the_automatic_title_is_shown() -> None:
    assert view_of(init(), append("hello")).state()["title"] == "hello"


def test_every_message_ever_counts_and_only_this_sessions_are_recent() -> None:
    view = view_of(init(), append("one"), append("two"), reset(), append("three"))

    assert view.state()["message_count"] == 3
    assert [each["content"] for each in view.messages()] == ["three"]
    assert view.reset_version == 5


def test_a_view_without_a_reset_has_none_to_look_behind() -> None:
    assert view_of(init(), append()).reset_version == 0


def test_an_end_is_no_activity(clock: FrozenDateTimeFactory) -> None:
    scenario = given(init(), append("hello"))
    clock.tick(timedelta(hours=24))
    scenario.when(close("inactive"))
    clock.tick(timedelta(hours=1))
    scenario.when(erase())
    view = ConversationView.empty(50)
    for event in scenario.events:
        view.apply(event, 1)

    assert view.state()["last_activity"] == "2026-11-21T09:00:00.000000Z"


@pytest.mark.parametrize("reason", ["closed", "inactive"])
def test_a_closed_conversation_still_shows_what_was_said(reason: str) -> None:
    view = view_of(init(), append("hello"), close(reason))

    assert view.state()["status"] == reason
    assert [each["content"] for each in view.messages()] == ["hello"]


def test_a_deleted_conversation_shows_no_messages_until_it_is_reopened() -> None:
    said = [init(), append("hello"), close("deleted")]

    assert view_of(*said).state()["status"] == "deleted"
    assert view_of(*said).messages() == view_of(*said).state()["recent_messages"] == []
    assert [each["content"] for each in view_of(*said, reopen()).messages()] == ["hello"]


def test_who_comes_back_to_an_inactive_conversation_finds_an_empty_window() -> None:
    left = [init(), append("hello"), usage(), close("inactive")]

    back = view_of(*left, append("again"))

    assert [each["content"] for each in back.messages()] == ["again"]
    assert back.usage()["usage"] == NOTHING_USED
    assert [each["content"] for each in view_of(*left, reopen()).messages()] == ["hello"]


def test_an_erased_conversation_shows_its_status_and_its_numbers_alone() -> None:
    said = [
        init("ada", title="A", model="m", context={"a": 1}, metadata={"b": 2}),
        append("hello", message_id="m-1"),
        edit("m-1", "better"),
        usage(12, 5),
    ]

    state = view_of(*said, erase()).state()

    assert state["status"] == "erased"
    assert [state[name] for name in ("user_id", "title", "model")] == [None, None, None]
    assert (state["context"], state["metadata"], state["recent_messages"]) == ({}, {}, [])
    assert (state["message_count"], state["lifetime_tokens"]["total"]) == (1, 17)


def test_a_title_taken_from_a_message_goes_with_it() -> None:
    said = [init(), append("my card is 1234", message_id="m-1"), append("x", message_id="m-2")]

    assert view_of(*said, edit("m-1", "no card")).state()["title"] == "my card is 1234"
    assert view_of(*said, redact("m-2")).state()["title"] == "my card is 1234"
    assert view_of(*said, redact("m-1")).state()["title"] is None
    assert view_of(*said, update(title="Cards"), redact("m-1")).state()["title"] == "Cards"


def test_the_past_hides_what_is_hidden_now_and_keeps_its_own_words() -> None:
    said = [init(), append("secret", message_id="m-1"), append("draft", message_id="m-2")]
    past = view_of(*said)

    past.hide(view_of(*said, edit("m-2", "final"), redact("m-1")))

    hidden, kept = past.messages()
    assert (hidden["content"], hidden["redacted"]) == (None, True)
    assert kept["content"] == "draft"
    assert past.state()["title"] is None


@pytest.mark.parametrize(("end", "status"), [(erase(), "erased"), (close("deleted"), "active")])
def test_the_past_of_what_is_gone_is_empty(end: Request, status: str) -> None:
    said = [init("ada"), append("hello")]
    past = view_of(*said)

    past.hide(view_of(*said, end))

    assert past.messages() == []
    assert past.state()["status"] == status


def test_an_event_that_shows_nowhere_still_counts_as_seen() -> None:
    view = view_of(init(), append("hello"))
    before = view.state()
    (latest,) = given(init(title="x")).when(append()).events
    common = {
        **{name: getattr(latest, name) for name in ("originator_id", "command_id", "actor")},
        "timestamp": latest.timestamp + timedelta(hours=1),
        "verb": "feel",
    }

    view.apply(WindOfChangeFelt(originator_version=4, **common), seq=77)

    after = view.state()
    assert (after.pop("version"), after.pop("seq")) == (4, 77)
    assert after.pop("last_activity") > before["last_activity"]
    assert after == {name: before[name] for name in after}


@pytest.mark.parametrize(
    "requests",
    [
        [],
        [append("x" * 1_000)],
        [append("日" * 1_000)],
        [append([{"type": "text", "text": "x" * 1_000}])],
        [append("x", metadata={"long": "x" * 1_000})],
        [append("x", "assistant", tool_calls=[{"arguments": "x" * 1_000}])],
        [update(context={"long": "x" * 1_000})],
        [update(metadata={"long": "x" * 1_000})],
    ],
)
def test_its_weight_includes_what_it_holds(requests: list[Request]) -> None:
    empty = view_of(init(title="x"))
    full = view_of(init(title="x"), *requests)

    assert full.size_bytes - empty.size_bytes >= 1_000 * len(requests)


def test_its_weight_falls_when_the_window_moves_on_or_a_fact_goes() -> None:
    heavy = append("x" * 10_000, "assistant")
    light = view_of(init(), *[append("x")] * 4, window_size=2).size_bytes

    assert (
        view_of(init(), append("x"), heavy, *[append("x")] * 2, window_size=2).size_bytes == light
    )
    assert view_of(init(), heavy, reset()).size_bytes == view_of(init()).size_bytes
    context = {"long": "x" * 10_000}
    gone = view_of(init(context=context), update(context={"long": None}))
    assert gone.size_bytes == view_of(init()).size_bytes


def test_a_snapshot_keeps_the_size_of_the_window() -> None:
    view = view_of(init(), *[append(str(number)) for number in range(5)], window_size=3)

    restored = ConversationView.from_state(from_json(to_json(view.to_state())))

    assert restored.window_size == 3
    assert [each["content"] for each in restored.messages()] == ["2", "3", "4"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.update(format=99),
        lambda state: state.pop("format"),
        lambda state: state.pop("messages"),
        lambda state: state.update(totals=None),
        lambda state: state.update(messages=[{}]),
        lambda state: state.update(created_at="yesterday"),
    ],
)
def test_a_state_that_cannot_be_read_is_refused(spoil: Any) -> None:
    state = view_of(init(), append()).to_state()
    spoil(state)

    with pytest.raises(ValueError, match=r"state|Invalid isoformat"):
        ConversationView.from_state(state)


def test_what_is_imported_is_shown_at_its_own_time() -> None:
    old = message("long ago", created_at="2019-03-01T10:00:00.5+09:00")

    (shown,) = view_of(init(), import_(old)).messages()

    assert shown["timestamp"] == "2019-03-01T10:00:00.5+09:00"
