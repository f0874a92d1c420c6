"""Whether this process may write: the store's room, and the fence. What `$SRV.STATS` says of it.

`convo up` watches the embedded server's disk (`infra.storage`) and tells everybody on
`convo.health.store`, {"state", "reason"}, at each change and about twice a second while not all is
well; who hears nothing for a while takes writes again. On a server of somebody else's nobody tells;
there a full store is known by its refusals.
"""

from __future__ import annotations

import json
import time
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg

from infra.jetstream.errors import StoreReadOnly
from infra.jetstream.fence import Fence
from infra.jetstream.store import Store
from infra.storage import Storage, Storing

SUBJECT = "convo.health.store"
HELD_S = 3.0
"""How long what was heard holds."""

REFUSED_HOLDS_S = 10.0
"""How long a refusal for want of room is shown, unless a write goes through before."""


class Health:
    """Of one process. `fence` and `store` are the process's own."""

    def __init__(self, fence: Fence, store: Store) -> None:
        self.fence = fence
        self._store = store
        self._heard = Storage()
        self._heard_until = 0.0
        self._refused: str | None = None
        self._refused_until = 0.0

    async def start(self, nc: Client) -> None:
        """Listens for what `convo up` says of the store."""
        await nc.subscribe(SUBJECT, cb=self._hear)

    async def _hear(self, message: Msg) -> None:
        try:
            told = json.loads(message.data)
            self._heard = Storage(Storing(told["state"]), told.get("reason"))
        except (ValueError, KeyError, TypeError):
            return
        self._heard_until = time.monotonic() + HELD_S
        self._store.distrust_reading(self._heard.state is Storing.WEDGED)

    # -- for the command service ---------------------------------------------------------------

    @property
    def is_clear(self) -> bool:
        """Whether writes are taken, as far as is known."""
        return self._heard.state is Storing.OK and self.fence.is_passed

    async def cleared(self) -> None:
        """Returns when writes are taken. Raises StoreReadOnly, LedgerWentBack, StoreUnavailable."""
        if self._heard.state is not Storing.OK:
            if time.monotonic() < self._heard_until:
                raise StoreReadOnly(self._heard.reason or "the store takes no writes")
            self._heard = Storage()
            self._store.distrust_reading(False)
        if not self.fence.is_passed:
            await self.fence.passed()

    def refused(self, error: StoreReadOnly) -> None:
        """A write was refused for want of room."""
        self._refused = str(error)
        self._refused_until = time.monotonic() + REFUSED_HOLDS_S

    def stored(self) -> None:
        """A write went through."""
        self._refused = None

    # -- for who asks --------------------------------------------------------------------------

    def says(self) -> dict[str, Any]:
        """{"state": ok, read_only, wedged or gone_back, "reason"?}: whether a write would go
        through, as far as is known here."""
        now = time.monotonic()
        if self.fence.broken.done():
            return {"state": "gone_back", "reason": str(self.fence.broken.result())}
        if self._heard.state is not Storing.OK and now < self._heard_until:
            return {"state": str(self._heard.state), "reason": self._heard.reason}
        if self._refused is not None and now < self._refused_until:
            return {"state": str(Storing.READ_ONLY), "reason": self._refused}
        return {"state": str(Storing.OK)}
