"""The family `streams`: one WebSocket for a chat whose answers are made elsewhere and outlive their
viewers.

A client that comes gets `catchup`, everything up to now, and then what follows. Frames come from
the conversation's own events, whoever caused them, so that all viewers see the same; what no frame
of its own tells (another one's question, an edit, a reset) is told by a new `catchup`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, suppress
from typing import Annotated, Any, Final

from fastapi import APIRouter, Header, Path, Query, WebSocket, WebSocketDisconnect

from domain.identity import ConversationId, decode_token, encode_token, new_id
from domain.messages import texts_of
from services.gateway import answers
from services.gateway.bodies import JSON, Body
from services.gateway.errors import (
    NOT_INITIALIZED,
    Forbidden,
    GatewayError,
    invalid,
    not_initialized,
    told,
)
from services.gateway.gateway import Gateway, Ours
from services.gateway.identity import Identity, Reader, Writer
from services.gateway.live import Event, Viewer
from services.gateway.sockets import BadFrame, Socket, accepted, attend
from services.gateway.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream, event

router = APIRouter(tags=["streams"])

CONVERSATION_MAX: Final = 200
PROMPT_MAX: Final = 1_000_000
QUIET: Final = frozenset({"ConversationStarted", "UsageRecorded"})
"""Events that change nothing of what is shown."""

SESSION: Final = "sessionId"

ConversationIdText = Annotated[str, Query(alias="conversationId", max_length=CONVERSATION_MAX)]
SessionIdText = Annotated[str | None, Query(alias=SESSION, max_length=CONVERSATION_MAX)]


class Message(Body):
    """A message as a viewer sees it; `streaming` while it is being written, `error` when it broke
    off."""

    id: str
    role: str
    content: str
    created_at: str
    streaming: bool = False
    error: str | None = None


class Conversation(Body):
    """What is known of a conversation."""

    id: str
    user_id: str | None
    title: str | None
    model: str | None
    status: str
    created_at: str
    updated_at: str


class Catchup(Body):
    """Everything up to now: the recent messages, oldest first."""

    conversation: Conversation | None
    messages: list[Message]
    has_active_stream: bool


NOTHING_YET: Final[JSON] = {
    "type": "catchup",
    "conversation": None,
    "messages": [],
    "hasActiveStream": False,
}


@router.get("/chat/{conversationId}/catchup")
async def catchup(
    conversation_id: Annotated[str, Path(alias="conversationId", max_length=CONVERSATION_MAX)],
    caller: Reader,
    ours: Ours,
) -> Catchup:
    """What the WebSocket's `catchup` says."""
    id = caller.conversation(conversation_id)
    return _catchup((await ours.ledger.query(caller, id, "state"))["state"])


@router.get("/chat", response_class=EventStream)
async def chat(
    *,
    caller: Writer,
    ours: Ours,
    prompt: Annotated[str, Query(min_length=1, max_length=PROMPT_MAX)],
    conversation_id: ConversationIdText = "",
    session_id: SessionIdText = None,
    came_from: Annotated[str | None, Header(alias="Sec-Fetch-Site")] = None,
    last_event_id: Annotated[str | None, Header(alias="Last-Event-ID")] = None,
) -> EventStream:
    """Says `prompt` and streams the answer: the WebSocket's frames, as server-sent events.

    A client that reconnects by itself (`EventSource`) says nothing twice: it gets `catchup`, and
    then the rest.
    """
    if came_from in {"cross-site", "same-site"}:
        raise Forbidden("pages of another origin may not speak here in a visitor's name")
    id = caller.conversation(_known(last_event_id) or conversation_id or new_id())
    view = View(ours, caller, id)
    async with AsyncExitStack() as holding:
        if last_event_id:
            if not await view.open(holding):
                raise not_initialized()
            events = view.rest()
        else:
            await view.begin(session_id)
            await view.open(holding)
            events = view.told(await view.say(prompt, session_id))
        return EventStream(events, holding.pop_all())
    raise AssertionError("a stack lets exceptions through")


@router.websocket("/ws")
async def ws(
    websocket: WebSocket,
    caller: Reader,
    ours: Ours,
    conversation_id: ConversationIdText = "",
    session_id: SessionIdText = None,
) -> None:
    """A chat; see the module's text."""
    id = caller.conversation(conversation_id) if conversation_id else None
    client = Client(await accepted(websocket), ours, caller, id, session_id)
    try:
        await attend(client.socket, client.listen(), client.watch())
    finally:
        client.here.set()


class View:
    """One viewer of one conversation: events become frames."""

    def __init__(self, ours: Gateway, caller: Identity, id: ConversationId) -> None:
        self.id = id
        self.own: set[str] = set()
        """The command ids of what this client has said: it needs not be told."""
        self.active: dict[str, None] = {}
        """The answers that are on their way."""
        self._ours = ours
        self._caller = caller
        self._viewer: Viewer | None = None
        self._state: JSON = {}

    async def begin(self, session_id: str | None) -> None:
        """Begins the conversation unless it has begun. Raises GatewayError: another user has it."""
        metadata = {SESSION: session_id} if session_id else {}
        await self._ours.ledger.command(
            self._caller, self.id, "init", {"user_id": self._caller.user, "metadata": metadata}
        )

    async def open(self, holding: AsyncExitStack) -> bool:
        """Watches from now on; says whether it has begun.

        Raises GatewayError: it is another user's.
        """
        self._viewer = await holding.enter_async_context(
            self._ours.live.watching(self.id, self._caller)
        )
        reply = await self._viewer.begun(self._ask)
        if reply is not None:
            self._take(reply)
        return reply is not None

    async def say(self, prompt: str, session_id: str | None) -> str:
        """Appends the prompt and asks for an answer, whose message id it returns."""
        command_id = new_id()
        self.own.add(command_id)
        body: JSON = {"role": "user", "content": prompt}
        if session_id:
            body["metadata"] = {SESSION: session_id}
        said = await self._ours.ledger.command(
            self._caller, self.id, "append", body, command_id=command_id
        )
        return await self._ours.ledger.respond(
            self._caller, self.id, said["message_id"], min_seq=said["seq"]
        )

    async def stop(self) -> None:
        """Ends the answers that are on their way, as they are."""
        for message_id in list(self.active):
            await answers.stop(self._ours, self._caller, self.id, message_id)

    def caught_up(self) -> JSON:
        """The frame that says everything up to now."""
        if not self._state:
            return NOTHING_YET
        return {"type": "catchup", **_catchup(self._state).model_dump(by_alias=True)}

    async def frames(self) -> AsyncIterator[JSON | str]:
        """What follows, for ever. Raises TooSlow or Closing at the end."""
        assert self._viewer is not None, "open() comes first"
        async for happened in self._viewer.events():
            if frame := await self._frame(happened):
                yield frame

    async def told(self, *message_ids: str) -> AsyncGenerator[str, None]:
        """These answers until the last has ended, as server-sent events."""
        assert self._viewer is not None, "open() comes first"
        name = encode_token(self.id.conversation_id)
        left = set(message_ids)
        while left:
            happened = await self._viewer.next(KEEP_ALIVE_S)
            if happened is None:
                yield KEEP_ALIVE
            elif (message_id := happened.data.get("message_id")) in left:
                if frame := frame_of(happened, self.id):
                    yield event(frame, id=name)
                if happened.type in {answers.FINISH, answers.ABORT}:
                    left.remove(message_id)

    async def rest(self) -> AsyncGenerator[str, None]:
        """Everything up to now, and the rest of what is on its way."""
        name = encode_token(self.id.conversation_id)
        yield event(self.caught_up(), id=name)
        if not self.active:
            yield event(_over(self._state), id=name)
        async for each in self.told(*self.active):
            yield each

    async def _ask(self, seq: int) -> JSON:
        return await self._ours.ledger.query(self._caller, self.id, "state", min_seq=seq)

    def _take(self, reply: JSON) -> None:
        self._state = reply["state"]
        self.active = dict.fromkeys(answers.on_their_way(self._state))

    async def _frame(self, happened: Event) -> JSON | str | None:
        frame = happened.memo("streams", lambda event: frame_of(event, self.id))
        if frame is not None:
            message_id = happened.data["message_id"]
            if happened.type == answers.BEGIN:
                self.active[message_id] = None
            elif happened.type != answers.CHUNK:
                self.active.pop(message_id, None)
            return frame
        if happened.type in QUIET or happened.command_id in self.own:
            return None
        assert self._viewer is not None, "open() comes first"
        reply = await self._ask(happened.seq)
        self._viewer.begin(reply["version"])
        self._take(reply)
        return self.caught_up()


class Client:
    """A connected WebSocket: what it says, and what it is told."""

    def __init__(
        self,
        socket: Socket,
        ours: Gateway,
        caller: Identity,
        id: ConversationId | None,
        session_id: str | None,
    ) -> None:
        self.socket = socket
        self.here = asyncio.Event()
        """The conversation is watched; or the client has gone, and nobody has to wait for that."""
        self._ours = ours
        self._caller = caller
        self._session_id = session_id
        self._view = View(ours, caller, id) if id else None
        self._begun = asyncio.Event()
        self._speaking = asyncio.Lock()

    async def watch(self) -> None:
        """Tells the client what happens, for ever."""
        if self._view is not None:
            try:
                await self._follow(self._view, catchup=True)
            except GatewayError as error:
                if error.code != NOT_INITIALIZED:
                    raise
                await self.socket.send(NOTHING_YET)
        await self._begun.wait()
        assert self._view is not None, "it has begun"
        await self._follow(self._view, catchup=False)

    async def _follow(self, view: View, *, catchup: bool) -> None:
        async with AsyncExitStack() as holding:
            begun = await view.open(holding)
            if catchup:
                await self.socket.send(view.caught_up())
            if begun:
                self._begun.set()
            self.here.set()
            async for frame in view.frames():
                await self.socket.send(frame)

    async def listen(self) -> None:
        """Does what the client says, until it goes."""
        while True:
            try:
                frame = await self.socket.receive()
                await self._take(frame)
            except BadFrame as bad:
                await self._complain(invalid(str(bad)))
            except GatewayError as refused:
                await self._complain(refused)

    async def _take(self, frame: JSON) -> None:
        match frame:
            case {"type": "ping"}:
                await self.socket.send({"type": "pong"})
            case {"type": "stop"}:
                self._caller.may("write")
                if self._view is not None:
                    await self._view.stop()
            case {"type": "start_chat", "prompt": str(prompt)} if prompt.strip():
                self._caller.may("write")
                # It is carried out also when the client goes at once.
                self._ours.live.later(self._start(prompt))
            case {"type": "start_chat"}:
                raise invalid("start_chat needs a prompt: a text that says something", "prompt")
            case _:
                raise invalid("the type has to be start_chat, stop or ping", "type")

    async def _start(self, prompt: str) -> None:
        try:
            async with self._speaking:
                if self._view is None:
                    id = self._caller.conversation(new_id())
                    self._view = View(self._ours, self._caller, id)
                if not self._begun.is_set():
                    await self._view.begin(self._session_id)
                    self._begun.set()
                await self.here.wait()
                await self._view.say(prompt, self._session_id)
        except Exception as error:  # noqa: BLE001 (whatever it is, the client is told)
            await self._complain(told(error))

    async def _complain(self, error: GatewayError) -> None:
        with suppress(WebSocketDisconnect):  # it has gone
            await self.socket.send({"type": "error", "message": error.message, "code": error.code})


def frame_of(event: Event, id: ConversationId) -> JSON | None:
    """The frame that tells an event of an answer; None for any other."""
    about: dict[str, Any] = {"messageId": event.data.get("message_id")}
    match event.type:
        case answers.BEGIN:
            return {"type": "conversation_created", "conversationId": id.conversation_id, **about}
        case answers.CHUNK:
            return {"type": "text", "content": event.data["text"], **about}
        case answers.FINISH:
            return {"type": "done", **about}
        case answers.ABORT if failure := answers.failure(event.data["reason"]):
            return {"type": "error", "message": failure, **about}
        case answers.ABORT:
            return {"type": "done", "stopped": event.data["reason"], **about}
    return None


def _over(state: JSON) -> JSON:
    """The frame that tells how the last answer ended, to who was not there."""
    last = state["recent_messages"][-1] if state["recent_messages"] else {}
    if failure := answers.failure(last.get("aborted")):
        return {"type": "error", "message": failure, "messageId": last["message_id"]}
    return {"type": "done"}


def _known(last_event_id: str | None) -> str | None:
    return decode_token(last_event_id) if last_event_id else None


def _catchup(state: JSON) -> Catchup:
    return Catchup.model_construct(
        conversation=Conversation.model_construct(
            id=state["conversation_id"],
            user_id=state["user_id"],
            title=state["title"],
            model=state["model"],
            status=state["status"],
            created_at=state["created_at"],
            updated_at=state["last_activity"],
        ),
        messages=[
            Message.model_construct(
                id=each["message_id"],
                role=each["role"],
                content="".join(texts_of(each["content"])),
                created_at=each["timestamp"],
                streaming="streaming" in each,
                error=answers.failure(each.get("aborted")),
            )
            for each in state["recent_messages"]
            if each["content"] is not None
        ],
        has_active_stream=bool(answers.on_their_way(state)),
    )
