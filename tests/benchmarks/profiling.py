"""Where the worker's time goes: py-spy where it is installed, else cProfile in the worker itself.

py-spy looks at the running worker from outside, 500 times a second, at no cost to it that matters;
cProfile slows it down two- to threefold, and calls more than the rest.
"""

from __future__ import annotations

import asyncio
import io
import pstats
import shutil
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Protocol

_LINES = 45
_SAMPLES_PER_S = 500


class NoProfile(Exception):
    """The profiler did not do what it was asked."""


class Profiler(Protocol):
    """`interpreter` starts the worker in place of Python alone; `detach` ends the profiling, and
    the file is complete once the worker has ended."""

    @property
    def interpreter(self) -> tuple[str, ...]: ...

    async def attach(self, pid: int) -> None: ...

    async def detach(self) -> None: ...

    def summary(self) -> str: ...


def choose(file: Path | None) -> Profiler:
    """The profiler to use for `file`; one that does nothing for None."""
    if file is None:
        return Nothing()
    spy = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    return Spy(spy, file) if spy else InWorker(file)


class Nothing:
    """No profile."""

    interpreter: tuple[str, ...] = ()

    async def attach(self, pid: int) -> None: ...

    async def detach(self) -> None: ...

    def summary(self) -> str:
        return ""


class Spy:
    """py-spy: a flame graph (.svg), or one stack per line with its number of samples."""

    interpreter: tuple[str, ...] = ()

    def __init__(self, program: str, file: Path) -> None:
        self._program = program
        self._file = file
        self._process: asyncio.subprocess.Process | None = None

    async def attach(self, pid: int) -> None:
        form = "flamegraph" if self._file.suffix == ".svg" else "raw"
        self._process = await asyncio.create_subprocess_exec(
            *(self._program, "record", "--pid", str(pid), "--output", str(self._file)),
            *("--format", form, "--rate", str(_SAMPLES_PER_S), "--duration", "unlimited"),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )

    async def detach(self) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGINT)
        _, said = await self._process.communicate()
        if self._process.returncode:
            raise NoProfile(f"py-spy failed: {said.decode(errors='replace').strip()[-500:]}")

    def summary(self) -> str:
        """The functions with most samples, of their own and with what they call."""
        if self._file.suffix == ".svg":
            return f"Flame graph: {self._file}"
        own: Counter[str] = Counter()
        total: Counter[str] = Counter()
        for line in self._file.read_text(encoding="utf-8").splitlines():
            stack, _, samples = line.rpartition(" ")
            frames = [_without_line(frame) for frame in stack.split(";")]
            own[frames[-1]] += int(samples)
            for frame in set(frames):
                total[frame] += int(samples)
        everything = own.total() or 1
        lines = [f"  own  total  of {everything} samples in {self._file}"]
        lines += [
            f"{own[frame] / everything:5.1%}  {samples / everything:5.1%}  {frame}"
            for frame, samples in total.most_common()
            if own[frame] or samples < everything  # not the frames that everything stands on
        ]
        return "\n".join(lines[:_LINES])


class InWorker:
    """cProfile: statistics for `python -m pstats FILE`."""

    def __init__(self, file: Path) -> None:
        self._file = file.absolute()
        self.interpreter = (sys.executable, "-P", "-m", "cProfile", "-o", str(self._file))

    async def attach(self, pid: int) -> None: ...

    async def detach(self) -> None: ...

    def summary(self) -> str:
        if not self._file.exists():
            raise NoProfile(f"the worker ended without writing {self._file}")
        text = io.StringIO()
        stats = pstats.Stats(str(self._file), stream=text)
        stats.sort_stats("tottime").print_stats(_LINES)
        return text.getvalue()


def _without_line(frame: str) -> str:
    """`name (module.py:12)` as `name (module.py)`, so that the lines of a function add up."""
    name, colon, line = frame.rpartition(":")
    return f"{name})" if colon and line.rstrip(")").isdigit() else frame
