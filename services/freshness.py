"""Waiting until tables have what an answer must include (`Convo-Min-Seq`).

For every service that answers from tables which a projector fills behind the ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Final

from nats.aio.client import Client

from infra.jetstream.errors import StoreUnavailable
from infra.jetstream.topology import Topology
from services.projector import heads

MIN_SEQ_WAIT_S: Final = 5.0
"""Where nothing else is said."""


class NotTakenInYet(StoreUnavailable):
    """The tables do not have what the answer must include; asking again may help."""


class Freshness:
    """How far some tables are, and the requests that wait for them. Lives on the event loop.

    `positions` gives the stream sequence of the last event in the tables for every partition, or
    nothing where there are no tables at the moment.
    """

    def __init__(
        self,
        what: str,
        nc: Client,
        topology: Topology,
        positions: Callable[[], Mapping[int, int]],
    ) -> None:
        self._what = what
        self._nc = nc
        self._topology = topology
        self._positions = positions
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Has those who wait look again."""
        self._changed.set()
        self._changed = asyncio.Event()

    async def change(self, within_s: float) -> None:
        """Returns at the next change, or after so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._changed.wait()

    async def include(self, seq: int, within_s: float | None = None) -> None:
        """Waits until the tables have the event of this sequence, whatever its partition.

        Raises NotTakenInYet, at once where no partition has come so far.
        """
        if self._have(dict.fromkeys(range(self._topology.partitions), seq)):
            return
        there = await heads(self._nc, self._topology)
        if seq > max(there.values()):
            raise NotTakenInYet(
                f"the ledger has no sequence {seq} yet: check that it is from a reply of this one"
            )
        await self.reach({each: min(seq, head) for each, head in there.items()}, within_s)

    async def reach(self, wanted: Mapping[int, int], within_s: float | None = None) -> None:
        """Waits until the tables have these sequences, by partition. Raises NotTakenInYet."""
        try:
            async with asyncio.timeout(MIN_SEQ_WAIT_S if within_s is None else within_s):
                while not self._have(wanted):
                    await self._changed.wait()
        except TimeoutError:
            raise NotTakenInYet(
                f"{self._what} do not have sequence {max(wanted.values())} yet: ask again, and "
                "look at `convo status` when it stays so"
            ) from None

    def _have(self, wanted: Mapping[int, int]) -> bool:
        positions = self._positions()
        return all(positions.get(partition, -1) >= seq for partition, seq in wanted.items())
