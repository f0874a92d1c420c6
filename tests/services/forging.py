"""Copies of a ledger's streams, message by message, so that each can be forged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import sha256

from nats.aio.client import Client

from infra.jetstream.scan import scan
from infra.jetstream.topology import Topology, call
from services.notary import STREAM

EVENTS = "CONVO-EVENTS-0"


@dataclass(frozen=True)
class Message:
    """A message of a copy; `seq` is where the original stood."""

    seq: int
    subject: str
    headers: dict[str, str]
    body: bytes

    def with_body(self, old: bytes, new: bytes) -> Message:
        """The same with other words in its body."""
        assert old in self.body
        return replace(self, body=self.body.replace(old, new))

    def with_header(self, name: str, value: str) -> Message:
        """The same with another header."""
        return replace(self, headers={**self.headers, name: value})


@dataclass(frozen=True)
class Copy:
    """What the two streams held."""

    events: list[Message]
    records: list[Message]

    def of(self, conversation: str) -> list[int]:
        """Where the events of a conversation of tenant acme stand in `events`."""
        subject = f"convo.evt.0.acme.{conversation}"
        return [place for place, each in enumerate(self.events) if each.subject == subject]


async def read_copy(nc: Client) -> Copy:
    """Reads both streams."""
    return Copy(await _read(nc, EVENTS), await _read(nc, STREAM))


async def _read(nc: Client, stream: str) -> list[Message]:
    return [
        Message(
            each.seq,
            each.subject,
            {name: value for name, value in each.headers.items() if name[:5] != "Nats-"},
            each.body,
        )
        async for block in scan(nc, stream)
        for each in block
    ]


async def write_copy(
    nc: Client, topology: Topology, copy: Copy, *, deletable: bool = False
) -> None:
    """Makes both streams anew on a server and fills them."""
    for config, messages in (
        ({**topology.events_config(0), "deny_delete": not deletable}, copy.events),
        ({"name": STREAM, "subjects": ["convo.notary.>"]}, copy.records),
    ):
        await call(nc, f"STREAM.DELETE.{config['name']}", {})
        made = await call(nc, f"STREAM.CREATE.{config['name']}", config)
        assert "error" not in made, made
        for message in messages:
            await nc.request(message.subject, message.body, headers=message.headers, timeout=10)


async def delete(nc: Client, seq: int) -> None:
    """Removes one event from a copy, leaving a gap."""
    done = await call(nc, f"STREAM.MSG.DELETE.{EVENTS}", {"seq": seq})
    assert done.get("success"), done


def rechained(messages: Sequence[Message]) -> list[Message]:
    """The events of one conversation with the hashes that their bodies give."""
    head = bytes(32)
    found = []
    for each in messages:
        head = sha256(head + each.body).digest()
        found.append(each.with_header("Event-Hash", head.hex()))
    return found


def replaced(messages: Sequence[Message], at: int, *others: Message) -> list[Message]:
    """The messages with others in the place of one."""
    return [*messages[:at], *others, *messages[at + 1 :]]
