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

from domain.events import (
    ConversationErased,
    ConversationEvent,
    MessageAppended,
    MessageRedacted,
    UsageRecorded,
)
from projections.analytics.comparison import digests
from projections.analytics.reading import Received, data_of, received
from projections.analytics.rows import (
    CONVERSATIONS,
    MESSAGES,
    USAGE,
    Rows,
    chars_of,
    new_conversation,
)
from projections.analytics.view import AnalyticsView, DuckDBDatastore
from tests.domain import model as plain
from tests.domain import strategies
from tests.domain.specification import (
    ADAS,
    MAPPER,
    Request,
    append,
    given,
    init,
    through_storage,
)


def read(event: ConversationEvent, seq: int) -> Received:
    """The event as the tables get it from the ledger."""
    body = MAPPER.to_stored_event(event).state
    key, version = event.originator_id, event.originator_version
    return received(key, version, event.TOPIC, body, partition=0, seq=seq, digest="ab" * 32)


def fold(events: Sequence[ConversationEvent]) -> Rows:
    rows = Rows()
    conversation = new_conversation(ADAS.key)
    for seq, event in enumerate(events, 1):
        rows.fold(read(event, seq), conversation)
    return rows


def table(columns: tuple[str, ...], rows: list[tuple[Any, ...]]) -> list[dict[str, Any]]:
    return [dict(zip(columns, row, strict=True)) for row in rows]


@arbitrary(requests=plain.lives)
@settings(max_examples=12)
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
    for column in ("version", "message_count", "status"):
        assert conversation[column] == model[column]
    if model["status"] != "erased":
        for column in ("user_id", "title", "model"):
            assert conversation[column] == model[column]
        assert from_json(conversation["context"]) == model["context"]
        assert from_json(conversation["metadata"]) == model["metadata"]
    assert conversation["prompt_tokens"] == model["lifetime_prompt"]
    assert conversation["completion_tokens"] == model["lifetime_completion"]
    assert conversation["total_tokens"] == model["lifetime_prompt"] + model["lifetime_completion"]
    sessions = conversation["sessions"]
    usage = [row for row in table(USAGE, rows.usage) if row["session"] == sessions]
    assert sum(row["prompt_tokens"] for row in usage) == model["prompt"]
    assert sum(row["completion_tokens"] for row in usage) == model["completion"]
    check_messages(events, sessions, model)


def check_messages(events: list[ConversationEvent], session: int, model: plain.Model) -> None:
    """The table of messages agrees with the model, however the events are batched."""
    whole, single = (AnalyticsView(DuckDBDatastore(None, threads=1)) for _ in range(2))
    whole.write(fold(events), Tracking("S", len(events)))
    for seq, event in enumerate(events, 1):
        found = single.conversations([ADAS])
        rows = Rows()
        conversation = found.get(ADAS.key) or new_conversation(ADAS.key)
        rows.fold(read(event, seq), conversation)
        single.write(rows, Tracking("S", seq))
    columns = ", ".join(MESSAGES)
    told = [
        each.datastore.cursor()
        .execute(f"SELECT {columns} FROM messages ORDER BY version")
        .fetchall()
        for each in (whole, single)
    ]
    assert told[0] == told[1]
    for each in (whole, single):
        each.close()
        each.datastore.close()
    messages = table(MESSAGES, told[0])
    assert len(messages) == model["message_count"]
    if model["status"] == "erased":
        assert {row["content"] for row in messages} <= {None}
        return
    present = [row for row in messages if row["session"] == session]
    assert len(present) == len(model["session"])
    for row, expected in zip(present, model["session"], strict=True):
        assert row["role"] == expected["role"]
        assert row["streaming"] == expected.get("streaming", False)
        assert (row["redacted_at"] is not None) == expected.get("redacted", False)
        assert (row["edited_at"] is not None) == expected.get("edited", False)
        if isinstance(expected["content"], str | None):
            assert row["content"] == expected["content"]
            assert row["chars"] == len(expected["content"] or "")


@arbitrary(event=strategies.events)
@settings(max_examples=200)
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


shown = strategies.events.filter(
    lambda event: not isinstance(event, MessageRedacted | ConversationErased)
)


@arbitrary(events=st.lists(shown, min_size=1, max_size=5))
@settings(max_examples=60)
def test_the_tables_hold_whatever_an_event_may(
    tables: AnalyticsView, events: list[ConversationEvent]
) -> None:
    seq = tables.positions().get("S", 0)
    rows = Rows()
    for number, event in enumerate(events, 1):
        key = event.originator_id
        conversation = rows.conversations.get(key) or new_conversation(key)
        rows.fold(read(event, seq + number), conversation)

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


@arbitrary(
    batches=st.lists(
        st.lists(
            st.tuples(
                st.integers(0, 2), st.sampled_from([None, "0.5", "1e-9"]), st.integers(0, 2**62)
            ),
            max_size=4,
        ),
        max_size=4,
    )
)
@settings(max_examples=25)
def test_daily_usage_is_the_sum_of_usage_however_it_came(
    batches: list[list[tuple[int, str | None, int]]],
) -> None:
    tables = AnalyticsView(DuckDBDatastore(None))
    for number, batch in enumerate(batches, start=1):
        events = [used(cost_usd=cost, prompt_tokens=prompt) for _, cost, prompt in batch]
        times = [datetime(2026, 1, 5 + day, 23, 59, tzinfo=UTC) for day, _, _ in batch]
        for event, time in zip(events, times, strict=True):
            object.__setattr__(event, "timestamp", time)
        tables.write(fold(events), Tracking("S", number))

    connection = tables.datastore.cursor()
    summed = connection.execute(
        "SELECT tenant_id, CAST(time AS DATE) AS day, count(*), sum(prompt_tokens), "
        "sum(completion_tokens), sum(total_tokens), sum(cost_usd), count(*) - count(cost_usd) "
        "FROM usage GROUP BY ALL ORDER BY ALL"
    ).fetchall()

    assert connection.execute("FROM daily_usage ORDER BY ALL").fetchall() == summed


SECRET = "the secret 4711"


@pytest.mark.parametrize(
    "last",
    [Request("redact", {"message_id": "m0"}), Request("erase", {})],
    ids=["redacted", "erased"],
)
@pytest.mark.parametrize("together", [True, False], ids=["one batch", "a batch each"])
def test_no_table_holds_what_is_redacted_or_erased(last: Request, together: bool) -> None:
    scenario = given(
        init(),
        append(SECRET, message_id="m0", metadata={"note": SECRET}),
        Request("edit", {"message_id": "m0", "content": f"now {SECRET}"}),
        last,
    )
    events = through_storage(scenario.events)
    tables = AnalyticsView(DuckDBDatastore(None))
    for batch in [events] if together else [[event] for event in events]:
        rows = Rows()
        known = tables.conversations([ADAS]).get(ADAS.key) or new_conversation(ADAS.key)
        for event in batch:
            seq = event.originator_version
            rows.fold(read(event, seq), known)
        tables.write(rows, Tracking("S", seq))

    connection = tables.datastore.cursor()
    for name in ("events", "messages", "usage", "conversations", "titles"):
        assert SECRET not in str(connection.execute(f"FROM {name}").fetchall())
    ((redacted_at, chars),) = connection.execute(
        "SELECT redacted_at, chars FROM messages"
    ).fetchall()
    assert redacted_at is not None
    assert chars >= 0
    assert connection.execute("SELECT count(*) FROM events").fetchone() == (len(events),)
