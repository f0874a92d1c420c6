"""The factory reads the library's kind of environment, and says which setting is wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from eventsourcing.application import Application
from eventsourcing.cipher import AESCipher
from eventsourcing.domain import Aggregate
from eventsourcing.persistence import (
    InfrastructureFactory,
    InterfaceError,
    OperationalError,
    ProgrammingError,
    StoredEvent,
)
from eventsourcing.utils import Environment, get_topic

from infra.jetstream import (
    Factory,
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
    JetStreamTrackingRecorder,
)
from tests.infra.jetstream.nats_process import api

ROOT = Path(__file__).resolve().parents[3]

Construct = Callable[..., Factory]


@pytest.fixture
def construct(nats_url: str, prefix: str) -> Iterator[Construct]:
    """Makes a factory as an application does; None takes a setting away."""
    made: list[Factory] = []

    def make(name: str = "App", **settings: str | None) -> Factory:
        env = {
            "PERSISTENCE_MODULE": "infra.jetstream",
            "NATS_URL": nats_url,
            "JETSTREAM_PREFIX": prefix,
        } | settings
        environment = Environment(name, {k: v for k, v in env.items() if v is not None})
        factory: InfrastructureFactory = InfrastructureFactory.construct(environment)
        assert isinstance(factory, Factory)
        made.append(factory)
        return factory

    yield make
    for factory in made:
        factory.close()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"NATS_URL": None}, "APP_NATS_URL, NATS_URL"),
        ({"NATS_URL": " "}, "NATS_URL"),
        ({"JETSTREAM_REPLICAS": "2"}, "JETSTREAM_REPLICAS"),
        ({"JETSTREAM_REPLICAS": "many"}, "JETSTREAM_REPLICAS"),
        ({"JETSTREAM_TIMEOUT": "soon"}, "JETSTREAM_TIMEOUT"),
        ({"JETSTREAM_TIMEOUT": "0"}, "JETSTREAM_TIMEOUT"),
        ({"JETSTREAM_TIMEOUT": "nan"}, "JETSTREAM_TIMEOUT"),
        ({"JETSTREAM_CONNECT_TIMEOUT": "-1"}, "JETSTREAM_CONNECT_TIMEOUT"),
        ({"ORIGINATOR_ID_TYPE": "int"}, "ORIGINATOR_ID_TYPE"),
        ({"JETSTREAM_PREFIX": "x" * 201}, "JETSTREAM_PREFIX"),
        ({"JETSTREAM_PREFIX": "日" * 30}, "JETSTREAM_PREFIX"),
    ],
)
def test_a_setting_that_is_missing_or_wrong_is_named(
    construct: Construct, settings: dict[str, str | None], named: str
) -> None:
    with pytest.raises(EnvironmentError, match=named):
        construct(**settings)


def test_without_a_prefix_and_a_name_it_says_so(construct: Construct) -> None:
    with pytest.raises(EnvironmentError, match="JETSTREAM_PREFIX"):
        construct("", JETSTREAM_PREFIX=None)


def test_settings_may_be_the_applications_own(construct: Construct, nats_url: str) -> None:
    factory = construct("Shop", NATS_URL="nats://nowhere", SHOP_NATS_URL=nats_url)
    assert factory.application_recorder().max_notification_id() is None


def test_nothing_is_connected_before_there_is_a_recorder(construct: Construct) -> None:
    factory = construct(NATS_URL="nats://127.0.0.1:1", JETSTREAM_CONNECT_TIMEOUT="0.2")
    with pytest.raises(OperationalError, match=r"127\.0\.0\.1:1 "):
        factory.application_recorder()


@pytest.mark.parametrize("name", ["Dog School", "a.b", "x/y\\z", "*", ">", "日本", "a%20b", "$JS"])
def test_any_application_name_has_streams_of_its_own(
    construct: Construct, nats_url: str, name: str, prefix: str
) -> None:
    recorder = construct(f"{prefix}{name}", JETSTREAM_PREFIX=None).application_recorder()
    recorder.insert_events([StoredEvent(uuid4(), 1, "t", b"")])
    beside = construct(f"{prefix}{name}2", JETSTREAM_PREFIX=None).application_recorder()
    assert recorder.max_notification_id() == 1
    assert beside.max_notification_id() is None
    found = [n for n in api(nats_url, "STREAM.NAMES", {})["streams"] if n.startswith(prefix)]
    assert len(found) == 2


def test_each_purpose_has_a_stream_of_its_own(
    construct: Construct, nats_url: str, prefix: str
) -> None:
    factory = construct()
    recorders = [
        factory.aggregate_recorder(),
        factory.aggregate_recorder(purpose="snapshots"),
        factory.application_recorder(),
        factory.tracking_recorder(),
        factory.process_recorder(),
    ]
    assert [type(recorder) for recorder in recorders] == [
        JetStreamAggregateRecorder,
        JetStreamSnapshotRecorder,
        JetStreamApplicationRecorder,
        JetStreamTrackingRecorder,
        JetStreamProcessRecorder,
    ]
    found = [n for n in api(nats_url, "STREAM.NAMES", {})["streams"] if n.startswith(prefix)]
    assert sorted(found) == [f"{prefix}-{n}-0" for n in ("EVENTS", "SNAPSHOTS", "TRACKING")]


def test_a_purpose_of_any_other_name_has_one_too(
    construct: Construct, nats_url: str, prefix: str
) -> None:
    factory = construct()
    recorder = factory.aggregate_recorder(purpose="a b.c")
    id = uuid4()
    recorder.insert_events([StoredEvent(id, 7, "t", b""), StoredEvent(id, 3, "t", b"")])
    assert [e.originator_version for e in recorder.select_events(id)] == [3, 7]
    with pytest.raises(ProgrammingError):
        factory.aggregate_recorder(purpose="tracking")


def test_streams_are_made_to_keep_everything(
    construct: Construct, nats_url: str, prefix: str
) -> None:
    construct().application_recorder()
    config = api(nats_url, f"STREAM.INFO.{prefix}-EVENTS-0", {})["config"]
    assert config["subjects"] == [f"{prefix}.evt.0.*", f"{prefix}.trk.0.*"]
    promised = ("deny_delete", "deny_purge", "allow_atomic", "allow_direct")
    assert [config[name] for name in promised] == [True] * 4
    assert (config["storage"], config["discard"], config["num_replicas"]) == ("file", "new", 1)


def test_create_table_off_creates_no_stream(construct: Construct, nats_url: str) -> None:
    factory = construct(CREATE_TABLE="f")
    for make in (
        factory.application_recorder,
        factory.tracking_recorder,
        lambda: factory.aggregate_recorder(purpose="snapshots"),
    ):
        with pytest.raises(OperationalError, match="CREATE_TABLE"):
            make()
    construct().application_recorder()
    assert factory.application_recorder().max_notification_id() is None


class OtherApplicationRecorder(JetStreamApplicationRecorder):
    pass


class OtherProcessRecorder(JetStreamProcessRecorder):
    pass


def test_recorder_classes_may_be_named_by_topic(construct: Construct) -> None:
    factory = construct(
        APPLICATION_RECORDER_TOPIC=get_topic(OtherApplicationRecorder),
        PROCESS_RECORDER_TOPIC=get_topic(OtherProcessRecorder),
    )
    assert type(factory.application_recorder()) is OtherApplicationRecorder
    assert type(factory.process_recorder()) is OtherProcessRecorder


def test_the_context_manager_closes_it(construct: Construct) -> None:
    with construct() as factory:
        recorder = factory.application_recorder()
    with pytest.raises(InterfaceError):
        recorder.max_notification_id()


def test_text_ids_are_a_matter_of_the_environment(construct: Construct) -> None:
    recorder = construct(ORIGINATOR_ID_TYPE="TEXT").application_recorder()
    recorder.insert_events([StoredEvent("dog-1", 1, "t", b"")])
    assert [e.originator_id for e in recorder.select_events("dog-1")] == ["dog-1"]


def test_snapshots_and_the_cache_work_through_a_whole_application(
    nats_url: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counter(Aggregate):
        def __init__(self) -> None:
            self.count = 0

        class Counted(Aggregate.Event):
            def apply(self, aggregate: Aggregate) -> None:
                assert isinstance(aggregate, Counter)
                aggregate.count += 1

    class Counters(Application[UUID]):
        snapshotting_intervals = {Counter: 10}  # noqa: RUF012 (as the library's documentation does)

    env = {
        "PERSISTENCE_MODULE": "infra.jetstream",
        "NATS_URL": nats_url,
        "JETSTREAM_PREFIX": prefix,
        "AGGREGATE_CACHE_MAXSIZE": "10",
    }
    with Counters(env) as app:
        counter = Counter()
        app.save(counter)
        for _ in range(35):
            counter = app.repository.get(counter.id)
            counter.trigger_event(Counter.Counted)
            app.save(counter)
        assert app.snapshots is not None
        assert [s.originator_version for s in app.snapshots.get(counter.id)] == [10, 20, 30]
    with Counters(env) as app:
        assert [app.repository.get(counter.id, version=n).count for n in (1, 10, 11, 29, 36)] == [
            0,
            9,
            10,
            28,
            35,
        ]


TUTORIAL = """
from uuid import UUID
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event

class Dog(Aggregate):
    @event("Registered")
    def __init__(self, name):
        self.name = name
        self.tricks = []

    @event("TrickAdded")
    def add_trick(self, trick):
        self.tricks.append(trick)

class TrainingSchool(Application[UUID]):
    def register(self, name):
        dog = Dog(name)
        self.save(dog)
        return dog.id

    def add_trick(self, dog_id, trick):
        dog = self.repository.get(dog_id)
        dog.add_trick(trick)
        self.save(dog)

    def get_tricks(self, dog_id):
        return self.repository.get(dog_id).tricks

school = TrainingSchool()
fido = school.register("Fido")
for trick in ("roll over", "play dead", "fetch ball"):
    school.add_trick(fido, trick)
school.take_snapshot(fido, version=2)
school.take_snapshot(fido)
school.add_trick(fido, "sit")
print(school.get_tricks(fido))
print([s.originator_version for s in school.snapshots.get(fido)])
print([n.id for n in school.notification_log["1,10"].items])
print(fido)
"""
AGAIN = TUTORIAL.partition("school = ")[0] + "\nprint(TrainingSchool().get_tricks(UUID('{}')))"


def test_the_tutorial_runs_on_it_by_environment_only(nats_url: str, prefix: str) -> None:
    # given snapshots, compression and encryption, switched on by nothing but the environment
    school = prefix
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "PERSISTENCE_MODULE": "infra.jetstream",
        "NATS_URL": nats_url,
        "TRAININGSCHOOL_JETSTREAM_PREFIX": school,
        "IS_SNAPSHOTTING_ENABLED": "y",
        "COMPRESSOR_TOPIC": "zlib",
        "CIPHER_TOPIC": "eventsourcing.cipher:AESCipher",
        "CIPHER_KEY": AESCipher.create_key(32),
    }

    def run(program: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", program],
            env=environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    # when the tutorial's application runs, and another process reads what it wrote
    done = run(TUTORIAL, environment)
    assert done.returncode == 0, done.stderr
    tricks, snapshots, notifications, id = done.stdout.splitlines()
    again = run(AGAIN.format(id), environment)
    # then all is as the tutorial says
    assert tricks == "['roll over', 'play dead', 'fetch ball', 'sit']"
    assert again.stdout == tricks + "\n", again.stderr
    assert snapshots == "[2, 4]"
    assert notifications == "[1, 2, 3, 4, 5]"
    # and what is stored can be read with the key only
    stored = api(nats_url, f"STREAM.MSG.GET.{school}-EVENTS-0", {"seq": 2})["message"]["data"]
    assert "roll" not in stored
    other_key = environment | {"CIPHER_KEY": AESCipher.create_key(32)}
    assert run(AGAIN.format(id), other_key).returncode != 0
