"""Connections to NATS that behave under faults: they come back by themselves, never send what was
published while the server was away, and say what happens in one line each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import ssl
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import SlowConsumerError

from infra.lean import LeanClient
from infra.settings import Settings, variable, without_password
from infra.sturdy import SturdyClient

log = logging.getLogger(__name__)

SERVER_VERSION_MIN = (2, 15, 1)
"""Older servers order the fsyncs of a batch differently: an acknowledgement would promise less."""

Dialled = TypeVar("Dialled", bound=SturdyClient)

FIRST_CONNECT_TIMEOUT_S = 5.0
LOG_PAUSE_S = 10.0
"""Between two lines about the same trouble of one connection."""


class ConnectionRefused(Exception):
    """No usable connection; the message says what to do. `problem` is what is the matter, for
    whoever has other advice to give."""

    def __init__(self, problem: str, advice: str = "") -> None:
        super().__init__(f"{problem}. {advice}" if advice else problem)
        self.problem = problem


class ServerUnreachable(ConnectionRefused):
    """Nobody answered at the URL in time."""


class CredentialsRefused(ConnectionRefused):
    """The server answered and would not have us."""


class ServerTooOld(ConnectionRefused):
    """The server answered and is older than `SERVER_VERSION_MIN`."""


@dataclass(frozen=True)
class Access:
    """How to be let in: a `.creds` file, and PEM files for TLS; without any the URL decides."""

    creds: Path | str | None = None
    tls_ca: Path | str | None = None
    tls_cert: Path | str | None = None
    tls_key: Path | str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """What the settings say."""
        return cls(
            settings.nats_creds,
            settings.nats_tls_ca,
            settings.nats_tls_cert,
            settings.nats_tls_key,
        )

    def tls(self) -> ssl.SSLContext | None:
        """The TLS files as a context, None when there are none.

        `ConnectionRefused` when a file does not hold what it should.
        """
        if not (self.tls_ca or self.tls_cert):
            return None
        try:
            context = ssl.create_default_context(cafile=self.tls_ca)
            if self.tls_cert:
                context.load_cert_chain(self.tls_cert, self.tls_key)
        except (OSError, ssl.SSLError) as error:
            names = ", ".join(variable(f"nats_tls_{part}") for part in ("ca", "cert", "key"))
            problem = f"The TLS files cannot be used ({error}); they must be PEM"
            raise ConnectionRefused(problem, f"Look at {names}.") from None
        return context


async def connect(
    url: str,
    *,
    name: str,
    settings: Settings,
    within: float = FIRST_CONNECT_TIMEOUT_S,
) -> LeanClient:
    """Returns a connection that is up, by the settings; see `dial`."""
    return await dial(LeanClient(), url, name=name, access=Access.of(settings), within=within)


async def dial(client: Dialled, url: str, *, name: str, access: Access, within: float) -> Dialled:
    """Connects `client` and returns it; from then on it reconnects for ever, every 0.1 s.

    `url` may name several servers, with commas; `within` bounds the first connection, in seconds.
    A publish while disconnected fails at once (nothing is buffered: a buffered one would be sent
    after its caller has given up). A request in flight when the connection drops is not failed by
    it but by its own timeout. `ServerUnreachable`, `CredentialsRefused` or `ServerTooOld`.
    """
    watch = _Watch(name)
    connecting = asyncio.ensure_future(client.connect(**_options(url, access, watch)))
    refused = asyncio.ensure_future(watch.refused.wait())
    try:
        await asyncio.wait(
            {connecting, refused}, timeout=within, return_when=asyncio.FIRST_COMPLETED
        )
        if not connecting.done():
            raise _failure(url, within, watch)
        connecting.result()
        require_version(_version(client), url)
    except (OSError, ValueError, NatsError) as error:
        await _close(client)
        problem = f"{without_password(url)} cannot be used ({error})"
        raise ServerUnreachable(problem, f"Look at --nats or {variable('nats_url')}.") from None
    except BaseException:
        connecting.cancel()
        await asyncio.gather(connecting, return_exceptions=True)
        await _close(client)
        raise
    finally:
        refused.cancel()
    watch.connected(client)
    return client


def require_version(version: str, url: str) -> None:
    """Passes when a server's version (as its INFO says it) is new enough, else `ServerTooOld`."""
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:3])
    if numbers < SERVER_VERSION_MIN:
        wanted = ".".join(str(part) for part in SERVER_VERSION_MIN)
        problem = (
            f"nats-server at {without_password(url)} is {version}; {wanted} or newer is needed, "
            "because older ones do not fsync a batch before acknowledging it"
        )
        advice = f"Upgrade it, or unset {variable('nats_url')} to use the embedded server."
        raise ServerTooOld(problem, advice)


async def _close(client: Client) -> None:
    with contextlib.suppress(AssertionError):  # nats-py's, when it never got as far as a socket
        await client.close()


def _version(client: Client) -> str:
    version = client.connected_server_version
    return f"{version.major}.{version.minor}.{version.patch}"


class _Watch:
    """The callbacks of one connection: log lines, never tracebacks, and not ten a second."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.refused = asyncio.Event()
        self.last_error: BaseException | None = None
        self._client: Client | None = None
        self._said: dict[str, float] = {}

    def connected(self, client: Client) -> None:
        self._client = client

    async def on_error(self, error: BaseException) -> None:
        self.last_error = error
        if "authorization" in str(error).lower() or "authentication" in str(error).lower():
            self.refused.set()  # nats-py passes the server's sentence on, without a code
        if self._client is None:
            return  # still connecting for the first time: the caller gets one error
        if isinstance(error, SlowConsumerError):
            self._say("connection %s: too slow a reader of %s", self.name, error.subject)
        else:
            self._say("connection %s: %s", self.name, _one_line(error))

    async def on_disconnect(self) -> None:
        if self._client is not None and not self._client.is_closed:
            log.warning("connection %s: lost; reconnecting", self.name)

    async def on_reconnect(self) -> None:
        self._said.clear()
        url = self._client.connected_url if self._client else None
        place = url.netloc.rpartition("@")[2] if url else "the server"
        log.warning("connection %s: back at %s", self.name, place)

    async def on_close(self) -> None:
        log.debug("connection %s: closed", self.name)

    def _say(self, form: str, *words: object) -> None:
        line = form % words
        now = time.monotonic()
        if now - self._said.get(line, -LOG_PAUSE_S) >= LOG_PAUSE_S:
            self._said[line] = now
            log.warning("%s", line)


def _options(url: str, access: Access, watch: _Watch) -> dict[str, Any]:
    options: dict[str, Any] = {
        "servers": [each.strip() for each in url.split(",")],
        "name": watch.name,
        "max_reconnect_attempts": -1,
        "reconnect_time_wait": 0.1,
        "pending_size": 0,
        "ping_interval": 2,
        "max_outstanding_pings": 2,
        "connect_timeout": 1,
        "error_cb": watch.on_error,
        "disconnected_cb": watch.on_disconnect,
        "reconnected_cb": watch.on_reconnect,
        "closed_cb": watch.on_close,
    }
    if access.creds:
        options["user_credentials"] = str(access.creds)
    if context := access.tls():
        options["tls"] = context
    return options


def _failure(url: str, within: float, watch: _Watch) -> ConnectionRefused:
    shown = without_password(url)
    if watch.refused.is_set():
        return CredentialsRefused(
            f"NATS at {shown} refused us ({_one_line(watch.last_error)})",
            f"Give credentials: {variable('nats_creds')}=FILE.creds, or "
            "nats://USER:PASSWORD@HOST:PORT.",
        )
    reason = _one_line(watch.last_error) if watch.last_error else "no answer"
    return ServerUnreachable(
        f"NATS at {shown} could not be reached within {within:g} s ({reason})",
        "Start it (`convo up` brings its own), or name another with --nats or "
        f"{variable('nats_url')}.",
    )


def _one_line(error: BaseException | None) -> str:
    if isinstance(error, OSError) and (error.errno or 0) > 0:
        return os.strerror(error.errno or 0).lower()
    text = " ".join(str(error).split())
    return text or type(error).__name__
