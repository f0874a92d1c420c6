"""Whether a write would be taken, and how far behind the projections are.

It would fail when nobody answers commands or queries, when the ledger's streams cannot be reached
or are full, or when the command service says that something is wrong. What only reads or projects
may be away without that.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final, Literal

from nats.aio.client import Client
from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable
from infra.jetstream.topology import call
from infra.settings import Settings
from services.bootstrap import ANSWERING, topology
from services.roster import services

NEEDED: Final = frozenset({"commands", "queries"})
"""The services without which nothing is written and read."""

STORE_WITHIN_S: Final = 2.0
KEEP_S: Final = 1.0

Status = Literal["ok", "degraded", "down"]


class Part(BaseModel):
    """One service or stream; `lag_ms` of what projects, `reason` when it is not well."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    ok: bool
    instances: int | None = None
    state: str | None = None
    lag_ms: float | None = None
    reason: str | None = None


class Health(BaseModel):
    """`status`: ok; degraded (something that no write needs is away); down (writes would fail)."""

    status: Status
    services: dict[str, Part]
    store: dict[str, Part]


class Examination:
    """Looks at the ledger, at most once in `KEEP_S`."""

    def __init__(self, nats: Client, settings: Settings) -> None:
        self._nats = nats
        self._settings = settings
        self._looking = asyncio.Lock()
        self._found: Health | None = None
        self._at = 0.0

    async def health(self) -> Health:
        """What was found; never an exception."""
        async with self._looking:
            if self._found is None or time.monotonic() - self._at > KEEP_S:
                answering, store = await asyncio.gather(self._services(), self._store())
                self._found = Health(
                    status=_status(answering, store), services=answering, store=store
                )
                self._at = time.monotonic()
            return self._found

    async def _services(self) -> dict[str, Part]:
        try:
            rows = await services(self._nats)
        except NATS_FAILURES:
            rows = []
        return {name: _service(name, rows) for name in ANSWERING}

    async def _store(self) -> dict[str, Part]:
        ledger = topology(self._settings)
        names = [ledger.stream_name(partition) for partition in range(self._settings.partitions)]
        parts = await asyncio.gather(*map(self._stream, names))
        return dict(zip(names, parts, strict=True))

    async def _stream(self, name: str) -> Part:
        try:
            info = await call(self._nats, f"STREAM.INFO.{name}", {}, timeout=STORE_WITHIN_S)
        except StoreUnavailable as error:
            return Part(ok=False, reason=str(error))
        if "error" in info:
            return Part(ok=False, reason=str(info["error"].get("description", "not readable")))
        bytes_max = info["config"].get("max_bytes", -1)
        if 0 < bytes_max <= info["state"]["bytes"]:
            return Part(ok=False, state="full", reason="the stream is full: give it more room")
        return Part(ok=True)


def _service(name: str, rows: list[dict[str, Any]]) -> Part:
    ours = [row for row in rows if row["name"] == f"convo-{name}"]
    if not ours:
        return Part(ok=False, instances=0, reason=f"nobody answers: `convo serve {name}`")
    says = [row["says"] for row in ours if row.get("says")]
    lags = [each["lag_ms"] for each in says if each.get("lag_ms") is not None]
    ill = next((each for each in says if each.get("reason")), None)
    return Part(
        ok=ill is None,
        instances=len(ours),
        state=str(says[0]["state"]) if says and says[0].get("state") else None,
        lag_ms=max(lags) if lags else None,
        reason=str(ill["reason"]) if ill else None,
    )


def _status(answering: dict[str, Part], store: dict[str, Part]) -> Status:
    needed = [part for name, part in answering.items() if name in NEEDED]
    if not all(part.ok for part in (*needed, *store.values())):
        return "down"
    return "ok" if all(part.ok for part in answering.values()) else "degraded"
