"""Where nats-server stages atomic batches: in memory rather than on the disk.

Of an unreplicated stream nats-server 2.15 writes each atomic batch twice: into a store made for
this one batch, in `streams/<NAME>/batches/`, which is removed again before the batch is
acknowledged, and then into the stream, where one fsync covers it all. On a disk that staging store
is most of what a small batch costs: about 2.5 of 3 ms, for folders made, flushed and removed.

Only a server that comes back after it died between the two needs it: it completes the batch from
there. So what is staged has to outlive that process, which it does in memory. It does not outlive a
loss of power: then `lost` says so, and whoever starts the server cuts off what is there of a batch
that was under way (`infra.jetstream.blocks`). It was never acknowledged.

So each stream's `batches` becomes a link to a folder on tmpfs. The server takes it down at each
start, once it has read what lies there, and whoever keeps the server puts it back. Whatever is
wrong with that (no tmpfs, no room on it, a folder of somebody else's), batches are staged on the
disk, as without us. A batch that is under way when the link comes or goes is one that the server
calls incomplete, and is sent again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

log = logging.getLogger(__name__)

MEMORY = Path("/dev/shm")  # noqa: S108 (what lies there is ours alone: see `_claim`)
"""Linux has a tmpfs there."""

ROOM = 1024 * 1024 * 1024
"""Bytes that must be free on it to begin. A batch is 16 MB, or one command's events; one at a time
for each partition."""

ROOM_LEFT = 256 * 1024 * 1024
"""With fewer bytes free than that it is left alone again."""

EVERY_S = 0.2
"""How often it is looked after: a stream that is made, a server that came back."""

_PREFIX = "convo-staging-"
_BATCHES = "batches"
_OF = "of"
_ATOMIC = b'"allow_atomic":true'


class Staging:
    """The staging of one server's streams.

    `store` is nats-server's `store_dir`. `open` before the server is started, `close` once it has
    stopped; between the two it is looked after on the event loop.
    """

    def __init__(self, store: Path, memory: Path = MEMORY) -> None:
        self._store = store
        self._memory = memory
        name = sha256(os.fsencode(store.absolute())).hexdigest()[:16]
        self._folder = memory / f"{_PREFIX}{name}"
        self._keeping: asyncio.Task[None] | None = None

    @property
    def folder(self) -> Path:
        """Where the batches of these streams are staged; there while the server runs."""
        return self._folder

    @staticmethod
    def lost(store: Path) -> list[Path]:
        """The folders of those streams whose staged batches are gone, with the memory they were
        in; to be asked before the server is started."""
        streams = store.glob("jetstream/*/streams/*")
        linked = [each for each in streams if (each / _BATCHES).is_symlink()]
        return [each for each in linked if not (each / _BATCHES).exists()]

    def open(self) -> None:
        """Begins to look after it, where that can be done."""
        try:
            self._remove_orphans()
            self._claim()
        except OSError as error:
            log.info("batches are staged on the disk: %s", error)
            return
        self._keeping = asyncio.get_running_loop().create_task(self._keep())

    def link(self) -> None:
        """Links those streams that are not linked; at once, for whoever cannot wait."""
        if self._keeping is None:
            return
        for stream in self._streams():
            # in use at this very moment, or gone: the next time
            with contextlib.suppress(OSError):
                self._link(stream)

    async def close(self) -> None:
        """Removes everything, except for a batch that a server which was killed has left."""
        if self._keeping is None:
            return
        self._keeping.cancel()
        await asyncio.wait({self._keeping})
        self._keeping = None
        for stream in self._streams():
            self._unlink(stream)
        with contextlib.suppress(OSError):  # a batch is left
            for folder, within, _ in os.walk(self._folder, topdown=False):
                for each in (Path(folder) / name for name in within if name != _OF):
                    each.rmdir()
            (self._folder / _OF).unlink()
            self._folder.rmdir()

    def lose(self) -> None:
        """What a loss of power does to it; for whoever plays one."""
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _keep(self) -> None:
        while self._has_room():
            self.link()
            await asyncio.sleep(EVERY_S)
        log.warning("batches are staged on the disk from here on: no room on %s", self._memory)
        for stream in self._streams():
            with contextlib.suppress(OSError):
                (stream / _BATCHES).unlink()

    def _claim(self) -> None:
        """Makes the folder, or takes that of an earlier run. Raises OSError."""
        free = self._free()
        if free < ROOM:
            raise OSError(f"{self._memory} has {free >> 20:,} MB free, not {ROOM >> 20:,}")
        with contextlib.suppress(FileExistsError):
            self._folder.mkdir(mode=0o700)
        found = self._folder.lstat()
        if not self._folder.is_dir() or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise OSError(f"{self._folder} is not ours alone")
        if not (self._folder / _OF).is_symlink():
            (self._folder / _OF).symlink_to(self._store.absolute())

    def _remove_orphans(self) -> None:
        """Folders of ours whose stores are there no more: those of killed tests, say."""
        for folder in self._memory.glob(f"{_PREFIX}*"):
            of = folder / _OF
            with contextlib.suppress(OSError):  # another one removes it at this moment
                if folder.lstat().st_uid == os.getuid() and of.is_symlink() and not of.exists():
                    shutil.rmtree(folder, ignore_errors=True)

    def _has_room(self) -> bool:
        try:
            return self._free() > ROOM_LEFT
        except OSError:  # it is gone as a whole
            return False

    def _free(self) -> int:
        return shutil.disk_usage(self._memory).free

    def _streams(self) -> Iterator[Path]:
        """The folders of the streams that take batches."""
        for about in self._store.glob("jetstream/*/streams/*/meta.inf"):
            with contextlib.suppress(OSError):
                if _ATOMIC in about.read_bytes():
                    yield about.parent

    def _link(self, stream: Path) -> None:
        batches = stream / _BATCHES
        if batches.is_symlink():
            if batches.is_dir():
                return
            batches.unlink()
            self._claim()  # somebody has emptied the memory
        elif batches.is_dir():
            batches.rmdir()
        home = self._folder / stream.relative_to(self._store)
        home.mkdir(parents=True, exist_ok=True)
        left = list(home.iterdir())
        batches.symlink_to(tempfile.mkdtemp(dir=home))
        for each in left:  # nothing leads there any more
            shutil.rmtree(each, ignore_errors=True)

    def _unlink(self, stream: Path) -> None:
        """Takes the link down unless something is staged behind it."""
        batches = stream / _BATCHES
        with contextlib.suppress(OSError):
            if batches.is_symlink() and not any(batches.iterdir()):
                batches.unlink()
