"""What each step of an append costs by itself: `python -m tests.benchmarks.micro`.

Microseconds per call, the fastest of several repeats, in the order in which an append walks
through them. Their sum is what the ledger's own code takes of the worker; the rest of the worker's
time per append (`python -m tests.benchmarks`) is nats-py's and the event loop's.
"""

from __future__ import annotations

import json
import timeit
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.micro.request import Request
from pydantic_core import to_json

from domain.commands import parse_command
from domain.conversation import CommandContext, Conversation, Limits, decide, evolve
from domain.events import MessageAppended
from domain.identity import ConversationId, new_id
from domain.mapper import ConversationMapper
from infra.jetstream.envelope import (
    BATCH_ID,
    BATCH_SEQUENCE,
    EXPECTED_LAST_SUBJECT_SEQUENCE,
    Tail,
    pack,
)
from projections.state import ConversationView
from services.commands import PREFIX
from services.endpoint import conversation_of
from tests.benchmarks.texts import text

REPEATS = 7
LIMITS = Limits()

Steps = dict[str, Callable[[], Any]]


class Quiet(Client):
    """A client whose publishes end where their bytes would go to the socket."""

    async def _send_command(self, cmd: bytes, priority: bool = False) -> None:
        del cmd, priority


def conversation(events: int) -> tuple[Conversation, ConversationView]:
    """A conversation that has grown to `events` events, and its view."""
    id = ConversationId.parse("default", "bench")
    start = parse_command("init", b'{"user_id":"bench","title":"Bench"}')
    found = decide(None, id, start, CommandContext(None), LIMITS)
    view = ConversationView.empty(50)
    body = json.dumps({"role": "user", "content": text(1)}).encode()
    seq = count(1)
    for event in found.events:
        view.apply(event, next(seq))
    aggregate = found.conversation
    assert aggregate is not None
    while view.version < events:
        append = parse_command("append", body)
        for event in decide(aggregate, id, append, CommandContext(None), LIMITS).events:
            view.apply(event, next(seq))
    return aggregate, view


def steps() -> Steps:
    """The steps of an append of a 215-character message to a conversation of 200 events."""
    id = ConversationId.parse("default", "bench")
    body = json.dumps({"role": "user", "content": text(1)}).encode()
    aggregate, view = conversation(200)
    command = parse_command("append", body)
    context = CommandContext(None)
    mapper = ConversationMapper()
    (event,) = decide(aggregate, id, command, context, LIMITS).events
    assert isinstance(event, MessageAppended)
    stored = mapper.to_stored_event(event)
    tail = Tail("convo.evt.0.default.bench")
    message = pack(tail, stored.topic, stored.originator_version, stored.state)
    headers = {
        **message.headers(),
        EXPECTED_LAST_SUBJECT_SEQUENCE: "123456",
        BATCH_ID: "AAAAAAAAAAAAAAAAAAAAAA1f",
        BATCH_SEQUENCE: "128",
    }
    reply = {
        "ok": True,
        "tenant_id": id.tenant_id,
        "conversation_id": id.conversation_id,
        "version": 200,
        "seq": 123456,
        "partition": 0,
        "duplicate": False,
        "events": [{"type": "MessageAppended", "version": 200, "seq": 123456}],
        "message_id": event.message_id,
    }
    answer = to_json(reply)
    client = Quiet()
    subject = f"{PREFIX}{id.key}.append"
    raw = Msg(_client=client, subject=subject, reply="_INBOX.1", data=body)
    sent = deque([(message.headers(), message.body)], maxlen=1)
    return {
        "request: its id and verb": lambda: conversation_of(Request(raw).subject, PREFIX),
        "parse_command": lambda: parse_command("append", body),
        "decide": lambda: decide(aggregate, id, command, context, LIMITS),
        "  of which new_id, twice": lambda: (new_id(event.timestamp), new_id(event.timestamp)),
        "mapper, to stored": lambda: mapper.to_stored_event(event),
        "pack (hash)": lambda: pack(tail, stored.topic, 1, stored.state),
        "event headers": lambda: sent.append((message.headers(), message.body)),
        "publish with 6 headers (nats-py)": lambda: _run(
            client._send_publish(tail.subject, "", message.body, len(message.body), headers)
        ),
        "view.apply": lambda: view.apply(event, 7),
        "reply, to JSON": lambda: to_json(reply),
        "publish the reply (nats-py)": lambda: _run(
            client._send_publish("_INBOX.abc.17", "", answer, len(answer), None)
        ),
    }


def cold_steps() -> Steps:
    """The steps of reading an event in: a cold load, a replay."""
    mapper = ConversationMapper()
    aggregate, view = conversation(200)
    id = ConversationId.parse("default", "bench")
    command = parse_command("append", json.dumps({"role": "user", "content": text(1)}).encode())
    (event,) = decide(aggregate, id, command, CommandContext(None), LIMITS).events
    stored = mapper.to_stored_event(event)

    def evolved() -> None:
        aggregate._version = event.originator_version - 1
        evolve(aggregate, event)

    return {
        "mapper, from stored": lambda: mapper.to_domain_event(stored),
        "evolve": evolved,
        "view.apply": lambda: view.apply(event, 7),
        "view.messages, 50, to JSON": lambda: to_json({"messages": view.messages()}),
    }


def microseconds(step: Callable[[], Any], *, repeats: int = REPEATS, calls: int = 0) -> float:
    """The fastest of `repeats` averages over `calls` calls (0: as many as fill 0.2 s)."""
    timer = timeit.Timer(step)
    calls = calls or timer.autorange()[0]
    return 1e6 * min(timer.repeat(repeats, calls)) / calls


def main() -> None:
    total = 0.0
    for name, step in steps().items():
        cost = microseconds(step)
        total += 0 if name.startswith(" ") else cost
        print(f"{cost:8.2f}  {name}", flush=True)
    print(f"{total:8.2f}  µs for one append, beside reading, routing and the event loop\n")
    for name, step in cold_steps().items():
        print(f"{microseconds(step):8.2f}  {name}", flush=True)


def _run(work: Coroutine[Any, Any, None]) -> None:
    """Runs a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration:
        return
    raise AssertionError("it waited")


if __name__ == "__main__":
    main()
