"""Appending by version: each once, in ascending order, by threads and coroutines alike.

Most appends need nothing but a commit: the end of the subject is known, and nobody else is at it.
Those are handed to the store in the turn of the loop in which they arrive, without a task of their
own. The others wait for their turn, or ask the leader where the subject ends.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

from eventsourcing.persistence import DataError, IntegrityError

from infra.jetstream.bridge import Reply
from infra.jetstream.committer import Write
from infra.jetstream.ends import End, Ends
from infra.jetstream.envelope import Recorded, Tail, pack
from infra.jetstream.errors import Conflict
from infra.jetstream.store import Store

TOPIC_BYTES_MAX = 200
"""It travels as a header, and headers have room of their own beside the body."""

CONFLICTS_MAX = 20


class Addition(NamedTuple):
    """An event to be recorded on a subject."""

    subject: str
    topic: str
    version: int
    body: bytes


class VersionTaken(IntegrityError):
    """The subject is at or behind that version already.

    `version` is what was to be recorded, `last_version` the subject's last one.
    """

    def __init__(self, subject: str, version: int, last_version: int) -> None:
        super().__init__(
            f"{subject} is at version {last_version}: version {version} cannot be recorded behind "
            "it; read it again and decide again"
        )
        self.subject = subject
        self.version = version
        self.last_version = last_version


class Appender:
    """Appends to one stream. Lives on one event loop."""

    def __init__(
        self,
        store: Store,
        ends: Ends,
        last: Callable[[str], Awaitable[Recorded | None]],
        *,
        expect_new: bool = False,
    ) -> None:
        """`last` asks the leader for a subject's last event.

        `expect_new`: subjects are taken to be empty until the store says otherwise.
        """
        self.acknowledged = 0
        """The highest stream sequence that the store has acknowledged to us."""
        self._store = store
        self._ends = ends
        self._last = last
        self._expect_new = expect_new
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()

    async def append(self, additions: Sequence[Addition]) -> range:
        """Records events, all or none, each subject's in ascending order; their sequences.

        Raises VersionTaken when a subject is at one of these versions or behind it already (the
        first subject given comes first), DataError, StoreUnavailable, OutcomeUnknown.
        """
        return await self._append(additions, _first_versions(additions))

    def record(self, additions: Sequence[Addition], reply: Reply[range]) -> None:
        """The same for a thread that waits for `reply`; to be called on the loop."""
        try:
            subjects = _first_versions(additions)
            if not self._record_now(additions, subjects, reply):
                self._record_later(additions, subjects, reply)
        except Exception as error:  # noqa: BLE001 (whatever it is, the waiting thread gets it)
            reply.fail(error)

    # -- at once -------------------------------------------------------------------------------

    def _record_now(
        self, additions: Sequence[Addition], subjects: dict[str, int], reply: Reply[range]
    ) -> bool:
        """Hands the events to the store, if nothing has to be waited or asked for."""
        ends = [self._ends.hold(subject) for subject in subjects]
        tails: dict[str, Tail] = {}
        for end, (subject, version) in zip(ends, subjects.items(), strict=True):
            tail = end.tail
            if end.busy or (
                not self._begins(version) if tail is None else tail.seq and tail.version >= version
            ):
                self._ends.let_go(ends)
                return False
            tails[subject] = tail or Tail(subject)

        def settle(write: Write) -> None:
            if write.error is None:
                self._stored(ends, tails.values(), write.seqs)
            for end in ends:
                end.release()
            self._ends.let_go(ends)
            if write.error is None:
                reply.give(write.seqs)
            elif isinstance(write.error, Conflict):
                self._record_later(additions, subjects, reply, ask=True)
            else:
                reply.fail(write.error)

        messages = [pack(tails[a.subject], a.topic, a.version, a.body) for a in additions]
        for end in ends:
            end.busy = True
            end.tail = None  # until it is known what became of it
        self._store.submit(Write(messages, settle))
        return True

    def _record_later(
        self,
        additions: Sequence[Addition],
        subjects: dict[str, int],
        reply: Reply[range],
        *,
        ask: bool = False,
    ) -> None:
        async def append() -> None:
            try:
                reply.give(await self._append(additions, subjects, ask=ask))
            except Exception as error:  # noqa: BLE001 (as above)
                reply.fail(error)

        task = self._loop.create_task(append())
        reply.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # -- in turn -------------------------------------------------------------------------------

    async def _append(
        self, additions: Sequence[Addition], subjects: dict[str, int], *, ask: bool = False
    ) -> range:
        ends = {subject: self._ends.hold(subject) for subject in sorted(subjects)}
        seized: list[End] = []
        try:
            for end in ends.values():  # in one order for everybody: no two wait for each other
                await end.seize()
                seized.append(end)
            for attempt in range(CONFLICTS_MAX):
                try:
                    return await self._try(additions, subjects, ends, ask=ask or attempt > 0)
                except Conflict:  # the leader tells whether one of the versions is really there
                    if attempt + 1 == CONFLICTS_MAX:
                        raise
            raise AssertionError("unreachable")
        finally:
            for end in seized:
                end.release()
            self._ends.let_go(ends.values())

    async def _try(
        self,
        additions: Sequence[Addition],
        subjects: dict[str, int],
        ends: dict[str, End],
        *,
        ask: bool,
    ) -> range:
        unknown = [
            subject
            for subject, version in subjects.items()
            if ends[subject].tail is None and (ask or not self._begins(version))
        ]
        await asyncio.gather(*(self._load(subject, ends[subject]) for subject in unknown))
        tails: dict[str, Tail] = {}
        for subject, version in subjects.items():
            tail = ends[subject].tail or Tail(subject)  # a beginning, as far as anyone knows
            if tail.seq and tail.version >= version:
                raise VersionTaken(subject, version, tail.version)
            tails[subject] = tail
        for end in ends.values():
            end.tail = None  # until it is known what became of it
        seqs = await self._store.append(
            [pack(tails[a.subject], a.topic, a.version, a.body) for a in additions]
        )
        self._stored([ends[subject] for subject in tails], tails.values(), seqs)
        return seqs

    async def _load(self, subject: str, end: End) -> None:
        last = await self._last(subject)
        if last is None:
            end.tail = Tail(subject)
            return
        digest = bytes.fromhex(last.digest)
        end.tail = Tail(subject, last.seq, last.version, digest, digest)
        end.saw(last.version, last.seq)

    def _stored(self, ends: Iterable[End], tails: Iterable[Tail], seqs: range) -> None:
        for end, tail in zip(ends, tails, strict=True):
            end.tail = tail
            end.saw(tail.version, tail.seq)
        self.acknowledged = max(self.acknowledged, seqs[-1])

    def _begins(self, version: int) -> bool:
        """Whether an event of this version is probably its subject's first."""
        return self._expect_new or version <= 1


def _first_versions(additions: Sequence[Addition]) -> dict[str, int]:
    """The first version to be recorded of each subject. Raises VersionTaken, DataError."""
    first: dict[str, int] = {}
    last: dict[str, int] = {}
    for subject, topic, version, _ in additions:
        before = last.get(subject)
        if before is None:
            first[subject] = version
        elif before >= version:
            raise VersionTaken(subject, version, before)
        last[subject] = version
        _check_topic(topic)
    return first


@lru_cache(maxsize=4_096)
def _check_topic(topic: str) -> None:
    if not topic or topic != topic.strip() or any(c in topic for c in "\r\n\0"):
        raise DataError(f"topic {topic!r} cannot travel as a header: blanks around it, or a break")
    if len(topic.encode("utf-8", "replace")) > TOPIC_BYTES_MAX:
        raise DataError(f"topic {topic[:40]!r} is longer than {TOPIC_BYTES_MAX} bytes")
