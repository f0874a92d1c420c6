"""Becomes another program and ties its life to its parent's: `python tether.py PARENT ARGV...`.

The kernel kills the program (SIGKILL) when the parent ends, however it ends. Linux only
(PR_SET_PDEATHSIG, prctl(2)); elsewhere the program is merely started. Standard library alone, so
that it starts in a few milliseconds under `python -I -S`; the process id stays the same.
"""

from __future__ import annotations

import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def tether(parent: int) -> bool:
    """Asks to be killed with the parent; False when the parent was gone before that could hold."""
    if not sys.platform.startswith("linux"):
        return True
    import ctypes  # noqa: PLC0415 - needed on Linux alone

    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    return os.getppid() == parent


def main(argv: list[str]) -> int:
    """Never returns when all goes well."""
    parent, program = int(argv[0]), argv[1:]
    if not tether(parent):
        return 1
    try:
        os.execvp(program[0], program)  # noqa: S606 - becoming that program is what this is for
    except OSError as error:
        print(f"{program[0]} cannot be started: {error.strerror}", file=sys.stderr)  # noqa: T201 - no logging before exec
        return 127


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
