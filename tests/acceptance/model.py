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
    messages: list[JSON] = [body] if verb == "append" else body.get("messages", [])
    if any(len(m["content"].encode()) > CONTENT_BYTES_MAX for m in messages):
        return "message_too_large", {}
    taken = {message["message_id"] for message in model["all_messages"] if "message_id" in message}
    if any(message.get("message_id") in taken for message in messages):
        return "invalid_state", {}
    answer = _carry_out(model, verb, body, messages)
    if command_id is not None and answer["types"]:
        model["commands"][command_id] = (verb, answer)
    return "ok", answer


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
    if verb == "reset" or body.get("mode") == "replace":
        model["session_begins"] = len(model["all_messages"])
        model["tokens"] = [0, 0]
        types.append("SessionReset")
    for message in messages:
        types.append("MessageAppended")
        model["all_messages"].append({**message, "version": before + len(types)})
        if message["role"] == "user" and not model["titled"] and message["content"].strip():
            text = message["content"]
            model["title"] = text[:50].strip() + ("..." if len(text) > 50 else "")
            model["titled"] = True
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
    session: list[JSON] = model["all_messages"][model["session_begins"] :]
    return session[-WINDOW_SIZE:]


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
        "status": "active",
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
