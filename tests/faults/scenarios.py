"""Every scenario by name, with its rounds: the long form's, and those of `make test`."""

from __future__ import annotations

import random
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import NamedTuple

from tests.faults import (
    clocks,
    comebacks,
    decoders,
    disk,
    flips,
    full,
    hostile,
    kills,
    links,
    members,
    pauses,
    power,
    replicas,
    virtual,
)
from tests.faults.result import Result


def anywhere() -> str:
    """What needs nothing but loopback and processes can be run everywhere."""
    return ""


class Scenario(NamedTuple):
    """`run` gives the faults; `why_not` says why this machine cannot have them, or nothing.

    `rounds_short`: in `make test`; 0 where it is not a part of that.
    """

    run: Callable[[int, random.Random, Path], Coroutine[None, None, Result]]
    rounds: int
    rounds_short: int
    why_not: Callable[[], str] = anywhere
    replicas: int = 1


SCENARIOS = {
    "seeds": Scenario(virtual.run, 10_000, 50),
    "kills": Scenario(kills.run, 100, 4),
    "comebacks": Scenario(comebacks.run, 10, 0),
    "power cuts": Scenario(power.run, 50, 2, disk.why_not),
    "pauses": Scenario(pauses.run, 20, 2),
    "links": Scenario(links.run, 25, 2),
    "clock jumps": Scenario(clocks.run, 30, 2),
    "disk full": Scenario(full.run, 20, 2, disk.why_not),
    "bit flips": Scenario(flips.run, 50, 3),
    "hostile requests": Scenario(hostile.requests_run, 5_000, 150),
    "decoders": Scenario(decoders.run, 10_000, 300),
    "idle, deaf and slow clients": Scenario(hostile.crowd, 10_000, 300),
    "R3 leader kills": Scenario(replicas.kills, 30, 1, replicas=3),
    "R3 leader pauses": Scenario(replicas.pauses, 10, 1, replicas=3),
    "R3 partitions": Scenario(replicas.partitions, 10, 1, members.why_not, replicas=3),
    "R3 rolling restarts": Scenario(replicas.rolling, 3, 1, replicas=3),
    "R3 bit flips": Scenario(replicas.flips, 10, 1, replicas=3),
}
