"""What becomes of a line: the rules of contract section 7, and of `import_format`'s table."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.commands import parse_command
from services.cli.import_format import (
    REQUEST_BYTES,
    ImportPlan,
    LineRefused,
    parse_line,
)

CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "not JSON"}}


def line(*messages: Any, **fields: Any) -> bytes:
    return json.dumps({"id": "c-1", "messages": list(messages), **fields}).encode()


def said(content: Any = "Hello", **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **fields}


def message_of(message: dict[str, Any]) -> dict[str, Any]:
    """The message as it is sent, without the id that was made for it."""
    [planned] = parse_line(line(message)).messages
    body: dict[str, Any] = json.loads(planned.json)
    if message.get("message_id") is None:
        del body["message_id"]
    return body


def usage_of(entry: dict[str, Any], *messages: Any) -> dict[str, Any]:
    [command] = parse_line(line(*messages, usage=[entry])).usage
    body: dict[str, Any] = json.loads(command.body)
    return body


def init_of(plan: ImportPlan) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(plan.init.body)
    return body


def refused(text: bytes) -> str:
    with pytest.raises(LineRefused) as error:
        parse_line(text)
    return error.value.reason


# -- the conversation ---------------------------------------------------------------------------


def test_a_line_names_its_conversation_and_its_user() -> None:
    plan = parse_line(line(tenant_id="acme", user_id="ada"))

    assert plan.conversation == ("acme", "c-1")
    assert plan.name == "acme/c-1"
    assert init_of(plan) == {"user_id": "ada", "metadata": {}}


def test_without_names_of_its_own_a_line_gets_the_defaults() -> None:
    plan = parse_line(line())

    assert plan.conversation == ("default", "c-1")
    assert init_of(plan)["user_id"] == "import"


def test_the_flags_tenant_wins_and_the_lines_own_is_kept() -> None:
    plan = parse_line(line(tenant_id="acme"), tenant="other")

    assert plan.conversation == ("other", "c-1")
    assert init_of(plan)["metadata"] == {"tenant_id": "acme"}


def test_the_flags_user_is_for_lines_without_one() -> None:
    assert init_of(parse_line(line(), user_id="bob"))["user_id"] == "bob"
    assert init_of(parse_line(line(user_id="ada"), user_id="bob"))["user_id"] == "ada"
    assert init_of(parse_line(line(user_id=None), user_id="bob"))["user_id"] == "bob"


def test_fields_of_a_line_go_to_their_places_or_to_the_metadata() -> None:
    plan = parse_line(
        line(title="T", model="m", context={"a": 1}, metadata={"lang": "x"}, lang="en", source=None)
    )

    assert init_of(plan) == {
        "user_id": "import",
        "title": "T",
        "model": "m",
        "context": {"a": 1},
        "metadata": {"lang": "x", "lang_": "en", "source": None},
    }


# -- a message ----------------------------------------------------------------------------------


def test_a_message_keeps_its_fields() -> None:
    message = {
        "role": "assistant",
        "content": None,
        "name": "bot",
        "tool_calls": [CALL],
        "tool_call_id": "1",
        "message_id": "m-1",
        "metadata": {"a": 1},
    }

    assert message_of(message) == message


def test_a_field_without_a_place_goes_to_the_metadata() -> None:
    assert message_of(said(is_error=True, id=7, score=None)) == said(
        metadata={"is_error": True, "id": 7, "score": None}
    )


def test_metadata_is_never_written_over() -> None:
    message = said(metadata={"is_error": "own", "id_": 1}, is_error=True, id="x")

    assert message_of(message)["metadata"] == {
        "is_error": "own",
        "id_": 1,
        "is_error_": True,
        "id": "x",
    }


def test_metadata_that_is_no_object_is_kept_within() -> None:
    assert message_of(said(metadata="note"))["metadata"] == {"metadata": "note"}


@pytest.mark.parametrize(
    "time",
    [
        "2026-01-05T10:00:00Z",
        "2026-01-05T10:00:00.123Z",
        "2026-01-05T10:00:00.123456+09:00",
    ],
)
def test_a_time_with_its_zone_is_the_original_time_verbatim(time: str) -> None:
    assert message_of(said(timestamp=time)) == said(created_at=time)


@pytest.mark.parametrize(
    "time",
    [
        "2022-10-01T00:18:30.545000",
        "2008-05-24T14:14",
        "NaT",
        "",
        "yesterday",
        "2026-13-05T10:00:00Z",
        "2026-01-05 10:00:00Z",
        1_700_000_000,
        1.5,
        [],
        False,
    ],
)
def test_a_time_that_is_no_instant_is_kept_in_the_metadata_verbatim(time: Any) -> None:
    assert message_of(said(timestamp=time)) == said(metadata={"timestamp": time})


def test_a_second_time_is_kept_too() -> None:
    times = {"timestamp": "2026-01-05T10:00:00Z", "created_at": "2020-01-01T00:00:00Z"}

    assert message_of(said(**times)) == said(
        created_at=times["timestamp"], metadata={"created_at": times["created_at"]}
    )


@pytest.mark.parametrize("field", ["name", "tool_calls", "tool_call_id", "timestamp", "message_id"])
def test_null_where_a_field_has_a_place_is_nothing(field: str) -> None:
    assert message_of(said(**{field: None})) == said()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", 7),
        ("tool_calls", []),
        ("tool_calls", "f()"),
        ("tool_calls", ["f"]),
        ("tool_call_id", {"a": 1}),
    ],
)
def test_a_value_that_does_not_fit_its_place_goes_to_the_metadata(field: str, value: Any) -> None:
    assert message_of(said(**{field: value})) == said(metadata={field: value})


def test_null_content_without_calls_is_an_empty_text_and_is_remembered() -> None:
    assert message_of({"role": "assistant", "content": None, "function_call": {"name": "f"}}) == {
        "role": "assistant",
        "content": "",
        "metadata": {"content": None, "function_call": {"name": "f"}},
    }
    assert message_of({"role": "user"}) == said("")


@pytest.mark.parametrize("content", ["", "  ", "\x00\x1b[0m", [{"type": "text", "text": "a"}]])
def test_content_is_taken_as_it_is(content: Any) -> None:
    assert message_of(said(content)) == said(content)


def test_a_message_id_that_comes_twice_is_kept_once_as_an_id() -> None:
    plan = parse_line(line(said(message_id="m"), said(message_id="m")))

    first, second = (json.loads(message.json) for message in plan.messages)
    assert first["message_id"] == "m"
    assert second["message_id"] not in ("m", None)
    assert second["metadata"] == {"message_id": "m"}


@given(
    st.dictionaries(
        st.sampled_from(
            ["name", "tool_calls", "tool_call_id", "timestamp", "metadata", "x", "is_error"]
        )
        | st.text(max_size=5),
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=5),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=8,
        ),
        max_size=6,
    )
)
def test_whatever_fields_a_message_has_none_is_lost(fields: dict[str, Any]) -> None:
    for taken in ("role", "content", "message_id", "created_at"):
        fields.pop(taken, None)

    body = message_of(said(**fields))

    kept = body.get("metadata", {})
    for field, value in fields.items():
        places = [body.get(field), body.get("created_at") if field == "timestamp" else None]
        in_place = value in places
        nothing = value is None and field in (
            "name",
            "tool_calls",
            "tool_call_id",
            "timestamp",
            "metadata",
        )
        merged = field == "metadata" and isinstance(value, dict) and value.items() <= kept.items()
        in_metadata = any(kept.get(field + "_" * n) == value for n in range(4))
        assert in_place or nothing or merged or in_metadata, (field, value, body)


# -- usage --------------------------------------------------------------------------------------


def test_usage_under_openais_names() -> None:
    entry = {
        "model": "gpt-4o",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "total_tokens": 120,
        "prompt_tokens_details": {"cached_tokens": 64},
        "completion_tokens_details": {"reasoning_tokens": 7, "audio_tokens": 0},
    }

    assert usage_of(entry) == {
        "model": "gpt-4o",
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cached_tokens": 64,
        "reasoning_tokens": 7,
        "metadata": {"completion_tokens_details": {"audio_tokens": 0}},
    }


def test_usage_under_anthropics_names_adds_up() -> None:
    entry = {
        "model": "claude",
        "input_tokens": 8,
        "output_tokens": 3,
        "cache_creation_input_tokens": 367,
        "cache_read_input_tokens": 74_687,
        "service_tier": "standard",
    }

    assert usage_of(entry) == {
        "model": "claude",
        "prompt_tokens": 8 + 367 + 74_687,
        "completion_tokens": 3,
        "cache_write_tokens": 367,
        "cached_tokens": 74_687,
        "metadata": {"service_tier": "standard"},
    }


def test_usage_under_openais_newer_names_includes_its_parts() -> None:
    entry = {
        "input_tokens": 100,
        "output_tokens": 20,
        "input_tokens_details": {"cached_tokens": 64},
        "output_tokens_details": {"reasoning_tokens": 7},
    }

    assert usage_of(entry) == {
        "prompt_tokens": 100,
        "completion_tokens": 20,
        "cached_tokens": 64,
        "reasoning_tokens": 7,
    }


def test_usage_under_the_ledgers_own_names() -> None:
    entry = {
        "prompt_tokens": 10,
        "completion_tokens": 2,
        "cached_tokens": 3,
        "cache_write_tokens": 4,
        "reasoning_tokens": 1,
        "provider": "p",
        "cost_usd": "0.01",
        "message_id": "m-1",
    }

    assert usage_of(entry) == entry


def test_a_total_that_does_not_add_up_is_kept() -> None:
    entry = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 7}

    assert usage_of(entry)["metadata"] == {"total_tokens": 7}


def test_no_provider_is_made_up() -> None:
    assert "provider" not in usage_of({"input_tokens": 0, "output_tokens": 0, "model": "x"})


def test_an_index_becomes_the_id_of_its_message() -> None:
    text = line(said(), said(message_id="own"), usage=[{"message_index": 0}, {"message_index": 1}])
    text = text.replace(
        b'"message_index"', b'"input_tokens": 1, "output_tokens": 1, "message_index"'
    )

    plan = parse_line(text)

    ids = [json.loads(command.body)["message_id"] for command in plan.usage]
    assert ids == [plan.messages[0].message_id, "own"]


@pytest.mark.parametrize("index", [-1, 1, 2**70, "0", True, 0.5])
def test_an_index_of_no_message_is_kept_in_the_metadata(index: Any) -> None:
    body = usage_of({"input_tokens": 1, "output_tokens": 1, "message_index": index}, said())

    assert "message_id" not in body
    assert body["metadata"] == {"message_index": index}


def test_one_usage_object_is_a_list_of_one() -> None:
    plan = parse_line(line(usage={"prompt_tokens": 1, "completion_tokens": 2}))

    assert len(plan.usage) == 1


def test_usage_that_is_null_is_none() -> None:
    assert parse_line(line(usage=None)).usage == ()


# -- what cannot be imported --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"nonsense", "the line must be one JSON object in UTF-8"),
        (b"[1]", "the line must be a JSON object"),
        (b"\xff{}", "the line must be one JSON object in UTF-8"),
        (b'{"id": "c", "messages": [], "x": NaN}', "the line must be one JSON object in UTF-8"),
        (b'{"id": "c", "id": "d", "messages": []}', "has the key 'id' twice"),
        (b'{"id": "c", "messages": ' + b"[" * 5000, "the line must be one JSON object in UTF-8"),
        (b'{"id": "c", "messages": [], "x": "\\ud800"}', "the line must be one JSON object"),
        (b"{}", "the line has no `id` that is a string"),
        (b'{"id": 7, "messages": []}', "the line has no `id` that is a string"),
        (b'{"id": "", "messages": []}', "conversation_id must not be empty"),
        (json.dumps({"id": "x" * 201, "messages": []}).encode(), "may be at most 200"),
        (b'{"id": "c"}', "the line has no `messages`"),
        (b'{"id": "c", "messages": {}}', "the line has no `messages`"),
        (line(said(), "text"), "message 1 is not an object"),
        (line(said(), said(role="human")), "message 1: role must be"),
        (line(said(), {"content": "x"}), "message 1: role must be"),
        (line(said(7)), "message 0: content must"),
        (line(said([])), "message 0: content must"),
        (line(said(["a"])), "message 0: content"),
        (line(usage=["x"]), "usage entry 0 is not an object"),
        (line(usage=[{"input_tokens": 1}]), "usage entry 0: completion_tokens is required"),
        (line(usage=[{"input_tokens": -1, "output_tokens": 0}]), "usage entry 0: prompt_tokens"),
        (
            line(usage=[{"prompt_tokens": 1, "completion_tokens": 0, "cached_tokens": 2}]),
            "usage entry 0: cached_tokens",
        ),
    ],
)
def test_a_line_that_cannot_be_imported_says_why(text: bytes, reason: str) -> None:
    assert reason in refused(text)


def test_a_message_far_down_is_named_by_its_place_in_the_line() -> None:
    messages = [said()] * 1203 + [said(role="narrator")]

    assert refused(line(*messages)).startswith("message 1203: role must be")


def test_a_refused_line_names_its_conversation_when_it_can() -> None:
    with pytest.raises(LineRefused) as error:
        parse_line(line(said(role="x"), tenant_id="acme"))
    assert error.value.conversation == "acme/c-1"


# -- the commands -------------------------------------------------------------------------------


def test_the_same_line_asks_for_the_same_commands() -> None:
    text = line(said(), said(), usage=[{"prompt_tokens": 1, "completion_tokens": 1}])

    assert parse_line(text) == parse_line(text)


def test_ids_differ_by_conversation_by_tenant_and_by_place() -> None:
    plans = [
        parse_line(line(said(), said())),
        parse_line(line(said(), said()), tenant="acme"),
        parse_line(line(said(), said()).replace(b"c-1", b"c-2")),
    ]

    ids = [message.message_id for plan in plans for message in plan.messages]
    ids += [command.command_id for plan in plans for command in (plan.init, *plan.writes())]
    assert len(set(ids)) == len(ids) == 6 + 6


def test_messages_go_in_requests_of_at_most_five_hundred() -> None:
    commands = list(parse_line(line(*[said()] * 1001)).writes())

    assert [(command.first, command.messages) for command in commands] == [
        (0, 500),
        (500, 500),
        (1000, 1),
    ]


def test_requests_stay_within_the_bytes_and_a_large_message_goes_alone() -> None:
    small, large = said("s" * 1000), said("L" * (REQUEST_BYTES + 1))
    commands = list(parse_line(line(*[small] * 3, large, *[small] * 600)).writes())

    assert [command.messages for command in commands[:2]] == [3, 1]
    assert sum(command.messages for command in commands) == 604
    assert all(len(each.body) < REQUEST_BYTES + 100 for each in commands if each.first != 3)


def test_every_request_is_one_that_the_service_reads() -> None:
    text = line(
        *[said("é" * 400, timestamp="NaT")] * 700, usage={"input_tokens": 1, "output_tokens": 1}
    )
    plan = parse_line(text)

    for command in (plan.init, *plan.writes(request_bytes=50_000)):
        parse_command(command.verb, command.body)


def test_what_the_ledger_has_is_left_out() -> None:
    entry = {"prompt_tokens": 1, "completion_tokens": 1}
    plan = parse_line(line(*[said()] * 1200, usage=[entry, entry]))
    everything = list(plan.writes())

    there = {message.message_id for message in plan.messages[:500]} | {plan.usage[0].command_id}

    assert list(plan.writes(there)) == [everything[1], everything[2], everything[4]]


def test_with_everything_there_nothing_is_left_to_write() -> None:
    plan = parse_line(line(*[said()] * 3))

    assert list(plan.writes({message.message_id for message in plan.messages})) == []
