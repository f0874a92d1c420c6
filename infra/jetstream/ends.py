"""Where the subjects of a stream end, as far as this process knows: a bounded memory.

What is remembered saves asking. Nothing rests on it: an append is conditional on the end that it
was made on, and a read begins behind a place that is known to be early enough.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Iterable
from typing import NamedTuple

from infra.jetstream.envelope import Tail

ENDS_MAX = 10_000
"""Subjects whose ends are remembered, about 1 KB each."""

MARKS_MAX = 8
"""Places of one subject that are remembered beside its end."""


class Mark(NamedTuple):
    """An event with this version is at this stream sequence."""

    version: int
    seq: int


START = Mark(-1, 0)
"""Before every event."""


class End:
    """What is remembered of one subject; kept while anyone holds it.

    `tail`: where to append, None when that has to be asked. `last`: the last event known of.
    `marks`: other versions that somebody read on from, with their places. `busy`: somebody is
    appending, and `waiting` are those who do it next.
    """

    __slots__ = ("busy", "holders", "last", "marks", "tail", "waiting")

    def __init__(self) -> None:
        self.holders = 0
        self.busy = False
        self.waiting: deque[asyncio.Future[None]] = deque()
        self.tail: Tail | None = None
        self.last = START
        self.marks: dict[int, int] = {}

    def saw(self, version: int, seq: int) -> None:
        """Counts an event that may be the subject's last one."""
        if version > self.last.version:
            self.last = Mark(version, seq)

    def mark(self, version: int, seq: int) -> None:
        """Remembers a place; the one that was marked first is forgotten first."""
        if version not in self.marks:
            self.marks[version] = seq
            if len(self.marks) > MARKS_MAX:
                del self.marks[next(iter(self.marks))]

    def around(self, version: int) -> tuple[Mark, Mark | None]:
        """The nearest known places at or before a version (START without one), and behind it."""
        low, high = START, None
        for mark in [*(Mark(*item) for item in self.marks.items()), self.last]:
            if low.version < mark.version <= version:
                low = mark
            elif mark.version > version and (high is None or mark.version < high.version):
                high = mark
        return low, high

    async def seize(self) -> None:
        """Waits for one's turn to append."""
        if not self.busy:
            self.busy = True
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.release()
            raise

    def release(self) -> None:
        """Gives the turn to the next who waits for it."""
        while self.waiting:
            turn = self.waiting.popleft()
            if not turn.done():
                turn.set_result(None)  # `busy` goes over to them
                return
        self.busy = False


class Ends:
    """The ends of a stream's subjects, the least used forgotten first."""

    def __init__(self) -> None:
        self._ends: OrderedDict[str, End] = OrderedDict()

    def __len__(self) -> int:
        return len(self._ends)

    def hold(self, subject: str) -> End:
        """The subject's end, kept until it is let go as often as it is held."""
        end = self._ends.get(subject)
        if end is None:
            end = self._ends[subject] = End()
        else:
            self._ends.move_to_end(subject)
        end.holders += 1
        return end

    def let_go(self, ends: Iterable[End]) -> None:
        """Gives ends back; what nobody holds may be forgotten from now on."""
        for end in ends:
            end.holders -= 1
        while len(self._ends) > ENDS_MAX:
            subject, end = self._ends.popitem(last=False)
            if end.holders:  # two tails of one subject must never meet in a batch
                self._ends[subject] = end
                return

    def forget(self) -> None:
        """Forgets what nobody holds."""
        self._ends = OrderedDict((s, end) for s, end in self._ends.items() if end.holders)
