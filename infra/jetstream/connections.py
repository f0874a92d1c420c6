"""The connections of a program that is not asyncio's own: three, made as everybody else's are, with
errors of the store's own family."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from eventsourcing.persistence import OperationalError
from nats.aio.client import Client

from infra.connection import Access, ConnectionRefused, ServerTooOld, dial
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable
from infra.lean import LeanClient
from infra.settings import without_password


@dataclass(frozen=True)
class Server:
    """Which NATS servers to use (`url` may name several, with commas) and how to be let in."""

    url: str
    access: Access = field(default_factory=Access)
    connect_timeout: float = 5.0
    """Seconds for the first connection."""

    @property
    def shown(self) -> str:
        """The URLs without passwords."""
        return without_password(self.url)


@dataclass(frozen=True)
class Connections:
    """Three of them, so that neither a long read nor a subscription ever delays a commit."""

    writing: LeanClient
    reading: Client
    tailing: Client

    @classmethod
    async def open(cls, server: Server, name: str) -> Connections:
        """All three, up; or OperationalError, with none of them left open."""
        opening = [
            asyncio.ensure_future(_connect(server, f"{name} {role}"))
            for role in ("writing", "reading", "tailing")
        ]
        try:
            return cls(*await asyncio.gather(*opening))
        except BaseException:
            for each in await asyncio.gather(*opening, return_exceptions=True):
                if isinstance(each, Client):
                    await _close(each)
            raise

    async def close(self) -> None:
        """Closes all three."""
        for client in (self.writing, self.reading, self.tailing):
            await _close(client)


async def _connect(server: Server, name: str) -> LeanClient:
    """A connection that is up, and reconnects for ever. Raises OperationalError."""
    try:
        return await dial(
            LeanClient(),
            server.url,
            name=name,
            access=server.access,
            within=server.connect_timeout,
        )
    except ServerTooOld as error:
        raise OperationalError(error.problem) from error
    except ConnectionRefused as error:
        raise StoreUnavailable(f"{error.problem}; start it, or set NATS_URL") from error


async def _close(client: Client) -> None:
    with contextlib.suppress(*NATS_FAILURES):  # one that is down just now has lost its transport
        await client.close()
