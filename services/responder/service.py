"""The responder on NATS: `convo.respond.<tenant>.<conversation>`, one answer for each user message.

A request names the message to be answered and is replied to once the answer has begun; the answer
is then written into the ledger, whoever watches. Several responders may run: a request reaches one
of them, and the answer's message id follows from the id of what it answers, so that the ledger
itself refuses a second one, however often it was asked.

Nobody needs to know which process answers: to stop it is `reply.abort`, by anyone (contract,
section 3). A process that is told to stop aborts its own answers at once; those of one that was
killed are ended by the sweeper.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from hashlib import sha256
from typing import Annotated, Final

from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import Service
from pydantic import Field

from domain.commands import parse_as
from domain.errors import InvalidRequest, MessageNotFound
from domain.identity import ConversationId
from infra.connection import connect
from infra.settings import Settings
from services.endpoint import (
    MIN_SEQ,
    NEVER_ANSWER,
    USER,
    Outbox,
    header_number,
    readable_headers,
    start_service,
)
from services.errors import Refusal
from services.queries import Query
from services.responder.answer import Answer
from services.responder.ledger import Conversation, Refused
from services.responder.models import ECHO, model_of
from services.responder.prompt import ChatMessage, last_question, prompt

PREFIX: Final = "convo.respond."
AT_ONCE: Final = 256
"""How many answers one process writes at a time; who asks for more is told to come back."""

_ID_MAX: Final = 128
_OF_REPLY_SILENCE: Final = 0.75  # the sweeper must not be faster

Id = Annotated[str, Field(min_length=1, max_length=_ID_MAX)]


class RespondRequest(Query):
    """Answer `message_id`, or the newest user message; `reply_id` names another attempt."""

    message_id: Id | None = None
    reply_id: Id | None = None


@contextlib.asynccontextmanager
async def running(settings: Settings, *, url: str) -> AsyncIterator[None]:
    """Runs a responder of the ledger at `url` (NATS) inside the block.

    Leaving the block aborts the answers that are on their way. Raises ConnectionRefused.
    """
    async with contextlib.AsyncExitStack() as stack:
        serving = await connect(url, name="convo-responder", settings=settings)
        serving.never_answer = NEVER_ANSWER
        stack.push_async_callback(serving.close)
        writing = await connect(url, name="convo-responder-write", settings=settings)
        stack.push_async_callback(writing.close)
        outbox = Outbox(writing)
        stack.push_async_callback(outbox.close)
        responder = Responder(settings, writing, outbox)
        await responder.start(serving)
        try:
            yield
        finally:
            if serving.is_connected:
                await serving.drain()
            await responder.close()


class Responder:
    """Answers user messages over the connection `nc`, with one model."""

    def __init__(self, settings: Settings, nc: Client, outbox: Outbox) -> None:
        self._settings = settings
        self._nc = nc
        self._outbox = outbox
        self._model = model_of(settings)
        self._tasks: set[asyncio.Task[None]] = set()
        self._answers: set[Answer] = set()
        self._closing = False
        self._silence_s = min(
            settings.model_timeout.total_seconds(),
            _OF_REPLY_SILENCE * settings.reply_silence.total_seconds(),
        )

    async def start(self, serving: Client) -> Service:
        """Listens on `serving`, in the queue group that all responders share."""
        return await start_service(
            serving,
            name="convo-responder",
            description=f"Answers user messages with {self._model.name}",
            endpoints={"respond": (f"{PREFIX}>", self.handle)},
        )

    async def handle(self, request: Request) -> None:
        """Takes one request; the answer goes on in a task of its own."""
        if len(self._tasks) >= AT_ONCE:
            self._outbox.refuse(
                request,
                Refusal(
                    "rate_limited",
                    429,
                    f"{AT_ONCE} answers are on their way here: try again in a second",
                    retryable=True,
                    details={"retry_after_ms": 1_000},
                ),
            )
            return
        task = asyncio.get_running_loop().create_task(self._respond(request))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Aborts the answers that are on their way; what was said of them stays."""
        self._closing = True
        await asyncio.gather(*(answer.stop("interrupted") for answer in self._answers))
        await asyncio.gather(*self._tasks)

    async def _respond(self, request: Request) -> None:
        try:
            answer, messages = await self._begun(request)
        except Refused as refused:
            self._outbox.refuse(request, refused.refusal)
            return
        except Exception as error:  # noqa: BLE001 (no request stays unanswered)
            self._outbox.refuse(request, error)
            return
        if answer is None:
            return
        if self._closing:
            await answer.stop("interrupted")
            return
        self._answers.add(answer)
        try:
            await answer.run(self._nc, messages)
        finally:
            self._answers.discard(answer)

    async def _begun(self, request: Request) -> tuple[Answer | None, list[ChatMessage]]:
        """The answer, begun and told to the caller; None when it had begun before."""
        id = ConversationId.from_tokens(*_tokens(request.subject))
        asked = parse_as(RespondRequest, "respond", request.data)
        conversation = Conversation(self._nc, id)
        headers = readable_headers(request)
        state = await conversation.state(header_number(headers, MIN_SEQ), headers.get(USER))
        question = asked.message_id or last_question(state)
        if question is None:
            raise MessageNotFound("the window holds no user message to answer: append one first")
        messages = prompt(state, question, self._settings.model_messages)
        if messages is None:
            raise MessageNotFound.named(question)
        message_id = asked.reply_id or reply_id(question)
        echoes = self._model.name == ECHO
        answer = Answer(
            conversation,
            self._model,
            message_id,
            model_name=ECHO if echoes else state["model"] or self._model.name,
            silence_s=self._silence_s,
        )
        body = {
            "ok": True,
            "tenant_id": id.tenant_id,
            "conversation_id": id.conversation_id,
            "message_id": message_id,
            "answers": question,
        }
        try:
            begun = await answer.start(self._nc, {"answers": question})
        except Refused as refused:
            taken = (refused.refusal.details or {}).get("message_id") == message_id
            if refused.code != "invalid_state" or not taken:
                raise
            seen = {"version": state["version"], "seq": state["seq"], "duplicate": True}
            self._outbox.reply(request, {**body, **seen})
            return None, []
        stored = {"version": begun["version"], "seq": begun["seq"], "duplicate": False}
        self._outbox.reply(request, {**body, **stored})
        return answer, messages


def reply_id(message_id: str) -> str:
    """The id of the one answer that a user message gets without asking for another."""
    if len(message_id) <= _ID_MAX - 3:
        return f"re-{message_id}"
    return f"re-{sha256(message_id.encode()).hexdigest()}"


def _tokens(subject: str) -> tuple[str, str]:
    tokens = subject.removeprefix(PREFIX).split(".")
    if len(tokens) != 2:
        raise InvalidRequest(
            f"the subject has to be {PREFIX}<tenant>.<conversation>; a dot in an id is %2E"
        )
    return tokens[0], tokens[1]
