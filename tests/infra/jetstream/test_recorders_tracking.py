"""Positions and what they stand for are recorded together, once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import NAMESPACE_URL, UUID, uuid4, uuid5

import pytest
from eventsourcing.persistence import DataError, IntegrityError, Tracking

from infra.jetstream import (
    JetStreamApplicationRecorder,
    JetStreamDatastore,
    JetStreamProcessRecorder,
    JetStreamTrackingRecorder,
)
from tests.infra.jetstream.library import OpenDatastore, event, versions
from tests.infra.jetstream.nats_process import api


def test_events_and_their_position_are_recorded_together_or_not_at_all(
    open_datastore: OpenDatastore,
) -> None:
    recorder = JetStreamProcessRecorder(open_datastore())
    id, other = uuid4(), uuid4()
    recorder.insert_events([event(id, 1)], tracking=Tracking("upstream", 10))
    # a version that is taken leaves the position where it was
    with pytest.raises(IntegrityError):
        recorder.insert_events([event(id, 1)], tracking=Tracking("upstream", 11))
    assert recorder.max_tracking_id("upstream") == 10
    # a position that is taken leaves the events out
    for position in (9, 10):
        with pytest.raises(IntegrityError):
            recorder.insert_events([event(other, 1)], tracking=Tracking("upstream", position))
    assert versions(recorder, other) == []


def test_two_competing_processors_record_each_notification_exactly_once(
    open_datastore: OpenDatastore,
) -> None:
    # given two processors of the same application, in two processes, whose policy makes the same
    # events of the same notification, to the last bit
    processors = [JetStreamProcessRecorder(open_datastore()) for _ in range(2)]
    upstream = range(1, 121)
    start = threading.Barrier(2)

    def process(processor: JetStreamProcessRecorder) -> int:
        recorded = 0
        start.wait()
        for position in upstream:
            made = [event(uuid5(NAMESPACE_URL, str(position)), n) for n in (1, 2)]
            try:
                processor.insert_events(made, tracking=Tracking("upstream", position))
                recorded += 1
            except IntegrityError:
                pass
        return recorded

    # when both process everything
    with ThreadPoolExecutor(2) as threads:
        recorded = list(threads.map(process, processors))
    # then each notification was recorded by one of them
    assert sum(recorded) == len(upstream)
    found = processors[0].select_notifications(None, 1_000)
    assert len(found) == 2 * len(upstream)
    assert len({(n.originator_id, n.originator_version) for n in found}) == len(found)
    assert processors[1].max_tracking_id("upstream") == upstream[-1]


def test_positions_take_ids_but_are_no_notifications(open_datastore: OpenDatastore) -> None:
    # The documented difference: behind a process recorder ids ascend, with gaps where a position
    # was recorded. An application recorder's ids have none.
    recorder = JetStreamProcessRecorder(open_datastore())
    id = uuid4()
    assert recorder.insert_events([event(id, 1)]) == [1]
    assert recorder.insert_events([event(id, 2)], tracking=Tracking("upstream", 1)) == [2]
    assert recorder.insert_events([], tracking=Tracking("upstream", 2)) == []
    assert recorder.insert_events([event(id, 3)], tracking=Tracking("upstream", 3)) == [5]
    recorder.insert_tracking(Tracking("upstream", 4))
    assert [n.id for n in recorder.select_notifications(None, 10)] == [1, 2, 5]
    assert [n.id for n in recorder.select_notifications(3, 10)] == [5]
    assert recorder.max_notification_id() == 5
    with recorder.subscribe(gt=2) as subscription:
        assert next(subscription).id == 5
    plain = JetStreamApplicationRecorder(open_datastore())
    assert plain.max_notification_id() == 5


def test_a_position_costs_one_request_to_read(open_datastore: OpenDatastore) -> None:
    datastore = open_datastore()
    recorder = JetStreamTrackingRecorder(datastore)
    for position in range(1, 20):
        recorder.insert_tracking(Tracking("upstream", position))
    assert datastore._opened is not None
    client = datastore._opened.connections.reading
    before = client.stats["out_msgs"]
    assert recorder.max_tracking_id("upstream") == 19
    assert client.stats["out_msgs"] - before == 1


@pytest.mark.parametrize("name", ["a.b", "*", "ünïcode app", "a%2Eb"])
def test_applications_of_any_name_have_positions_of_their_own(
    open_datastore: OpenDatastore, name: str
) -> None:
    for recorder_class in (JetStreamTrackingRecorder, JetStreamProcessRecorder):
        recorder = recorder_class(open_datastore())
        recorder.insert_tracking(Tracking("other", 100))
        recorder.insert_tracking(Tracking(name, 7))
        assert recorder.max_tracking_id(name) == 7
        with pytest.raises(DataError):
            recorder.max_tracking_id("")


def test_a_tracking_recorders_stream_does_not_grow(
    open_datastore: OpenDatastore, nats_url: str, prefix: str
) -> None:
    recorder = JetStreamTrackingRecorder(open_datastore())
    for position in range(1, 51):
        recorder.update(Tracking("upstream", position), {"last": lambda _: b"x"})
    state = api(nats_url, f"STREAM.INFO.{prefix}-TRACKING-0", {})["state"]
    assert state["last_seq"] == 100
    assert state["messages"] == 2


def add(number: int) -> bytes:
    return b"%d" % number


def test_a_view_counts_each_event_once_whoever_processes_it(open_datastore: OpenDatastore) -> None:
    # given two processors each of two upstream applications, all of them counting in one record
    views = [JetStreamTrackingRecorder(open_datastore()) for _ in range(4)]
    positions = range(1, 26)

    def process(n: int) -> int:
        counted = 0
        for position in positions:
            tracking = Tracking(f"upstream-{n % 2}", position)
            try:
                views[n].update(
                    tracking,
                    {
                        "all": lambda count: add(int(count or b"0") + 1),
                        f"of-{n % 2}": lambda count: add(int(count or b"0") + 1),
                    },
                )
                counted += 1
            except IntegrityError:
                pass
        return counted

    # when all of them process everything at once
    with ThreadPoolExecutor(4) as threads:
        counted = sum(threads.map(process, range(4)))
    # then every event is counted once
    assert counted == 2 * len(positions)
    assert [views[0].record(key) for key in ("all", "of-0", "of-1", "of-2")] == [
        b"50",
        b"25",
        b"25",
        None,
    ]


def test_a_change_that_fails_changes_nothing(open_datastore: OpenDatastore) -> None:
    view = JetStreamTrackingRecorder(open_datastore())
    view.update(Tracking("upstream", 1), {"record": lambda _: b"first"})

    def bug(_: bytes | None) -> bytes:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        view.update(Tracking("upstream", 2), {"record": bug})
    with pytest.raises(DataError):
        view.update(Tracking("upstream", 2), {"record": lambda _: b"x" * 1_000_000})
    with pytest.raises(IntegrityError):
        view.update(Tracking("upstream", 1), {"record": lambda _: b"second"})
    assert view.record("record") == b"first"
    assert view.max_tracking_id("upstream") == 1


def test_positions_survive_the_process(open_datastore: OpenDatastore) -> None:
    first: JetStreamDatastore = open_datastore()
    id: UUID = uuid4()
    JetStreamProcessRecorder(first).insert_events([event(id, 1)], tracking=Tracking("up", 3))
    JetStreamTrackingRecorder(first).insert_tracking(Tracking("up", 4))
    first.close()
    second = open_datastore()
    assert JetStreamProcessRecorder(second).max_tracking_id("up") == 3
    assert JetStreamTrackingRecorder(second).max_tracking_id("up") == 4
