"""Routes that are asked thousands of times a second, answered past the framework: finding the route
and its parameters costs FastAPI more than all else that such a request costs.

They stand among its routes like any other, for the OpenAPI document and for who reads the code;
what the framework would have done for them, the handler does by itself (`bodies.body_of`).
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from fastapi import FastAPI
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from services.gateway.errors import response, told


class Shortcut(NamedTuple):
    """A handler of requests whose method is `method` and whose path `path` matches; the groups are
    its arguments."""

    method: str
    path: re.Pattern[str]
    handler: Callable[..., Awaitable[Response]]


class Direct:
    """Takes the shortcuts, and leaves everything else to the application."""

    def __init__(self, app: FastAPI, shortcuts: Sequence[Shortcut]) -> None:
        self._app = app
        self._shortcuts = tuple(shortcuts)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers the request; what the handler raises is told in the one form of `errors`."""
        if scope["type"] == "http":
            for method, path, handler in self._shortcuts:
                if scope["method"] == method and (found := path.fullmatch(scope["path"])):
                    scope["app"] = self._app
                    try:
                        answer = await handler(Request(scope, receive), *found.groups())
                    except ClientDisconnect:
                        return  # nobody waits for an answer
                    except Exception as error:  # noqa: BLE001 (whatever it is, it is told)
                        answer = response(told(error))
                    await answer(scope, receive, send)
                    return
        await self._app(scope, receive, send)
