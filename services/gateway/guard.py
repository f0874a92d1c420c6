"""What is looked at before any handler: where a browser's request comes from, and its size.

A page of another origin must not write here in its visitor's name. Its requests carry `Origin`:
WebSockets and writes from another origin than ours are refused, unless `CONVO_ORIGINS` lists it.
Where nobody has to say who they are (CONVO_AUTH=none), the request must also name this machine as
its host: a foreign name that has been made to point here (DNS rebinding) is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocket

from infra.settings import Settings, variable
from services.gateway.errors import Forbidden, GatewayError, response

BODY_BYTES_MAX: Final = 8 * 1024 * 1024 - 64 * 1024
"""Of a request: the server's payload limit, less what a command adds."""

HARMLESS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})


class Guard:
    """The middleware. Refusals have the one form of `errors`."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self._app = app
        self._origins = settings.allowed_origins
        self._hosts: frozenset[str] | None = None
        if settings.auth == "none":
            listed = {urlsplit(origin).hostname or "" for origin in self._origins}
            self._hosts = LOOPBACK_NAMES | {settings.gateway_host} | listed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request through, or refuses it."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = dict(reversed(scope["headers"]))  # the first of a name counts
        refusal = self._refusal(scope, headers)
        if refusal is None:
            if scope["type"] == "http" and b"content-length" not in headers:
                receive = _limited(receive)
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await response(refusal)(scope, receive, send)
        else:
            await WebSocket(scope, receive, send).send_denial_response(response(refusal))

    def _refusal(self, scope: Scope, headers: Mapping[bytes, bytes]) -> GatewayError | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._hosts is not None and _hostname(host) not in self._hosts:
            return Forbidden(
                f"without credentials this gateway answers to the names of its own machine, not to "
                f"{host!r}: list the origin in {variable('origins')}, or set {variable('auth')}"
            )
        if (told := headers.get(b"origin")) is not None:
            origin = told.decode("latin-1")
            if not self._trusts(origin, host, scope):
                return Forbidden(
                    f"pages of {origin} may not do this: list it in {variable('origins')}"
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > BODY_BYTES_MAX:
            return _too_large()
        return None

    def _trusts(self, origin: str, host: str, scope: Scope) -> bool:
        if scope["type"] == "http" and scope["method"] in HARMLESS:
            return True  # the browser keeps the answer from the page
        return origin in self._origins or urlsplit(origin).netloc == host


@lru_cache(maxsize=1_000)
def _hostname(host: str) -> str:
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""


def _too_large() -> GatewayError:
    return GatewayError(
        413, "message_too_large", f"a request may be at most {BODY_BYTES_MAX:,} bytes: send less"
    )


def _limited(receive: Receive) -> Receive:
    """The same, refusing more than may be sent: for bodies that do not say how long they are."""
    received = 0

    async def limited() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > BODY_BYTES_MAX:
            raise _too_large()
        return message

    return limited
