"""The pages: chats in a browser at `/`, the OpenAPI document at `/docs`, from files that are here.
Nothing comes from elsewhere, and their Content-Security-Policy lets nothing come.

The chats are read by the streams family's WebSocket and written by the chats family's requests.
"""

from __future__ import annotations

from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Final

from fastapi import APIRouter, Header, Response

router = APIRouter(include_in_schema=False)

POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "Cache-Control": "no-cache",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
FILES: Final = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs": ("docs.html", "text/html"),
    "/docs.css": ("docs.css", "text/css"),
    "/docs.js": ("docs.js", "text/javascript"),
}


def _add(path: str, name: str, media_type: str) -> None:
    content = (files(__package__) / name).read_bytes()
    tag = f'"{sha256(content).hexdigest()[:32]}"'

    async def file(known: Annotated[str | None, Header(alias="If-None-Match")] = None) -> Response:
        headers = {**HEADERS, "ETag": tag}
        if known == tag:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    router.add_api_route(path, file, methods=["GET", "HEAD"])


for _path, (_name, _media_type) in FILES.items():
    _add(_path, _name, _media_type)
