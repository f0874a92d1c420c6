"""What a person reads: replies as lines of text, without control characters, the same in a pipe.

Nothing here colours or draws; what a reply holds is shown, never interpreted: a message may
contain terminal escapes, and printing them would let its author drive the reader's terminal.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from typing import Any

import click

TEXT_WIDTH = 100
"""Characters of a text shown where one line must do."""

# C0 and C1 controls, DEL, the two Unicode line separators, and halves of surrogate pairs.
_UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_SAFE_IN_TEXT = frozenset("\n\t")


def printable(text: str) -> str:
    r"""The text with control characters written out (`\x1b`); line breaks and tabs stay."""
    return _UNSAFE.sub(lambda found: _written_out(found[0], keep=_SAFE_IN_TEXT), text)


def one_line(text: str, width: int = TEXT_WIDTH) -> str:
    """The text on one line: blanks run together, controls written out, cut to `width`."""
    return row(" ".join(text.split()), width)


def row(text: str, width: int = 1000) -> str:
    """The text on one line as it is set: controls and line breaks written out, cut to `width`."""
    shown = _UNSAFE.sub(lambda found: _written_out(found[0]), text)
    return shown if len(shown) <= width else shown[: width - 1] + "…"


def _written_out(character: str, keep: frozenset[str] = frozenset()) -> str:
    if character in keep:
        return character
    code = ord(character)
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


class ReaderGone(Exception):
    """Whoever read our standard output has gone away (`| head`): there is nothing left to do."""


def show(lines: Iterable[str]) -> None:
    """Prints each line as it comes; `ReaderGone`."""
    for line in lines:
        _print(line)


def show_json(answer: bytes | object) -> None:
    """Prints a reply as it was on NATS (bytes), or an answer of our own, as JSON; `ReaderGone`."""
    if not isinstance(answer, bytes):
        answer = json.dumps(answer, ensure_ascii=False, separators=(",", ":"), default=str).encode(
            "utf-8", "backslashreplace"
        )
    _print(answer)


def _print(text: str | bytes) -> None:
    try:
        click.echo(text)
    except BrokenPipeError:
        raise ReaderGone from None


def name(reply: dict[str, Any]) -> str:
    """tenant/conversation of a reply or an event."""
    return one_line(f"{reply.get('tenant_id', '?')}/{reply.get('conversation_id', '?')}", 420)


def written(reply: dict[str, Any], what: str) -> str:
    """What a command wrote, on one line."""
    place = f"{name(reply)} at version {reply.get('version')} (seq {reply.get('seq')})"
    if reply.get("duplicate"):
        return f"already written: {what}, {place}"
    return f"{what}, {place}" if reply.get("events") else f"nothing to write, {place}"


def messages(found: Iterable[dict[str, Any]]) -> Iterator[str]:
    """Messages, oldest first, each a heading line and its content."""
    for message in found:
        speaker = str(message.get("role"))
        if message.get("name"):
            speaker += f" ({one_line(str(message['name']))})"
        marks = "".join(f" [{mark}]" for mark in _MARKS if message.get(mark))
        if message.get("aborted"):
            marks += f" [aborted: {one_line(str(message['aborted']))}]"
        heading = f"{message.get('version')}  {message.get('timestamp')}  {speaker}{marks}"
        yield f"{heading}  {message.get('message_id')}"
        text = content_text(message.get("content"))
        for line in printable(text).split("\n") if text else ():
            yield f"    {line}"
        for call in message.get("tool_calls") or ():
            yield f"    -> {_call(call)}"


_MARKS = ("streaming", "edited", "redacted")


def content_text(content: object) -> str:
    """The text of a message's content: itself, or its parts'; a part without text by its type."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "\n".join(_part_text(part) for part in content)
    return ""


def _part_text(part: object) -> str:
    if isinstance(part, dict):
        text = part.get("text")
        return text if isinstance(text, str) else f"[{part.get('type', 'part')}]"
    return str(part)


def _call(call: object) -> str:
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict):
        return one_line(f"{function.get('name')}({function.get('arguments', '')})")
    return one_line(json.dumps(call, ensure_ascii=False))


def totals(reply: dict[str, Any]) -> Iterator[str]:
    """The two totals as a small table, in tokens."""
    yield f"{'tokens':<18}{'prompt':>14}{'completion':>14}{'total':>14}"
    for title, key in (("since the reset", "usage"), ("lifetime", "lifetime")):
        row = reply.get(key) or {}
        yield f"{title:<18}" + "".join(
            f"{row.get(column, 0):>14,}" for column in ("prompt", "completion", "total")
        )


def state(found: dict[str, Any]) -> Iterator[str]:
    """A conversation's state, a field on each line; the recent messages are counted, not shown."""
    for field, value in found.items():
        if field == "recent_messages":
            shown = f"{len(value or ())} (see `convo messages`)"
        elif isinstance(value, dict | list):
            shown = json.dumps(value, ensure_ascii=False)
        else:
            shown = "-" if value is None else str(value)
        yield f"{field:<18}{one_line(shown, 1000)}"


def event(found: dict[str, Any]) -> str:
    """One event on one line: time, conversation, version, type, and what it is about."""
    shown = about(str(found.get("type")), found.get("data") or {})
    line = f"{found.get('time')}  {name(found)}  {found.get('version')}  {found.get('type')}"
    return f"{line}  {shown}" if shown else line


def about(type: str, data: dict[str, Any], width: int = TEXT_WIDTH) -> str:
    """What an event of this type and data is about, on one line cut to `width`."""
    match type:
        case "ConversationStarted":
            title = f": {data['title']}" if data.get("title") else ""
            return one_line(f"user {data.get('user_id')}{title}", width)
        case "MessageAppended":
            calls = [f"-> {_call(call)}" for call in data.get("tool_calls") or ()]
            text = " ".join([content_text(data.get("content")), *calls])
            return one_line(f"{data.get('role')}: {text}", width)
        case "UsageRecorded":
            model = f" ({data['model']})" if data.get("model") else ""
            return one_line(
                f"{data.get('prompt_tokens')} + {data.get('completion_tokens')} tokens{model}",
                width,
            )
        case "ConversationTitled":
            return one_line(str(data.get("title")), width)
        case _:
            return one_line(json_text(data), width) if data else ""


def json_text(value: object) -> str:
    """A value as JSON, for people."""
    return json.dumps(value, ensure_ascii=False)
