"""JSON Web Tokens: who asks with one (CONVO_AUTH=jwt).

A token counts when the issuer's key or the shared secret signed it, and issuer, audience and time
are right (30 s of difference between clocks are let pass). The issuer's public keys are fetched
when a token names one that is not known yet, and again every few minutes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from hashlib import sha256
from typing import Any, Final

import jwt
from starlette.requests import HTTPConnection

from domain.errors import InvalidRequest
from domain.identity import ConversationId
from infra.settings import Settings, variable
from services.gateway.errors import Forbidden, GatewayError, Unauthenticated
from services.gateway.identity import SCOPES, USER_CHARS_MAX, Identity, acting, credentials

log = logging.getLogger(__name__)

OF_A_SECRET: Final = ["HS256", "HS384", "HS512"]
OF_PUBLIC_KEYS: Final = [
    *("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    *("ES256", "ES384", "ES512", "EdDSA"),
]
LEEWAY_S: Final = 30
FETCH_WITHIN_S: Final = 5
KEYS_FOR_S: Final = 300

CHECKED_MAX: Final = 10_000
CHECKED_FOR_S: Final = 60.0
"""A token that was checked is not checked again for so long, at most to its own end."""


class Tokens:
    """Tells who asks by their token."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._secret = settings.jwt_secret and settings.jwt_secret.get_secret_value()
        self._jwks = settings.jwt_jwks_url and jwt.PyJWKClient(
            settings.jwt_jwks_url, lifespan=KEYS_FOR_S, timeout=FETCH_WITHIN_S
        )
        self._checked: OrderedDict[bytes, tuple[float, Identity]] = OrderedDict()

    async def identify(self, connection: HTTPConnection) -> Identity:
        """Who asks with the request's token. Raises Unauthenticated or Forbidden."""
        text = credentials(connection)
        digest = sha256(text.encode("utf-8", "surrogateescape")).digest()
        until, identity = self._checked.get(digest, (0.0, None))
        now = time.time()
        if identity is None or now > until:
            claims = await self._claims(text)
            identity = self._identity(claims)
            self._checked[digest] = (min(now + CHECKED_FOR_S, claims["exp"] + LEEWAY_S), identity)
            while len(self._checked) > CHECKED_MAX:
                self._checked.popitem(last=False)
        return acting(identity, connection)

    async def _claims(self, text: str) -> dict[str, Any]:
        try:
            key = self._secret or await self._public_key(text)
            claims: dict[str, Any] = jwt.decode(
                text,
                key,
                algorithms=OF_A_SECRET if self._secret else OF_PUBLIC_KEYS,
                audience=self._settings.jwt_audience,
                issuer=self._settings.jwt_issuer,
                leeway=LEEWAY_S,
                options={"require": ["exp", "iss", "aud"]},
            )
        except jwt.ExpiredSignatureError:
            raise Unauthenticated("the token has expired: get a new one") from None
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthenticated(f"the token is not good here: {_one_line(error)}") from None
        return claims

    async def _public_key(self, text: str) -> Any:
        assert isinstance(self._jwks, jwt.PyJWKClient), "a secret or a URL is set"
        try:
            return (await asyncio.to_thread(self._jwks.get_signing_key_from_jwt, text)).key
        except jwt.PyJWKClientConnectionError as error:
            log.warning("the issuer's keys cannot be fetched: %s", _one_line(error))
            raise GatewayError(
                503,
                "issuer_unavailable",
                f"the issuer's keys cannot be fetched from {variable('jwt_jwks_url')}: try again",
                retryable=True,
            ) from None

    def _identity(self, claims: dict[str, Any]) -> Identity:
        settings = self._settings
        tenant = _claim(claims, settings.jwt_tenant_claim)
        user = _claim(claims, settings.jwt_user_claim)
        if len(user) > USER_CHARS_MAX:
            raise Forbidden(f"a user's id may be at most {USER_CHARS_MAX} characters")
        try:
            ConversationId.parse(tenant, "any")
        except InvalidRequest as error:
            raise Forbidden(error.message) from None
        scopes = SCOPES
        if settings.jwt_scope_claim is not None:
            told = claims.get(settings.jwt_scope_claim, "")
            words = told.split() if isinstance(told, str) else map(str, told or ())
            scopes = SCOPES.intersection(words)
        return Identity(tenant, user, f"{tenant}/{user}", frozenset(scopes))


def _claim(claims: dict[str, Any], name: str) -> str:
    value = claims.get(name)
    if isinstance(value, int):
        value = str(value)
    if not isinstance(value, str) or not value or not value.isprintable():
        raise Forbidden(f"the token has no claim {name!r} that could be an id")
    return value


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
