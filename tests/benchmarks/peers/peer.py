"""What a peer is: something to append a message to, and to read the last fifty from."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from tests.benchmarks.texts import text

WINDOW = 50
READ_OF = 200
"""Messages in a conversation whose last `WINDOW` are read."""

CONVERSATIONS = 16
"""So many of them are read in turn."""

ROTATE = 200
"""A writer begins a new conversation after so many messages: some libraries load all of one to
append to it, and nobody should be measured by the length of a run."""

CONTENT = text(1)
MESSAGE = {"role": "user", "content": CONTENT, "id": "m-00000001"}
BODY = json.dumps(MESSAGE).encode()

Call = Callable[[], object]
AsyncCall = Callable[[], Awaitable[object]]


class NotHere(Exception):
    """The peer cannot be measured on this machine; the text says what to install."""


class Peer(ABC):
    """One peer, up and empty. What it starts goes on `up` and ends with it."""

    def __init__(self, folder: Path, up: ExitStack) -> None:
        self.folder = folder
        self.up = up
        self.servers: list[int] = []
        """Process ids whose CPU and memory (with their children's) are the server's."""

    @abstractmethod
    def fill(self) -> None:
        """Makes the conversations `r-0` to `r-15`, of `READ_OF` messages each."""


class ThreadedPeer(Peer):
    """A peer whose calls block: each writer is a thread."""

    @abstractmethod
    def writer(self, number: int) -> Call:
        """Returns what appends one message and comes back when it is on disk."""

    @abstractmethod
    def reader(self, number: int) -> Call:
        """Returns what reads the last `WINDOW` messages and gives their number."""


class AsyncPeer(Peer):
    """A peer whose calls are awaited: each writer is a task."""

    @abstractmethod
    def writer(self, number: int) -> AsyncCall:
        """As ThreadedPeer's."""

    @abstractmethod
    def reader(self, number: int) -> AsyncCall:
        """As ThreadedPeer's."""


class Rotor:
    """The conversation to append to next, and the message's number in it."""

    def __init__(self, begin: Callable[[], str]) -> None:
        self._begin = begin
        self._conversation = ""
        self.number = ROTATE

    def __call__(self) -> str:
        if self.number >= ROTATE:
            self._conversation, self.number = self._begin(), 0
        self.number += 1
        return self._conversation


def read_name(number: int) -> str:
    """The conversation that the reader of this number reads."""
    return f"r-{number % CONVERSATIONS}"
