"""One command on its way, and what it comes to."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from domain.commands import Command
from domain.conversation import Receipt
from domain.errors import ConversationError, MessageTooLarge, RateLimited
from domain.events import ConversationEvent
from domain.identity import ConversationId
from domain.rules import CommandContext, Decision, PastMessage
from infra.jetstream.envelope import Message
from projections.state import ConversationView

DECIDE_AGAIN_S = 10.0
"""How long a command is decided again after conflicts before its caller is told."""


class Answer:
    """What a command came to.

    `events` with their stream sequences `seqs` (none: a harmless repeat), and the view right after
    them; for a repeated command `receipt` says which events the first one wrote.
    """

    __slots__ = ("events", "receipt", "seqs", "view")

    def __init__(
        self,
        view: ConversationView,
        events: Sequence[ConversationEvent] = (),
        seqs: Sequence[int] = (),
        receipt: Receipt | None = None,
    ) -> None:
        self.view = view
        self.events = events
        self.seqs = seqs
        self.receipt = receipt


Respond = Callable[[Answer | Exception], None]


class Attempt:
    """One command on its way, until it is answered (exactly once)."""

    __slots__ = (
        "command",
        "context",
        "decision",
        "give_up_at",
        "id",
        "messages",
        "past",
        "refusal",
        "respond",
        "strangers",
        "tries",
        "version",
    )

    def __init__(
        self, id: ConversationId, command: Command, context: CommandContext, respond: Respond
    ) -> None:
        self.id = id
        self.command = command
        self.context = context
        self.respond = respond
        self.decision: Decision | None = None
        self.messages: Sequence[Message] = ()  # that are to be stored
        self.refusal: ConversationError | None = None
        self.past: PastMessage | None = None  # of the message it names, once it was looked up
        self.give_up_at = time.monotonic() + DECIDE_AGAIN_S
        self.tries = 0
        self.version = 0  # that it was decided on, with so many events of strangers
        self.strangers = 0

    @property
    def writes(self) -> bool:
        """Whether its decision has events to store."""
        return self.decision is not None and bool(self.decision.events)

    @property
    def may_be_out_of_date(self) -> bool:
        """Whether its answer would be another one had somebody else written meanwhile."""
        if self.decision is not None:
            return self.decision.duplicate is None
        return not isinstance(self.refusal, MessageTooLarge | RateLimited)
