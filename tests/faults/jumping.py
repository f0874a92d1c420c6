"""`convo` with a clock that jumps: by hours and years, forwards and backwards, some times a second.

What the wall clock says is kept in events and asked by the sweeper; nothing else may depend on it.
The jumps are this process's own: the machine's clock is everybody's.

    python -m tests.faults.jumping ...     as `convo ...`
"""

from __future__ import annotations

import random
import time
from datetime import datetime, timedelta
from unittest.mock import patch

import eventsourcing.domain

JUMPS = (
    timedelta(0),
    timedelta(hours=1),
    timedelta(hours=-1),
    timedelta(days=2),
    timedelta(days=-2),
    timedelta(days=4_000),
    timedelta(days=-4_000),
)
SPELL_S = 0.3

_true_time = eventsourcing.domain.datetime_now_with_tzinfo


def jumping_time() -> datetime:
    """The time as this process believes it to be."""
    spell = int(time.monotonic() / SPELL_S)
    return _true_time() + random.Random(spell).choice(JUMPS)


FAULT = patch.object(eventsourcing.domain, "datetime_now_with_tzinfo", jumping_time)

if __name__ == "__main__":
    from services.cli import main

    with FAULT:
        main()
