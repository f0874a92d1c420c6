"""init: begins a conversation, once."""

from __future__ import annotations

from domain.errors import InvalidState, VersionConflict
from tests.domain.specification import append, given, init, stored, usage

STARTED = ("ConversationStarted", {"user_id": "ada", "context": {}, "metadata": {}})


# done


def test_it_starts_the_conversation_for_a_user() -> None:
    given().when(init("ada")).then(STARTED)


def test_it_keeps_title_model_context_and_metadata() -> None:
    told = {
        "title": "Trip to Kyoto",
        "model": "claude-5",
        "context": {"locale": "ja", "tags": ["travel", 1, None]},
        "metadata": {"source": "app"},
    }

    given().when(init("ada", **told)).then(("ConversationStarted", {"user_id": "ada", **told}))


def test_the_first_event_is_version_1_and_says_who_and_by_which_command() -> None:
    (event,) = given().when(init().under("c-1").by("user:ada")).events

    written = stored(event)
    assert (written["version"], written["actor"]) == (1, "user:ada")
    assert (written["command_id"], written["verb"]) == ("c-1", "init")


def test_it_may_expect_version_0_of_a_conversation_that_does_not_exist() -> None:
    given().when(init().expecting(0)).then(STARTED)


def test_an_optional_field_given_as_null_counts_as_absent() -> None:
    given().when(init("ada", title=None, context=None, metadata=None)).then(STARTED)


# repeated


def test_starting_again_is_harmless_and_writes_nothing() -> None:
    given(init("ada"), append()).when(init("somebody else", title="Another")).then_nothing()


def test_the_same_command_again_answers_the_first_receipt() -> None:
    receipt = given(init().under("c-1"), append()).when(init().under("c-1")).then_repeated()

    assert (receipt.verb, receipt.first_version, receipt.last_version) == ("init", 1, 1)
    assert receipt.usage is None


# rejected


def test_a_command_id_of_another_verb_is_refused() -> None:
    error = given(init(), usage().under("c-1")).when(init().under("c-1")).then_refused(InvalidState)

    assert error.details == {"command_id": "c-1", "verb": "usage"}


# conflicting


def test_it_is_refused_where_the_conversation_is_at_another_version() -> None:
    error = given(init(), append()).when(init().expecting(0)).then_refused(VersionConflict)

    assert error.details == {"expected": 0, "current": 3}


def test_it_is_refused_where_a_version_is_expected_and_there_is_no_conversation() -> None:
    error = given().when(init().expecting(3)).then_refused(VersionConflict)

    assert error.details == {"expected": 3, "current": 0}
