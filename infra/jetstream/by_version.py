"""Events that each have a subject of their own: originator and version. For snapshots.

Snapshots are recorded at any version and in any order (`app.take_snapshot(id, version=7)` long
after version 50), and asked for as "the last one up to this version". On one subject each, each is
there once, whatever else there is; JetStream lists an originator's subjects, and so the versions,
without reading a single body, and one Direct Get then reads the one that is wanted: two round
trips, however many snapshots there are.
"""

from __future__ import annotations

import asyncio

from nats.aio.client import Client

from infra.jetstream.envelope import Recorded
from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.journal import Journal, Span
from infra.jetstream.topology import call

AT_ONCE = 16
"""Bodies asked for side by side."""


class ByVersion:
    """Reads what a journal has recorded on the subjects `<originator>.<version>`."""

    def __init__(self, journal: Journal, reading: Client, *, request_timeout: float) -> None:
        self.journal = journal
        self._reading = reading
        self._timeout = request_timeout

    def subject(self, originator: str, version: int) -> str:
        """Where the originator's event with that version is."""
        return self.journal.store.topology.subject(f"{originator}.{version}")

    async def select(
        self, originator: str, span: Span, *, desc: bool = False, limit: int | None = None
    ) -> list[Recorded]:
        """An originator's events with versions in the span, in the order asked for."""
        listed = await self.journal.patiently(lambda: self._versions(originator))
        versions = sorted((v for v in listed if span.holds(v)), reverse=desc)[:limit]
        found: list[Recorded | None] = []
        for place in range(0, len(versions), AT_ONCE):
            found += await asyncio.gather(
                *(
                    self.journal.last(self.subject(originator, version))
                    for version in versions[place : place + AT_ONCE]
                )
            )
        return [event for event in found if event is not None]

    async def _versions(self, originator: str) -> list[int]:
        """All of an originator's versions, as the stream's leader has them."""
        subjects = self.journal.store.topology.subject(f"{originator}.*")
        api = f"STREAM.INFO.{self.journal.stream}"
        versions: list[int] = []
        while True:
            answer = await call(
                self._reading,
                api,
                {"subjects_filter": subjects, "offset": len(versions)},
                timeout=self._timeout,
            )
            if "error" in answer:
                raise StoreUnavailable(f"{api} failed: {answer['error'].get('description')}")
            listed = answer["state"].get("subjects") or {}
            versions += [int(subject.rpartition(".")[2]) for subject in listed]
            if not listed or len(versions) >= answer.get("total", 0):
                return versions
