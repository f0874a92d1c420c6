"""A ledger as its users see it: requests and replies over NATS, and nothing else.

Every answer is checked for what the contract promises of every answer, so that the tests can say
what is particular.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, TypeVar
from uuid import uuid4

from nats.aio.client import Client

REQUEST_TIMEOUT_S = 30.0

STATUS = {
    "invalid_request": 400,
    "conversation_not_initialized": 404,
    "message_not_found": 404,
    "version_conflict": 409,
    "invalid_state": 409,
    "conversation_closed": 410,
    "conversation_erased": 410,
    "message_too_large": 413,
    "rate_limited": 429,
    "storage_unavailable": 503,
    "outcome_unknown": 504,
    "internal": 500,
}
"""The error codes of the contract."""

EVENTUALLY_S = 30.0

JSON = dict[str, Any]
Done = TypeVar("Done")


class Refused(AssertionError):
    """A request that should have been answered with ok was not; `error` says why."""

    def __init__(self, subject: str, error: JSON) -> None:
        super().__init__(f"{subject}: {error}")
        self.error = error


class Conversation:
    """One conversation of a ledger, by its ids as they are (not as subject tokens)."""

    def __init__(self, nats: Client, tenant_id: str, conversation_id: str) -> None:
        self.nats = nats
        self.tenant_id = tenant_id
        self.conversation_id = conversation_id

    @property
    def tokens(self) -> str:
        """`<tenant>.<conversation>` as subject tokens."""
        return f"{token(self.tenant_id)}.{token(self.conversation_id)}"

    # -- commands ------------------------------------------------------------------------------

    async def do(
        self,
        verb: str,
        body: JSON | bytes | None = None,
        headers: JSON | None = None,
        **fields: Any,
    ) -> JSON:
        """Sends a command that has to be carried out; returns the reply."""
        reply = await self.answer(f"convo.cmd.{self.tokens}.{verb}", body, headers, **fields)
        assert reply["tenant_id"] == self.tenant_id
        assert reply["conversation_id"] == self.conversation_id
        assert isinstance(reply["partition"], int)
        assert isinstance(reply["duplicate"], bool)
        for event in reply["events"]:
            assert event.keys() == {"type", "version", "seq"}
        return reply

    async def refused(
        self,
        code: str,
        verb: str,
        body: JSON | bytes | None = None,
        headers: JSON | None = None,
        **fields: Any,
    ) -> JSON:
        """Sends a command that has to be refused with `code`; returns the error."""
        return await refused(
            self.nats, code, f"convo.cmd.{self.tokens}.{verb}", _encoded(body, fields), headers
        )

    async def init(self, **fields: Any) -> JSON:
        """Begins the conversation, for `user_id` ada unless another is given."""
        return await self.do("init", {"user_id": "ada", **fields})

    async def append(
        self, content: Any, role: str = "user", headers: JSON | None = None, **fields: Any
    ) -> JSON:
        """Appends one message."""
        return await self.do("append", {"role": role, "content": content, **fields}, headers)

    # -- queries -------------------------------------------------------------------------------

    async def get(
        self,
        view: str,
        body: JSON | bytes | None = None,
        headers: JSON | None = None,
        **fields: Any,
    ) -> JSON:
        """Asks for a view that has to be answered; returns the reply."""
        return await self.answer(f"convo.get.{self.tokens}.{view}", body, headers, **fields)

    async def get_refused(
        self,
        code: str,
        view: str,
        body: JSON | bytes | None = None,
        headers: JSON | None = None,
        **fields: Any,
    ) -> JSON:
        """Asks for a view that has to be refused with `code`; returns the error."""
        return await refused(
            self.nats, code, f"convo.get.{self.tokens}.{view}", _encoded(body, fields), headers
        )

    async def messages(self, **fields: Any) -> list[JSON]:
        """The recent window, oldest first."""
        found: list[JSON] = (await self.get("messages", fields))["messages"]
        return found

    async def contents(self) -> list[Any]:
        """What was said in the recent window, oldest first."""
        return [message["content"] for message in await self.messages()]

    async def usage(self) -> tuple[JSON, JSON]:
        """The totals since the last reset, and of the whole life."""
        reply = await self.get("usage")
        return reply["usage"], reply["lifetime"]

    async def state(self, **fields: Any) -> JSON:
        """The state object."""
        found: JSON = (await self.get("state", fields))["state"]
        return found

    async def events(self) -> list[JSON]:
        """Every event as stored, read page by page."""
        return await self.pages("events", "events", limit=1_000)

    async def history(self, **fields: Any) -> list[JSON]:
        """Every message since the last reset (or all), read page by page."""
        return await self.pages("history", "messages", **{"limit": 1_000, **fields})

    async def pages(self, view: str, items: str, **fields: Any) -> list[JSON]:
        """All pages of a view from the oldest item on, one behind the other."""
        found: list[JSON] = []
        while True:
            page = await self.get(view, fields)
            found += page[items]
            if "next" not in page:
                return found
            assert page[items], "a page that goes on has something on it"
            fields["after_version"] = page["next"]

    # ------------------------------------------------------------------------------------------

    async def answer(
        self, subject: str, body: JSON | bytes | None, headers: JSON | None, **fields: Any
    ) -> JSON:
        """Sends a request that has to be answered with ok; returns the reply."""
        reply, told = await request(self.nats, subject, _encoded(body, fields), headers)
        if reply["ok"] is not True:
            raise Refused(subject, reply["error"])
        assert not told.keys() & {"Nats-Service-Error", "Nats-Service-Error-Code"}
        assert isinstance(reply["version"], int)
        assert isinstance(reply["seq"], int)
        return reply


class Ledger:
    """A connection to a ledger; `conversation()` gives a fresh one each time."""

    def __init__(self, nats: Client) -> None:
        self.nats = nats

    def conversation(
        self, conversation_id: str | None = None, tenant_id: str = "acme"
    ) -> Conversation:
        """A conversation by its id, or one that nobody has begun yet."""
        return Conversation(self.nats, tenant_id, conversation_id or f"c-{uuid4()}")

    async def begun(self, **fields: Any) -> Conversation:
        """A conversation that has just begun; it is at version 1."""
        conversation = self.conversation()
        await conversation.init(**fields)
        return conversation


async def request(
    nats: Client, subject: str, body: bytes, headers: Mapping[str, str] | None = None
) -> tuple[JSON, Mapping[str, str]]:
    """Sends bytes to a service; returns the JSON object and the headers of the reply."""
    answer = await nats.request(
        subject, body, timeout=REQUEST_TIMEOUT_S, headers=dict(headers) if headers else None
    )
    return parsed(answer.data), answer.headers or {}


async def refused(
    nats: Client, code: str, subject: str, body: bytes, headers: Mapping[str, str] | None = None
) -> JSON:
    """Sends a request that has to be refused with `code`; returns the error."""
    reply, told = await request(nats, subject, body, headers)
    assert reply["ok"] is False, f"{subject} was not refused: {reply}"
    return checked_error(reply, told, code)


def checked_error(reply: JSON, headers: Mapping[str, str], code: str) -> JSON:
    """The error of a reply, which has to be the contract's, whole, and fit for a user's eyes."""
    error: JSON = reply["error"]
    assert error["code"] == code, error
    assert reply.keys() == {"ok", "error"}
    assert error.keys() - {"details"} == {"code", "message", "retryable"}
    assert isinstance(error["retryable"], bool)
    assert error["message"]
    assert not re.search(r"Traceback|\.py\b|object at 0x|pydantic", json.dumps(error))
    assert headers["Nats-Service-Error-Code"] == str(STATUS[code])
    assert headers["Nats-Service-Error"]
    return error


async def eventually(act: Callable[[], Awaitable[Done]]) -> Done:
    """What `act` returns, tried again while it is refused as retryable; bounded."""
    deadline = time.monotonic() + EVENTUALLY_S
    while True:
        try:
            return await act()
        except Refused as refusal:
            if not refusal.error["retryable"] or time.monotonic() > deadline:
                raise
        await asyncio.sleep(0.02)


def parsed(body: bytes) -> JSON:
    """A reply's JSON object, which has to be strict JSON."""
    reply = json.loads(body, parse_constant=_no_constant)
    assert isinstance(reply, dict)
    return reply


def token(text: str) -> str:
    """An id as one subject token, by the contract's words."""
    plain = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_-~:@=+"
    return "".join(chr(byte) if byte in plain else f"%{byte:02X}" for byte in text.encode())


def _no_constant(name: str) -> None:
    raise AssertionError(f"{name} is no JSON")


def _encoded(body: JSON | bytes | None, fields: JSON) -> bytes:
    if isinstance(body, bytes):
        return body
    content = {**(body or {}), **fields}
    return json.dumps(content).encode() if content else b""
