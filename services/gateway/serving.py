"""A gateway process: its connections to NATS, the port it listens on, and how it stops.

Stopping drains: the port closes first, viewers are told to come back (WebSocket code 1012; streams
over HTTP end), requests that are on their way are answered, then the connections close.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import os
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

from infra.connection import connect
from infra.settings import Settings, variable
from services.gateway.app import create_app, guarded
from services.gateway.errors import GatewayUnusable
from services.gateway.examination import Examination
from services.gateway.gateway import Gateway
from services.gateway.identity import Authority, Limited, Nobody
from services.gateway.keys import Keys
from services.gateway.ledger import Ledger
from services.gateway.live import Live
from services.gateway.tokens import Tokens

log = logging.getLogger(__name__)

FRAME_BYTES_MAX = 1024 * 1024
"""Of one WebSocket frame from a client; a larger one closes the connection with 1009."""

PING_EVERY_S = 20.0
DRAIN_WITHIN_S = 20
BACKLOG = 2048

UNREAD_FOR_S = 60
"""How long a client may leave unread what was sent; then the kernel ends the connection. uvicorn
would keep one that is closed until everything is sent, for ever where nobody reads."""


class _WebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's; a close is not held back by a client that does not read: who reads on after a
    while sees why it was dropped."""

    async def send(self, message: Any) -> None:
        if message["type"] == "websocket.close":
            self.resume_writing()
        await super().send(message)


class _Server(uvicorn.Server):
    """uvicorn's server; whoever runs it hears the signals."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


@contextlib.asynccontextmanager
async def running(settings: Settings, *, url: str) -> AsyncIterator[str]:
    """Serves the gateway of the ledger at `url` (NATS) inside the block; gives its own URL.

    Leaving the block drains. Raises GatewayUnusable or ConnectionRefused when it cannot start.
    """
    async with contextlib.AsyncExitStack() as stack:
        authority = authority_of(settings)
        listener = stack.enter_context(listening(settings))
        asking = await connect(url, name="convo-gateway", settings=settings)
        stack.push_async_callback(asking.close)
        hearing = await connect(url, name="convo-gateway-live", settings=settings)
        stack.push_async_callback(hearing.close)
        ledger = Ledger(asking)
        live = Live(hearing, ledger)
        stack.push_async_callback(live.close)
        gateway = Gateway(settings, ledger, live, authority, Examination(asking, settings))
        async with serving(guarded(create_app(gateway), gateway), listener) as where:
            log.info("the gateway is at %s", where)
            try:
                yield where
            finally:
                live.say_goodbye()


@contextlib.asynccontextmanager
async def serving(app: ASGIApp, listener: socket.socket) -> AsyncIterator[str]:
    """Serves an ASGI application inside the block; gives its URL. Leaving the block drains."""
    server = _Server(_config(app))
    task = asyncio.ensure_future(server.serve([listener]))
    try:
        while not (server.started or task.done()):  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0.005)
        host, port = listener.getsockname()[:2]
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}"
    finally:
        server.should_exit = True
        await asyncio.wait({task})
    task.result()


def authority_of(settings: Settings) -> Authority:
    """Who tells who asks, as the settings say. Raises GatewayUnusable."""
    authority: Authority
    match settings.auth:
        case "none":
            if not loopback(settings.gateway_host):
                raise GatewayUnusable(
                    f"{variable('auth')}=none lets everybody in, so the gateway binds to loopback "
                    f"only, not to {settings.gateway_host}: set {variable('auth')} to keys or jwt"
                )
            authority = Nobody()
        case "keys":
            authority = Keys(settings.api_keys)
        case "jwt":
            authority = Tokens(settings)
    return Limited(authority, settings.requests_per_minute)


def loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@contextlib.contextmanager
def listening(settings: Settings) -> Iterator[socket.socket]:
    """A socket that listens where the settings say. Raises GatewayUnusable."""
    host, port = settings.gateway_host, settings.gateway_port
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        with contextlib.ExitStack() as stack:
            stack.callback(listener.close)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; connections inherit it
                timeout_ms = UNREAD_FOR_S * 1000
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, timeout_ms)
            listener.bind(address)
            stack.pop_all()
    except OSError as error:
        number = error.errno or 0
        reason = os.strerror(number).lower() if number > 0 else str(error)
        raise GatewayUnusable(
            f"the gateway cannot listen on {host}:{port} ({reason}): free it, or take another with "
            f"{variable('gateway_port')}"
        ) from None
    with listener:
        yield listener


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="none",
        http="httptools",
        ws=_WebSocketProtocol,
        ws_max_size=FRAME_BYTES_MAX,
        ws_ping_interval=PING_EVERY_S,
        ws_ping_timeout=PING_EVERY_S,
        ws_per_message_deflate=False,
        lifespan="off",
        proxy_headers=False,  # nothing here depends on who is before us
        log_config=None,
        log_level="warning",
        access_log=False,
        server_header=False,
        date_header=False,
        backlog=BACKLOG,
        timeout_graceful_shutdown=DRAIN_WITHIN_S,
    )
