"""`convo up` as it is, but that a child which was killed comes back within half a second.

The pause between restarts grows with the deaths in a row, to ten seconds; fault programs kill more
often than any fault would, and would only measure that.

    python -m tests.faults.run_up WORKERS PROGRAM     settings by environment

PROGRAM is the module that the services run: `services.cli`, or one that does the same with a fault
of its own, which holds for `convo up` too (its `FAULT`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import importlib
import sys
from collections.abc import Sequence
from unittest.mock import patch

from infra.settings import Settings
from infra.supervision import Patience, Supervisor
from services import up
from services.cli import logs

BESIDE = ("audit", "analytics", "directory")
"""What runs beside the workers: all that keeps something of the ledger."""

PATIENCE = Patience(longest_s=0.1, failing_after=1_000)
"""However often something was killed before, it is started again as after a first time."""


def main(workers: str, program: str) -> int:
    def with_fault(command: Sequence[str]) -> list[str]:
        return [program if word == "services.cli" else word for word in command]

    settings = Settings()
    logs.configure(settings)
    beside = {name: with_fault(up.BESIDE[name]) for name in BESIDE}
    fault = getattr(importlib.import_module(program), "FAULT", contextlib.nullcontext())
    with fault, patch.object(up, "Supervisor", functools.partial(Supervisor, patience=PATIENCE)):
        return asyncio.run(
            up.up(settings, workers=int(workers), worker=with_fault(up.WORKER), beside=beside)
        )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
