"""reset: a new session."""

from __future__ import annotations

from domain.errors import ConversationNotInitialized, InvalidState, VersionConflict
from tests.domain.specification import append, given, init, reset, usage

# done


def test_it_begins_a_new_session() -> None:
    given(init(), append()).when(reset()).then(("SessionReset", {}))


def test_it_keeps_the_reason() -> None:
    given(init()).when(reset(reason="new topic")).then(("SessionReset", {"reason": "new topic"}))


def test_an_empty_session_may_be_reset_as_well() -> None:
    given(init(), reset()).when(reset()).then(("SessionReset", {}))


# rejected


def test_a_conversation_that_does_not_exist_has_no_session() -> None:
    given().when(reset()).then_refused(ConversationNotInitialized)


# repeated


def test_the_same_command_again_resets_nothing() -> None:
    scenario = given(init(), reset().under("c-1"), usage(12, 5))

    receipt = scenario.when(reset().under("c-1")).then_repeated()

    assert (receipt.first_version, receipt.last_version) == (2, 2)
    assert scenario.conversation is not None
    assert scenario.conversation.totals == (12, 5, 12, 5)


def test_a_command_id_of_another_verb_is_refused() -> None:
    given(init(), usage().under("c-1")).when(reset().under("c-1")).then_refused(InvalidState)


# conflicting


def test_it_is_refused_where_the_conversation_is_at_another_version() -> None:
    given(init(), append()).when(reset().expecting(1)).then_refused(VersionConflict)
