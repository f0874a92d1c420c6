"""The edge of a service on NATS: what comes in as bytes and headers, what goes out as JSON.

Requests are taken one at a time by the subscription; a handler that must wait goes on in a task.
Replies go out through one outbox, over a connection that outlives the subscriptions, so that a
service that is told to stop still answers what it has accepted. A request without a reply subject
is carried out and answered to nobody.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import EndpointConfig, Service, ServiceConfig
from pydantic_core import to_json

from domain.errors import InvalidRequest
from domain.identity import ConversationId, decode_token
from infra.jetstream.errors import NATS_FAILURES, reason
from infra.sturdy import MALFORMED
from services.errors import Refusal, refusal
from services.tasks import Tasks

log = logging.getLogger(__name__)

VERSION = "0.1.0"

COMMAND_ID = "Convo-Command-Id"
EXPECTED_VERSION = "Convo-Expected-Version"
ACTOR = "Convo-Actor"
MIN_SEQ = "Convo-Min-Seq"
CONSISTENCY = "Convo-Consistency"
USER = "Convo-User"

ERROR = "Nats-Service-Error"
ERROR_CODE = "Nats-Service-Error-Code"

NEVER_ANSWER = ("convo.", "$")
"""Reply subjects that no answer goes to: the ledger's own, and the system's (JetStream, services).
A client's inbox begins with another word; whoever asks for an answer there wants us to write."""

NAME_MAX = 128
_HEADER_TEXT_MAX = 200
_HEADERS_BYTES_MAX = 512
_UNREADABLE = "\ufffd"  # what nats-py makes of bytes that are no UTF-8
_NUMBER_MAX = 2**53

Headers = Mapping[str, str]
Handler = Callable[[Request], Awaitable[None]]


class Outbox:
    """Sends replies from code that cannot wait: `reply` queues, one task publishes."""

    def __init__(self, nc: Client) -> None:
        self._nc = nc
        self._replies: deque[tuple[str, bytes, dict[str, str] | None]] = deque()
        self._wake = asyncio.Event()
        self._closing = False
        self._task = asyncio.get_running_loop().create_task(self._run())

    @property
    def reply_bytes_max(self) -> int:
        """The largest reply body that the server lets through."""
        return self._nc.max_payload - 4_096

    def reply(self, request: Request, body: Mapping[str, Any] | bytes) -> None:
        """Answers a request with a JSON object, or with the bytes of one."""
        self.send(request, body if isinstance(body, bytes) else to_json(body))

    def refuse(self, request: Request, error: Exception | Refusal) -> None:
        """Answers a request with the contract's error and the headers of NATS micro services."""
        told = error if isinstance(error, Refusal) else refusal(error)
        self.send(request, to_json(told.body()), _headers(told))

    def send(self, request: Request, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Answers a request with these bytes."""
        subject = request._msg.reply  # nats.micro has no public name for it
        if subject:
            self._replies.append((subject, body, headers))
            self._wake.set()

    async def close(self) -> None:
        """Sends what is queued, then stops."""
        self._closing = True
        self._wake.set()
        await self._task
        if self._nc.is_connected:
            try:
                await self._nc.flush()
            except NATS_FAILURES as error:
                log.info("the last replies may not have been sent: %s", reason(error))

    async def _run(self) -> None:
        while self._replies or not self._closing:
            await self._wake.wait()
            self._wake.clear()
            while self._replies:
                subject, body, headers = self._replies.popleft()
                try:
                    await self._publish(subject, body, headers)
                except NATS_FAILURES as error:
                    # The caller asks again, under the same command id where it writes.
                    log.info("a reply was not sent: %s", reason(error))
                except Exception:
                    log.exception("a reply could not be sent")  # nobody else's may be lost for it

    async def _publish(self, subject: str, body: bytes, headers: dict[str, str] | None) -> None:
        if len(body) + (_HEADERS_BYTES_MAX if headers else 0) > self._nc.max_payload:
            # nats-py looks at the body alone; the server would close the connection.
            told = Refusal(
                "invalid_request",
                400,
                f"the answer would be {len(body)} bytes, more than the server carries: "
                "ask for less at once (a smaller limit)",
                retryable=False,
            )
            body, headers = to_json(told.body()), _headers(told)
        await self._nc.publish(subject, body, headers=headers)


class Answering:
    """Answers requests, each in a task of its own: `answer` gives a reply's body, or raises."""

    def __init__(
        self, outbox: Outbox, answer: Callable[[Request], Awaitable[Mapping[str, Any] | bytes]]
    ) -> None:
        self._outbox = outbox
        self._body_for = answer
        self._tasks = Tasks()

    async def handle(self, request: Request) -> None:
        """Takes one request."""
        self._tasks.start(self._respond(request))

    async def idle(self) -> None:
        """Returns once everything that was taken is answered."""
        await self._tasks.idle()

    async def _respond(self, request: Request) -> None:
        try:
            body = await self._body_for(request)
        except Exception as error:  # noqa: BLE001 (no request stays unanswered)
            self._outbox.refuse(request, error)
        else:
            self._outbox.reply(request, body)


def _headers(told: Refusal) -> dict[str, str]:
    return {ERROR: _header_text(told.message), ERROR_CODE: str(told.status)}


async def start_service(
    nc: Client,
    *,
    name: str,
    description: str,
    endpoints: Mapping[str, tuple[str, Handler]],
    says: Callable[[], dict[str, Any]] | None = None,
) -> Service:
    """Starts a NATS micro service; `endpoints` is name → (subject, handler).

    Its `$SRV` subjects answer only once every endpoint listens, and do when this returns. `says` is
    what it tells of its state there: the `data` of its endpoints in `$SRV.STATS`.
    """
    config = ServiceConfig(
        name=name,
        version=VERSION,
        description=description,
        stats_handler=None if says is None else lambda _: says(),
    )
    service = Service(nc, config)
    for endpoint, (subject, handler) in endpoints.items():
        await service.add_endpoint(EndpointConfig(name=endpoint, subject=subject, handler=handler))
    await nc.flush()
    await service.start()
    await nc.flush()
    return service


def conversation_of(subject: str, prefix: str) -> tuple[ConversationId, str]:
    """The conversation and the verb or view that `<prefix><tenant>.<conversation>.<word>` names.

    Raises InvalidRequest for any other subject and for tokens that are not canonical.
    """
    tokens = subject[len(prefix) :].split(".", 2)
    if len(tokens) < 3:
        raise InvalidRequest(
            f"the subject has to be {prefix}<tenant>.<conversation>.<what>; a dot, a blank or "
            "another special character in an id is percent-encoded (a.b is a%2Eb)"
        )
    return ConversationId.from_tokens(tokens[0], tokens[1]), tokens[2]


def header_number(headers: Headers, name: str) -> int | None:
    """The whole number (0 … 2^53) in a header, None where it is not set. Raises InvalidRequest."""
    text = headers.get(name)
    if text is None:
        return None
    if text.isascii() and text.isdigit() and len(text) <= 16 and int(text) <= _NUMBER_MAX:
        return int(text)
    raise InvalidRequest(
        f"header {name} has to be a whole number, not {text[:40]!r}",
        [{"field": name, "problem": "not a whole number"}],
    )


def header_name(headers: Headers, name: str) -> str | None:
    """The text (1 … 128 characters) in a header, None where not set. Raises InvalidRequest."""
    text = headers.get(name)
    if text is not None and _UNREADABLE in text:
        raise InvalidRequest(
            f"header {name} has to be UTF-8", [{"field": name, "problem": "not UTF-8"}]
        )
    if text is None or 0 < len(text) <= NAME_MAX:
        return text
    raise InvalidRequest(
        f"header {name} has to be 1 to {NAME_MAX} characters",
        [{"field": name, "problem": f"{len(text)} characters"}],
    )


def header_user(headers: Headers) -> str | None:
    """The id of the only user whose conversations are asked for, percent-encoded as in a subject;
    None where it is not set. Raises InvalidRequest."""
    text = headers.get(USER)
    return None if text is None else decode_token(text)


def readable_headers(request: Request) -> Headers:
    """The request's headers; empty when it has none. Raises InvalidRequest for a broken block."""
    headers = request.headers or {}
    if MALFORMED in headers:
        raise InvalidRequest("the message's header block is not one (NATS/1.0, names and values)")
    return headers


def header_choice(headers: Headers, name: str, choices: tuple[str, ...]) -> str | None:
    """One of `choices` in a header, None where it is not set. Raises InvalidRequest."""
    text = headers.get(name)
    if text is None or text in choices:
        return text
    raise InvalidRequest(
        f"header {name} has to be one of {', '.join(choices)}",
        [{"field": name, "problem": f"{text[:40]!r} is not known"}],
    )


def _header_text(text: str) -> str:
    """One line of printable ASCII, short enough for a header."""
    line = " ".join(text.split())[:_HEADER_TEXT_MAX].strip()
    return "".join(c if c.isascii() and c.isprintable() else "?" for c in line)
