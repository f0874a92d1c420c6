"""What publishes and batches cost on this server, learnt while they go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(slots=True)
class Costs:
    """What publishes and batches have lately cost, in seconds (moving averages).

    `side_by_side`: one more publish when several are under way; the server takes one after the
    other. `batch_fixed`: a batch whatever is in it. Starts with figures measured on a local SSD.
    Only clean samples count: publishes without a batch between them, a batch small enough for its
    fixed cost to show.
    """

    side_by_side: float = 0.000_3
    batch_fixed: float = 0.003

    OF_ONE_ALONE: ClassVar[float] = 0.6
    """What one more publish side by side costs, as a part of one that is alone."""
    BATCH_EVENT: ClassVar[float] = 0.000_02
    BREAK_EVEN_MAX: ClassVar[int] = 12
    """A busy worker counts its own time as the batch's: unbounded, it would stop batching."""
    CLEAN_BATCH_MAX: ClassVar[int] = 64

    def break_even(self) -> int:
        """From how many waiting events on one batch is cheaper than as many plain publishes."""
        gain = max(self.side_by_side - self.BATCH_EVENT, 0.000_01)
        return max(2, min(self.BREAK_EVEN_MAX, int(self.batch_fixed / gain) + 1))

    def saw_alone(self, seconds: float) -> None:
        """Counts one plain publish that had the store to itself."""
        self.saw_next(seconds * self.OF_ONE_ALONE)

    def saw_next(self, seconds: float) -> None:
        """Counts one plain publish that was answered so long after the one before it."""
        self.side_by_side += 0.02 * (min(seconds, 0.1) - self.side_by_side)

    def saw_batch(self, seconds: float, events: int) -> None:
        """Counts one batch, with the time that its writers were waited for."""
        if events <= self.CLEAN_BATCH_MAX:
            fixed = max(0.000_2, seconds - events * self.BATCH_EVENT)
            self.batch_fixed += 0.05 * (min(fixed, 0.1) - self.batch_fixed)
