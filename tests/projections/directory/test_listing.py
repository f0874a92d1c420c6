"""Lists: the newest activity first, and pages that neither skip nor repeat."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from hypothesis import given as arbitrary
from hypothesis import settings
from hypothesis import strategies as st

from domain.events import ConversationEvent
from projections.directory.entry import Entry
from projections.directory.listing import BadCursor, Cursor, Place
from projections.state import ConversationView
from tests.domain import model as plain
from tests.domain.specification import Request, given
from tests.domain.strategies import events as any_events
from tests.projections.directory.given import Told


def test_an_item_has_the_fields_of_the_contract(told: Told) -> None:
    told.start("c-1", title="Plans", model="gpt-4o")
    told.say("c-1", "hello")
    told.use("c-1", 12, 5)
    told.update("c-1", user_id="grace", title=None)

    assert told.page().conversations == [
        {
            "conversation_id": "c-1",
            "user_id": "grace",
            "title": None,
            "status": "active",
            "model": "gpt-4o",
            "created_at": "2026-11-21T09:00:01.000000Z",
            "last_activity": "2026-11-21T09:00:04.000000Z",
            "version": 4,
            "message_count": 1,
            "tokens_used": {"prompt": 12, "completion": 5, "total": 17},
        }
    ]


def test_tokens_are_those_since_the_reset_however_many(told: Told) -> None:
    told.start("c-1")
    told.use("c-1", 1, 1)
    told.reset("c-1")
    for _ in range(3):
        told.use("c-1", 2**62, 5)
        told.flush()

    [item] = told.page().conversations
    assert item["tokens_used"] == {"prompt": 3 * 2**62, "completion": 15, "total": 3 * 2**62 + 15}


def test_the_newest_activity_comes_first_and_activity_moves_up(told: Told) -> None:
    for id in ("a", "b", "c"):
        told.start(id)
    assert told.ids() == ["c", "b", "a"]

    told.say("a", "again")
    assert told.ids() == ["a", "c", "b"]


def test_a_tenant_sees_its_own(told: Told) -> None:
    told.start("mine")
    told.start("theirs", tenant="other")

    assert told.ids() == ["mine"]
    assert told.ids(tenant="other") == ["theirs"]
    assert told.ids(tenant="nobody") == []


def test_filters_by_user_and_status(told: Told) -> None:
    for id, user in (("a", "ada"), ("b", "grace"), ("c", "ada")):
        told.start(id, user)
    told.close_for("c", "closed")

    assert told.ids(user_id="ada") == ["c", "a"]
    assert told.ids(user_id="nobody") == []
    assert told.ids(status="closed") == ["c"]
    assert told.ids(user_id="ada", status="active") == ["a"]

    told.update("a", user_id="grace")
    assert told.ids(user_id="grace") == ["a", "b"]


@pytest.mark.parametrize("reason", ["closed", "inactive"])
def test_an_ended_conversation_stays_in_its_place(told: Told, reason: str) -> None:
    told.start("a")
    told.start("b")
    told.close_for("a", reason)

    assert told.ids() == ["b", "a"]
    assert told.page().conversations[1]["status"] == reason


def test_a_deleted_conversation_is_shown_only_where_it_is_asked_for(told: Told) -> None:
    told.start("a", title="Plans")
    told.close_for("a", "deleted")

    assert told.ids() == []
    assert told.ids(user_id="ada") == []
    assert told.ids(status="deleted") == ["a"]

    told.reopen("a")
    assert told.ids() == ["a"]


def test_an_erased_conversation_says_nothing_any_more(told: Told) -> None:
    told.start("a", title="Plans")
    told.erase("a")

    assert told.ids() == []
    [item] = told.page(status="erased").conversations
    assert (item["user_id"], item["title"], item["status"]) == (None, None, "erased")


def walk(told: Told, limit: int, between: Any = lambda: None, **wanted: Any) -> list[str]:
    """Every id that a walk over all pages shows, in order."""
    shown: list[str] = []
    cursor = None
    while True:
        page = told.page(limit, cursor, **wanted)
        shown += [each["conversation_id"] for each in page.conversations]
        if not page.more:
            return shown
        cursor = page.cursors[-1]
        between()


@pytest.mark.parametrize("limit", [1, 3, 7, 300])
def test_pages_together_are_the_list(told: Told, limit: int) -> None:
    for number in range(20):
        told.start(f"c-{number:02}", partition=number % 2)
    for number in (3, 11, 4):
        told.say(f"c-{number:02}", "hello", partition=number % 2)

    assert walk(told, limit) == told.ids()
    assert len(told.ids()) == 20


@pytest.mark.parametrize("seed", range(8))
def test_pages_neither_skip_nor_repeat_while_conversations_move(told: Told, seed: int) -> None:
    chance = random.Random(seed)
    places = {f"c-{number:02}": number % 2 for number in range(30)}
    for id, partition in places.items():
        told.start(id, chance.choice(["ada", "grace"]), partition=partition)
    for id in chance.choices(list(places), k=40):
        told.say(id, "before", partition=places[id])
    as_it_was = told.ids()
    adas = told.ids(user_id="ada")

    def things_happen() -> None:
        for id in chance.choices(list(places), k=5):
            told.say(id, "meanwhile", partition=places[id])
        new = f"new-{told.seqs[0]}"
        told.start(new, partition=0)

    assert walk(told, chance.randint(1, 7), things_happen) == as_it_was
    # Another walk, begun in the new order; its first page is made before things happen.
    adas = told.ids(user_id="ada")
    assert walk(told, 4, things_happen, user_id="ada") == adas


def test_what_is_deleted_meanwhile_is_left_out_and_nothing_else(told: Told) -> None:
    for id in ("a", "b", "c", "d"):
        told.start(id)

    assert walk(told, 1, lambda: told.close_for("b", "deleted")) == ["d", "c", "a"]


def test_an_event_of_an_older_time_moves_nothing_out_of_a_walk(told: Told) -> None:
    """The clock of another worker may lag behind."""
    for id in ("a", "b", "c"):
        told.start(id)
    first = told.page(1)
    told.now = told.now.replace(year=2020)
    told.say("c", "seen already, and now older than all")
    told.say("b", "to come, and now older than all")

    rest = told.page(10, first.cursors[-1])
    assert [each["conversation_id"] for each in rest.conversations] == ["b", "a"]


def test_a_cursor_reads_what_it_wrote_and_nothing_else() -> None:
    cursor = Cursor({0: 17, 1: 2**60}, Place(1_795_000_000_000_000, "北京/1"))
    assert Cursor.parse(cursor.text()) == cursor

    for text in ("", "x", "é", "[]", "e30", cursor.text()[:-3], "W3siMCI6LTF9LDEsImEiXQ"):
        with pytest.raises(BadCursor):
            Cursor.parse(text)


@arbitrary(text=st.text(max_size=60))
@settings(max_examples=300)
def test_no_text_is_more_than_a_bad_cursor(text: str) -> None:
    with contextlib.suppress(BadCursor):
        Cursor.parse(text)


FIELDS = ("user_id", "title", "status", "model", "version", "message_count", "tokens_used")


def same_as_the_state(events: list[ConversationEvent]) -> None:
    entry, view = Entry(), ConversationView.empty(1)
    for seq, event in enumerate(events, 1):
        entry.apply(event)
        view.apply(event, seq)
    shown, state = entry.shown("c-1"), view.state()
    for field in (*FIELDS, "created_at", "last_activity"):
        assert shown[field] == state[field], field


@arbitrary(requests=plain.lives)
@settings(max_examples=100)
def test_the_item_of_any_life_is_that_of_the_state(requests: list[Request]) -> None:
    scenario = given()
    for request in requests:
        scenario.when(request)
    same_as_the_state(scenario.events)


@arbitrary(events=st.lists(any_events, max_size=8))
@settings(max_examples=100)
def test_no_event_however_odd_is_shown_otherwise_than_in_the_state(
    events: list[ConversationEvent],
) -> None:
    same_as_the_state(events)
