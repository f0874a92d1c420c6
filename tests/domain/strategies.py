"""Arbitrary values and events of a conversation, for hypothesis."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from hypothesis import strategies as st

from domain.events import (
    ABSENT,
    ContextUpdated,
    ConversationClosed,
    ConversationErased,
    ConversationEvent,
    ConversationReopened,
    ConversationStarted,
    ConversationTitled,
    MessageAppended,
    MessageEdited,
    MessageRedacted,
    ReplyAborted,
    ReplyChunkAppended,
    ReplyCompleted,
    ReplyStarted,
    SessionReset,
    UsageRecorded,
)
from domain.identity import ConversationId

# Any text but lone surrogates (category Cs), which UTF-8 cannot hold.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
names = st.builds(ConversationId.parse, ids, ids)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
json_objects = st.dictionaries(texts, json_values, max_size=3)
parts = st.builds(lambda type_, rest: {"type": type_, **rest}, texts, json_objects)
contents = texts | st.lists(parts, min_size=1, max_size=3)
tokens = st.integers(0, 2**53)
times = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001  # hypothesis adds the zone
    max_value=datetime(9999, 12, 31),  # noqa: DTZ001
    timezones=st.just(UTC),
)


def _events(event_class: type[ConversationEvent], **own: Any) -> st.SearchStrategy[Any]:
    return st.builds(
        event_class,
        originator_id=names.map(lambda name: name.key),
        originator_version=st.integers(1, 2**40),
        timestamp=times,
        actor=st.none() | texts,
        command_id=ids,
        verb=st.sampled_from(["init", "append", "turn"]),
        **own,
    )


def _optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


# Few enough that events are often about the same message.
_some_message = st.sampled_from(["m-1", "m-2"]) | ids
_facts = st.just(ABSENT) | st.none() | texts

messages: st.SearchStrategy[ConversationEvent] = _events(
    MessageAppended,
    message_id=_some_message,
    role=st.sampled_from(["user", "assistant", "system", "developer", "tool"]),
    content=_optional(contents),
    name=_optional(texts),
    tool_calls=_optional(st.lists(json_objects, min_size=1, max_size=2)),
    tool_call_id=_optional(texts),
    created_at=_optional(st.just("2019-03-01T10:00:00.5+09:00")),
    metadata=json_objects,
)
usage: st.SearchStrategy[ConversationEvent] = _events(
    UsageRecorded,
    prompt_tokens=tokens,
    completion_tokens=tokens,
    cached_tokens=_optional(tokens),
    cache_write_tokens=_optional(tokens),
    reasoning_tokens=_optional(tokens),
    model=_optional(texts),
    provider=_optional(texts),
    message_id=_optional(ids),
    cost_usd=_optional(st.just("0.002100000")),
    metadata=json_objects,
)

events: st.SearchStrategy[ConversationEvent] = st.one_of(
    _events(
        ConversationStarted,
        user_id=ids,
        title=_optional(texts),
        model=_optional(texts),
        context=json_objects,
        metadata=json_objects,
    ),
    messages,
    usage,
    _events(SessionReset, reason=_optional(texts)),
    _events(
        ContextUpdated,
        title=_facts,
        model=_facts,
        user_id=_facts,
        context=json_objects,
        metadata=json_objects,
    ),
    _events(ConversationTitled, title=texts, source=st.sampled_from(["auto", "user"])),
    _events(
        ReplyStarted,
        message_id=_some_message,
        role=st.sampled_from(["assistant", "tool"]),
        model=_optional(texts),
        metadata=json_objects,
    ),
    _events(
        ReplyChunkAppended,
        message_id=_some_message,
        text=texts,
        first_index=tokens,
        last_index=tokens,
    ),
    _events(
        ReplyCompleted,
        message_id=_some_message,
        finish_reason=_optional(texts),
        chars=tokens,
        sha256=st.just("e3b0c442"),
    ),
    _events(ReplyAborted, message_id=_some_message, reason=texts),
    _events(MessageEdited, message_id=_some_message, content=contents),
    _events(MessageRedacted, message_id=_some_message, reason=_optional(texts)),
    _events(ConversationClosed, reason=st.sampled_from(["closed", "inactive", "deleted"])),
    _events(ConversationReopened, reason=_optional(texts)),
    _events(ConversationErased, reason=_optional(texts), legal_basis=_optional(texts)),
)
