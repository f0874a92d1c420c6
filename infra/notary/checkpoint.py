"""What the notary says: checkpoints (C2SP tlog-checkpoint) and key records, as texts to be signed.

A checkpoint says of one log (one partition's stream) how many entries it had and what the root of
its Merkle tree was:

    conversation-ledger/CONVO-EVENTS-0/<first 16 hex digits of its first entry's hash>
    <size: how many entries, which is the last stream sequence>
    <root, base64>
    number <1, 2, 3 …>
    time <RFC 3339, UTC>
    previous <SHA-256, hex, of the checkpoint before it as it is stored; 64 zeros for the first>

A key record introduces the key that signs from there on. Both the new key and the one it replaces
have signed it; the first has only itself:

    conversation-ledger/key
    <the new public key's line>
    time <RFC 3339, UTC>
    replaces <fingerprint of the key before it, or none>
"""

from __future__ import annotations

import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from infra.notary.notes import NoteRefused, PublicKey, Signer, opened, signed, text_of

PROJECT = "conversation-ledger"
NO_PREVIOUS = "0" * 64

_CHECKPOINT = re.compile(
    r"(?P<origin>[^\s+]+)\n(?P<size>[1-9]\d{0,15})\n(?P<root>[A-Za-z0-9+/]{43}=)\n"
    r"number (?P<number>[1-9]\d{0,15})\ntime (?P<time>\S+)\nprevious (?P<previous>[0-9a-f]{64})\n"
)
_KEY_RECORD = re.compile(
    rf"{PROJECT}/key\n(?P<key>\S+)\ntime (?P<time>\S+)\nreplaces (?P<replaces>\S+)\n"
)


def origin(log: str, first_leaf: bytes) -> str:
    """The name of a log: the stream's, and which stream of that name by the hash of its entry 1."""
    return f"{PROJECT}/{log}/{first_leaf.hex()[:16]}"


def note_digest(note: str) -> str:
    """What the next checkpoint calls `previous`."""
    return sha256(note.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A statement about a log; see the module's text."""

    origin: str
    size: int
    root: bytes
    number: int
    time: str
    previous: str

    def text(self) -> str:
        """The text that is signed."""
        return (
            f"{self.origin}\n{self.size}\n{b64encode(self.root).decode()}\n"
            f"number {self.number}\ntime {self.time}\nprevious {self.previous}\n"
        )

    def signed(self, signer: Signer) -> str:
        """The note."""
        return signed(self.text(), [signer])

    @classmethod
    def read(cls, note: str, key: PublicKey | None) -> Self:
        """Reads a note signed by `key`, or without a look at signatures when that is None.

        Raises NoteRefused.
        """
        text = text_of(note) if key is None else opened(note, key)
        found = _CHECKPOINT.fullmatch(text)
        if found is None:
            raise NoteRefused("it is no checkpoint")
        return cls(
            found["origin"],
            int(found["size"]),
            b64decode(found["root"]),
            int(found["number"]),
            found["time"],
            found["previous"],
        )


def key_record(signer: Signer, replaced: Signer | None, time: str) -> str:
    """The note that introduces a key, in the place of `replaced`."""
    replaces = "none" if replaced is None else replaced.public.fingerprint
    text = f"{PROJECT}/key\n{signer.public.line}\ntime {time}\nreplaces {replaces}\n"
    return signed(text, [signer] if replaced is None else [replaced, signer])


class KeyHistory:
    """The keys of a notary one after the other; `current` signs now.

    `pinned`: the public key that whoever verifies trusts; it has to be one of them. Without it the
    first key is believed, and everything rests on that.
    """

    def __init__(self, pinned: PublicKey | None = None) -> None:
        self.pinned = pinned
        self.keys: list[PublicKey] = []

    @property
    def current(self) -> PublicKey | None:
        """The key that signs now."""
        return self.keys[-1] if self.keys else None

    @property
    def is_anchored(self) -> bool:
        """Whether the pinned key is among them (or nothing was pinned)."""
        return self.pinned is None or self.pinned in self.keys

    def take(self, note: str) -> PublicKey:
        """Takes in a key record. Raises NoteRefused, and goes on with the key there was."""
        found = _KEY_RECORD.fullmatch(text_of(note))
        if found is None:
            raise NoteRefused("it is no key record")
        key = PublicKey.parse(found["key"])
        opened(note, key)
        before = self.current
        if before is None:
            if found["replaces"] != "none":
                raise NoteRefused("it replaces a key that is not there")
        else:
            opened(note, before)
            if found["replaces"] != before.fingerprint:
                raise NoteRefused("it replaces another key than the one before it")
        self.keys.append(key)
        return key

    @classmethod
    def of(cls, notes: Iterable[str], pinned: PublicKey | None = None) -> Self:
        """The history that these records tell. Raises NoteRefused."""
        history = cls(pinned)
        for note in notes:
            history.take(note)
        return history
