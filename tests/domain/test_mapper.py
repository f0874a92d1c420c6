"""The stored form: written as the contract says, read for ever."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from eventsourcing.persistence import MapperDeserialisationError, StoredEvent
from eventsourcing.utils import resolve_topic
from hypothesis import given, settings

from domain.conversation import evolve
from domain.events import (
    EVENT_CLASSES,
    Absent,
    ContextUpdated,
    ConversationEvent,
    ConversationStarted,
    MessageAppended,
    SessionReset,
)
from domain.identity import ConversationId
from domain.mapper import ConversationMapper, UnknownEvent
from tests.domain.strategies import events

MAPPER = ConversationMapper()
SAMPLES = Path(__file__).parent / "samples"


@dataclass(frozen=True, kw_only=True)
class MoodNoted(ConversationEvent):
    """An event type of this test alone, at its third schema.

    Schema 1 had `mood`, a word; schema 2 had `moods`, a list; schema 3 added `note`.
    """

    TOPIC = "MoodNoted"
    class_version = 3

    moods: list[str]
    note: str
    strength: int = 1

    @staticmethod
    def upcast_v1_v2(state: dict[str, Any]) -> None:
        state["moods"] = [state.pop("mood")]

    @staticmethod
    def upcast_v2_v3(state: dict[str, Any]) -> None:
        state["note"] = f"upcast at version {state['originator_version']}"


CONTRACT_TYPES = sorted(set(EVENT_CLASSES) - {MoodNoted.TOPIC})


def sample(name: str) -> StoredEvent:
    """Returns a kept event as the ledger gives it."""
    state = (SAMPLES / f"{name}.json").read_bytes().rstrip(b"\n")
    return as_stored(json.loads(state), state)


def as_stored(body: dict[str, Any], state: bytes | None = None) -> StoredEvent:
    return StoredEvent(
        originator_id=ConversationId.parse(body["tenant_id"], body["conversation_id"]).key,
        originator_version=body["version"],
        topic=body["type"],
        state=json.dumps(body).encode() if state is None else state,
    )


def changed(name: str, **changes: Any) -> StoredEvent:
    """Returns a kept event with other values under some keys of its JSON."""
    body = json.loads(sample(name).state)
    body.update(changes)
    return as_stored(body)


def mood(schema: int, **data: Any) -> StoredEvent:
    return changed("SessionReset.v1", type="MoodNoted", schema=schema, data=data)


def message(**changes: Any) -> MessageAppended:
    event = MAPPER.to_domain_event(sample("MessageAppended.v1"))
    return MessageAppended(**{**vars(event), **changes})


# kept samples


def test_every_event_type_has_a_kept_sample_of_every_schema() -> None:
    expected = {
        f"{type_}.v{schema}.json"
        for type_ in CONTRACT_TYPES
        for schema in range(1, EVENT_CLASSES[type_].class_version + 1)
    }

    assert {path.name for path in SAMPLES.iterdir()} == expected


@pytest.mark.parametrize("type_", CONTRACT_TYPES)
def test_a_kept_sample_is_read_and_written_again_byte_for_byte(type_: str) -> None:
    kept = sample(f"{type_}.v{EVENT_CLASSES[type_].class_version}")

    event = MAPPER.to_domain_event(kept)

    assert type(event) is EVENT_CLASSES[type_]
    assert MAPPER.to_stored_event(event) == kept


@pytest.mark.parametrize("type_", CONTRACT_TYPES)
def test_a_kept_sample_leaves_no_field_out(type_: str) -> None:
    event = MAPPER.to_domain_event(sample(f"{type_}.v1"))

    for field in fields(event):
        if field.name not in {"actor", "title"}:
            value = getattr(event, field.name)
            assert value is not None
            assert not isinstance(value, Absent)


def test_what_a_sample_says_is_what_is_read() -> None:
    event = MAPPER.to_domain_event(sample("MessageAppended.v1"))

    assert isinstance(event, MessageAppended)
    assert event.originator_id == "acme.c%2E1%20%E6%97%A5"
    assert event.originator_version == 2
    assert event.timestamp == datetime(2026, 11, 21, 9, 0, 0, 123456, tzinfo=UTC)
    assert event.actor is None
    assert (event.command_id, event.verb) == ("0193a1b2-0000-7000-8000-000000000002", "append")
    assert (event.message_id, event.role, event.name) == ("m-1", "assistant", "guide")
    assert event.created_at == "2019-03-01T10:00:00.5+09:00"


# the form


def test_the_keys_come_in_the_contracts_order() -> None:
    body = json.loads(MAPPER.to_stored_event(message()).state)

    assert list(body) == [
        "type",
        "schema",
        "tenant_id",
        "conversation_id",
        "version",
        "time",
        "actor",
        "command_id",
        "verb",
        "data",
    ]


def test_what_is_absent_is_left_out_of_data_and_null_content_is_not() -> None:
    event = message(name=None, tool_calls=None, tool_call_id=None, created_at=None, content=None)

    body = json.loads(MAPPER.to_stored_event(event).state)

    assert list(body["data"]) == ["message_id", "role", "content", "metadata"]
    assert body["data"]["content"] is None


def test_a_fact_that_is_removed_is_null_and_one_not_mentioned_is_left_out() -> None:
    event = MAPPER.to_domain_event(sample("ContextUpdated.v1"))
    event = ContextUpdated(**{**vars(event), "title": None, "model": Absent.ABSENT})

    stored = MAPPER.to_stored_event(event)

    assert list(json.loads(stored.state)["data"]) == ["title", "user_id", "context", "metadata"]
    assert MAPPER.to_domain_event(stored) == event


@pytest.mark.parametrize(
    ("time", "written"),
    [
        (datetime(2026, 11, 21, 9, 0, 0, 0, tzinfo=UTC), "2026-11-21T09:00:00.000000Z"),
        (datetime(2026, 11, 21, 9, 0, 0, 10, tzinfo=UTC), "2026-11-21T09:00:00.000010Z"),
        (datetime(26, 1, 2, 3, 4, 5, 0, tzinfo=UTC), "0026-01-02T03:04:05.000000Z"),
        (
            datetime(2026, 11, 21, 9, 0, 0, 1, tzinfo=timezone(timedelta(hours=9))),
            "2026-11-21T00:00:00.000001Z",
        ),
    ],
)
def test_a_time_is_written_in_utc_with_microseconds(time: datetime, written: str) -> None:
    stored = MAPPER.to_stored_event(message(timestamp=time))

    assert json.loads(stored.state)["time"] == written
    assert MAPPER.to_domain_event(stored).timestamp == time


@given(event=events)
@settings(max_examples=300)
def test_whatever_an_event_holds_comes_back_as_it_was(event: ConversationEvent) -> None:
    stored = MAPPER.to_stored_event(event)

    again = MAPPER.to_domain_event(stored)

    assert again == event
    assert MAPPER.to_stored_event(again) == stored
    body = json.loads(stored.state)
    id = ConversationId.from_key(event.originator_id)
    assert (body["tenant_id"], body["conversation_id"]) == tuple(id)
    assert (body["type"], body["version"]) == (event.TOPIC, event.originator_version)


# reading what others wrote


def test_the_librarys_registry_knows_every_type_by_its_short_name() -> None:
    for type_ in CONTRACT_TYPES:
        assert resolve_topic(type_) is EVENT_CLASSES[type_]


def test_an_older_schema_is_brought_up_step_by_step() -> None:
    for stored in (mood(1, mood="glad"), mood(2, moods=["glad"])):
        event = MAPPER.to_domain_event(stored)

        assert isinstance(event, MoodNoted)
        assert (event.moods, event.note) == (["glad"], "upcast at version 4")
        assert event.strength == 1
        assert json.loads(MAPPER.to_stored_event(event).state)["schema"] == 3


def test_the_present_schema_is_not_touched() -> None:
    event = MAPPER.to_domain_event(mood(3, moods=["sad", "glad"], note="as written", strength=2))

    assert isinstance(event, MoodNoted)
    assert (event.moods, event.note, event.strength) == (["sad", "glad"], "as written", 2)


def test_unknown_keys_are_ignored_wherever_they_stand() -> None:
    kept = json.loads(sample("SessionReset.v1").state)
    more = changed(
        "SessionReset.v1",
        data={**kept["data"], "mood": "glad", "timestamp": "never", "originator_version": 99},
        trace="00-abc",
    )

    assert MAPPER.to_domain_event(more) == MAPPER.to_domain_event(sample("SessionReset.v1"))


@pytest.mark.parametrize("type_", ["MessageShouted", "", "os:system", "this", "Conversation"])
def test_an_unknown_type_is_named_and_nothing_is_imported_for_it(type_: str) -> None:
    with pytest.raises(UnknownEvent) as unknown:
        MAPPER.to_domain_event(changed("SessionReset.v1", type=type_))

    assert repr(type_) in str(unknown.value)
    assert "event 4 of acme.c%2E1%20%E6%97%A5" in str(unknown.value)
    assert unknown.value.originator_version == 4


def test_a_schema_newer_than_the_program_is_named_and_not_guessed() -> None:
    with pytest.raises(UnknownEvent, match=r"schema 2 of event type 'SessionReset'"):
        MAPPER.to_domain_event(changed("SessionReset.v1", schema=2))


@pytest.mark.parametrize(
    "spoilt",
    [
        as_stored(json.loads(sample("SessionReset.v1").state), b"{"),
        as_stored(json.loads(sample("SessionReset.v1").state), b"[]"),
        as_stored(json.loads(sample("SessionReset.v1").state), b"\xff"),
        changed("SessionReset.v1", time="yesterday"),
        changed("SessionReset.v1", time=None),
        changed("SessionReset.v1", data=None),
        changed("SessionReset.v1", schema=None),
        changed("ConversationTitled.v1", data={"title": "x"}),
        mood(1, mooood="glad"),
    ],
)
def test_a_state_that_is_not_the_contracts_json_is_reported_with_its_place(
    spoilt: StoredEvent,
) -> None:
    with pytest.raises(MapperDeserialisationError) as failure:
        MAPPER.to_domain_event(spoilt)

    assert f"event {spoilt.originator_version} of {spoilt.originator_id}" in str(failure.value)


@pytest.mark.parametrize(
    "around",
    [
        {"originator_version": 9},
        {"originator_id": "t.c"},
        {"originator_id": "acme%2E.c-1"},
        {"topic": "ConversationReopened"},
    ],
)
def test_a_body_that_speaks_of_another_event_is_refused(around: dict[str, Any]) -> None:
    """The hash chain covers the body alone: who moves it, or changes a header, is found out."""
    kept = sample("SessionReset.v1")
    assert isinstance(MAPPER.to_domain_event(kept), SessionReset)

    with pytest.raises(MapperDeserialisationError, match="speaks of another event"):
        MAPPER.to_domain_event(replace(kept, **around))


def test_ids_that_are_no_tokens_are_recognised() -> None:
    kept = sample("SessionReset.v1")
    state = json.loads(kept.state) | {"tenant_id": "a.b%", "conversation_id": "東京"}
    id = ConversationId("a.b%", "東京").key
    named = replace(kept, originator_id=id, state=json.dumps(state).encode())

    assert MAPPER.to_domain_event(named).originator_id == id
    with pytest.raises(MapperDeserialisationError, match="speaks of another event"):
        MAPPER.to_domain_event(replace(named, originator_id=f"{id}%20"))


def test_a_start_read_from_the_ledger_makes_a_conversation() -> None:
    event = MAPPER.to_domain_event(sample("ConversationStarted.v1"))

    assert isinstance(event, ConversationStarted)
    conversation = evolve(None, event)
    assert (conversation.id, conversation.version) == (event.originator_id, 1)
