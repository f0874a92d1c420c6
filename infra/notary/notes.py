"""Signed notes (C2SP signed-note, Ed25519): a text, and below it who signed it.

    conversation-ledger/…
    1000
    CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
    <an empty line>
    — convo-notary Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URY…

The signature is over the text, its last line feed included. A signer's public key is published as
one line, `<name>+<key id in hex>+<base64 of 0x01 and the 32 bytes of the key>`; the key id is the
first four bytes of SHA-256(name ‖ line feed ‖ 0x01 ‖ key). Go's `sumdb/note` reads and writes the
same.
"""

from __future__ import annotations

import binascii
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

_ED25519 = b"\x01"
_DASH = "\u2014 "
NOTE_CHARACTERS_MAX = 100_000


class NoteRefused(Exception):
    """A note, or a public key, that cannot be accepted; the message says why."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A signer as others know it."""

    name: str
    raw: bytes

    @property
    def key_id(self) -> bytes:
        """Four bytes that tell signatures apart; no proof of anything."""
        return sha256(self.name.encode() + b"\n" + _ED25519 + self.raw).digest()[:4]

    @property
    def line(self) -> str:
        """The key as one line of text, for publishing."""
        return f"{self.name}+{self.key_id.hex()}+{b64encode(_ED25519 + self.raw).decode()}"

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the 32 bytes of the key, in hex: what two people compare."""
        return "sha256:" + sha256(self.raw).hexdigest()

    @classmethod
    def parse(cls, line: str) -> Self:
        """Reads `line`. Raises NoteRefused."""
        name, plus, rest = line.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        raw = _decoded(encoded)
        if not plus or not _is_name(name) or raw is None or raw[:1] != _ED25519 or len(raw) != 33:
            raise NoteRefused(
                "this is no public key of a notary: it has to be one line as "
                "NAME+HEX+BASE64, as `convo notary key` prints it"
            )
        key = cls(name, raw[1:])
        if key.key_id.hex() != key_id:
            raise NoteRefused("the public key is damaged: its id and its bytes do not fit")
        return key

    def accepts(self, text: str, signature: bytes) -> bool:
        """Whether the signature is this key's, over this text."""
        try:
            Ed25519PublicKey.from_public_bytes(self.raw).verify(signature, text.encode())
        except (InvalidSignature, ValueError):
            return False
        return True


class Signer:
    """A private key with its name."""

    def __init__(self, name: str, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = PublicKey(name, key.public_key().public_bytes_raw())

    def sign(self, text: str) -> bytes:
        """The signature over the text."""
        return self._key.sign(text.encode())


def signed(text: str, signers: Sequence[Signer]) -> str:
    """The note: the text, and a line for each signer's signature."""
    assert text.endswith("\n"), "a text is lines"
    assert "\n\n" not in text, "an empty line ends the text"
    lines = [
        f"{_DASH}{each.public.name} {b64encode(each.public.key_id + each.sign(text)).decode()}\n"
        for each in signers
    ]
    return f"{text}\n{''.join(lines)}"


def text_of(note: str) -> str:
    """The text of a note, whoever signed it. Raises NoteRefused for what is no note."""
    return _parts(note)[0]


def opened(note: str, key: PublicKey) -> str:
    """The text of a note that `key` has signed. Raises NoteRefused when it has not."""
    text, signatures = _parts(note)
    mine = [raw[4:] for name, raw in signatures if (name, raw[:4]) == (key.name, key.key_id)]
    if not mine:
        raise NoteRefused(f"it is not signed by {key.name} ({key.fingerprint})")
    if not all(key.accepts(text, each) for each in mine):
        raise NoteRefused(f"its signature by {key.name} ({key.fingerprint}) is false")
    return text


def _parts(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    text, gap, below = note.rpartition("\n\n")
    if not gap or not below.endswith("\n") or not text or len(note) > NOTE_CHARACTERS_MAX:
        raise NoteRefused("it is no signed note")
    signatures = []
    for line in below[:-1].split("\n"):
        name, blank, encoded = line.removeprefix(_DASH).partition(" ")
        raw = _decoded(encoded)
        if not line.startswith(_DASH) or not blank or raw is None or len(raw) <= 4:
            raise NoteRefused("it has a line below its text that is no signature")
        signatures.append((name, raw))
    return text + "\n", signatures


def _is_name(name: str) -> bool:
    return bool(name) and name.isprintable() and not any(each in name for each in " +\u2014")


def _decoded(text: str) -> bytes | None:
    """The bytes of canonical base64, None for anything else."""
    try:
        raw = b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
    return raw if b64encode(raw).decode() == text else None
