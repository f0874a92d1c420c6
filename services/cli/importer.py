"""One run of an import: many conversations at a time, none of them twice.

A line becomes one conversation: `init`, then `import` commands of at most 500 messages, then
`usage` commands, each after the reply to the one before. Ids come from the conversation and the
place in it (`import_format`), so a repeated command is answered as a duplicate; and because the
ledger knows only a conversation's last 1,000 command ids, a conversation that exists is read first
and only what it lacks is sent. The same file again writes nothing, and an interrupted import goes
on where it was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterable, Callable
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from nats.aio.client import Client as Connection

from services.cli.errors import CommandFailed, Refused, Unanswered
from services.cli.import_format import (
    REQUEST_BYTES,
    USER_ID,
    ImportPlan,
    LineRefused,
    PlannedCommand,
    parse_line,
    refusal,
)
from services.cli.line_reader import Line, UnreadableFile
from services.cli.requests import HEADROOM_BYTES, Answer, Patience, ask, encode
from services.endpoint import COMMAND_ID, CONSISTENCY

EVENTS_PER_PAGE = 1_000

PROBLEMS_KEPT = 1_000
"""Lines named in the --json summary; every one is named on standard error."""

_OF_THE_LEDGER = frozenset({"storage_unavailable", "outcome_unknown"})
"""Refusals that say nothing about the line: the import stops, and a repeat goes on."""


@dataclass(slots=True)
class Tally:
    """What an import has done so far."""

    started: float = field(default_factory=time.monotonic)
    conversations: int = 0
    messages: int = 0
    usage: int = 0
    conversations_there: int = 0
    messages_there: int = 0
    usage_there: int = 0
    refused: int = 0
    problems: list[dict[str, Any]] = field(default_factory=list)
    stopped: str | None = None
    interrupted: bool = False
    read_bytes: int = 0

    @property
    def seconds(self) -> float:
        """Since the start."""
        return max(time.monotonic() - self.started, 1e-9)

    def summary(self) -> dict[str, Any]:
        """The --json answer."""
        return {
            "ok": not (self.refused or self.stopped or self.interrupted),
            "conversations": self.conversations,
            "messages": self.messages,
            "usage": self.usage,
            "already_there": {
                "conversations": self.conversations_there,
                "messages": self.messages_there,
                "usage": self.usage_there,
            },
            "refused": self.refused,
            "problems": self.problems,
            "stopped": self.stopped,
            "interrupted": self.interrupted,
            "seconds": round(self.seconds, 3),
        }

    def sentence(self) -> str:
        """The summary on one line."""
        pace = f"{self.seconds:.1f} s, {self.messages / self.seconds:,.0f} messages/s"
        line = f"imported {_counted(self.conversations, self.messages, self.usage)} ({pace})"
        if self.conversations_there or self.messages_there or self.usage_there:
            there = (self.conversations_there, self.messages_there, self.usage_there)
            line += f"; already there: {_counted(*there)}"
        return f"{line}; refused: {self.refused:,} lines" if self.refused else line


def _counted(conversations: int, messages: int, usage: int) -> str:
    counts = f"{conversations:,} conversations, {messages:,} messages"
    return f"{counts}, {usage:,} usage records" if usage else counts


class _Stop(Exception):
    """The ledger is gone, or the file: no further line can be imported now."""


class Importer:
    """One run over a file. Conversations go side by side, the commands of one in their order.

    `report` is given one line of text for each line that cannot be imported.
    """

    def __init__(
        self,
        connection: Connection,
        patience: Patience,
        tally: Tally,
        *,
        report: Callable[[str], None],
        tenant: str | None = None,
        user_id: str | None = None,
    ) -> None:
        self._connection = connection
        self._patience = patience
        self._tally = tally
        self._report = report
        self._tenant = tenant
        self._user_id = user_id or USER_ID
        self._seen: dict[tuple[str, str], tuple[int, bytes]] = {}

    async def run(self, lines: AsyncIterable[Line], concurrency: int) -> None:
        """Imports every line. Ends early, with the reason in the tally, when the ledger or the
        file gives out, and when it is cancelled (Ctrl-C)."""
        running: set[asyncio.Task[None]] = set()
        try:
            async for line in lines:
                self._tally.read_bytes = line.read_bytes
                plan = self._plan(line)
                if plan is None:
                    continue
                while len(running) >= concurrency:
                    running = await _some_ended(running)
                running.add(asyncio.create_task(self._import(line.number, plan)))
            while running:
                running = await _some_ended(running)
        except asyncio.CancelledError:
            self._tally.interrupted = True
        except _Stop as stop:
            self._tally.stopped = str(stop)
        except UnreadableFile as error:
            self._tally.stopped = str(error)
            await asyncio.gather(*running, return_exceptions=True)
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    def _plan(self, line: Line) -> ImportPlan | None:
        """What the line asks for; None when it is blank, refused, or the same as an earlier one."""
        text = line.text.strip()
        if not text:
            return None
        try:
            plan = parse_line(text, tenant=self._tenant, user_id=self._user_id)
        except LineRefused as error:
            self._refuse(line.number, error.conversation, error.reason)
            return None
        digest = sha256(text).digest()
        earlier, same = self._seen.setdefault(plan.conversation, (line.number, digest))
        if earlier == line.number:
            return plan
        if same == digest:
            self._tally.conversations_there += 1
            self._tally.messages_there += len(plan.messages)
            self._tally.usage_there += len(plan.usage)
        else:
            reason = f"line {earlier} is another conversation of the same id"
            self._refuse(line.number, plan.name, reason)
        return None

    async def _import(self, number: int, plan: ImportPlan) -> None:
        try:
            await self._write(plan)
        except Unanswered as error:
            raise _Stop(error.message) from None
        except Refused as error:
            if error.code in _OF_THE_LEDGER:
                raise _Stop(error.message) from None
            self._refuse(number, plan.name, error.message, error.code)
        except CommandFailed as error:
            self._refuse(number, plan.name, error.message)

    async def _write(self, plan: ImportPlan) -> None:
        """Sends what the ledger lacks of the plan, in order; counts what was new and what not."""
        started = (await self._send(plan, plan.init)).reply
        existed = bool(started.get("duplicate")) or not started.get("events")
        there = await self._there(plan) if existed else frozenset[str]()
        self._tally.messages_there += sum(each.message_id in there for each in plan.messages)
        self._tally.usage_there += sum(each.command_id in there for each in plan.usage)
        wrote = not existed
        room = min(REQUEST_BYTES, self._connection.max_payload - HEADROOM_BYTES)
        for command in plan.writes(there, room):
            answer = await self._send(plan, command)
            new = not answer.reply.get("duplicate")
            wrote = wrote or new
            self._count(command, new=new)
        if wrote:
            self._tally.conversations += 1
        else:
            self._tally.conversations_there += 1

    def _count(self, command: PlannedCommand, *, new: bool) -> None:
        if command.verb == "usage":
            self._tally.usage += new
            self._tally.usage_there += not new
        elif new:
            self._tally.messages += command.messages
        else:
            self._tally.messages_there += command.messages

    async def _send(self, plan: ImportPlan, command: PlannedCommand) -> Answer:
        try:
            return await ask(
                self._connection,
                f"convo.cmd.{plan.conversation.key}.{command.verb}",
                command.body,
                {COMMAND_ID: command.command_id},
                self._patience,
            )
        except Refused as error:
            if error.code not in _OF_THE_LEDGER:
                error.message = refusal(error.message, error.details, command)
            raise

    async def _there(self, plan: ImportPlan) -> frozenset[str]:
        """Ids of the plan's messages and usage commands that the conversation holds.

        `CommandFailed` when it holds another message in the place of one of them: that is another
        conversation of the same name, and nothing of this one may be mixed in.
        """
        said = {message.message_id: message.said for message in plan.messages}
        usage = {command.command_id for command in plan.usage}
        found: set[str] = set()
        after: int | None = 0
        while after is not None:
            page = await ask(
                self._connection,
                f"convo.get.{plan.conversation.key}.events",
                encode({"after_version": after, "limit": EVENTS_PER_PAGE}),
                {CONSISTENCY: "strong"},
                self._patience,
            )
            for event in page.reply["events"]:
                stored = event.get("data") or {}
                id = stored.get("message_id")
                if event["type"] == "UsageRecorded":
                    found.add(event.get("command_id", ""))
                elif event["type"] == "MessageAppended" and id in said:
                    if said[id] != (stored.get("role"), stored.get("content")):
                        raise CommandFailed(
                            f"the conversation exists with other messages (version"
                            f" {event.get('version')}): import this one under another --tenant"
                        )
                    found.add(id)
            after = page.reply.get("next")
        return frozenset(found & (said.keys() | usage))

    def _refuse(self, number: int, name: str | None, reason: str, code: str | None = None) -> None:
        self._tally.refused += 1
        if len(self._tally.problems) < PROBLEMS_KEPT:
            problem = {"line": number, "conversation": name, "reason": reason, "code": code}
            self._tally.problems.append(
                {key: value for key, value in problem.items() if value is not None}
            )
        self._report(f"line {number}{f' ({name})' if name else ''}: {reason}")


async def _some_ended(running: set[asyncio.Task[None]]) -> set[asyncio.Task[None]]:
    """Waits until at least one has ended; returns the others, or raises what one raised."""
    ended, others = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
    for task in ended:
        task.result()
    return others
