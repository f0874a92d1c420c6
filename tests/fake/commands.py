"""Commands at random, on a few messages that come up again and again."""

from __future__ import annotations

from random import Random
from typing import Any

from pydantic_core import to_json

from domain.commands import Command, parse_command

VERBS = ["init", "append", "append", "append", "turn", "usage", "reset", "update", "import"]
VERBS += ["edit", "redact", "reply.start", "reply.chunk", "reply.chunk", "reply.finish"]
VERBS += ["close", "reopen", "reopen", "reopen"]


def some_command(random: Random, number: int, verb: str | None = None) -> Command:
    """A command; `number` is in what it says."""
    message: dict[str, Any] = {"role": "user", "content": f"message {number}"}
    if random.random() < 0.3:
        message["message_id"] = some_message(random)
    verb = verb or random.choice(VERBS)
    bodies: dict[str, dict[str, Any]] = {
        "init": {"user_id": f"user-{number}"},
        "append": message,
        "turn": {
            "messages": [message, {"role": "assistant", "content": "indeed"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        },
        "usage": {"prompt_tokens": 5, "completion_tokens": 6},
        "reset": {"reason": f"reason {number}"},
        "update": random.choice([{}, {"context": {"n": number}}]),
        "import": {"messages": random.choice([[], [message]]), "mode": "append"},
        "edit": {"message_id": some_message(random), "content": f"message {number}"},
        "redact": {"message_id": some_message(random)},
        "reply.start": {"message_id": some_message(random)},
        "reply.chunk": {
            "message_id": some_message(random),
            "index": random.randrange(3),
            "texts": ["indeed"] * random.randint(1, 3),
        },
        "reply.finish": {"message_id": some_message(random)},
        "close": {},
        "reopen": {},
    }
    return parse_command(verb, to_json(bodies[verb]))


def some_message(random: Random) -> str:
    """The id of a message that may be there."""
    return f"m{random.randrange(20)}"
