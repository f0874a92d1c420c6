"""A small disk of a scenario's own: an ext4 file system in a file, mounted by a loop device.

It can be filled to the last block, and its power can be cut: the ext4 shutdown ioctl drops whatever
was not synced, data and metadata alike, as a machine does that loses power.
"""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import shutil
import struct
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.faults.rig import run

EXT4_IOC_SHUTDOWN = 0x8004587D
NO_FLUSH = 2
MB = 1024 * 1024
UNMOUNT_TRIES = 200


@functools.cache
def why_not() -> str:
    """Why this machine has no loop mounts for us; empty when it has."""
    if os.geteuid() != 0:
        return "loop mounts need root"
    if missing := [name for name in ("mkfs.ext4", "mount", "umount") if not shutil.which(name)]:
        return f"{', '.join(missing)} not found"
    with tempfile.TemporaryDirectory() as folder:
        disk = Disk(Path(folder), 16 * MB)
        try:
            disk.make()
        except (OSError, subprocess.CalledProcessError) as error:
            said = getattr(error, "stderr", None) or str(error)
            return f"loop mounts do not work here: {said.strip()}"
        try:
            disk.cut_power()
        except OSError as error:
            return f"the power of a loop mount cannot be cut: {error.strerror}"
        finally:
            run("umount", str(disk.path))
    return ""


class Disk:
    """One small disk, mounted at `path` inside the block."""

    def __init__(self, directory: Path, size: int) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.path = directory / "disk"
        self._image = directory / "disk.img"
        self._size = size

    def make(self) -> None:
        """Makes the file system and mounts it."""
        with self._image.open("wb") as image:
            image.truncate(self._size)
        run("mkfs.ext4", "-q", "-F", "-m", "0", str(self._image))
        self.path.mkdir(exist_ok=True)
        self.mount()

    def mount(self) -> None:
        """Mounts it; after a power cut the journal is replayed."""
        run("mount", "-o", "loop", str(self._image), str(self.path))

    def cut_power(self) -> None:
        """From here on nothing reaches the disk any more, and nothing that was not synced is on it.
        Whoever has it open gets errors; it has to be unmounted and mounted again."""
        place = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(place, EXT4_IOC_SHUTDOWN, struct.pack("I", NO_FLUSH))
        finally:
            os.close(place)

    async def unmount(self) -> None:
        """Returns once nobody holds it any more and it is unmounted."""
        for _ in range(UNMOUNT_TRIES):
            if not self.path.is_mount():
                return
            with suppress(subprocess.CalledProcessError):
                run("umount", str(self.path))
                return
            await asyncio.sleep(0.05)
        run("umount", "--lazy", str(self.path))
        raise AssertionError(f"{self.path} stays busy")

    def free(self) -> int:
        """Bytes that may still be written."""
        return shutil.disk_usage(self.path).free

    def fill(self, leave: int = 0) -> None:
        """Takes all the room there is, but for so many bytes."""
        with self._ballast.open("ab") as ballast:
            while (room := self.free() - leave) > 0:
                try:
                    os.posix_fallocate(ballast.fileno(), os.fstat(ballast.fileno()).st_size, room)
                except OSError:
                    break
        with suppress(OSError), self._ballast.open("ab") as ballast:
            while leave == 0:  # what fallocate leaves, block by block
                ballast.write(bytes(4096))
                ballast.flush()

    def relieve(self) -> None:
        """Gives the room back."""
        self._ballast.unlink(missing_ok=True)

    @property
    def _ballast(self) -> Path:
        return self.path / "ballast"

    async def __aenter__(self) -> Self:
        self.make()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.unmount()
        self._image.unlink()
