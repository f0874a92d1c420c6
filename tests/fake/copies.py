"""What each replica has of the streams; the first one leads, and one that is alone has it all."""

from __future__ import annotations

from .stream import Kept, Stream


class Copies:
    """The copies of so many replicas, with what they have lost."""

    def __init__(self, replicas: int) -> None:
        self.replicas = replicas
        self.holes: set[tuple[int, int]] = set()  # (replica, sequence): its copy has lost that one
        self.unreadable: dict[int, int] = {}  # by replica: where its copy cannot be read any more
        self._applied: dict[tuple[str, int], int] = {}

    def upto(self, stream: Stream, replica: int) -> int:
        """How many messages a replica shows."""
        if self.replicas == 1:
            return len(stream.log)
        return stream.committed if replica == 0 else self._applied.get((stream.name, replica), 0)

    def readable_upto(self, stream: Stream, replica: int) -> int:
        """How many of them somebody sees who reads them one after the other."""
        upto = self.upto(stream, replica)
        return min(upto, self.unreadable.get(replica, upto + 1) - 1)

    def has(self, replica: int, message: Kept) -> bool:
        """Whether a replica still has one of the messages that it shows."""
        return (replica, message.seq) not in self.holes

    def catch_up(self, stream: Stream, replica: int, seq: int) -> bool:
        """A replica has applied what is there up to a sequence; whether that is news."""
        key = (stream.name, replica)
        if seq <= self._applied.get(key, 0):
            return False
        self._applied[key] = seq
        return True
