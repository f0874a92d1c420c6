"""update: facts about the conversation."""

from __future__ import annotations

from typing import Any

import pytest

from domain.errors import ConversationNotInitialized, InvalidState, VersionConflict
from tests.domain.specification import append, given, init, update


def updated(**data: Any) -> tuple[str, dict[str, Any]]:
    return ("ContextUpdated", {**data, "context": {}, "metadata": {}} | data)


# done


@pytest.mark.parametrize(
    "facts",
    [
        {"title": "Kyoto"},
        {"model": "claude-5"},
        {"user_id": "grace"},
        {"context": {"locale": "ja"}},
        {"metadata": {"starred": True}},
        {"title": "Kyoto", "model": "m", "user_id": "u", "context": {"a": 1}, "metadata": {"b": 2}},
    ],
)
def test_it_writes_the_facts_that_were_given_and_no_others(facts: dict[str, Any]) -> None:
    given(init()).when(update(**facts)).then(updated(**facts))


@pytest.mark.parametrize("field", ["title", "model", "user_id"])
def test_a_null_removes_a_fact(field: str) -> None:
    given(init()).when(update(**{field: None})).then(updated(**{field: None}))


def test_a_null_in_context_or_metadata_is_kept_as_what_removes_a_key() -> None:
    facts = {"context": {"locale": None}, "metadata": {"starred": None}}

    given(init()).when(update(**facts)).then(updated(**facts))


def test_no_fact_at_all_changes_nothing() -> None:
    given(init()).when(update()).then_nothing()
    given(init()).when(update(context={}, metadata=None)).then_nothing()


# rejected


def test_a_conversation_that_does_not_exist_has_no_facts() -> None:
    given().when(update(title="x")).then_refused(ConversationNotInitialized)


# repeated


def test_the_same_command_again_changes_nothing() -> None:
    scenario = given(init(), update(title="One").under("c-1"), update(title="Two"))

    receipt = scenario.when(update(title="One").under("c-1")).then_repeated()

    assert (receipt.first_version, receipt.last_version) == (2, 2)


def test_a_command_id_of_another_verb_is_refused() -> None:
    given(init(), append().under("c-1")).when(update(title="x").under("c-1")).then_refused(
        InvalidState
    )


# conflicting


def test_it_is_refused_where_the_conversation_is_at_another_version() -> None:
    given(init()).when(update(title="x").expecting(5)).then_refused(VersionConflict)


def test_it_is_refused_at_another_version_even_when_it_changes_nothing() -> None:
    given(init()).when(update().expecting(5)).then_refused(VersionConflict)
