"""Messages on their way between a client and the fake, and the connections that they are on."""

from __future__ import annotations

from typing import NamedTuple, Protocol

MAX_PAYLOAD = 8_000_000

PING = "PING"
"""Stands for the protocol's own: what was sent before is dealt with when it is answered."""

Headers = dict[str, str]


class Wire(NamedTuple):
    """A message on a connection; `to` is the subject that it goes to."""

    to: str
    subject: str
    reply: str
    headers: Headers | None
    body: bytes
    again: bool = False
    """Whether it has come before: nothing is made up about it then."""


class Connection(Protocol):
    """Where answers go; `epoch` changes with each reconnection."""

    name: str
    epoch: int

    def hears(self, subject: str) -> bool:
        """Whether somebody there has subscribed to a subject."""

    def deliver(self, epoch: int, wire: Wire) -> None:
        """Sends a message to whoever listens on its `to`."""

    def lose(self, back_in_s: float) -> None:
        """The connection breaks."""
