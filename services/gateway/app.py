"""The application: the families' routes over one `Gateway`, and a page for its OpenAPI.

Everything that handlers stand on is in `app.state.gateway`; see `of`.
"""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

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
    for family in (threads, conversations, streams, sessions, chats, health, page):
        app.include_router(family.router)
    return app


def guarded(app: FastAPI, gateway: Gateway) -> ASGIApp:
    """The application behind what is looked at before any route; what a server serves."""
    settings = gateway.settings
    guard = Guard(Direct(app, threads.SHORTCUTS), settings=settings)
    if not settings.allowed_origins:
        return guard
    return CORSMiddleware(
        guard,
        allow_origins=sorted(settings.allowed_origins),
        allow_methods=["GET", "POST", "PUT", "DELETE"],
        allow_headers=["*"],
        expose_headers=["Retry-After", *chats.PROTOCOL],
    )
