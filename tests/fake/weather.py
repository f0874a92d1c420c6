"""What goes wrong, how often, and for how long: drawn from the seed.

Each seed has only some of the faults, and those at rates of its own: where everything goes wrong at
once, nothing is ever reached that needs a few calls to go well first.
"""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Final, Literal

Fault = Literal[
    "request lost",
    "request late",
    "request twice",
    "answer lost",
    "answer late",
    "answer twice",
    "read error",
    "in flight",
    "id in process",
    "too many batches",
    "incomplete",
    "no leader",
    "no responders",
    "message of a page lost",
]

FAULTS: Final[tuple[Fault, ...]] = Fault.__args__  # type: ignore[attr-defined]  # (it has them)

LATE_S: Final = 12.0
"""Later than this nothing comes."""


class Weather:
    """Random faults while it is `bad`; `latency_s` is that of one message on its way."""

    def __init__(
        self, random: Random, *, faults: tuple[Fault, ...] = FAULTS, badness: float = 0.0
    ) -> None:
        self.random = random
        self.bad = badness > 0
        chosen = [each for each in faults if random.random() < 0.5] if badness else []
        self.rates = {each: badness * random.random() for each in chosen}
        self.latency_s = random.choice([0.0001, 0.0005, 0.003])
        self.struck: Counter[str] = Counter()

    def strikes(self, fault: Fault) -> bool:
        """Whether this fault happens here and now."""
        if not self.bad:
            return False
        rate = self.rates.get(fault)
        if rate is None or self.random.random() >= rate:
            return False
        self.struck[fault] += 1
        return True

    def latency(self) -> float:
        """Seconds that a message takes."""
        return self.latency_s * (0.5 + self.random.expovariate(1.0))

    def lateness(self) -> float:
        """Seconds that something takes that comes too late, or not yet."""
        return self.random.choice([0.01, 0.3, 3.0, LATE_S]) * self.random.random()
