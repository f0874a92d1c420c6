"""A replay as a person reads it: commands in the order of their time, each with what it changed.

    2026-11-21, times in UTC
    09:00:00.123  turn by user:ada, command 019dbf2e-1234-7abc-8def-0123456789ab
        7  user: What is an event?
           7 messages, window 7 (3f2a9c1b4d5e), 120 tokens, 340 in all

A line is cut to the width it is given. Colours are for a terminal only; they are added to lines
that are finished, so that what a message holds cannot colour anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, tzinfo
from typing import Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import click

from services.cli import output

WIDTH_MIN = 40
DIGEST_SHOWN = 12
"""Hex digits of a window's digest: enough to see that two differ; --json has all of it."""

_INDENT = 11
_QUIET_STATUS = "active"


class UnknownZone(Exception):
    """There is no such time zone."""


def zone_of(name: str) -> tzinfo:
    """The time zone of that name: UTC, local, or one of the IANA database (Europe/Berlin)."""
    if name.upper() == "UTC":
        return UTC
    if name == "local":
        local = datetime.now(UTC).astimezone().tzinfo
        assert local is not None
        return local
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise UnknownZone(name) from None


def time_of(entry: dict[str, Any]) -> datetime:
    """When the event was decided."""
    return datetime.fromisoformat(entry["time"])


class Timeline:
    """Turns entries into lines, in order; what stays the same is not said twice."""

    def __init__(self, zone: tzinfo, zone_name: str, *, width: int, colours: bool) -> None:
        self._zone = zone
        self._zone_name = zone_name
        self._width = max(width, WIDTH_MIN)
        self._colours = colours
        self._day = ""
        self._command: object = None

    def lines(self, entry: dict[str, Any]) -> Iterator[str]:
        """The lines of the next entry."""
        time = time_of(entry).astimezone(self._zone)
        day = f"{time:%Y-%m-%d}"
        if day != self._day:
            self._day = day
            yield self._line(f"{day}, times in {self._zone_name}", bold=True)
        command = (entry.get("command_id"), entry["time"])
        if command != self._command:
            self._command = command
            who = f" by {entry['actor']}" if entry.get("actor") else ""
            yield self._line(
                f"{time:%H:%M:%S}.{time.microsecond // 1000:03d}  {entry.get('verb')}{who}, "
                f"command {entry.get('command_id')}",
                fg="cyan",
            )
        yield self._line(f"{entry['version']:>9}  {what_happened(entry)}")
        yield self._line(" " * _INDENT + state_line(entry["state"]), dim=True)

    def _line(self, text: str, **style: Any) -> str:
        line = cut(output.row(text), self._width)
        return click.style(line, **style) if self._colours and style else line


def cut(text: str, columns: int) -> str:
    """The text within that many columns of a terminal, where some characters take two."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(text) <= columns:
        return text
    return set_cell_size(text, columns - 1).rstrip() + "…"


def what_happened(entry: dict[str, Any]) -> str:
    """One event in words, without its state."""
    data = {name: value for name, value in entry["data"].items() if value not in ({}, [])}
    about = output.about(str(entry["type"]), data, width=1000)
    if entry["type"] == "MessageAppended":
        return about
    return f"{entry['type']}  {about}" if about else str(entry["type"])


def state_line(state: dict[str, Any]) -> str:
    """The running figures behind an event, on one line."""
    messages = state["message_count"]
    window = len(state["window"])
    words = [
        f"{messages:,} message{'' if messages == 1 else 's'}",
        f"window {window} ({state['window_digest'][:DIGEST_SHOWN]})",
        f"{state['tokens_used']['total']:,} tokens, {state['lifetime_tokens']['total']:,} in all",
    ]
    if state["status"] != _QUIET_STATUS:
        words.append(str(state["status"]))
    return ", ".join(words)


def report(name: str, found: dict[str, Any]) -> Iterator[str]:
    """What a verification found, for a person."""
    events = found["events"]
    if found["valid"]:
        yield f"valid: {name}, {events:,} event{'' if events == 1 else 's'}, head"
        yield f"  {found['head_hash']}"
        return
    bad = found["first_bad"]
    yield f"NOT VALID: {name}, first bad at version {bad['version']} (seq {bad['seq']})"
    yield output.row(f"  {_PROBLEMS.get(bad['problem'], bad['problem'])}")
    yield output.row(f"  expected {bad['expected']}")
    yield output.row(f"  found    {bad['found']}")


_PROBLEMS = {
    "hash": "its hash is not the one that its body and the event before it give",
    "version": "another version stands there: events were removed, added or moved",
    "identity": "its body speaks of another event than its headers and subject",
    "header": "it lacks a header that every event has",
    "end": "the subject ends before it",
}


def differences(found: dict[str, Any]) -> Iterator[str]:
    """What changed between two versions, for a person."""
    events = found["events"]
    yield (
        f"version {found['from_version']} to {found['to_version']}: "
        f"{events:,} event{'' if events == 1 else 's'}, {len(found['changes'])} changes"
    )
    for change in found["changes"]:
        yield output.row(f"  {change['path']}")
        if change["from"] is not None:
            yield f"  - {output.one_line(_value(change['from']), 1000)}"
        if change["to"] is not None:
            yield f"  + {output.one_line(_value(change['to']), 1000)}"
    if found.get("truncated"):
        yield "(more changes left out: too large for one answer; compare versions nearer by)"


def _value(value: Any) -> str:
    if isinstance(value, dict) and "role" in value:
        return f"{value['role']}: {output.content_text(value.get('content'))}"
    return output.json_text(value)
