"""Checking the record itself: whether a conversation's events are the ones that were written.

Works on the messages as they lie on the stream (or in a bundle), with nothing that a reader of the
ledger would rely on. `docs/verification.md` says how to do the same with `nats` and `sha256sum`.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pydantic_core import to_json

from domain.errors import InvalidRequest
from domain.identity import ConversationId
from infra.jetstream.chain import START, Fault, Link, follow
from infra.jetstream.envelope import EVENT_TYPE
from infra.jetstream.scan import Stored

# What every event begins with, whatever its type: see domain/mapper.py.
_TEXT = rb'"((?:[^"\\]|\\.)*)"'
_BEGINNING = re.compile(
    rb'\{"type":%b,"schema":\d+,"tenant_id":%b,"conversation_id":%b,"version":(\d+),'
    % (_TEXT, _TEXT, _TEXT)
)


def follow_conversation(link: Link, stored: Stored) -> Link | Fault:
    """The chain with one more event of a conversation, or why it does not belong there.

    Beside the chain, the body has to speak of the same event as its subject and headers: those are
    what readers go by, and the hash does not cover them.
    """
    following = follow(link, stored)
    if isinstance(following, Fault):
        return following
    body = stored.body
    prefix = _usual_beginning(stored.subject, stored.headers[EVENT_TYPE])
    if body.startswith(prefix) and body.startswith(b"%d," % following.version, len(prefix)):
        return following
    said = _BEGINNING.match(body)
    if said is None:
        return Fault(
            following.version, stored.seq, "identity", "an event of the ledger", "other bytes"
        )
    key = stored.subject.split(".", 3)[-1]
    expected = f"{stored.headers[EVENT_TYPE]} {following.version} of {key}"
    found = f"{_text(said[1])} {int(said[4])} of {_key(said[2], said[3])}"
    if found != expected:
        return Fault(following.version, stored.seq, "identity", expected, found)
    return following


@lru_cache(65_536)
def _usual_beginning(subject: str, type: str) -> bytes:
    """What an event of this type begins with, up to its version, when it is of schema 1."""
    try:
        id = ConversationId.from_key(subject.split(".", 3)[-1])
    except InvalidRequest:
        return b"no event"
    names = b'"tenant_id":%b,"conversation_id":%b' % (to_json(id[0]), to_json(id[1]))
    return b'{"type":%b,"schema":1,%b,"version":' % (to_json(type), names)


@lru_cache(4_096)
def _text(raw: bytes) -> str:
    text: str = json.loads(b'"' + raw + b'"')
    return text


@lru_cache(65_536)
def _key(tenant: bytes, conversation: bytes) -> str:
    try:
        return ConversationId.parse(_text(tenant), _text(conversation)).key
    except InvalidRequest:
        return "a name that is not legal"


@dataclass(slots=True)
class ConversationCheck:
    """The check of one conversation, fed with its messages in order.

    `events` counts all of them; `link` is where the good ones end, `fault` what is behind that.
    `seq` is the last message's.
    """

    link: Link = START
    fault: Fault | None = None
    events: int = 0
    seq: int = 0

    def take(self, stored: Stored) -> None:
        """Takes in the next message. Behind the first bad one they are only counted."""
        self.events += 1
        self.seq = stored.seq
        if self.fault is None:
            following = follow_conversation(self.link, stored)
            if isinstance(following, Fault):
                self.fault = following
            else:
                self.link = following

    def report(self) -> dict[str, Any]:
        """The reply of `convo.audit.….verify`, without `ok`.

        `head_hash` is that of the last good event; 64 zeros when there is none.
        """
        found: dict[str, Any] = {
            "valid": self.fault is None,
            "events": self.events,
            "head_hash": self.link.digest.hex(),
            "version": self.link.version,
            "seq": self.seq,
        }
        if self.fault is not None:
            found["first_bad"] = self.fault._asdict()
        return found
