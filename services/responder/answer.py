"""One answer: begun, written piece by piece as the model makes it, and ended.

It ends whole (`reply.finish`, with the model's own usage), as the model leaves it (`reply.abort`:
it failed, or fell silent), or when anybody aborts it: a stop, a reset, a closed conversation. That
is heard from `convo.live` and told by the next chunk's refusal, whichever comes first; what was
written stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Final

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import Error as NatsError
from pydantic_core import from_json

from services.gathering import Pieces, gathered
from services.responder.ledger import JSON, Conversation, Refused
from services.responder.models import Ending, Model, ModelFailed
from services.responder.prompt import ChatMessage
from services.tasks import ended

log = logging.getLogger(__name__)

PIECES_AHEAD: Final = 1_000
"""How far the model may be ahead of the ledger."""

OVER: Final = frozenset(
    {"invalid_state", "message_not_found", "conversation_closed", "conversation_erased"}
)
"""Refusals which say that the reply has been ended by somebody."""

ABORT_WITHIN_S: Final = 5.0


class Answer:
    """An answer that is on its way; `run` writes it."""

    def __init__(
        self,
        conversation: Conversation,
        model: Model,
        message_id: str,
        *,
        model_name: str,
        silence_s: float,
    ) -> None:
        self.conversation = conversation
        self.message_id = message_id
        self.over = False
        """Its end is in the ledger."""
        self._model = model
        self._model_name = model_name
        self._silence_s = silence_s
        self._pieces: Pieces = asyncio.Queue(PIECES_AHEAD)
        self._ending: Ending | None = None
        self._next_index = 0
        self._writing: asyncio.Task[None] | None = None
        self._stopping = False
        self._live: Subscription | None = None

    async def start(self, nc: Client, metadata: JSON) -> JSON:
        """Begins the message, and listens to what others do to it; returns the reply.

        Raises Refused: the id may be taken.
        """
        self._live = await self._listen(nc)  # first: it may be ended as soon as it has begun
        try:
            return await self.conversation.do(
                "reply.start",
                {"message_id": self.message_id, "model": self._model_name, "metadata": metadata},
            )
        except Exception:
            await self._listen_no_more(nc)
            raise

    async def run(self, nc: Client, messages: Sequence[ChatMessage]) -> None:
        """Asks the model and writes what it says; returns when the reply has ended, or `stop` was
        called. Not to be cancelled."""
        loop = asyncio.get_running_loop()
        asking = loop.create_task(self._ask(messages))
        self._writing = loop.create_task(self._write())
        if self._stopping or self.over:
            self._writing.cancel()
        await asyncio.wait({self._writing})
        await ended(asking)
        await self._listen_no_more(nc)
        if not self._writing.cancelled() and (failure := self._writing.exception()):
            log.error("an answer could not be written", exc_info=failure)
            await self.abort("failed")

    async def stop(self, reason: str) -> None:
        """Ends the reply as it is, from outside."""
        self._stopping = True
        if self._writing is not None:
            await ended(self._writing)
        await self.abort(reason)

    async def _listen(self, nc: Client) -> Subscription | None:
        try:
            return await nc.subscribe(f"convo.live.*.{self.conversation.id.key}", cb=self._hear)
        except NatsError as error:  # a stop is then told by the next chunk's refusal
            log.info("no live events for an answer: %r", error)
            return None

    async def _listen_no_more(self, nc: Client) -> None:
        if self._live is not None and not nc.is_closed:
            with contextlib.suppress(NatsError):
                await self._live.unsubscribe()

    async def abort(self, reason: str) -> None:
        """Ends the reply as it is, unless it has ended; what cannot be written is left to the
        sweeper."""
        if self.over:
            return
        try:
            await self.conversation.do(
                "reply.abort",
                {"message_id": self.message_id, "reason": reason},
                deadline_s=ABORT_WITHIN_S,
            )
        except Refused as refused:
            if refused.code not in OVER:
                log.warning("%s is left to the sweeper: %s", self.message_id, refused)
        self.over = True

    async def _ask(self, messages: Sequence[ChatMessage]) -> None:
        try:
            async with contextlib.aclosing(
                self._model.answer(messages, self._model_name)
            ) as pieces:
                while not isinstance(piece := await self._next(pieces), Ending):
                    # A lone half of a surrogate pair is no text, and could not be stored.
                    await self._pieces.put(piece.encode(errors="replace").decode())
            self._ending = piece
            await self._pieces.put(None)
        except Exception as error:  # whatever it is, the reply has to end
            if not isinstance(error, ModelFailed):
                log.exception("the model's answer could not be read")
            await self._pieces.put(error)

    async def _next(self, pieces: AsyncGenerator[str | Ending, None]) -> str | Ending:
        try:
            async with asyncio.timeout(self._silence_s):
                return await anext(pieces)
        except TimeoutError:
            raise ModelFailed("the model fell silent") from None

    async def _write(self) -> None:
        try:
            while texts := await gathered(self._pieces):
                await self._command("reply.chunk", index=self._next_index, texts=texts)
                self._next_index += len(texts)
            await self._finish()
        except ModelFailed as failed:
            await self.abort(str(failed))
        except Refused as refused:
            if refused.code in OVER:
                self.over = True
            elif refused.code == "message_too_large":
                self._ending = Ending("length", None)
                await self._finish()
            else:
                log.warning("%s cannot be written: %s", self.message_id, refused)
                await self.abort("failed")

    async def _finish(self) -> None:
        assert self._ending is not None, "a model ends with an Ending"
        usage = {} if self._ending.usage is None else {"usage": self._ending.usage}
        await self._command("reply.finish", finish_reason=self._ending.finish_reason, **usage)
        self.over = True

    async def _command(self, verb: str, **fields: object) -> None:
        await self.conversation.do(verb, {"message_id": self.message_id, **fields})

    async def _hear(self, message: Msg) -> None:
        """Stops at once when somebody else has ended the reply."""
        if b'"ReplyAborted"' not in message.data:
            return
        event = from_json(message.data)
        if event["type"] == "ReplyAborted" and event["data"]["message_id"] == self.message_id:
            self.over = True
            if self._writing is not None:
                self._writing.cancel()
