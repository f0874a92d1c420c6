"""How a failure is told over HTTP and WebSocket: one body for every family, made here alone.

    {"success": false, "error": "what to do next", "code": "…", "retryable": …, "details"?: …}

The status is that of the contract's code (section 3); the gateway's own refusals are below.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Mapping
from typing import Any, Literal

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from domain.errors import ConversationError

log = logging.getLogger(__name__)

NOT_INITIALIZED = "conversation_not_initialized"

SENTENCES = {NOT_INITIALIZED: "Conversation not initialized"}
"""What front ends know an error by, in place of the service's own sentence."""

CODES = {404: "not_found", 405: "method_not_allowed", 413: "message_too_large"}
"""Of the framework's refusals; any other is an invalid request."""


class Error(BaseModel):
    """What every refusal looks like."""

    success: Literal[False]
    error: str
    code: str
    retryable: bool
    details: Any = None


class GatewayUnusable(Exception):
    """The gateway cannot run as it is set; the message says what to do."""


class GatewayError(Exception):
    """A request that is refused. `message` says what to do next; `headers` go with the answer.

    `waited`: to ask again at once would not help.
    """

    waited = False

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        retryable: bool = False,
        details: Any = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = SENTENCES.get(code, message)
        self.retryable = retryable
        self.details = details
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The answer's JSON object."""
        told: dict[str, Any] = {
            "success": False,
            "error": self.message,
            "code": self.code,
            "retryable": self.retryable,
        }
        if self.details is not None:
            told["details"] = self.details
        return told


class Unauthenticated(GatewayError):
    """No credentials, or none that are known."""

    def __init__(self, message: str) -> None:
        super().__init__(401, "unauthenticated", message, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(GatewayError):
    """The credentials are good, and not for this."""

    def __init__(self, message: str) -> None:
        super().__init__(403, "forbidden", message)


class TooManyRequests(GatewayError):
    """One key asks more often than it may; `after_s` says when to come back."""

    def __init__(self, message: str, after_s: float) -> None:
        super().__init__(
            429,
            "rate_limited",
            message,
            retryable=True,
            details={"retry_after_ms": math.ceil(after_s * 1000)},
            headers={"Retry-After": str(max(1, math.ceil(after_s)))},
        )


def invalid(message: str, field: str | None = None) -> GatewayError:
    """A request that cannot be understood."""
    details = [{"field": field, "problem": message}] if field else None
    return GatewayError(400, "invalid_request", message, details=details)


def not_called_json() -> GatewayError:
    """A body that a browser would send from any page, without asking whether it may."""
    return invalid("the body is read as JSON only with the header Content-Type: application/json")


def not_initialized() -> GatewayError:
    """The conversation does not exist, or is not for who asks."""
    return GatewayError(404, NOT_INITIALIZED, SENTENCES[NOT_INITIALIZED])


def refused(error: Mapping[str, Any], status: int) -> GatewayError:
    """The error of a service's reply, as it is told over HTTP."""
    details = error.get("details")
    headers = {}
    if isinstance(details, dict) and isinstance(
        after := details.get("retry_after_ms"), int | float
    ):
        headers["Retry-After"] = str(max(1, math.ceil(after / 1000)))
    return GatewayError(
        status,
        str(error.get("code", "internal")),
        str(error.get("message") or "the service refused without saying why"),
        retryable=error.get("retryable") is True,
        details=details,
        headers=headers,
    )


def told(error: Exception) -> GatewayError:
    """What to tell about any exception; an unexpected one is logged with its incident."""
    match error:
        case GatewayError():
            return error
        case ConversationError():
            return GatewayError(error.status, error.code, error.message, details=error.details)
        case RequestValidationError():
            return unreadable(error)
        case HTTPException():
            code = CODES.get(error.status_code, "invalid_request")
            return GatewayError(error.status_code, code, str(error.detail), headers=error.headers)
    incident = secrets.token_hex(6)
    log.error("incident %s", incident, exc_info=error)
    return GatewayError(
        500,
        "internal",
        f"a fault of ours; it is in the log as incident {incident}",
        details={"incident": incident},
    )


def response(error: GatewayError) -> Response:
    """The HTTP answer that tells it."""
    return Response(
        to_json(error.body()), error.status, headers=error.headers, media_type="application/json"
    )


def install(app: FastAPI) -> None:
    """Every exception of a handler is answered in the one form."""

    async def answer(_: Request, error: Exception) -> Response:
        return response(told(error))

    for kind in (GatewayError, ConversationError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)


def unreadable(error: RequestValidationError | ValidationError) -> GatewayError:
    """Names each field that is wrong, where it stands."""
    if isinstance(error, RequestValidationError) and isinstance(error.body, bytes):
        return invalid(
            "the body is read as JSON only with the header Content-Type: application/json"
        )
    found = []
    for each in error.errors():
        place = [str(part) for part in each["loc"] if part not in ("body", "query", "path")]
        found.append({"field": ".".join(place) or "body", "problem": each["msg"]})
    named = "; ".join(f"{each['field']}: {each['problem']}" for each in found[:5])
    return GatewayError(400, "invalid_request", f"the request is wrong: {named}", details=found)
