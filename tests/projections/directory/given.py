"""A directory in a file of its own, told of conversations by hand."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from eventsourcing.persistence import Tracking

from domain.events import (
    ABSENT,
    ContextUpdated,
    ConversationClosed,
    ConversationErased,
    ConversationEvent,
    ConversationReopened,
    ConversationStarted,
    MessageAppended,
    MessageEdited,
    MessageRedacted,
    ReplyAborted,
    ReplyChunkAppended,
    ReplyCompleted,
    ReplyStarted,
    SessionReset,
    UsageRecorded,
)
from domain.identity import ConversationId
from projections.directory import listing, search
from projections.directory.listing import Cursor, Page
from projections.directory.view import Arrived, DirectoryDatastore, DirectoryView

STREAMS = {0: "CONVO-EVENTS-0", 1: "CONVO-EVENTS-1"}
BEGIN = datetime(2026, 11, 21, 9, tzinfo=UTC)


class Told:
    """A directory and what it has been told; each event a second after the one before."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.view = DirectoryView(DirectoryDatastore(path))
        self.seqs = dict.fromkeys(STREAMS, 0)
        self.now = BEGIN
        self.written: list[tuple[int, list[Arrived]]] = []
        self._versions: dict[ConversationId, int] = {}
        self._waiting: dict[int, list[Arrived]] = {}

    def close(self) -> None:
        self.view.datastore.close()

    def tell(
        self,
        conversation_id: str,
        event_class: type[ConversationEvent],
        *,
        tenant: str = "acme",
        partition: int = 0,
        **fields: Any,
    ) -> None:
        """One event, which waits for `flush`."""
        id = ConversationId.parse(tenant, conversation_id)
        self.now += timedelta(seconds=1)
        version = self._versions[id] = self._versions.get(id, 0) + 1
        self.seqs[partition] += 1
        event = event_class(
            originator_id=id.key,
            originator_version=version,
            timestamp=self.now,
            actor=None,
            command_id=f"{id.key}-{version}",
            verb="test",
            **fields,
        )
        arrived = Arrived(id, event, self.seqs[partition])
        self._waiting.setdefault(partition, []).append(arrived)

    def flush(self) -> None:
        for partition, events in self._waiting.items():
            self.write(partition, events)
        self._waiting = {}

    def write(self, partition: int, events: list[Arrived]) -> None:
        self.written.append((partition, events))
        tracking = Tracking(STREAMS[partition], events[-1].seq)
        self.view.write(partition, events, tracking, digest=f"hash {events[-1].seq}")

    # -- what happens --------------------------------------------------------------------------

    def start(self, id: str, user_id: str = "ada", **more: Any) -> None:
        place = {name: more.pop(name) for name in ("tenant", "partition") if name in more}
        self.tell(
            id, ConversationStarted, user_id=user_id, context={}, metadata={}, **more, **place
        )

    def say(
        self, id: str, content: Any, message_id: str = "m-1", role: str = "user", **more: Any
    ) -> None:
        self.tell(
            id,
            MessageAppended,
            message_id=message_id,
            role=role,
            content=content,
            metadata={},
            **more,
        )

    def use(self, id: str, prompt_tokens: int, completion_tokens: int) -> None:
        self.tell(
            id,
            UsageRecorded,
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            metadata={},
        )

    def reset(self, id: str) -> None:
        self.tell(id, SessionReset)

    def update(self, id: str, **facts: Any) -> None:
        absent = dict.fromkeys(("title", "model", "user_id"), ABSENT)
        self.tell(id, ContextUpdated, context={}, metadata={}, **{**absent, **facts})

    def close_for(self, id: str, reason: str) -> None:
        self.tell(id, ConversationClosed, reason=reason)

    def reopen(self, id: str) -> None:
        self.tell(id, ConversationReopened)

    def erase(self, id: str) -> None:
        self.tell(id, ConversationErased)

    def edit(self, id: str, message_id: str, content: Any) -> None:
        self.tell(id, MessageEdited, message_id=message_id, content=content)

    def redact(self, id: str, message_id: str) -> None:
        self.tell(id, MessageRedacted, message_id=message_id)

    def begin_reply(self, id: str, message_id: str) -> None:
        self.tell(id, ReplyStarted, message_id=message_id, role="assistant", metadata={})

    def chunk(self, id: str, message_id: str, text: str, index: int = 0) -> None:
        self.tell(
            id,
            ReplyChunkAppended,
            message_id=message_id,
            text=text,
            first_index=index,
            last_index=index,
        )

    def finish_reply(self, id: str, message_id: str) -> None:
        self.tell(id, ReplyCompleted, message_id=message_id, chars=0, sha256="")

    def abort_reply(self, id: str, message_id: str) -> None:
        self.tell(id, ReplyAborted, message_id=message_id, reason="stopped")

    # -- what is answered ----------------------------------------------------------------------

    def page(
        self, limit: int = 50, cursor: Cursor | None = None, tenant: str = "acme", **wanted: Any
    ) -> Page:
        self.flush()
        return listing.page(
            self.view,
            tenant,
            listing.Wanted(**wanted),
            limit,
            streams=STREAMS,
            cursor=cursor and Cursor.parse(cursor.text()),
        )

    def ids(self, **wanted: Any) -> list[str]:
        return [each["conversation_id"] for each in self.page(**wanted).conversations]

    def hits(self, query: str, tenant: str = "acme", limit: int = 50, **wanted: Any) -> list[Any]:
        self.flush()
        return search.search(self.view, tenant, query, search.Wanted(**wanted), limit)

    def found(self, query: str, **wanted: Any) -> set[str]:
        """conversation/message of every hit."""
        return {
            f"{hit['conversation_id']}/{hit['message_id']}" for hit in self.hits(query, **wanted)
        }
