"""What an insert promises: all or nothing, each version once, errors of the library's family."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import DataError, IntegrityError, Tracking

from infra.jetstream import (
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
)
from infra.jetstream import ends as ends_module
from tests.infra.jetstream.library import OpenDatastore, event, versions


@pytest.fixture
def recorder(open_datastore: OpenDatastore) -> JetStreamApplicationRecorder:
    return JetStreamApplicationRecorder(open_datastore())


@pytest.mark.parametrize("first", [0, 1, 7])
def test_versions_may_start_anywhere_and_jump(
    recorder: JetStreamApplicationRecorder, first: int
) -> None:
    id = uuid4()
    recorder.insert_events([event(id, first), event(id, first + 1), event(id, first + 5)])
    recorder.insert_events([event(id, first + 100)])
    assert versions(recorder, id) == [first, first + 1, first + 5, first + 100]


@pytest.mark.parametrize("version", [-1, 0, 3, 4, 5])
def test_a_version_that_is_there_or_behind_one_that_is_there_is_refused(
    recorder: JetStreamApplicationRecorder, open_datastore: OpenDatastore, version: int
) -> None:
    id = uuid4()
    recorder.insert_events([event(id, 3), event(id, 5)])
    for one in (recorder, JetStreamApplicationRecorder(open_datastore())):
        with pytest.raises(IntegrityError):
            one.insert_events([event(id, version)])
    assert versions(recorder, id) == [3, 5]


@pytest.mark.parametrize("pair", [(1, 1), (2, 1)])
def test_versions_that_do_not_ascend_in_one_insert_are_refused(
    recorder: JetStreamApplicationRecorder, pair: tuple[int, int]
) -> None:
    id = uuid4()
    with pytest.raises(IntegrityError):
        recorder.insert_events([event(id, version) for version in pair])
    assert versions(recorder, id) == []


@pytest.mark.parametrize("known", [True, False])
def test_several_originators_are_recorded_together_or_not_at_all(
    recorder: JetStreamApplicationRecorder, open_datastore: OpenDatastore, known: bool
) -> None:
    first, second, third = uuid4(), uuid4(), uuid4()
    recorder.insert_events([event(second, 1)])
    one = recorder if known else JetStreamApplicationRecorder(open_datastore())
    with pytest.raises(IntegrityError):
        one.insert_events([event(first, 1), event(second, 1), event(third, 1)])
    assert [versions(one, id) for id in (first, second, third)] == [[], [1], []]
    assert one.insert_events([event(third, 1), event(first, 1), event(second, 2)]) == [2, 3, 4]


def test_ids_of_one_insert_are_consecutive_and_in_its_order(
    recorder: JetStreamApplicationRecorder,
) -> None:
    one, other = uuid4(), uuid4()
    inserted = [event(one, 1), event(other, 1), event(one, 2), event(other, 2)]
    assert recorder.insert_events(inserted) == [1, 2, 3, 4]
    assert [
        (n.id, n.originator_id, n.originator_version)
        for n in recorder.select_notifications(None, 10)
    ] == [(n, e.originator_id, e.originator_version) for n, e in enumerate(inserted, 1)]


def test_a_thousand_events_go_in_at_once_and_one_more_does_not(
    recorder: JetStreamApplicationRecorder,
) -> None:
    id = uuid4()
    with pytest.raises(DataError, match="1000"):
        recorder.insert_events([event(id, version) for version in range(1_001)])
    assert versions(recorder, id) == []
    recorder.insert_events([event(id, version) for version in range(1_000)])
    assert versions(recorder, id) == list(range(1_000))


def test_a_tracking_record_counts_as_one_of_the_thousand(open_datastore: OpenDatastore) -> None:
    recorder = JetStreamProcessRecorder(open_datastore())
    id = uuid4()
    with pytest.raises(DataError, match="1000"):
        recorder.insert_events(
            [event(id, version) for version in range(1_000)], tracking=Tracking("upstream", 1)
        )
    assert recorder.max_tracking_id("upstream") is None
    recorder.insert_events(
        [event(id, version) for version in range(999)], tracking=Tracking("upstream", 1)
    )
    assert recorder.max_tracking_id("upstream") == 1
    assert len(versions(recorder, id)) == 999


def test_an_event_over_the_size_limit_is_a_data_error_and_harms_no_other(
    recorder: JetStreamApplicationRecorder,
) -> None:
    id = uuid4()
    for states in ([b"x" * 900_000], [b"{}", b"x" * 900_000]):
        with pytest.raises(DataError, match="900000"):
            recorder.insert_events([event(id, n, state) for n, state in enumerate(states, 1)])
    recorder.insert_events([event(id, 1, b"x" * 899_000)])
    assert [len(stored.state) for stored in recorder.select_events(id)] == [899_000]


@pytest.mark.parametrize(
    "topic", ["", " t", "t ", "a\nb", "a\r\nNats-Rollup: all", "a\0b", "é" * 101]
)
def test_a_topic_that_cannot_be_a_header_is_a_data_error(
    recorder: JetStreamApplicationRecorder, topic: str
) -> None:
    id = uuid4()
    with pytest.raises(DataError, match="topic"):
        recorder.insert_events([event(id, 1, topic=topic)])
    assert versions(recorder, id) == []


@pytest.mark.parametrize("topic", ["package.module:Class.Event", "été: 日本 = %0A", "t" * 200])
def test_any_other_topic_comes_back_as_it_was(
    recorder: JetStreamApplicationRecorder, topic: str
) -> None:
    id = uuid4()
    recorder.insert_events([event(id, 1, topic=topic)])
    assert [stored.topic for stored in recorder.select_events(id)] == [topic]
    assert [n.topic for n in recorder.select_notifications(1, 1, topics=[topic])] == [topic]


@pytest.mark.parametrize("id", ["", "\ud800", "x" * 1_025, "." * 400])
def test_an_id_that_cannot_be_a_subject_is_a_data_error(
    open_datastore: OpenDatastore, id: str
) -> None:
    datastore = open_datastore()
    datastore.originator_id_type = "text"
    recorder = JetStreamApplicationRecorder(datastore)
    with pytest.raises(DataError):
        recorder.insert_events([event(id, 1)])
    with pytest.raises(DataError):
        recorder.select_events(id)


def test_text_ids_reach_no_other_originator(open_datastore: OpenDatastore) -> None:
    datastore = open_datastore()
    datastore.originator_id_type = "text"
    recorder = JetStreamApplicationRecorder(datastore)
    ids = ["a", "a.b", "a%2Eb", "*", ">", "a b", "A", "é", "e\u0301", "\0", "x" * 1_024]
    for n, id in enumerate(ids):
        recorder.insert_events([event(id, n + 1, b"%d" % n)])
    for n, id in enumerate(ids):
        assert recorder.select_events(id) == [event(id, n + 1, b"%d" % n)]
    assert [n.originator_id for n in recorder.select_notifications(None, 100)] == ids


def test_a_text_that_is_a_uuid_is_one_and_another_text_is_a_data_error(
    recorder: JetStreamApplicationRecorder,
) -> None:
    id = uuid4()
    recorder.insert_events([event(id.hex, 1)])
    assert [stored.originator_id for stored in recorder.select_events(str(id))] == [id]
    with pytest.raises(DataError, match="ORIGINATOR_ID_TYPE=text"):
        recorder.insert_events([event("dog-1", 1)])


@pytest.mark.parametrize(
    "recorder_class", [JetStreamApplicationRecorder, JetStreamSnapshotRecorder]
)
@pytest.mark.parametrize("processes", [1, 2])
def test_of_equal_events_inserted_at_once_exactly_one_is_recorded(
    open_datastore: OpenDatastore,
    recorder_class: type[JetStreamApplicationRecorder | JetStreamSnapshotRecorder],
    processes: int,
) -> None:
    # given writers in one process or in two, and events alike to the last bit
    recorders = [recorder_class(open_datastore()) for _ in range(processes)]
    writers = 6
    rounds = [uuid4() for _ in range(15)]
    start = threading.Barrier(writers)

    def insert(n: int) -> int:
        won = 0
        for id in rounds:
            start.wait()
            try:
                recorders[n % processes].insert_events([event(id, 1), event(id, 2)])
                won += 1
            except IntegrityError:
                pass
        return won

    # when all of them insert at the same time
    with ThreadPoolExecutor(writers) as threads:
        won = sum(threads.map(insert, range(writers)))
    # then one is told that it did, and the others that they did not
    assert won == len(rounds)
    for id in rounds:
        assert len(recorders[0].select_events(id)) == 2


def test_writers_of_one_originator_lose_nothing_and_leave_no_gap(
    open_datastore: OpenDatastore,
) -> None:
    # given writers in two processes that read, decide and append to one originator
    recorders = [JetStreamApplicationRecorder(open_datastore()) for _ in range(2)]
    id = uuid4()
    each, writers = 15, 4

    def append(n: int) -> None:
        recorder = recorders[n % 2]
        for turn in range(each):
            while True:
                last = recorder.select_events(id, desc=True, limit=1)
                version = last[0].originator_version + 1 if last else 1
                try:
                    recorder.insert_events([event(id, version, b"%d %d" % (n, turn))])
                    break
                except IntegrityError:
                    continue

    with ThreadPoolExecutor(writers) as threads:
        list(threads.map(append, range(writers)))
    # then every append is there once
    stored = recorders[0].select_events(id)
    assert [e.originator_version for e in stored] == list(range(1, each * writers + 1))
    assert {e.state for e in stored} == {
        b"%d %d" % (n, turn) for n in range(writers) for turn in range(each)
    }


def test_after_an_insert_that_failed_the_same_version_can_be_inserted(
    recorder: JetStreamApplicationRecorder, open_datastore: OpenDatastore
) -> None:
    id = uuid4()
    recorder.insert_events([event(id, 1)])
    with pytest.raises(DataError):
        recorder.insert_events([event(id, 2, b"x" * 1_000_000)])
    recorder.insert_events([event(id, 2)])
    JetStreamApplicationRecorder(open_datastore()).insert_events([event(id, 3)])  # behind its back
    with pytest.raises(IntegrityError):
        recorder.insert_events([event(id, 3)])
    recorder.insert_events([event(id, 4)])
    assert versions(recorder, id) == [1, 2, 3, 4]


def test_a_busy_originator_costs_one_request_and_a_new_one_too(
    recorder: JetStreamApplicationRecorder,
) -> None:
    id = uuid4()
    opened = recorder.datastore._opened
    assert opened is not None

    def requests() -> int:
        return (
            opened.connections.reading.stats["out_msgs"]
            + opened.connections.writing.stats["out_msgs"]
        )

    before = requests()
    for version in range(1, 11):
        recorder.insert_events([event(id, version)])
    assert requests() - before == 10


def test_ends_that_were_forgotten_are_asked_for(
    recorder: JetStreamApplicationRecorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ends_module, "ENDS_MAX", 3)
    ids = [uuid4() for _ in range(10)]

    def insert(id: UUID) -> None:
        for version in range(1, 4):
            recorder.insert_events([event(id, version)])
            with pytest.raises(IntegrityError):
                recorder.insert_events([event(id, version)])

    with ThreadPoolExecutor(10) as threads:
        list(threads.map(insert, ids))
    assert len(recorder._events.ends) <= 3
    assert [versions(recorder, id) for id in ids] == [[1, 2, 3]] * 10


def test_inserts_of_many_threads_share_their_commits(
    recorder: JetStreamApplicationRecorder,
) -> None:
    writers = 64
    start = threading.Barrier(writers)

    def insert(_: int) -> None:
        start.wait()
        for _ in range(5):
            recorder.insert_events([event(uuid4(), 1), event(uuid4(), 1)])

    with ThreadPoolExecutor(writers) as threads:
        list(threads.map(insert, range(writers)))
    [counters] = recorder._events.store.counters
    assert counters.batched_events == writers * 5 * 2
    assert counters.batches < writers * 5 / 2


def test_nothing_is_written_by_an_insert_of_nothing(open_datastore: OpenDatastore) -> None:
    datastore = open_datastore()
    assert JetStreamAggregateRecorder(datastore).insert_events([]) is None
    assert JetStreamApplicationRecorder(datastore).insert_events([]) == []
    assert JetStreamProcessRecorder(datastore).insert_events([]) == []
    assert JetStreamSnapshotRecorder(datastore).insert_events([]) is None
    assert JetStreamApplicationRecorder(datastore).max_notification_id() is None
