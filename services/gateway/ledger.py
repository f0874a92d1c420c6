"""Requests to the NATS services, asked again under the same command id when an answer is lost.

Three times, from 0.1 s, doubling; then a clear error. Nothing is kept in memory for later: what
was not acknowledged is told to the caller, who knows whether it still matters. Every call is
bounded in time.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

from nats.aio.client import Client
from nats.errors import Error as NatsError
from nats.errors import MaxPayloadError, NoRespondersError, OutboundBufferLimitError
from nats.errors import TimeoutError as NatsTimeout
from pydantic_core import from_json, to_json

from domain.identity import ConversationId, encode_token, new_id
from services.endpoint import (
    ACTOR,
    COMMAND_ID,
    CONSISTENCY,
    ERROR_CODE,
    EXPECTED_VERSION,
    MIN_SEQ,
    USER,
)
from services.gateway.errors import NOT_INITIALIZED, GatewayError, refused
from services.gateway.identity import Identity

JSON = dict[str, Any]

ANSWER_WITHIN_S = 5.0
"""One answer; a command that takes longer is asked about again, under the same id."""

SEEN_FOR_S = 10.0
SEEN_MAX = 10_000
"""How long, and of how many conversations, it is remembered what viewers here have been told."""

RETRIES = 3
FIRST_PAUSE_S = 0.1

PAGE = 500
_NEWEST = 2**53

SERVICES = {
    "cmd": "commands",
    "list": "directory",
    "search": "directory",
    "sql": "analytics",
    "respond": "responder",
}
"""Who answers subjects that begin so; all others are queries'."""


class Ledger:
    """Asks the services over one connection. Every call raises GatewayError when it is refused."""

    def __init__(self, nats: Client, *, within_s: float = ANSWER_WITHIN_S) -> None:
        self.nats = nats
        self.within_s = within_s
        self._seen: dict[ConversationId, tuple[int, float]] = {}

    def saw(self, id: ConversationId, seq: int) -> None:
        """Viewers are told of this event: what is read from now on includes it.

        They may hear of it before the service that stores it knows that it is stored.
        """
        self._seen.pop(id, None)  # the newest are at the end
        self._seen[id] = (seq, time.monotonic() + SEEN_FOR_S)
        if len(self._seen) > SEEN_MAX:
            del self._seen[next(iter(self._seen))]

    async def command(
        self,
        caller: Identity,
        id: ConversationId,
        verb: str,
        body: JSON | None = None,
        *,
        command_id: str | None = None,
        expected_version: int | None = None,
    ) -> JSON:
        """Writes; returns the reply (contract section 3) once it is durable."""
        headers = {COMMAND_ID: command_id or new_id()}
        if caller.user_id is not None:
            headers[USER] = encode_token(caller.user_id)
        if actor := caller.actor:
            headers[ACTOR] = actor
        if expected_version is not None:
            headers[EXPECTED_VERSION] = str(expected_version)
        return await self.ask(f"convo.cmd.{id.key}.{verb}", body, headers, writes=True)

    async def query(
        self,
        caller: Identity,
        id: ConversationId,
        view: str,
        body: JSON | None = None,
        *,
        min_seq: int | None = None,
        strong: bool = False,
    ) -> JSON:
        """Reads one view (contract section 4), at least as of `min_seq` and of what was seen."""
        headers = {}
        if caller.user_id is not None:
            headers[USER] = encode_token(caller.user_id)
        seen, until = self._seen.get(id, (0, 0.0))
        if seen > (min_seq or 0) and time.monotonic() < until:
            min_seq = seen
        if min_seq is not None:
            headers[MIN_SEQ] = str(min_seq)
        if strong:
            headers[CONSISTENCY] = "strong"
        return await self.ask(f"convo.get.{id.key}.{view}", body, headers)

    async def begin(
        self,
        caller: Identity,
        id: ConversationId,
        verb: str,
        body: JSON,
        *,
        user_id: str | None = None,
        command_id: str | None = None,
    ) -> JSON:
        """Writes as `command` does, and begins the conversation first where there is none yet."""
        command_id = command_id or new_id()
        try:
            return await self.command(caller, id, verb, body, command_id=command_id)
        except GatewayError as error:
            if error.code != NOT_INITIALIZED:
                raise
        await self.command(caller, id, "init", {"user_id": user_id or caller.user})
        return await self.command(caller, id, verb, body, command_id=command_id)

    async def respond(
        self,
        caller: Identity,
        id: ConversationId,
        message_id: str,
        *,
        min_seq: int,
        reply_id: str | None = None,
    ) -> str:
        """Asks the responder to answer a message; the id of the answer, once that has begun.

        Asked again it is the same answer, unless another `reply_id` is given.
        """
        headers = {MIN_SEQ: str(min_seq)}
        if caller.user_id is not None:
            headers[USER] = encode_token(caller.user_id)
        body = {"message_id": message_id}
        if reply_id is not None:
            body["reply_id"] = reply_id
        reply = await self.ask(f"convo.respond.{id.key}", body, headers)
        answer: str = reply["message_id"]
        return answer

    async def messages_newest(
        self, caller: Identity, id: ConversationId, limit: int, *, min_seq: int | None = None
    ) -> JSON:
        """The last `limit` messages since the reset, however many the window holds.

        Returns {version, seq, messages[] oldest first, more: whether there are older ones}.
        """
        messages: deque[JSON] = deque()
        before: int | None = _NEWEST
        reply: JSON = {}
        while before is not None and len(messages) < limit:
            body = {"before_version": before, "limit": min(limit - len(messages), PAGE)}
            page = await self.query(caller, id, "history", body, min_seq=min_seq)
            messages.extendleft(reversed(page["messages"]))
            before = page.get("next")
            reply = reply or page
        return {**reply, "messages": list(messages), "more": before is not None}

    async def list(self, caller: Identity, body: JSON, *, min_seq: int | None = None) -> JSON:
        """The caller's conversations, newest activity first (contract section 4)."""
        return await self._tenant_wide("list", caller, body, min_seq)

    async def search(self, caller: Identity, body: JSON, *, min_seq: int | None = None) -> JSON:
        """Messages of the caller's conversations by what they say (contract section 4)."""
        return await self._tenant_wide("search", caller, body, min_seq)

    async def _tenant_wide(
        self, what: str, caller: Identity, body: JSON, min_seq: int | None
    ) -> JSON:
        if caller.user_id is not None:
            body = {**body, "user_id": caller.user_id}
        headers = {} if min_seq is None else {MIN_SEQ: str(min_seq)}
        return await self.ask(f"convo.{what}.{encode_token(caller.tenant_id)}", body, headers)

    async def ask(
        self,
        subject: str,
        body: JSON | None,
        headers: Mapping[str, str],
        *,
        writes: bool = False,
    ) -> JSON:
        """One request and its reply, which says ok. Asked again where that may help."""
        payload = to_json(body) if body else b""
        pause_s = FIRST_PAUSE_S
        for retries_left in range(RETRIES, -1, -1):
            try:
                return await self._once(subject, payload, headers, writes=writes)
            except GatewayError as failure:
                if not retries_left or not failure.retryable or failure.waited:
                    raise
            await asyncio.sleep(pause_s)
            pause_s *= 2
        raise AssertionError("the last try returns or raises")

    async def _once(
        self, subject: str, payload: bytes, headers: Mapping[str, str], *, writes: bool
    ) -> JSON:
        try:
            message = await self.nats.request(
                subject, payload, timeout=self.within_s, headers=dict(headers) or None
            )
        except NoRespondersError:
            raise _unavailable(f"no service answers {_service(subject)}: look at /health") from None
        except OutboundBufferLimitError:
            raise _unavailable("the connection to NATS is lost: look at /health") from None
        except (TimeoutError, NatsTimeout):
            raise self._silence(subject, writes=writes) from None
        except MaxPayloadError:
            limit = self.nats.max_payload
            raise GatewayError(
                413, "message_too_large", f"a request may be at most {limit:,} bytes: send less"
            ) from None
        except NatsError as error:
            raise _unavailable(f"the connection to NATS failed ({error})") from None
        try:
            return read(message.data, message.headers)
        except GatewayError as refusal:
            # For the event that the caller has seen the service has waited already.
            refusal.waited = refusal.code == "rate_limited" or MIN_SEQ in headers
            raise

    def _silence(self, subject: str, *, writes: bool) -> GatewayError:
        if not writes:
            return _unavailable(f"{_service(subject)} did not answer in {self.within_s:g} s")
        return GatewayError(
            504,
            "outcome_unknown",
            "it may or may not have been written: read the conversation before sending it again",
            retryable=True,
        )


def read(data: bytes, headers: Mapping[str, str] | None) -> JSON:
    """The reply in `data` when it says ok; else GatewayError with the service's own error."""
    try:
        reply = from_json(data)
    except ValueError:
        reply = None
    if not isinstance(reply, dict) or "ok" not in reply:
        raise GatewayError(
            502, "internal", "the answer is none of the ledger's: who listens on its subjects?"
        )
    if reply["ok"] is not True:
        raise refused(reply.get("error") or {}, _status(headers))
    return reply


def _status(headers: Mapping[str, str] | None) -> int:
    text = (headers or {}).get(ERROR_CODE, "")
    return int(text) if text.isdigit() and 400 <= int(text) <= 599 else 500


def _service(subject: str) -> str:
    return SERVICES.get(subject.split(".")[1], "queries")


def _unavailable(message: str) -> GatewayError:
    return GatewayError(503, "storage_unavailable", message, retryable=True)
