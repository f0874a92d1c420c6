"""One stream of the fake: what it holds, what it refuses, what its readers see.

As nats-server 2.15.1 does it (the contract tests compare): a batch is checked against the state
before it, and lies in the stream message by message, before its commit, where readers can see it.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from infra.jetstream.envelope import (
    BATCH_COMMIT,
    BATCH_ID,
    BATCH_SEQUENCE,
    EXPECTED_LAST_SUBJECT_SEQUENCE,
)

from .wire import Headers

MSG_ID = "Nats-Msg-Id"

Refusal = dict[str, Any]


class Sent(NamedTuple):
    """A message on its way into a stream."""

    subject: str
    headers: Headers
    body: bytes


class Kept(NamedTuple):
    """A message in a stream. `time_ns`: since 1970."""

    seq: int
    subject: str
    headers: Headers
    body: bytes
    time_ns: int

    @property
    def size(self) -> int:
        """About what the server counts for it, in bytes."""
        return len(self.subject) + len(self.body) + sum(map(len, self.headers.values()))


def refusal(code: int, description: str, status: int = 400) -> Refusal:
    """The `error` of an answer."""
    return {"code": status, "err_code": code, "description": description}


def matches(pattern: str, subject: str) -> bool:
    """Whether a subject is one of those that a pattern with wildcards stands for."""
    wanted, tokens = pattern.split("."), subject.split(".")
    for place, each in enumerate(wanted):
        if each == ">":
            return len(tokens) > place
        if place >= len(tokens) or each not in ("*", tokens[place]):
            return False
    return len(wanted) == len(tokens)


class Stream:
    """Messages 1, 2, 3 …; `committed` of them are the stream's, what is behind is a batch that is
    being stored."""

    def __init__(self, config: dict[str, Any], created_ns: int) -> None:
        self.config = config
        self.created_ns = created_ns
        self.name: str = config["name"]
        self.log: list[Kept] = []
        self.committed = 0
        self.full = False
        self._by_subject: dict[str, list[int]] = defaultdict(list)
        self._ids: dict[str, int] = {}
        self._last_only = config.get("max_msgs_per_subject", -1) == 1

    @property
    def republished(self) -> tuple[str, str]:
        """The prefix of the subjects of which live copies are sent, and that of the copies."""
        rule = self.config.get("republish") or {"src": "", "dest": ""}
        return rule["src"].removesuffix(">"), rule["dest"].removesuffix(">")

    # -- writing -----------------------------------------------------------------------------------

    def takes(self, subject: str) -> bool:
        """Whether messages on the subject belong here."""
        return any(matches(pattern, subject) for pattern in self.config["subjects"])

    def refusal_of(
        self, messages: Sequence[Sent], in_flight: Iterable[str], *, clustered: bool
    ) -> Refusal | None:
        """What is wrong with one message, or with a batch; None when it may be stored."""
        batch = BATCH_ID in messages[0].headers
        if clustered and not batch and (known := self.duplicate_of(messages[0])):
            return {"duplicate": known}
        seen: set[str] = set()
        for message in messages:
            largest = self.config.get("max_msg_size", -1)
            if 0 < largest < len(message.body):
                return refusal(10054, "message size exceeds maximum allowed")
            if batch and self.duplicate_of(message):
                return refusal(10201, "atomic publish batch contains duplicate message id")
            expected = message.headers.get(EXPECTED_LAST_SUBJECT_SEQUENCE)
            if expected is not None:
                if message.subject in seen or message.subject in in_flight:
                    return refusal(10164, "wrong last sequence")
                last = self.last_seq_of(message.subject, len(self.log))
                if int(expected) != last:
                    return refusal(10071, f"wrong last sequence: {last}")
            seen.add(message.subject)
        if not batch and (known := self.duplicate_of(messages[0])):
            return {"duplicate": known}
        if self.full:
            return refusal(10077, "maximum bytes exceeded", 503)
        return None

    def duplicate_of(self, message: Sent) -> int | None:
        """The sequence of the message that was stored under the same id."""
        return self._ids.get(message.headers.get(MSG_ID, ""))

    def write(self, messages: Iterable[Sent], time_ns: int) -> None:
        """Lays messages behind the others, not yet committed."""
        for message in messages:
            seq = len(self.log) + 1
            headers = dict(message.headers)
            self.log.append(Kept(seq, message.subject, headers, message.body, time_ns))
            self._by_subject[message.subject].append(seq)

    def commit(self) -> int:
        """Makes everything that was written the stream's; returns the last sequence."""
        for message in self.log[self.committed :]:
            if MSG_ID in message.headers:
                self._ids[message.headers[MSG_ID]] = message.seq
        self.committed = len(self.log)
        return self.committed

    def cut(self, seq: int) -> None:
        """Forgets every message behind a sequence: what comes next gets their sequences again."""
        for message in reversed(self.log[seq:]):
            self._by_subject[message.subject].pop()
            self._ids.pop(message.headers.get(MSG_ID, ""), None)
        del self.log[seq:]
        self.committed = min(self.committed, seq)

    # -- reading; `upto`: how many messages the one who answers has -----------------------------

    def at(self, seq: int, upto: int) -> Kept | None:
        """The message with a sequence."""
        return self.log[seq - 1] if 0 < seq <= upto else None

    def last_seq_of(self, pattern: str, upto: int) -> int:
        """The sequence of the last message on a subject or pattern, 0 when there is none."""
        if "*" not in pattern and ">" not in pattern:
            seqs = self._by_subject.get(pattern, ())
            place = bisect_right(seqs, upto)
            return seqs[place - 1] if place else 0
        for seq in range(upto, 0, -1):
            if matches(pattern, self.log[seq - 1].subject):
                return seq
        return 0

    def last(self, pattern: str, upto: int) -> Kept | None:
        """The last message on a subject or pattern."""
        return self.at(self.last_seq_of(pattern, upto), upto)

    def from_seq(self, seq: int, pattern: str, upto: int) -> list[Kept]:
        """All messages on a subject or pattern from a sequence on, oldest first."""
        if "*" not in pattern and ">" not in pattern:
            seqs = self._by_subject.get(pattern, [])
            chosen = seqs[bisect_left(seqs, seq) : bisect_right(seqs, upto)]
        else:
            chosen = [
                each
                for each in range(max(1, seq), upto + 1)
                if pattern == ">" or matches(pattern, self.log[each - 1].subject)
            ]
        if self._last_only:
            chosen = [s for s in chosen if self.last_seq_of(self.log[s - 1].subject, upto) == s]
        return [self.log[each - 1] for each in chosen]


class Batch:
    """The messages of one batch that have come so far."""

    def __init__(self) -> None:
        self.messages: list[Sent] = []

    def add(self, message: Sent) -> bool:
        """Takes the next message; False when one before it is missing."""
        if message.headers.get(BATCH_SEQUENCE) != str(len(self.messages) + 1):
            return False
        self.messages.append(message)
        return True


def commits(message: Sent) -> bool:
    """Whether a message is the last one of its batch."""
    return BATCH_COMMIT in message.headers
