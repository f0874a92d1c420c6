"""The digest of a window: which messages, in which words, stood in it.

It is the SHA-256 of the window's message objects as JSON lines, oldest first: each object as
`jq -cS` prints it (keys sorted, no blanks, UTF-8 unescaped) and a line feed. So it is recomputed
from the reply of the `messages` view with

    jq -cS '.messages[]' | sha256sum

The digest of an empty window is that of no bytes at all, `e3b0c442…`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from hashlib import sha256
from typing import Any

from domain.messages import JSONObject


def canonical(message: JSONObject) -> bytes:
    """The message object on one line, as `jq -cS` prints it, line feed included."""
    text = json.dumps(message, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.replace("\x7f", "\\u007f").encode() + b"\n"  # jq escapes DEL, Python does not


def window_digest(messages: Iterable[JSONObject]) -> str:
    """The digest of a window in lower-case hex; `messages` oldest first."""
    return WindowDigest().of(messages)


class WindowDigest:
    """The digests of one conversation's windows, one after the other.

    Remembers the lines of the messages that were in the window before, by the identity of their
    objects: a message that is changed has to be another object, as the views have it.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[int, tuple[Any, bytes]] = {}

    def of(self, messages: Iterable[JSONObject]) -> str:
        """The digest of the window as it is now, oldest message first."""
        known, self._lines = self._lines, {}
        digest = sha256()
        for message in messages:
            key = id(message)
            line = known.get(key) or (message, canonical(message))
            self._lines[key] = line
            digest.update(line[1])
        return digest.hexdigest()
