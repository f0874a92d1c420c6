"""The latest snapshot of each originator: one message per subject, the newer replaces the older.

A snapshot is a shortcut, never a source: it can be lost, late or missing at any time, and whoever
loads one checks it against the event that it claims to stand at. Bodies are the caller's.
"""

from __future__ import annotations

import json
import logging

from nats.aio.client import Client

from infra.jetstream import outcome
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable, reason
from infra.jetstream.topology import Topology

log = logging.getLogger(__name__)


class Snapshots:
    """Saves and loads snapshots over one NATS connection."""

    def __init__(self, nc: Client, topology: Topology, *, timeout: float = 5.0) -> None:
        self._nc = nc
        self._topology = topology
        self._timeout = timeout

    @property
    def bytes_max(self) -> int:
        """The largest body that can be saved."""
        return min(self._topology.snapshot_bytes_max, self._nc.max_payload) - 512

    async def save(self, originator: str, body: bytes) -> bool:
        """Replaces the originator's snapshot; False (and a line in the log) when that failed."""
        if len(body) > self.bytes_max:
            return False
        try:
            reply = await self._nc.request(
                self._topology.snapshot_subject(originator), body, timeout=self._timeout
            )
        except NATS_FAILURES as error:
            log.info("snapshot of %s not saved: %s", originator, reason(error))
            return False
        saved = outcome.of_answer(json.loads(reply.data))
        if not isinstance(saved, outcome.Stored):
            log.info("snapshot of %s not saved: %s", originator, saved.reason)
            return False
        return True

    async def load(self, originator: str) -> bytes | None:
        """The body saved last, None when there is none. Raises StoreUnavailable."""
        subject = self._topology.snapshot_subject(originator)
        api = f"$JS.API.DIRECT.GET.{self._topology.snapshot_stream}.{subject}"
        try:
            message = await self._nc.request(api, b"", timeout=self._timeout)
        except NATS_FAILURES as error:
            raise StoreUnavailable(f"the snapshot store did not answer: {reason(error)}") from error
        return message.data if outcome.is_found(message.headers) else None
