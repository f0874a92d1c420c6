"""Checking the hash chain of one subject, message by message, and saying where it first breaks.

Where `envelope.verify_chain` guards a reader that has to stop, this one reports: an auditor wants
to know which version, and what was found there. It trusts no header: version and hash are what
they have to be, or the message is the first bad one.
"""

from __future__ import annotations

from hashlib import sha256
from typing import NamedTuple

from infra.jetstream.envelope import EVENT_HASH, EVENT_TYPE, EVENT_VERSION, GENESIS
from infra.jetstream.scan import Stored


class Fault(NamedTuple):
    """The first message of a subject that is not what the chain before it asks for.

    `version` is the one that was due there, `seq` the stream sequence of what was found instead;
    `problem` is `hash`, `version`, `identity` (the body speaks of another event than its headers
    and subject) or `header` (one is missing or unreadable).
    """

    version: int
    seq: int
    problem: str
    expected: str
    found: str


class Link(NamedTuple):
    """Where a subject's chain stands: the version and hash of its last good event."""

    version: int
    digest: bytes


START = Link(0, GENESIS)


def follow(link: Link, stored: Stored) -> Link | Fault:
    """The chain with one more message, or why that message does not belong there."""
    headers = stored.headers
    version = link.version + 1
    digest = sha256(link.digest + stored.body).digest()
    found_version, found_hash = headers.get(EVENT_VERSION), headers.get(EVENT_HASH)
    if found_hash == digest.hex() and found_version == str(version) and EVENT_TYPE in headers:
        return Link(version, digest)
    for name in (EVENT_TYPE, EVENT_VERSION, EVENT_HASH):
        if name not in headers:
            return Fault(version, stored.seq, "header", f"header {name}", "none")
    if found_version != str(version):
        return Fault(version, stored.seq, "version", str(version), str(found_version))
    return Fault(version, stored.seq, "hash", digest.hex(), str(found_hash))


def entry_of(stored: Stored) -> bytes:
    """The message as an entry of a notary's Merkle tree: one line of text, line feed included.

    `<stream sequence> <subject> <Event-Type> <Event-Version> <Event-Hash>`, a header that is not
    there as `-`. The hash stands for the body and for every event of the subject before it.
    """
    headers = stored.headers
    line = (
        f"{stored.seq} {stored.subject} {headers.get(EVENT_TYPE, '-')} "
        f"{headers.get(EVENT_VERSION, '-')} {headers.get(EVENT_HASH, '-')}\n"
    )
    return line.encode()
