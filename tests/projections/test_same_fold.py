"""The same events give the same view, however they reach it."""

from __future__ import annotations

from hypothesis import given as arbitrary
from hypothesis import settings
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from domain.events import ConversationEvent
from projections.history import messages_of
from projections.state import ConversationView
from tests.domain import model as plain
from tests.domain.specification import Request, given, through_storage
from tests.domain.strategies import events as any_events

WINDOW_SIZE = 4


def folded(
    view: ConversationView, events: list[ConversationEvent], first_seq: int = 1
) -> ConversationView:
    for seq, event in enumerate(events, first_seq):
        view.apply(event, seq)
    return view


def same(one: ConversationView, other: ConversationView) -> None:
    assert one.to_state() == other.to_state()
    assert one.state() == other.state()
    assert one.size_bytes == other.size_bytes


@arbitrary(requests=plain.lives, data=st.data())
@settings(max_examples=100)
def test_live_cold_and_through_a_snapshot_are_one(
    requests: list[Request], data: st.DataObject
) -> None:
    scenario = given()
    for request in requests:
        scenario.when(request)
    decided = scenario.events
    stored = through_storage(decided)

    live = folded(ConversationView.empty(WINDOW_SIZE), decided)
    cold = folded(ConversationView.empty(WINDOW_SIZE), stored)
    same(live, cold)

    taken_after = data.draw(st.integers(0, len(stored)), label="the snapshot is taken after")
    earlier = folded(ConversationView.empty(WINDOW_SIZE), stored[:taken_after])
    restored = ConversationView.from_state(from_json(to_json(earlier.to_state())))
    same(restored, earlier)
    same(folded(restored, stored[taken_after:], first_seq=taken_after + 1), live)


@arbitrary(requests=plain.lives)
@settings(max_examples=100)
def test_the_history_since_the_last_reset_ends_with_the_window(requests: list[Request]) -> None:
    scenario = given()
    for request in requests:
        scenario.when(request)
    view = folded(ConversationView.empty(WINDOW_SIZE), scenario.events)

    whole = messages_of(scenario.events)
    session = messages_of(
        event for event in scenario.events if event.originator_version > view.reset_version
    )

    if view.status != "erased":
        assert session[-WINDOW_SIZE:] == view.window.messages()
    assert len(whole) == view.message_count
    assert whole[len(whole) - len(session) :] == session


@arbitrary(events=st.lists(any_events, max_size=8), size=st.integers(1, 3))
@settings(max_examples=100)
def test_no_event_however_odd_stops_the_fold_or_is_lost_in_a_snapshot(
    events: list[ConversationEvent], size: int
) -> None:
    view = folded(ConversationView.empty(size), events)

    to_json(view.state())
    assert view.seq == len(events)
    assert len(view.messages()) <= size
    same(ConversationView.from_state(from_json(to_json(view.to_state()))), view)
