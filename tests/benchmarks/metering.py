"""What a process has used, read from Linux's /proc (proc(5)): CPU time and memory."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_seconds(pid: int) -> float:
    """CPU time of all its threads so far, user and system, in steps of 10 ms."""
    after_name = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS_PER_S


def peak_memory_mb(pid: int) -> float:
    """The most resident memory it had since `forget_peak_memory`, in MB (10^6 bytes)."""
    return _status_mb(pid, "VmHWM:")


def memory_mb(pid: int) -> float:
    """Its resident memory at the moment, in MB (10^6 bytes)."""
    return _status_mb(pid, "VmRSS:")


def _status_mb(pid: int, name: str) -> float:
    for line in Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024 / 1e6
    raise ProcessLookupError(f"process {pid} has ended")


def forget_peak_memory(pid: int) -> None:
    """Starts its peak anew; where that is not allowed the peak is that of its whole life."""
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5", encoding="ascii")


def disk_mb(folder: Path) -> float:
    """What the files in a folder hold, in MB (10^6 bytes)."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6


def load_average() -> float:
    """How many processes wanted a CPU, on average over the last minute."""
    return os.getloadavg()[0]


def tree(pid: int) -> list[int]:
    """A process and all that descend from it, as they are now."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            after_name = (folder / "stat").read_bytes().rpartition(b")")[2].split()
            children.setdefault(int(after_name[1]), []).append(int(folder.name))
    found = [pid]
    for each in found:
        found += children.get(each, ())
    return found
