"""A conversation as a plain dict: what the product must agree with, written without it.

`step` takes one request and says what must come of it. Times, generated ids and limits are left
out; everything else that a reader sees is in the dict.
"""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from tests.domain.specification import Request

Model = dict[str, Any]


def begun(body: dict[str, Any]) -> Model:
    return {
        "version": 0,
        "commands": {},  # command id -> verb
        "message_ids": set(),
        "status": "active",
        "open": {},  # message id of a reply -> the index of its next chunk
        "redacted": set(),
        "session": [],  # the messages since the last reset, all of them
        "message_count": 0,
        "prompt": 0,
        "completion": 0,
        "lifetime_prompt": 0,
        "lifetime_completion": 0,
        "user_id": body["user_id"],
        "title": body.get("title"),
        "title_from": None,  # the message that it was taken from
        "ever_titled": body.get("title") is not None,
        "model": body.get("model"),
        "context": without_nulls(body.get("context") or {}),
        "metadata": without_nulls(body.get("metadata") or {}),
    }


def without_nulls(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}


def step(model: Model | None, request: Request) -> tuple[Model | None, str]:
    """Returns the model after the request, and `done`, `repeated` or the code of the refusal."""
    refusal = refused(model, request)
    if refusal is not None:
        return model, refusal
    written = model["version"] if model else 0
    if model is None:
        model = begun(request.body)
        model["version"] = 1
    elif request.verb != "init":
        carry_out(model, request)
    if request.command_id is not None and model["version"] > written:
        model["commands"][request.command_id] = request.verb
    return model, "done"


def refused(model: Model | None, request: Request) -> str | None:
    if model is not None and request.command_id in model["commands"]:
        same = model["commands"][request.command_id] == request.verb
        return "repeated" if same else "invalid_state"
    if model is None and request.verb != "init":
        return "conversation_not_initialized"
    current = model["version"] if model else 0
    if request.expected_version is not None and request.expected_version != current:
        return "version_conflict"
    if model is None:
        return None
    if model["status"] == "erased":
        return "conversation_erased"
    if model["status"] in {"closed", "deleted"} and request.verb not in HARMLESS_WHEN_CLOSED:
        return "conversation_closed"
    for message in messages_of(request):
        if message.get("message_id") in model["message_ids"]:
            return "invalid_state"
    return refused_change(model, request)


HARMLESS_WHEN_CLOSED = {"init", "close", "reopen", "erase"}


def refused_change(model: Model, request: Request) -> str | None:
    if request.verb not in {"reply.chunk", "reply.finish", "reply.abort", "edit", "redact"}:
        return None
    message_id = request.body["message_id"]
    if message_id not in model["message_ids"]:
        return "message_not_found"
    wrong = {
        "reply.chunk": request.body.get("index", 0) > model["open"].get(message_id, -1),
        "reply.finish": message_id not in model["open"],
        "reply.abort": message_id not in model["open"],
        "edit": message_id in model["open"] or message_id in model["redacted"],
        "redact": False,
    }
    return "invalid_state" if wrong[request.verb] else None


def messages_of(request: Request) -> list[dict[str, Any]]:
    if request.verb in {"append", "reply.start"}:
        return [request.body]
    found: list[dict[str, Any]] = request.body.get("messages", [])
    return found


def carry_out(model: Model, request: Request) -> None:
    body = request.body
    talks = bool(messages_of(request)) or request.verb == "usage"
    starts_over = request.verb == "reset" or body.get("mode") == "replace"
    if starts_over or (talks and model["status"] == "inactive"):
        reset(model)
    for message in messages_of(request):
        if request.verb == "reply.start":
            begin_reply(model, message)
        else:
            say(model, message)
    change(model, request)
    end(model, request)
    used = body if request.verb == "usage" else body.get("usage")
    if used:
        model["version"] += 1
        for kind in ("prompt", "completion"):
            model[kind] += used[f"{kind}_tokens"]
            model[f"lifetime_{kind}"] += used[f"{kind}_tokens"]
    if request.verb == "update" and body:
        model["version"] += 1
        for fact in ("title", "model", "user_id"):
            model[fact] = body.get(fact, model[fact])
        for facts in ("context", "metadata"):
            model[facts] = without_nulls({**model[facts], **body.get(facts, {})})
        model["ever_titled"] = model["ever_titled"] or body.get("title") is not None
        if "title" in body:
            model["title_from"] = None


ENDING = {"finish_reason"}


def reset(model: Model) -> None:
    if model["status"] == "inactive":
        model.update(status="active", version=model["version"] + 1)
    stop_replies(model, "reset")
    model.update(session=[], prompt=0, completion=0, version=model["version"] + 1)


def stop_replies(model: Model, reason: str) -> None:
    for message_id in list(model["open"]):
        stop_reply(model, message_id, aborted=reason)


def stop_reply(model: Model, message_id: str, **told: str) -> None:
    del model["open"][message_id]
    model["version"] += 1
    for message in said(model, message_id):
        del message["streaming"]
        message.update(told)


def said(model: Model, message_id: str) -> list[dict[str, Any]]:
    """The message of this id in the session, if it is in it."""
    return [each for each in model["session"] if each.get("message_id") == message_id]


def begin_reply(model: Model, message: dict[str, Any]) -> None:
    model["version"] += 1
    model["message_count"] += 1
    model["message_ids"].add(message["message_id"])
    model["open"][message["message_id"]] = 0
    reply = {"role": "assistant", "content": "", "streaming": True, **message}
    model["session"].append({**reply, "version": model["version"]})


def change(model: Model, request: Request) -> None:
    body = request.body
    message_id: str = body.get("message_id", "")
    if request.verb == "reply.chunk":
        texts = body["texts"][model["open"][message_id] - body["index"] :]
        if texts:
            model["version"] += 1
            model["open"][message_id] += len(texts)
            for message in said(model, message_id):
                message["content"] += "".join(texts)
    elif request.verb == "reply.finish":
        stop_reply(model, message_id, **{each: body[each] for each in ENDING & body.keys()})
    elif request.verb == "reply.abort":
        stop_reply(model, message_id, aborted=body.get("reason") or "stopped")
    elif request.verb == "edit":
        model["version"] += 1
        for message in said(model, message_id):
            message.update(content=body["content"], edited=True)
    elif request.verb == "redact" and message_id not in model["redacted"]:
        redact(model, message_id)


def redact(model: Model, message_id: str) -> None:
    if message_id in model["open"]:
        stop_reply(model, message_id)
    model["version"] += 1
    model["redacted"].add(message_id)
    for message in said(model, message_id):
        message.update(content=None, redacted=True)
        for name in ("finish_reason", "aborted", "edited"):
            message.pop(name, None)
    if model["title_from"] == message_id:
        model["title"] = None


CLOSED_FURTHER = ["active", "inactive", "closed", "deleted"]


def end(model: Model, request: Request) -> None:
    if request.verb == "close":
        reason = request.body.get("reason") or "closed"
        if CLOSED_FURTHER.index(reason) > CLOSED_FURTHER.index(model["status"]):
            stop_replies(model, reason)
            model.update(status=reason, version=model["version"] + 1)
    elif request.verb == "reopen" and model["status"] != "active":
        model.update(status="active", version=model["version"] + 1)
    elif request.verb == "erase":
        stop_replies(model, "erased")
        model.update(status="erased", session=[], version=model["version"] + 1)
        model.update(user_id=None, title=None, model=None, context={}, metadata={})


def say(model: Model, message: dict[str, Any]) -> None:
    model["version"] += 1
    model["message_count"] += 1
    model["session"].append({**message, "version": model["version"]})
    if "message_id" in message:
        model["message_ids"].add(message["message_id"])
    content = message["content"]
    if not model["ever_titled"] and message["role"] == "user" and content.strip():
        model["version"] += 1
        model["title"] = content[:50].strip() + ("..." if len(content) > 50 else "")
        model["ever_titled"] = True
        model["title_from"] = message.get("message_id")


# Few ids and versions, so that requests meet each other often.

_some_id = st.sampled_from(["c1", "c2", "c3", "c4", "c5", "c6"])
_message_id = st.sampled_from([f"m{number}" for number in range(8)])
_message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "tool"]),
        "content": st.sampled_from(["", "hi", "日本語", "x" * 60, " \n", "a: b"]),
    },
    optional={"message_id": _message_id},
)


def _messages(min_size: int) -> st.SearchStrategy[list[dict[str, Any]]]:
    return st.lists(
        _message,
        min_size=min_size,
        max_size=6,
        unique_by=lambda message: message.get("message_id", id(message)),
    )


def _facts(min_size: int) -> st.SearchStrategy[dict[str, Any]]:
    values = st.sampled_from([None, 1, "x", [1]])
    found = st.fixed_dictionaries({}, optional={"a": values, "b": values})
    return (
        found
        if min_size == 0
        else st.one_of(
            st.fixed_dictionaries({"a": values}), st.fixed_dictionaries({"a": values, "b": values})
        )
    )


_tokens = st.fixed_dictionaries(
    {"prompt_tokens": st.integers(0, 1_000), "completion_tokens": st.integers(0, 1_000)}
)
_name = st.sampled_from(["one", "two"])
_bodies: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "init": st.fixed_dictionaries(
        {"user_id": _name},
        optional={"title": _name, "model": _name, "context": _facts(0), "metadata": _facts(0)},
    ),
    "append": _message,
    "usage": _tokens,
    "turn": st.fixed_dictionaries({"messages": _messages(1)}, optional={"usage": _tokens}),
    "reset": st.fixed_dictionaries({}, optional={"reason": _name}),
    "update": st.fixed_dictionaries(
        {},
        optional={
            "title": st.none() | _name,
            "model": st.none() | _name,
            "user_id": st.none() | _name,
            "context": _facts(1),
            "metadata": _facts(1),
        },
    ),
    "import": st.fixed_dictionaries(
        {"messages": _messages(0)}, optional={"mode": st.sampled_from(["append", "replace"])}
    ),
    "reply.start": st.fixed_dictionaries(
        {"message_id": _message_id}, optional={"role": st.sampled_from(["assistant", "tool"])}
    ),
    "reply.chunk": st.fixed_dictionaries(
        {
            "message_id": _message_id,
            "index": st.integers(0, 4),
            "texts": st.lists(st.sampled_from(["", "a", "日本"]), min_size=1, max_size=4),
        }
    ),
    "reply.finish": st.fixed_dictionaries(
        {"message_id": _message_id}, optional={"usage": _tokens, "finish_reason": _name}
    ),
    "reply.abort": st.fixed_dictionaries({"message_id": _message_id}, optional={"reason": _name}),
    "edit": st.fixed_dictionaries(
        {"message_id": _message_id, "content": st.sampled_from(["", "better", "日本"])}
    ),
    "redact": st.fixed_dictionaries({"message_id": _message_id}),
    "close": st.fixed_dictionaries(
        {}, optional={"reason": st.sampled_from(["closed", "inactive", "inactive", "deleted"])}
    ),
    "reopen": st.fixed_dictionaries({}, optional={"reason": _name}),
    "erase": st.fixed_dictionaries({}, optional={"legal_basis": _name}),
}
# Talking is most of what happens, and an end is rare.
_often = ["append", "append", "turn", "reply.start", "reply.chunk", "reply.chunk", "edit", "redact"]
_verbs = st.sampled_from([*_bodies, *(each for each in _bodies if each != "erase"), *_often * 3])
requests: st.SearchStrategy[Request] = _verbs.flatmap(
    lambda verb: st.builds(
        Request,
        verb=st.just(verb),
        body=_bodies[verb],
        command_id=st.none() | st.none() | _some_id,
        expected_version=st.none() | st.none() | st.none() | st.integers(0, 8),
    )
)
# A life of a conversation: sometimes addressed before it has begun.
lives: st.SearchStrategy[list[Request]] = st.builds(
    lambda before, begin, after: [*before, begin, *after],
    st.lists(requests, max_size=1),
    st.builds(Request, verb=st.just("init"), body=_bodies["init"]),
    st.lists(requests, max_size=25),
)
