"""Who is asking: a tenant, a user and what they may do, from the request's credentials.

Handlers ask for an identity by naming one of `Reader`, `Writer` and `Deleter` among their
parameters; it works for HTTP and WebSockets alike. An identity with a user sees that user's
conversations and no others: the services refuse the rest (`Convo-User`), as if they did not exist.
One without a user acts for the whole tenant (a back end with a key of its own).
"""

from __future__ import annotations

from base64 import b64decode
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Literal, Protocol

from fastapi import Depends
from starlette.requests import HTTPConnection

from domain.identity import ConversationId
from services.gateway.errors import Forbidden, TooManyRequests, Unauthenticated
from services.gateway.limits import Bucket

Scope = Literal["read", "write", "delete"]
SCOPES: frozenset[Scope] = frozenset(("read", "write", "delete"))

ACTING_FOR = "x-user-id"
"""Header: the user for whom credentials without a user ask."""

DEFAULT_TENANT = "default"
BEARER = "bearer."
"""What the WebSocket subprotocol that holds credentials begins with."""

USER_CHARS_MAX = 120
BUCKETS_MAX = 10_000

LOCAL_USER = "local"
"""Whose chats are listed where nobody has to say who they are."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `name` is that of the credentials (a key's, or a token's tenant and user).

    `user_id` None: they act for every user of the tenant.
    """

    tenant_id: str
    user_id: str | None
    name: str | None = None
    scopes: frozenset[Scope] = SCOPES
    requests_per_minute: int | None = None

    def conversation(self, conversation_id: str) -> ConversationId:
        """The conversation of that id in the tenant. Raises InvalidRequest for an illegal id."""
        return ConversationId.parse(self.tenant_id, conversation_id)

    @property
    def user(self) -> str:
        """Whose conversations are meant where a route says nothing of users."""
        return self.user_id or LOCAL_USER

    @property
    def actor(self) -> str | None:
        """Who did it, kept in every event; None where nobody has to say who they are."""
        if self.user_id is not None:
            return f"user:{self.user_id}"
        return f"key:{self.name}" if self.name else None

    def may(self, scope: Scope) -> None:
        """Passes when the credentials are good for `scope`; else Forbidden."""
        if scope not in self.scopes:
            raise Forbidden(f"these credentials may not {scope}: use some with the scope {scope!r}")


class Authority(Protocol):
    """Tells who asks by the credentials of a request."""

    async def identify(self, connection: HTTPConnection) -> Identity:
        """Raises Unauthenticated, Forbidden or TooManyRequests."""
        ...


ANYBODY = Identity(DEFAULT_TENANT, None)


class Nobody:
    """CONVO_AUTH=none: whoever reaches this (loopback) port may do everything in one tenant."""

    async def identify(self, connection: HTTPConnection) -> Identity:
        """The same for everybody, unless they say for which user they ask."""
        return acting(ANYBODY, connection)


class Limited:
    """An authority whose credentials may ask so often: their own figure, or `per_minute`."""

    def __init__(self, authority: Authority, per_minute: int | None) -> None:
        self._authority = authority
        self._per_minute = per_minute
        self._buckets: OrderedDict[str, Bucket] = OrderedDict()

    async def identify(self, connection: HTTPConnection) -> Identity:
        """Raises TooManyRequests beside what the authority raises."""
        identity = await self._authority.identify(connection)
        per_minute = identity.requests_per_minute or self._per_minute
        if per_minute is not None:
            name = identity.name or identity.user
            bucket = self._buckets.pop(name, None) or Bucket(per_minute / 60, per_minute)
            self._buckets[name] = bucket
            if len(self._buckets) > BUCKETS_MAX:
                self._buckets.popitem(last=False)
            if (after_s := bucket.take()) > 0:
                raise TooManyRequests(
                    f"these credentials may ask {per_minute} times a minute: wait {after_s:.1f} s",
                    after_s,
                )
        return identity


def credentials(connection: HTTPConnection) -> str:
    """The key or token of a request. Raises Unauthenticated when it has none.

    In `Authorization: Bearer` or `X-API-Key`; where a browser cannot set headers, as `access_token`
    in the query (EventSource), or as the WebSocket subprotocol `bearer.<base64url of it>`.
    """
    scheme, _, text = connection.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and text.strip():
        return text.strip()
    found = connection.headers.get("x-api-key")
    if not found and connection.scope["type"] == "websocket":
        found = _of_subprotocols(connection.scope["subprotocols"])
    if not found and connection.scope.get("method", "GET") == "GET":
        found = connection.query_params.get("access_token")
    if not found:
        raise Unauthenticated("credentials are needed: send Authorization: Bearer <key or token>")
    return found


def _of_subprotocols(offered: Iterable[str]) -> str | None:
    for each in offered:
        if each.startswith(BEARER):
            text = each.removeprefix(BEARER)
            try:
                return b64decode(text + "=" * (-len(text) % 4), altchars=b"-_").decode()
            except ValueError:
                return None
    return None


def acting(identity: Identity, connection: HTTPConnection) -> Identity:
    """The identity, for the user that the request names where it has none of its own.

    Raises Forbidden when it names another user than the credentials do.
    """
    user = connection.headers.get(ACTING_FOR)
    if not user or user == identity.user_id:
        return identity
    if identity.user_id is not None:
        raise Forbidden(f"these credentials are of user {identity.user_id!r}, not of {user!r}")
    if len(user) > USER_CHARS_MAX or not user.isprintable():
        raise Forbidden(f"{ACTING_FOR} has to be an id of at most {USER_CHARS_MAX} characters")
    return replace(identity, user_id=user)


async def _identity(connection: HTTPConnection, scope: Scope) -> Identity:
    authority: Authority = connection.app.state.gateway.authority
    identity = await authority.identify(connection)
    identity.may(scope)
    return identity


async def reading(connection: HTTPConnection) -> Identity:
    """Who asks to read."""
    return await _identity(connection, "read")


async def writing(connection: HTTPConnection) -> Identity:
    """Who asks to write."""
    return await _identity(connection, "write")


async def deleting(connection: HTTPConnection) -> Identity:
    """Who asks to delete."""
    return await _identity(connection, "delete")


Reader = Annotated[Identity, Depends(reading)]
Writer = Annotated[Identity, Depends(writing)]
Deleter = Annotated[Identity, Depends(deleting)]
