"""How an event travels: one JetStream message per event, packed and unpacked here only.

Body: the stored event's state, byte for byte. Headers, the same for every application:

- `Event-Type`: the topic of the event class;
- `Event-Version`: the originator's own event number;
- `Event-Hash`: lower-case hex SHA-256(previous event's hash as 32 raw bytes ‖ body), the
  previous hash of an originator's first event being 32 zero bytes. Whoever can read the
  subject can recompute the chain;
- `Event-Write`: an id of the append, on an event that was not written in a batch (a batch has
  its `Nats-Batch-Id`). Tells a writer its own event from an equal one of somebody else.

JetStream adds its own when a message is read: `Nats-Sequence`, `Nats-Subject`,
`Nats-Time-Stamp` (ADR-31), and keeps the ones a batch was written with (ADR-50).
"""

from __future__ import annotations

import re
from base64 import b64decode
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import Any, NamedTuple

from infra.bulk import Delivered
from infra.jetstream.errors import LedgerDamaged

EVENT_TYPE = "Event-Type"
EVENT_VERSION = "Event-Version"
EVENT_HASH = "Event-Hash"
WRITE_ID = "Event-Write"
EXPECTED_LAST_SUBJECT_SEQUENCE = "Nats-Expected-Last-Subject-Sequence"
BATCH_ID = "Nats-Batch-Id"
BATCH_SEQUENCE = "Nats-Batch-Sequence"
BATCH_COMMIT = "Nats-Batch-Commit"

# The headers as our own writers order them, and with them whatever else they and the server set.
_USUAL_BLOCK = re.compile(
    rb"NATS/1\.0\r\nEvent-Type: ([!-~]+)\r\nEvent-Version: ([0-9]+)\r\n"
    rb"Event-Hash: ([0-9a-fA-F]{64})\r\n(?:(?:Event-Write|Nats-[A-Za-z-]+): [!-~]+\r\n)*\r\n"
)
# The same on the wire, of an event that a consumer delivers: stream sequence and time out of the
# short form of the acknowledgement subject (ADR-15), then what it is, and of which batch.
_USUAL_MESSAGE = re.compile(
    rb"HMSG ([!-~]+) ([0-9]+) \$JS\.ACK\.[^. \r]+\.[^. \r]+\.[0-9]+\.([0-9]{1,19})\.[0-9]+"
    rb"\.([0-9]{1,11})([0-9]{9})\.[0-9]+ ([0-9]{1,9}) ([0-9]{1,9})\r\n"
    rb"NATS/1\.0\r\nEvent-Type: ([!-~]+)\r\nEvent-Version: ([0-9]{1,19})\r\n"
    rb"Event-Hash: ([0-9a-fA-F]{64})\r\n(?:Event-Write: [!-~]+\r\n)?"
    rb"(?:Nats-Batch-Id: ([!-~]+)\r\nNats-Batch-Sequence: [0-9]+\r\n)?"
    rb"(?:Nats-Expected-Last-Subject-Sequence: [0-9]+\r\n)?"
    rb"(Nats-Batch-Commit: [!-~]+\r\n)?\r\n"
)
_SEQUENCE = b"\r\nNats-Sequence: "
_OF_A_BATCH = f"\r\n{BATCH_ID}:".encode()
_ENDS_A_BATCH = f"\r\n{BATCH_COMMIT}:".encode()
_ENDING = 2

GENESIS = bytes(32)
"""The hash before an originator's first event."""

HEADER_BYTES_MAX = 512
"""Room to leave for headers, names included, when a body is checked against a size limit."""


@dataclass(slots=True, eq=False)
class Tail:
    """Where one subject ends, as its writer sees it.

    `seq` is the stream sequence of the last message known to be stored (0: none), and what the
    next write expects; `stored` is the hash of that message. `version` and `digest` run ahead of
    it: they are those of the last event packed for this subject, stored or on its way. Once a write
    on it failed the tail is `broken` for good: load a new one.
    """

    subject: str
    seq: int = 0
    version: int = 0
    digest: bytes = GENESIS
    stored: bytes = GENESIS
    in_flight: bool = False
    broken: bool = False


class Message(NamedTuple):
    """One event on its way to the store; `previous` is the hash of the event it goes behind."""

    tail: Tail
    previous: bytes
    topic: str
    version: int
    digest: bytes
    body: bytes

    def lines(self) -> str:
        """The event's own headers as they travel: a line each."""
        return (
            f"{EVENT_TYPE}: {self.topic}\r\n{EVENT_VERSION}: {self.version}\r\n"
            f"{EVENT_HASH}: {self.digest.hex()}\r\n"
        )

    def headers(self) -> dict[str, str]:
        """The event's own headers, a new dict at each call."""
        return {
            EVENT_TYPE: self.topic,
            EVENT_VERSION: str(self.version),
            EVENT_HASH: self.digest.hex(),
        }


class Recorded(NamedTuple):
    """One event as the store has it: `seq` is its stream sequence, `time` the store's.

    `follows` is the sequence of the event before it on its subject; 0 where it does not say.
    """

    seq: int
    subject: str
    topic: str
    version: int
    digest: str
    time: str
    body: bytes
    follows: int = 0


Placed = tuple[Recorded, bytes | None, bool]
"""An event, the id of the batch that it was written in, and whether more of that batch follows."""


def chain(previous: bytes, body: bytes) -> bytes:
    """The hash of an event with `body` that follows an event with hash `previous`."""
    return sha256(previous + body).digest()


def pack(tail: Tail, topic: str, version: int, body: bytes) -> Message:
    """Puts an event behind `tail`, moving its `version` and `digest` ahead to this event."""
    previous = tail.digest
    digest = chain(previous, body)
    tail.version = version
    tail.digest = digest
    return Message(tail, previous, topic, version, digest, body)


def unpack(headers: Mapping[str, str] | None, body: bytes) -> Recorded:
    """Reads an event out of a message that came by Direct Get.

    Raises LedgerDamaged when the message is not one that `pack` made.
    """
    try:
        if headers is None:
            raise KeyError(EVENT_TYPE)
        if len(bytes.fromhex(headers[EVENT_HASH])) != len(GENESIS):
            raise ValueError(f"{EVENT_HASH} {headers[EVENT_HASH]!r}")
        return Recorded(
            int(headers["Nats-Sequence"]),
            headers["Nats-Subject"],
            headers[EVENT_TYPE],
            int(headers[EVENT_VERSION]),
            headers[EVENT_HASH],
            headers["Nats-Time-Stamp"],
            body,
            int(headers.get(EXPECTED_LAST_SUBJECT_SEQUENCE, "0")),
        )
    except (KeyError, ValueError) as error:
        raise _foreign(headers or {}, error) from error


def stored_headers(message: Mapping[str, Any]) -> dict[str, str]:
    """The headers of the `message` object of a `$JS.API.STREAM.MSG.GET` reply."""
    return dict(header_lines(b64decode(message.get("hdrs", ""))))


def unpack_stored(message: Mapping[str, Any]) -> Recorded:
    """Reads an event out of the `message` object of a `$JS.API.STREAM.MSG.GET` reply."""
    headers = stored_headers(message)
    headers["Nats-Sequence"] = str(message["seq"])
    headers["Nats-Subject"] = message["subject"]
    headers["Nats-Time-Stamp"] = message["time"]
    return unpack(headers, b64decode(message.get("data", "")))


def unpack_delivered(subject: str, reply: str, headers: Mapping[str, str], body: bytes) -> Recorded:
    """Reads an event out of a message that a consumer delivered.

    `reply` is its acknowledgement subject, `$JS.ACK.…`, which tells the stream sequence and the
    time. Raises LedgerDamaged like `unpack`.
    """
    seq, time = _place(reply)
    added = {"Nats-Sequence": str(seq), "Nats-Subject": subject, "Nats-Time-Stamp": time}
    return unpack({**headers, **added}, body)


def unpack_in_bulk(message: Delivered) -> Recorded:
    """The same of a message that came in bulk. Raises LedgerDamaged, or ValueError for bytes that
    are no text."""
    subject, reply = message.subject.decode(), message.reply.decode()
    found = _USUAL_BLOCK.fullmatch(message.headers)
    if found is None:  # another order, or something of somebody else
        headers = dict(header_lines(message.headers))
        return unpack_delivered(subject, reply, headers, message.body)
    topic, version, digest = found.groups()
    seq, time = _place(reply)
    return Recorded(seq, subject, topic.decode(), int(version), digest.decode(), time, message.body)


def read_in_bulk(data: bytes, place: int, sid: bytes) -> tuple[list[Placed], int]:
    """Reads the events that a consumer delivered for a subscription out of what came from a socket.

    From `place` on, as far as they are whole and look as usual; returns them and where the rest
    begins.
    """
    read: list[Placed] = []
    size = len(data)
    while (found := _USUAL_MESSAGE.match(data, place)) is not None:
        subject, of, seq, at, rest, head, total, topic, version, digest, batch, ends = (
            found.groups()
        )
        start = found.end()
        end = start + int(total) - int(head)
        if of != sid or end + _ENDING > size:
            break
        time = f"{_second(at)}.{rest.decode()}Z"
        event = Recorded(
            int(seq),
            subject.decode(),
            topic.decode(),
            int(version),
            digest.decode(),
            time,
            data[start:end],
        )
        read.append((event, batch, batch is not None and ends is None))
        place = end + _ENDING
    return read, place


def is_unfinished(block: bytes) -> bool:
    """Whether a header block is that of a message of a batch, and not of its last one."""
    return _OF_A_BATCH in block and _ENDS_A_BATCH not in block


def batch_of(block: bytes) -> bytes | None:
    """The id of the batch that a header block says its message is of; None where it is of none."""
    _, found, rest = block.partition(_OF_A_BATCH)
    return rest.partition(b"\r\n")[0].strip() if found else None


def sequence_in(block: bytes) -> int:
    """The stream sequence that the header block of a live copy tells. Raises ValueError."""
    start = block.index(_SEQUENCE) + len(_SEQUENCE)
    return int(block[start : block.index(b"\r\n", start)])


def status_of(block: bytes) -> tuple[str, str, dict[str, str]]:
    """What a header block says that is no message's but a status: its code, its text, and more."""
    code, _, said = block.partition(b"\r\n")[0].decode().removeprefix("NATS/1.0 ").partition(" ")
    return code, said, dict(header_lines(block))


def _place(reply: str) -> tuple[int, str]:
    """The stream sequence and the time that an acknowledgement subject tells.

    Raises LedgerDamaged for a subject that is none: no consumer delivered that.
    """
    parts = reply.split(".")
    try:
        seq, _, nanoseconds = parts[5:8] if len(parts) == 9 else parts[7:10]  # long form: ADR-15
        seconds, rest = divmod(int(nanoseconds), 1_000_000_000)
        return int(seq), f"{_second(b'%d' % seconds)}.{rest:09d}Z"
    except (ValueError, OverflowError, OSError) as error:
        raise LedgerDamaged(f"{reply[:200]!r} tells no place in a stream: {error!r}") from error


@lru_cache(16)
def _second(seconds: bytes) -> str:
    return f"{datetime.fromtimestamp(int(seconds), UTC):%Y-%m-%dT%H:%M:%S}"


def sent_under(message: Mapping[str, Any]) -> str:
    """The id under which the `message` object of a `$JS.API.STREAM.MSG.GET` reply was sent.

    Empty when it was not a committer that sent it.
    """
    headers = stored_headers(message)
    return headers.get(BATCH_ID) or headers.get(WRITE_ID, "")


def verify_chain(previous: bytes, events: Iterable[Recorded]) -> bytes:
    """Recomputes the chain over events of one subject, in order; returns the last hash.

    Raises LedgerDamaged at the first event whose hash is not the one that its body gives.
    """
    for event in events:
        previous = chain(previous, event.body)
        if previous.hex() != event.digest:
            raise LedgerDamaged(
                f"version {event.version} of {event.subject} (stream sequence {event.seq}) does "
                f"not fit its hash chain: expected {previous.hex()}, found {event.digest}"
            )
    return previous


def header_lines(raw: bytes) -> Iterable[tuple[str, str]]:
    """The names and values in a message's block of headers, as it is sent and stored."""
    for line in raw.split(b"\r\n")[1:]:
        name, colon, value = line.partition(b":")
        if colon:
            yield name.strip().decode(errors="replace"), value.strip().decode(errors="replace")


def _foreign(headers: Mapping[str, str], error: Exception) -> LedgerDamaged:
    where = (
        f"{headers.get('Nats-Subject', '?')} at stream sequence {headers.get('Nats-Sequence', '?')}"
    )
    return LedgerDamaged(f"the message on {where} is not an event of a ledger: {error!r}")
