"""What the tests of conversations in use stand on: what other processes have stored."""

from __future__ import annotations

import json
from typing import Any

from pydantic_core import to_json

from domain.commands import parse_command
from domain.identity import ConversationId
from domain.rules import CommandContext
from infra.jetstream.envelope import Recorded
from services.snapshots import Snapshot
from tests.services.fake_store import FakeStore
from tests.services.rigs import ADAS


def as_heard(event: Recorded) -> tuple[bytes, bytes]:
    """The live copy of a stored event: header block and body."""
    headers = {
        "Nats-Sequence": str(event.seq),
        "Nats-Subject": event.subject,
        "Nats-Time-Stamp": event.time,
        "Event-Type": event.topic,
        "Event-Version": str(event.version),
        "Event-Hash": event.digest,
    }
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return f"NATS/1.0\r\n{lines}\r\n".encode(), event.body


def by_rival(store: FakeStore, content: str = "from elsewhere", id: ConversationId = ADAS) -> None:
    body = json.dumps({"role": "assistant", "content": content}).encode()
    store.rival(id, parse_command("append", body), CommandContext(None))


def grown(store: FakeStore, events: int) -> None:
    """A conversation of that many events, written elsewhere."""
    init_command = parse_command("init", b'{"user_id": "ada"}')
    store.rival(ADAS, init_command, CommandContext("begin"))
    for n in range(events - 1):
        by_rival(store, f"message {n}")


def snapshot_at(store: FakeStore, version: int, window_size: int = 5) -> dict[str, Any]:
    """What is saved of a conversation at a version."""
    conversation = store.conversation(ADAS.key, version)
    assert conversation is not None
    view = store.view(ADAS.key, window_size, version)
    digest = store.log[ADAS.key][version - 1].digest
    state: dict[str, Any] = json.loads(Snapshot(conversation, view, digest).encode())
    return state


def in_parts(state: dict[str, Any]) -> bytes:
    """As it is saved, whatever is in it."""
    view = to_json(state["view"])
    return b'{"view_bytes":%d,"digest":%b,"view":%b,"conversation":%b}' % (
        len(view), to_json(state["digest"]), view, to_json(state["conversation"]),
    )  # fmt: skip
