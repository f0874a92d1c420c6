"""API keys: a file of them, and who asks with one (CONVO_AUTH=keys).

A key is `convo_<id>_<secret>`; the file keeps its SHA-256 alone (the secret is 256 random bits, so
that a slow hash would add nothing), the comparison takes the same time wherever it fails. The file
is looked at again when it has changed: a key that is added or removed counts within a second.
"""

from __future__ import annotations

import hmac
import logging
import os
import secrets
import time
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.requests import HTTPConnection

from domain import clock
from domain.identity import ID_BYTES_MAX
from services.gateway.errors import GatewayUnusable, Unauthenticated
from services.gateway.identity import SCOPES, USER_CHARS_MAX, Identity, Scope, acting, credentials

log = logging.getLogger(__name__)

PREFIX: Final = "convo_"
LOOK_EVERY_S: Final = 1.0

_ID_BYTES = 6
_SECRET_BYTES = 32
_NOBODY = sha256(secrets.token_bytes(_SECRET_BYTES)).hexdigest()


class Key(BaseModel):
    """One key, without its secret. `user_id` None: it is good for every user of the tenant."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[0-9a-f]{12}$")
    name: str = Field(min_length=1, max_length=100)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    tenant_id: str = Field(min_length=1, max_length=ID_BYTES_MAX)
    user_id: str | None = Field(default=None, min_length=1, max_length=USER_CHARS_MAX)
    scopes: tuple[Scope, ...] = tuple(sorted(SCOPES))
    requests_per_minute: int | None = Field(default=None, ge=1)
    created_at: str = ""

    @property
    def identity(self) -> Identity:
        """Who asks with it."""
        return Identity(
            self.tenant_id,
            self.user_id,
            self.name,
            frozenset(self.scopes),
            self.requests_per_minute,
        )


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    keys: tuple[Key, ...]


class KeyFile:
    """The file: JSON, readable by its owner alone, replaced as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self) -> tuple[Key, ...]:
        """Every key; none when there is no file. Raises GatewayUnusable when it is no such file."""
        try:
            return _File.model_validate_json(self.path.read_bytes()).keys
        except FileNotFoundError:
            return ()
        except (OSError, ValidationError) as error:
            first = str(error).splitlines()[0]
            raise GatewayUnusable(
                f"the keys in {self.path} cannot be read ({first}): mend or remove the file"
            ) from None

    def add(
        self,
        name: str,
        tenant_id: str,
        user_id: str | None = None,
        *,
        scopes: Iterable[Scope] = (),
        requests_per_minute: int | None = None,
    ) -> str:
        """Makes a key and returns it; it is shown this once. Raises GatewayUnusable, also for a
        name that is taken."""
        keys = self.load()
        if any(key.name == name for key in keys):
            raise GatewayUnusable(
                f"there is a key {name!r} already: remove it or take another name"
            )
        id = secrets.token_hex(_ID_BYTES)
        text = f"{PREFIX}{id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
        try:
            key = Key(
                id=id,
                name=name,
                sha256=sha256(text.encode()).hexdigest(),
                tenant_id=tenant_id,
                user_id=user_id,
                scopes=tuple(sorted(set(scopes) or SCOPES)),
                requests_per_minute=requests_per_minute,
                created_at=clock.to_text(clock.now()),
            )
        except ValidationError as error:
            wrong = error.errors()[0]
            raise GatewayUnusable(f"{wrong['loc'][0]}: {wrong['msg']}") from None
        self._save((*keys, key))
        return text

    def remove(self, name: str) -> None:
        """Ends a key; whoever uses it is refused from now on. Raises GatewayUnusable: no such."""
        keys = self.load()
        kept = tuple(key for key in keys if key.name != name)
        if len(kept) == len(keys):
            raise GatewayUnusable(f"there is no key {name!r}: `convo keys list` shows them")
        self._save(kept)

    def _save(self, keys: tuple[Key, ...]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        beside = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(_File(keys=keys).model_dump_json(indent=2))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(self.path)


class Keys:
    """Tells who asks by their key."""

    def __init__(self, path: Path) -> None:
        self._file = KeyFile(path)
        self._changed: tuple[int, int] | None = None
        self._keys: dict[str, tuple[str, Identity]] = {}
        self._looked_at = 0.0
        self._look()
        if not self._keys:
            log.warning("no key can be used yet: `convo keys add NAME --tenant T` makes one")

    async def identify(self, connection: HTTPConnection) -> Identity:
        """Who asks with the request's key. Raises Unauthenticated or Forbidden."""
        text = credentials(connection)
        if time.monotonic() - self._looked_at > LOOK_EVERY_S:
            self._look()
        id = text.removeprefix(PREFIX).partition("_")[0]
        wanted, identity = self._keys.get(id, (_NOBODY, None))
        found = sha256(text.encode("utf-8", "surrogateescape")).hexdigest()
        if not hmac.compare_digest(found, wanted) or identity is None:
            raise Unauthenticated("the key is not known here: it may have been removed")
        return acting(identity, connection)

    def _look(self) -> None:
        self._looked_at = time.monotonic()
        try:
            stat = self._file.path.stat()
            changed = (stat.st_mtime_ns, stat.st_ino)
        except FileNotFoundError:
            changed = (0, 0)
        if changed == self._changed:
            return
        try:
            keys = self._file.load()
        except GatewayUnusable as error:
            if self._changed is None:
                raise
            log.error("%s; the keys from before still count", error)
            return
        self._changed = changed
        self._keys = {key.id: (key.sha256, key.identity) for key in keys}
