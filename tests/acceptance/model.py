"""A conversation as a plain dict: the contract's rules, written once more without any of its code.

`execute` says what a command has to be answered, and changes the dict as the ledger has to.
"""

from __future__ import annotations

from typing import Any

JSON = dict[str, Any]

WINDOW_SIZE = 5
CONTENT_BYTES_MAX = 60


def fresh() -> JSON:
    """A conversation that nobody has begun."""
    return {
        "version": 0,
        "user_id": None,
        "title": None,
        "model": None,
        "context": {},
        "metadata": {},
        "titled": False,
        "title_from": None,  # the message_id that it was taken from
        "status": "active",
        "open": {},  # message_id of a reply that has not ended -> the index of its next chunk
        "redacted": set(),  # message_ids
        "all_messages": [],
        "session_begins": 0,  # the place in all_messages
        "tokens": [0, 0],
        "lifetime": [0, 0],
        "commands": {},  # id -> (verb, what it was answered)
    }


def execute(model: JSON, verb: str, body: JSON, headers: JSON) -> tuple[str, JSON]:
    """The error code or `ok`, and for `ok` what the reply says beside ids, times and sequences."""
    command_id = body.get("command_id")
    if command_id in model["commands"]:
        first_verb, answer = model["commands"][command_id]
        return (
            ("ok", {**answer, "duplicate": True}) if first_verb == verb else ("invalid_state", {})
        )
    if model["version"] == 0 and verb != "init":
        return "conversation_not_initialized", {}
    expected = headers.get("Convo-Expected-Version")
    if expected is not None and int(expected) != model["version"]:
        return "version_conflict", {}
    if model["status"] == "erased":
        return "conversation_erased", {}
    if model["status"] in {"closed", "deleted"} and verb not in {*ENDINGS, "init"}:
        return "conversation_closed", {}
    messages: list[JSON] = [body] if verb == "append" else body.get("messages", [])
    said = [m["content"] for m in [*messages, *([body] if verb == "edit" else [])]]
    if any(len(content.encode()) > CONTENT_BYTES_MAX for content in said):
        return "message_too_large", {}
    taken = {message["message_id"] for message in model["all_messages"] if "message_id" in message}
    named = [body] if verb == "reply.start" else messages
    if any(message.get("message_id") in taken for message in named):
        return "invalid_state", {}
    if refusal := _refused_change(model, verb, body, taken):
        return refusal, {}
    answer = _carry_out(model, verb, body, messages)
    if command_id is not None and answer["types"]:
        model["commands"][command_id] = (verb, answer)
    return "ok", answer


ENDINGS = ("close", "reopen", "erase")
OPEN_REPLIES_MAX = 8
FURTHER = ["active", "inactive", "closed", "deleted"]


def _refused_change(model: JSON, verb: str, body: JSON, taken: set[str]) -> str | None:
    """Why a reply or a message cannot be changed like this; None where it can."""
    if verb == "reply.start":
        return "invalid_state" if len(model["open"]) == OPEN_REPLIES_MAX else None
    if verb not in {"reply.chunk", "reply.finish", "reply.abort", "edit", "redact"}:
        return None
    message_id = body["message_id"]
    if message_id not in taken:
        return "message_not_found"
    is_open = message_id in model["open"]
    if verb == "edit" and (is_open or message_id in model["redacted"]):
        return "invalid_state"
    if verb.startswith("reply.") and not is_open:
        return "invalid_state"
    if verb == "reply.chunk":
        if body["index"] > model["open"][message_id]:
            return "invalid_state"
        text = _named(model, message_id)["content"] + _new_text(model, body)
        if len(text.encode()) > CONTENT_BYTES_MAX:
            return "message_too_large"
    return None


def _named(model: JSON, message_id: str) -> JSON:
    found: JSON = next(m for m in model["all_messages"] if m.get("message_id") == message_id)
    return found


def _new_text(model: JSON, body: JSON) -> str:
    written = model["open"][body["message_id"]] - body["index"]
    return "".join(body["texts"][written:])


def _abort(model: JSON, reason: str, *message_ids: str) -> list[str]:
    """Ends replies; the types of the events."""
    for message_id in message_ids:
        del model["open"][message_id]
        message = _named(model, message_id)
        del message["streaming"]
        message["aborted"] = reason
    return ["ReplyAborted"] * len(message_ids)


def _start_over(model: JSON) -> list[str]:
    """Begins a new session; the types of the events."""
    types = ["ConversationReopened"] if model["status"] == "inactive" else []
    model["status"] = "active"
    types += _abort(model, "reset", *model["open"])
    model["session_begins"] = len(model["all_messages"])
    model["tokens"] = [0, 0]
    return [*types, "SessionReset"]


def _change(model: JSON, verb: str, body: JSON) -> list[str]:
    """Carries out a command about one message; the types of the events."""
    message_id = body["message_id"]
    message = _named(model, message_id)
    match verb:
        case "reply.chunk":
            new = body["texts"][model["open"][message_id] - body["index"] :]
            if not new:
                return []
            message["content"] += "".join(new)
            model["open"][message_id] += len(new)
            return ["ReplyChunkAppended"]
        case "reply.finish":
            del model["open"][message_id]
            del message["streaming"]
            message |= {name: body[name] for name in body.keys() & {"finish_reason"}}
            return ["ReplyCompleted"]
        case "reply.abort":
            return _abort(model, body.get("reason", "stopped"), message_id)
        case "edit":
            message |= {"content": body["content"], "edited": True}
            return ["MessageEdited"]
    if message_id in model["redacted"]:
        return []
    types = _abort(model, "redacted", message_id) if message_id in model["open"] else []
    for name in HOW:
        message.pop(name, None)
    message |= {"content": None, "redacted": True}
    model["redacted"].add(message_id)
    if model["title_from"] == message_id:
        model["title"] = None
    return [*types, "MessageRedacted"]


def _end(model: JSON, verb: str, body: JSON) -> list[str]:
    """Carries out close, reopen or erase; the types of the events."""
    if verb == "erase":
        types = _abort(model, "erased", *model["open"])
        model |= {"status": "erased", "user_id": None, "title": None, "model": None}
        model |= {"context": {}, "metadata": {}}
        return [*types, "ConversationErased"]
    if verb == "reopen":
        was, model["status"] = model["status"], "active"
        return ["ConversationReopened"] if was != "active" else []
    reason = body.get("reason", "closed")
    if FURTHER.index(reason) <= FURTHER.index(model["status"]):
        return []
    model["status"] = reason
    return [*_abort(model, reason, *model["open"]), "ConversationClosed"]


def _carry_out(model: JSON, verb: str, body: JSON, messages: list[JSON]) -> JSON:
    before = model["version"]
    types: list[str] = []
    if verb == "init" and before == 0:
        model |= {name: body.get(name) for name in ("user_id", "title", "model")}
        model["context"], model["metadata"] = (
            _merged({}, body.get(name)) for name in ("context", "metadata")
        )
        model["titled"] = model["title"] is not None
        types.append("ConversationStarted")
    if (
        verb == "reset"
        or body.get("mode") == "replace"
        or (model["status"] == "inactive" and (messages or verb in {"usage", "reply.start"}))
    ):
        types += _start_over(model)
    if verb in {"reply.chunk", "reply.finish", "reply.abort", "edit", "redact"}:
        types += _change(model, verb, body)
    if verb in ENDINGS:
        types += _end(model, verb, body)
    if verb == "reply.start":
        types.append("ReplyStarted")
        begun = {"role": "assistant", "content": "", "streaming": True, **body}
        model["all_messages"].append({**begun, "version": before + len(types)})
        model["open"][body["message_id"]] = 0
    for message in messages:
        types.append("MessageAppended")
        model["all_messages"].append({**message, "version": before + len(types)})
        if message["role"] == "user" and not model["titled"] and message["content"].strip():
            text = message["content"]
            model["title"] = text[:50].strip() + ("..." if len(text) > 50 else "")
            model["titled"] = True
            model["title_from"] = message.get("message_id")
            types.append("ConversationTitled")
    use = body if verb == "usage" else body.get("usage")
    if use is not None:
        counts = use["prompt_tokens"], use["completion_tokens"]
        for totals in ("tokens", "lifetime"):
            model[totals] = [old + new for old, new in zip(model[totals], counts, strict=True)]
        types.append("UsageRecorded")
    if verb == "update" and (body.keys() - {"command_id", "context", "metadata"} or _facts(body)):
        model |= {name: body[name] for name in ("user_id", "title", "model") if name in body}
        for name in ("context", "metadata"):
            model[name] = _merged(model[name], body.get(name))
        model["titled"] = model["titled"] or body.get("title") is not None
        if "title" in body:
            model["title_from"] = None
        types.append("ContextUpdated")
    model["version"] += len(types)
    answer: JSON = {"version": model["version"], "types": types, "duplicate": False}
    if use is not None:
        answer |= totals_of(model)
    if verb == "init":
        answer["state"] = state_of(model)
    return answer


def window_of(model: JSON) -> list[JSON]:
    """The recent messages: role, content, version, and message_id where it was given."""
    if not shows_messages(model):
        return []
    session: list[JSON] = model["all_messages"][model["session_begins"] :]
    return session[-WINDOW_SIZE:]


def shows_messages(model: JSON) -> bool:
    """Whether the messages are for readers at present."""
    return model["status"] not in {"deleted", "erased"}


HOW = {"streaming", "finish_reason", "aborted", "edited"}
"""What a redacted message has not any more, beside what it said."""


def hidden(model: JSON, state: JSON, title_from: str | None) -> JSON:
    """A state of an earlier version, as it is shown now; its title was taken from `title_from`."""
    messages = [
        {
            **{name: value for name, value in message.items() if name not in HOW},
            "content": None,
            "metadata": {},
            "redacted": True,
        }
        if message["message_id"] in model["redacted"]
        else message
        for message in state["recent_messages"]
    ]
    shown = {**state, "recent_messages": messages if shows_messages(model) else []}
    if title_from in model["redacted"]:
        shown["title"] = None
    if model["status"] == "erased":
        shown |= {"status": "erased", "user_id": None, "title": None, "model": None}
        shown |= {"context": {}, "metadata": {}}
    return shown


def totals_of(model: JSON) -> JSON:
    """What `usage` answers."""
    return {
        name: {"prompt": prompt, "completion": completion, "total": prompt + completion}
        for name, (prompt, completion) in (
            ("usage", model["tokens"]),
            ("lifetime", model["lifetime"]),
        )
    }


def state_of(model: JSON) -> JSON:
    """What `state` answers, but for ids, times, sequences and the recent messages."""
    totals = totals_of(model)
    return {
        "status": model["status"],
        "user_id": model["user_id"],
        "title": model["title"],
        "model": model["model"],
        "context": dict(model["context"]),
        "metadata": dict(model["metadata"]),
        "tokens_used": totals["usage"],
        "lifetime_tokens": totals["lifetime"],
        "message_count": len(model["all_messages"]),
        "version": model["version"],
    }


def _facts(body: JSON) -> bool:
    return bool(body.get("context") or body.get("metadata"))


def _merged(known: JSON, changes: JSON | None) -> JSON:
    together = {**known, **(changes or {})}
    return {key: value for key, value in together.items() if value is not None}
