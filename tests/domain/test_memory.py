"""What a conversation remembers: bounded, weighed, and the same again from a snapshot."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from eventsourcing.domain import OriginatorIDError, OriginatorVersionError
from hypothesis import given as arbitrary
from hypothesis import settings
from hypothesis import strategies as st
from pydantic_core import from_json, to_json

from domain.conversation import MESSAGE_IDS_MAX, RECEIPTS_MAX, Conversation, evolve
from tests.domain.specification import (
    MAPPER,
    Request,
    append,
    close,
    folded,
    given,
    import_,
    init,
    message,
    redact,
    reopen,
    reply_chunk,
    reply_start,
    reset,
    through_storage,
    turn,
    update,
    usage,
)

TOKENS = {"prompt_tokens": 3, "completion_tokens": 4}
REQUESTS = st.sampled_from(
    [
        append("hello"),
        append("hello", "assistant", message_id="m-1"),
        usage(1, 2),
        turn(message("q"), message("a", "assistant"), usage=TOKENS),
        reset(),
        update(title="x"),
        import_(message("old"), message("older"), mode="replace"),
        reply_start("r-1"),
        reply_chunk(0, "a", "日"),
        reply_chunk(2, "b"),
        redact("m-1"),
        close("inactive"),
        reopen(),
    ]
)


def grown(*requests: Request) -> Conversation:
    conversation = given(init(), *requests).conversation
    assert conversation is not None
    return conversation


def long_conversation(commands: int) -> Conversation:
    """Returns a conversation after so many appends, each one event under a command id."""
    conversation = folded(given(init(title="x")).events)
    template = MAPPER.to_stored_event(given(init(title="x")).when(append("hello")).events[0])
    for number in range(2, commands + 2):
        body = from_json(template.state)
        body["version"] = number
        body["command_id"] = f"command {number}"
        body["data"]["message_id"] = f"message {number}"
        event = MAPPER.to_domain_event(
            type(template)(template.originator_id, number, template.topic, to_json(body))
        )
        conversation = evolve(conversation, event)
    assert conversation is not None
    return conversation


@pytest.fixture(scope="module")
def long() -> Conversation:
    return long_conversation(RECEIPTS_MAX + 500)


def test_the_last_thousand_commands_are_remembered_and_no_more(long: Conversation) -> None:
    assert len(long.receipts) == RECEIPTS_MAX
    assert next(iter(long.receipts)) == "command 502"
    assert list(long.receipts)[-1] == "command 1501"


def test_the_last_thousand_messages_are_remembered_and_no_more(long: Conversation) -> None:
    assert len(long.message_times) == MESSAGE_IDS_MAX
    assert next(iter(long.message_times)) == "message 502"
    assert list(long.message_times)[-1] == "message 1501"


def test_its_weight_stops_growing_with_its_memory(long: Conversation) -> None:
    shorter = long_conversation(RECEIPTS_MAX + 100)

    assert 0 < shorter.size_bytes <= long.size_bytes < 1_000_000


def test_its_weight_is_near_what_it_takes() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        conversation = long_conversation(600)
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()

    assert taken / 3 < conversation.size_bytes < taken * 3


def test_a_snapshot_is_the_same_conversation(long: Conversation) -> None:
    state = from_json(to_json(long.to_state()))

    assert Conversation.from_state(state) == long


@arbitrary(requests=st.lists(REQUESTS, max_size=12))
@settings(max_examples=60)
def test_a_snapshot_taken_anywhere_leads_to_the_same_conversation(requests: list[Request]) -> None:
    scenario = given(init())
    for request in requests:
        scenario.when(request)
    events = through_storage(scenario.events)
    whole = folded(events)
    assert whole is not None

    for taken_after in range(1, len(events) + 1):
        earlier = folded(events[:taken_after])
        assert earlier is not None
        restored = Conversation.from_state(from_json(to_json(earlier.to_state())))
        assert restored == earlier
        assert folded(events[taken_after:], restored) == whole


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.update(format=99),
        lambda state: state.pop("format"),
        lambda state: state.pop("receipts"),
        lambda state: state.update(totals=None),
        lambda state: state.update(modified_on="yesterday"),
        lambda state: state.update(messages=[["m-1"]]),
    ],
)
def test_a_state_that_cannot_be_read_is_refused(spoil: Any) -> None:
    state = grown(append()).to_state()
    spoil(state)

    with pytest.raises(ValueError, match=r"state|Invalid|unpack"):
        Conversation.from_state(state)


def test_an_event_of_another_conversation_or_out_of_turn_is_refused() -> None:
    conversation = grown(append())
    (event,) = given(init(title="x")).when(append()).events
    attributes = vars(event)

    with pytest.raises(OriginatorIDError):
        evolve(conversation, type(event)(**{**attributes, "originator_id": "acme.another"}))
    for version in (conversation.version, conversation.version + 2):
        with pytest.raises(OriginatorVersionError):
            evolve(conversation, type(event)(**{**attributes, "originator_version": version}))
