"""What was promised and shown, against what is there: the one checker of every fault program.

A run leaves deeds (commands, and what was told about them) and sights (what queries answered). The
stream is read with nothing of the product's, folded by the few lines here, and compared:

- every acknowledged event is there once, at the version and sequence that its reply named; what was
  not acknowledged is there at most once, and whole; nothing else is there;
- each conversation's versions are 1, 2, 3 …, its hash chain holds, and a writer's commands are in
  the order it sent them;
- every answer that a query gave is the fold of the conversation up to the version it named, and no
  older than it was asked to be;
- the tables of analytics and the directory are that fold too.
"""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import nats
from nats.errors import TimeoutError as NatsTimeoutError
from nats.js.api import ConsumerConfig, DeliverPolicy
from nats.js.errors import NotFoundError

WINDOW = 50
READ_TRIES = 8

PROMPT_TOKENS = 11
COMPLETION_TOKENS = 7
"""Of every turn."""


class Place(NamedTuple):
    """Where an event is: as a reply told it, or as the stream has it."""

    version: int
    seq: int


@dataclass(slots=True)
class Deed:
    """One command of a writer: what it says, and where it was told that its messages are.

    `told` None: nobody answered, it may have happened or not.
    """

    writer: str
    tokens: str
    content: str
    events: int
    told: list[Place] | None = None
    tries: int = 0


class Sight(NamedTuple):
    """What a query answered: the contents of the window, the totals, or both; as of `version`."""

    tokens: str
    version: int
    at_least: int
    """The newest version that anybody had been told of before it was asked."""
    window: Sequence[str] | None
    tokens_used: int | None


class Event(NamedTuple):
    """One event of the stream."""

    seq: int
    tokens: str
    digest: str
    body: bytes

    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass(slots=True)
class Folded:
    """One conversation as its events tell it: what is in it, and since which version."""

    version: int = 0
    message_versions: list[int] = field(default_factory=list)
    contents: list[str] = field(default_factory=list)
    usage_versions: list[int] = field(default_factory=list)
    reset_versions: list[int] = field(default_factory=list)
    """A conversation that was closed as inactive begins anew with its next message."""

    def window(self, version: int) -> list[str]:
        """The contents of the recent window, as of a version."""
        end = bisect_right(self.message_versions, version)
        began = bisect_right(self.message_versions, self._reset(version))
        return self.contents[max(began, end - WINDOW) : end]

    def tokens_used(self, version: int, *, since_reset: bool = False) -> int:
        """The tokens of the conversation, as of a version: all, or those since the last reset."""
        turns = bisect_right(self.usage_versions, version)
        if since_reset:
            turns -= bisect_right(self.usage_versions, self._reset(version))
        return turns * (PROMPT_TOKENS + COMPLETION_TOKENS)

    def _reset(self, version: int) -> int:
        resets = bisect_right(self.reset_versions, version)
        return self.reset_versions[resets - 1] if resets else 0


def fold(events: Iterable[Event]) -> dict[str, Folded]:
    """Every conversation of the stream, by its tokens."""
    found: dict[str, Folded] = defaultdict(Folded)
    for event in events:
        conversation = found[event.tokens]
        content = event.json()
        conversation.version += 1
        if content["type"] == "MessageAppended":
            conversation.message_versions.append(conversation.version)
            conversation.contents.append(content["data"]["content"])
        elif content["type"] == "UsageRecorded":
            conversation.usage_versions.append(conversation.version)
        elif content["type"] == "SessionReset":
            conversation.reset_versions.append(conversation.version)
    return dict(found)


# -- commands ------------------------------------------------------------------------------------


def problems(deeds: Iterable[Deed], events: Iterable[Event]) -> list[str]:
    """What the stream holds against what the writers were told; empty when all is well.

    Each begins with its kind: missing, elsewhere, doubled, torn, strange, gap, chain, out of order.
    """
    found: list[str] = []
    held: dict[tuple[str, str], list[Place]] = defaultdict(list)
    for tokens, own in _by_conversation(events).items():
        digest = bytes(32)
        for version, event in enumerate(own, start=1):
            content = event.json()
            digest = hashlib.sha256(digest + event.body).digest()
            if content["version"] != version:
                found.append(f"gap: {tokens} has version {content['version']} as event {version}")
            if event.digest != digest.hex():
                found.append(f"chain: {tokens} version {version}")
            if content["type"] == "MessageAppended":
                place = Place(content["version"], event.seq)
                held[tokens, content["data"]["content"]].append(place)
    last_of_writer: dict[tuple[str, str], int] = {}
    for deed in deeds:
        places = held.pop((deed.tokens, deed.content), [])
        name = f"{deed.tokens} {deed.content}"
        if len(places) > deed.events:
            found.append(f"doubled: {name} at {places}")
        elif 0 < len(places) < deed.events:
            found.append(f"torn: {name}, {len(places)} of {deed.events} at {places}")
        if deed.told is None:
            continue
        if not places:
            found.append(f"missing: {name}, told {deed.told}")
        elif places != deed.told:
            found.append(f"elsewhere: {name}, told {deed.told}, found {places}")
        else:
            key = (deed.writer, deed.tokens)
            if places[0].version < last_of_writer.get(key, 0):
                found.append(f"out of order: {name} at {places}")
            last_of_writer[key] = places[-1].version
    found += [f"strange: {tokens} {content}" for tokens, content in held]
    return found


def _by_conversation(events: Iterable[Event]) -> dict[str, list[Event]]:
    found: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        found[event.tokens].append(event)
    return found


# -- what was shown ------------------------------------------------------------------------------


def wrong_sights(sights: Iterable[Sight], folded: Mapping[str, Folded]) -> list[str]:
    """The answers that are not what the events say; empty when all is well. Each begins with its
    kind: stale, invented (no such version), wrong."""
    return [problem for sight in sights for problem in _wrong(sight, folded)]


def _wrong(sight: Sight, folded: Mapping[str, Folded]) -> Iterator[str]:
    truth = folded.get(sight.tokens, Folded())
    name = f"{sight.tokens} at version {sight.version}"
    if sight.version > truth.version:
        yield f"invented: {name}, there are {truth.version}"
        return
    if sight.version < sight.at_least:
        yield f"stale: {name}, there was already {sight.at_least}"
    if sight.window is not None and list(sight.window) != truth.window(sight.version):
        yield f"wrong: window of {name}: {list(sight.window)[-3:]} at its end"
    if sight.tokens_used not in (None, truth.tokens_used(sight.version)):
        yield f"wrong: totals of {name}: {sight.tokens_used}"


# -- views kept in files -------------------------------------------------------------------------


class Row(NamedTuple):
    """What a table says of a conversation."""

    version: int
    messages: int
    tokens_used: int


def wrong_rows(table: str, rows: Mapping[str, Row], folded: Mapping[str, Folded]) -> list[str]:
    """Where a table is not the fold; empty when all is well. The directory shows the tokens since
    the last reset, analytics all."""
    found = []
    for tokens, truth in folded.items():
        tokens_used = truth.tokens_used(truth.version, since_reset=table == "directory")
        expected = Row(truth.version, len(truth.contents), tokens_used)
        if rows.get(tokens) != expected:
            found.append(f"wrong: {table} has {rows.get(tokens)} for {tokens}, not {expected}")
    found += [f"strange: {table} has {each}" for each in rows.keys() - folded.keys()]
    return found


# -- reading -------------------------------------------------------------------------------------


async def read_stream(url: str, stream: str = "CONVO-EVENTS-0") -> list[Event]:
    """Every event of a stream, in its order; empty when there is no such stream.

    Tried again when the servers do not answer (a cluster may be choosing a leader), and when one is
    missing: it is lost when no copy has it, and whose copy is read is chance.
    """
    found: dict[int, Event] = {}
    for tries_left in range(READ_TRIES - 1, -1, -1):
        try:
            found |= {event.seq: event for event in await _read_stream(url, stream)}
        except NatsTimeoutError:
            if tries_left or found:
                continue
            raise
        if len(found) == max(found, default=0):
            break
    return [found[seq] for seq in sorted(found)]


async def _read_stream(url: str, stream: str) -> list[Event]:
    client = await nats.connect(url.split(","), max_reconnect_attempts=-1, error_cb=quiet)
    try:
        jetstream = client.jetstream(timeout=10)
        try:
            state = (await jetstream.stream_info(stream)).state
        except NotFoundError:
            return []
        if not state.messages:
            return []
        found: list[Event] = []
        consumer = ConsumerConfig(deliver_policy=DeliverPolicy.ALL)
        subscription = await jetstream.subscribe(
            "convo.evt.>", stream=stream, ordered_consumer=True, config=consumer
        )
        while not found or found[-1].seq < state.last_seq:
            message = await subscription.next_msg(timeout=20)
            assert message.headers is not None
            tokens = message.subject.split(".", 3)[3]
            seq = message.metadata.sequence.stream
            found.append(Event(seq, tokens, message.headers["Event-Hash"], message.data))
        return found
    finally:
        await client.close()


async def quiet(error: Exception) -> None:
    """Connections are lost here on purpose."""
