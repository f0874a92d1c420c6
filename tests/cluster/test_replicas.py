"""What three replicas add: nothing acknowledged is lost with a server, and no read is stale."""

from __future__ import annotations

import threading
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import IntegrityError, Tracking

from infra.jetstream import (
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
    JetStreamTrackingRecorder,
)
from tests.cluster.conftest import REPLICAS, RunningCluster
from tests.infra.jetstream.library import OpenDatastore, event, versions
from tests.infra.jetstream.nats_process import api

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]


def test_streams_have_as_many_replicas_as_asked_for(
    open_datastore: OpenDatastore, running_cluster: RunningCluster, prefix: str
) -> None:
    datastore = open_datastore()
    JetStreamProcessRecorder(datastore)
    JetStreamTrackingRecorder(datastore)
    JetStreamSnapshotRecorder(datastore)
    for stream in ("EVENTS", "TRACKING", "SNAPSHOTS"):
        info = api(running_cluster.cluster.servers[0].url, f"STREAM.INFO.{prefix}-{stream}-0", {})
        assert info["config"]["num_replicas"] == REPLICAS


def test_every_read_includes_every_write_before_it(open_datastore: OpenDatastore) -> None:
    # A Direct Get may be answered by a follower that lags: 22 % of those right after an
    # acknowledgement were stale. None of the recorders' reads may be.
    writer, reader = open_datastore(), open_datastore()
    application, snapshots = JetStreamApplicationRecorder(writer), JetStreamSnapshotRecorder(writer)
    tracking = JetStreamTrackingRecorder(writer)
    id = uuid4()
    for version in range(1, 151):
        [seq] = application.insert_events([event(id, version)]) or []
        snapshots.insert_events([event(id, version)])
        tracking.insert_tracking(Tracking("upstream", version))
        for datastore in (reader, writer):
            events = JetStreamApplicationRecorder(datastore)
            assert events.max_notification_id() == seq
            assert [n.id for n in events.select_notifications(seq, 5)] == [seq]
            assert [n.id for n in events.select_notifications(seq, 5, stop=seq)] == [seq]
            assert len(events.select_events(id)) == version
            assert len(events.select_events(id, gt=version - 1)) == 1
            [last] = events.select_events(id, desc=True, limit=1)
            assert last.originator_version == version
            [snapshot] = JetStreamSnapshotRecorder(datastore).select_events(id, desc=True, limit=1)
            assert snapshot.originator_version == version
            assert JetStreamTrackingRecorder(datastore).max_tracking_id("upstream") == version


def test_nothing_is_lost_doubled_or_reordered_when_leaders_are_killed(
    open_datastore: OpenDatastore, running_cluster: RunningCluster, prefix: str
) -> None:
    # given writers that read, decide and append, a processor with positions, and a follower
    recorders = [JetStreamProcessRecorder(open_datastore()) for _ in range(2)]
    ids = [uuid4() for _ in range(4)]
    stop = threading.Event()
    acknowledged: dict[UUID, list[int]] = {id: [] for id in ids}
    positions: list[int] = []
    failures: list[BaseException] = []

    def write(id: UUID, recorder: JetStreamProcessRecorder) -> None:
        version = 1
        while not stop.is_set():
            try:
                recorder.insert_events([event(id, version)])
                acknowledged[id].append(version)
            except IntegrityError as error:  # nobody else writes this one
                failures.append(error)
            version += 1

    def process(recorder: JetStreamProcessRecorder) -> None:
        position = 1
        while not stop.is_set():
            made = [event(uuid4(), 1)]
            recorder.insert_events(made, tracking=Tracking("upstream", position))
            positions.append(position)
            position += 1

    threads = [
        threading.Thread(target=write, args=(id, recorders[n % 2])) for n, id in enumerate(ids)
    ]
    threads.append(threading.Thread(target=process, args=(recorders[0],)))
    seen: list[int] = []
    with recorders[1].subscribe() as subscription:
        follower = threading.Thread(target=lambda: seen.extend(n.id for n in subscription))
        for thread in [*threads, follower]:
            thread.start()
        # when the leader is killed, twice, under load
        for _ in range(2):
            before = sum(map(len, acknowledged.values()))
            running_cluster.kill_leader(f"{prefix}-EVENTS-0")
            while sum(map(len, acknowledged.values())) < before + 500:
                assert any(thread.is_alive() for thread in threads)
                stop.wait(0.01)
        stop.set()
        for thread in threads:
            thread.join()
        # then whatever was acknowledged is there, once and in order, and was followed
        stored = recorders[0].select_notifications(None, 1_000_000)
        while len(seen) < len(stored):
            assert follower.is_alive()
            threading.Event().wait(0.01)
    follower.join()
    assert failures == []
    for id in ids:
        assert versions(recorders[1], id) == acknowledged[id]
    assert recorders[1].max_tracking_id("upstream") == positions[-1]
    assert seen == [n.id for n in stored]
    assert len(stored) == sum(map(len, acknowledged.values())) + len(positions)
