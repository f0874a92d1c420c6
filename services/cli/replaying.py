"""Showing a replay: page by page from the audit service, at the speed and in the steps wanted."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import termios
import tty
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import click
from nats.aio.client import Client as Connection
from nats.errors import TimeoutError as NatsTimeout

from domain.identity import ConversationId
from services.cli import output
from services.cli.options import Client, Named
from services.cli.requests import (
    Patience,
    ask,
    connected,
    conversation,
    encode,
    settings_of,
)
from services.cli.timeline import Timeline, time_of

PAGE_EVENTS = 1_000
QUIET_S = 1.0
"""While following: without an event for this long, what may have been missed is looked for."""

PAUSE_MAX_S = 5.0
"""A longer pause in the conversation is cut to this at any speed."""


class Ended(Exception):
    """Whoever watches has seen enough."""


@dataclass(frozen=True, slots=True)
class Span:
    """Where a replay begins and ends: a version (int), a time (str), or None for all of it."""

    begin: int | str | None
    end: int | str | None

    def body(self) -> dict[str, Any]:
        """The request's part of it; a time to begin at is looked for here."""
        body: dict[str, Any] = {"limit": PAGE_EVENTS}
        if isinstance(self.begin, int):
            body["from_version"] = self.begin
        if isinstance(self.end, int):
            body["to_version"] = self.end
        elif self.end is not None:
            body["at"] = self.end
        return body

    def begins_behind(self, entry: dict[str, Any]) -> bool:
        """Whether the entry is from before the time to begin at."""
        return isinstance(self.begin, str) and time_of(entry) < datetime.fromisoformat(self.begin)


async def replay_conversation(
    client: Client,
    named: Named,
    span: Span,
    timeline: Timeline,
    *,
    speed: float | None,
    step: bool,
    follow: bool,
) -> None:
    """Shows the entries of a span, and with `follow` what comes behind them, until cancelled."""
    id = conversation(named)
    async with contextlib.AsyncExitStack() as stack:
        keys = stack.enter_context(Keys()) if step else None
        connection = await stack.enter_async_context(
            connected(settings_of(client.nats), "convo replay")
        )
        before: datetime | None = None
        shown = 0
        entries = _Entries(connection, id, Patience(client.timeout_s))
        async for entry in entries.all(span.body(), follow=follow):
            if span.begins_behind(entry):
                continue
            shown += 1
            time = time_of(entry)
            if speed is not None and before is not None:
                await asyncio.sleep(
                    min(PAUSE_MAX_S, max(0, (time - before).total_seconds()) / speed)
                )
            before = time
            if client.as_json:
                output.show_json(entry)
            else:
                output.show(timeline.lines(entry))
            if keys is not None:
                await keys.wait()
        if not shown:
            click.echo("convo: nothing happened in that span", err=True)


class _Entries:
    """The entries of one conversation."""

    def __init__(self, connection: Connection, id: ConversationId, patience: Patience) -> None:
        self._connection = connection
        self._id = id
        self._patience = patience

    async def all(self, body: dict[str, Any], *, follow: bool) -> AsyncIterator[dict[str, Any]]:
        """Yields every entry of the span; with `follow` goes on as events are stored."""
        live = await self._connection.subscribe(f"convo.live.*.{self._id.key}") if follow else None
        following = body.get("from_version", 1)
        while True:
            page = await self._page({**body, "from_version": following})
            for entry in page["entries"]:
                following = entry["version"] + 1
                yield entry
            if "next" in page:
                continue
            if live is None:
                return
            while page["version"] < following:
                try:
                    await live.next_msg(timeout=QUIET_S)
                    break
                except NatsTimeout:
                    page = await self._page({**body, "from_version": following, "limit": 1})

    async def _page(self, body: dict[str, Any]) -> dict[str, Any]:
        answer = await ask(
            self._connection,
            f"convo.audit.{self._id.key}.replay",
            encode(body),
            None,
            self._patience,
        )
        return answer.reply


class Keys:
    """The keys pressed on the terminal, one by one, while it is entered. Ctrl-C stays Ctrl-C."""

    def __init__(self) -> None:
        self._fd = sys.stdin.fileno()
        self._before: list[Any] = []

    def __enter__(self) -> Self:
        self._before = termios.tcgetattr(self._fd)
        tty.setcbreak(self._fd, termios.TCSANOW)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        termios.tcsetattr(self._fd, termios.TCSADRAIN, self._before)

    async def wait(self) -> None:
        """Returns with the next key; Ended on q and at the end of input."""
        loop = asyncio.get_running_loop()
        pressed: asyncio.Future[bytes] = loop.create_future()

        def take() -> None:
            if not pressed.done():
                pressed.set_result(self._read())

        loop.add_reader(self._fd, take)
        try:
            key = await pressed
        finally:
            loop.remove_reader(self._fd)
        if key.lower() in (b"q", b"", b"\x04"):
            raise Ended

    def _read(self) -> bytes:
        try:
            return os.read(self._fd, 1)
        except OSError:  # the terminal is gone
            return b""
