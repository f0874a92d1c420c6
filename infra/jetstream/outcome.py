"""What the store's answers mean: the only place that interprets answers and error codes.

Measured on nats-server 2.15.1, R1 and R3; the codes are JetStream's `err_code`s. An append is
one message, or one atomic batch: what is decided here holds for all of it.

- an acknowledgement is `Stored`: on disk, with its sequence;
- 10071 wrong last sequence, 10164 the same while another write is in flight, 10201 duplicate in a
  batch: `ReadBack`. Ours may be stored already (a repeated write), or somebody else's event is
  there, or the server failed to read; the code does not tell;
- 10158 and 10210 too many batches in flight, 10176 batch incomplete (`Incomplete`), 10008, 10009,
  10074 no leader or no resources yet, no responders, not sent at all: `Retry`. Nothing was written;
- 10077, 10023, 10047, 10002 no room in the stream, the server or the account, 10109 sealed: `Full`.
  Nothing was written, nor will be until there is room;
- 10053, 10054, 10097 message or headers too large, 10199 batch too large, 10174 to 10179 and 10200
  not a batch that this stream takes: `Refused` as it stands;
- no answer in time, connection lost, any other code: `ReadBack`, unknown until the subject was
  read.

Of the answers to reads: 10037 and a Direct Get's 404 say that there is no such message (`absent`,
`is_found`), 10059 that there is no such stream (`unmade`). Any other error says nothing about what
is there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nats import errors as nats_errors

from infra.jetstream.errors import StoreUnavailable, reason


@dataclass(frozen=True, slots=True)
class Stored:
    """Every event of the append is on disk; `seq` is the stream sequence of the last one."""

    seq: int


@dataclass(frozen=True, slots=True)
class ReadBack:
    """Only reading the subject behind the expected sequence tells. `unknown`: nobody answered."""

    reason: str
    unknown: bool


@dataclass(frozen=True, slots=True)
class Retry:
    """Not written; the same events may be sent again after a pause."""

    reason: str


@dataclass(frozen=True, slots=True)
class Incomplete(Retry):
    """Not written: a message of the batch got lost, or was refused without an answer; or, to a
    commit that came twice, written the first time."""


@dataclass(frozen=True, slots=True)
class Full:
    """Not written; the store takes no more until there is room."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Not written, and never will be as it stands."""

    reason: str


Outcome = Stored | ReadBack | Retry | Full | Refused

_READ_BACK = frozenset({10071, 10164, 10201})
_RETRY = frozenset({10158, 10210, 10008, 10009, 10074})
_INCOMPLETE = 10176
_FULL = frozenset({10077, 10023, 10047, 10002, 10109})
_NO_MESSAGE = 10037
_NO_STREAM = 10059
_STATUS_NOT_FOUND = "404"
_REFUSED = frozenset({10053, 10054, 10097, 10174, 10175, 10177, 10179, 10199, 10200})


def of_answer(answer: Mapping[str, Any]) -> Outcome:
    """The outcome that a PubAck (JSON, ADR-22 and ADR-50) stands for.

    A code that is not in the table reads as unknown: the subject then tells what happened.
    """
    error = answer.get("error")
    if error is None:
        seq = answer.get("seq", 0)
        if isinstance(seq, int) and seq > 0:
            return Stored(seq)
        return ReadBack(f"an acknowledgement without a sequence: {dict(answer)}", unknown=True)
    code = error.get("err_code", 0)
    said = f"{error.get('description', 'no description')} (JetStream error {code})"
    if code in _READ_BACK:
        return ReadBack(said, unknown=False)
    if code == _INCOMPLETE:
        return Incomplete(said)
    if code in _RETRY:
        return Retry(said)
    if code in _FULL:
        return Full(said)
    if code in _REFUSED:
        return Refused(said)
    return ReadBack(said, unknown=True)


def of_exception(error: Exception, *, sent: bool) -> Outcome:
    """The outcome that a failed request stands for; `sent`: bytes may have left this process."""
    if isinstance(error, nats_errors.MaxPayloadError):
        return Refused("a message is over the server's max_payload")
    if isinstance(error, nats_errors.NoRespondersError):
        return Retry("no stream listens on the subject (the server is starting, or has no leader)")
    return ReadBack(reason(error), unknown=True) if sent else Retry(reason(error))


def absent(answer: Mapping[str, Any]) -> bool:
    """Whether an answer of JetStream's API says that the message asked for does not exist."""
    return _code(answer) == _NO_MESSAGE


def unmade(answer: Mapping[str, Any]) -> bool:
    """Whether an answer of JetStream's API says that the stream does not exist."""
    return _code(answer) == _NO_STREAM


def is_found(headers: Mapping[str, Any] | None) -> bool:
    """Whether a Direct Get (ADR-31) was answered with a message, by the answer's headers.

    False when there is none. Raises StoreUnavailable for any other status.
    """
    status = (headers or {}).get("Status")
    if status in (None, _STATUS_NOT_FOUND):
        return status is None
    raise StoreUnavailable(f"Direct Get answered {status}: try again")


def _code(answer: Mapping[str, Any]) -> int:
    code: int = (answer.get("error") or {}).get("err_code", 0)
    return code
