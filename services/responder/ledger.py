"""The responder as a client of the ledger: a request, sent again until it is answered.

Every write carries a command id, so that a repetition writes nothing a second time.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from typing import Any, Final

from nats.aio.client import Client
from nats.errors import Error as NatsError
from pydantic_core import from_json, to_json

from domain.identity import ConversationId, new_id
from services.endpoint import ACTOR, COMMAND_ID, MIN_SEQ, USER
from services.errors import Refusal

log = logging.getLogger(__name__)

WHO: Final = "service:responder"
REQUEST_TIMEOUT_S: Final = 5.0
DEADLINE_S: Final = 30.0
FIRST_PAUSE_S: Final = 0.1
LONGEST_PAUSE_S: Final = 2.0

JSON = dict[str, Any]


class Refused(Exception):
    """The ledger said no, and would again; `refusal` is what it said."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal

    @property
    def code(self) -> str:
        return self.refusal.code


class Conversation:
    """One conversation, over the connection `nc`."""

    def __init__(self, nc: Client, id: ConversationId) -> None:
        self._nc = nc
        self.id = id

    async def state(self, min_seq: int | None, user_id: str | None) -> JSON:
        """The state, which includes the event with `min_seq`, as far as `user_id` may see it.

        Raises Refused.
        """
        headers = {} if min_seq is None else {MIN_SEQ: str(min_seq)}
        if user_id is not None:
            headers[USER] = user_id
        reply = await self._ask(f"convo.get.{self.id.key}.state", {}, headers)
        state: JSON = reply["state"]
        return state

    async def do(
        self, verb: str, body: Mapping[str, Any], *, deadline_s: float = DEADLINE_S
    ) -> JSON:
        """Carries a command out, once; returns the reply. Raises Refused."""
        headers = {COMMAND_ID: new_id(), ACTOR: WHO}
        return await self._ask(f"convo.cmd.{self.id.key}.{verb}", body, headers, deadline_s)

    async def _ask(
        self,
        subject: str,
        body: Mapping[str, Any],
        headers: dict[str, str],
        deadline_s: float = DEADLINE_S,
    ) -> JSON:
        loop = asyncio.get_running_loop()
        give_up_at = loop.time() + deadline_s
        pause_s = FIRST_PAUSE_S
        while True:
            refusal = await self._ask_once(subject, to_json(body), headers)
            if isinstance(refusal, dict):
                return refusal
            wait_s = max(pause_s, (refusal.details or {}).get("retry_after_ms", 0) / 1_000)
            if not refusal.retryable or loop.time() + wait_s > give_up_at:
                raise Refused(refusal)
            await asyncio.sleep(wait_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _ask_once(self, subject: str, body: bytes, headers: dict[str, str]) -> JSON | Refusal:
        try:
            answer = await self._nc.request(
                subject, body, timeout=REQUEST_TIMEOUT_S, headers=headers
            )
        except NatsError as error:
            return Refusal(
                "storage_unavailable",
                503,
                f"the ledger did not answer the responder ({type(error).__name__}): try again",
                retryable=True,
            )
        reply: JSON = from_json(answer.data)
        if reply["ok"]:
            return reply
        told = reply["error"]
        return Refusal(
            told["code"],
            int((answer.headers or {}).get("Nats-Service-Error-Code", "500")),
            told["message"],
            told["retryable"],
            told.get("details"),
        )
