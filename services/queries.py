"""The query service: `convo.get.<tenant>.<conversation>.<view>`, answered from folds of the ledger.

`messages`, `usage` and `state` come from the conversation in memory, checked against the ledger;
`state` at an earlier version or time, `history` and `events` are read from the stream itself.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Annotated, Any

from nats.aio.client import Client
from nats.micro.request import Request
from nats.micro.service import Service
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import from_json, to_json

from domain.commands import parse_as
from domain.errors import ConversationNotInitialized, InvalidRequest
from domain.identity import ConversationId
from infra.jetstream.envelope import Recorded
from infra.jetstream.fence import Fence
from projections.state import ConversationView
from services.conversations import Conversations
from services.endpoint import (
    CONSISTENCY,
    MIN_SEQ,
    Answering,
    Outbox,
    conversation_of,
    header_choice,
    header_number,
    header_user,
    readable_headers,
    start_service,
)
from services.history import HistoryReader
from services.paging import cut_state, newest_that_fit, oldest_that_fit

PREFIX = "convo.get."
PAGE_MAX = 1_000
_JSON_PER_BYTE = 6  # the most that a character can grow in JSON; a small window is not measured

Version = Annotated[int, Field(ge=0, le=2**53)]
Limit = Annotated[int, Field(ge=1, le=PAGE_MAX)]


class Query(BaseModel):
    """A request body: exactly the fields below, of exactly these types."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class MessagesQuery(Query):
    """`limit`: 1 … window size; all of the window when absent."""

    limit: Annotated[int, Field(ge=1)] | None = None


class UsageQuery(Query):
    """Nothing to say."""


def _moment(value: Any) -> Any:
    """Only text is a time here; pydantic would take a number for one."""
    if not isinstance(value, str) or "T" not in value.upper():
        raise ValueError("must be an RFC 3339 time with a zone, such as 2026-11-21T09:00:00Z")
    return value


class StateQuery(Query):
    """At most one of `at_version` (1 …) and `at` (RFC 3339); now when neither is given."""

    at_version: Annotated[int, Field(ge=1, le=2**53)] | None = None
    at: Annotated[AwareDatetime, BeforeValidator(_moment), Field(strict=False)] | None = None


class HistoryQuery(Query):
    """At most one of `after_version` and `before_version`; from the oldest on without them."""

    after_version: Version | None = None
    before_version: Version | None = None
    limit: Limit = 100
    include_reset: bool = False


class EventsQuery(Query):
    """Events behind `after_version`, oldest first."""

    after_version: Version = 0
    limit: Limit = 100


class Asked:
    """One query that was understood: which conversation, how fresh, for whom, and the body."""

    __slots__ = ("body", "id", "min_seq", "strong", "user_id")

    def __init__(
        self,
        id: ConversationId,
        body: Any,
        min_seq: int | None,
        strong: bool,
        user_id: str | None = None,
    ) -> None:
        self.id = id
        self.body = body
        self.min_seq = min_seq
        self.strong = strong
        self.user_id = user_id


_SHOWN_FROM_MEMORY = frozenset({"messages", "usage"})

Show = Callable[[Asked], Awaitable[dict[str, Any] | bytes]]
"""Makes the body of an answer, as an object or as its JSON."""


class QueryService(Answering):
    """Answers queries out of one `Conversations`."""

    def __init__(
        self, conversations: Conversations, outbox: Outbox, fence: Fence | None = None
    ) -> None:
        self._conversations = conversations
        self._fence = fence
        self._store = conversations.store
        super().__init__(outbox, self._answer)
        self._views: dict[str, tuple[type[Query], Show]] = {
            "messages": (MessagesQuery, self._messages),
            "usage": (UsageQuery, self._usage),
            "state": (StateQuery, self._state),
            "history": (HistoryQuery, self._history),
            "events": (EventsQuery, self._events),
        }

    async def start(self, nc: Client) -> Service:
        """Listens on `nc`, in the queue group that all query services share."""
        return await start_service(
            nc,
            name="convo-queries",
            description="Reads conversations: messages, usage, state, history, events",
            endpoints={"queries": (f"{PREFIX}>", self.handle)},
        )

    async def handle(self, request: Request) -> None:
        """Takes one request; what is known here is answered at once, the rest in a task."""
        if self._has_nothing_to_wait_for(request):
            await self._respond(request)
        else:
            await super().handle(request)

    def _has_nothing_to_wait_for(self, request: Request) -> bool:
        originator, _, view = request.subject[len(PREFIX) :].rpartition(".")
        return (
            view in _SHOWN_FROM_MEMORY
            and not request.headers
            and (self._fence is None or self._fence.is_passed)
            and self._conversations.knows(originator)
        )

    async def _answer(self, request: Request) -> dict[str, Any] | bytes:
        if self._fence is not None and not self._fence.is_passed:
            await self._fence.passed()
        asked, show = self._understand(request)
        return await show(asked)

    def _understand(self, request: Request) -> tuple[Asked, Show]:
        id, view = conversation_of(request.subject, PREFIX)
        if view not in self._views:
            raise InvalidRequest(
                f"there is no view {view[:40]!r}: ask for one of {', '.join(self._views)}"
            )
        model, show = self._views[view]
        headers = readable_headers(request)
        min_seq = header_number(headers, MIN_SEQ)
        strong = header_choice(headers, CONSISTENCY, ("strong", "eventual")) == "strong"
        user_id = header_user(headers)
        return Asked(id, parse_as(model, view, request.data), min_seq, strong, user_id), show

    # -- the views -----------------------------------------------------------------------------

    async def _messages(self, asked: Asked) -> dict[str, Any] | bytes:
        query: MessagesQuery = asked.body
        size = self._conversations.window_size
        if query.limit is not None and query.limit > size:
            raise InvalidRequest(
                f"limit is {query.limit}, the recent window holds {size}: ask for at most {size}, "
                "or for the history",
                [{"field": "limit", "problem": f"at most {size}"}],
            )
        view = await self._view(asked)
        fits = view.size_bytes * _JSON_PER_BYTE <= self._outbox.reply_bytes_max
        if fits and query.limit is None:
            # The usual question, by far: what does not change is not encoded for each reader.
            beside = to_json(_found(view))[:-1]
            return b'%b,"messages":%b}' % (beside, view.messages_json())
        messages = view.messages(query.limit)
        kept: Sequence[dict[str, Any]] = messages
        if not fits:
            kept = newest_that_fit(messages, self._outbox.reply_bytes_max)
        body = _found(view, messages=kept)
        if len(kept) < len(messages):
            body["truncated"] = True
        return body

    async def _usage(self, asked: Asked) -> dict[str, Any]:
        view = await self._view(asked)
        return _found(view, **view.usage())

    async def _state(self, asked: Asked) -> dict[str, Any]:
        query: StateQuery = asked.body
        if query.at_version is not None and query.at is not None:
            raise InvalidRequest("give at_version or at, not both")
        now = await self._view(asked)
        if query.at_version is None and query.at is None:
            view = now
        elif query.at_version is not None:
            view = await self._at_version(asked.id, query.at_version, now)
        else:
            view = await self._at_time(asked.id, query.at, now)
        if view is not now:
            view.hide(now)
        return _found(view, state=cut_state(view.state(), self._outbox.reply_bytes_max))

    async def _at_version(
        self, id: ConversationId, version: int, now: ConversationView
    ) -> ConversationView:
        if version > now.version:
            raise InvalidRequest(
                f"the conversation is at version {now.version}, it has no version {version} yet",
                [{"field": "at_version", "problem": f"at most {now.version}"}],
            )
        return await self._conversations.replay(
            id, lambda event: event.originator_version <= version, through=now.seq
        )

    async def _at_time(
        self, id: ConversationId, at: datetime | None, now: ConversationView
    ) -> ConversationView:
        assert at is not None
        view = await self._conversations.replay(
            id, lambda event: event.timestamp <= at, through=now.seq
        )
        if not view.exists:
            raise ConversationNotInitialized(
                f"the conversation did not exist yet at {at.isoformat()}: ask for a later time"
            )
        return view

    async def _history(self, asked: Asked) -> dict[str, Any]:
        query: HistoryQuery = asked.body
        if query.after_version is not None and query.before_version is not None:
            raise InvalidRequest("give after_version or before_version, not both")
        view = await self._view(asked)
        body = _found(view)  # now: the view goes on while the page is read, which includes this
        if not view.shows_messages:
            return body | {"messages": []}
        first_version = 1 if query.include_reset else view.reset_version + 1
        reader = HistoryReader(self._store, asked.id, view, bytes_max=self._outbox.reply_bytes_max)
        if query.before_version is not None:
            page = await reader.before(query.before_version, query.limit, first=first_version)
        else:
            after = max(query.after_version or 0, first_version - 1)
            page = await reader.after(after, query.limit)
        body["messages"] = page.messages
        if page.next is not None:
            body["next"] = page.next
        return body

    async def _events(self, asked: Asked) -> dict[str, Any]:
        query: EventsQuery = asked.body
        body = _found(await self._view(asked))
        recorded, pending = await self._read_after(asked.id, query.after_version, query.limit)
        events = [
            {**from_json(each.body), "seq": each.seq, "hash": each.digest} for each in recorded
        ]
        kept = oldest_that_fit(events, self._outbox.reply_bytes_max)
        body["events"] = kept
        if kept and (pending or len(kept) < len(events)):
            body["next"] = kept[-1]["version"]
        return body

    # -- reading -------------------------------------------------------------------------------

    async def _view(self, asked: Asked) -> ConversationView:
        view = await self._conversations.view(asked.id, min_seq=asked.min_seq, strong=asked.strong)
        if not view.exists or asked.user_id not in (None, view.user_id):
            raise ConversationNotInitialized.named(asked.id.tenant_id, asked.id.conversation_id)
        return view

    async def _read_after(
        self, id: ConversationId, after: int, limit: int
    ) -> tuple[list[Recorded], int]:
        """Events behind version `after`, and how many are behind those."""
        last = await self._store.last(id.key, leader=True)
        if last is None or after >= last.version:
            return [], 0
        first = await self._store.locate_version(id.key, after + 1, last=last)
        if first is None:
            return [], 0
        return await self._store.read_page(id.key, first.seq, limit, through=last.seq)


def _found(view: ConversationView, **parts: Any) -> dict[str, Any]:
    body = {"ok": True, "version": view.version, "seq": view.seq, **parts}
    if view.status == "erased":
        body["status"] = view.status
    return body
