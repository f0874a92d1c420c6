"""The test cases that the `eventsourcing` library ships for its backends, none left out."""

from __future__ import annotations

from uuid import UUID

import pytest
from eventsourcing.persistence import InfrastructureFactory, Tracking
from eventsourcing.tests import application as application_cases
from eventsourcing.tests import persistence as cases
from eventsourcing.utils import Environment
from nats.nuid import NUID

from infra.jetstream import (
    Factory,
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
    JetStreamTrackingRecorder,
)
from tests.infra.jetstream.library import InEnvironment, OnJetStream

pytestmark = pytest.mark.usefixtures("nats_url")


class TestAggregateRecorder(OnJetStream, cases.AggregateRecorderTestCase):
    def create_recorder(self) -> JetStreamAggregateRecorder:
        return JetStreamAggregateRecorder(self.datastore)


class TestSnapshotRecorder(OnJetStream, cases.AggregateRecorderTestCase):
    def create_recorder(self) -> JetStreamSnapshotRecorder:
        return JetStreamSnapshotRecorder(self.datastore)


class TestApplicationRecorder(
    OnJetStream, cases.ApplicationRecorderTestCase[JetStreamApplicationRecorder]
):
    def create_recorder(self) -> JetStreamApplicationRecorder:
        return JetStreamApplicationRecorder(self.datastore)

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestProcessRecorderAsApplicationRecorder(
    OnJetStream, cases.ApplicationRecorderTestCase[JetStreamProcessRecorder]
):
    def create_recorder(self) -> JetStreamProcessRecorder:
        return JetStreamProcessRecorder(self.datastore)

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class WithTextIds(OnJetStream):
    """Ids that are as unlike a subject token as they can be."""

    def setUp(self) -> None:
        super().setUp()
        self.datastore.originator_id_type = "text"

    def new_originator_id(self) -> UUID | str:
        return f"*.> {NUID().next().decode()} %2E\n日本\0"


class TestAggregateRecorderWithTextIds(WithTextIds, cases.AggregateRecorderTestCase):
    def create_recorder(self) -> JetStreamAggregateRecorder:
        return JetStreamAggregateRecorder(self.datastore)


class TestSnapshotRecorderWithTextIds(WithTextIds, cases.AggregateRecorderTestCase):
    def create_recorder(self) -> JetStreamSnapshotRecorder:
        return JetStreamSnapshotRecorder(self.datastore)


class TestApplicationRecorderWithTextIds(
    WithTextIds, cases.ApplicationRecorderTestCase[JetStreamApplicationRecorder]
):
    def create_recorder(self) -> JetStreamApplicationRecorder:
        return JetStreamApplicationRecorder(self.datastore)

    def test_insert_subscribe(self) -> None:
        self.optional_test_insert_subscribe()


class TestTrackingRecorder(OnJetStream, cases.TrackingRecorderTestCase):
    def create_recorder(self) -> JetStreamTrackingRecorder:
        return JetStreamTrackingRecorder(self.datastore)


class TestProcessRecorderAsTrackingRecorder(OnJetStream, cases.TrackingRecorderTestCase):
    def create_recorder(self) -> JetStreamProcessRecorder:
        return JetStreamProcessRecorder(self.datastore)


class TestProcessRecorder(OnJetStream, cases.ProcessRecorderTestCase):
    def create_recorder(self) -> JetStreamProcessRecorder:
        return JetStreamProcessRecorder(self.datastore)


class TestNonInterleavingNotificationIDs(OnJetStream, cases.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> JetStreamApplicationRecorder:
        return JetStreamApplicationRecorder(self.datastore)


class OtherTrackingRecorder(JetStreamTrackingRecorder):
    def insert_tracking(self, tracking: Tracking) -> None:
        super().insert_tracking(tracking)


class TestInfrastructureFactory(cases.InfrastructureFactoryTestCase[Factory]):
    nats_url: str

    def setUp(self) -> None:
        self.env = Environment("TestCase")
        self.env[InfrastructureFactory.PERSISTENCE_MODULE] = "infra.jetstream"
        self.env[Factory.NATS_URL] = self.nats_url
        self.env[Factory.JETSTREAM_PREFIX] = NUID().next().decode()
        super().setUp()

    def expected_factory_class(self) -> type[Factory]:
        return Factory

    def expected_aggregate_recorder_class(self) -> type[JetStreamAggregateRecorder]:
        return JetStreamAggregateRecorder

    def expected_application_recorder_class(self) -> type[JetStreamApplicationRecorder]:
        return JetStreamApplicationRecorder

    def expected_tracking_recorder_class(self) -> type[JetStreamTrackingRecorder]:
        return JetStreamTrackingRecorder

    def tracking_recorder_subclass(self) -> type[JetStreamTrackingRecorder]:
        return OtherTrackingRecorder

    def expected_process_recorder_class(self) -> type[JetStreamProcessRecorder]:
        return JetStreamProcessRecorder


class TestExampleApplication(InEnvironment, application_cases.ExampleApplicationTestCase):
    pass


class TestApplication(InEnvironment, application_cases.ApplicationTestCase):
    pass


NOT_FOR_STORES = {"TestCase", "RecorderTestCase", "TranscoderTestCase"}


def test_none_of_the_librarys_cases_is_left_out() -> None:
    covered = {
        base
        for value in list(globals().values())
        if isinstance(value, type)
        for base in value.__mro__
    }
    shipped = {
        value
        for module in (cases, application_cases)
        for name, value in vars(module).items()
        if name.endswith(("TestCase", "BaseCase")) and name not in NOT_FOR_STORES
    }
    assert shipped
    assert shipped <= covered
