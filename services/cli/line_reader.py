"""The lines of a file or of standard input, plain or gzip, read beside the event loop.

A thread reads ahead, so that a slow pipe never holds up what is in flight; it is a daemon with a
file of its own, so that Ctrl-C does not wait for the pipe either.
"""

from __future__ import annotations

import asyncio
import gzip
import io
import os
import threading
import zlib
from collections.abc import AsyncIterator, Iterable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

from services.cli.options import stdin

CHUNK_BYTES = 262_144
CHUNKS_AHEAD = 4

_GZIP = b"\x1f\x8b"
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


DAMAGES = (OSError, EOFError, zlib.error)
"""What a file that is damaged or cut off is read with."""


class Line(NamedTuple):
    """One line with its number, from 1, and the bytes of the file that were read so far."""

    number: int
    text: bytes
    read_bytes: int


class UnreadableFile(Exception):
    """The file cannot be read to its end; the lines before were."""


@contextmanager
def opened(source: str) -> Iterator[tuple[BinaryIO, int | None]]:
    """Gives the file, and its size in bytes when it has one; `-` is standard input."""
    if source != "-":
        path = Path(source)
        with path.open("rb") as file:
            yield file, path.stat().st_size or None
        return
    given = stdin()
    try:
        own = os.dup(given.fileno())
    except io.UnsupportedOperation:  # not a real file: a test's
        yield given, None
        return
    yield os.fdopen(own, "rb"), None  # left open: the thread may be waiting in it


class LineReader:
    """The lines of `file`, once; `UnreadableFile` at the place where it is damaged."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._queue: asyncio.Queue[list[Line] | Exception | None] = asyncio.Queue(CHUNKS_AHEAD)

    async def __aiter__(self) -> AsyncIterator[Line]:
        """Yields line after line, blank ones too."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._read, args=(loop,), daemon=True).start()
        while (chunk := await self._queue.get()) is not None:
            if isinstance(chunk, Exception):
                raise chunk
            for line in chunk:
                yield line

    def _read(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            for chunk in _chunks(self._file):
                if not self._hand_over(chunk, loop):
                    return
        except DAMAGES as error:
            self._hand_over(UnreadableFile(f"the file is damaged or cut off ({error})"), loop)
        else:
            self._hand_over(None, loop)

    def _hand_over(
        self, chunk: list[Line] | Exception | None, loop: asyncio.AbstractEventLoop
    ) -> bool:
        """Puts the chunk where the loop finds it; False when the loop has ended."""
        putting = self._queue.put(chunk)
        try:
            asyncio.run_coroutine_threadsafe(putting, loop).result()
        except (RuntimeError, CancelledError):
            putting.close()
            return False
        return True


def _chunks(file: BinaryIO) -> Iterator[list[Line]]:
    """Yields lines, gathered; one by one from a pipe, which may be slow to give the next.

    Where the file is damaged, what came before is yielded first.
    """
    base = file if isinstance(file, io.BufferedReader) else io.BufferedReader(_raw(file))
    seekable = base.seekable()
    zipped = base.peek(2)[:2] == _GZIP
    lines: Iterable[bytes] = gzip.GzipFile(fileobj=base) if zipped else base
    chunk: list[Line] = []
    size = 0
    try:
        for number, text in enumerate(lines, 1):
            whole = text.removeprefix(_BYTE_ORDER_MARK) if number == 1 else text
            chunk.append(Line(number, whole, base.tell() if seekable else 0))
            size += len(text)
            if size >= CHUNK_BYTES or not seekable:
                yield chunk
                chunk, size = [], 0
    except DAMAGES:
        yield chunk
        raise
    yield chunk


def _raw(file: BinaryIO) -> io.RawIOBase:
    return file  # type: ignore[return-value]  # a BytesIO reads as a raw file does
