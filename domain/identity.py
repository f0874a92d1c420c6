"""Names: of conversations, as ids and as NATS subject tokens, and of messages and commands.

An id is any text of 1 to 200 bytes of UTF-8. A token is that id percent-encoded so that it is
one subject token whatever it holds: every byte outside `A-Z a-z 0-9 _ - ~ : @ = +` is `%XX` with
upper-case hex. Each id has exactly one token and each token exactly one id; a token written in
any other way is refused, so that a conversation never has two subjects.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from os import urandom
from struct import unpack
from typing import NamedTuple

from . import clock
from .errors import InvalidRequest

ID_BYTES_MAX = 200

_ENCODED_ALWAYS = re.compile(rb"[^A-Za-z0-9_\-~:@=+]")
_ENCODED = re.compile(rb"%([0-9A-F]{2})")
_CACHED_NAMES = 65_536


@lru_cache(_CACHED_NAMES)
def encode_token(text: str) -> str:
    """Returns the id as one subject token; raises InvalidRequest for a lone surrogate."""
    try:
        raw = text.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(
            "an id must be text that UTF-8 can hold, without lone surrogates"
        ) from None
    return _ENCODED_ALWAYS.sub(lambda match: b"%%%02X" % match[0][0], raw).decode("ascii")


@lru_cache(_CACHED_NAMES)
def decode_token(token: str) -> str:
    """Returns the id that the token stands for.

    Raises InvalidRequest unless the token is canonical: UTF-8, upper-case hex, and nothing
    encoded that need not be.
    """
    try:
        raw = _ENCODED.sub(lambda match: bytes.fromhex(match[1].decode()), token.encode())
        text = raw.decode()
    except UnicodeError:
        raise InvalidRequest(f"subject token {token!a} is not percent-encoded UTF-8") from None
    if encode_token(text) != token:
        raise InvalidRequest(
            f"subject token {token!a} is not canonical: write {encode_token(text)} for this id"
        )
    return text


def _checked(field: str, text: str) -> str:
    """Returns the id as it is, or raises InvalidRequest that names the field."""
    if not text:
        raise _bad_id(field, "must not be empty")
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise _bad_id(field, "must be text that UTF-8 can hold, without lone surrogates") from None
    if size > ID_BYTES_MAX:
        raise _bad_id(field, f"is {size} bytes of UTF-8 and may be at most {ID_BYTES_MAX}")
    return text


def _bad_id(field: str, problem: str) -> InvalidRequest:
    return InvalidRequest(f"{field} {problem}", [{"field": field, "problem": problem}])


class ConversationId(NamedTuple):
    """The name of a conversation, unique in a ledger. Make one with `parse` or `from_tokens`."""

    tenant_id: str
    conversation_id: str

    @property
    def key(self) -> str:
        """`<tenant token>.<conversation token>`, the originator id of its events."""
        return _key(self)

    @classmethod
    def parse(cls, tenant_id: str, conversation_id: str) -> ConversationId:
        """Returns the name made of two raw ids.

        Raises InvalidRequest for an id that is empty, over 200 bytes or no UTF-8.
        """
        return cls(_checked("tenant_id", tenant_id), _checked("conversation_id", conversation_id))

    @classmethod
    def from_tokens(cls, tenant_token: str, conversation_token: str) -> ConversationId:
        """Returns the name that two subject tokens stand for.

        Raises InvalidRequest for a token that is not canonical or an id that is not legal.
        """
        return _from_tokens(tenant_token, conversation_token)

    @classmethod
    def from_key(cls, key: str) -> ConversationId:
        """Returns the name whose `key` this is; raises InvalidRequest for anything else."""
        return _from_key(key)


@lru_cache(_CACHED_NAMES)
def _key(id: ConversationId) -> str:
    return f"{encode_token(id.tenant_id)}.{encode_token(id.conversation_id)}"


@lru_cache(_CACHED_NAMES)
def _from_tokens(tenant_token: str, conversation_token: str) -> ConversationId:
    return ConversationId.parse(decode_token(tenant_token), decode_token(conversation_token))


@lru_cache(_CACHED_NAMES)
def _from_key(key: str) -> ConversationId:
    tenant_token, dot, conversation_token = key.partition(".")
    if not dot:
        raise InvalidRequest(f"{key!a} is not the key of a conversation: two tokens and a dot")
    return _from_tokens(tenant_token, conversation_token)


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _numbers() -> Iterator[int]:
    """The system's random numbers of 64 bits, 512 at a time: a call costs more than an id."""
    while True:
        yield from unpack("512Q", urandom(4096))


def _begin_anew() -> None:
    global _random  # noqa: PLW0603
    _random = _numbers()


_random = _numbers()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)  # not the numbers that the parent has


def new_id(time: datetime | None = None) -> str:
    """Returns a fresh UUIDv7 (RFC 9562, method 3: the microseconds are in it) of the clock's time.

    Ids made at different microseconds sort in the order of their making.
    """
    milliseconds, microseconds = divmod(((time or clock.now()) - _EPOCH) // _MICROSECOND, 1000)
    fraction = microseconds * 4096 // 1000
    random = next(_random) >> 2
    number = milliseconds << 80 | 7 << 76 | fraction << 64 | 2 << 62 | random
    text = f"{number:032x}"
    return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"
