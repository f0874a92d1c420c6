"""Names: every id has one token, every token one id, and no id reaches another's subject."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from uuid import UUID

import pytest
from freezegun import freeze_time
from hypothesis import example, given
from hypothesis import strategies as st

from domain.errors import InvalidRequest
from domain.identity import ConversationId, decode_token, encode_token, new_id

# Any text but lone surrogates (category Cs), which UTF-8 cannot hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)
ids = texts.filter(lambda text: len(text.encode()) <= 200)

SUBJECT_TOKEN = re.compile(r"(?:[A-Za-z0-9_\-~:@=+]|%[0-9A-F]{2})+", re.ASCII)


@pytest.mark.parametrize(
    ("id", "token"),
    [
        ("a.b", "a%2Eb"),
        ("user:ada@acme=1+2~3_4-5", "user:ada@acme=1+2~3_4-5"),
        ("with blank", "with%20blank"),
        ("*", "%2A"),
        (">", "%3E"),
        ("$JS", "%24JS"),
        ("100%", "100%25"),
        ("é", "%C3%A9"),
        ("日", "%E6%97%A5"),
        ("\x00\n", "%00%0A"),
        ("a/b", "a%2Fb"),
    ],
)
def test_every_byte_outside_the_alphabet_is_percent_encoded(id: str, token: str) -> None:
    assert encode_token(id) == token
    assert decode_token(token) == id


@given(texts)
@example("%41")
@example("..")
def test_a_token_is_one_subject_token_and_stands_for_its_id_alone(text: str) -> None:
    token = encode_token(text)

    assert SUBJECT_TOKEN.fullmatch(token)
    assert decode_token(token) == text


@given(texts, texts)
def test_two_ids_never_have_the_same_token(one: str, other: str) -> None:
    assert (encode_token(one) == encode_token(other)) == (one == other)


@given(st.text())
@example("%41")
@example("a%2eb")
@example("a.b")
@example("a b")
@example("%")
@example("%2")
@example("%ZZ")
@example("%C3")
@example("%ED%A0%80")
@example("%C0%AE")
@example("é")
@example("\ud800")
@example("٣")
def test_a_token_is_read_only_when_it_is_the_one_way_to_write_its_id(token: str) -> None:
    try:
        text = decode_token(token)
    except InvalidRequest:
        assert not token or not SUBJECT_TOKEN.fullmatch(token) or "%" in token
    else:
        assert encode_token(text) == token


@given(ids, ids)
def test_a_name_goes_through_its_tokens_and_its_key_unchanged(tenant: str, own: str) -> None:
    name = ConversationId.parse(tenant, own)

    assert name.key == f"{encode_token(tenant)}.{encode_token(own)}"
    assert ConversationId.from_tokens(encode_token(tenant), encode_token(own)) == name
    assert ConversationId.from_key(name.key) == name


@pytest.mark.parametrize("id", ["", "x" * 201, "日" * 67, "\ud800"])
def test_an_id_that_is_empty_too_long_or_no_utf8_is_refused_by_name(id: str) -> None:
    with pytest.raises(InvalidRequest) as refusal:
        ConversationId.parse("acme", id)
    assert [each["field"] for each in refusal.value.details or ()] == ["conversation_id"]  # type: ignore[index]

    with pytest.raises(InvalidRequest) as refusal:
        ConversationId.parse(id, "c-1")
    assert [each["field"] for each in refusal.value.details or ()] == ["tenant_id"]  # type: ignore[index]


def test_an_id_of_two_hundred_bytes_is_taken() -> None:
    for id in ("x" * 200, "é" * 100):
        assert ConversationId.parse(id, id).conversation_id == id


@pytest.mark.parametrize("tokens", [("", "c"), ("t", ""), ("t", "x" * 201), ("t", "%E6" * 100)])
def test_tokens_of_an_illegal_id_are_refused(tokens: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest):
        ConversationId.from_tokens(*tokens)


@pytest.mark.parametrize("key", ["", "acme", "acme.", ".c-1", "acme.c.1", "acme.c%2e1"])
def test_what_is_no_key_is_refused(key: str) -> None:
    with pytest.raises(InvalidRequest):
        ConversationId.from_key(key)


def test_a_fresh_id_is_a_uuid_of_version_7_with_the_clocks_time() -> None:
    with freeze_time("2026-11-21T09:00:00.123456Z"):
        made = UUID(new_id())

    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    milliseconds = made.int >> 80
    expected = datetime(2026, 11, 21, 9, 0, 0, 123_000, tzinfo=UTC)
    assert milliseconds == expected.timestamp() * 1000


def test_fresh_ids_sort_by_the_microsecond_and_never_repeat() -> None:
    moments = [datetime(2026, 11, 21, 9, 0, 0, micro, tzinfo=UTC) for micro in range(0, 5_000, 7)]
    made = [new_id(moment) for moment in moments]

    assert made == sorted(made)
    assert len({new_id(moments[0]) for _ in range(1_000)}) == 1_000
