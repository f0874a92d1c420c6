"""Rows agree with a plain dict of the conversation, and the tables hold whatever an event may."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
from eventsourcing.persistence import Tracking
from genai_prices import Usage, calc_price
from hypothesis import given as arbitrary
from hypothesis import settings
from hypothesis import strategies as st
from pydantic_core import from_json

from domain.events import ConversationEvent, MessageAppended, UsageRecorded
from projections.analytics.rows import (
    CONVERSATIONS,
    MESSAGES,
    USAGE,
    Received,
    Rows,
    chars_of,
    data_of,
    new_conversation,
)
from projections.analytics.view import AnalyticsView, DuckDBDatastore, digests
from tests.domain import model as plain
from tests.domain import strategies
from tests.domain.specification import ADAS, MAPPER, Request, given, through_storage


def fold(events: Sequence[ConversationEvent]) -> Rows:
    rows = Rows()
    conversation = new_conversation(ADAS.key)
    for seq, event in enumerate(events, 1):
        rows.fold(
            Received(event, 0, seq, "ab" * 32, MAPPER.to_stored_event(event).state), conversation
        )
    return rows


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in rows]


@arbitrary(requests=plain.lives)
@settings(deadline=None, max_examples=150)
def test_rows_agree_with_the_model_of_any_life(requests: list[Request]) -> None:
    scenario = given()
    model: plain.Model | None = None
    for request in requests:
        scenario.when(request)
        model, _ = plain.step(model, request)
    events = list(through_storage(scenario.events))

    rows = fold(events)

    assert len(rows.events) == len(events)
    if model is None:
        assert not rows.conversations
        return
    conversation = dict(zip(CONVERSATIONS, rows.conversations[ADAS.key].values(), strict=True))
    assert (conversation["tenant_id"], conversation["conversation_id"]) == ADAS
    for column in ("user_id", "title", "model", "version", "message_count"):
        assert conversation[column] == model[column]
    assert from_json(conversation["context"]) == model["context"]
    assert from_json(conversation["metadata"]) == model["metadata"]
    assert conversation["prompt_tokens"] == model["lifetime_prompt"]
    assert conversation["completion_tokens"] == model["lifetime_completion"]
    assert conversation["total_tokens"] == model["lifetime_prompt"] + model["lifetime_completion"]
    messages = table(MESSAGES, rows.messages)
    assert len(messages) == model["message_count"]
    sessions = conversation["sessions"]
    present = [each for each in messages if each["session"] == sessions]
    assert len(present) == len(model["session"])
    for row, said in zip(present, model["session"], strict=True):
        assert row["role"] == said["role"]
        if isinstance(said["content"], str):
            assert row["content"] == said["content"]
            assert row["chars"] == len(said["content"])
    usage = [row for row in table(USAGE, rows.usage) if row["session"] == sessions]
    assert sum(row["prompt_tokens"] for row in usage) == model["prompt"]
    assert sum(row["completion_tokens"] for row in usage) == model["completion"]


@arbitrary(event=strategies.events)
@settings(deadline=None, max_examples=200)
def test_data_is_what_is_stored_whatever_it_holds(event: ConversationEvent) -> None:
    body = MAPPER.to_stored_event(event).state
    assert from_json(data_of(body)) == from_json(body)["data"]


def test_data_is_found_in_a_body_that_another_program_wrote_in_another_order() -> None:
    body = b'{"x":{"n":1,"data":{"no":1}},"data":{"yes":1}}'
    assert from_json(data_of(body)) == {"yes": 1}
    assert from_json(data_of(b'{"data":{"yes":1},"type":"T"}')) == {"yes": 1}


@pytest.fixture(scope="module")
def tables() -> AnalyticsView:
    return AnalyticsView(DuckDBDatastore(None))


@arbitrary(events=st.lists(strategies.events, min_size=1, max_size=5))
@settings(deadline=None, max_examples=60)
def test_the_tables_hold_whatever_an_event_may(
    tables: AnalyticsView, events: list[ConversationEvent]
) -> None:
    seq = tables.positions().get("S", 0)
    rows = Rows()
    for number, event in enumerate(events, 1):
        key = event.originator_id
        conversation = rows.conversations.get(key) or new_conversation(key)
        body = MAPPER.to_stored_event(event).state
        rows.fold(Received(event, 0, seq + number, "ab" * 32, body), conversation)

    tables.write(rows, Tracking("S", seq + len(events)))

    found = (
        tables.datastore.cursor()
        .execute("SELECT data, time FROM events WHERE seq > ? ORDER BY seq", [seq])
        .fetchall()
    )
    for (data, time), event in zip(found, events, strict=True):
        assert from_json(data) == from_json(MAPPER.to_stored_event(event).state)["data"]
        assert time.replace(tzinfo=UTC) == event.timestamp


def said(**fields: Any) -> MessageAppended:
    return MessageAppended(
        originator_id=ADAS.key,
        originator_version=2,
        timestamp=datetime(2026, 11, 21, 9, tzinfo=UTC),
        actor=None,
        command_id="c",
        verb="append",
        **{"message_id": "m", "role": "user", "content": "hello", "metadata": {}, **fields},
    )


def used(**fields: Any) -> UsageRecorded:
    return UsageRecorded(
        originator_id=ADAS.key,
        originator_version=3,
        timestamp=datetime(2026, 1, 5, 9, tzinfo=UTC),
        actor=None,
        command_id="c",
        verb="usage",
        **{"prompt_tokens": 1000, "completion_tokens": 100, "metadata": {}, **fields},
    )


@pytest.mark.parametrize(
    ("content", "chars"),
    [
        ("héllo 北京 👋", 10),
        ("", 0),
        (None, 0),
        (
            [{"type": "text", "text": "abc"}, {"type": "image_url"}, {"type": "text", "text": "d"}],
            4,
        ),
    ],
)
def test_chars_counts_code_points_over_text_parts(content: Any, chars: int) -> None:
    assert chars_of(content) == chars


@pytest.mark.parametrize(
    ("created_at", "expected"),
    [
        (None, datetime(2026, 11, 21, 9, tzinfo=UTC)),
        ("2024-05-01T10:00:00+02:00", datetime(2024, 5, 1, 8, tzinfo=UTC)),
        ("2024-05-01T10:00:00.123456789Z", datetime(2024, 5, 1, 10, 0, 0, 123456, UTC)),
        ("0001-01-01T00:00:00+14:00", datetime(2026, 11, 21, 9, tzinfo=UTC)),
    ],
)
def test_created_at_is_the_original_time_where_there_is_one(
    created_at: str | None, expected: datetime
) -> None:
    (row,) = table(MESSAGES, fold([said(created_at=created_at)]).messages)
    assert row["created_at"] == expected


def test_a_recorded_cost_wins_over_a_price() -> None:
    (row,) = table(USAGE, fold([used(model="gpt-4o", cost_usd="0.5")]).usage)
    assert (row["cost_usd"], row["cost_source"], row["price_version"]) == (
        Decimal("0.5"),
        "recorded",
        None,
    )


def test_a_known_model_is_priced_and_says_by_which_prices() -> None:
    (row,) = table(USAGE, fold([used(model="gpt-4o", cached_tokens=400)]).usage)
    # 600 x 2.50 + 400 x 1.25 + 100 x 10 dollars per million
    assert row["cost_usd"] == Decimal("0.003")
    assert row["cost_source"] == "priced"
    assert row["price_version"].startswith("genai-prices ")


@pytest.mark.parametrize(
    "fields", [{}, {"model": "no-such-model"}, {"model": "gpt-4o", "provider": "nobody"}]
)
def test_an_unknown_model_has_no_cost(fields: dict[str, Any]) -> None:
    (row,) = table(USAGE, fold([used(**fields)]).usage)
    assert (row["cost_usd"], row["cost_source"], row["price_version"]) == (None, "none", None)


@pytest.mark.parametrize("model", ["gpt-4o", "claude-sonnet-4-5", "gemini-2.5-pro", "o3"])
def test_a_price_is_the_packages_own(model: str) -> None:
    for prompt, cached, written, completion in ((900, 0, 0, 7), (300_000, 1000, 50, 2000)):
        event = used(
            model=model,
            prompt_tokens=prompt,
            cached_tokens=cached,
            cache_write_tokens=written,
            completion_tokens=completion,
        )
        (row,) = table(USAGE, fold([event]).usage)
        expected = calc_price(
            Usage(
                input_tokens=prompt,
                output_tokens=completion,
                cache_read_tokens=cached,
                cache_write_tokens=written,
            ),
            model,
            genai_request_timestamp=event.timestamp,
        ).total_price
        assert row["cost_usd"] == round(expected, 9)


def test_digests_tell_tables_apart_whatever_the_order_of_their_rows(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    events = [said(), used(model="gpt-4o")]
    one, other, shuffled = (AnalyticsView(DuckDBDatastore(None)) for _ in range(3))
    rows = fold(events)
    one.write(rows, Tracking("S", 2))
    rows.events.reverse()
    shuffled.write(rows, Tracking("S", 2))
    other.write(fold([said(content="hellO"), used(model="gpt-4o")]), Tracking("S", 2))

    first, second, third = (digests(each.datastore.cursor()) for each in (one, shuffled, other))

    assert first == second
    assert {table for table in first if first[table] != third[table]} == {"events", "messages"}
