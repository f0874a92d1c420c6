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
        "session": [],  # the messages since the last reset, all of them
        "message_count": 0,
        "prompt": 0,
        "completion": 0,
        "lifetime_prompt": 0,
        "lifetime_completion": 0,
        "user_id": body["user_id"],
        "title": body.get("title"),
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
    if model is not None:
        for message in messages_of(request):
            if message.get("message_id") in model["message_ids"]:
                return "invalid_state"
    return None


def messages_of(request: Request) -> list[dict[str, Any]]:
    if request.verb == "append":
        return [request.body]
    found: list[dict[str, Any]] = request.body.get("messages", [])
    return found


def carry_out(model: Model, request: Request) -> None:
    body = request.body
    if request.verb == "reset" or body.get("mode") == "replace":
        model.update(session=[], prompt=0, completion=0, version=model["version"] + 1)
    for message in messages_of(request):
        say(model, message)
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


# Few ids and versions, so that requests meet each other often.

_some_id = st.sampled_from(["c1", "c2", "c3", "c4", "c5", "c6"])
_message = st.fixed_dictionaries(
    {
        "role": st.sampled_from(["user", "assistant", "tool"]),
        "content": st.sampled_from(["", "hi", "日本語", "x" * 60, " \n", "a: b"]),
    },
    optional={"message_id": st.sampled_from([f"m{number}" for number in range(12)])},
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
}
# Appends are most of what happens.
_verbs = st.sampled_from([*_bodies, "append", "append", "turn"])
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
