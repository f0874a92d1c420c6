"""The application: the families' routes over one `Gateway`, and a page for its OpenAPI.

Everything that handlers stand on is in `app.state.gateway`; see `of`.
"""

from __future__ import annotations

from fastapi import FastAPI

from services.endpoint import VERSION
from services.gateway import chats, conversations, errors, sessions, streams, threads
from services.gateway.gateway import Gateway

BODY_BYTES_MAX = 8 * 1024 * 1024 - 64 * 1024
"""Of a request; the server's payload limit, less what a command adds."""


def create_app(gateway: Gateway) -> FastAPI:
    """The ASGI application of one gateway."""
    app = FastAPI(
        title="Conversation Ledger",
        version=VERSION,
        summary="The system of record for conversations with language models",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        max_body_size=BODY_BYTES_MAX,
    )
    app.state.gateway = gateway
    errors.install(app)
    for family in (threads, conversations, streams, sessions, chats):
        app.include_router(family.router)
    return app
