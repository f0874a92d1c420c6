"""The values of a message: JSON, roles, content, and what the text in it is."""

from __future__ import annotations

from typing import Any, Literal

from pydantic_core import to_json

JSONObject = dict[str, Any]

Role = Literal["user", "assistant", "system", "developer", "tool"]

# A text; a list of typed parts as LLM APIs send them; or None, only beside tool calls.
Content = str | list[JSONObject] | None

TITLE_CHARS_MAX = 50

# The parts that are text, by their names in the APIs of OpenAI (chat, responses) and Anthropic.
_TEXT_PARTS = frozenset({"text", "input_text", "output_text"})


def texts_of(content: Content) -> list[str]:
    """Returns the texts of the content in their order: itself, or its text parts; may be empty."""
    if isinstance(content, str):
        return [content]
    return [
        part["text"]
        for part in content or ()
        if part.get("type") in _TEXT_PARTS and isinstance(part.get("text"), str)
    ]


def content_bytes(content: Content) -> int:
    """Returns the bytes of the content's UTF-8, or of its JSON for a list of parts."""
    if content is None:
        return 0
    if isinstance(content, str):
        return len(content) if content.isascii() else len(content.encode())
    return len(to_json(content))


def title_of(content: Content) -> str | None:
    """Returns the title that a conversation takes from this content, or None where it has no text.

    The first 50 characters, stripped, plus `...` when the text is longer. Where those are all
    blank, the text counts from its first character that is not.
    """
    text = " ".join(texts_of(content))
    if not text or text.isspace():
        return None
    if text[:TITLE_CHARS_MAX].isspace():
        text = text.lstrip()
    return text[:TITLE_CHARS_MAX].strip() + ("..." if len(text) > TITLE_CHARS_MAX else "")
