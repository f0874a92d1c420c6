"""The family `chats`: /api/chat, for front ends of the AI SDK (`useChat`, its default transport).

An answer is streamed in the AI SDK's UI message stream protocol: server-sent events of JSON chunks
(start, text-start, text-delta, text-end, finish), then `[DONE]`. It goes on when the client leaves;
`GET …/stream` replays it from its beginning and goes on with the rest, as the SDK expects. Because
leaving is no stop, stopping has a route of its own.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import ConfigDict, Field
from pydantic_core import to_json

from domain.identity import ConversationId, new_id
from domain.messages import Role, texts_of
from services.endpoint import NAME_MAX
from services.gateway import answers
from services.gateway.answers import found
from services.gateway.bodies import JSON, Body, MinSeq, milliseconds
from services.gateway.errors import NOT_INITIALIZED, GatewayError, invalid
from services.gateway.gateway import Gateway, Ours
from services.gateway.identity import Deleter, Identity, Reader, Writer
from services.gateway.live import Event, Viewer
from services.gateway.sse import KEEP_ALIVE, KEEP_ALIVE_S, EventStream, event

router = APIRouter(prefix="/api/chat", tags=["chats"])

PROTOCOL: Final = {"x-vercel-ai-ui-message-stream": "v1"}
DONE: Final = "data: [DONE]\n\n"
TEXT: Final = "text"
"""The id of an answer's one text part."""

GONE: Final = frozenset({"deleted", "erased"})
PAGE: Final = 1_000
SHOWN_ROLES: Final = frozenset({"system", "user", "assistant"})
"""What a message of the SDK may be by; others are part of an answer's making."""

FINISH_REASONS: Final = {
    "stop": "stop",
    "length": "length",
    "content_filter": "content-filter",
    "tool_calls": "tool-calls",
}

ChatId = Annotated[str, Path(alias="chatId", min_length=1, max_length=200)]


class Part(Body):
    """A part of a message: `{"type": "text", "text": …}`, or another type as the SDK has it."""

    model_config = ConfigDict(extra="allow")

    type: str


class UIMessage(Body):
    """A message as the SDK keeps it."""

    model_config = ConfigDict(extra="allow")

    role: str
    id: str | None = Field(default=None, min_length=1, max_length=NAME_MAX)
    parts: list[Part] = Field(default_factory=list)
    content: str | None = None


class Post(Body):
    """What `useChat` sends: the whole chat as it has it, of which the last message counts; or,
    where an application prepares its requests, that `message` alone."""

    model_config = ConfigDict(extra="allow")

    messages: list[UIMessage] | None = None
    message: UIMessage | None = None
    trigger: Literal["submit-message", "regenerate-message"] = "submit-message"
    message_id: str | None = Field(default=None, max_length=NAME_MAX)


class PostAnywhere(Post):
    """With `messages`, the same for the chat `id`, which begins where it does not exist yet;
    without them, a new chat is made."""

    id: str | None = Field(default=None, min_length=1, max_length=200)
    title: str | None = None
    model: str | None = None


class Made(Body):
    """A new chat; `createdAt` in milliseconds since 1970."""

    chat_id: str
    user_id: str
    created_at: int


class Listed(Body):
    """A chat in the list."""

    id: str
    title: str | None
    created_at: str
    updated_at: str


class Chats(Body):
    """The user's chats, newest activity first; `next` is the `cursor` of the following page."""

    chats: list[Listed]
    next: str | None = None


class Hit(Body):
    """A message that was found; `snippet` has each hit between ⟦ and ⟧."""

    chat_id: str
    message_id: str
    role: str
    created_at: str
    snippet: str
    score: float


class Hits(Body):
    """What was found, the best first."""

    hits: list[Hit]


class Kept(Body):
    """A message of the history; `content` is the JSON text of its parts."""

    id: str
    role: str
    content: str
    created_at: str


class History(Body):
    """All messages of a chat, oldest first; an answer that is on its way is in the stream."""

    chat_id: str
    messages: list[Kept]


class Done(Body):
    """It is done."""

    success: bool = True
    message: str


STREAMED: Final[dict[int | str, dict[str, Any]]] = {
    200: {
        "description": "A new chat, or an answer in the UI message stream protocol",
        "content": {"text/event-stream": {}},
    }
}


@router.post("", response_model=Made, responses=STREAMED)
async def make(caller: Writer, ours: Ours, body: PostAnywhere | None = None) -> Made | EventStream:
    """Makes a chat. With `messages` it is what `useChat` posts: see `POST /api/chat/{chatId}`."""
    body = body or PostAnywhere()
    id = caller.conversation(body.id or new_id())
    first = {"user_id": caller.user, "title": body.title, "model": body.model}
    command = {name: value for name, value in first.items() if value is not None}
    begun = await _or_not_found(ours.ledger.command(caller, id, "init", command))
    if body.messages or body.message:
        return await _answered(ours, caller, id, body)
    created_at = milliseconds(begun["state"]["created_at"])
    return Made(chat_id=id.conversation_id, user_id=caller.user, created_at=created_at)


@router.get("")
async def chats(
    caller: Reader,
    ours: Ours,
    limit: Annotated[int, Query(ge=1, le=1_000)] = 100,
    cursor: Annotated[str | None, Query(max_length=2_000)] = None,
    min_seq: MinSeq = None,
) -> Chats:
    """The user's chats; those of a whole tenant for credentials without a user."""
    body: JSON = {"limit": limit} | ({"cursor": cursor} if cursor else {})
    reply = await ours.ledger.list(caller, body, min_seq=min_seq)
    listed = [
        Listed.model_construct(
            id=each["conversation_id"],
            title=each["title"],
            created_at=each["created_at"],
            updated_at=each["last_activity"],
        )
        for each in reply["conversations"]
    ]
    return Chats.model_construct(chats=listed, next=reply.get("next"))


@router.get("/search")
async def search(
    *,
    caller: Reader,
    ours: Ours,
    q: Annotated[str, Query(min_length=1, max_length=1_000)],
    chat_id: Annotated[str | None, Query(alias="chatId", min_length=1, max_length=200)] = None,
    role: Role | None = None,
    from_: Annotated[str | None, Query(alias="from", max_length=64)] = None,
    to: Annotated[str | None, Query(max_length=64)] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    min_seq: MinSeq = None,
) -> Hits:
    """Messages of the user's chats by what they say; `from` and `to` are times (RFC 3339)."""
    asked = {"query": q, "conversation_id": chat_id, "role": role, "from": from_, "to": to}
    body = {name: value for name, value in asked.items() if value is not None}
    reply = await ours.ledger.search(caller, body | {"limit": limit}, min_seq=min_seq)
    hits = [
        Hit.model_construct(
            chat_id=each["conversation_id"],
            message_id=each["message_id"],
            role=each["role"],
            created_at=each["timestamp"],
            snippet=each["snippet"],
            score=each["score"],
        )
        for each in reply["hits"]
    ]
    return Hits.model_construct(hits=hits)


@router.get("/{chatId}/history")
async def history(chat_id: ChatId, caller: Reader, ours: Ours) -> History:
    """Everything that was said since the last reset."""
    id = caller.conversation(chat_id)
    _there(await _or_not_found(ours.ledger.query(caller, id, "state")))
    messages: list[Kept] = []
    after = 0
    while True:
        page = await ours.ledger.query(
            caller, id, "history", {"after_version": after, "limit": PAGE}
        )
        messages += [_kept(each) for each in page["messages"] if _is_shown(each)]
        if "next" not in page:
            return History.model_construct(chat_id=chat_id, messages=messages)
        after = page["next"]


@router.delete("/{chatId}")
async def delete(chat_id: ChatId, caller: Deleter, ours: Ours) -> Done:
    """Deletes the chat; the ledger keeps its events. Repeating it is harmless."""
    id = caller.conversation(chat_id)
    await _or_not_found(ours.ledger.command(caller, id, "close", {"reason": "deleted"}))
    return Done(message="Chat deleted")


@router.post("/{chatId}", response_class=EventStream, responses=STREAMED)
async def send(chat_id: ChatId, body: Post, caller: Writer, ours: Ours) -> EventStream:
    """Says the last message and streams the answer.

    A message sent again is not said again: its answer is streamed. `regenerate-message` takes back
    the last answer and makes another; a message whose text has changed is edited and answered anew.
    """
    return await _answered(ours, caller, caller.conversation(chat_id), body)


@router.get(
    "/{chatId}/stream",
    response_class=EventStream,
    responses={**STREAMED, 204: {"description": "No answer is on its way"}},
)
async def resume(chat_id: ChatId, caller: Reader, ours: Ours) -> Response:
    """The answer that is on its way, from its beginning on; 204 when there is none."""
    id = caller.conversation(chat_id)
    async with AsyncExitStack() as holding:
        viewer, state = await _watched(ours, caller, id, holding)
        if not (running := answers.on_their_way(state)):
            return Response(status_code=204)
        stream = chunks(viewer, running[-1], found(state, running[-1]))
        return EventStream(stream, holding.pop_all(), PROTOCOL)
    raise AssertionError("a stack lets exceptions through")


@router.post("/{chatId}/stop")
async def stop(chat_id: ChatId, caller: Writer, ours: Ours) -> Done:
    """Stops the answers that are on their way; what was said of them stays."""
    id = caller.conversation(chat_id)
    state = _there(await _or_not_found(ours.ledger.query(caller, id, "state", strong=True)))
    running = answers.on_their_way(state)
    stopped = [await answers.stop(ours, caller, id, message_id) for message_id in running]
    return Done(message="Stopped" if any(stopped) else "Nothing was on its way")


async def chunks(viewer: Viewer, message_id: str, so_far: JSON | None) -> AsyncGenerator[str, None]:
    """One answer in the UI message stream protocol, from its beginning to its end.

    `so_far` is the message as it was read, which the viewer follows; None when it is gone already.
    """
    yield event({"type": "start", "messageId": message_id})
    yield event({"type": "text-start", "id": TEXT})
    if so_far is not None and so_far["content"]:
        yield event(
            {"type": "text-delta", "id": TEXT, "delta": "".join(texts_of(so_far["content"]))}
        )
    end: JSON = so_far or {}
    while "streaming" in end:
        happened = await viewer.next(KEEP_ALIVE_S)
        if happened is None:
            yield KEEP_ALIVE
        elif happened.data.get("message_id") != message_id:
            continue
        elif happened.type == answers.CHUNK:
            yield happened.memo("chats", _delta)
        elif happened.type == answers.FINISH:
            end = {"finish_reason": happened.data.get("finish_reason")}
        elif happened.type == answers.ABORT:
            end = {"aborted": happened.data["reason"]}
    yield event({"type": "text-end", "id": TEXT})
    yield event(_ending(end))
    yield DONE


def _delta(happened: Event) -> str:
    return event({"type": "text-delta", "id": TEXT, "delta": happened.data["text"]})


def _ending(message: JSON) -> JSON:
    """The last part of a message that has ended, as the window has it."""
    aborted = message.get("aborted")
    if aborted is None:
        reason = FINISH_REASONS.get(message.get("finish_reason") or "", "other")
        return {"type": "finish", "finishReason": reason}
    if failure := answers.failure(aborted):
        return {"type": "error", "errorText": failure}
    return {"type": "abort", "reason": aborted}


async def _answered(ours: Gateway, caller: Identity, id: ConversationId, body: Post) -> EventStream:
    async with AsyncExitStack() as holding:
        viewer, state = await _watched(ours, caller, id, holding)
        question, min_seq, reply_id = await _asked(ours, caller, id, body, state)
        answer = await ours.ledger.respond(caller, id, question, min_seq=min_seq, reply_id=reply_id)
        state = await _read(ours, caller, id, viewer, strong=True)  # the answer has begun
        return EventStream(
            chunks(viewer, answer, found(state, answer)), holding.pop_all(), PROTOCOL
        )
    raise AssertionError("a stack lets exceptions through")


async def _asked(
    ours: Gateway, caller: Identity, id: ConversationId, body: Post, state: JSON
) -> tuple[str, int, str | None]:
    """What is to be answered: the message's id, from which seq on it can be read, and an id of its
    own for an answer that is not the first."""
    said = body.message or next(
        (each for each in reversed(body.messages or []) if each.role == "user"), None
    )
    if said is None or said.role != "user":
        raise invalid("the last of the messages has to be one by the user", "messages")
    content = _content(said)
    known = found(state, said.id) if said.id else None
    if known is None:
        if body.trigger == "regenerate-message":
            raise invalid("the message to answer again is not among the recent ones", "messages")
        try:
            written = await _append(ours, caller, id, said, content)
        except GatewayError as refused:
            state, known = await _said_meanwhile(ours, caller, id, said, refused)
        else:
            return written["message_id"], written["seq"], None
    if body.trigger == "submit-message" and known["content"] == content:
        return known["message_id"], state["seq"], None
    seq = state["seq"]
    if known["content"] != content:
        changed = {"message_id": known["message_id"], "content": content}
        seq = (await ours.ledger.command(caller, id, "edit", changed))["seq"]
    for each in state["recent_messages"]:
        if each["version"] > known["version"] and "redacted" not in each:
            taken_back = {"message_id": each["message_id"], "reason": "answered anew"}
            seq = (await ours.ledger.command(caller, id, "redact", taken_back))["seq"]
    return known["message_id"], seq, new_id()


async def _append(
    ours: Gateway, caller: Identity, id: ConversationId, said: UIMessage, content: str | list[JSON]
) -> JSON:
    command: JSON = {"role": "user", "content": content}
    if said.id:
        command["message_id"] = said.id
    if said.model_extra:
        command["metadata"] = said.model_extra
    return await ours.ledger.command(caller, id, "append", command)


async def _said_meanwhile(
    ours: Gateway, caller: Identity, id: ConversationId, said: UIMessage, refused: GatewayError
) -> tuple[JSON, JSON]:
    """The state and the message in it, where the same request was sent twice and the other one was
    faster. Raises `refused` where it was not."""
    if refused.code == "invalid_state" and said.id:
        state = (await ours.ledger.query(caller, id, "state", strong=True))["state"]
        if known := found(state, said.id):
            return state, known
    raise refused


async def _watched(
    ours: Gateway, caller: Identity, id: ConversationId, holding: AsyncExitStack
) -> tuple[Viewer, JSON]:
    """A viewer of the chat, and its state, which the viewer follows. 404 when it is not there."""
    viewer = await holding.enter_async_context(ours.live.watching(id, caller))
    return viewer, await _read(ours, caller, id, viewer)


async def _read(
    ours: Gateway, caller: Identity, id: ConversationId, viewer: Viewer, *, strong: bool = False
) -> JSON:
    reply = await _or_not_found(
        ours.ledger.query(caller, id, "state", min_seq=viewer.seq, strong=strong)
    )
    viewer.begin(reply["version"])
    return _there(reply)


async def _or_not_found(asking: Any) -> JSON:
    """The reply; a chat that is not there, or another user's, is told as such."""
    try:
        reply: JSON = await asking
    except GatewayError as error:
        if error.code == NOT_INITIALIZED:
            raise _not_found() from None
        raise
    return reply


def _there(reply: JSON) -> JSON:
    """The state of a chat. Raises 404 where it has been deleted."""
    state: JSON = reply["state"]
    if state["status"] in GONE:
        raise _not_found()
    return state


def _not_found() -> GatewayError:
    error = GatewayError(404, NOT_INITIALIZED, "")
    error.message = "Chat not found"
    return error


def _content(message: UIMessage) -> str | list[JSON]:
    """What the ledger keeps of a message: its text, or its parts where it has others too."""
    if not message.parts:
        text = message.content or ""
    else:
        parts = [part.model_dump(exclude_none=True) for part in message.parts]
        if any(part["type"] != "text" for part in parts):
            return parts
        text = "".join(str(part.get("text", "")) for part in parts)
    if not text:
        raise invalid("a message has to say something: parts with a text", "messages")
    return text


def _is_shown(message: JSON) -> bool:
    said = bool(message["content"]) and "streaming" not in message
    return said and message["role"] in SHOWN_ROLES


def _kept(message: JSON) -> Kept:
    content = message["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Kept.model_construct(
        id=message["message_id"],
        role=message["role"],
        content=to_json(parts).decode(),
        created_at=message["timestamp"],
    )
