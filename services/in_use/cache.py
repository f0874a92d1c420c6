"""The conversations in memory, within so many bytes: least recently used out first, never a source.

What somebody waits for stays, whatever it takes.
"""

from __future__ import annotations

from collections import OrderedDict

from services.in_use.conversation import InUse

_ENTRY_BYTES = 2_000


class Cache:
    """The conversations in memory, by their keys."""

    def __init__(self, bytes_max: int) -> None:
        self.entries: OrderedDict[str, InUse] = OrderedDict()  # least recently used first
        self.weight = 0
        self._bytes_max = bytes_max

    def used(self, key: str) -> InUse | None:
        """A conversation that is wanted now, None when it has to be loaded."""
        entry = self.entries.get(key)
        if entry is not None:
            self.entries.move_to_end(key)
        return entry

    def add(self, entry: InUse) -> None:
        """Takes in one that was not there."""
        self.entries[entry.key] = entry
        entry.weight = _ENTRY_BYTES
        self.weight += entry.weight
        self.shrink()

    def drop(self, entry: InUse) -> None:
        """Forgets a conversation; appends still under way on it are told as they settle."""
        if not entry.dropped:
            entry.dropped = True
            if self.entries.get(entry.key) is entry:
                del self.entries[entry.key]
            self.weight -= entry.weight

    def weigh(self, entry: InUse) -> None:
        """Counts an entry as it is now."""
        if entry.dropped:
            return
        weight = _ENTRY_BYTES + entry.view.size_bytes
        if entry.conversation is not None:
            weight += entry.conversation.size_bytes
        self.weight += weight - entry.weight
        entry.weight = weight
        if self.weight > self._bytes_max:
            self.shrink()

    def shrink(self) -> None:
        """Forgets the least recently used conversations that nobody waits for."""
        if self.weight <= self._bytes_max:
            return
        for entry in list(self.entries.values()):
            if not entry.busy:
                self.drop(entry)
                if self.weight <= self._bytes_max * 0.9:
                    return
