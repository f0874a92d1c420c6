"""A NATS connection without a client library: for requests that no library would let through, and
for a first word with a server or a service from outside an event loop."""

from __future__ import annotations

import json
import re
import socket
from collections import deque
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

_MSG = re.compile(rb"MSG (\S+) (\S+) (?:(\S+) )?(\d+)")
_HMSG = re.compile(rb"HMSG (\S+) (\S+) (?:(\S+) )?(\d+) (\d+)")


class Delivered(NamedTuple):
    """One message that came in; `header` is its header block, empty where it has none."""

    subject: bytes
    header: bytes
    body: bytes

    @property
    def no_responders(self) -> bool:
        """Whether it says that nobody listens where the request went."""
        return self.header.startswith(b"NATS/1.0 503")

    def json(self) -> dict[str, Any]:
        """The body as a JSON object."""
        answer: dict[str, Any] = json.loads(self.body)
        return answer


class RawConnection:
    """Speaks the client protocol of NATS over a blocking socket; every wait is bounded (s)."""

    def __init__(self, url: str, *, timeout: float = 10.0) -> None:
        place = urlsplit(url)
        self._socket = socket.create_connection((place.hostname, place.port), timeout)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._reader = self._socket.makefile("rb")
        self.greeting = json.loads(self._reader.readline().removeprefix(b"INFO "))
        options = {"verbose": False, "pedantic": False, "headers": True, "no_responders": True}
        self.send(b"CONNECT " + json.dumps(options).encode() + b"\r\n")
        self._inbox = b"_INBOX.raw.%d" % self.greeting["client_id"]
        self._requests = 0
        self._subscriptions = 0
        self._kept: deque[Delivered] = deque()
        self.subscribe(self._inbox + b".*")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._reader.close()
        self._socket.close()

    def wait_at_most(self, seconds: float) -> None:
        """Bounds every wait from here on."""
        self._socket.settimeout(seconds)

    def send(self, data: bytes) -> None:
        """Sends bytes of the protocol as they are."""
        self._socket.sendall(data)

    def subscribe(self, subject: bytes) -> None:
        """Hears what is published on a subject, from now on."""
        self._subscriptions += 1
        self.send(b"SUB %b %d\r\n" % (subject, self._subscriptions))

    def publish(
        self, subject: bytes, body: bytes, *, reply: bytes = b"", header: bytes | None = None
    ) -> None:
        """Publishes; `header` is the whole header block, sent as it is."""
        reply = reply and reply + b" "
        if header is None:
            line = b"PUB %b %b%d\r\n" % (subject, reply, len(body))
        else:
            size = len(header)
            line = b"HPUB %b %b%d %d\r\n" % (subject, reply, size, size + len(body))
        self.send(line + (header or b"") + body + b"\r\n")

    def request(
        self, subject: str | bytes, body: bytes = b"", *, header: bytes | None = None
    ) -> Delivered:
        """Publishes with a reply subject and returns the first answer."""
        self._requests += 1
        inbox = b"%b.%d" % (self._inbox, self._requests)
        where = subject.encode() if isinstance(subject, str) else subject
        self.publish(where, body, reply=inbox, header=header)
        while True:
            message = self._receive()
            if message.subject == inbox:
                return message
            self._kept.append(message)

    def next(self) -> Delivered:
        """The next message; raises TimeoutError when none comes, ConnectionError for -ERR."""
        return self._kept.popleft() if self._kept else self._receive()

    def _receive(self) -> Delivered:
        while True:
            line = self._line()
            if found := _HMSG.fullmatch(line):
                header_size, size = int(found[4]), int(found[5])
            elif found := _MSG.fullmatch(line):
                header_size, size = 0, int(found[4])
            else:
                continue
            payload = self._reader.read(size + 2)[:-2]
            return Delivered(found[1], payload[:header_size], payload[header_size:])

    def _line(self) -> bytes:
        line = self._reader.readline().rstrip(b"\r\n")
        if line == b"PING":
            self.send(b"PONG\r\n")
        if line.startswith(b"-ERR") or not line:
            raise ConnectionError(line.decode() or "the server closed the connection")
        return line
