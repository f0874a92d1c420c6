"""Names of any kind as parts of stream names and subjects, percent-encoded and back.

Encoding is injective, so that no name can reach what belongs to another one.
"""

from __future__ import annotations

from functools import lru_cache
from urllib.parse import quote, unquote

from eventsourcing.persistence import DataError

TOKEN_BYTES_MAX = 1_024
"""Of one encoded subject token: a whole subject has to fit into NATS's control line of 4 KiB."""

STREAM_PREFIX_BYTES_MAX = 200
"""A stream name, with what is put behind the prefix, may have 255."""


@lru_cache(maxsize=65_536)
def encode_token(text: str) -> str:
    """The text as one subject token: every byte outside `A-Z a-z 0-9 _ - ~ : @ = +` is `%XX`.

    Raises DataError when it is empty, too long or not encodable in UTF-8.
    """
    try:
        token = quote(text, safe=":@=+", errors="strict").replace(".", "%2E")
    except UnicodeEncodeError as error:
        raise DataError(f"{text!r} cannot be encoded in UTF-8, and so not be stored") from error
    if not token or len(token) > TOKEN_BYTES_MAX:
        raise DataError(
            f"{text[:40]!r} takes {len(token)} bytes as a NATS subject token; "
            f"1 to {TOKEN_BYTES_MAX} are possible"
        )
    return token


@lru_cache(maxsize=65_536)
def decode_token(token: str) -> str:
    """The text that `encode_token` made the token of."""
    return unquote(token, errors="strict")


def stream_prefix(name: str) -> str:
    """The name as the beginning of stream names and subjects.

    Every byte outside `A-Z a-z 0-9 _ -` is `%XX`. Raises ValueError when it is empty, too long or
    not encodable in UTF-8.
    """
    prefix = quote(name, safe="", errors="strict").replace(".", "%2E").replace("~", "%7E")
    if not prefix or len(prefix) > STREAM_PREFIX_BYTES_MAX:
        raise ValueError(
            f"{name[:40]!r} takes {len(prefix)} bytes in a stream name; "
            f"1 to {STREAM_PREFIX_BYTES_MAX} are possible"
        )
    return prefix
