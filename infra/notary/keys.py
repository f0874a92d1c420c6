"""The notary's keys on disk, in a folder that only its owner may enter.

- `notary.key`: the private key (PKCS #8, PEM), readable by its owner alone;
- `notary.pub`: the public key on one line, and its fingerprint below; for publishing;
- `notary.key.next`: while a rotation is asked for, the key that comes next.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from infra.notary.notes import PublicKey, Signer

NAME = "convo-notary"
KEY_FILE = "notary.key"
NEXT_FILE = "notary.key.next"
PUBLIC_FILE = "notary.pub"


class KeyUnusable(Exception):
    """The key on disk cannot be used; the message says what to do."""


def copy_keys(source: Path, target: Path) -> bool:
    """Copies the key, private and public, into a folder that only its owner may enter.

    Returns False when there is none to copy. Raises OSError.
    """
    if not (source / KEY_FILE).exists():
        return False
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    for name, mode in ((KEY_FILE, 0o600), (PUBLIC_FILE, 0o644)):
        if (source / name).exists():
            descriptor = os.open(target / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
            with os.fdopen(descriptor, "wb") as file:
                file.write((source / name).read_bytes())
                file.flush()
                os.fsync(file.fileno())
    return True


class KeyFolder:
    """The keys in one folder."""

    def __init__(self, folder: Path, name: str = NAME) -> None:
        self.folder = folder
        self._name = name

    def load_or_make(self) -> Signer:
        """The signer; a key is made when there is none yet. Raises KeyUnusable."""
        signer = self.load() or self._make(KEY_FILE)
        self._publish(signer.public)
        return signer

    def load(self) -> Signer | None:
        """The signer, None when no key was made yet. Raises KeyUnusable."""
        return self._read(KEY_FILE)

    def next(self) -> Signer | None:
        """The signer that a rotation asked for has made, None when none is asked for."""
        return self._read(NEXT_FILE)

    def ask_for_rotation(self) -> PublicKey:
        """Makes the key that comes next (or finds it made); the notary takes it up."""
        return (self.next() or self._make(NEXT_FILE)).public

    def take_next(self) -> Signer:
        """Puts the next key in the present one's place, for good."""
        (self.folder / NEXT_FILE).replace(self.folder / KEY_FILE)
        return self.load_or_make()

    def _read(self, name: str) -> Signer | None:
        path = self.folder / name
        try:
            mode = path.stat().st_mode
            pem = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise KeyUnusable(f"{path} cannot be read: {error.strerror}") from None
        if stat.S_IMODE(mode) & 0o077:
            raise KeyUnusable(
                f"{path} can be read by others than its owner: `chmod 600 {path}`, and if others "
                "were on this machine, `convo notary rotate`"
            )
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError) as error:
            raise KeyUnusable(f"{path} is no private key ({error}): restore it") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise KeyUnusable(f"{path} is not an Ed25519 key: restore the one that was there")
        return Signer(self._name, key)

    def _make(self, name: str) -> Signer:
        key = Ed25519PrivateKey.generate()
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        path = self.folder / name
        fresh = path.with_name(f".{name}.{os.getpid()}")
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            try:
                os.link(fresh, path)  # unlike a rename, never over a key that is there already
            except FileExistsError:
                found = self._read(name)
                assert found is not None
                return found
            finally:
                fresh.unlink()
        except OSError as error:
            raise KeyUnusable(f"no key can be made in {self.folder}: {error.strerror}") from None
        return Signer(self._name, key)

    def _publish(self, public: PublicKey) -> None:
        text = f"{public.line}\n{public.fingerprint}\n"
        path = self.folder / PUBLIC_FILE
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            path.chmod(0o644)
