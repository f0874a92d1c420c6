"""Reading requests: well-formed commands come out, everything else is invalid_request."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from pydantic_core import to_json

from domain.commands import COMMANDS, DEPTH_MAX, VALUES_MAX, Command, parse_command
from domain.errors import InvalidRequest

VERBS = [
    *["init", "append", "usage", "turn", "reset", "update", "import"],
    *["reply.start", "reply.chunk", "reply.finish", "reply.abort"],
    *["edit", "redact", "close", "reopen", "erase"],
]

text = st.text(st.characters(exclude_categories=["Cs"]))
numbers = st.integers() | st.floats(allow_nan=False, allow_infinity=False)
json_values = st.recursive(
    st.none() | st.booleans() | numbers | text,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4),
    max_leaves=12,
)
# Objects that are nearly right: the fields of the commands with any value at all.
FIELDS = sorted({name for command in COMMANDS.values() for name in command.model_fields})
likely_values = json_values | st.sampled_from(["user", "hello", 0, {}, [], "append", "0.5"])
messages = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "tool"]) | likely_values, "content": likely_values},
    optional={name: likely_values for name in FIELDS if name not in ("role", "content")},
)
requests = (
    json_values
    | st.dictionaries(st.sampled_from(FIELDS), likely_values, max_size=6)
    | messages
    | st.fixed_dictionaries({"messages": st.lists(messages, max_size=3)})
)


def refused(verb: str, body: bytes) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as refusal:
        parse_command(verb, body)
    return refusal.value


def in_metadata(value: bytes) -> bytes:
    return b'{"role": "user", "content": "x", "metadata": {"v": ' + value + b"}}"


def nested(levels: int) -> bytes:
    """Returns a body that is nested so many levels deep."""
    return in_metadata(b"[" * (levels - 2) + b"]" * (levels - 2))


# what is no command


def test_the_verbs_are_those_of_the_contract() -> None:
    assert list(COMMANDS) == VERBS
    assert all(command.verb == verb for verb, command in COMMANDS.items())


@pytest.mark.parametrize(
    "verb", ["", "Append", "append ", "delete", "reply", "reply.", "x" * 10_000]
)
def test_an_unknown_verb_is_refused_with_those_there_are(verb: str) -> None:
    error = refused(verb, b"{}")

    assert all(known in error.message for known in VERBS)
    assert len(error.message) < 500


@pytest.mark.parametrize(
    "body",
    [
        b"hello",
        b"{",
        b"{}{}",
        b"[]",
        b"null",
        b'"text"',
        b"1",
        b"{'role': 'user'}",
        b"\xff\xfe",
        b'{"role": "user", "content": "\xff"}',
        b'{"role": "user", "content": "\xed\xa0\x80"}',
        b'{"role": "user", "content": "\\ud800"}',
        b'{"role": "user", "content": "\\udc00\\ud800"}',
        b'{"role": "user", "content": "a", "\\ud800": 1}',
        b'\xef\xbb\xbf{"role": "user", "content": "x"}',
        '{"role": "user", "content": "x"}'.encode("utf-16"),
        b'{"role": "user", "content": "x"}\x00',
        b'{"role": "user", "content": "line\nbreak"}',
    ],
)
def test_a_body_that_is_no_json_object_in_utf8_is_refused(body: bytes) -> None:
    assert "JSON object" in refused("append", body).message


def test_an_empty_body_stands_for_an_empty_object() -> None:
    assert parse_command("reset", b"") == parse_command("reset", b"{}")


@pytest.mark.parametrize(
    "value",
    [b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b'[1, {"a": 1e400}]', b"9" * 5_000],
)
def test_a_number_that_is_none_or_too_large_is_refused(value: bytes) -> None:
    refused("append", in_metadata(value))


@pytest.mark.parametrize("value", [b"1e308", b"5e-324", b"-0.0", b"9" * 4_300, b"1e-999"])
def test_every_number_that_json_can_carry_is_kept(value: bytes) -> None:
    command = parse_command("append", in_metadata(value))

    assert json.loads(to_json(command.metadata)) == json.loads(b'{"v": ' + value + b"}")  # type: ignore[attr-defined]


def test_nesting_is_taken_to_its_limit_and_not_beyond() -> None:
    parse_command("append", nested(DEPTH_MAX))

    assert str(DEPTH_MAX) in refused("append", nested(DEPTH_MAX + 1)).message
    refused("append", nested(150_000))
    refused("append", b'{"a":' * 100_000 + b"1" + b"}" * 100_000)


def test_fields_and_items_are_taken_to_their_limit_and_not_beyond() -> None:
    def body(keys: int, items: int = 0) -> bytes:
        metadata = dict.fromkeys(map(str, range(keys)), [0] * items)
        return to_json({"role": "user", "content": "x", "metadata": metadata})

    parse_command("append", body(VALUES_MAX - 3))
    parse_command("append", body(1, VALUES_MAX - 4))

    assert "100,000" in refused("append", body(VALUES_MAX)).message
    assert "100,000" in refused("append", body(1, VALUES_MAX)).message
    assert "100,000" in refused("append", body(VALUES_MAX // 2, 2)).message


def test_json_within_a_text_counts_as_one_value() -> None:
    arguments = to_json(dict.fromkeys(map(str, range(VALUES_MAX + 1)), 1)).decode()

    parse_command("append", to_json({"role": "tool", "content": arguments}))


def test_of_very_many_wrong_fields_the_first_are_named_like_of_a_few() -> None:
    def problems(strange: int) -> Any:
        message = {"role": "user", "colour": "red", **dict.fromkeys(map(str, range(strange)), 1)}
        body = {"messages": [message] * 3, "mode": 7}
        return refused("import", to_json(body)).details

    assert problems(30_000) == problems(30)
    assert problems(30)[0] == {"field": "messages.0.content", "problem": "is required"}
    assert len(problems(30_000)) == 20


@pytest.mark.parametrize(
    "body",
    [
        b'{"role": "user", "content": "x", "role": "user"}',
        b'{"role": "user", "content": "a:b", "role" : "user"}',
        b'{"role": "user", "content": "\\":\\":", "metadata": {"a": 1, "a": 1}}',
        b'{"role": "user", "content": "x", "metadata": {"a": [{"b": 1, "\\u0062": 2}]}}',
    ],
)
def test_a_key_that_stands_twice_in_an_object_is_refused(body: bytes) -> None:
    assert "twice" in refused("append", body).message


@pytest.mark.parametrize(
    "content",
    ["a:b", '":', '"a":1,"a":1', "\\", '\\":', '{"a": {"a": 1}}'],
)
def test_text_that_looks_like_keys_is_only_text(content: str) -> None:
    body = to_json({"role": "user", "content": content, "metadata": {"role": ":", content: 1}})

    assert parse_command("append", body).content == content  # type: ignore[attr-defined]


# wrong fields


@pytest.mark.parametrize(
    ("verb", "body", "fields"),
    [
        ("init", {}, ["user_id"]),
        ("init", {"user_id": ""}, ["user_id"]),
        ("init", {"user_id": 7}, ["user_id"]),
        ("init", {"user_id": "ada", "context": [], "metadata": "x"}, ["context", "metadata"]),
        ("init", {"user_id": "ada", "title": 1}, ["title"]),
        ("append", {}, ["role", "content"]),
        ("append", {"role": "robot", "content": "x"}, ["role"]),
        ("append", {"role": "User", "content": "x"}, ["role"]),
        ("append", {"role": "user", "content": None}, ["content"]),
        ("append", {"role": "user", "content": 7}, ["content"]),
        ("append", {"role": "user", "content": {}}, ["content"]),
        ("append", {"role": "user", "content": []}, ["content"]),
        ("append", {"role": "user", "content": ["text"]}, ["content"]),
        ("append", {"role": "user", "content": [{"text": "x"}]}, ["content"]),
        ("append", {"role": "user", "content": [{"type": 1}]}, ["content"]),
        ("append", {"role": "user", "content": "x", "tool_calls": []}, ["tool_calls"]),
        ("append", {"role": "user", "content": "x", "tool_calls": {}}, ["tool_calls"]),
        ("append", {"role": "user", "content": None, "tool_calls": ["x"]}, ["tool_calls.0"]),
        ("append", {"role": "user", "content": "x", "message_id": ""}, ["message_id"]),
        ("append", {"role": "user", "content": "x", "message_id": "x" * 129}, ["message_id"]),
        ("append", {"role": "user", "content": "x", "message_id": 7}, ["message_id"]),
        ("append", {"role": "user", "content": "x", "command_id": ""}, ["command_id"]),
        ("append", {"role": "user", "content": "x", "command_id": "x" * 129}, ["command_id"]),
        ("append", {"role": "user", "content": "x", "name": 1}, ["name"]),
        ("append", {"role": "user", "content": "x", "metadata": []}, ["metadata"]),
        ("append", {"role": "user", "content": "x", "contents": "y"}, ["contents"]),
        ("reset", {"reason": 1}, ["reason"]),
        ("reset", {"because": "x"}, ["because"]),
        ("update", {"user_id": ""}, ["user_id"]),
        ("update", {"context": "x"}, ["context"]),
    ],
)
def test_every_wrong_field_is_named(verb: str, body: object, fields: list[str]) -> None:
    error = refused(verb, to_json(body))

    assert isinstance(error.details, list)
    assert [problem["field"] for problem in error.details] == fields
    assert all(problem["problem"] for problem in error.details)
    assert fields[0] in error.message


def test_ids_of_128_characters_are_taken_whatever_their_bytes() -> None:
    body = {"role": "user", "content": "x", "message_id": "日" * 128, "command_id": "é" * 128}

    assert parse_command("append", to_json(body)).command_id == "é" * 128


def test_a_refusal_is_short_however_much_is_wrong() -> None:
    body = {"messages": [{"role": "x" * 1_000, "zz" * 10_000: 1}] * 500}

    error = refused("import", to_json(body))

    assert len(to_json(error.details)) < 10_000
    assert len(error.message) < 500


# anything at all


def parsed_or_refused(verb: str, body: bytes) -> Command | None:
    """Returns the command, or None for an InvalidRequest that can be answered; nothing else."""
    try:
        command = parse_command(verb, body)
    except InvalidRequest as error:
        to_json({"message": error.message, "details": error.details})
        return None
    assert command.verb == verb
    return command


WELL_FORMED = json.dumps(
    {
        "messages": [
            {"role": "user", "content": "日本 \ud83d\ude00", "metadata": {"n": [1.5e3, None]}},
            {"role": "assistant", "content": None, "tool_calls": [{"id": "t"}]},
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 5, "cost_usd": "0.5"},
    }
).encode()


@st.composite
def spoilt(draw: st.DrawFn) -> bytes:
    """A good body of which some bytes have been replaced by others."""
    start = draw(st.integers(0, len(WELL_FORMED)))
    end = draw(st.integers(start, min(start + 8, len(WELL_FORMED))))
    snippets = st.sampled_from([b"NaN", b"\\ud800", b'"', b"{", b"1e999", b":", b"[[", b"\xff"])
    return WELL_FORMED[:start] + draw(st.binary(max_size=8) | snippets) + WELL_FORMED[end:]


@pytest.mark.parametrize("verb", VERBS)
@given(body=st.binary(max_size=200))
def test_any_bytes_are_a_command_or_an_invalid_request(verb: str, body: bytes) -> None:
    parsed_or_refused(verb, body)


@given(body=spoilt())
@example(WELL_FORMED)
@settings(max_examples=500)
def test_a_spoilt_body_is_a_command_or_an_invalid_request(body: bytes) -> None:
    parsed_or_refused("turn", body)


def test_the_body_that_is_spoilt_is_good_as_it_is() -> None:
    assert parsed_or_refused("turn", WELL_FORMED) is not None


@pytest.mark.parametrize("verb", VERBS)
@given(value=requests)
@example(value={"messages": [{"role": "user", "content": None, "tool_calls": [{}]}]})
def test_any_json_is_a_command_or_an_invalid_request(verb: str, value: Any) -> None:
    command = parsed_or_refused(verb, json.dumps(value).encode())

    if command is not None:
        # What was understood is what was sent: nothing but defaults added, nothing changed.
        understood = json.loads(to_json(command.model_dump(exclude_unset=True)))
        assert understood.keys() == value.keys()
        for name, sent in value.items():
            assert understood[name] == sent or sent is None or name in {"messages", "usage"}


@given(value=st.dictionaries(text, json_values, max_size=4))
def test_metadata_may_be_any_json_object(value: dict[str, Any]) -> None:
    body = {"role": "user", "content": "x", "metadata": value}

    command = parse_command("append", json.dumps(body).encode())

    assert command.metadata == value  # type: ignore[attr-defined]
