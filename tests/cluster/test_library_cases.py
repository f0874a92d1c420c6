"""The library's recorder and application cases with three replicas of everything."""

from __future__ import annotations

import pytest
from eventsourcing.tests import application as application_cases
from eventsourcing.tests import persistence as cases
from eventsourcing.tests import projection as projection_cases

from infra.jetstream import (
    JetStreamAggregateRecorder,
    JetStreamApplicationRecorder,
    JetStreamProcessRecorder,
    JetStreamSnapshotRecorder,
    JetStreamTrackingRecorder,
)
from tests.infra.jetstream.library import InEnvironment, OnJetStream
from tests.infra.jetstream.test_library_cases_projections import JetStreamEventCounters

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("nats_url"), pytest.mark.timeout(300)]


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


class TestTrackingRecorder(OnJetStream, cases.TrackingRecorderTestCase):
    def create_recorder(self) -> JetStreamTrackingRecorder:
        return JetStreamTrackingRecorder(self.datastore)


class TestProcessRecorder(OnJetStream, cases.ProcessRecorderTestCase):
    def create_recorder(self) -> JetStreamProcessRecorder:
        return JetStreamProcessRecorder(self.datastore)


class TestNonInterleavingNotificationIDs(OnJetStream, cases.NonInterleavingNotificationIDsBaseCase):
    def create_recorder(self) -> JetStreamApplicationRecorder:
        return JetStreamApplicationRecorder(self.datastore)


class TestExampleApplication(InEnvironment, application_cases.ExampleApplicationTestCase):
    pass


class TestApplication(InEnvironment, application_cases.ApplicationTestCase):
    pass


class TestAggregateEventCountersProjection(
    InEnvironment, projection_cases.AggregateEventCountersProjectionTestCase
):
    view_class = JetStreamEventCounters


class TestEventSourcedProjection(InEnvironment, projection_cases.EventSourcedProjectionTestCase):
    pass
