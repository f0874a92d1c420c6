"""Pages and windows cut by bytes as well as by count: no answer exceeds the payload limit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from pydantic_core import to_json

T = TypeVar("T")

_ROOM_BYTES = 4_096  # for what stands around the items of an answer


def newest_that_fit(items: Sequence[T], bytes_max: int) -> Sequence[T]:
    """The longest end of `items` whose JSON is within `bytes_max`; at least its last item."""
    left = bytes_max - _ROOM_BYTES
    for count, item in enumerate(reversed(items)):
        left -= len(to_json(item)) + 1
        if left < 0 and count > 0:
            return items[len(items) - count :]
    return items


def oldest_that_fit(items: Sequence[T], bytes_max: int) -> Sequence[T]:
    """The longest start of `items` whose JSON is within `bytes_max`; at least its first item."""
    left = bytes_max - _ROOM_BYTES
    for count, item in enumerate(items):
        left -= len(to_json(item)) + 1
        if left < 0 and count > 0:
            return items[:count]
    return items


def cut_state(state: dict[str, Any], bytes_max: int) -> dict[str, Any]:
    """A state whose recent messages are cut at their oldest end until it fits.

    One that was cut says `"truncated": true`.
    """
    messages = state["recent_messages"]
    others = len(to_json({**state, "recent_messages": []}))
    kept = newest_that_fit(messages, bytes_max - others)
    if len(kept) == len(messages):
        return state
    return {**state, "recent_messages": kept, "truncated": True}
