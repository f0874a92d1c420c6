"""The application: the families' routes over one `Gateway`, and a page for its OpenAPI.

Everything that handlers stand on is in `app.state.gateway`; see `of`.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from services.endpoint import VERSION
from services.gateway import (
    chats,
    conversations,
    errors,
    health,
    page,
    sessions,
    streams,
    threads,
)
from services.gateway.direct import Direct
from services.gateway.gateway import Gateway
from services.gateway.guard import Guard


def create_app(gateway: Gateway) -> FastAPI:
    """The ASGI application of one gateway."""
    app = FastAPI(
        title="Conversation Ledger",
        version=VERSION,
        summary="The system of record for conversations with language models",
        docs_url=None,  # its page loads scripts from elsewhere
        redoc_url=None,
        telemetry={"tracing": False, "metrics": False, "logs": False},
        responses={"default": {"model": errors.Error, "description": "Refused"}},
    )
    app.state.gateway = gateway
    errors.install(app)
    app.add_middleware(Direct, shortcuts=threads.SHORTCUTS)
    app.add_middleware(Guard, settings=gateway.settings)
    if origins := gateway.settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["*"],
            expose_headers=["Retry-After", *chats.PROTOCOL],
        )
    for family in (threads, conversations, streams, sessions, chats, health, page):
        app.include_router(family.router)
    return app
