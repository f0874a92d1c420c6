"""What a client that is not on a wire makes of headers that are lines already."""

from __future__ import annotations

from collections.abc import Mapping

from infra.sturdy import headers_of


def as_headers(headers: Mapping[str, str] | str | None) -> dict[str, str] | None:
    """The headers by name; None where there are none."""
    if isinstance(headers, str):
        return headers_of(f"NATS/1.0\r\n{headers}\r\n".encode())
    return dict(headers) if headers else None
