"""Every fault reaches an application as an error of the library's own family, by a real server."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from eventsourcing.persistence import (
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    InternalError,
    OperationalError,
    ProgrammingError,
    Tracking,
)

from infra.jetstream import (
    JetStreamApplicationRecorder,
    JetStreamDatastore,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
    JetStreamTrackingRecorder,
)
from infra.jetstream import reader as reader_module
from infra.jetstream.connections import Server
from infra.jetstream.errors import OutcomeUnknown, StoreReadOnly, StoreUnavailable, StreamMismatch
from tests.infra.jetstream.library import OpenDatastore, event, versions
from tests.infra.jetstream.nats_process import NatsProcess, api

TIMEOUT_S = 4.0


@pytest.fixture
def datastore(own_server: NatsProcess) -> Iterator[JetStreamDatastore]:
    datastore = JetStreamDatastore(own_server.url, "app", timeout=TIMEOUT_S)
    yield datastore
    datastore.close()


def repeat(call: Callable[[], Any]) -> None:
    for _ in range(100):
        call()


def every_call(datastore: JetStreamDatastore) -> dict[str, Callable[[], Any]]:
    """Each call of each recorder, on streams that are there."""
    application = JetStreamApplicationRecorder(datastore)
    process = JetStreamProcessRecorder(datastore)
    tracking = JetStreamTrackingRecorder(datastore)
    snapshots = JetStreamSnapshotRecorder(datastore)
    return {
        "insert": lambda: application.insert_events([event(uuid4(), 1)]),
        "insert several": lambda: application.insert_events([event(uuid4(), n) for n in range(9)]),
        "insert behind": lambda: application.insert_events([event(uuid4(), 7)]),
        "select": lambda: application.select_events(uuid4()),
        "select from": lambda: application.select_events(uuid4(), gt=500),
        "select last": lambda: application.select_events(uuid4(), desc=True, limit=1),
        "notifications": lambda: application.select_notifications(1, 10),
        "max notification": application.max_notification_id,
        "process": lambda: process.insert_events([event(uuid4(), 1)], tracking=Tracking("x", 1)),
        "tracking": lambda: tracking.insert_tracking(Tracking("up", 1)),
        "max tracking": lambda: tracking.max_tracking_id("up"),
        "update": lambda: tracking.update(Tracking("y", 1), {"r": lambda _: b""}),
        "record": lambda: tracking.record("r"),
        "snapshot": lambda: snapshots.insert_events([event(uuid4(), 50)]),
        "select snapshot": lambda: snapshots.select_events(uuid4(), desc=True, limit=1),
    }


def test_a_server_that_is_gone_is_an_operational_error_of_every_call(
    own_server: NatsProcess, datastore: JetStreamDatastore
) -> None:
    calls = every_call(datastore)
    own_server.kill()

    def make(call: Callable[[], Any]) -> BaseException | None:
        try:
            call()
        except Exception as error:  # noqa: BLE001 (what it is, is what is asked here)
            return error
        return None

    with ThreadPoolExecutor(len(calls)) as threads:
        errors = dict(zip(calls, threads.map(make, calls.values()), strict=True))
    assert [name for name, error in errors.items() if type(error) is not StoreUnavailable] == []
    # and of none of them once it is back
    own_server.start()
    for call in calls.values():
        call()


def test_a_server_that_comes_back_in_time_is_waited_for(own_server: NatsProcess) -> None:
    datastore = JetStreamDatastore(own_server.url, "app", timeout=30)
    calls = every_call(datastore)
    own_server.kill()
    threads = [threading.Thread(target=call) for call in calls.values()]
    errors: list[object] = []
    hook, threading.excepthook = threading.excepthook, lambda args: errors.append(args.exc_value)
    try:
        for thread in threads:
            thread.start()
        own_server.start()
        for thread in threads:
            thread.join()
    finally:
        threading.excepthook = hook
        datastore.close()
    assert errors == []


def test_an_insert_that_nobody_answers_is_unknown_and_can_be_repeated(
    own_server: NatsProcess, datastore: JetStreamDatastore
) -> None:
    recorder = JetStreamApplicationRecorder(datastore)
    id = uuid4()
    recorder.insert_events([event(id, 1)])
    own_server.hang()
    with pytest.raises(OutcomeUnknown) as caught:
        recorder.insert_events([event(id, 2)])
    assert isinstance(caught.value, OperationalError)
    own_server.go_on()
    # the same insert again is told the truth: it is recorded by one of the two
    with contextlib.suppress(IntegrityError):
        recorder.insert_events([event(id, 2)])
    assert versions(recorder, id) == [1, 2]


@pytest.mark.parametrize(
    "recorder_class",
    [JetStreamApplicationRecorder, JetStreamSnapshotRecorder, JetStreamTrackingRecorder],
)
def test_a_full_stream_is_an_operational_error_until_there_is_room(
    own_server: NatsProcess, datastore: JetStreamDatastore, recorder_class: type[Any]
) -> None:
    # given a stream that an operator has bounded
    recorder = recorder_class(datastore)
    [name] = api(own_server.url, "STREAM.NAMES", {})["streams"]
    config = api(own_server.url, f"STREAM.INFO.{name}", {})["config"]
    api(own_server.url, f"STREAM.UPDATE.{name}", {**config, "max_bytes": 2_000})
    positions = iter(range(1, 100))

    def insert() -> None:
        if isinstance(recorder, JetStreamTrackingRecorder):
            position = next(positions)
            recorder.update(Tracking("up", position), {f"{position}": lambda _: b"x" * 200})
        else:
            recorder.insert_events([event(uuid4(), 1, b"x" * 200)])

    # when more is inserted than it may hold
    with pytest.raises(StoreReadOnly) as caught:
        repeat(insert)
    assert isinstance(caught.value, OperationalError)
    # then it takes more as soon as it may
    api(own_server.url, f"STREAM.UPDATE.{name}", {**config, "max_bytes": 1_000_000})
    insert()


def test_a_full_store_is_an_operational_error_and_reads_go_on(tmp_path: Path) -> None:
    with NatsProcess(tmp_path, limits="max_file_store: 40KB") as server:
        datastore = JetStreamDatastore(server.url, "app", timeout=5)
        recorder = JetStreamApplicationRecorder(datastore)
        stored: list[UUID] = []

        def insert() -> None:
            id = uuid4()
            recorder.insert_events([event(id, 1, uuid4().bytes * 100)])
            stored.append(id)

        with pytest.raises(OperationalError):
            repeat(insert)
        assert stored
        assert [n.originator_id for n in recorder.select_notifications(None, 100)] == stored
        datastore.close()


def test_a_server_that_cannot_be_reached_is_an_operational_error_without_its_password(
    own_server: NatsProcess,
) -> None:
    own_server.stop()
    url = own_server.url.replace("nats://", "nats://someone:secret@")
    datastore = JetStreamDatastore(Server(url, connect_timeout=0.3), "app")
    with pytest.raises(OperationalError) as caught:
        JetStreamApplicationRecorder(datastore)
    assert str(own_server.port) in str(caught.value)
    assert "NATS_URL" in str(caught.value)
    assert "secret" not in str(caught.value)
    # nothing is left of the attempt, and the next one succeeds
    own_server.start()
    JetStreamApplicationRecorder(JetStreamDatastore(own_server.url, "app")).datastore.close()
    datastore.close()


def test_a_stream_that_breaks_the_promises_is_refused_with_what_is_wrong(
    own_server: NatsProcess,
) -> None:
    for change, named in (({"allow_atomic": False}, "allow_atomic"), ({"max_msgs": 9}, "max_msgs")):
        first = JetStreamDatastore(own_server.url, named.replace("_", "-"))
        recorder = JetStreamApplicationRecorder(first)
        name = recorder._events.stream
        first.close()
        config = api(own_server.url, f"STREAM.INFO.{name}", {})["config"]
        assert "error" not in api(own_server.url, f"STREAM.UPDATE.{name}", {**config, **change})
        second = JetStreamDatastore(own_server.url, named.replace("_", "-"))
        with pytest.raises(StreamMismatch, match=named) as caught:
            JetStreamApplicationRecorder(second)
        assert isinstance(caught.value, OperationalError)
        second.close()


def test_a_closed_datastore_is_an_interface_error_of_every_call(
    open_datastore: OpenDatastore,
) -> None:
    datastore = open_datastore()
    calls = every_call(datastore)
    recorder = JetStreamApplicationRecorder(datastore)
    datastore.close()
    calls["subscribe"] = recorder.subscribe
    for call in calls.values():
        with pytest.raises(InterfaceError, match="closed"):
            call()
    datastore.close()  # once more does no harm


def test_a_recorder_on_its_own_event_loop_is_a_programming_error(
    open_datastore: OpenDatastore,
) -> None:
    recorder = JetStreamApplicationRecorder(open_datastore())
    told: list[BaseException] = []
    done = threading.Event()

    def call() -> None:
        try:
            recorder.max_notification_id()
        except ProgrammingError as error:
            told.append(error)
        done.set()

    recorder.datastore.call_soon(call)
    assert done.wait(10)
    assert len(told) == 1


def publish(datastore: JetStreamDatastore, subject: str, headers: dict[str, str]) -> None:
    """What somebody else publishes on a subject of ours."""
    assert datastore._opened is not None
    client = datastore._opened.connections.writing
    datastore.run(client.request(subject, b"{}", timeout=5, headers=headers))


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Event-Type": "t", "Event-Version": "2", "Event-Hash": "0" * 64},
        {"Event-Type": "t", "Event-Version": "no number", "Event-Hash": "0" * 64},
    ],
)
def test_an_event_that_no_recorder_wrote_is_an_internal_error(
    open_datastore: OpenDatastore, headers: dict[str, str]
) -> None:
    datastore = open_datastore()
    recorder = JetStreamApplicationRecorder(datastore)
    id = uuid4()
    recorder.insert_events([event(id, 1)])
    publish(datastore, f"{datastore.prefix}.evt.0.{id}", headers)
    with pytest.raises(InternalError):
        recorder.select_events(id)
    if len(headers) < 3 or not headers["Event-Version"].isdigit():  # no event at all
        with recorder.subscribe(gt=1) as subscription, pytest.raises(InternalError):
            next(subscription)


def test_an_originator_of_another_type_is_a_data_error(open_datastore: OpenDatastore) -> None:
    texts = open_datastore()
    texts.originator_id_type = "text"
    JetStreamApplicationRecorder(texts).insert_events([event("dog-1", 1)])
    uuids = JetStreamApplicationRecorder(open_datastore())
    with pytest.raises(DataError, match="ORIGINATOR_ID_TYPE"):
        uuids.select_notifications(1, 10)
    with uuids.subscribe() as subscription, pytest.raises(DataError, match="ORIGINATOR_ID_TYPE"):
        next(subscription)


def test_events_of_a_batch_are_read_once_all_of_it_is_there(
    open_datastore: OpenDatastore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A wedged disk shows readers a batch that is not committed, and may never be.
    JetStreamApplicationRecorder(open_datastore()).insert_events(
        [event(uuid4(), 1) for _ in range(5)]
    )
    recorder = JetStreamApplicationRecorder(open_datastore())

    async def wedged(*_: Any, **__: Any) -> int:
        return 3

    with monkeypatch.context() as patch:
        patch.setattr(reader_module, "find_whole", wedged)
        assert [n.id for n in recorder.select_notifications(1, 4)] == [1, 2, 3]
    assert [n.id for n in recorder.select_notifications(1, 10)] == [1, 2, 3, 4, 5]


def test_the_errors_are_the_librarys() -> None:
    for error in (StoreUnavailable, StoreReadOnly, OutcomeUnknown, StreamMismatch):
        assert issubclass(error, OperationalError)
    for kind in (OperationalError, IntegrityError, DataError):
        assert issubclass(kind, DatabaseError)
