"""The `eventsourcing` library's recorders on JetStream, over the store that the ledger itself uses.

Ports: AggregateRecorder, ApplicationRecorder, TrackingRecorder, ProcessRecorder. Streams and
subjects: see `datastore`. Every call blocks its thread until the store has answered; inserts of
all threads share their commits.

- An insert is all or nothing, and on disk (fsync) on a majority of replicas when it returns.
- Versions of an originator are recorded once, in ascending order: another is an IntegrityError.
  They may jump. At most 1,000 messages at once (a tracking record is one), else DataError.
- Notification ids are stream sequences: ascending in the order of commits, without gaps unless
  tracking records lie between them. Those of one insert are consecutive.
- A tracking record commits in one batch with its events, on the condition that the upstream
  application's position has not moved since: of two competing processors one gets IntegrityError.
- What was recorded is read by every later call, of any process.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any
from uuid import UUID

from eventsourcing.persistence import (
    AggregateRecorder,
    ApplicationRecorder,
    DataError,
    Notification,
    ProcessRecorder,
    Recorder,
    StoredEvent,
    Tracking,
    TrackingRecorder,
)

from infra.jetstream.appender import Addition, VersionTaken
from infra.jetstream.by_version import ByVersion
from infra.jetstream.datastore import TRACKING, VIEW, JetStreamDatastore
from infra.jetstream.envelope import Recorded
from infra.jetstream.journal import Journal, Span
from infra.jetstream.subscription import JetStreamSubscription
from infra.jetstream.tokens import decode_token, encode_token

TRACKING_TOPIC = "Tracking"
RECORD_TOPIC = "Record"


class JetStreamRecorder(Recorder):
    """What all of them have in common: the datastore, and how ids become subjects and back."""

    def __init__(self, datastore: JetStreamDatastore) -> None:
        self.datastore = datastore
        self._as_uuid = datastore.originator_id_type == "uuid"

    def _append(self, journal: Journal, additions: list[Addition]) -> Sequence[int]:
        """Records events, all or none; their sequences."""
        if not additions:
            return []
        return list(self.datastore.call(partial(journal.record, additions)))

    def _token(self, originator_id: UUID | str) -> str:
        """The originator as a subject token. Raises DataError."""
        if isinstance(originator_id, UUID):
            return str(originator_id)
        if self._as_uuid:
            try:
                return str(UUID(originator_id))
            except ValueError as error:
                raise DataError(
                    f"originator id {originator_id[:80]!r} is no UUID; set ORIGINATOR_ID_TYPE=text"
                ) from error
        return encode_token(originator_id)

    def _originator_id(self, token: str) -> UUID | str:
        """The originator that a subject token stands for. Raises DataError."""
        try:
            return _uuid(token) if self._as_uuid else decode_token(token)
        except ValueError as error:
            raise DataError(
                f"the stream holds events of {token[:80]!r}, which is no originator id of type "
                f"{self.datastore.originator_id_type!r}; look at ORIGINATOR_ID_TYPE"
            ) from error


class JetStreamAggregateRecorder(JetStreamRecorder, AggregateRecorder):
    """Events by originator: one subject each. `select_events` reads as little as it can."""

    def __init__(self, datastore: JetStreamDatastore) -> None:
        """Creates the stream, or verifies the one that is there."""
        super().__init__(datastore)
        self._events: Journal = datastore.events()
        self._subjects = self._events.store.topology.subject("")

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Records the events, all or none; None, because these have no notifications.

        Raises IntegrityError when a version is there already or comes before one that is,
        DataError when an event or their number is over a limit, OperationalError.
        """
        self._insert(stored_events, **kwargs)
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """The originator's events with gt < version <= lte, in the order of versions."""
        subject = self._subjects + self._token(originator_id)
        span = Span(gt, lte)
        found = self.datastore.run(self._events.select(subject, span, desc=desc, limit=limit))
        id = originator_id if not found else self._originator_id(self._token(originator_id))
        return [StoredEvent(id, event.version, event.topic, event.body) for event in found]

    def _insert(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int]:
        return self._append(self._events, self._additions(stored_events))

    def _additions(self, stored_events: Sequence[StoredEvent]) -> list[Addition]:
        subjects = self._subjects
        return [
            Addition(
                subjects + self._token(e.originator_id), e.topic, e.originator_version, e.state
            )
            for e in stored_events
        ]


class JetStreamSnapshotRecorder(JetStreamRecorder, AggregateRecorder):
    """Events on subjects of their own, by originator and version; recorded in any order.

    For purposes other than "events": snapshots, which jump, and may be taken of the past.
    """

    def __init__(self, datastore: JetStreamDatastore, purpose: str = "snapshots") -> None:
        """Creates the purpose's stream, or verifies the one that is there."""
        super().__init__(datastore)
        self._by_version: ByVersion = datastore.by_version(purpose)

    def insert_events(self, stored_events: Sequence[StoredEvent], **_: Any) -> Sequence[int] | None:
        """Records the events, all or none. Raises as JetStreamAggregateRecorder does."""
        additions = [
            Addition(
                self._by_version.subject(self._token(e.originator_id), e.originator_version),
                e.topic,
                e.originator_version,
                e.state,
            )
            for e in stored_events
        ]
        self._append(self._by_version.journal, additions)
        return None

    def select_events(
        self,
        originator_id: UUID | str,
        *,
        gt: int | None = None,
        lte: int | None = None,
        desc: bool = False,
        limit: int | None = None,
    ) -> Sequence[StoredEvent]:
        """The originator's events with gt < version <= lte, in the order of versions."""
        token = self._token(originator_id)
        span = Span(gt, lte)
        found = self.datastore.run(self._by_version.select(token, span, desc=desc, limit=limit))
        id = self._originator_id(token)
        return [StoredEvent(id, event.version, event.topic, event.body) for event in found]


class JetStreamApplicationRecorder(JetStreamAggregateRecorder, ApplicationRecorder):
    """Events by originator, and all of them as one sequence of notifications."""

    def insert_events(
        self, stored_events: Sequence[StoredEvent], **kwargs: Any
    ) -> Sequence[int] | None:
        """Records the events, all or none; their notification ids, in order."""
        return self._insert(stored_events, **kwargs)

    def select_notifications(
        self,
        start: int | None,
        limit: int,
        stop: int | None = None,
        topics: Sequence[str] = (),
        *,
        inclusive_of_start: bool = True,
    ) -> Sequence[Notification]:
        """At most `limit` notifications from `start` to `stop`, which is included."""
        first = 1 if start is None else start if inclusive_of_start else start + 1
        found = self.datastore.run(self._events.notifications(first, limit, stop, tuple(topics)))
        return [self.notification(event) for event in found]

    def max_notification_id(self) -> int | None:
        """The id of the last notification, None when there is none."""
        last = self.datastore.run(self._events.last(self._events.any_event, leader=True))
        return None if last is None else last.seq

    def subscribe(self, gt: int | None = None, topics: Sequence[str] = ()) -> JetStreamSubscription:
        """Notifications with ids greater than `gt`, those to come included: pushed, not polled."""
        return JetStreamSubscription(recorder=self, journal=self._events, gt=gt, topics=topics)

    def notification(self, event: Recorded) -> Notification:
        """The event as a notification: its stream sequence is the id."""
        return Notification(
            originator_id=self._originator_id(event.subject[len(self._subjects) :]),
            originator_version=event.version,
            topic=event.topic,
            state=event.body,
            id=event.seq,
        )

    def is_event(self, subject: str) -> bool:
        """Whether a subject of the stream is an event's (a tracking record's is not)."""
        return subject.startswith(self._subjects)


class _Tracks(JetStreamRecorder, TrackingRecorder):
    """Tracking records in a journal: one subject for each upstream application, whose last
    version is the position."""

    _tracking: Journal

    def insert_tracking(self, tracking: Tracking) -> None:
        """Records a position. Raises IntegrityError unless it is beyond the one that is there."""
        addition = self._tracking_addition(tracking)
        self._append(self._tracking, [addition])

    def max_tracking_id(self, application_name: str) -> int | None:
        """The position recorded last, None when there is none: one round trip."""
        subject = self._tracking_subject(application_name)
        last = self.datastore.run(self._tracking.last(subject, leader=True))
        return None if last is None else last.version

    def _tracking_addition(self, tracking: Tracking) -> Addition:
        subject = self._tracking_subject(tracking.application_name)
        return Addition(subject, TRACKING_TOPIC, tracking.notification_id, b"")

    def _tracking_subject(self, application_name: str) -> str:
        raise NotImplementedError


class JetStreamTrackingRecorder(_Tracks):
    """Positions in upstream applications, in a stream of constant size.

    A subclass can keep a view in the same stream: records of bytes by key, which change in one
    batch with the position (`update`), so that an event is never counted twice nor left out.
    """

    def __init__(self, datastore: JetStreamDatastore) -> None:
        """Creates the stream, or verifies the one that is there."""
        super().__init__(datastore)
        self._tracking = datastore.tracking()

    def update(
        self, tracking: Tracking, changes: Mapping[str, Callable[[bytes | None], bytes]]
    ) -> None:
        """Changes records of the view and records the position, all or nothing.

        Each change gets the present bytes, None when there are none, and may be called again when
        another processor changed them meanwhile. Raises IntegrityError when the position has been
        recorded already (nothing is changed then), DataError, OperationalError.
        """
        position = self._tracking_addition(tracking)
        subjects = {self._record_subject(key): change for key, change in changes.items()}
        while True:
            present = [(subject, self._last(subject)) for subject in subjects]
            additions = [position]
            for subject, last in present:
                body = subjects[subject](None if last is None else last.body)
                version = 1 if last is None else last.version + 1
                additions.append(Addition(subject, RECORD_TOPIC, version, body))
            try:
                self._append(self._tracking, additions)
            except VersionTaken as taken:
                if taken.subject == position.subject:
                    raise
                continue
            return

    def record(self, key: str) -> bytes | None:
        """A record of the view, None when there is none."""
        last = self._last(self._record_subject(key))
        return None if last is None else last.body

    def _last(self, subject: str) -> Recorded | None:
        return self.datastore.run(self._tracking.last(subject, leader=True))

    def _record_subject(self, key: str) -> str:
        return self.datastore.subject_beside(VIEW, encode_token(key))

    def _tracking_subject(self, application_name: str) -> str:
        return self._tracking.store.topology.subject(encode_token(application_name))


class JetStreamProcessRecorder(_Tracks, JetStreamApplicationRecorder, ProcessRecorder):
    """Events and positions in one stream: what was processed is recorded exactly once."""

    def __init__(self, datastore: JetStreamDatastore) -> None:
        """Creates the stream, or verifies the one that is there."""
        super().__init__(datastore)
        self._tracking = self._events

    def _insert(self, stored_events: Sequence[StoredEvent], **kwargs: Any) -> Sequence[int]:
        tracking: Tracking | None = kwargs.get("tracking")
        additions = self._additions(stored_events)
        if tracking is not None:
            additions.append(self._tracking_addition(tracking))
        return self._append(self._events, additions)[: len(stored_events)]

    def _tracking_subject(self, application_name: str) -> str:
        return self.datastore.subject_beside(TRACKING, encode_token(application_name))


@lru_cache(maxsize=65_536)
def _uuid(token: str) -> UUID:
    return UUID(token)
