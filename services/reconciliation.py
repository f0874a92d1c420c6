"""Reconciliation: what readers are shown, compared with the record folded again.

Compared are, for each conversation: its snapshot (the aggregate and the view in it), and the live
answers `messages`, `usage` and `state`. Each says which version it is of; the record is folded once
from its first event, checked on the way, and held against each at that version. What is shown in
an answer that was cut for its size is compared as far as it goes.

A difference names the conversation, what differs (`source`), the version and the field.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NamedTuple

from nats.aio.client import Client
from pydantic_core import from_json, to_json

from domain.conversation import Conversation, evolve
from domain.identity import ConversationId
from domain.mapper import ConversationMapper
from infra.jetstream.chain import START, Fault
from infra.jetstream.envelope import EVENT_TYPE
from infra.jetstream.errors import NATS_FAILURES, StoreUnavailable, reason
from infra.jetstream.scan import Stored, scan
from infra.jetstream.snapshots import Snapshots
from infra.jetstream.topology import Topology, call
from projections.state import ConversationView
from services.endpoint import CONSISTENCY
from services.verification import follow_conversation

LIVE = ("messages", "usage", "state")
_NAMES_A_PAGE = 100_000


class Difference(NamedTuple):
    """One field that is not what the record gives."""

    conversation: str
    source: str
    version: int
    field: str
    expected: Any
    found: Any


@dataclass(frozen=True, slots=True)
class Shown:
    """What one source says of a conversation at a version."""

    source: str
    version: int
    content: Any


async def conversations(nc: Client, topology: Topology) -> AsyncGenerator[ConversationId, None]:
    """Every conversation of the ledger, partition by partition. Raises StoreUnavailable."""
    for partition in range(topology.partitions):
        offset = 0
        while True:
            info = await call(
                nc,
                f"STREAM.INFO.{topology.stream_name(partition)}",
                {"subjects_filter": ">", "offset": offset},
                timeout=30.0,
            )
            if "error" in info:
                raise StoreUnavailable(f"the names cannot be read: {info['error']['description']}")
            names = info["state"].get("subjects") or {}
            for subject in names:
                yield ConversationId.from_key(topology.originator(subject))
            offset += len(names)
            if len(names) < _NAMES_A_PAGE:
                break


class Reconciliation:
    """Compares conversations, one after the other."""

    def __init__(
        self, nc: Client, topology: Topology, *, window_size: int, timeout_s: float = 10.0
    ) -> None:
        self._nc = nc
        self._topology = topology
        self._window_size = window_size
        self._timeout_s = timeout_s
        self._snapshots = Snapshots(nc, topology)
        self._mapper = ConversationMapper()

    async def differences(self, id: ConversationId) -> list[Difference]:
        """Whatever differs about one conversation. Raises StoreUnavailable."""
        found: list[Difference] = []
        shown = [*await self._snapshot(id), *await self._live(id)]
        due = sorted(shown, key=lambda each: each.version)
        sizes = {self._window_size} | {
            each.content["window_size"] for each in shown if each.source == "snapshot.view"
        }
        folds = {size: ConversationView.empty(size) for size in sizes}
        aggregate: Conversation | None = None
        name = "/".join(id)
        link = START
        async with aclosing(
            scan(
                self._nc,
                self._topology.stream_name(self._topology.partition(id.key)),
                subject=self._topology.subject(id.key),
            )
        ) as blocks:
            async for block in blocks:
                for stored in block:
                    following = follow_conversation(link, stored)
                    if isinstance(following, Fault):
                        return [_broken(name, following)]
                    link = following
                    event = self._event(id, stored, link.version)
                    aggregate = evolve(aggregate, event)
                    for view in folds.values():
                        view.apply(event, stored.seq)
                    while due and due[0].version == link.version:
                        each = due.pop(0)
                        expected = _expected(each, folds, self._window_size, aggregate)
                        found += compare(name, each, expected)
        found += [
            Difference(name, each.source, each.version, "version", link.version, each.version)
            for each in due
        ]
        return found

    def _event(self, id: ConversationId, stored: Stored, version: int) -> Any:
        return self._mapper.event_of(id.key, version, stored.headers[EVENT_TYPE], stored.body)

    async def _snapshot(self, id: ConversationId) -> list[Shown]:
        """The parts of the snapshot; a snapshot of another format is nobody's source."""
        body = await self._snapshots.load(id.key)
        if body is None:
            return []
        try:
            snapshot: dict[str, Any] = from_json(body)
            view, aggregate = snapshot["view"], snapshot["conversation"]
            ConversationView.from_state(view)
            Conversation.from_state(aggregate)
        except (ValueError, KeyError, TypeError):
            return []
        return [
            Shown("snapshot.view", view["version"], view),
            Shown("snapshot.conversation", view["version"], aggregate),
        ]

    async def _live(self, id: ConversationId) -> list[Shown]:
        shown = []
        for view in LIVE:
            try:
                message = await self._nc.request(
                    f"convo.get.{id.key}.{view}",
                    b"",
                    timeout=self._timeout_s,
                    headers={CONSISTENCY: "strong"},
                )
            except NATS_FAILURES as error:
                raise StoreUnavailable(
                    f"queries are not answered ({reason(error)}): they are compared too, so "
                    "start them with `convo up` or `convo serve queries`"
                ) from error
            reply = json.loads(message.data)
            if reply.get("ok"):
                shown.append(Shown(view, reply["version"], reply))
            else:
                said = reply.get("error", {}).get("message")
                raise StoreUnavailable(f"{'/'.join(id)}: {view} was refused: {said}")
        return shown


def compare(name: str, shown: Shown, expected: Any) -> Iterator[Difference]:
    """What differs between one source and the record, field by field."""
    found = shown.content
    if shown.source in LIVE:
        found = {field: found.get(field) for field in expected}
        cut = shown.content.get("truncated") or (
            shown.source == "state" and shown.content["state"].get("truncated")
        )
        if cut:
            expected, found = _as_far_as(shown.source, expected, found)
    for field, was, now in _unequal("", expected, found):
        yield Difference(name, shown.source, shown.version, field, was, now)


def _expected(
    shown: Shown,
    folds: dict[int, ConversationView],
    window_size: int,
    aggregate: Conversation | None,
) -> Any:
    view = folds[window_size]
    match shown.source:
        case "messages":
            return _plain({"messages": view.messages()})
        case "usage":
            return _plain(view.usage())
        case "state":
            return _plain({"state": view.state()})
        case "snapshot.view":
            return _plain(folds[shown.content["window_size"]].to_state())
        case _:
            assert aggregate is not None, "a snapshot stands behind an event"
            return _plain(aggregate.to_state())


def _as_far_as(source: str, expected: Any, found: Any) -> tuple[Any, Any]:
    """Both without what was cut from the older end of a window."""
    if source == "messages":
        kept = len(found["messages"])
        return {"messages": expected["messages"][-kept:] if kept else []}, found
    state = {name: value for name, value in found["state"].items() if name != "truncated"}
    kept = len(state["recent_messages"])
    whole = expected["state"]["recent_messages"]
    return (
        {"state": {**expected["state"], "recent_messages": whole[-kept:] if kept else []}},
        {"state": state},
    )


def _plain(value: Any) -> Any:
    """As it would come out of JSON."""
    return from_json(to_json(value))


def _unequal(path: str, expected: Any, found: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in [*expected, *(each for each in found if each not in expected)]:
            below = f"{path}.{key}" if path else str(key)
            yield from _unequal(below, expected.get(key), found.get(key))
    elif isinstance(expected, list) and isinstance(found, list):
        if len(expected) != len(found):
            yield f"{path}.length" if path else "length", len(expected), len(found)
        for place, (was, now) in enumerate(zip(expected, found, strict=False)):
            yield from _unequal(f"{path}.{place}" if path else str(place), was, now)
    elif type(expected) is not type(found) or expected != found:
        yield path, expected, found


def _broken(name: str, fault: Fault) -> Difference:
    return Difference(name, "record", fault.version, fault.problem, fault.expected, fault.found)
