"""A reply on its way: what a conversation holds of it until it ends."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256

from .messages import content_bytes


@dataclass(frozen=True, slots=True)
class OpenReply:
    """The text so far, of `size_bytes` of UTF-8; the next chunk to come is `next_index`.

    The whole text is held because its SHA-256 is asked for at the end, and a hash in the making
    cannot be kept in a snapshot. It is let go of when the reply ends.
    """

    text: str = ""
    size_bytes: int = 0
    next_index: int = 0

    def plus(self, text: str, last_index: int) -> OpenReply:
        """Returns the reply with its chunks up to `last_index`."""
        return OpenReply(self.text + text, self.size_bytes + content_bytes(text), last_index + 1)

    @property
    def chars(self) -> int:
        """How many code points the text has."""
        return len(self.text)

    @property
    def sha256(self) -> str:
        """The SHA-256 of the text's UTF-8, in lower-case hex."""
        return sha256(self.text.encode()).hexdigest()
