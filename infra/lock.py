"""One owner per data directory: an advisory lock (flock) that the kernel lets go with its owner."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path
from types import TracebackType
from typing import Self

LOCK_FILE = "convo.lock"


class DataDirInUse(Exception):
    """Another process owns the data directory; the message names it."""

    def __init__(self, data_dir: Path, pid: int | None) -> None:
        self.data_dir = data_dir
        self.pid = pid
        owner = f"pid {pid}" if pid else "pid unknown"
        ending = f"stop it (kill {pid})" if pid else "stop it"
        super().__init__(
            f"A `convo up` ({owner}) is already running on {data_dir}. Use that one, {ending}, or "
            "take another directory with --data DIR."
        )


class DataDirUnusable(Exception):
    """The data directory cannot be made or written; the message says why."""

    def __init__(self, data_dir: Path, error: OSError) -> None:
        super().__init__(
            f"The data directory {data_dir} cannot be written ({error.strerror or error}). Mend "
            "that, or take another with --data DIR or CONVO_DATA_DIR."
        )


class FileLock:
    """An exclusive lock on a file, taken when made and let go by `close` or the end of the process.

    `BlockingIOError` when somebody else has it, `OSError` when the file cannot be opened.
    A child that is given `fd` shares the lock: it is free once all of them are gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self.fd)
            raise

    def write(self, text: str) -> None:
        """Replaces what the file says (which is for people; the lock is not in it)."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, text.encode(), 0)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def own(data_dir: Path) -> FileLock:
    """Makes the directory if need be and takes it for this process alone; the lock, to be closed.

    `DataDirInUse`, `DataDirUnusable`.
    """
    path = data_dir / LOCK_FILE
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        lock = FileLock(path)
    except BlockingIOError:
        raise DataDirInUse(data_dir, _pid_in(path)) from None
    except OSError as error:
        raise DataDirUnusable(data_dir, error) from None
    lock.write(f"{os.getpid()}\n")
    return lock


def _pid_in(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
