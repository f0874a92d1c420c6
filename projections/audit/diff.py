"""What changed between two states of a conversation, path by path."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from projections.state import ConversationView

Change = dict[str, Any]

_APART = frozenset({"recent_messages"})


def changes(before: ConversationView, after: ConversationView) -> Iterator[Change]:
    """Yields {path, from, to} for whatever differs; null where it is not there.

    The paths are those of the state object (`title`, `tokens_used.total`, `context.topic`); keys
    of objects follow each other with dots. The window's messages are compared by their ids, as
    `recent_messages.<message_id>`, each one whole.
    """
    was, now = before.state(), after.state()
    for field in was:
        if field not in _APART:
            yield from _compare(field, was[field], now[field])
    old = {message["message_id"]: message for message in was["recent_messages"]}
    new = {message["message_id"]: message for message in now["recent_messages"]}
    for message_id in [*old, *(each for each in new if each not in old)]:
        if old.get(message_id) != new.get(message_id):
            yield _change(f"recent_messages.{message_id}", old.get(message_id), new.get(message_id))


def _compare(path: str, was: Any, now: Any) -> Iterator[Change]:
    if isinstance(was, dict) and isinstance(now, dict):
        for key in [*was, *(each for each in now if each not in was)]:
            yield from _compare(f"{path}.{key}", was.get(key), now.get(key))
    elif type(was) is not type(now) or was != now:
        yield _change(path, was, now)


def _change(path: str, was: Any, now: Any) -> Change:
    return {"path": path, "from": was, "to": now}
