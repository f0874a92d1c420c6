"""The family `conversations`: /conversation/{id} over HTTP and WebSocket, and /api/copilot.

A conversation begins on first use. Times are in milliseconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Annotated, Any

from fastapi import APIRouter, Path, WebSocket
from pydantic import Field, ValidationError
from pydantic_core import to_json

from services.gateway.bodies import (
    JSON,
    Body,
    CommandId,
    Message,
    MinSeq,
    milliseconds,
    owner,
)
from services.gateway.errors import NOT_INITIALIZED, GatewayError, invalid, unreadable
from services.gateway.gateway import Gateway, Ours
from services.gateway.identity import Identity, Reader, Writer
from services.gateway.live import Event, Viewer
from services.gateway.sockets import BadFrame, Socket, accepted, attend

router = APIRouter(tags=["conversations"])

Id = Annotated[str, Path(min_length=1, max_length=200)]

DEFAULT = "default"
"""The conversation that /api/copilot uses when none is named; each user has one."""

CLEARED_HISTORY = "clear_history"
ANSWER_WITHIN_S = 300.0


class Said(Message):
    """A message; `tokens` are counted as the model's for an assistant's, else as the prompt's."""

    tokens: int | None = Field(default=None, ge=0, le=2**53)

    def turn(self) -> tuple[str, JSON]:
        """The command that writes it: with its tokens it is one turn, all or nothing."""
        body = self.command()
        if self.tokens is None:
            return "append", body
        body["metadata"] = {**body.get("metadata", {}), "tokens": self.tokens}
        of_model = self.tokens if self.role == "assistant" else 0
        usage = {"prompt_tokens": self.tokens - of_model, "completion_tokens": of_model}
        return "turn", {"messages": [body], "usage": usage}


class Messages(Body):
    """The recent messages, oldest first."""

    conversation_id: str
    messages: list[JSON]
    total_tokens: int


class Written(Body):
    """A message that was written."""

    success: bool = True
    message: JSON


class State(Body):
    """What is known of a conversation; nulls and zeros before its first use."""

    conversation_id: str
    user_id: str | None = None
    title: str | None = None
    model: str | None = None
    context: JSON = Field(default_factory=dict)
    message_count: int = 0
    total_tokens: int = 0
    created_at: int | None = None
    last_activity: int | None = None


class Facts(Body):
    """What to change: given fields replace, the context is merged (null removes a key)."""

    user_id: str | None = Field(default=None, min_length=1)
    model: str | None = None
    context: JSON = Field(default_factory=dict)


class Updated(Body):
    """The state after a change."""

    success: bool = True
    state: State


class Cleared(Body):
    """No messages, tokens and context any more."""

    success: bool = True


class Question(Body):
    """What a copilot is asked: the conversation so far, the question last."""

    conversation_id: str | None = Field(default=None, min_length=1, max_length=200)
    messages: list[Message] = Field(min_length=1, max_length=500)


class Answered(Body):
    """What it answered."""

    success: bool = True
    conversation_id: str
    message: JSON


@router.get("/conversation/{id}/messages")
async def messages(id: Id, caller: Reader, ours: Ours, min_seq: MinSeq = None) -> Messages:
    """The recent messages; none before first use."""
    conversation = caller.conversation(id)
    try:
        found = await ours.ledger.query(caller, conversation, "state", min_seq=min_seq)
    except GatewayError as error:
        _pass_unknown(error)
        return Messages(conversation_id=id, messages=[], total_tokens=0)
    state = found["state"]
    return Messages.model_construct(
        conversation_id=id,
        messages=[shown(each) for each in state["recent_messages"]],
        total_tokens=state["tokens_used"]["total"],
    )


@router.post("/conversation/{id}/messages")
async def append(
    id: Id, body: Said, caller: Writer, ours: Ours, command_id: CommandId = None
) -> Written:
    """Appends one message; it is on disk when this answers."""
    reply = await _say(ours, caller, id, body, command_id)
    after = next(each["version"] for each in reply["events"] if each["type"] == "MessageAppended")
    page = await ours.ledger.query(
        caller,
        caller.conversation(id),
        "history",
        {"after_version": after - 1, "limit": 1},
        min_seq=reply["seq"],
    )
    return Written.model_construct(message=shown(page["messages"][0]))


@router.get("/conversation/{id}/state")
async def state(id: Id, caller: Reader, ours: Ours, min_seq: MinSeq = None) -> State:
    """What is known of the conversation."""
    return await _state(ours, caller, id, min_seq)


@router.put("/conversation/{id}/state")
async def update(
    id: Id, body: Facts, caller: Writer, ours: Ours, command_id: CommandId = None
) -> Updated:
    """Changes what is known; begins the conversation where there is none."""
    command = body.model_dump(exclude_unset=True)
    if body.user_id is not None:
        owner(caller, body.user_id)
    reply = await ours.ledger.begin(
        caller,
        caller.conversation(id),
        "update",
        command,
        user_id=body.user_id,
        command_id=command_id,
    )
    return Updated(state=await _state(ours, caller, id, reply["seq"]))


@router.post("/conversation/{id}/clear")
async def clear(id: Id, caller: Writer, ours: Ours) -> Cleared:
    """Begins anew: no messages, no tokens, no context. What was said is kept in the ledger."""
    await _clear(ours, caller, id, "clear", with_context=True)
    return Cleared()


@router.post("/api/copilot")
async def copilot(body: Question, caller: Writer, ours: Ours) -> Answered:
    """Answers the last message through the responder, and returns the answer when it is whole."""
    if body.messages[-1].role != "user":
        raise invalid("the last message has to be the user's", "messages")
    id = body.conversation_id or (f"{DEFAULT}:{caller.user_id}" if caller.user_id else DEFAULT)
    conversation = caller.conversation(id)
    async with ours.live.watching(conversation, caller) as viewer:
        asked = await _ask(ours, caller, id, body.messages)
        viewer.begin(asked["version"])
        answer_id = await ours.ledger.respond(
            caller, conversation, asked["message_id"], min_seq=asked["seq"]
        )
        ended = await _end_of(viewer, answer_id)
        page = await ours.ledger.messages_newest(caller, conversation, 20, min_seq=ended.seq)
    answer = next((each for each in page["messages"] if each["message_id"] == answer_id), None)
    if ended.type == "ReplyAborted" or answer is None:  # None: taken back, as a reset does
        reason = ended.data.get("reason", "reset")
        raise GatewayError(
            502,
            "answer_aborted",
            f"the answer was ended before it was whole ({reason}): ask again",
            retryable=True,
            details={"message": shown(answer)} if answer else None,
        )
    return Answered.model_construct(conversation_id=id, message=shown(answer))


@router.websocket("/conversation/{id}")
async def talk(websocket: WebSocket, id: str, caller: Reader, ours: Ours) -> None:
    """The conversation as it happens, and what the client says to it."""
    conversation = caller.conversation(id)
    async with ours.live.watching(conversation, caller) as viewer:
        found = await viewer.begun(
            lambda seq: ours.ledger.query(caller, conversation, "state", min_seq=seq)
        )
        socket = await accepted(websocket)
        state = found["state"] if found else _UNKNOWN
        talk = Talk(ours, caller, id, socket=socket, viewer=viewer, state=state)
        await socket.send(talk.greeting())
        await attend(socket, talk.hear(), talk.tell())


class Talk:
    """One WebSocket's part in a conversation."""

    def __init__(
        self,
        ours: Gateway,
        caller: Identity,
        id: str,
        *,
        socket: Socket,
        viewer: Viewer,
        state: Mapping[str, Any],
    ) -> None:
        self._ours = ours
        self._caller = caller
        self._id = id
        self._socket = socket
        self._viewer = viewer
        self._model = state["model"]
        self._count: int = state["message_count"]
        self._replies: dict[str, tuple[str, list[str]]] = {
            each["message_id"]: (each["role"], list(filter(None, [each["content"]])))
            for each in state["recent_messages"]
            if each.get("streaming")
        }
        """Role and text so far of the replies that are on their way, by message id."""

    def greeting(self) -> JSON:
        """What a client hears first."""
        return _system(
            "Connected to conversation",
            {"conversationId": self._id, "messageCount": self._count, "model": self._model},
        )

    async def hear(self) -> None:
        """Does what the client says; a bad frame is answered and the connection stays open."""
        while True:
            try:
                await self._do(await self._socket.receive())
            except BadFrame as error:
                await self._socket.send({"type": "error", "error": str(error)})
            except ValidationError as error:
                await self._socket.send({"type": "error", "error": unreadable(error).message})
            except GatewayError as error:
                await self._socket.send(
                    {"type": "error", "error": error.message, "code": error.code}
                )

    async def _do(self, frame: JSON) -> None:
        match frame:
            case {"type": "chat"}:
                self._caller.may("write")
                fields = {name: value for name, value in frame.items() if name != "type"}
                await _say(self._ours, self._caller, self._id, Said.model_validate(fields))
            case {"type": "system", "content": "get_history"}:
                await self._socket.send(await self._history())
            case {"type": "system", "content": "clear_history"}:
                self._caller.may("write")
                await _clear(self._ours, self._caller, self._id, CLEARED_HISTORY)
            case {"type": "system"}:
                raise BadFrame("system frames are get_history and clear_history")
            case _:
                raise BadFrame("a frame's type is chat or system")

    async def _history(self) -> JSON:
        found = await messages(self._id, self._caller, self._ours, self._viewer.seq or None)
        return _system("history", {"messages": found.messages, "totalTokens": found.total_tokens})

    async def tell(self) -> None:
        """Sends what happens in the conversation."""
        async for event in self._viewer.events():
            for frame in self._frames(event):
                await self._socket.send(frame)

    def _frames(self, event: Event) -> list[str]:
        match event.type:
            case "MessageAppended":
                self._count += 1
                count = self._count
                return [event.memo(("conversation", count), lambda each: _chat(each, count))]
            case "SessionReset":
                self._replies.clear()
                return [event.memo("conversation", _cleared)]
            case "ReplyStarted" | "ReplyChunkAppended" | "ReplyCompleted" | "ReplyAborted":
                return self._reply_frames(event)
        return []

    def _reply_frames(self, event: Event) -> list[str]:
        """thinking, streaming, then the whole message and complete."""
        message_id = event.data["message_id"]
        if event.type == "ReplyStarted":
            self._count += 1
            self._replies[message_id] = (event.data["role"], [])
            return [_status("thinking")]
        role, texts = self._replies.get(message_id, ("assistant", []))
        if event.type == "ReplyChunkAppended":
            first = not texts
            texts.append(event.data["text"])
            return [_status("streaming")] if first else []
        self._replies.pop(message_id, None)
        count, text = self._count, "".join(texts)
        frames = [_status("complete")]
        if text:
            chat = event.memo(("conversation", count), lambda each: _whole(each, role, text, count))
            frames.insert(0, chat)
        return frames


_UNKNOWN: JSON = {"model": None, "message_count": 0, "recent_messages": []}


def shown(message: Mapping[str, Any]) -> JSON:
    """A message of a view as this family shows it."""
    found: JSON = {
        "id": message["message_id"],
        "role": message["role"],
        "content": message["content"],
        "timestamp": milliseconds(message["timestamp"]),
    }
    if (tokens := message["metadata"].get("tokens")) is not None:
        found["tokens"] = tokens
    return found


async def _say(
    ours: Gateway, caller: Identity, id: str, said: Said, command_id: str | None = None
) -> JSON:
    verb, command = said.turn()
    return await ours.ledger.begin(
        caller, caller.conversation(id), verb, command, command_id=command_id
    )


async def _ask(ours: Gateway, caller: Identity, id: str, said: list[Message]) -> JSON:
    """Writes the question; of a conversation that nobody has begun, all that was said before."""
    conversation = caller.conversation(id)
    try:
        reply = await ours.ledger.command(caller, conversation, "append", said[-1].command())
    except GatewayError as error:
        _pass_unknown(error)
        command = {"messages": [each.command() for each in said], "mode": "append"}
        reply = await ours.ledger.begin(caller, conversation, "import", command)
        return {**reply, "message_id": reply["message_ids"][-1]}
    return reply


async def _end_of(viewer: Viewer, message_id: str) -> Event:
    """The event that ends the reply. Raises GatewayError when it does not end in time."""
    now = asyncio.get_running_loop().time
    give_up_at = now() + ANSWER_WITHIN_S
    while (left_s := give_up_at - now()) > 0:
        event = await viewer.next(left_s)
        if (
            event is not None
            and event.type in {"ReplyCompleted", "ReplyAborted"}
            and event.data["message_id"] == message_id
        ):
            return event
    raise GatewayError(
        504,
        "outcome_unknown",
        "the answer takes long: it goes on, read the conversation later",
        retryable=False,
    )


async def _state(ours: Gateway, caller: Identity, id: str, min_seq: int | None) -> State:
    try:
        reply = await ours.ledger.query(caller, caller.conversation(id), "state", min_seq=min_seq)
    except GatewayError as error:
        _pass_unknown(error)
        return State(conversation_id=id)
    found = reply["state"]
    return State(
        conversation_id=id,
        user_id=found["user_id"],
        title=found["title"],
        model=found["model"],
        context=found["context"],
        message_count=found["message_count"],
        total_tokens=found["tokens_used"]["total"],
        created_at=milliseconds(found["created_at"]),
        last_activity=milliseconds(found["last_activity"]),
    )


async def _clear(
    ours: Gateway, caller: Identity, id: str, reason: str, *, with_context: bool = False
) -> None:
    conversation = caller.conversation(id)
    try:
        if with_context:
            found = await ours.ledger.query(caller, conversation, "state", strong=True)
            if context := found["state"]["context"]:
                nothing = {"context": dict.fromkeys(context)}
                await ours.ledger.command(caller, conversation, "update", nothing)
        await ours.ledger.command(caller, conversation, "reset", {"reason": reason})
    except GatewayError as error:
        _pass_unknown(error)


def _pass_unknown(error: GatewayError) -> None:
    """Goes on where there is no conversation yet; any other refusal is the caller's."""
    if error.code != NOT_INITIALIZED:
        raise error


def _system(content: str, metadata: JSON) -> JSON:
    return {"type": "system", "content": content, "metadata": metadata}


def _status(status: str) -> str:
    return f'{{"type":"status","status":"{status}"}}'


def _chat(event: Event, count: int) -> str:
    data = event.data
    metadata = {
        "timestamp": milliseconds(data.get("created_at") or event.time),
        "messageCount": count,
    }
    if (tokens := data["metadata"].get("tokens")) is not None:
        metadata["tokens"] = tokens
    frame = {
        "type": "chat",
        "role": data["role"],
        "content": data["content"],
        "metadata": metadata,
    }
    return to_json(frame).decode()


def _whole(event: Event, role: str, text: str, count: int) -> str:
    metadata = {"timestamp": milliseconds(event.time), "messageCount": count}
    frame = {"type": "chat", "role": role, "content": text, "metadata": metadata}
    return to_json(frame).decode()


def _cleared(event: Event) -> str:
    by_client = event.data.get("reason") == CLEARED_HISTORY
    content = "history_cleared" if by_client else "conversation_cleared"
    return to_json({"type": "system", "content": content}).decode()
