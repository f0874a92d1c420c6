"""Whether the embedded server can store: room on its disk, and its own word on it.

A disk that is full wedges a stream: nobody who writes is answered any more, and it stays so when
there is room again, until the server is restarted (nats-server 2.15.1; then everything acknowledged
is there). So writes are refused before the disk is full, at `reserve`; and where it came to it
all the same, the server is restarted once there is room: at once where the want of room was seen,
or the last restart helped, and ever less often where it did not. No person is needed for either.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

log = logging.getLogger(__name__)

LOOK_S = 0.5
RESERVE_BYTES = 128 * 1024 * 1024
RESERVE_SHARE = 0.05
"""Of the disk: so much is left free, or `RESERVE_BYTES` where that is less."""

COMFORT = 1.25
"""Writes are taken again when so many times the reserve is free."""

FILES_MIN = 64
"""Files that the file system must be able to hold beside those there are."""

RESTART_PAUSE_S = 2.0
RESTART_PAUSE_MAX_S = 60.0
"""Between two restarts: the pause doubles while they do not help, as on a disk that is broken."""

HELPED_S = 5.0
"""A restart has helped when the server could write for so long."""

_WRITE_ERROR = "write error"


class Storing(StrEnum):
    """`read_only`: there is too little room, writes are refused. `wedged`: the server could not
    write and takes nothing any more; what it shows of its last moments may not be on disk."""

    OK = "ok"
    READ_ONLY = "read_only"
    WEDGED = "wedged"


@dataclass(frozen=True, slots=True)
class Storage:
    """How the store is; `reason` says why it takes no writes, and what to do."""

    state: Storing = Storing.OK
    reason: str | None = None


class Server(Protocol):
    """The embedded server, as far as it is watched."""

    data_dir: Path

    async def health(self) -> str | None:
        """What the server says is wrong with it; None when nothing is, or nothing is heard."""

    def restart(self) -> None:
        """Ends it at once, and starts it again at once."""


class StorageWatch:
    """Looks at a server's store again and again, and restarts the server where that helps.

    `changed` is told at each change, and at every look while not all is well.
    """

    def __init__(self, server: Server, changed: Callable[[Storage], Awaitable[None]]) -> None:
        self.storage = Storage()
        self._server = server
        self._changed = changed
        self._restarted_at = -math.inf
        self._pause_s = RESTART_PAUSE_S

    async def run(self) -> None:
        """Watches for ever."""
        while True:
            try:
                await self.look()
            except OSError as error:
                log.warning("%s cannot be looked at: %s", self._server.data_dir, error.strerror)
            await asyncio.sleep(LOOK_S)

    async def look(self) -> None:
        """Looks once."""
        before = self.storage
        self.storage = self._judged(await self._server.health())
        if self.storage.state is not before.state:
            level = logging.INFO if self.storage.state is Storing.OK else logging.ERROR
            log.log(level, "the store is %s: %s", self.storage.state, self.storage.reason or "")
        if self.storage != before or self.storage.state is not Storing.OK:
            await self._changed(self.storage)
        if self.storage.state is Storing.WEDGED:
            self._mend(before)

    def _judged(self, said: str | None) -> Storage:
        if said is not None and _WRITE_ERROR in said:
            return Storage(
                Storing.WEDGED,
                f"nats-server could not write to {self._server.data_dir} ({said}). Make room on "
                "that disk, or mend it: the server is restarted by itself then, and everything "
                "acknowledged is there",
            )
        if not self._has_room(COMFORT if self.storage.state is not Storing.OK else 1.0):
            return Storage(
                Storing.READ_ONLY,
                f"the disk of {self._server.data_dir} is nearly full "
                f"({room(self._server.data_dir) / 1e6:,.0f} MB left, {self.reserve / 1e6:,.0f} MB "
                "are kept free): make room, and writes are taken again by themselves; reads go on",
            )
        return Storage()

    @property
    def reserve(self) -> int:
        """Bytes of the disk that are left free."""
        disk = os.statvfs(self._server.data_dir)
        return int(min(RESERVE_BYTES, disk.f_blocks * disk.f_frsize * RESERVE_SHARE))

    def _has_room(self, times: float) -> bool:
        return room(self._server.data_dir) >= self.reserve * times

    def _mend(self, before: Storage) -> None:
        """Restarts a wedged server once there is room; ever less often while that does not help."""
        now = time.monotonic()
        since = now - self._restarted_at
        has_room = self._has_room(COMFORT)
        helped = before.state is not Storing.WEDGED and since > HELPED_S
        if helped or not has_room:  # the want of room is what is wrong, and a restart ends it
            self._pause_s = RESTART_PAUSE_S
        if has_room and since >= self._pause_s:
            self._pause_s = min(self._pause_s * 2, RESTART_PAUSE_MAX_S)
            self._restarted_at = now
            log.warning("there is room again: nats-server is restarted, it could not write before")
            self._server.restart()


def room(folder: Path) -> int:
    """Bytes that the file system of `folder` still takes; 0 when it takes no further files."""
    disk = os.statvfs(folder)
    if disk.f_files and disk.f_favail < FILES_MIN:
        return 0
    return disk.f_bavail * disk.f_frsize
