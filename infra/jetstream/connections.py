"""Connections for programs that are not asyncio's own: they come back by themselves, and never send
what was published while the server was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import re
import ssl
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from eventsourcing.persistence import OperationalError
from nats.aio.client import Client

from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable, reason
from infra.jetstream.lean import LeanClient

log = logging.getLogger(__name__)

SERVER_VERSION_MIN = (2, 15, 1)
"""Older servers order the fsyncs of a batch differently: an acknowledgement would promise less."""

_UNUSABLE: tuple[type[Exception], ...] = (*NATS_FAILURES, ValueError)


@dataclass(frozen=True)
class Server:
    """Which NATS servers to use (`url` may name several, with commas) and how to be let in."""

    url: str
    creds: str | None = None
    tls_ca: str | None = None
    tls_cert: str | None = None
    tls_key: str | None = None
    connect_timeout: float = 5.0
    """Seconds for the first connection."""

    @property
    def urls(self) -> list[str]:
        """The URLs, one by one."""
        return [each.strip() for each in self.url.split(",")]

    @property
    def shown(self) -> str:
        """The URLs without passwords."""
        return ",".join(map(_without_password, self.urls))

    def tls(self) -> ssl.SSLContext | None:
        """The TLS settings as a context, None when the URL alone decides. Raises OSError."""
        if not (self.tls_ca or self.tls_cert):
            return None
        context = ssl.create_default_context(cafile=self.tls_ca)
        if self.tls_cert:
            context.load_cert_chain(self.tls_cert, self.tls_key)
        return context


@dataclass(frozen=True)
class Connections:
    """Three of them, so that neither a long read nor a subscription ever delays a commit."""

    writing: Client
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


async def _connect(server: Server, name: str) -> Client:
    """A connection that is up, and reconnects for ever. Raises OperationalError."""
    client = LeanClient()
    said: list[str] = []

    async def on_error(error: Exception) -> None:
        said[:] = [" ".join(str(error).split()) or type(error).__name__]
        log.debug("NATS connection %s: %s", name, said[0])  # ten a second while it is down

    async def on_event(what: str) -> None:
        if not client.is_closed:
            log.info("NATS connection %s %s", name, what)

    options: dict[str, Any] = {
        "servers": server.urls,
        "name": name,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.1,
        "pending_size": 0,  # a publish while it is down fails, instead of being sent too late
        "ping_interval": 2,
        "max_outstanding_pings": 2,
        "connect_timeout": 1,
        "error_cb": on_error,
        "disconnected_cb": functools.partial(on_event, "lost; reconnecting"),
        "reconnected_cb": functools.partial(on_event, "is back"),
        "closed_cb": functools.partial(on_event, "is closed"),
    }
    try:
        if server.creds:
            options["user_credentials"] = server.creds
        if context := server.tls():
            options["tls"] = context
        async with asyncio.timeout(server.connect_timeout):
            await client.connect(**options)
        _require_version(client, server)
    except _UNUSABLE as error:
        await _close(client)
        raise StoreUnavailable(
            f"NATS at {server.shown} could not be used within {server.connect_timeout:g} s "
            f"({said[0] if said else reason(error)}); start it, or set NATS_URL"
        ) from error
    except BaseException:
        await _close(client)
        raise
    return client


async def _close(client: Client) -> None:
    with contextlib.suppress(*NATS_FAILURES):  # one that is down just now has lost its transport
        await client.close()


def _require_version(client: Client, server: Server) -> None:
    version = client.connected_server_version
    if (version.major, version.minor, version.patch) < SERVER_VERSION_MIN:
        raise OperationalError(
            f"the NATS server at {server.shown} is {version.major}.{version.minor}."
            f"{version.patch}; {'.'.join(map(str, SERVER_VERSION_MIN))} or newer is needed, "
            "because older ones do not fsync a batch before acknowledging it"
        )


def _without_password(url: str) -> str:
    parts = urlsplit(url if "://" in url else f"nats://{url}")
    return urlunsplit(parts._replace(netloc=re.sub(r"^.*@", "", parts.netloc)))
