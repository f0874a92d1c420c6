"""What is read is what was recorded: against a plain list, whatever is asked for, and cheaply."""

from __future__ import annotations

import random
from collections.abc import Iterator
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import AggregateRecorder, Notification, StoredEvent, Tracking
from nats.nuid import NUID

from infra.jetstream import (
    JetStreamApplicationRecorder,
    JetStreamDatastore,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
)
from infra.jetstream import journal as journal_module
from tests.infra.jetstream.library import OpenDatastore, event
from tests.infra.jetstream.nats_process import NatsProcess

SEED = random.randrange(1 << 32)


@pytest.fixture(scope="module")
def chance() -> random.Random:
    print(f"seed {SEED}")  # noqa: T201 (shown when a test fails)
    return random.Random(SEED)


class Written:
    """A stream of random events, and the same events as a plain list."""

    def __init__(self, server: NatsProcess, chance: random.Random) -> None:
        self.prefix = NUID().next().decode()
        self.url = server.url
        self.notifications: list[Notification] = []
        datastore = self.open()
        recorder = JetStreamProcessRecorder(datastore)
        next_versions = {uuid4(): chance.choice([0, 1, 40]) for _ in range(4)}
        self.ids = list(next_versions)
        position = 0
        while len(self.notifications) < 700:
            events = []
            for _ in range(chance.choice([0, 1, 1, 2, 9])):
                id = chance.choice([*self.ids[:1] * 6, *self.ids[1:]])  # one is much longer
                state = b"%d" % chance.randrange(1 << 40)
                events.append(StoredEvent(id, next_versions[id], chance.choice("abc"), state))
                next_versions[id] += chance.choice([1, 1, 1, 1, 1, 1, 2, 30, 150])
            position += 1
            tracking = Tracking("upstream", position) if chance.random() < 0.5 else None
            ids = recorder.insert_events(events, tracking=tracking) or []
            self.notifications += [
                Notification(e.originator_id, e.originator_version, e.topic, e.state, id=n)
                for e, n in zip(events, ids, strict=True)
            ]
        datastore.close()

    def open(self) -> JetStreamDatastore:
        return JetStreamDatastore(self.url, self.prefix)

    def of(self, id: UUID) -> list[StoredEvent]:
        return [
            StoredEvent(n.originator_id, n.originator_version, n.topic, n.state)
            for n in self.notifications
            if n.originator_id == id
        ]


@pytest.fixture(scope="module")
def written(shared_server: NatsProcess, chance: random.Random) -> Written:
    return Written(shared_server, chance)


@pytest.fixture
def datastore(written: Written) -> Iterator[JetStreamDatastore]:
    datastore = written.open()
    yield datastore
    datastore.close()


@pytest.fixture(params=["as configured", "small pages", "few discarded"])
def _sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small pages":
        monkeypatch.setattr(journal_module, "PAGE_EVENTS", 7)
    if request.param == "few discarded":
        monkeypatch.setattr(journal_module, "DISCARD_MAX", 2)


def expected(
    events: list[StoredEvent], gt: int | None, lte: int | None, *, desc: bool, limit: int | None
) -> list[StoredEvent]:
    chosen = [
        e
        for e in sorted(events, key=lambda e: e.originator_version, reverse=desc)
        if (gt is None or e.originator_version > gt)
        and (lte is None or e.originator_version <= lte)
    ]
    return chosen[:limit]


def ask_anything(
    recorder: AggregateRecorder, id: UUID, events: list[StoredEvent], chance: random.Random
) -> None:
    highest = max((e.originator_version for e in events), default=0)
    bounds = [None, None, -1, 0, 1, highest - 1, highest, highest + 1]
    gt = chance.choice([*bounds, chance.randrange(highest + 2), chance.randrange(highest + 2)])
    lte = chance.choice([*bounds, chance.randrange(highest + 2), chance.randrange(highest + 2)])
    desc = chance.random() < 0.5
    limit = chance.choice([None, None, 0, 1, 1, 2, 5, 1_000])
    found = recorder.select_events(id, gt=gt, lte=lte, desc=desc, limit=limit)
    assert list(found) == expected(events, gt, lte, desc=desc, limit=limit), (
        f"gt={gt} lte={lte} desc={desc} limit={limit}"
    )


@pytest.mark.usefixtures("_sizes")
def test_any_range_of_versions_is_read_as_from_a_list(
    written: Written, datastore: JetStreamDatastore, chance: random.Random
) -> None:
    recorder = JetStreamApplicationRecorder(datastore)
    for n in range(250):
        if n % 10 == 0:
            recorder._events.ends.forget()  # as in a new process
        id = chance.choice([*written.ids, uuid4()])
        ask_anything(recorder, id, written.of(id), chance)


@pytest.mark.usefixtures("_sizes")
def test_any_range_of_notifications_is_read_as_from_a_list(
    written: Written, datastore: JetStreamDatastore, chance: random.Random
) -> None:
    recorder = JetStreamApplicationRecorder(datastore)
    last = written.notifications[-1].id
    for _ in range(120):
        start = chance.choice([None, -1, 0, 1, last, last + 1, chance.randrange(last)])
        stop = chance.choice([None, None, 0, 1, last, last + 1, chance.randrange(last)])
        limit = chance.choice([0, 1, 2, 10, 500, 5_000])
        topics = chance.choice([(), (), ["a"], ["b", "c"], ["nothing"]])
        inclusive = chance.random() < 0.5
        found = recorder.select_notifications(
            start, limit, stop, topics, inclusive_of_start=inclusive
        )
        first = -1 if start is None else start if inclusive else start + 1
        assert (
            list(found)
            == [
                n
                for n in written.notifications
                if n.id >= first
                and (stop is None or n.id <= stop)
                and (not topics or n.topic in topics)
            ][:limit]
        ), f"{start=} {stop=} {limit=} {topics=} {inclusive=}"
    assert recorder.max_notification_id() == last


@pytest.mark.parametrize("count", [0, 1, 40])
def test_snapshots_recorded_in_any_order_are_read_by_version(
    open_datastore: OpenDatastore, chance: random.Random, count: int
) -> None:
    recorder = JetStreamSnapshotRecorder(open_datastore())
    id, beside = uuid4(), uuid4()
    events = [event(id, version) for version in chance.sample(range(1_000), count)]
    for one in events:
        recorder.insert_events([one, event(beside, one.originator_version)])
    for _ in range(60):
        ask_anything(recorder, id, events, chance)


def requests(datastore: JetStreamDatastore) -> int:
    assert datastore._opened is not None
    return int(datastore._opened.connections.reading.stats["out_msgs"])


def test_the_end_of_a_long_originator_is_found_without_reading_it(
    open_datastore: OpenDatastore,
) -> None:
    # given 6,000 events of one originator, among those of others
    writer = JetStreamApplicationRecorder(open_datastore())
    long = uuid4()
    for start in range(0, 6_000, 400):
        writer.insert_events(
            [event(long, start + n) for n in range(400)]
            + [event(uuid4(), 1) for _ in range(50 + start // 20)]
        )
    # when somebody who has not seen it asks for versions in the middle, as after a snapshot
    datastore = open_datastore()
    reader = JetStreamApplicationRecorder(datastore)
    before = requests(datastore)
    found = reader.select_events(long, gt=4_499, lte=4_510)
    first = requests(datastore) - before
    again = reader.select_events(long, gt=4_499, lte=4_510)
    second = requests(datastore) - before - first
    # then few requests are made, and one only the next time
    assert [e.originator_version for e in found] == list(range(4_500, 4_511))
    assert again == found
    assert first <= 16
    assert second == 1


def test_an_aggregate_that_is_up_to_date_costs_one_request(open_datastore: OpenDatastore) -> None:
    datastore = open_datastore()
    recorder = JetStreamApplicationRecorder(datastore)
    id = uuid4()
    recorder.insert_events([event(id, version) for version in range(1, 900)])
    before = requests(datastore)
    assert recorder.select_events(id, gt=899) == []
    assert [e.originator_version for e in recorder.select_events(id, desc=True, limit=1)] == [899]
    assert requests(datastore) - before == 2


def test_events_of_other_processes_are_read_at_once(open_datastore: OpenDatastore) -> None:
    writer = JetStreamApplicationRecorder(open_datastore())
    reader = JetStreamApplicationRecorder(open_datastore())
    id = uuid4()
    for version in range(1, 40):
        [seq] = writer.insert_events([event(id, version)]) or []
        assert reader.max_notification_id() == seq
        assert [n.id for n in reader.select_notifications(seq, 10)] == [seq]
        assert len(reader.select_events(id)) == version
        assert len(reader.select_events(id, gt=version - 1)) == 1
