"""The command service: `convo.cmd.<tenant>.<conversation>.<verb>`, one reply for each request.

An append walks: parse → decide (on the conversation in memory) → append and fsync → fold → reply.
Nothing in it waits but the append, so one process decides thousands of commands while one batch is
on its way to the disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import Service

from domain.commands import COMMANDS, Command, parse_command
from domain.conversation import Receipt
from domain.errors import ConversationError, InvalidRequest
from domain.events import ConversationEvent, UsageRecorded
from domain.identity import ConversationId
from domain.rules import CommandContext
from infra.jetstream.envelope import Recorded
from infra.jetstream.errors import LedgerDamaged, StoreReadOnly
from projections.messages import Beginning
from projections.state import ConversationView
from projections.totals import Totals
from services.conversations import Conversations
from services.endpoint import (
    ACTOR,
    COMMAND_ID,
    EXPECTED_VERSION,
    Outbox,
    conversation_of,
    header_name,
    header_number,
    header_user,
    readable_headers,
    start_service,
)
from services.health import Health
from services.homes import Homes
from services.in_use.attempt import Answer
from services.paging import cut_state
from services.record import event_of
from services.tasks import Tasks

PREFIX = "convo.cmd."


class CommandService:
    """Answers command messages out of one `Conversations`."""

    def __init__(
        self, conversations: Conversations, outbox: Outbox, health: Health | None = None
    ) -> None:
        self._conversations = conversations
        self._outbox = outbox
        self._health = health
        self._homes: Homes | None = None
        self._tasks = Tasks()

    async def start(self, nc: Client) -> Service:
        """Listens on `nc`, in the queue group that all command services share."""
        self._homes = Homes(nc, PREFIX, self._take)
        await self._homes.start()
        return await start_service(
            nc,
            name="convo-commands",
            description=f"Writes to conversations: {', '.join(COMMANDS)}",
            endpoints={"commands": (f"{PREFIX}>", self.handle)},
            says=None if self._health is None else self._health.says,
        )

    async def leave(self) -> None:
        """Has the other services pass nothing on any more; call it before the connection is
        drained."""
        if self._homes is not None:
            await self._homes.leave()

    async def handle(self, request: Request) -> None:
        """Takes one request, or passes it on to the service that has its conversation in memory."""
        homes = self._homes
        home = None if homes is None else homes.of(request.subject)
        if homes is None or home is None or not await homes.pass_on(home, request):
            await self._take(request)

    async def _take(self, request: Request) -> None:
        """Carries one out; its reply is sent when its events are on disk, or it is refused."""
        if self._health is not None and not self._health.is_clear:
            self._tasks.start(self._handle_when_clear(self._health, request))
            return
        self._handle(request)

    async def _handle_when_clear(self, health: Health, request: Request) -> None:
        """The same once the store is known to take writes, and to be the one it was."""
        try:
            await health.cleared()
        except Exception as error:  # noqa: BLE001 (no request stays unanswered)
            self._outbox.refuse(request, error)
        else:
            self._handle(request)

    def _handle(self, request: Request) -> None:
        try:
            id, verb = conversation_of(request.subject, PREFIX)
            command = parse_command(verb, request.data)
            context = _context(request, command)
        except ConversationError as refused:
            self._outbox.refuse(request, refused)
        except Exception as error:  # noqa: BLE001 (no request stays unanswered)
            self._outbox.refuse(request, error)
        else:
            self._conversations.execute(
                id, command, context, lambda answer: self._reply(request, id, command, answer)
            )

    async def idle(self) -> None:
        """Returns once the replies that need to be read from the ledger are made."""
        await self._tasks.idle()

    def _reply(
        self, request: Request, id: ConversationId, command: Command, answer: Answer | Exception
    ) -> None:
        if isinstance(answer, Exception):
            if isinstance(answer, StoreReadOnly) and self._health is not None:
                self._health.refused(answer)
            self._outbox.refuse(request, answer)
        elif answer.receipt is not None:
            self._tasks.start(self._reply_again(request, id, command, answer.receipt))
        else:
            body = self._body(id, answer.view.version, answer.view.seq)
            if self._health is not None and answer.events:
                self._health.stored()
            body["events"] = _events(answer.events, answer.seqs)
            self._add(body, command, answer.events, answer.view)
            self._outbox.reply(request, body)

    async def _reply_again(
        self, request: Request, id: ConversationId, command: Command, receipt: Receipt
    ) -> None:
        """Answers a repeated command as the first time, from what that wrote."""
        try:
            events, seqs = await self._written(id, receipt)
            body = self._body(id, receipt.last_version, seqs[-1])
            body["duplicate"] = True
            body["events"] = _events(events, seqs)
            view = None
            if command.verb == "init":
                view = await self._conversations.replay(
                    id,
                    lambda event: event.originator_version <= receipt.last_version,
                    through=seqs[-1],
                )
                view.hide(await self._conversations.view(id))
            self._add(body, command, events, view)
            if receipt.usage is not None:
                totals = Totals(receipt.usage)
                body |= {"usage": totals.since_reset(), "lifetime": totals.lifetime()}
        except Exception as error:  # noqa: BLE001 (no request stays unanswered)
            self._outbox.refuse(request, error)
        else:
            self._outbox.reply(request, body)

    async def _written(
        self, id: ConversationId, receipt: Receipt
    ) -> tuple[list[ConversationEvent], list[int]]:
        """The events of a receipt, and their stream sequences, read from the ledger."""
        store = self._conversations.store
        last = await store.last(id.key, leader=True)
        first = last and await store.locate_version(id.key, receipt.first_version, last=last)
        count = receipt.last_version - receipt.first_version + 1
        recorded: list[Recorded] = []
        seq = first.seq if first else 0
        while last and seq and len(recorded) < count:
            page, pending = await store.read_page(
                id.key, seq, count - len(recorded), through=last.seq
            )
            recorded += page
            seq = page[-1].seq + 1 if page and pending else 0
        if len(recorded) != count or recorded[0].version != receipt.first_version:
            raise LedgerDamaged(
                f"versions {receipt.first_version} to {receipt.last_version} of {id.key} are not "
                "on the stream any more"
            )
        events = [event_of(id.key, each) for each in recorded]
        return events, [each.seq for each in recorded]

    def _body(self, id: ConversationId, version: int, seq: int) -> dict[str, Any]:
        return {
            "ok": True,
            "tenant_id": id.tenant_id,
            "conversation_id": id.conversation_id,
            "version": version,
            "seq": seq,
            "partition": self._conversations.store.topology.partition(id.key),
            "duplicate": False,
        }

    def _add(
        self,
        body: dict[str, Any],
        command: Command,
        events: Sequence[ConversationEvent],
        view: ConversationView | None,
    ) -> None:
        """Adds what the verb promises beside the events: ids, totals, state."""
        match command.verb:
            case "append" | "reply.start":
                body["message_id"] = next(e.message_id for e in events if isinstance(e, Beginning))
            case "turn" | "import":
                body["message_ids"] = [e.message_id for e in events if isinstance(e, Beginning)]
            case "erase":
                body["shredded"] = False  # the stored events keep the text
        if view is None:
            return
        if command.verb == "init":
            body["state"] = cut_state(view.state(), self._outbox.reply_bytes_max)
        elif _used(events):
            body |= view.usage()


def _used(events: Sequence[ConversationEvent]) -> bool:
    return any(isinstance(event, UsageRecorded) for event in events)


def _events(events: Sequence[ConversationEvent], seqs: Sequence[int]) -> list[dict[str, Any]]:
    return [
        {"type": event.TOPIC, "version": event.originator_version, "seq": seq}
        for event, seq in zip(events, seqs, strict=True)
    ]


def _context(request: Request, command: Command) -> CommandContext:
    headers = readable_headers(request)
    if not headers:
        return CommandContext(command.command_id)
    command_id = header_name(headers, COMMAND_ID)
    if command_id and command.command_id and command_id != command.command_id:
        raise InvalidRequest(
            f"header {COMMAND_ID} and command_id in the body differ: send one of them",
            [{"field": "command_id", "problem": f"differs from {COMMAND_ID}"}],
        )
    return CommandContext(
        command_id or command.command_id,
        header_name(headers, ACTOR),
        header_number(headers, EXPECTED_VERSION),
        header_user(headers),
    )
