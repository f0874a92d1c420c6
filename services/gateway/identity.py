"""Who is asking: a tenant, a user and what they may do, from the request's credentials.

Handlers ask for an identity by naming one of `Reader`, `Writer` and `Deleter` among their
parameters; it works for HTTP and WebSockets alike. An identity with a user sees that user's
conversations and no others: the services refuse the rest (`Convo-User`), as if they did not exist.
One without a user acts for the whole tenant (a back end with a key of its own).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, get_args

from fastapi import Depends
from starlette.requests import HTTPConnection

from domain.identity import ConversationId
from services.gateway.errors import Forbidden

Scope = Literal["read", "write", "delete"]
SCOPES: frozenset[str] = frozenset(get_args(Scope))

DEFAULT_TENANT = "default"
LOCAL_USER = "local"
"""Whose chats are listed where nobody has to say who they are."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Who asks. `name` is that of the credentials (a key's name, a token's subject).

    `user_id` None: they act for every user of the tenant. `trusted` False: a header may not say
    otherwise.
    """

    tenant_id: str
    user_id: str | None
    name: str | None = None
    scopes: frozenset[str] = SCOPES
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

    async def identify(self, connection: HTTPConnection) -> Identity:  # noqa: ARG002
        """The same for everybody."""
        return ANYBODY


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
