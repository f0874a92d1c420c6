"""Following events live: `convo.live.<partition>.<tenant>.<conversation>`, which the server fills
from the events streams once they are stored. That is plain NATS, at most once: what gets lost (a
reconnect, a reader too slow) is noticed by the versions of a conversation, which have no gaps.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from typing import Any

import click
from nats.aio.client import Client as Connection
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription
from nats.errors import TimeoutError as NatsTimeout

from domain.identity import ConversationId
from infra.jetstream.envelope import EVENT_HASH
from services.cli import output
from services.cli.errors import Refused, Unanswered
from services.cli.requests import Patience, ask, encode
from services.endpoint import CONSISTENCY

QUIET_S = 1.0
"""Without an event for this long, what may have been lost is looked for."""

CONVERSATIONS_WATCHED = 65_536

_SEQ = "Nats-Sequence"


class LimitReached(Exception):
    """As many events as were asked for have been shown."""


class Shown:
    """Prints events, and knows when it were enough."""

    def __init__(self, *, as_json: bool, limit: int | None = None) -> None:
        self._as_json = as_json
        self._left = limit

    def event(self, event: dict[str, Any]) -> None:
        """Prints one event; `LimitReached` after the last one wanted."""
        if self._as_json:
            output.show_json(event)
        else:
            output.show([output.event(event)])
        if self._left is not None:
            self._left -= 1
            if self._left == 0:
                raise LimitReached

    def note(self, line: str) -> None:
        """Says on standard error what is going on."""
        click.echo(f"convo: {line}", err=True)


async def follow_conversation(
    connection: Connection,
    id: ConversationId,
    shown: Shown,
    patience: Patience,
    *,
    history: int | None,
    from_version: int | None,
) -> None:
    """Shows the conversation's events from a version on, in order, each once, until cancelled.

    Subscribed first, then read: what is stored meanwhile is in both, and shown once by its version.
    """
    live = await connection.subscribe(f"convo.live.*.{id.key}")
    await connection.flush()
    events = _Events(connection, id, patience, shown)
    await events.begin(history, from_version)
    shown.note(f"following {'/'.join(id)} after version {events.last} (Ctrl-C ends)")
    await events.catch_up()
    certain, reconnects = True, connection.stats["reconnects"]
    while True:
        event = await _next(live)
        if event is not None and event["version"] <= events.last:
            continue
        if event is not None and event["version"] == events.last + 1:
            certain = False  # another one may have been lost behind it
            events.show(event)
            continue
        came_back = connection.stats["reconnects"]
        if event is not None or not certain or came_back != reconnects:
            try:
                await events.catch_up()
            except (Unanswered, Refused):
                certain = False  # again at the next quiet second
            else:
                certain, reconnects = True, came_back


class _Events:
    """The events of one conversation: which were shown, and the others from the `events` view."""

    def __init__(
        self, connection: Connection, id: ConversationId, patience: Patience, shown: Shown
    ) -> None:
        self.last = 0
        self._connection = connection
        self._subject = f"convo.get.{id.key}.events"
        self._patience = patience
        self._shown = shown

    async def begin(self, history: int | None, from_version: int | None) -> None:
        """Settles after which version to begin: now, `history` events ago, or as asked."""
        if from_version is not None:
            self.last = from_version - 1
        else:
            page = await self._page({"limit": 1})
            self.last = max(0, int(page.get("version", 0)) - (history or 0))

    def show(self, event: dict[str, Any]) -> None:
        """Shows the event that follows the last one."""
        self.last = int(event["version"])
        self._shown.event(event)

    async def catch_up(self) -> None:
        """Shows every stored event after the last one shown."""
        more = True
        while more:
            page = await self._page({"after_version": self.last})
            for event in page.get("events", ()):
                self.show(event)
            more = page.get("next") is not None

    async def _page(self, body: dict[str, Any]) -> dict[str, Any]:
        """One answer; empty while the conversation does not exist."""
        headers = {CONSISTENCY: "strong"}
        try:
            return (
                await ask(self._connection, self._subject, encode(body), headers, self._patience)
            ).reply
        except Refused as error:
            if error.code == "conversation_not_initialized":
                return {}
            raise


async def _next(live: Subscription) -> dict[str, Any] | None:
    """The next event; None after a quiet while."""
    try:
        while (event := _live_event(await live.next_msg(timeout=QUIET_S))) is None:
            pass
    except NatsTimeout:
        return None
    return event


async def follow_many(connection: Connection, subject: str, shown: Shown) -> None:
    """Shows every event of the subject as it comes, until cancelled; says where some are lost."""
    live = await connection.subscribe(subject)
    await connection.flush()
    shown.note(f"following {subject} (Ctrl-C ends)")
    versions: OrderedDict[str, int] = OrderedDict()
    reconnects = connection.stats["reconnects"]
    while True:
        event = await _next(live)
        if connection.stats["reconnects"] != reconnects:
            reconnects = connection.stats["reconnects"]
            shown.note("the connection was lost for a while: events may be missing here")
        if event is None:
            continue
        name = output.name(event)
        before = versions.pop(name, None)
        if before is not None and event["version"] > before + 1:
            shown.note(f"missed here: `convo events {name} --after-version {before}` has it")
        versions[name] = event["version"]
        if len(versions) > CONVERSATIONS_WATCHED:
            versions.popitem(last=False)
        shown.event(event)


def _live_event(message: Msg) -> dict[str, Any] | None:
    """The event as the `events` view has it (stored, seq, hash); None for a foreign message."""
    try:
        event = json.loads(message.data)
        headers = message.headers or {}
        event["version"] = int(event["version"])
        return {**event, "seq": int(headers[_SEQ]), "hash": headers.get(EVENT_HASH)}
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
