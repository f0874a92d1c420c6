"""Given, when, then for a conversation.

    given(init(), append("hello")).when(usage(12, 5)).then(("UsageRecorded", {...}))

Requests go through `parse_command`, events through their stored form. Whatever a test asks, two
rules are checked every time: a refused command leaves the conversation as it was, and an accepted
one leaves it as its events make it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from pydantic_core import from_json, to_json

from domain.commands import parse_command
from domain.conversation import Conversation, Receipt, evolve
from domain.errors import ConversationError
from domain.events import ConversationEvent
from domain.identity import ConversationId
from domain.mapper import ConversationMapper
from domain.rules import CommandContext, Decision, Limits, PastMessage, decide

Error = TypeVar("Error", bound=ConversationError)

ADAS = ConversationId.parse("acme", "ada's first chat")

MAPPER = ConversationMapper()


@dataclass(frozen=True)
class Request:
    """One command as it comes in: the verb, the body, and what its headers say."""

    verb: str
    body: dict[str, Any] = field(default_factory=dict)
    command_id: str | None = None
    expected_version: int | None = None
    actor: str | None = None

    def under(self, command_id: str) -> Request:
        return replace(self, command_id=command_id)

    def expecting(self, version: int) -> Request:
        return replace(self, expected_version=version)

    def by(self, actor: str) -> Request:
        return replace(self, actor=actor)


def init(user_id: str = "ada", **body: Any) -> Request:
    return Request("init", {"user_id": user_id, **body})


def append(content: Any = "hello", role: str = "user", **body: Any) -> Request:
    return Request("append", {"role": role, "content": content, **body})


def usage(prompt_tokens: int = 12, completion_tokens: int = 5, **body: Any) -> Request:
    tokens = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    return Request("usage", {**tokens, **body})


def message(content: Any = "hello", role: str = "user", **body: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **body}


def turn(*messages: dict[str, Any], **body: Any) -> Request:
    return Request("turn", {"messages": list(messages), **body})


def import_(*messages: dict[str, Any], **body: Any) -> Request:
    return Request("import", {"messages": list(messages), **body})


def reset(**body: Any) -> Request:
    return Request("reset", body)


def update(**body: Any) -> Request:
    return Request("update", body)


def reply_start(message_id: str | None = "r-1", **body: Any) -> Request:
    return Request("reply.start", {"message_id": message_id, **body})


def reply_chunk(index: int, *texts: str, message_id: str = "r-1") -> Request:
    return Request("reply.chunk", {"message_id": message_id, "index": index, "texts": texts})


def reply_finish(message_id: str = "r-1", **body: Any) -> Request:
    return Request("reply.finish", {"message_id": message_id, **body})


def reply_abort(message_id: str = "r-1", **body: Any) -> Request:
    return Request("reply.abort", {"message_id": message_id, **body})


def edit(message_id: str, content: Any) -> Request:
    return Request("edit", {"message_id": message_id, "content": content})


def redact(message_id: str, **body: Any) -> Request:
    return Request("redact", {"message_id": message_id, **body})


def close(reason: str | None = None) -> Request:
    return Request("close", {} if reason is None else {"reason": reason})


def reopen(**body: Any) -> Request:
    return Request("reopen", body)


def erase(**body: Any) -> Request:
    return Request("erase", body)


def through_storage(events: Iterable[ConversationEvent]) -> list[ConversationEvent]:
    """Returns the events as they come back from the ledger."""
    return [MAPPER.to_domain_event(MAPPER.to_stored_event(event)) for event in events]


def folded(
    events: Iterable[ConversationEvent], conversation: Conversation | None = None
) -> Conversation | None:
    for event in events:
        conversation = evolve(conversation, event)
    return conversation


def stored(event: ConversationEvent) -> dict[str, Any]:
    """Returns the event's stored JSON."""
    found: dict[str, Any] = from_json(MAPPER.to_stored_event(event).state)
    return found


def _state_of(conversation: Conversation | None) -> dict[str, Any] | None:
    return conversation.to_state() if conversation else None


@dataclass
class Outcome:
    """What came of a request: a decision or a refusal."""

    decision: Decision | None
    error: ConversationError | None

    @property
    def events(self) -> tuple[ConversationEvent, ...]:
        if self.error is not None:
            raise self.error
        assert self.decision is not None
        return self.decision.events

    @property
    def conversation(self) -> Conversation:
        assert self.decision is not None
        assert self.decision.conversation is not None
        return self.decision.conversation

    def then(self, *expected: tuple[str, dict[str, Any]]) -> Outcome:
        """Exactly these events were written: (type, the stored `data`).

        A `message_id` of ... stands for one that was made up.
        """
        found = []
        for event, (_, data) in zip(self.events, expected, strict=False):
            written = stored(event)
            if data.get("message_id") is ...:
                assert len(written["data"]["message_id"]) == 36
                written["data"]["message_id"] = ...
            found.append((written["type"], written["data"]))
        assert found == list(expected)
        assert len(self.events) == len(expected)
        assert self.decision is not None
        assert self.decision.duplicate is None
        return self

    def then_nothing(self) -> Outcome:
        """Nothing was written, and nothing was wrong: it is so already."""
        return self.then()

    def then_repeated(self) -> Receipt:
        """Nothing was written, because the command has been carried out before."""
        assert self.events == ()
        assert self.decision is not None
        assert self.decision.duplicate is not None
        return self.decision.duplicate

    def then_refused(self, error: type[Error]) -> Error:
        """Nothing was written, for this reason."""
        assert type(self.error) is error, self.error or self.decision
        return self.error


class Scenario:
    """A conversation that has seen some requests."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.events: list[ConversationEvent] = []

    @property
    def conversation(self) -> Conversation | None:
        """The conversation as it is loaded from the ledger."""
        return folded(through_storage(self.events))

    def when(self, request: Request, past: PastMessage | None = None) -> Outcome:
        """Decides on the request; what it wrote is then part of the scenario.

        `past` is what the ledger says about an older message, once it has been asked.
        """
        conversation = self.conversation
        before = _state_of(conversation)
        command = parse_command(request.verb, to_json(request.body))
        context = CommandContext(request.command_id, request.actor, request.expected_version)
        try:
            decision = decide(conversation, ADAS, command, context, self.limits, past=past)
        except ConversationError as error:
            assert _state_of(conversation) == before, "a refusal changed the conversation"
            return Outcome(None, error)
        self.events.extend(decision.events)
        assert decision.conversation == self.conversation, "decide and evolve disagree"
        return Outcome(decision, None)


def given(*requests: Request, limits: Limits | None = None) -> Scenario:
    scenario = Scenario(limits or Limits())
    for request in requests:
        assert scenario.when(request).error is None
    return scenario
