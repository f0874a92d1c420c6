"""Search: what is found, by whom, and what is not to be found any more."""

from __future__ import annotations

import pytest

from projections.directory import search
from projections.directory.entry import microseconds
from tests.projections.directory.given import BEGIN, Told


def test_a_hit_has_the_fields_of_the_contract(told: Told) -> None:
    told.start("c-1")
    told.say("c-1", "Where is my hotel in Paris?", "m-1")
    told.say("c-1", "Nowhere.", "m-2", role="assistant")

    [hit] = told.hits("HOTEL")
    assert hit.pop("score") > 0
    assert hit == {
        "conversation_id": "c-1",
        "message_id": "m-1",
        "version": 2,
        "role": "user",
        "timestamp": "2026-11-21T09:00:02.000000Z",
        "snippet": "Where is my ⟦hotel⟧ in Paris?",
    }


def test_text_parts_are_searched_and_tool_calls_are_not(told: Told) -> None:
    told.start("c-1")
    parts = [
        {"type": "text", "text": "first words"},
        {"type": "image_url", "image_url": {"url": "https://example.org/secret"}},
        {"type": "input_text", "text": "last words"},
    ]
    told.say("c-1", parts, "m-1")
    calls = [{"id": "x", "function": {"name": "book", "arguments": '{"city": "oslo"}'}}]
    told.say("c-1", None, "m-2", role="assistant", tool_calls=calls)

    assert told.found("last first") == {"c-1/m-1"}
    assert told.found("secret") == set()
    assert told.found("oslo") == set()


def test_filters_by_user_role_and_conversation(told: Told) -> None:
    told.start("a", "ada")
    told.start("b", "grace")
    told.say("a", "one word", "m-1")
    told.say("a", "one word", "m-2", role="assistant")
    told.say("b", "one word", "m-3")

    assert told.found("word") == {"a/m-1", "a/m-2", "b/m-3"}
    assert told.found("word", user_id="ada") == {"a/m-1", "a/m-2"}
    assert told.found("word", role="user") == {"a/m-1", "b/m-3"}
    assert told.found("word", user_id="ada", role="assistant") == {"a/m-2"}
    assert told.found("word", conversation_id="b") == {"b/m-3"}
    assert told.found("word", conversation_id="b", user_id="ada") == set()
    assert told.found("word", conversation_id="nowhere") == set()


def test_names_of_facets_are_no_words_of_a_message(told: Told) -> None:
    told.start("a")
    told.say("a", "hello")

    assert told.found("ruser") == set()
    assert told.found("c1") == set()


def test_filters_by_the_time_of_the_message(told: Told) -> None:
    told.start("a")
    told.say("a", "old word", "m-1", created_at="2019-03-01T10:00:00+09:00")
    told.say("a", "new word", "m-2")
    [old] = told.hits("old")
    then = microseconds(BEGIN.replace(year=2019, month=3, day=1, hour=1))

    assert old["timestamp"] == "2019-03-01T10:00:00+09:00"
    assert told.found("word", since=then, until=then) == {"a/m-1"}
    assert told.found("word", since=then + 1) == {"a/m-2"}
    assert told.found("word", until=then - 1) == set()


def test_the_user_who_has_the_conversation_now_finds_all_of_it(told: Told) -> None:
    told.start("a", "ada")
    told.say("a", "before", "m-1")
    told.flush()
    told.update("a", user_id="grace")
    told.say("a", "after", "m-2")

    assert told.found("before", user_id="ada") == set()
    assert told.found("before", user_id="grace") == {"a/m-1"}
    assert told.found("after", user_id="grace") == {"a/m-2"}

    told.update("a", user_id=None)
    assert told.found("before", user_id="grace") == set()
    assert told.found("before") == {"a/m-1"}


@pytest.mark.parametrize("at_once", [True, False])
def test_an_edited_message_is_found_by_what_it_says_now(told: Told, at_once: bool) -> None:
    told.start("a")
    told.say("a", "a wrong word", "m-1")
    if not at_once:
        told.flush()
    told.edit("a", "m-1", [{"type": "text", "text": "a right word"}])

    assert told.found("wrong") == set()
    [hit] = told.hits("right")
    assert (hit["message_id"], hit["version"]) == ("m-1", 2)


@pytest.mark.parametrize("at_once", [True, False])
def test_a_redacted_message_is_not_found_and_its_text_is_gone(told: Told, at_once: bool) -> None:
    told.start("a")
    told.say("a", "the unsayable", "m-1")
    if not at_once:
        told.flush()
    told.redact("a", "m-1")
    told.edit("a", "m-1", "the unsayable again")

    assert told.found("unsayable") == set()
    assert texts(told) == [""]


def test_a_deleted_conversation_is_not_found_until_it_is_reopened(told: Told) -> None:
    told.start("a", "ada")
    told.say("a", "a word", "m-1")
    told.close_for("a", "deleted")
    assert told.found("word") == set()

    told.update("a", user_id="grace")
    told.flush()
    told.reopen("a")
    assert told.found("word", user_id="grace") == {"a/m-1"}


@pytest.mark.parametrize("reason", ["closed", "inactive"])
def test_a_closed_conversation_is_found(told: Told, reason: str) -> None:
    told.start("a")
    told.say("a", "a word", "m-1")
    told.close_for("a", reason)

    assert told.found("word") == {"a/m-1"}


@pytest.mark.parametrize("deleted_before", [True, False])
def test_of_an_erased_conversation_no_text_is_left(told: Told, deleted_before: bool) -> None:
    told.start("a")
    told.say("a", "the unsayable", "m-1")
    told.flush()
    told.say("a", "more of it", "m-2")
    if deleted_before:
        told.close_for("a", "deleted")
        told.flush()
    told.erase("a")

    assert told.found("unsayable") == set()
    assert told.found("more") == set()
    assert texts(told) == []


def test_a_reply_is_found_once_it_has_ended(told: Told) -> None:
    told.start("a")
    told.begin_reply("a", "m-1")
    told.chunk("a", "m-1", "half a sen")
    told.flush()
    told.chunk("a", "m-1", "tence", 1)
    assert told.found("half") == set()

    told.finish_reply("a", "m-1")
    assert told.found('"half a sentence"') == {"a/m-1"}


def test_an_aborted_reply_is_found_as_far_as_it_came(told: Told) -> None:
    told.start("a")
    told.begin_reply("a", "m-1")
    told.chunk("a", "m-1", "half a sen")
    told.abort_reply("a", "m-1")

    assert told.found("sen") == {"a/m-1"}
    assert told.page().conversations[0]["message_count"] == 1


def test_what_names_no_message_changes_nothing(told: Told) -> None:
    told.start("a")
    told.say("a", "a word", "m-1")
    told.edit("a", "m-2", "another")
    told.redact("a", "m-3")
    told.chunk("a", "m-4", "text")

    assert told.found("word") == {"a/m-1"}
    assert told.found("another") == set()


def test_an_id_that_is_there_twice_means_the_later_message(told: Told) -> None:
    told.start("a")
    told.say("a", "earlier", "m-1")
    told.flush()
    told.say("a", "later", "m-1")
    told.flush()
    told.redact("a", "m-1")

    assert told.found("earlier") == {"a/m-1"}
    assert told.found("later") == set()


def test_tenants_do_not_find_each_others_messages(told: Told) -> None:
    told.start("a")
    told.start("a", tenant="other")
    told.say("a", "a word", "m-1")
    told.say("a", "a word", "m-2", tenant="other")

    assert told.found("word") == {"a/m-1"}
    assert told.found("word", tenant="other") == {"a/m-2"}
    assert told.found("word", tenant="nobody") == set()


def test_the_best_comes_first_and_the_newest_among_equals(told: Told) -> None:
    told.start("a")
    told.say("a", "needle and much else that has nothing to do with it at all", "worst")
    for number in range(5):
        told.say("a", "needle", f"equal-{number}")
    told.say("a", "needle needle needle", "best")

    hits = told.hits("needle")
    assert [hit["message_id"] for hit in hits] == [
        "best",
        *(f"equal-{number}" for number in range(4, -1, -1)),
        "worst",
    ]
    assert told.hits("needle", limit=2) == hits[:2]


def test_of_very_many_the_newest_are_looked_at(told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "CANDIDATES_MAX", 3)
    told.start("a")
    for number in range(5):
        told.say("a", "word " * (5 - number), f"m-{number}")

    assert told.found("word") == {"a/m-2", "a/m-3", "a/m-4"}
    assert told.found("word", role="user") == {"a/m-2", "a/m-3", "a/m-4"}


def texts(told: Told) -> list[str]:
    told.flush()
    with told.view.datastore.transaction(commit=False) as cursor:
        cursor.execute("SELECT text FROM messages")
        return [row["text"] for row in cursor.fetchall()]
