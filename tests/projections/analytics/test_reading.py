"""The short way to what an event says and the mapper's tell the same."""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

import pytest
from eventsourcing.persistence import MapperDeserialisationError
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict
from pydantic_core import from_json

from domain.events import ConversationEvent, MessageAppended, UsageRecorded
from domain.mapper import UnknownEvent
from projections.analytics.reading import Received, Said, Used, data_of, received
from tests.domain import strategies
from tests.domain.specification import MAPPER
from tests.projections.analytics.test_rows import said, used


def read(event: ConversationEvent, body: bytes) -> Received:
    key, version = event.originator_id, event.originator_version
    return received(key, version, event.TOPIC, body, partition=0, seq=7, digest="ab" * 32)


USUAL: dict[type[ConversationEvent], type[Said | Used]] = {
    MessageAppended: Said,
    UsageRecorded: Used,
}
usual = strategies.messages | strategies.usage


@pytest.mark.parametrize(("event_class", "what"), USUAL.items())
def test_what_is_read_has_the_fields_of_the_event(
    event_class: type[ConversationEvent], what: type[Said | Used]
) -> None:
    own = {each.name for each in fields(event_class)} - {
        each.name for each in fields(ConversationEvent)
    }
    assert set(what.__struct_fields__) == own


@given(event=strategies.events | usual)
@settings(max_examples=200)
def test_what_is_read_is_what_the_mapper_reads(event: ConversationEvent) -> None:
    body = MAPPER.to_stored_event(event).state
    mapped = MAPPER.event_of(event.originator_id, event.originator_version, event.TOPIC, body)

    got = read(event, body)

    assert (got.key, got.version, got.type) == (
        event.originator_id,
        event.originator_version,
        event.TOPIC,
    )
    assert (got.time, got.actor, got.command_id) == (
        mapped.timestamp,
        mapped.actor,
        mapped.command_id,
    )
    assert got.data == data_of(body)
    if type(event) in USUAL:
        assert isinstance(got.event, USUAL[type(event)])
        assert asdict(got.event) == {
            name: getattr(mapped, name) for name in got.event.__struct_fields__
        }
    else:
        assert got.event == mapped


@given(event=usual, indent=st.sampled_from([None, 1]))
@settings(max_examples=50)
def test_a_body_that_another_program_wrote_says_the_same(
    event: ConversationEvent, indent: int | None
) -> None:
    body = MAPPER.to_stored_event(event).state
    other = dict(reversed(from_json(body).items())) | {"more": {"data": 1}}

    got = read(event, json.dumps(other, indent=indent).encode())

    assert got.event == read(event, body).event
    assert from_json(got.data) == from_json(body)["data"]


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"version": 9}, MapperDeserialisationError),
        ({"type": "SessionReset"}, MapperDeserialisationError),
        ({"tenant_id": "another"}, MapperDeserialisationError),
        ({"data": {}}, MapperDeserialisationError),
        ({"time": "yesterday"}, MapperDeserialisationError),
        ({"schema": 99}, UnknownEvent),
    ],
)
@pytest.mark.parametrize("event", [said(), used()], ids=["said", "used"])
def test_what_cannot_be_understood_is_refused_as_the_mapper_does(
    event: ConversationEvent, changes: dict[str, Any], error: type[Exception]
) -> None:
    stored = from_json(MAPPER.to_stored_event(event).state)

    with pytest.raises(error):
        read(event, json.dumps(stored | changes).encode())


def test_nanoseconds_are_cut_off_as_the_mapper_does() -> None:
    stored = from_json(MAPPER.to_stored_event(said()).state)
    stored["time"] = "2026-11-21T09:00:00.123456789Z"

    assert read(said(), json.dumps(stored).encode()).time.microsecond == 123456
