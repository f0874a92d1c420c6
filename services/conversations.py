"""The conversations of a process: commands to them are carried out, and they are shown.

One instance per process, on its event loop; `services.in_use` is what it is made of. What is in
memory is a cache, never a source: the ledger is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from domain.rules import Limits
from infra.jetstream.store import Store
from services.in_use.cache import Cache
from services.in_use.decider import Decider
from services.in_use.loader import Loader
from services.in_use.views import Views


class Conversations:
    """Executes commands and shows views: each part does its own, and is called as it is."""

    def __init__(
        self,
        store: Store,
        *,
        limits: Limits,
        window_size: int,
        cache_bytes: int,
        epoch: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`epoch`: see `others.Others`; None where nothing else is heard."""
        self.store = store
        self.window_size = window_size
        self.cache = Cache(cache_bytes)
        self.loader = Loader(store, self.cache, window_size=window_size, epoch=epoch)
        self.decider = Decider(store, self.cache, self.loader, limits)
        self.views = Views(store, self.cache, self.loader, window_size=window_size, epoch=epoch)
        self.execute: Final = self.decider.execute
        self.view: Final = self.views.view
        self.knows: Final = self.views.knows
        self.heard: Final = self.views.heard
        self.replay: Final = self.views.replay

    async def close(self) -> None:
        """Returns once every command is answered; nothing is accepted by then any more."""
        await self.decider.idle()
        await self.loader.snapshotter.close()
