"""Time: read from the `eventsourcing` library's clock alone, written as RFC 3339 in UTC."""

from __future__ import annotations

from datetime import UTC, datetime

from eventsourcing.domain import CanCreateTimestamp


def now() -> datetime:
    """Returns the library's present time, with zone."""
    return CanCreateTimestamp.create_timestamp()


def to_text(time: datetime) -> str:
    """Returns the time in UTC with microseconds, e.g. `2026-11-21T09:00:00.123456Z`."""
    if time.tzinfo is not UTC:
        time = time.astimezone(UTC)
    return time.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def from_text(text: str) -> datetime:
    """Reads what `to_text` writes; raises ValueError for anything that is no ISO 8601 time."""
    return datetime.fromisoformat(text)
